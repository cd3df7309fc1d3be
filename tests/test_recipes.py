"""Recipes: refused before any work when a value is wrong, the same after JSON, schedules as the paper has them."""

import copy
import dataclasses
import json
import pickle

import pytest

from srlab import recipes
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
        ({"upsampler": "spconv", "sizes": {"fgrep": True}}, "unknown size 'fgrep'"),
    ],
)
def test_a_value_out_of_range_is_refused_before_any_work(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_a_misspelt_field_is_answered_with_the_nearest_one():
    with pytest.raises(ValueError, match="unknown field 'learnin_rate'; did you mean 'learning_rate'"):
        Recipe.from_dict({"learnin_rate": 1e-3})


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
