"""Ancestry: models whose likeness is known, a plan in which all seeds weigh alike, intervals over seeds, the record."""

import copy
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from srlab import ancestry, controls, fetch, kernel_study, kernels, runtime, sweeps, weights
from srlab.ancestry import CONDITIONS, MEASURES, NOTHING, ONE_SCALE, PROTOCOL, SEED, TUNED, Pair
from srlab.recipes import Recipe

QUICK = PROTOCOL._replace(draws=39, resamples=3, untrained=1, shifts=1)
INPUT, BLOCKS, HIDDEN, FIRST, STORED, ALIGNED, STORED_MEAN, ALIGNED_MEAN = MEASURES


@pytest.fixture(scope="module")
def photos():
    return kernel_study.pictures_of(PROTOCOL)


def permuted(model):
    """The same function with its feature channels in another order, from the first layer to the upsampler."""
    twin, order = copy.deepcopy(model), torch.randperm(16, generator=torch.Generator().manual_seed(0))
    encoder, upsampler = twin.encoder, twin.upsampler
    writers = [encoder.conv_first, encoder.conv_after_body, *(block.conv2 for block in encoder.body)]
    readers = [encoder.conv_after_body, upsampler, *(block.conv1 for block in encoder.body)]
    with torch.no_grad():
        for layer in writers:
            layer.weight.copy_(layer.weight[order])
            layer.bias.copy_(layer.bias[order])
        for layer in readers:
            layer.weight.copy_(layer.weight[:, order])
    return twin


def test_a_model_is_like_itself_and_its_permuted_copy_like_it_in_all_but_names(photos):
    model = ancestry.load("x2-seed0")
    models = {"model": model, "same": copy.deepcopy(model), "permuted": permuted(model)}
    torch.testing.assert_close(models["permuted"](photos[0], 2), model(photos[0], 2), rtol=0, atol=1e-5)
    pairs = [Pair(SEED, "x2-x2", 2, "model", other) for other in ("same", "permuted")]
    table = ancestry.measure(pairs, models, photos[:6], QUICK).set_index(["b", "measure"])
    assert set(table.index.get_level_values("measure")) == set(MEASURES)
    assert table.loc["same"].value.tolist() == pytest.approx([1.0] * len(MEASURES), abs=2e-3)
    found = table.loc["permuted"].value
    assert found[[INPUT, BLOCKS]].tolist() == [1, 1], "CKA overlooks the order of channels"
    assert found[[ALIGNED, ALIGNED_MEAN]].tolist() == pytest.approx([1, 1], abs=5e-3)
    assert found[[HIDDEN, FIRST, STORED, STORED_MEAN]].abs().max() < 0.3
    assert abs(found[STORED]) < 0.1


def test_other_pictures_are_a_null_and_the_picture_is_a_floor(photos):
    models = {"model": ancestry.load("x2-seed0")}
    pairs = [Pair("other pictures", "x2-x2", 2, "model", "model"), Pair("picture", "x2-x2", 2, "model", "picture")]
    table = ancestry.measure(pairs, models, photos, QUICK).set_index(["condition", "measure"]).value
    assert abs(table["other pictures", INPUT]) < 0.3 < 0.5 < table["picture", INPUT] < 1
    assert len(table) == 4, "nothing but CKA can be said of a picture"


# the models


def test_models_are_those_of_the_sweep():
    recipes = dict(sweeps.named("provenance"))
    assert set(ancestry.names()) == set(recipes)
    files = {path.stem for path in runtime.repo_data("weights", "provenance").glob("*.safetensors")}
    assert files == set(recipes)
    assert not files & set(weights.names()), "they are no models to upscale pictures with"
    logs = pd.read_csv(runtime.repo_data("weights", "provenance", "logs.csv"))
    for name, recipe in recipes.items():
        path = runtime.repo_data("weights", "provenance", f"{name}.safetensors")
        card = weights._card_of_file(path).notes
        assert Recipe.from_dict(card["recipe"]) == recipe
        assert card["step"] == recipe.steps == logs[logs.run == name].step.max()
        if recipe.start_from:
            start = runtime.repo_data("weights", "provenance", f"{recipe.start_from}.safetensors")
            assert card["start"]["sha256"] == fetch.file_sha256(start)


def test_a_start_is_what_training_begins_with():
    recipe = dict(sweeps.named("provenance"))["x4-seed1"]
    torch.manual_seed(recipe.seed)
    first = recipe.build().state_dict()
    torch.testing.assert_close(ancestry.load("x4-start1").state_dict(), first, rtol=0, atol=0)
    two, four = (ancestry.load(f"x{scale}-start1").encoder.state_dict() for scale in (2, 4))
    torch.testing.assert_close(two, four, rtol=0, atol=0)


# the plan


def test_plan_shares_what_it_says_and_weighs_all_seeds_alike():
    pairs = list(ancestry.plan())
    assert {pair.condition for pair in pairs} == set(CONDITIONS)
    assert len(pairs) == len(set(pairs))
    counts = {}
    for pair in pairs:
        seeds = {name[-1] for name in (pair.a, pair.b) if name != "picture"}
        alone = pair.condition in (SEED, TUNED, "one start", "own start", "picture")
        assert len(seeds) == (1 if alone else 2), pair
        assert (pair.a[:2] == pair.b[:2]) == (pair.condition in (ONE_SCALE, "untrained", "own start")), pair
        assert pair.grid == int(pair.scales[1]) == min(int(scale[1]) for scale in pair.scales.split("-"))
        if pair.condition == TUNED:
            assert {pair.a[2:], pair.b[2:]} <= {f"-seed{pair.a[-1]}", f"-from-x2-seed{pair.a[-1]}"}
        for seed in seeds:
            counts.setdefault((pair.condition, pair.scales), []).append(seed)
    for found in counts.values():
        assert len({found.count(str(seed)) for seed in ancestry.SEEDS}) == 1


# reading the table


def table_of(value):
    """A table in which a pair's value is a function of its condition and its two seeds."""
    pairs = (pair for pair in ancestry.plan() if pair.condition in (NOTHING, SEED))
    rows = [
        {**pair._asdict(), "measure": INPUT, "value": value(pair.condition, int(pair.a[-1]), int(pair.b[-1]))}
        for pair in pairs
    ]
    return pd.DataFrame(rows)


def t_interval(values):
    return stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))


def test_intervals_count_seeds_not_pairs():
    own = np.array([0.1, 0.4, 0.3])  # what each seed adds to every pair it takes part in
    table = table_of(lambda condition, a, b: own[a] + own[b])
    for condition in (NOTHING, SEED):  # eighteen pairs or nine: three seeds either way
        found = ancestry.over_seeds(table, INPUT, condition)
        assert found.mean == pytest.approx(2 * own.mean())
        assert (found.low, found.high) == pytest.approx(t_interval(2 * own))
    difference = ancestry.over_seeds(table, INPUT, SEED, NOTHING)  # a seed's part is in both
    assert (difference.low, difference.mean, difference.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_a_seed_that_matters_is_told_from_all_other_pairings():
    assert ancestry.seed_p(table_of(lambda condition, a, b: a == b), INPUT) == pytest.approx(1 / 36)
    assert ancestry.seed_p(table_of(lambda condition, a, b: a * b), INPUT) == pytest.approx(1 / 36)
    assert ancestry.seed_p(table_of(lambda condition, a, b: a + b), INPUT) == 1, "no pairing differs from another"
    assert ancestry.seed_p(table_of(lambda condition, a, b: a != b), INPUT) == 1


def test_effects_say_which_way_the_difference_lies():
    for step, verdict in ((0.5, "more alike"), (0.0, "not told apart"), (-0.5, "not told apart")):
        (row,) = ancestry.effects(table_of(lambda condition, a, b, step=step: step * (a == b) + 0.1 * a)).itertuples()
        assert (row.condition, row.against, row.verdict) == (SEED, NOTHING, verdict)
        assert row.difference == pytest.approx(step)
    for step, verdict in ((0.5, "more alike"), (0.02, "not told apart"), (-0.5, "less alike")):
        table = table_of(lambda condition, a, b, step=step: (condition == SEED) * (step + 0.05 * a * b))
        table["condition"] = table.condition.replace({SEED: TUNED})
        (row,) = ancestry.effects(table).itertuples()
        assert (row.condition, row.against, row.verdict) == (TUNED, NOTHING, verdict)


# the record


@pytest.fixture(scope="module")
def record():
    return ancestry.recorded_ancestry()


def test_record_holds_the_plan_and_is_what_the_weights_give_now(record, photos):
    pairs = [pair for pair in ancestry.plan() if (pair.scales, pair.a, pair.b[-1]) == ("x2-x4", "x2-seed0", "1")]
    pairs = [pair for pair in pairs if pair.condition in (NOTHING, "untrained")]
    models = {name: ancestry.load(name) for pair in pairs for name in (pair.a, pair.b)}
    now = ancestry.measure(pairs, models, photos, QUICK)
    key = ["condition", "scales", "a", "b", "measure"]
    assert not record.duplicated(key).any()
    assert {tuple(row) for row in record[key[:4]].to_numpy()} == {
        (pair.condition, pair.scales, pair.a, pair.b) for pair in ancestry.plan()
    }
    both = now.merge(record, on=key, suffixes=("", "_then"))
    assert len(both) == len(now) == 8 + 4
    assert (both.value - both.value_then).abs().max() < 2e-3


def test_as_stored_kernels_can_be_had_from_the_weights_alone(record):
    rows = record[(record.measure == STORED) & record.condition.isin((NOTHING, SEED, TUNED))]
    for row in rows.itertuples():
        phases = [kernel_study.kernel_of(ancestry.load(name), int(name[1])) for name in (row.a, row.b)]
        assert kernels.correlate(*phases).varying == pytest.approx(row.value, abs=1e-3)


def test_known_relations_hold_in_the_record(record):
    one_start = record[(record.condition == "one start") & ~record.measure.str.startswith("kernels")]
    assert (one_start.value == 1).all(), "one seed begins with one encoder"
    for condition in (NOTHING, ONE_SCALE):
        rows = record[(record.condition == condition) & (record.measure == HIDDEN)]
        assert rows.value.abs().max() < 0.1 < controls.MADE_FROM
    means = {c: ancestry.over_seeds(record, HIDDEN, c).mean for c in (NOTHING, SEED, TUNED)}
    assert means[NOTHING] < means[SEED] < means[TUNED]


def test_summary_and_bars_agree_with_the_record(record):
    text = ancestry.summary_table(record, (INPUT, STORED))
    assert list(text.index) == list(CONDITIONS)
    for measure, condition in itertools.product((INPUT, STORED), (NOTHING, SEED)):
        rows = record[(record.measure == measure) & (record.condition == condition)]
        assert text.loc[condition, measure].startswith(f"{rows.value.mean():z.2f} [")
    told = list(ancestry.verdicts(record, (INPUT, STORED)))
    assert [line.split(":")[0] for line in told] == [INPUT, STORED]
    assert "p 0.03" in told[1]


def test_phrases_for_the_scorecard_hold_the_records_numbers(record):
    values = record.groupby(["measure", "condition"]).value.mean()
    assert f"nothing shared {values[INPUT, NOTHING]:z.2f}, one seed" in ancestry.control_of_encoders()
    phrase = ancestry.control_of_kernels()
    assert f"nothing shared {values[STORED, NOTHING]:z.2f}" in phrase
    assert f"nothing shared {values[ALIGNED, NOTHING]:z.2f}" in phrase
    assert ancestry.above_nulls(record, ALIGNED, NOTHING) == "18 of 18"
    assert ancestry.above_nulls(record, STORED, NOTHING) == "0 of 18"
