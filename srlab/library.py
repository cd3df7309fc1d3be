"""Library room: the models trained here under one recipe, and what one model for all scales is worth beside three.

EDSR-tiny with four upsamplers, equal in everything else (`sweeps`, "library"): an SPConv for each scale in three
trainings, an IGConv and an IGConv+ for all scales in one, and the sceptic's control, one encoder with a plain SPConv
per scale. Their weights lie in `data/weights/`, their scores in the record of `evaluate.recorded_benchmarks`.
`scores` picks them out, `effects` compares kinds, `octave_gains` says where in the spectrum they differ, and `costs`
counts what each road to three scales takes.

A difference has two sources of chance, other pictures and another training; both get an interval, and a verdict needs
both. With two trainings of a kind their spread is pooled over all kinds (`statistics.contrast_of_trainings`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from srlab import ablation, efficiency, evaluate, statistics, sweeps, weights
from srlab.imagesets import ImageSet
from srlab.models import SRModel
from srlab.recipes import Recipe

ENCODER = "edsr-tiny"
SCALES = sweeps.SCALES
THREE, HEADS, IGCONV, PLUS = "three SPConv models", "shared encoder, SPConv heads", "IGConv", "IGConv+"
KINDS: dict[str, str] = {
    THREE: "spconv-x{scale}-seed{seed}",
    HEADS: "heads-seed{seed}",
    IGCONV: "igconv-seed{seed}",
    PLUS: "igconv-plus-seed{seed}",
}
"""Kind -> name of its runs in the sweep; a file in `data/weights/` has the encoder's name before it."""
QUESTIONS = ((IGCONV, THREE), (PLUS, THREE), (PLUS, IGCONV), (HEADS, THREE), (IGCONV, HEADS), (PLUS, HEADS))
"""What is compared with what: the claims first, then the control."""
PAR = 0.1
"""Difference in dB up to which two kinds count as on a par: 88 % of the 90 cells that the paper calls comparable
(IGConv against fixed-scale models, `data/paper/tables.csv`, Tables 2 and 3) lie within it."""
ALL = "all"


def file_name(run: str) -> str:
    """Name in `data/weights/` of a run of the sweep."""
    return f"{ENCODER}-{run}"


def seeds(kind: str) -> list[int]:
    """Seeds a kind was trained with."""
    runs = {name for name, _ in sweeps.named("library")}
    return [seed for seed in range(len(runs)) if KINDS[kind].format(seed=seed, scale=SCALES[0]) in runs]


def members(kind: str, seed: int = 0) -> dict[int, str]:
    """Scale -> name in `weights` of the model that serves it; one name for all scales, but for `THREE`."""
    return {scale: file_name(KINDS[kind].format(seed=seed, scale=scale)) for scale in SCALES}


def load(kind: str, seed: int = 0) -> dict[int, SRModel]:
    """Scale -> the model that serves it, in evaluation mode; the same object where one model serves all."""
    names = members(kind, seed)
    models = {name: weights.load(name) for name in dict.fromkeys(names.values())}
    return {scale: models[name] for scale, name in names.items()}


def scores() -> pd.DataFrame:
    """Recorded scores of the library, and of bicubic.

    Returns:
        A row per kind, seed, set, scale and picture: kind, seed (-1 for bicubic), dataset, scale, image, psnr_y (dB),
        ssim_y.

    Raises:
        RecordError: as `evaluate.recorded_benchmarks`.
    """
    table = evaluate.recorded_benchmarks()
    parts = [table[table["model"] == "bicubic"].assign(kind="bicubic", seed=-1)]
    for kind in KINDS:
        for seed in seeds(kind):
            for scale, name in members(kind, seed).items():
                rows = table[(table["model"] == name) & (table["scale"] == scale)]
                parts.append(rows.assign(kind=kind, seed=seed))
    columns = ["kind", "seed", "dataset", "scale", "image", "psnr_y", "ssim_y"]
    return pd.concat(parts, ignore_index=True)[columns]


def mean_scores(table: pd.DataFrame, measure: str = "psnr_y") -> pd.DataFrame:
    """Mean over pictures and seeds: kinds by (dataset, scale)."""
    cells = table.pivot_table(measure, index="kind", columns=["dataset", "scale"], aggfunc="mean", sort=False)
    return cells.loc[[name for name in ("bicubic", *KINDS) if name in cells.index]]


def effects(
    table: pd.DataFrame,
    measure: str = "psnr_y",
    datasets: Sequence[str] = (),
    questions: Sequence[tuple[str, str]] = QUESTIONS,
) -> pd.DataFrame:
    """How much better one kind is than another, for each question, set and scale.

    Args:
        table: as `scores` gives.
        measure: "psnr_y" (dB) or "ssim_y".
        datasets: sets, or `ALL`; default each, and all together. Verdicts are not corrected for how many are asked for:
            of twenty that mean nothing one says otherwise.
        questions: (kind, the one it is held against).

    Returns:
        Columns kind, against, dataset (a set, or "all": every picture counts once), scale ("x2", ..., or "all": mean
        of a picture's scales), gain, pictures_low, pictures_high (95 %, over pictures, seeds averaged), seeds_low,
        seeds_high (95 %, over trainings, pictures averaged; the spread of all kinds counts as one, though the mean of
        three models varies less), low, high (the wider end of both), wins, pictures,
        verdict ("helps", "hurts" or "within noise").

    Raises:
        ValueError: a kind lacks scores of a picture that another kind has.
    """
    table = table[table["kind"].isin(KINDS)]
    table.attrs = {}  # pandas copies the record's provenance with every selection below: half of the time
    rows = []
    for dataset in datasets or (*table["dataset"].unique(), ALL):
        for scale in (*sorted(table["scale"].unique()), ALL):
            cells = _cells(table, measure, dataset, scale)
            by_training = {kind: cells[kind].mean() for kind in cells.columns.unique("kind")}
            rows += [_effect(cells, by_training, dataset, scale, *question) for question in questions]
    return pd.DataFrame(rows)


def _cells(table: pd.DataFrame, measure: str, dataset: str, scale: int | str) -> pd.DataFrame:
    """Pictures by (kind, seed)."""
    rows = table[table["dataset"] == dataset] if dataset != ALL else table
    rows = rows[rows["scale"] == scale] if scale != ALL else rows
    rows = rows.assign(picture=rows["dataset"] + "/" + rows["image"])
    cells = rows.pivot_table(measure, index="picture", columns=["kind", "seed"], aggfunc="mean", dropna=False)
    cells = cells.dropna(axis="columns", how="all")  # seeds that a kind was not trained with
    if cells.isna().any(axis=None):
        raise ValueError(f"{dataset}, scale {scale}: {int(cells.isna().sum().sum())} scores are missing")
    return cells


def _effect(
    cells: pd.DataFrame, by_training: Mapping[str, pd.Series], dataset: str, scale: int | str, kind: str, against: str
) -> dict[str, object]:
    """A row of `effects`."""
    differences = cells[kind].mean(axis=1) - cells[against].mean(axis=1)
    pictures = statistics.bootstrap_mean(differences, n_resamples=1999)
    trainings = statistics.contrast_of_trainings(by_training, kind, against)
    return {
        "kind": kind,
        "against": against,
        "dataset": dataset,
        "scale": scale if scale == ALL else f"x{scale}",
        "gain": pictures.mean,
        "pictures_low": pictures.low,
        "pictures_high": pictures.high,
        "seeds_low": trainings.low,
        "seeds_high": trainings.high,
        "low": min(pictures.low, trainings.low),
        "high": max(pictures.high, trainings.high),
        "wins": int((differences > 0).sum()),
        "pictures": len(differences),
        "verdict": statistics.SeedEffect(pictures, trainings).verdict(),
    }


def on_a_par(row: pd.Series) -> bool:
    """Whether both intervals of a row of `effects` lie within `PAR`."""
    return bool(row["low"] >= -PAR and row["high"] <= PAR)


def verdicts(found: pd.DataFrame) -> Iterator[str]:
    """A sentence per question: all sets together, scale by scale.

    Args:
        found: table of `effects` for psnr_y.
    """
    rows = found[found["dataset"] == ALL].set_index(["kind", "against", "scale"])
    for kind, against in QUESTIONS:
        words = []
        for scale in (ALL, *(f"x{scale}" for scale in SCALES)):
            row = rows.loc[(kind, against, scale)]
            where = "over all scales" if scale == ALL else f"at {scale}"
            words.append(f"{row.gain:+.3f} dB [{row.low:+.3f}, {row.high:+.3f}] {where} ({judge(row)})")
        yield f"{kind} against {against}: {'; '.join(words)}"


def judge(row: pd.Series) -> str:
    """A row of `effects` in words: "better", "worse", "on a par" (proven to lie within `PAR`) or "within noise"."""
    if row["verdict"] == "within noise":
        return "on a par" if on_a_par(row) else "within noise"
    word = "better" if row["verdict"] == "helps" else "worse"
    return f"{word}, on a par" if on_a_par(row) else word


def chart(found: pd.DataFrame, dataset: str = ALL) -> pd.DataFrame:
    """Rows for `figures.draw_intervals`: a line per question and scale, grouped by question; the wider interval."""
    rows = found[(found["dataset"] == dataset) & (found["against"] == THREE)]
    return pd.DataFrame(
        {"name": rows["scale"], "group": rows["kind"], "mean": rows["gain"], "low": rows["low"], "high": rows["high"]}
    )


def octave_gains(photos: ImageSet, scale: int = 4, side: int = 240) -> pd.DataFrame:
    """How much less than `THREE` each kind errs, octave by octave, in the middles of some photographs.

    Args:
        photos: none of them trained on; `demo` is not.
        scale: integer factor.
        side: of the square that is looked at, HR pixels.

    Returns:
        Rows for `spectral_figures.draw_octave_effects`: part (a kind), octave (0 is the coarsest of
        `spectra.OCTAVES`), group ("over pictures" or "over seeds"), mean, low, high: decibels by which the error's
        power is lower, with 95 % intervals.
    """
    lr, hr = ablation.middles(photos, scale, side)
    runs = [(kind, seed) for kind in KINDS for seed in seeds(kind)]
    found = {}
    for kind, seed in runs:
        bands = ablation.band_columns(evaluate.upscale(load(kind, seed)[scale], lr, scale), hr)
        found[kind, seed] = pd.DataFrame(bands)[[f"error{band}" for band in range(ablation.BANDS)]]
    rows = []
    for octave in range(ablation.BANDS):
        cells = pd.DataFrame({run: -10 * np.log10(table[f"error{octave}"]) for run, table in found.items()})
        by_training = {kind: cells[kind].mean() for kind in KINDS}
        for kind in (HEADS, IGCONV, PLUS):
            intervals = {
                "over seeds": statistics.contrast_of_trainings(by_training, kind, THREE),
                "over pictures": statistics.bootstrap_mean(cells[kind].mean(axis=1) - cells[THREE].mean(axis=1)),
            }
            rows += [
                {"part": kind, "octave": octave, "group": group, "mean": i.mean, "low": i.low, "high": i.high}
                for group, i in intervals.items()
            ]
    return pd.DataFrame(rows)


def costs() -> pd.DataFrame:
    """What each road to three scales stores and takes to train, counted on the models and read from their cards.

    Returns:
        A row per kind: kind, models, parameters (stored, thousands), megabytes (files), training_pflop (10**15 FLOPs,
        expected over the draws of scales), cpu_minutes (of training, one thread, with a busy machine's ups and downs),
        and stored, trained, timed: the shares of what `THREE` has.
    """
    rows = []
    for kind in KINDS:
        names = list(dict.fromkeys(members(kind).values()))
        cards = [weights.card(name) for name in names]
        recipes = [dict(sweeps.named("library"))[name.removeprefix(f"{ENCODER}-")] for name in names]
        rows.append(
            {
                "kind": kind,
                "models": len(names),
                "parameters": sum(card.parameters for card in cards) / 1000,
                "megabytes": sum(card.size for card in cards) / 1e6,
                "training_pflop": sum(_flops(recipe) for recipe in recipes) / 1e15,
                "cpu_minutes": sum(card.notes["cpu_seconds"] for card in cards) / 60,
            }
        )
    table = pd.DataFrame(rows)
    three = table.set_index("kind").loc[THREE]
    table["stored"] = table["parameters"] / three["parameters"]
    table["trained"] = table["training_pflop"] / three["training_pflop"]
    table["timed"] = table["cpu_minutes"] / three["cpu_minutes"]
    return table


def _flops(recipe: Recipe) -> float:
    fields = ("encoder", "upsampler", "scales", "patch", "micro_batch", "micro_batches", "steps")
    return efficiency.expected_flops(**{field: getattr(recipe, field) for field in fields})
