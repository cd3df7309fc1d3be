"""Ablation room: what the FFT loss, IGSample and FGRep each add to IGConv+, by several small trainings of each kind.

One part is left out at a time, everything else is equal: encoder, steps, crops (the same seed draws the same ones),
first weights of the encoder. `train_all` is a plain loop over recipes; each run has its folder and goes on where it was
stopped. `score_all` makes two tables of the finished models, shipped as `data/results/ablation.csv` (a row per picture)
and `ablation_course.csv` (what was seen on the way); `recorded_scores` and `recorded_course` read them, without weights
and pictures, and `ablation_verdicts.py` says what they mean.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from srlab import datasets, evaluate, fetch, images, metrics, runtime, spectra, sweeps, train, weights
from srlab.datasets import CropStore, ImageSet
from srlab.models import SRModel

RECORD, COURSE = "ablation", "ablation_course"

FULL = "IGConv+"
PLAIN = "IGConv"
VARIANTS: dict[str, dict] = {
    FULL: {"upsampler": "igconv+", "fft_weight": 0.05},
    "without FFT loss": {"upsampler": "igconv+", "fft_weight": 0.0},
    "without IGSample": {"upsampler": "igconv", "fft_weight": 0.05, "sizes": {"fgrep": True}},
    "bilinear for IGSample": {"upsampler": "igconv", "fft_weight": 0.05, "sizes": {"fgrep": True, "skip": "bilinear"}},
    "without FGRep": {"upsampler": "igconv+", "fft_weight": 0.05, "sizes": {"fgrep": False}},
    PLAIN: {"upsampler": "igconv", "fft_weight": 0.0, "sizes": {"fgrep": False}},
}
"""What is trained: IGConv+ with all its parts, with one left out, and IGConv, which has none of them. IGSample is left
out twice: with nothing in its place, and with what it does before it has learnt anything, bilinear enlargement."""

BANDS = len(spectra.OCTAVES) - 1
MEASURES = ("error", "amplitude", "gain")
"""Per octave: power of the error, the part of it that wrong strengths make, power of sr; all relative to hr's power."""


class Plan(NamedTuple):
    """Sizes of the ablation; the defaults are those of the record (a quarter of an hour on one core)."""

    seeds: tuple[int, ...] = (0, 1, 2)
    encoder: str = "edsr-nano"
    sizes: tuple[tuple[str, object], ...] = (("implicit_dim", 64),)
    """options of `models.build` that all variants share: a quarter of the paper's implicit width, for 16 channels"""
    scales: tuple[int, ...] = (2, 3, 4)
    data: str = "bsd400"
    steps: int = 1400
    micro_batch: int = 2
    micro_batches: int = 3
    patch: int = 32
    learning_rate: float = 2e-3
    warmup: int = 100
    snapshots: tuple[int, ...] = (50, 100, 200, 400, 800, 1400)
    """steps after which the bands are looked at, multiples of 50"""
    watched: int = 6
    """photographs of `demo` that are looked at, their middle 240 x 240 pixels; none is trained on"""
    watched_scales: tuple[int, ...] = (2, 4)
    sets: tuple[tuple[str, int], ...] = (("set5", 1), ("set14", 1), ("b100", 4))
    """test sets, and every how many-th of their pictures is taken"""


PLAN = Plan()
LOG_EVERY = 50


def recipe(variant: str, seed: int, plan: Plan = PLAN) -> train.Recipe:
    """The recipe of one run.

    Raises:
        ValueError: no such variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r} in the ablation: expected one of {', '.join(VARIANTS)}")
    own = dict(VARIANTS[variant])
    return train.Recipe(
        encoder=plan.encoder,
        sizes={**dict(plan.sizes), **own.pop("sizes", {})},
        scales=plan.scales,
        data=plan.data,
        steps=plan.steps,
        micro_batch=plan.micro_batch,
        micro_batches=plan.micro_batches,
        patch=plan.patch,
        learning_rate=plan.learning_rate,
        final_learning_rate=plan.learning_rate / 1000,
        warmup=plan.warmup,
        ema=0.0,
        seed=seed,
        log_every=LOG_EVERY,
        save_every=300,
        **own,
    )


def runs(plan: Plan = PLAN) -> list[tuple[str, int]]:
    """Variant and seed of every run; all variants of one seed before the next, so that a part of it can be read."""
    return [(variant, seed) for seed in plan.seeds for variant in VARIANTS]


def run_name(variant: str, seed: int) -> str:
    """Name of a run's folder."""
    return f"{variant.lower().replace('+', '-plus').replace(' ', '-')}-seed{seed}"


# training


class Course:
    """Looks at the octaves of a few held-out photographs while a model is trained: a callback for `train.fit`.

    Args:
        photos: photographs that are not trained on.
        scales, steps: at which scales, and after which steps.
        file: CSV that receives each row at once, so that a run that goes on later keeps its course; None keeps `rows`
            in memory alone.
        side: HR pixels of the middle that is looked at, divisible by every scale.
    """

    def __init__(
        self, photos: ImageSet, scales: Sequence[int], steps: Sequence[int], file: Path | None = None, side: int = 240
    ):
        self.names, self.steps, self.file = photos.names, set(steps), file
        self.pairs = {scale: middles(photos, scale, side) for scale in scales}
        self.rows: list[dict[str, object]] = []

    def __call__(self, row: Mapping[str, float], model: SRModel) -> None:
        """Take a row of the log; at other steps than the chosen ones nothing happens."""
        if row["step"] not in self.steps:
            return
        for scale, (lr, hr) in self.pairs.items():
            device = next(model.parameters()).device
            sr = evaluate.upscale(model, lr.to(device), scale).cpu()
            for name, columns in zip(self.names, band_columns(sr, hr), strict=True):
                self._add({"step": int(row["step"]), "scale": scale, "image": name, **columns})

    def _add(self, row: dict[str, object]) -> None:
        self.rows.append(row)
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row, lineterminator="\n")
            if not self.file.stat().st_size:
                writer.writeheader()
            writer.writerow(row)


def middles(photos: ImageSet, scale: int, side: int) -> tuple[Tensor, Tensor]:
    """The middle of each photograph, LR (n, 3, side / scale, side / scale) and HR (n, 3, side, side), float in [0, 1].

    Raises:
        ValueError: `side` is no multiple of `scale`, or a photograph is smaller.
    """
    if side % scale or min(min(photos.size(i)) for i in range(len(photos))) < side + scale:
        raise ValueError(f"side is {side}, expected a multiple of {scale} that fits into every photograph")
    pairs = []
    for index in range(len(photos)):
        lr, hr = photos.pair(index, scale)
        top, left = ((n - side // scale) // 2 for n in lr.shape[-2:])
        cut = [slice(first, first + side // scale) for first in (top, left)]
        wide = [slice(first * scale, first * scale + side) for first in (top, left)]
        pairs.append((lr[:, *cut], hr[:, *wide]))
    lr, hr = (images.to_float(torch.stack(pictures)) for pictures in zip(*pairs, strict=True))
    return lr, hr


def band_columns(sr: Tensor, hr: Tensor) -> list[dict[str, float]]:
    """Octave by octave, luma of sr against luma of hr: a dict per picture of a batch (B, 3, H, W), float in [0, 1].

    Keys are `error0` (the coarsest octave of `spectra.OCTAVES`) to `error4`, and alike for `amplitude` and `gain`.
    """
    found = spectra.band_errors(*(images.rgb_to_y(picture.clamp(0, 1))[:, 0] for picture in (sr, hr)))
    values = {"error": found.relative, "amplitude": found.amplitude, "gain": found.gain}
    return [
        {f"{measure}{band}": float(f"{values[measure][i, band]:.5g}") for measure in MEASURES for band in range(BANDS)}
        for i in range(len(sr))
    ]


def train_all(
    folder: str | Path, plan: Plan = PLAN, *, part: str = "1/1", store: CropStore | None = None
) -> Iterator[Path]:
    """Train what is not finished yet, one run after the other; interrupt it at will, a later call goes on.

    Args:
        folder: holds a folder per run.
        plan: sizes.
        part: this process's share of the runs, "1/2" the first of two, as in `sweeps.part_of`.
        store: crops, when the caller has them; decoded once for all runs.

    Yields:
        The folder of each finished run.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when the step is finished and saved.
    """
    names = {run_name(variant, seed): (variant, seed) for variant, seed in runs(plan)}
    sweep = sweeps.part_of([(name, recipe(*run, plan)) for name, run in names.items()], part)
    photos = datasets.load("demo")
    photos = photos.subset(photos.names[: plan.watched])
    for name, wanted in sweep:
        run = Path(folder) / name
        if not sweeps.is_finished(wanted, run):
            store = store or CropStore(datasets.load(plan.data), plan.scales, patch=plan.patch)
            course = Course(photos, plan.watched_scales, plan.snapshots, run / "course.csv")
            result = train.fit(wanted, run, store=store, on_log=course)
            if result.step < plan.steps:  # its checkpoint is written
                raise KeyboardInterrupt
        yield run


# scoring


def score(model: SRModel, pictures: ImageSet, scale: int) -> pd.DataFrame:
    """PSNR-Y and octaves of every picture: dataset, scale, image, psnr_y (dB) and the keys of `band_columns`."""
    rows = []
    for index, name in enumerate(pictures.names):
        lr, hr = pictures.pair(index, scale)
        sr = evaluate.upscale(model, lr, scale)
        psnr = round(metrics.psnr_y(sr, hr, scale), 4)
        (columns,) = band_columns(images.to_float(sr)[None], images.to_float(hr)[None])
        rows.append({"dataset": pictures.name, "scale": scale, "image": name, "psnr_y": psnr, **columns})
    return pd.DataFrame(rows)


def score_run(run: str | Path, plan: Plan = PLAN) -> pd.DataFrame:
    """`score` of a finished run on all test sets and scales; kept as `scores.csv` in its folder."""
    file = Path(run) / "scores.csv"
    if not file.exists():
        model = weights.load_checkpoint(Path(run) / sweeps.WEIGHTS)
        table = pd.concat([score(model, pictures, scale) for scale in plan.scales for pictures in sets_of(plan)])
        runtime.atomic_write(file, lambda draft: table.to_csv(draft, index=False))
    return pd.read_csv(file, dtype={"image": str})


def score_all(folder: str | Path, plan: Plan = PLAN) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and courses of all finished runs, each with columns variant and seed; `train_all` comes first.

    Raises:
        srlab.train.TrainingError: a run is not finished.
    """
    scores, courses, seconds = [], [], 0.0
    for variant, seed in runs(plan):
        run = Path(folder) / run_name(variant, seed)
        if not sweeps.is_finished(recipe(variant, seed, plan), run):
            raise train.TrainingError(f"{run} holds no finished run of this plan: train it first (train_all)")
        seconds += pd.read_csv(run / "log.csv")["seconds"].iloc[-1]
        label = {"variant": variant, "seed": seed}
        course = pd.read_csv(run / "course.csv", dtype={"image": str})
        courses.append(course.drop_duplicates(["step", "scale", "image"], keep="last").assign(**label))
        scores.append(score_run(run, plan).assign(**label))
    tables = []
    for parts in (scores, courses):
        table = pd.concat(parts, ignore_index=True)
        table = table[["variant", "seed", *(name for name in table if name not in ("variant", "seed"))]]
        table.attrs["seconds"] = seconds
        tables.append(table)
    return tables[0], tables[1]


@functools.cache
def sets_of(plan: Plan) -> tuple[ImageSet, ...]:
    """The pictures that models are scored on."""
    sets = [(datasets.load(name), every) for name, every in plan.sets]
    return tuple(pictures.subset(pictures.names[::every]) for pictures, every in sets)


def recorded_scores() -> pd.DataFrame:
    """Scores as they ship with the project: variant, seed, dataset, scale, image, psnr_y and the octaves.

    With `SRLAB_RECORD=1` (`srlab train --sweep ablation`) all is trained and scored anew, in `runs/ablation`.

    Raises:
        srlab.runtime.RecordError: the record is missing, or of another plan or other pictures than the project has now.
    """
    return _recorded(RECORD, 0)


def recorded_course() -> pd.DataFrame:
    """Octaves on the way, as they ship: variant, seed, step, scale, image and the octaves of `PLAN.watched` photos."""
    return _recorded(COURSE, 1)


def _recorded(name: str, which: int) -> pd.DataFrame:
    settings = {"plan": PLAN._asdict(), "variants": VARIANTS, "octaves": spectra.OCTAVES}
    settings["pictures"] = {name: fetch.pinned(name) for name in (PLAN.data, *dict(PLAN.sets))}

    def compute() -> pd.DataFrame:
        folder = Path("runs") / RECORD
        list(train_all(folder))
        return score_all(folder)[which]

    made_by = "`SRLAB_RECORD=1 srlab train --sweep ablation`"
    return runtime.recorded(name, compute, settings=settings, made_by=made_by)
