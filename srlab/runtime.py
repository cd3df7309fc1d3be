"""Runtime room: profile, seed, device, figures on disk and slow results, each with what made it.

Takes the environment (`SRLAB_PROFILE`, `SRLAB_RESULTS`, `SRLAB_RECORD`; `machine` reads `SRLAB_DEVICE`) and gives a
`Run`, which picks sizes by profile and saves figures with their numbers. It stands below every room but `machine`.
Files go to `results/` (ignored by git); shipped files are read from `data/`.
"""

from __future__ import annotations

import datetime
import hashlib
import html
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from srlab import machine

if TYPE_CHECKING:  # loaded inside functions, so that `srlab --help` need not wait for torch
    import pandas as pd
    import torch
    from matplotlib.figure import Figure

PROFILES = ("smoke", "demo", "paper")
"""Sizes of a run: seconds for the tests, about a minute on a laptop, and the paper's own (a GPU)."""

PACKAGES = ("numpy", "scipy", "torch", "matplotlib", "scikit-image")
"""Packages whose versions go into every provenance record."""

_HERE = Path(__file__).resolve().parent
_Value = TypeVar("_Value")


class RecordError(ValueError):
    """A recorded result and its provenance do not belong together."""


def repo_data(*parts: str) -> Path:
    """Path below the shipped `data/` folder, in a clone as in an installed wheel (there it is `srlab/_data`).

    The path need not exist: `repo_data("results", "cka.csv")` also says where a new one belongs.
    """
    packaged = _HERE / "_data"
    return (packaged if packaged.is_dir() else _HERE.parent / "data").joinpath(*parts)


def project_root() -> Path | None:
    """Folder of the clone this package runs from; None for an installed wheel."""
    root = _HERE.parent
    return root if (root / "pyproject.toml").is_file() else None


def results_dir() -> Path:
    """Folder for everything the lab writes: `SRLAB_RESULTS`, else `results/` in the clone or the current folder.

    Under pytest a folder for temporary files stands in, so that a test never overwrites anybody's figures.
    """
    if chosen := os.environ.get("SRLAB_RESULTS", "").strip():
        return Path(chosen).expanduser().resolve()
    if "PYTEST_CURRENT_TEST" in os.environ:
        return Path(tempfile.gettempdir()).resolve() / f"srlab-tests-{os.getpid()}"
    return (project_root() or Path.cwd()) / "results"


def atomic_write(path: str | os.PathLike, writer: Callable[[Path], object]) -> Path:
    """Write a file so that it is there as a whole or not at all; an older file survives a full disk or a crash.

    Args:
        path: where the file belongs; missing folders are made.
        writer: called with the path of a temporary file beside it, with the same suffix, which it must write.

    Returns:
        `path`.

    Raises:
        OSError: whatever `writer` met, such as a full disk. The temporary file is gone then and `path` is as before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.{os.getpid()}-{os.urandom(4).hex()}{path.suffix}")
    try:
        writer(draft)
        with open(draft, "rb+") as file:  # a disk may admit that it is full only now
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _write_text(path: Path, text: str) -> Path:
    return atomic_write(path, lambda draft: draft.write_text(text, encoding="utf-8", newline="\n"))


def profile() -> str:
    """The profile named by `SRLAB_PROFILE`; without it "demo", and "smoke" inside a test.

    Raises:
        ValueError: the variable names no profile.
    """
    default = "smoke" if "PYTEST_CURRENT_TEST" in os.environ else "demo"
    name = os.environ.get("SRLAB_PROFILE", "").strip() or default
    if name not in PROFILES:
        raise ValueError(
            f"SRLAB_PROFILE is {name!r}, expected one of {', '.join(PROFILES)} (or unset, which means demo)"
        )
    return name


def commit() -> str:
    """Commit of the clone this package runs from, with "-dirty" when files differ from it; "unknown" elsewhere."""
    root = project_root()
    if root is None or not (root / ".git").exists():  # not: the commit of some other repository around a site-packages
        return "unknown"

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return f"{head}-dirty" if git("status", "--porcelain") else head
    except (OSError, subprocess.SubprocessError):  # no git, no commit yet, or a folder that belongs to somebody else
        return "unknown"


def versions() -> dict[str, str]:
    """Versions of Python, SR Lab and the packages that decide its numbers, without importing them."""
    from importlib import metadata

    found = {"python": platform.python_version()}
    for package in ("srlab", *PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _provenance(run: Run | None) -> dict[str, Any]:
    """What files say of the run that made them: how it was at its start; without a run, how things are now."""
    return {
        "seed": run.seed if run else None,
        "profile": run.profile if run else profile(),
        "commit": run.commit if run else commit(),
        "device": str(run.device) if run else "cpu",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": run.versions if run else versions(),
    }


def text_sha256(text: str) -> str:
    """SHA-256 of a text with Unix line ends, so that a checkout on Windows has the same hash."""
    return hashlib.sha256(text.replace("\r\n", "\n").encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """One run of a notebook or script: what it may cost, where it computes, what made its figures."""

    profile: str
    """smoke, demo or paper"""
    seed: int
    """given to Python, NumPy and torch at the start"""
    device: torch.device
    """where models should compute"""
    threads: int
    """torch threads on the CPU"""
    commit: str
    """commit of the code, "-dirty" if changed since, "unknown" outside a clone"""
    notebook: str
    """name of the notebook without folder and suffix, "" outside one"""
    versions: dict[str, str] = field(repr=False, hash=False)
    """package -> version"""

    def pick(self, *, smoke: _Value, demo: _Value, paper: _Value) -> _Value:
        """The value for this run's profile: `run.pick(smoke=2, demo=20, paper=100)`."""
        return {"smoke": smoke, "demo": demo, "paper": paper}[self.profile]

    def save(self, fig: Figure, name: str, data: pd.DataFrame | Mapping[str, Any], caption: str) -> Figure:
        """Write a figure as PNG (200 dpi), PDF and SVG, its numbers as CSV, and what made them as JSON.

        Files go to `results/figures/NAME.*`, each written as a whole or not at all.

        Args:
            fig: the figure. It is taken out of pyplot's hands, so that a notebook shows it once, not twice.
            name: file name without suffix: letters, digits, "-", "_".
            data: the numbers behind it: a table, or a column or single value per key.
            caption: one sentence that says what the figure shows; it is the text read out in place of the picture.

        Returns:
            `fig`, so that a cell that ends with this call shows it.

        Raises:
            ValueError: a name that is no plain file name, an empty caption, or data that is no table.
        """
        from matplotlib import pyplot as plt
        from matplotlib import rc_context

        if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
            raise ValueError(f"figure name is {name!r}, expected letters, digits, '-' and '_', as in 'cka-by-layer'")
        if not caption.strip():
            raise ValueError(f"figure {name!r} has no caption: say what it shows, for readers who cannot see it")
        table = _table(data, name)
        target = results_dir() / "figures" / name
        csv = table.to_csv(index=False, lineterminator="\n")
        record = {
            "name": name,
            "caption": caption,
            "notebook": self.notebook,
            **_provenance(self),
            "data_sha256": text_sha256(csv),
        }
        # dates are left out of the pictures: the same figure made twice is the same file
        made_by = json.dumps({key: value for key, value in record.items() if key != "date"}, sort_keys=True)
        metadata = {
            "png": {"Title": name, "Description": caption, "Comment": made_by},
            "pdf": {"Title": name, "Subject": caption, "Keywords": made_by, "CreationDate": None},
            "svg": {"Title": name, "Description": caption, "Source": made_by, "Date": None},
        }
        with rc_context({"pdf.fonttype": 42, "svg.hashsalt": name}):  # 42: real fonts, editable and searchable
            for suffix, about in metadata.items():
                path = target.with_name(f"{name}.{suffix}")
                atomic_write(
                    path, lambda draft, about=about: fig.savefig(draft, dpi=200, bbox_inches="tight", metadata=about)
                )
        _write_text(target.with_name(f"{name}.csv"), csv)
        _write_text(target.with_name(f"{name}.json"), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        if "ipykernel" in sys.modules:  # loads the notebook's backend, without which a bare Figure is shown as text
            plt.close(plt.figure())
        plt.close(fig)
        return fig

    def _rows(self) -> dict[str, str]:
        packages = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return {
            "profile": self.profile,
            "seed": str(self.seed),
            "device": f"{self.device}, {self.threads} CPU thread{'s' if self.threads != 1 else ''}",
            "commit": self.commit,
            "versions": packages,
        }

    def __str__(self) -> str:
        return "SR Lab run: " + "; ".join(f"{key} {value}" for key, value in self._rows().items())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr style="text-align:left"><th scope="row">{key}</th><td>{html.escape(value)}</td></tr>'
            for key, value in self._rows().items()
        )
        return f"<table><caption>SR Lab run</caption>{rows}</table>"


_current: Run | None = None  # the last run started, so that recorded results can name its seed


def start(seed: int = 0) -> Run:
    """Begin a run: read the profile, seed every generator, choose the device, tune the allocator.

    Args:
        seed: any whole number from 0 to 2**63 - 1.

    Raises:
        ValueError: a seed that is no such number; `SRLAB_PROFILE` or `SRLAB_DEVICE` name nothing that exists.
    """
    global _current
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed!r}, expected a whole number from 0 to 2**63 - 1")
    import torch

    chosen = profile()
    device = machine.pick_device()
    machine.seed_everything(seed)
    machine.tune_allocator()
    _current = Run(chosen, seed, device, torch.get_num_threads(), commit(), _notebook_name(), versions())
    return _current


def _notebook_name() -> str:
    """Name of the running notebook, as told by `srlab figures` or by Jupyter; "" when nobody says."""
    told = os.environ.get("SRLAB_NOTEBOOK") or os.environ.get("JPY_SESSION_NAME") or ""
    return Path(told).stem


def _table(data: pd.DataFrame | Mapping[str, Any], name: str) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    if isinstance(data, pd.DataFrame):
        return data if isinstance(data.index, pd.RangeIndex) and data.index.name is None else data.reset_index()
    if not isinstance(data, Mapping) or not data:
        raise ValueError(f"data of figure {name!r} is {type(data).__name__}, expected a DataFrame or a dict of columns")
    columns = {}
    for key, value in data.items():
        column = np.atleast_1d(value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value))
        if column.ndim != 1:
            raise ValueError(
                f"data[{key!r}] of figure {name!r} has shape {column.shape}, expected one axis: "
                f"a picture or matrix goes into a CSV as columns such as row, column, value"
            )
        columns[key] = pd.Series(column)
    return pd.DataFrame(columns)  # unequal lengths end in empty cells


def recorded(
    name: str,
    compute: Callable[[], pd.DataFrame],
    *,
    settings: Mapping[str, Any],
    refresh: bool = False,
    made_by: str = "",
) -> pd.DataFrame:
    """A slow result: read from disk when it was made with these settings, else computed and written down.

    Looked for in `data/results/NAME.csv`, which ships with the project, then among the results of this machine, in
    `results/recorded/`. A JSON file beside the table says what made it; a table changed afterwards is refused. With
    `SRLAB_RECORD=1` the result is computed anew and written to `data/results/`, ready to be committed.

    Args:
        name: file name without suffix.
        compute: called without arguments if the result is not there; its table is read back from the CSV, so that the
            first and every later call return the same thing. The time it took is noted down; where it went on with
            earlier work, its table's `attrs["seconds"]` says how long all of it took.
        settings: everything the result depends on (sizes, seeds, models, data), as JSON can hold it; other settings
            are another result.
        refresh: compute even if it is there.
        made_by: what a person types to make it. It is then never computed in passing, only with `SRLAB_RECORD=1`, and
            an error names the command: for results that take many minutes or files that few have.

    Returns:
        The table; `.attrs["provenance"]` holds settings, seed, profile, commit, device, versions, date and seconds.

    Raises:
        RecordError: the table does not match the hash in its provenance, or that is damaged; with `made_by`, the
            shipped table is missing or was made with other settings.
        ValueError: settings that JSON cannot hold.
    """
    try:
        wanted = json.loads(json.dumps(dict(settings), sort_keys=True))
    except TypeError as error:
        raise ValueError(f"settings of {name!r} must be plain numbers, texts, lists and dicts, but {error}") from error
    shipping = os.environ.get("SRLAB_RECORD", "") == "1"
    shipped = repo_data("results", f"{name}.csv")
    short = text_sha256(json.dumps(wanted, sort_keys=True))[:10]
    local = results_dir() / "recorded" / f"{name}-{short}.csv"
    for path in (shipped, local):
        if not (refresh or shipping) and (table := _read_record(path, wanted)) is not None:
            print(_record_line(name, table.attrs["provenance"]))
            return table
    if made_by and not (refresh or shipping):
        raise RecordError(f"{shipped} {_why_not(shipped, wanted)}: {made_by} makes it anew")
    started = time.perf_counter()
    table = compute()
    seconds = table.attrs.get("seconds", time.perf_counter() - started)
    about = {"name": name, "settings": wanted, **_provenance(_current), "seconds": round(seconds, 2)}
    path = _write_record(shipped if shipping else local, table, about)
    table = _read_record(path, wanted)
    print(_record_line(name, table.attrs["provenance"]))
    return table


def _write_record(path: Path, table: pd.DataFrame, about: dict[str, Any]) -> Path:
    csv = table.to_csv(index=False, lineterminator="\n")
    _write_text(path.with_suffix(".json"), json.dumps({**about, "data_sha256": text_sha256(csv)}, indent=1) + "\n")
    return _write_text(path, csv)


def _read_record(path: Path, wanted: dict[str, Any]) -> pd.DataFrame | None:
    """The table at `path` if it is there and was made with the wanted settings."""
    about = path.with_suffix(".json")
    if not (path.is_file() and about.is_file()):
        return None
    provenance = _read_about(about)
    if provenance.get("settings") != wanted:
        return None
    found = text_sha256(path.read_text(encoding="utf-8"))
    if found != provenance.get("data_sha256"):
        raise RecordError(
            f"{path} has sha256 {found}, its provenance {about.name} says {provenance.get('data_sha256')}: the table "
            f"was edited, or only one of the two was updated. Compute it again with refresh=True, or delete both"
        )
    import pandas as pd

    table = pd.read_csv(path, float_precision="round_trip")
    table.attrs["provenance"] = provenance
    return table


def _read_about(path: Path) -> dict[str, Any]:
    """What the JSON file beside a record says."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(f"{path} is no JSON ({error}): was it cut short? Delete it, and compute again") from error
    if not isinstance(about, dict):
        raise RecordError(f"{path} says nothing of a record, expected an object with settings: delete it")
    return about


def _why_not(path: Path, wanted: dict[str, Any]) -> str:
    """Why the record at `path` cannot be taken: which of its settings are not the wanted ones."""
    about = path.with_suffix(".json")
    if not (path.is_file() and about.is_file()):
        return "is missing"
    made = _read_about(about).get("settings", {})
    other = sorted(key for key in {*made, *wanted} if made.get(key) != wanted.get(key))
    return f"was made with other {', '.join(other)} than this project now has"


def _record_line(name: str, made: Mapping[str, Any]) -> str:
    return (
        f"{name}: computed {made['date']} in {made['seconds']:g} s, {made['profile']} profile, seed {made['seed']}, "
        f"commit {made['commit']}, torch {made['versions']['torch']} on {made['device']}"
    )
