"""Recipes: refused before any work when a value is wrong, the same after JSON, schedules as the paper has them."""

import copy
import dataclasses
import json
import pickle

import pytest

from srlab import models, recipes, runtime, weights
from srlab.recipes import RECIPES, Recipe, Sizes

TINY = Recipe("edsr-tiny", "igconv", scales=(2, 3), steps=10, warmup=2, learning_rate=1e-3, final_learning_rate=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"patch": 4}, "at least 8 LR pixels"),
        ({"scales": ()}, "at least one scale"),
        ({"scales": (2, 2.5)}, "whole number"),
        ({"learning_rate": -1.0}, "between 0 and 1"),
        ({"ema": 1.0}, "in \\[0, 1\\)"),
        ({"final_learning_rate": 1.0}, "between 0 and learning_rate"),
        ({"encoder": "edsr-small"}, "unknown encoder 'edsr-small'"),
        ({"milestones": (3, 1)}, "rising"),
        ({"sizes": {"chanels": 16}}, r"unknown size 'chanels': edsr-tiny takes \['blocks', 'channels'"),
        ({"precision": "16"}, "precision is '16', expected one of 32-true, bf16-mixed"),
        ({"validation": "bsd400"}, "other pictures than those trained on"),
        ({"validate_every": 0}, "at least 1"),
        ({"upsampler": "spconv", "sizes": {"fgrep": True}}, "unknown size 'fgrep'"),
        ({"steps": 2.5}, "steps is 2.5, expected a whole number"),
        ({"micro_batch": "4"}, "micro_batch is '4', expected a whole number"),
        ({"micro_batches": True}, "micro_batches is True, expected a whole number"),
        ({"warmup": 1e9}, "warmup is 1000000000.0, expected a whole number"),
        ({"scales": 2}, r"scales is 2, expected whole numbers in a tuple, such as \(2, 3, 4\)"),
        ({"scales": (2, 2)}, r"scales are \(2, 2\), expected each one once"),
        ({"seed": -1}, "seed is -1, expected from 0"),
        ({"seed": 2**70}, "expected from 0"),
        ({"fft_weight": float("inf")}, "fft_weight is inf, expected a finite number"),
        ({"learning_rate": float("nan")}, "learning_rate is nan, expected a finite number"),
        ({"final_learning_rate": "0"}, "expected a finite number, or None"),
        ({"betas": (0.9, "0.99")}, "expected two finite numbers"),
        ({"compile": "no"}, "compile is 'no', expected True or False"),
        ({"data": None}, "data is None, expected text"),
        ({"sizes": 3}, "sizes is 3, expected names with values"),
        ({"sizes": {"channels": "abc"}}, "size channels is 'abc', expected a whole number of at least 1"),
        ({"sizes": {"mean": 0.5}}, "size mean is 0.5, expected three finite numbers"),
    ],
)
def test_a_value_out_of_range_is_refused_before_any_work(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


# Rows of the official code's training configurations: scales, patch, GPUs x batch, steps in thousands, rate, betas,
# milestones in thousands (None: cosine), EMA, weight of the FFT loss.
OFFICIAL = {
    "edsr-igconv": ((2, 3, 4), 48, 16, 300, 1e-4, (0.9, 0.99), (200,), 0.999, 0.0),
    "edsr-igconv+": ((2, 3, 4), 48, 16, 300, 1e-4, (0.9, 0.99), (200,), 0.999, 0.05),
    "smfanet+-igconv": ((2, 3, 4), 64, 64, 1000, 1e-3, (0.9, 0.99), None, 0.999, 0.0),
    "smfanet+-igconv+": ((2, 3, 4), 64, 64, 1000, 1e-3, (0.9, 0.99), None, 0.999, 0.05),
    "rcan-igconv+": ((2, 3, 4, 8), 48, 16, 1000, 1e-4, (0.9, 0.999), (200, 400, 600, 800), 0.0, 0.05),
    "rdn-igconv+": ((2, 3, 4), 48, 32, 1000, 1e-4, (0.9, 0.99), (200, 400, 600, 800), 0.0, 0.05),
}


@pytest.mark.parametrize("name", list(OFFICIAL))
def test_a_recipe_of_the_paper_has_the_values_of_its_configuration(name):
    recipe = RECIPES[name]
    cosine = recipe.final_learning_rate == 1e-6
    milestones = None if cosine else tuple(step // 1000 for step in recipe.milestones)
    batch = recipe.micro_batch * recipe.micro_batches
    found = (recipe.scales, recipe.patch, batch, recipe.steps // 1000, recipe.learning_rate, recipe.betas, milestones,
             recipe.ema, recipe.fft_weight)  # fmt: skip
    assert found == OFFICIAL[name]
    assert recipe.micro_batches == 4  # one per GPU, each with a scale of its own
    assert name == f"{recipe.encoder}-{recipe.upsampler}"
    assert "official" in recipes.SOURCES[name]


def test_every_encoder_has_recipes_and_every_recipe_says_where_its_values_come_from():
    assert recipes.SOURCES.keys() == RECIPES.keys()
    named = {(recipe.encoder, recipe.upsampler) for recipe in RECIPES.values()}
    for encoder in set(models.ENCODERS) - {"edsr-nano", "edsr-tiny"}:
        assert {(encoder, "igconv"), (encoder, "igconv+")} <= named
    for name in RECIPES.keys() - OFFICIAL.keys():
        assert "inferred" in recipes.SOURCES[name] or recipes.SOURCES[name] == "this project"


def test_a_misspelt_field_is_answered_with_the_nearest_one():
    with pytest.raises(ValueError, match="unknown field 'learnin_rate'; did you mean 'learning_rate'"):
        Recipe.from_dict({"learnin_rate": 1e-3})


def test_the_recipe_in_the_header_of_every_bundled_file_can_be_read():
    files = sorted(runtime.repo_data("weights").rglob("*.safetensors"))
    written = [(header["config"], header["card"].get("recipe")) for header in map(weights.read_header, files)]
    recipes_read = [Recipe.from_dict(recipe) for _, recipe in written if recipe]
    assert len(recipes_read) >= 10
    for recipe in recipes_read:
        assert isinstance(recipe.sizes, Sizes)
    for config, _ in written:
        options = {name: value for name, value in config.items() if name not in ("encoder", "upsampler", "scales")}
        models.check_names(config["encoder"], config["upsampler"], config["scales"], options)


def test_a_recipe_survives_json():
    for recipe in RECIPES.values():
        assert Recipe.from_dict(json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe


def test_the_learning_rate_follows_the_paper_and_the_cosine():
    paper = Recipe()
    assert paper.learning_rate_at(199_999) == 1e-4
    assert paper.learning_rate_at(200_000) == 5e-5
    cosine = dataclasses.replace(TINY, steps=100, warmup=10, learning_rate=1e-3, final_learning_rate=0.0)
    assert cosine.learning_rate_at(0) == pytest.approx(1e-4)
    assert cosine.learning_rate_at(10) == pytest.approx(1e-3)
    assert cosine.learning_rate_at(55) == pytest.approx(5e-4)
    assert cosine.learning_rate_at(99) < 1e-6


def test_every_field_of_a_recipe_says_what_it_is():
    docs = recipes.field_docs()
    assert list(docs) == [field.name for field in dataclasses.fields(Recipe)]
    assert all(len(text) > 15 for text in docs.values())


def test_a_recipe_with_sizes_is_fixed_hashable_and_survives_json():
    recipe = dataclasses.replace(TINY, sizes={"channels": 16, "fgrep": True, "mean": [0.5, 0.4, 0.3]})
    assert recipe.sizes == {"channels": 16, "fgrep": True, "mean": (0.5, 0.4, 0.3)}
    again = Recipe.from_dict(json.loads(json.dumps(dataclasses.asdict(recipe))))
    assert again == recipe != TINY
    assert len({recipe, again, copy.deepcopy(recipe), pickle.loads(pickle.dumps(recipe)), TINY}) == 2
    for change in (lambda s: s.update(channels=8), lambda s: s.pop("channels"), lambda s: s.__setitem__("blocks", 1)):
        with pytest.raises(TypeError, match="cannot change"):
            change(recipe.sizes)
    assert isinstance(recipe.sizes, Sizes)


def test_the_sizes_reach_the_model_and_name_it():
    recipe = dataclasses.replace(TINY, sizes={"channels": 8, "blocks": 1, "implicit_dim": 32})
    model = recipe.build()
    assert model.encoder.channels == 8
    assert sum(p.numel() for p in model.parameters()) < 20_000
    assert recipe.model_name == "edsr-tiny-igconv-channels=8-blocks=1-implicit_dim=32"
