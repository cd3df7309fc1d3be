"""CKA verdicts room: what the tables of `cka_study` say. Tables in; summaries, matrices and counts in words out.

Nothing here is a belief: every word follows from an interval in the table, so that other models get other words.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from srlab.cka_study import BLOCKS, FLOORS, INPUT, Recorded

MAIN = ("urban100 x4, crops", "pixels")
"""The pictures and the reduction that `conclusions` looks at first."""
TAKEN_OUT = ("set14 x4, picture taken out", "pixels")
_ABOVE, _AT, _BELOW = "above", "at", "below"


def of(rows: pd.DataFrame, data: str, reduction: str) -> pd.DataFrame:
    """The rows of one set of pictures and one reduction, families apart."""
    return rows[(rows["data"] == data) & (rows["reduction"] == reduction) & (rows["control"] != "across")]


def pairs_of_scales(rows: pd.DataFrame, where: str) -> pd.DataFrame:
    """A line per pair of scales, numbers only; `summary_table` puts them in words.

    Args:
        rows: `Tables.rows` of one set of pictures and one reduction.
        where: `cka_study.INPUT` or `BLOCKS`.

    Returns:
        Columns series, a, b; estimate, low, high; floor, which, above, above_low, above_high; ceiling, below,
        below_low, below_high (NaN without a ceiling); twins; null; to_floor, to_ceiling: "above", "at" or "below", by
        whether the interval of the difference holds 0, or "" where there is no interval (of few pictures) or control.
    """
    lines = []
    for series, group in rows[rows["where"] == where].groupby("series", sort=False):
        twins = group[group["control"] == "two untrained"]["estimate"].mean()
        for pair in group[group["control"] == "scales"].itertuples():
            here = group[(group["a"] == pair.a) & (group["b"] == pair.b)].set_index("control")
            above, null = here.loc["above the floor"], here.loc["shuffled", "estimate"]
            line = {"series": series, "a": pair.a, "b": pair.b}
            line |= {"estimate": pair.estimate, "low": pair.low, "high": pair.high}
            line |= {"floor": pair.estimate - above.estimate, "which": above.against.split(":")[0]}
            line |= {"above": above.estimate, "above_low": above.low, "above_high": above.high}
            line |= {"twins": twins, "null": null, "to_floor": _side(above.low, above.high), "to_ceiling": ""}
            if "below the ceiling" in here.index:
                below = here.loc["below the ceiling"]
                line |= {"ceiling": pair.estimate + below.estimate, "to_ceiling": _side(-below.high, -below.low)}
                line |= {"below": below.estimate, "below_low": below.low, "below_high": below.high}
            lines.append(line)
    ceiling = ["ceiling", "below", "below_low", "below_high"]
    table = pd.DataFrame(lines)
    return table.reindex(columns=[*table.columns, *(name for name in ceiling if name not in table)])


def _side(low: float, high: float) -> str:
    return _ABOVE if low > 0 else _BELOW if high < 0 else _AT if low <= 0 <= high else ""  # NaN: not known


def summary_table(rows: pd.DataFrame, where: str = INPUT) -> pd.DataFrame:
    """A line per pair of scales, in words: similarity, floor, ceiling, null, and what follows from their differences.

    Args:
        rows, where: as in `pairs_of_scales`.
    """
    lines = []
    for pair in pairs_of_scales(rows, where).itertuples():
        ceiling = pd.notna(pair.ceiling)
        sides = {"floor": pair.to_floor} | ({"ceiling": pair.to_ceiling} if ceiling else {})
        lines.append(
            {
                "series": pair.series,
                "scales": f"{pair.a}-{pair.b}",
                "CKA [95 %]": f"{pair.estimate:.3f} [{pair.low:.3f}, {pair.high:.3f}]",
                "floor": f"{pair.floor:.3f} ({pair.which})",
                "above it by": f"{pair.above:+.3f} [{pair.above_low:+.3f}, {pair.above_high:+.3f}]",
                "ceiling": f"{pair.ceiling:.3f}" if ceiling else "none published",
                "below it by": f"{pair.below:+.3f} [{pair.below_low:+.3f}, {pair.below_high:+.3f}]" if ceiling else "",
                "two untrained": f"{pair.twins:.3f}",
                "other pictures": f"{pair.null:.3f}",
                "verdict": ", ".join(f"{side or 'no interval to'} the {control}" for control, side in sides.items()),
            }
        )
    return pd.DataFrame(lines)


def control_bars(rows: pd.DataFrame, where: str, a: str, b: str) -> pd.DataFrame:
    """One pair of scales with its controls, as `figures.draw_bars_with_intervals` takes it.

    Args:
        rows, where: as in `pairs_of_scales`.
        a, b: the two scales, such as "x2" and "x4".

    Returns:
        Columns name (series), group (what), mean, low, high. The ceiling is the mean of those of both scales. Of a mean
        of several comparisons low and high are the means of their ends: no narrower than an interval of the mean.
    """
    lines = []
    for series, group in rows[rows["where"] == where].groupby("series", sort=False):
        pair, either = group[(group["a"] == a) & (group["b"] == b)], group[group["a"].isin((a, b))]
        parts = {
            f"{a}-{b}": pair[pair["control"] == "scales"],
            "ceiling": either[either["control"] == "ceiling"],
            "floor": either[either["control"].isin(FLOORS)].nlargest(1, "estimate"),
            "two untrained": group[group["control"] == "two untrained"],
            "other pictures": pair[pair["control"] == "shuffled"],
        }
        for what, part in parts.items():
            if len(part):
                mean, low, high = part[["estimate", "low", "high"]].mean()
                lines.append({"name": series, "group": what, "mean": mean, "low": low, "high": high})
    return pd.DataFrame(lines)


def form_bars(rows: pd.DataFrame, controls: Mapping[str, str]) -> pd.DataFrame:
    """The biased form beside the debiased one, as `figures.draw_bars_with_intervals` takes it.

    Args:
        rows: as in `pairs_of_scales`.
        controls: which of them, such as "scales" and "shuffled" -> what they are called.

    Returns:
        Columns where (`INPUT`, `BLOCKS`), name (series), control, form, group (of both), mean, low, high: means over
        the pairs of scales, for "untrained" over the scales; low and high are means of their ends, see `control_bars`.
    """
    chosen = rows[rows["control"].isin(controls) & rows["where"].isin((INPUT, BLOCKS))]
    means = chosen.groupby(["where", "control", "series"], sort=False).mean(numeric_only=True)
    columns = {"biased": ["biased", "biased_low", "biased_high"], "debiased": ["estimate", "low", "high"]}
    forms = [
        means[names].set_axis(["mean", "low", "high"], axis=1).assign(form=form) for form, names in columns.items()
    ]
    table = pd.concat(forms).reset_index().rename(columns={"series": "name"})
    table["control"] = table["control"].map(controls)
    table["group"] = table["control"] + ", " + table["form"]
    order = {name: number for number, name in enumerate(controls.values())}
    return table.sort_values("control", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def layer_matrices(
    layers: pd.DataFrame, series: str, data: str, reduction: str, form: str = "debiased"
) -> dict[str, pd.DataFrame]:
    """Layer by layer, a matrix for each pair of scales, from `Recorded.layers`; titles say what is down and across.

    Raises:
        ValueError: nothing recorded under these names.
    """
    chosen = layers[(layers["series"] == series) & (layers["data"] == data) & (layers["reduction"] == reduction)]
    if chosen.empty:
        known = layers[["series", "data", "reduction"]].drop_duplicates().itertuples(index=False, name=None)
        raise ValueError(f"no layers of {series!r} for {data!r} and {reduction!r}; there are {sorted(known)}")
    names = list(dict.fromkeys(chosen["layer_a"]))
    return {
        f"{a} (down), {b}": pair.pivot(index="layer_a", columns="layer_b", values=form).loc[names, names]
        for (a, b), pair in chosen.groupby(["a", "b"])
    }


def judge(yes: int, of: int) -> str:
    """How many of how many, in words."""
    return (
        "not known" if not of else "holds" if yes == of else "does not hold" if not yes else f"holds for {yes} of {of}"
    )


def conclusions(record: Recorded) -> pd.DataFrame:
    """What the study says about the paper's first finding: place, statement, here, verdict.

    Counts are over the pairs of scales of all series, debiased, pixels as examples; a pair counts when the interval of
    its difference to the control excludes 0 (for the ceiling: does not). Pairs without that interval are left out.
    """
    tables = {
        INPUT: pairs_of_scales(of(record.rows, *MAIN), INPUT),
        BLOCKS: pairs_of_scales(of(record.rows, *MAIN), BLOCKS),
        f"{INPUT}, picture taken out": pairs_of_scales(of(record.rows, *TAKEN_OUT), INPUT),
    }
    lines = []
    for place, table in tables.items():
        beside_floor, beside_ceiling = (table[table[side] != ""] for side in ("to_floor", "to_ceiling"))
        counts = {
            "more alike than the floor": (beside_floor["to_floor"] == _ABOVE, table["floor"]),
            "as alike as two trainings at one scale": (beside_ceiling["to_ceiling"] != _BELOW, table["ceiling"]),
            "more alike than two untrained networks": (table["estimate"] > table["twins"], table["twins"]),
        }
        for statement, (true, beside) in counts.items():
            here = f"CKA {_range(table['estimate'])}, beside {_range(beside)}"
            lines.append((place, statement, here, judge(int(true.sum()), len(true))))
    kinds = record.weights.groupby("series", sort=False)["kind"].agg(lambda kind: "".join(sorted(set(kind))))
    here = ", ".join(f"{series} {kind}" for series, kind in kinds.items())
    lines.append(
        ("weights", "nothing shared at the start (class C)", here, judge(int((kinds == "C").sum()), len(kinds)))
    )
    return pd.DataFrame(lines, columns=["place", "statement", "here", "verdict"])


def _range(values: pd.Series) -> str:
    return f"{values.min():.2f} to {values.max():.2f}"
