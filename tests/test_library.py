"""Library: one model against three, from scores whose truth is known, and the shipped models' own numbers."""

import numpy as np
import pandas as pd
import pytest

from srlab import datasets, evaluate, library, sweeps
from srlab.library import ALL, HEADS, IGCONV, PLUS, THREE

TRUTH = {THREE: 0.0, HEADS: -0.3, IGCONV: 0.02, PLUS: 0.5}


def simulated(truth=TRUTH, training_noise=0.005, pictures=40, seed=0):
    """Scores of kinds that differ by `truth` dB: hard and easy pictures, and a luck of each training."""
    rng = np.random.default_rng(seed)
    rows = []
    for dataset in ("a", "b"):
        difficulty = rng.normal(30, 3, pictures)
        for kind, gain in truth.items():
            for number in library.seeds(kind):
                for scale in library.SCALES:
                    luck = rng.normal(0, training_noise)
                    values = difficulty - scale + gain + luck + rng.normal(0, 0.02, pictures)
                    for image, value in enumerate(values):
                        rows.append((kind, number, dataset, scale, f"{dataset}{image}", value, 0.9))
    return pd.DataFrame(rows, columns=["kind", "seed", "dataset", "scale", "image", "psnr_y", "ssim_y"])


@pytest.fixture(scope="module")
def found():
    return library.effects(simulated())


def row_of(found, kind, against, dataset=ALL, scale=ALL):
    keys = (found.kind == kind) & (found.against == against) & (found.dataset == dataset) & (found.scale == scale)
    return found[keys].iloc[0]


def test_each_question_is_asked_of_each_set_and_scale_and_of_all(found):
    assert len(found) == len(library.QUESTIONS) * 3 * 4
    assert not found.duplicated(["kind", "against", "dataset", "scale"]).any()
    assert set(found["scale"]) == {"x2", "x3", "x4", ALL}


def test_a_known_gain_lies_in_both_intervals_and_is_told_in_words(found):
    for kind, against in library.QUESTIONS:
        row, truth = row_of(found, kind, against), TRUTH[kind] - TRUTH[against]
        assert row.low - 0.01 <= truth <= row.high + 0.01
        assert row.gain == pytest.approx(truth, abs=0.02)
    assert library.judge(row_of(found, PLUS, THREE)) == "better"
    assert library.judge(row_of(found, HEADS, THREE)) == "worse"
    assert library.on_a_par(row_of(found, IGCONV, THREE))


def test_lucky_trainings_are_not_taken_for_a_better_method():
    table = simulated(dict.fromkeys(library.KINDS, 0.0), training_noise=0.3, pictures=60, seed=3)
    noisy = library.effects(table)
    rows = noisy[noisy["dataset"] == ALL]
    only_pictures = (rows["pictures_low"] > 0) | (rows["pictures_high"] < 0)
    assert only_pictures.mean() > 0.5  # pictures alone would call most of it proven
    assert (rows["verdict"] != "within noise").mean() < 0.15


def test_a_missing_score_is_refused():
    table = simulated()
    hole = (table.kind == PLUS) & (table.image == "a3") & (table.dataset == "a") & (table.scale == 2)
    with pytest.raises(ValueError, match="a, scale 2: 2 scores are missing"):
        library.effects(table[~hole])


def test_the_sentences_name_every_question_with_its_numbers(found):
    lines = list(library.verdicts(found))
    assert len(lines) == len(library.QUESTIONS)
    assert lines[0].startswith("IGConv against three SPConv models: +0.0")
    assert "at x3 (on a par)" in lines[0]


def test_the_chart_holds_the_rivals_of_the_three_models(found):
    chart = library.chart(found)
    assert list(chart["group"].unique()) == [IGCONV, PLUS, HEADS]
    assert (chart["low"] <= chart["mean"]).all()


def test_the_mean_table_has_a_line_per_kind(found):
    table = library.mean_scores(simulated())
    assert list(table.index) == list(library.KINDS)
    assert table.loc[PLUS].mean() - table.loc[THREE].mean() == pytest.approx(0.5, abs=0.02)


def test_the_names_are_those_of_the_sweep():
    runs = {library.file_name(name) for name, _ in sweeps.named("library")}
    named = {
        name for kind in library.KINDS for seed in library.seeds(kind) for name in library.members(kind, seed).values()
    }
    assert named == runs
    assert library.seeds(HEADS) == [0]
    assert library.seeds(IGCONV) == [0, 1]


def test_models_that_are_the_same_gain_nothing_in_any_octave(monkeypatch):
    one = dict.fromkeys(library.SCALES, evaluate.Bicubic())
    monkeypatch.setattr(library, "load", lambda kind, seed=0: one)
    table = library.octave_gains(datasets.load("demo").subset(["coffee", "chelsea"]), 4, side=96)
    assert (table["mean"] == 0).all()
    assert set(table["octave"]) == set(range(5))
    assert set(table["part"]) == {HEADS, IGCONV, PLUS}


def test_what_each_road_costs_counted_by_hand():
    table = library.costs().set_index("kind")
    channels, blocks = 32, 8
    encoder = 3 * channels * 9 + channels + (2 * blocks + 1) * (channels * channels * 9 + channels)
    heads = sum(channels * 3 * scale**2 * 9 + 3 * scale**2 for scale in (2, 3, 4))
    assert table.loc[THREE, "parameters"] * 1000 == 3 * encoder + heads
    assert table.loc[HEADS, "parameters"] * 1000 == encoder + heads
    assert (table.loc[THREE, "stored"], table.loc[THREE, "trained"]) == (1, 1)
    assert table.loc[HEADS, "trained"] == pytest.approx(1 / 3, abs=0.01)  # heads cost next to nothing
    assert table.loc[IGCONV, "models"] == 1
    assert (table["cpu_minutes"] > 1).all()


def test_the_shipped_models_serve_their_scales_and_reach_the_level_of_fsrcnn():
    scores = library.scores()
    means = library.mean_scores(scores)
    for scale, floor in {2: 37.0, 3: 33.1, 4: 30.7}.items():  # FSRCNN's level on Set5, dB
        assert means.loc[THREE, ("set5", scale)] > floor
    for kind in library.KINDS:
        for seed in library.seeds(kind):
            assert all(scale in model.scales for scale, model in library.load(kind, seed).items())
