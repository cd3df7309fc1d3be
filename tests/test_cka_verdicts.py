"""CKA verdicts: words follow from intervals, whatever the numbers are."""

import math

import pandas as pd
import pytest

from srlab import cka_study, cka_verdicts
from srlab.cka_study import BLOCKS, INPUT


def table(scales, above, below=None, twins=0.9, where=INPUT, series="net"):
    """Rows of a study of two scales: similarity, its interval around the floor and below the ceiling."""
    place = {"series": series, "where": where, "a": "x2", "b": "x3", "against": "", "low": scales, "high": scales}
    rows = [
        {**place, "control": "scales", "estimate": scales, "low": scales - 0.01, "high": scales + 0.01},
        {**place, "control": "shuffled", "estimate": 0.01},
        {**place, "control": "two untrained", "a": "untrained 1", "b": "untrained 2", "estimate": twins},
        {**place, "control": "picture", "b": "picture", "estimate": scales - sum(above) / 2, "low": 0.1, "high": 0.2},
        {**place, "control": "above the floor", "estimate": sum(above) / 2, "low": above[0], "high": above[1]},
    ]
    rows[-1]["against"] = "picture: x2, picture"
    if below:
        ends = {"estimate": sum(below) / 2, "low": below[0], "high": below[1]}
        rows.append({**place, "control": "below the ceiling", **ends})
        for a in ("x2", "x3"):
            other = {"a": a, "b": f"{a}, other", "estimate": scales + sum(below) / 2, "low": 0.0, "high": 1.0}
            rows.append({**place, "control": "ceiling", **other})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("above", "below", "words"),
    [
        ((0.1, 0.2), (0.01, 0.02), "above the floor, below the ceiling"),
        ((0.1, 0.2), (-0.01, 0.02), "above the floor, at the ceiling"),
        ((-0.1, 0.2), (-0.02, -0.01), "at the floor, above the ceiling"),
        ((-0.2, -0.1), None, "below the floor"),
        ((0.0, 0.2), (-0.2, 0.0), "at the floor, at the ceiling"),
    ],
)
def test_verdicts_follow_from_intervals(above, below, words):
    line = cka_verdicts.summary_table(table(0.8, above, below)).iloc[0]
    assert line["verdict"] == words
    assert line["scales"] == "x2-x3"
    assert line["CKA [95 %]"] == "0.800 [0.790, 0.810]"
    assert line["floor"] == f"{0.8 - sum(above) / 2:.3f} (picture)"
    assert line["ceiling"] == (f"{0.8 + sum(below) / 2:.3f}" if below else "none published")


def without_intervals(rows):
    """The same rows from so few pictures that no interval is known."""
    return rows.assign(low=math.nan, high=math.nan)


def test_without_an_interval_nothing_is_above_at_or_below():
    rows = without_intervals(table(0.8, (0.1, 0.2), (0.01, 0.02)))
    assert cka_verdicts.pairs_of_scales(rows, INPUT)[["to_floor", "to_ceiling"]].to_numpy().tolist() == [["", ""]]
    line = cka_verdicts.summary_table(rows).iloc[0]
    assert line["verdict"] == "no interval to the floor, no interval to the ceiling"
    assert line["ceiling"] == "0.815"


def test_bars_take_the_highest_floor_and_the_mean_ceiling():
    rows = table(0.8, (0.1, 0.3), (0.05, 0.15))
    lower = {"series": "net", "where": INPUT, "a": "x2", "b": "untrained 1", "control": "untrained", "estimate": 0.3}
    bars = cka_verdicts.control_bars(pd.concat([rows, pd.DataFrame([lower])]), INPUT, "x2", "x3")
    found = dict(zip(bars["group"], bars["mean"], strict=True))
    assert found == pytest.approx(
        {"x2-x3": 0.8, "ceiling": 0.9, "floor": 0.6, "two untrained": 0.9, "other pictures": 0.01}
    )


def test_forms_stand_beside_each_other_as_means_over_pairs():
    rows = pd.concat(
        [table(value, (0.1, 0.2), where=where) for value, where in ((0.8, INPUT), (0.6, INPUT), (0.5, BLOCKS))]
    )
    rows["biased"], rows["biased_low"], rows["biased_high"] = rows["estimate"] + 0.1, 0.0, 1.0
    bars = cka_verdicts.form_bars(rows, {"shuffled": "other pictures", "scales": "two scales"})
    assert list(bars["control"].unique()) == ["other pictures", "two scales"]
    found = bars.set_index(["where", "group"])["mean"].to_dict()
    expected = {
        (INPUT, "two scales, debiased"): 0.7,
        (INPUT, "two scales, biased"): 0.8,
        (BLOCKS, "two scales, debiased"): 0.5,
        (BLOCKS, "two scales, biased"): 0.6,
        (INPUT, "other pictures, biased"): 0.11,
        (INPUT, "other pictures, debiased"): 0.01,
        (BLOCKS, "other pictures, biased"): 0.11,
        (BLOCKS, "other pictures, debiased"): 0.01,
    }
    assert found == pytest.approx(expected)


def test_matrices_keep_the_order_of_layers():
    names = [*map(str, range(1, 11)), "in"]
    cells = [
        {"series": "net", "data": "d", "reduction": "pixels", "a": "x2", "b": "x3", "layer_a": x, "layer_b": y}
        for x in names
        for y in names
    ]
    layers = pd.DataFrame(cells).assign(debiased=range(121), biased=0.0)
    (matrix,) = cka_verdicts.layer_matrices(layers, "net", "d", "pixels").values()
    assert list(matrix.index) == list(matrix.columns) == names
    assert matrix.to_numpy().ravel().tolist() == list(range(121))
    with pytest.raises(ValueError, match="'other'"):
        cka_verdicts.layer_matrices(layers, "other", "d", "pixels")


def test_conclusions_count_pairs_of_all_series():
    parts = []
    for key, where in ((cka_verdicts.MAIN, INPUT), (cka_verdicts.MAIN, BLOCKS), (cka_verdicts.TAKEN_OUT, INPUT)):
        for series, above in (("one", (0.1, 0.2)), ("two", (-0.1, 0.2))):
            rows = table(0.8, above, (0.01, 0.02) if series == "one" else None, 0.7, where, series)
            parts.append(rows.assign(data=key[0], reduction=key[1]))
    weights = pd.DataFrame({"series": ["one", "one", "two"], "kind": ["B", "B", "A"]})
    found = cka_verdicts.conclusions(cka_study.Recorded(pd.concat(parts), pd.DataFrame(), weights))
    assert found["verdict"].tolist() == ["holds for 1 of 2", "does not hold", "holds"] * 3 + ["does not hold"]
    assert found["here"].iloc[-1] == "one B, two A"


def test_pairs_without_an_interval_are_not_counted():
    parts = []
    for key, where in ((cka_verdicts.MAIN, INPUT), (cka_verdicts.MAIN, BLOCKS), (cka_verdicts.TAKEN_OUT, INPUT)):
        rows = [table(0.8, (0.1, 0.2), (0.01, 0.02), 0.7, where, series) for series in ("one", "two")]
        parts += [part.assign(data=key[0], reduction=key[1]) for part in (rows[0], without_intervals(rows[1]))]
    weights = pd.DataFrame({"series": ["one", "two"], "kind": ["C", "C"]})
    found = cka_verdicts.conclusions(cka_study.Recorded(pd.concat(parts), pd.DataFrame(), weights))
    assert found["verdict"].tolist() == ["holds", "does not hold", "holds"] * 3 + ["holds"]


def test_nothing_is_judged_without_cases():
    assert cka_verdicts.judge(0, 0) == "not known"
