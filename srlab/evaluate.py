"""Use and score a model: upscale a picture of any size, and score a set of pictures, one row per picture.

Models come from `weights.py` or `models.py`, pictures from `datasets.py` or `images.py`; pictures and tables go back to
the caller. Anything callable as `model(lr, scale) -> sr` can be scored, so bicubic interpolation is a model here too.
Scores of all named models on the benchmark sets ship in `data/results/benchmarks.csv`: see `recorded_benchmarks`.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import json
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from srlab import datasets, fetch, images, machine, metrics, runtime, statistics, weights
from srlab.resize import imresize
from srlab.upsamplers import checked_scale

Model = Callable[[Tensor, int], Tensor]
"""lr (B, 3, h, w) in [0, 1], scale -> sr (B, 3, h * scale, w * scale)."""

WHOLE_PIXELS = 512 * 512
"""Pictures with more LR pixels than this are cut into tiles unless the caller says otherwise."""
TILE = 256
GLOBAL_OVERLAP = 32

RECORD = "benchmarks"
"""Name of the recorded scores in `data/results/`."""
RECORDED_SETS = ("set5", "set14", "b100", "urban100")
"""Sets in the record; Urban100 alone is about five times B100's work."""
INTERPOLATION = "MATLAB's bicubic"  # stands where models have a checksum


class Bicubic(nn.Module):
    """Bicubic interpolation (MATLAB's rule) as a model: the baseline of every table."""

    scales = None
    receptive_radius = 2

    def forward(self, lr: Tensor, scale: int) -> Tensor:
        return imresize(lr, checked_scale(scale))


class Tile(NamedTuple):
    """One tile in LR pixels: what is read, and where in it the part that is kept lies."""

    read: tuple[slice, slice]
    keep: tuple[slice, slice]
    place: tuple[slice, slice]


@torch.no_grad()
def upscale(
    model: Model,
    lr: Tensor,
    scale: int,
    tile: int | None = None,
    self_ensemble: bool = False,
    *,
    progress: bool = False,
) -> Tensor:
    """Upscale a picture of any size.

    Args:
        model: an `SRModel`, or anything callable as `model(lr, scale)`.
        lr: (3, h, w) or (B, 3, h, w); uint8, or float in [0, 1].
        scale: integer factor.
        tile: side of the tiles in LR pixels; 0 never cuts, None cuts pictures above 512 x 512 LR pixels. Tiles overlap
            by the model's receptive radius, so the result is that of the whole picture. A model that looks at the whole
            picture has no such radius: then a warning says that results differ a little.
        self_ensemble: average over the eight flips and rotations of the picture; eight times the work.
        progress: show a bar while there are several tiles.

    Returns:
        (3, h * scale, w * scale) or with batch axis, as `lr` came: 8-bit in, 8-bit out; float in, float out, not
        clamped. On the device of `lr`; computed on the device and in the precision of the model's weights.

    Raises:
        ValueError: `lr` is no picture, the model returned another size than it should, or memory does not suffice.
        TypeError: `lr` is neither uint8 nor float.
        ScaleError: the model cannot serve this scale.
    """
    scale = checked_scale(scale)
    if lr.ndim not in (3, 4) or lr.shape[-3] != 3 or 0 in lr.shape:
        raise ValueError(f"lr has shape {tuple(lr.shape)}, expected (3, h, w) or (B, 3, h, w)")
    if tile is not None and tile < 0:
        raise ValueError(f"tile is {tile}, expected a side in LR pixels, 0 for no tiles or None to decide by size")
    if not torch.isfinite(lr).all():
        raise ValueError("lr holds NaN or infinite values, expected brightness in [0, 1]: was something divided by 0?")
    eight_bit = lr.dtype == torch.uint8
    batch = lr if lr.ndim == 4 else lr[None]  # (B, 3, h, w)
    h, w = batch.shape[-2:]
    if tile is None:
        tile = TILE if h * w > WHOLE_PIXELS else 0
    tiles = list(_tiles(h, w, tile or max(h, w), _overlap(model) if tile else 0))
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    weight = next((p for p in parameters if p.is_floating_point()), None)
    run = _eight_ways if self_ensemble else _once
    with _evaluation(model), _memory_named(h, w, scale):
        sr = torch.empty(len(batch), 3, h * scale, w * scale, dtype=batch.dtype, device=lr.device)
        for part in tqdm(tiles, desc=f"x{scale}", unit="tile", disable=not progress or len(tiles) == 1, leave=False):
            piece = images.to_float(batch[..., *part.read])
            piece = piece if weight is None else piece.to(weight)  # its device and its precision
            painted = run(model, piece.contiguous(memory_format=torch.channels_last), scale)
            kept = painted[..., *(_times(side, scale) for side in part.keep)]
            sr[..., *(_times(side, scale) for side in part.place)] = images.to_uint8(kept) if eight_bit else kept
    return sr if lr.ndim == 4 else sr[0]


def benchmark(
    model: Model,
    dataset: str | Path | datasets.ImageSet,
    scale: int,
    *,
    tile: int | None = None,
    self_ensemble: bool = False,
    protocol: metrics.Protocol = metrics.STANDARD,
    progress: bool = True,
    partial: Path | None = None,
) -> pd.DataFrame:
    """Score a model on every picture of a set, in the protocol of the field.

    Args:
        model: as in `upscale`.
        dataset: a set's name, a folder, or an `ImageSet`.
        scale: integer factor.
        tile, self_ensemble: as in `upscale`.
        protocol: how PSNR and SSIM are taken; its sentence is in the table's `attrs["protocol"]`.
        progress: show a bar.
        partial: CSV file that receives each row at once; a killed run finds its rows there and goes on. Rows of other
            weights or sizes of the model, pictures, another tile, scale or protocol are not taken for this one's.

    Returns:
        A row per picture: dataset, scale, image, psnr_y (dB; infinite for identical pictures), ssim_y, seconds
        (upscaling alone).

    Raises:
        ValueError: see `upscale`; the model returned values that are not finite; `partial` is a table of another kind.
        srlab.datasets.DatasetError: the folder has troubles, all in one message, before anything is upscaled.
    """
    pictures = dataset if isinstance(dataset, datasets.ImageSet) else datasets.load(dataset)
    scale = checked_scale(scale)
    key = {"dataset": pictures.name, "scale": scale, "model": fingerprint(model), "ensemble": int(self_ensemble)}
    key["protocol"] = protocol.line(scale)
    if partial:  # two folders may have one name, and two models the same weights
        key["pictures"] = pictures.sha256()[:12]
        key["tile"] = "by size" if tile is None else tile
        config = json.dumps(getattr(model, "config", None), sort_keys=True, default=str)
        key["config"] = runtime.text_sha256(config)[:12]
    done = _rows_so_far(partial, key)
    rows = []
    bar = tqdm(pictures.names, desc=f"{pictures.name} x{scale}", unit="picture", disable=not progress, leave=False)
    for index, name in enumerate(bar):
        if name not in done:
            lr, hr = pictures.pair(index, scale)
            started = time.perf_counter()
            sr = upscale(model, lr, scale, tile, self_ensemble)
            seconds = time.perf_counter() - started
            done[name] = {"image": name, "psnr_y": protocol.psnr(sr, hr, scale), "ssim_y": protocol.ssim(sr, hr, scale)}
            done[name]["seconds"] = round(seconds, 4)
            if partial:
                _append(partial, key | done[name])
        rows.append({"dataset": pictures.name, "scale": scale, **done[name]})
    table = pd.DataFrame(rows)
    table.attrs["protocol"] = protocol.line(scale)
    return table


def try_out(model: Model, scale: int, name: str) -> None:
    """Upscale a few grey pixels, so that a model that cannot do its work is noticed before hours of it.

    Raises:
        ValueError: as `upscale`, with the name of the model.
    """
    try:
        upscale(model, torch.full((3, 16, 16), 0.5), scale)
    except ValueError as error:
        raise ValueError(f"{name} at x{scale}: {error}") from error


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean PSNR and SSIM with intervals, a line per set, scale and model.

    Args:
        rows: tables of `benchmark` with a column `model`, or `recorded_benchmarks()`.

    Returns:
        Columns set, scale, model, pictures, PSNR-Y and SSIM-Y as text. Pictures that a model got exactly right have an
        infinite PSNR; if there are any, a column `exact` counts them, and the mean is that of the others.
    """
    lines = []
    for (dataset, scale, model), group in rows.groupby(["dataset", "scale", "model"], sort=False):
        finite, exact = statistics.split_infinite(group["psnr_y"])
        enough = len(finite) >= 2  # an interval needs two pictures
        psnr = statistics.bootstrap_mean(finite) if enough else (finite.mean() if len(finite) else math.inf)
        ssim = statistics.bootstrap_mean(group["ssim_y"]) if len(group) >= 2 else group["ssim_y"].mean()
        line = {"set": dataset, "scale": f"x{scale}", "model": model, "pictures": len(group)}
        lines.append(line | {"PSNR-Y dB [95 %]": f"{psnr:.2f}", "SSIM-Y [95 %]": f"{ssim:.4f}", "exact": len(exact)})
    table = pd.DataFrame(lines)
    return table if table["exact"].any() else table.drop(columns="exact")


def comparisons(rows: pd.DataFrame, a: str, b: str) -> Iterator[str]:
    """Model `a` minus model `b`, picture by picture, in words: a line per set and scale.

    Args:
        rows: as for `summary`; both models on the same pictures.
        a, b: names in the column `model`.
    """
    for (dataset, scale), group in rows.groupby(["dataset", "scale"], sort=False):
        exact = set(group.loc[group["psnr_y"] == math.inf, "image"])  # by any model: no difference in dB
        left = [group[(group["model"] == name) & ~group["image"].isin(exact)] for name in (a, b)]
        without = f" without {len(exact)} that a model got exactly right" if exact else ""
        if len(left[0]) < 2:
            yield f"{dataset} x{scale}: {len(left[0])} picture(s){without}, but an interval needs two"
        else:
            yield f"{dataset} x{scale}{without}: {statistics.paired_difference(*left, names=(a, b)).line()}"


def fingerprint(model: Model) -> str:
    """Twelve hex digits that change when a weight changes; the name for models without weights."""
    if not isinstance(model, nn.Module) or not any(True for _ in model.parameters()):
        return getattr(model, "__name__", type(model).__name__)
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        in_order = value.detach().cpu().flatten().contiguous()  # of the indices, however it lies in memory
        digest.update(in_order.view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return digest.hexdigest()[:12]


def recorded_benchmarks() -> pd.DataFrame:
    """Scores of bicubic and of every named model on `RECORDED_SETS`, as they ship with the project.

    Tables and intervals of published models need neither pictures nor weights then. With `SRLAB_RECORD=1` (`srlab
    evaluate --record`) they are brought up to date: models whose weights have changed since, or are new, are scored and
    the rest is kept; to score all of them (hours on a laptop) delete the record first. A killed run goes on.

    Returns:
        A row per picture: model, dataset, scale, image, psnr_y (dB), ssim_y, both rounded to 4 decimals.

    Raises:
        RecordError: the shipped scores are of other weights or pictures, or of another protocol.
        srlab.fetch.FetchError: pictures or weights to be scored cannot be had.
    """
    settings = {
        "protocol": metrics.STANDARD.line(),
        "pictures": {name: fetch.pinned(name) for name in RECORDED_SETS},
        "weights": {"bicubic": INTERPOLATION} | {name: _checksum(name) for name in weights.names()},
    }
    compute = functools.partial(_score_what_changed, settings)
    return runtime.recorded(RECORD, compute, settings=settings, made_by="`srlab evaluate --record`")


def _checksum(name: str) -> str:
    """SHA-256 of the file of a named model."""
    return weights.card(name).sha256 or fetch.file_sha256(runtime.repo_data("weights", f"{name}.safetensors"))


def _score_what_changed(settings: dict) -> pd.DataFrame:
    """Rows of the shipped record that still hold, and new ones; progress is kept in `results/recorded/`."""
    kept, seconds = _rows_that_hold(settings)
    partial = runtime.results_dir() / "recorded" / f"{RECORD}.partial.csv"
    tables, device = [], machine.pick_device()
    for dataset in RECORDED_SETS:
        for name in settings["weights"]:
            rows = kept[(kept["model"] == name) & (kept["dataset"] == dataset)]
            if rows.empty:
                model = Bicubic() if name == "bicubic" else weights.load(name).to(device)
                scored = [benchmark(model, dataset, scale, partial=partial) for scale in model.scales or (2, 3, 4)]
                rows = pd.concat(scored).assign(model=name)
                seconds += rows["seconds"].sum()
            tables.append(rows)
    table = pd.concat(tables)[["model", "dataset", "scale", "image", "psnr_y", "ssim_y"]].round(4)
    table.attrs["seconds"] = seconds
    partial.unlink(missing_ok=True)
    return table


def _rows_that_hold(settings: dict) -> tuple[pd.DataFrame, float]:
    """Shipped rows whose weights, pictures and protocol are still the same, and the seconds that the record took."""
    path = runtime.repo_data("results", f"{RECORD}.csv")
    nothing = pd.DataFrame(columns=["model", "dataset"]), 0.0
    if not (path.is_file() and path.with_suffix(".json").is_file()):
        return nothing
    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    then, text = about["settings"], path.read_text(encoding="utf-8")
    if then["protocol"] != settings["protocol"] or about["data_sha256"] != runtime.text_sha256(text):
        return nothing
    rows = pd.read_csv(io.StringIO(text), dtype={"image": str})
    for column, kind in (("model", "weights"), ("dataset", "pictures")):
        rows = rows[
            rows[column].isin([name for name, value in settings[kind].items() if then[kind].get(name) == value])
        ]
    return rows, about["seconds"]


def _once(model: Model, lr: Tensor, scale: int) -> Tensor:
    sr = model(lr, scale)
    expected = (*lr.shape[:-2], lr.shape[-2] * scale, lr.shape[-1] * scale)
    if sr.shape != expected:
        raise ValueError(
            f"the model made {tuple(sr.shape)} from {tuple(lr.shape)} at x{scale}, expected {expected}: is it a model "
            f"for another scale, or does it pad its input without cutting the padding off?"
        )
    if not torch.isfinite(sr).all():
        raise ValueError("the model's output holds NaN or infinite values: are its weights whole?")
    return sr


def _eight_ways(model: Model, lr: Tensor, scale: int) -> Tensor:
    """Mean over the flips and the transposition of the picture, each undone on the output."""
    total = torch.zeros((), device=lr.device)
    for transpose in (False, True):
        for axes in ((), (-1,), (-2,), (-1, -2)):
            turned = (lr.mT if transpose else lr).flip(axes)
            sr = _once(model, turned, scale).flip(axes)
            total = total + (sr.mT if transpose else sr)
    return total / 8


@contextlib.contextmanager
def _memory_named(h: int, w: int, scale: int) -> Iterator[None]:
    """Say how large the picture is when memory does not suffice, where torch says how many bytes it wanted."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not re.search("allocate|out of memory|overflow", str(error), re.IGNORECASE):
            raise
        raise ValueError(
            f"{w} x {h} pixels at x{scale} become {w * scale} x {h * scale}, for which memory does not suffice: take a "
            f"smaller scale, smaller tiles or a part of the picture"
        ) from error


class _evaluation:
    """Evaluation mode for the time of a `with`, then back to what it was."""

    def __init__(self, model: Model):
        self.model = model if isinstance(model, nn.Module) else nn.Identity()

    def __enter__(self) -> None:
        machine.tune_allocator()
        self.was_training = self.model.training
        if self.was_training:
            self.model.eval()

    def __exit__(self, *error: object) -> None:
        if self.was_training:
            self.model.train()


def _overlap(model: Model) -> int:
    radius = getattr(model, "receptive_radius", None)
    if radius is None:
        warnings.warn(
            f"{type(model).__name__} looks at the whole picture (or does not say how far it looks): tiles overlap by "
            f"{GLOBAL_OVERLAP} pixels and differ a little from the whole picture; tile=0 turns tiles off",
            stacklevel=3,
        )
        return GLOBAL_OVERLAP
    return radius


def _tiles(h: int, w: int, side: int, overlap: int) -> Iterator[Tile]:
    for top in range(0, h, side):
        for left in range(0, w, side):
            read, keep, place = [], [], []
            for start, length in ((top, h), (left, w)):
                stop = min(start + side, length)
                first, last = max(0, start - overlap), min(length, stop + overlap)
                read.append(slice(first, last))
                keep.append(slice(start - first, stop - first))
                place.append(slice(start, stop))
            yield Tile(tuple(read), tuple(keep), tuple(place))


def _times(side: slice, scale: int) -> slice:
    return slice(side.start * scale, side.stop * scale)


def _rows_so_far(partial: Path | None, key: dict[str, object]) -> dict[str, dict[str, object]]:
    """Rows of an earlier run by picture; a line that was cut off when it was killed is taken out of the file."""
    if partial is None or not Path(partial).exists():
        return {}
    text = Path(partial).read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        runtime.atomic_write(partial, lambda draft: draft.write_text(whole, encoding="utf-8"))
    if not whole:
        return {}
    table = pd.read_csv(io.StringIO(whole), dtype=dict.fromkeys([*key, "image"], str), keep_default_na=False)
    columns = ["image", "psnr_y", "ssim_y", "seconds"]
    if absent := [name for name in [*key, *columns] if name not in table]:
        raise ValueError(
            f"{partial} is no table of partial scores, or one of another version: it has no column "
            f"{', '.join(absent)}. Choose another name, or delete it"
        )
    for name, value in key.items():
        table = table[table[name] == str(value)]
    return {row["image"]: row for row in table[columns].to_dict("records")}


def _append(partial: Path, row: dict[str, object]) -> None:
    partial = Path(partial)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if not partial.stat().st_size:
            writer.writeheader()
        writer.writerow(row)
