"""Gallery room: runs the notebooks without a browser and lays their figures out on one page.

Takes the notebooks of the clone; gives, below `results/`, executed copies and HTML (`notebooks/`), the figures that
`runtime.Run.save` wrote (`figures/`) and `index.html`, which `index_page.py` lays out. Notebooks in git are read, never
written.
"""

from __future__ import annotations

import ast
import base64
import copy
import html
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from srlab import index_page, runtime
from srlab.index_page import count

WIDGET = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"

# JupyterLab's look without the scripts it would fetch. Formulas are set by MathJax when there is a network; without one
# they are readable as TeX, and "defer" keeps the page from waiting.
OFFLINE_TEMPLATE = r"""{% extends 'index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_js_mathjax %}
<script type="text/x-mathjax-config">
MathJax.Hub.Config({tex2jax: {inlineMath: [['$', '$'], ['\\(', '\\)']], processEscapes: true}, messageStyle: 'none'});
</script>
<script defer src="{{ resources.mathjax_url }}"></script>
{% endblock %}
"""


@dataclass(frozen=True)
class Outcome:
    """How the run of one notebook ended."""

    notebook: str
    """file name without suffix"""
    title: str
    """its first heading"""
    seconds: float
    figures: int
    """figures it saved"""
    profile: str
    commit: str
    failed_cell: str = ""
    """number and section of the cell that failed; "" if none did"""
    error: str = ""
    """last line of the error"""


def find_notebooks(folder: Path | None = None, names: Sequence[str] = ()) -> list[Path]:
    """Notebooks in order, all or those whose file names begin with one of `names` ("02" is enough).

    Raises:
        FileNotFoundError: no notebooks there, or a name that fits none.
    """
    if folder is None:
        root = runtime.project_root()
        if root is None:
            raise FileNotFoundError(
                "the notebooks are not part of an installed package: clone the repository, run there"
            )
        folder = root / "notebooks"
    found = sorted(folder.glob("*.ipynb"))
    if not found:
        raise FileNotFoundError(f"no notebooks in {folder}")
    for name in names:
        if not any(path.name.startswith(name) for path in found):
            raise FileNotFoundError(f"no notebook {name!r}; there are: {', '.join(path.stem for path in found)}")
    return [path for path in found if not names or path.name.startswith(tuple(names))]


def run_all(
    notebooks: Iterable[Path],
    results: Path | None = None,
    timeout: float | None = None,
    say: Callable[..., None] = print,
) -> list[Outcome]:
    """Run notebooks one after the other, each in a kernel of its own, and write the index; a failing one stops nothing.

    Args:
        notebooks: paths from `find_notebooks`.
        results: folder to fill, default `runtime.results_dir()`.
        timeout: seconds a cell may take; None: as long as it likes.
        say: prints a line per notebook.
    """
    notebooks = list(notebooks)
    results = (results or runtime.results_dir()).resolve()
    profile = runtime.profile()
    say(f"running {count(notebooks, 'notebook')}, profile {profile}, into {results}")
    outcomes = []
    try:
        for number, path in enumerate(notebooks, 1):
            say(f"[{number}/{len(notebooks)}] {path.stem} ... ", end="", flush=True)
            outcome = run_notebook(path, results, timeout)
            outcomes.append(outcome)
            figures = count(range(outcome.figures), "figure")
            ending = f"FAILED in {outcome.failed_cell}: {outcome.error}" if outcome.error else figures
            say(f"{outcome.seconds:.0f} s, {ending}", flush=True)
    finally:  # after Ctrl-C too: what is done can be looked at
        _forget_removed(notebooks, results)
        index = write_index(results)
    say(f"{'all ran' if not any(o.error for o in outcomes) else 'some FAILED'}; look at {index}")
    return outcomes


def run_notebook(path: Path, results: Path, timeout: float | None = None) -> Outcome:
    """Run one notebook; write its executed copy, its HTML page and a note on how it went to `results/notebooks/`."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, DeadKernelError

    book = nbformat.read(path, as_version=4)
    folder = results / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    client = NotebookClient(
        book,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # the kernel's own chatter would break the progress lines
    )
    before = _written_at(results, path.stem)
    started = time.perf_counter()
    cell, error = "", ""
    try:
        client.execute(env=_kernel_environment(path.stem, results))
    except (CellControlSignal, DeadKernelError) as problem:  # an error in a cell, a cell that took too long, no memory
        cell, error = _failed_cell(book), _last_line(problem)
    seconds = time.perf_counter() - started
    after = _written_at(results, path.stem)
    fresh = [name for name, when in after.items() if before.get(name) != when]
    if not error:
        _remove_figures(results, set(after) - set(fresh))
    outcome = Outcome(
        path.stem, _title(book), round(seconds, 1), len(fresh), runtime.profile(), runtime.commit(), cell, error
    )
    page = as_html(book, path.stem, {figure["name"]: figure["caption"] for figure in read_figures(results)})
    for suffix, text in (
        ("ipynb", nbformat.writes(book)),
        ("html", page),
        ("json", json.dumps(asdict(outcome), indent=1, ensure_ascii=False) + "\n"),
    ):
        runtime.atomic_write(
            folder / f"{path.stem}.{suffix}", lambda draft, text=text: draft.write_text(text, encoding="utf-8")
        )
    return outcome


def _kernel_environment(notebook: str, results: Path) -> dict[str, str]:
    told = {
        "SRLAB_PROFILE": runtime.profile(),
        "SRLAB_RESULTS": str(results),
        "SRLAB_NOTEBOOK": notebook,
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # no warning about frozen modules in the first cell
    }
    inherited = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # figures belong in cells
    return inherited | told


def _failed_cell(book: NotebookNode) -> str:
    """Name the code cell that holds an error, or that never finished, by its number and the heading above it."""
    heading, number, source = "", 0, ""
    for cell in book.cells:
        if cell.cell_type == "markdown":
            heading = next(iter(re.findall(r"^#+\s*(.+)", cell.source, re.MULTILINE)[-1:]), heading)
        elif cell.cell_type == "code":
            number, source = number + 1, cell.source
            if any(output.output_type == "error" for output in cell.outputs) or cell.get("execution_count") is None:
                break
    first = next(iter(source.strip().splitlines()), "")
    return f'code cell {number} ("{heading}": {first})' if heading else f"code cell {number} ({first})"


def _last_line(problem: Exception) -> str:
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(problem)).splitlines() if line.strip()]
    return lines[-1] if lines else type(problem).__name__


def _title(book: NotebookNode) -> str:
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    found = re.search(r"^#\s+(.+)", text, re.MULTILINE)
    return found[1].strip() if found else ""


def read_figures(results: Path) -> list[dict[str, Any]]:
    """What the JSON file beside each saved figure says, in order of notebook and of saving."""
    found = []
    for path in sorted((results / "figures").glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")) | {"name": path.stem})
        except ValueError:  # not ours, or damaged: the picture beside it stays, the page goes on without it
            continue
    return sorted(found, key=lambda figure: figure.get("notebook", ""))


def _forget_removed(notebooks: Sequence[Path], results: Path) -> None:
    """Take away what is left of notebooks that were renamed or deleted."""
    kept = {sibling.stem for path in notebooks for sibling in path.parent.glob("*.ipynb")}
    for path in (results / "notebooks").glob("*.json"):
        if path.stem not in kept:
            _remove_figures(results, _written_at(results, path.stem))
            for suffix in (".ipynb", ".html", ".json"):
                path.with_suffix(suffix).unlink(missing_ok=True)


def _written_at(results: Path, notebook: str) -> dict[str, int]:
    names = [figure["name"] for figure in read_figures(results) if figure.get("notebook") == notebook]
    return {name: (results / "figures" / f"{name}.json").stat().st_mtime_ns for name in names}


def _remove_figures(results: Path, names: Iterable[str]) -> None:
    """Take away figures the notebook no longer makes: the page must not mix two versions of it."""
    for name in names:
        for suffix in ("png", "pdf", "svg", "csv", "json"):
            (results / "figures" / f"{name}.{suffix}").unlink(missing_ok=True)


def as_html(book: NotebookNode, name: str, captions: dict[str, str]) -> str:
    """One executed notebook as an HTML page: figures with their captions as text alternative, widgets as they began.

    Args:
        book: executed notebook; it is not changed.
        name: for the title of the page.
        captions: figure name -> caption.
    """
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    book = copy.deepcopy(book)
    state = book.metadata.pop("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [part for output in cell.outputs for part in _without_widget(output, state)]
            _describe_pictures(cell, captions)
    book.metadata["title"] = _title(book) or name
    exporter = HTMLExporter(
        template_name="lab",
        template_file="offline.html.j2",
        extra_loaders=[DictLoader({"offline.html.j2": OFFLINE_TEMPLATE})],
    )
    page, _ = exporter.from_notebook_node(book, {"metadata": {"name": name}})
    return page


def _without_widget(output: NotebookNode, state: dict[str, Any]) -> list[NotebookNode]:
    """Replace a widget, which a page without a kernel cannot show, by what it showed first and a sentence."""
    if WIDGET not in output.get("data", {}):
        return [output]
    note = "<p><em>Interactive: open this notebook in JupyterLab to use the controls. With their first values:</em></p>"
    shown = _outputs_within(output.data[WIDGET]["model_id"], state, set())
    return [nbformat.v4.new_output("display_data", {"text/html": note}), *shown]


def _outputs_within(model: str, state: dict[str, Any], seen: set[str]) -> list[NotebookNode]:
    """Outputs kept by the Output widgets inside a widget."""
    if model in seen:
        return []
    seen.add(model)
    values = state.get(model, {}).get("state", {})
    found = [nbformat.from_dict(output) for output in values.get("outputs", ())]
    for child in values.get("children", ()):
        found += _outputs_within(str(child).removeprefix("IPY_MODEL_"), state, seen)
    return found


def _describe_pictures(cell: NotebookNode, captions: dict[str, str]) -> None:
    """Give the pictures of a cell the captions of the figures it saves, as alternative text."""
    described = [captions[name] for name in _saved_names(cell.source) if name in captions]
    pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    if len(described) != len(pictures):  # drawn but not saved, or saved in a loop: all captions for each
        described = [" ".join(described)] * len(pictures)
    for output, caption in zip(pictures, described, strict=True):
        data = output.data.pop("image/png").replace("\n", "")
        base64.b64decode(data, validate=True)  # goes into a page as it is
        alt = html.escape(caption or "Picture drawn by the cell above; the text around it says what it shows.")
        output.data["text/html"] = f'<img style="max-width:100%" alt="{alt}" src="data:image/png;base64,{data}">'


def _saved_names(source: str) -> list[str]:
    """Names in calls such as `run.save(fig, "name", ...)`, in the order of the source."""
    try:
        tree = ast.parse("\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))))
    except SyntaxError:
        return []
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    names = []
    for call in sorted(
        (call for call in calls if call.func.attr == "save"), key=lambda call: (call.lineno, call.col_offset)
    ):
        named = [word.value for word in call.keywords if word.arg == "name"]
        names += [node.value for node in [*call.args[1:2], *named] if isinstance(node, ast.Constant)]
    return names


def write_index(results: Path) -> Path:
    """Write `results/index.html` from the scorecard, the notes on notebooks and the figures found below `results`."""
    page = index_page.compose(_read_outcomes(results), read_figures(results), _scorecard(results), results)
    return runtime.atomic_write(results / "index.html", lambda draft: draft.write_text(page, encoding="utf-8"))


def _scorecard(results: Path) -> Path | None:
    """The scorecard made with these results, else the one that ships with the project."""
    candidates = (results / "scorecard.csv", runtime.repo_data("results", "scorecard.csv"))
    return next((path for path in candidates if path.is_file()), None)


def _read_outcomes(results: Path) -> list[Outcome]:
    found = []
    for path in sorted((results / "notebooks").glob("*.json")):
        try:
            found.append(Outcome(**json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError):  # written by another version, or damaged
            continue
    return found
