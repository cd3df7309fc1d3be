"""CKA study: tables whose controls add up, verdicts that follow, a record that agrees with what is computed anew."""

import itertools

import pytest
import torch

from srlab import cka_study, compare, features, models, weights


def tiny(seed=0, **sizes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.build("edsr-tiny", "spconv", (2,), channels=6, blocks=3, **sizes).eval()


def test_table_of_a_family_has_every_control_and_gaps_that_add_up(pictures):
    trainings = {name: {f"x{i}": tiny(seed + i) for i in (2, 3, 4)} for name, seed in (("one", 0), ("two", 10))}
    reductions = {"pixels": features.pixels_as_examples, "pictures": features.pictures_as_examples}
    tables = cka_study.last_feature_table(trainings, compare.crop_alike(pictures), reductions, n_resamples=50)
    for reduction, series in itertools.product(reductions, trainings):
        rows = tables.rows[(tables.rows["reduction"] == reduction) & (tables.rows["series"] == series)]
        counts = rows[rows["where"] == cka_study.INPUT]["control"].value_counts().to_dict()
        expected = {"scales": 3, "shuffled": 3, "ceiling": 3, "untrained": 3, "picture": 3, "two untrained": 1}
        assert counts == expected | {"above the floor": 3, "below the ceiling": 3}
        for where in (cka_study.INPUT, cka_study.BLOCKS):
            at = {(row.control, row.a, row.b): row.estimate for row in rows[rows["where"] == where].itertuples()}
            floors = [value for (what, a, _), value in at.items() if what in cka_study.FLOORS and a != "x4"]
            gap = at["scales", "x2", "x3"] - max(floors)
            assert at["above the floor", "x2", "x3"] == pytest.approx(gap, abs=1e-9)
            ceiling = sum(value for (control, a, _), value in at.items() if control == "ceiling" and a != "x4") / 2
            gap = ceiling - at["scales", "x2", "x3"]
            assert at["below the ceiling", "x2", "x3"] == pytest.approx(gap, abs=1e-9)
    assert len(tables.layers) == 2 * 2 * 3 * 4**2
    diagonal = tables.layers.query(
        "reduction == 'pixels' and series == 'two' and a == 'x2' and b == 'x3' and layer_a == layer_b"
    )
    assert diagonal["layer_a"].tolist() == ["1", "2", "3", "in"]


def test_shipped_record_is_whole_and_of_these_weights(monkeypatch):
    monkeypatch.delenv("SRLAB_RECORD", raising=False)
    tables = cka_study.recorded_scales()
    scales = tables.rows[tables.rows["control"] == "scales"]
    assert set(scales["series"]) == set(cka_study.SERIES)
    assert set(scales["data"]) == set(cka_study.PROTOCOLS)
    for control in ("scales", "ceiling", "untrained", "picture", "two untrained", "shuffled", "across"):
        rows = tables.rows[tables.rows["control"] == control]
        assert rows["estimate"].between(-1, 1).all()
        assert (rows["low"] <= rows["estimate"] + 1e-4).all()
        assert (rows["estimate"] <= rows["high"] + 1e-4).all()
    in_matrix = tables.layers.query("layer_a == 'in' and layer_b == 'in'").set_index(["data", "series", "a", "b"])
    at_input = scales[(scales["where"] == cka_study.INPUT) & (scales["reduction"] == "pixels")]
    for row in at_input.itertuples():
        cells = in_matrix.loc[[(row.data, row.series, row.a, row.b)]].query("reduction == 'pixels'")
        assert cells["debiased"].item() == pytest.approx(row.estimate, abs=2e-4)


@pytest.mark.benchmark_data("set14", "bsrn-x2", "bsrn-x3")
def test_a_published_pair_computed_anew_equals_the_record(monkeypatch):
    monkeypatch.delenv("SRLAB_RECORD", raising=False)
    recorded = cka_study.recorded_scales().rows
    found = cka_study.across_table(
        {name: weights.load(f"bsrn-{name}") for name in ("x2", "x3")}, compare.lr_pictures("set14", 4)
    ).iloc[0]
    row = recorded.query("data == 'set14 x4' and series == 'bsrn' and control == 'scales' and a == 'x2' and b == 'x3'")
    row = row[row["where"] == cka_study.INPUT].iloc[0]
    for column in ("estimate", "low", "high", "biased"):
        assert found[column] == pytest.approx(row[column], abs=5e-4)
