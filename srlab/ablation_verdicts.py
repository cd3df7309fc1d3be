"""Ablation verdicts room: what the table of `ablation` says about each part of IGConv+, in numbers and words.

A difference has two sources of chance: other pictures, and another training. Pooling 3 seeds x 44 pictures as though
they were 132 trials would make almost any difference look certain, so both are kept apart (`statistics.SeedEffect`):
BCa bootstrap over pictures with seeds averaged, Student's t over seeds with pictures averaged. Both are paired: the
same picture, the same seed, hence the same crops. A part "helps" or "hurts" only when both intervals say so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from srlab import spectra, statistics
from srlab.ablation import BANDS, FULL, PLAIN, VARIANTS

PARTS = {
    "FFT loss": "without FFT loss",
    "IGSample": "without IGSample",
    "IGSample, against bilinear": "bilinear for IGSample",
    "FGRep": "without FGRep",
    "all three": PLAIN,
}
"""Part -> the variant that lacks it."""


def measures(table: pd.DataFrame) -> pd.DataFrame:
    """The same rows with `snr0` to `snr4` (dB) added: hr's power over the error's, octave by octave."""
    return table.assign(**{f"snr{band}": -10 * np.log10(table[f"error{band}"]) for band in range(BANDS)})


def octave_names() -> list[str]:
    """The octaves in cycles per pixel, such as "1/8 to 1/4"."""
    names = []
    for low, high in itertools.pairwise(spectra.OCTAVES):
        ends = ["0" if not f else f"1/{round(1 / f)}" for f in (low, min(high, 0.5))]
        names.append(" to ".join(ends))
    names[-1] = "1/4 and up"
    return names


def differences(table: pd.DataFrame, variant: str, measure: str, scale: int | None = None) -> np.ndarray:
    """IGConv+ minus a variant, (seeds, pictures); at one scale, or averaged over the scales picture by picture.

    Args:
        table: of `recorded_scores` or, at one step, `recorded_course`, after `measures`.
        variant: a key of `VARIANTS`.
        measure: a column, such as "psnr_y" or "snr4".
        scale: one scale; None averages.

    Raises:
        ValueError: a run or a picture is missing.
    """
    rows = table if scale is None else table[table.scale == scale]
    picture = rows["dataset"] + "/" + rows["image"] if "dataset" in rows else rows["image"]
    table = rows.assign(picture=picture)
    cells = table.pivot_table(measure, index="seed", columns=["variant", "picture"], aggfunc="mean", dropna=False)
    found = (cells[FULL] - cells[variant]).to_numpy()
    if not np.isfinite(found).all():
        raise ValueError(f"{variant}, {measure}: {int((~np.isfinite(found)).sum())} scores are missing or infinite")
    return found


def effects(table: pd.DataFrame, measures_: Sequence[str] | None = None) -> pd.DataFrame:
    """What each part adds: IGConv+ minus IGConv+ without it, in dB, positive when the part helps.

    Args:
        table: as `recorded_scores` returns it.
        measures_: columns to look at; default PSNR and all octaves.

    Returns:
        Columns part, measure, scale ("all", "x2", ...), gain (dB), pictures_low, pictures_high (95 %, over pictures),
        seeds_low, seeds_high (95 %, over trainings), verdict.
    """
    table = measures(table)
    scales = (None, *sorted(table.scale.unique()))
    names = measures_ or ["psnr_y", *(f"snr{band}" for band in range(BANDS))]
    return pd.DataFrame([effect(table, *asked) for asked in itertools.product(PARTS, names, scales)])


def effect(table: pd.DataFrame, part: str, measure: str, scale: int | None = None) -> dict[str, object]:
    """One row of `effects`, of a table after `measures`: one part, by one measure, at one scale or over all of them."""
    found = statistics.mean_over_seeds(differences(table, PARTS[part], measure, scale), n_resamples=1999)
    return {
        "part": part,
        "measure": measure,
        "scale": "all" if scale is None else f"x{scale}",
        "gain": found.over_seeds.mean,
        "pictures_low": found.over_pictures.low,
        "pictures_high": found.over_pictures.high,
        "seeds_low": found.over_seeds.low,
        "seeds_high": found.over_seeds.high,
        "verdict": found.verdict(),
    }


def difference_of(table: pd.DataFrame, part: str, measure: str, other: str) -> statistics.SeedEffect:
    """How much more a part adds by one measure than by another, paired by picture and seed; of a table after
    `measures`, over all scales."""
    more, less = (differences(table, PARTS[part], name) for name in (measure, other))
    return statistics.mean_over_seeds(more - less, n_resamples=1999)


def verdicts(found: pd.DataFrame) -> Iterator[str]:
    """A sentence per part: overall, and in the highest octave.

    Args:
        found: table of `effects`.
    """
    rows = found[found["scale"] == "all"].set_index(["part", "measure"])
    for part in PARTS:
        words = []
        for measure, where in (("psnr_y", "overall"), (f"snr{BANDS - 1}", "in the highest octave")):
            row = rows.loc[(part, measure)]
            low, high = min(row.seeds_low, row.pictures_low), max(row.seeds_high, row.pictures_high)
            words.append(f"{row.verdict} {where} ({row.gain:+.3f} dB [{low:+.3f}, {high:+.3f}])")
        yield f"{part}: {'; '.join(words)}"


def chart(found: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Rows for `figures.draw_intervals`: a line per part, both intervals of `measure`, all scales together."""
    rows = found[(found["scale"] == "all") & (found["measure"] == measure)]
    parts = [
        pd.DataFrame(
            {
                "name": rows.part,
                "group": label,
                "mean": rows.gain,
                "low": rows[f"{over}_low"],
                "high": rows[f"{over}_high"],
            }
        )
        for over, label in (("seeds", "over trainings (Student's t)"), ("pictures", "over pictures (BCa)"))
    ]
    return pd.concat(parts, ignore_index=True)


def octave_chart(found: pd.DataFrame) -> pd.DataFrame:
    """Rows for `spectral_figures.draw_octave_effects`: a line per part, octave and interval."""
    rows = found[(found["scale"] == "all") & found["measure"].str.startswith("snr")]
    parts = [
        pd.DataFrame(
            {
                "part": rows["part"],
                "octave": rows["measure"].str[3:].astype(int),
                "group": f"over {over}",
                "mean": rows["gain"],
                "low": rows[f"{over}_low"],
                "high": rows[f"{over}_high"],
            }
        )
        for over in ("seeds", "pictures")
    ]
    return pd.concat(parts)


def mean_scores(table: pd.DataFrame) -> pd.DataFrame:
    """PSNR-Y (dB), mean over pictures and seeds: variants by (dataset, scale)."""
    return table.pivot_table("psnr_y", index="variant", columns=["dataset", "scale"], aggfunc="mean").loc[
        list(VARIANTS)
    ]


def split_of_errors(table: pd.DataFrame) -> pd.DataFrame:
    """How each variant errs in the two highest octaves, mean over pictures, scales and seeds.

    Returns:
        Indexed by variant; columns (octave, what), what being "wrong strength" and "wrong place" (parts of the error,
        relative to the picture's power) and "power kept" (1 is as much as the picture has).
    """
    columns = {}
    for band in (BANDS - 2, BANDS - 1):
        values = {
            "wrong strength": table[f"amplitude{band}"],
            "wrong place": table[f"error{band}"] - table[f"amplitude{band}"],
            "power kept": table[f"gain{band}"],
        }
        for what, column in values.items():
            columns[octave_names()[band], what] = column.groupby(table["variant"]).mean()
    return pd.DataFrame(columns).loc[list(VARIANTS)]
