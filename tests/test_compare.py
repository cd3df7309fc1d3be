"""Comparing: similarities of known truth, two roads to one number, intervals that are paired."""

import copy
import math
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from srlab import cka, compare, features, models


def tiny(seed=0, **sizes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.build("edsr-tiny", "spconv", (2,), channels=6, blocks=3, **sizes).eval()


class Rotated(nn.Module):
    """A model whose features are those of another, with channels mixed by a rotation and made 3 times larger."""

    def __init__(self, model):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
        self.inner, self.mix = model.encoder, nn.Conv2d(6, 6, 1, bias=False)
        self.mix.weight = nn.Parameter(3 * rotation.view(6, 6, 1, 1))
        self.mean = model.mean

    def forward(self, lr):
        return self.mix(self.inner(lr - self.mean))


# reading


def test_layers_of_our_encoders_are_their_blocks_and_the_upsamplers_input():
    blocks = {"edsr-tiny": ("body", 8), "smfanet": ("blocks", 8), "imdn": ("blocks", 6), "rcan": ("groups", 10)}
    for encoder, (container, count) in blocks.items():
        with torch.device("meta"):
            found = compare.layers_of(models.build(encoder, "spconv", (2,)))
        assert found == [*(f"encoder.{container}.{i}" for i in range(count)), "encoder"]


def test_the_last_layer_is_what_the_upsampler_gets(pictures):
    model = tiny()
    read = compare.Reader(model)(pictures[0])
    torch.testing.assert_close(read["encoder"], model.encode(pictures[0]))
    assert list(read) == compare.layers_of(model)
    assert not read["encoder"].requires_grad


def test_a_layer_behind_the_encoder_can_be_read_too(pictures):
    model = tiny()
    read = compare.Reader(model, ["encoder", "upsampler"])(pictures[0])
    torch.testing.assert_close(read["upsampler"], model(pictures[0]) - model.mean)


def test_a_model_of_ones_own_is_read_by_patterns(pictures):
    own = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1))
    assert list(compare.Reader(own, ["*"])(pictures[0])) == ["0", "1", "2"]
    with pytest.raises(ValueError, match=r"Sequential has no nn\.Sequential"):
        compare.layers_of(own)


def test_own_model_calls_the_named_function(tmp_path, monkeypatch):
    (tmp_path / "mynet_for_test.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Conv2d(3, 4, 3)\n\ndef wrong():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert compare.own_model("mynet_for_test:make").out_channels == 4
    with pytest.raises(ValueError, match="returns a int"):
        compare.own_model("mynet_for_test:wrong")
    with pytest.raises(ValueError, match="module:function"):
        compare.own_model("mynet_for_test:absent")


# comparing


def test_a_rotated_model_is_the_same_at_its_end(pictures):
    model = tiny()
    found = compare.layer_matrix(model, Rotated(model), pictures, layers_b=["mix"])
    assert found.mean().mean == pytest.approx(1, abs=1e-6)
    assert found.mean(debiased=False).mean == pytest.approx(1, abs=1e-6)


def test_the_matrix_equals_cka_of_all_pixels_at_once(pictures):
    a, b = tiny(1), tiny(2)
    found = compare.layer_matrix(a, b, pictures)
    rows = {}
    for name, model in {"a": a, "b": b}.items():
        for layer in ("encoder.body.1", "encoder"):
            maps = [compare.Reader(model, [layer])(lr)[layer] for lr in pictures]
            rows[name, layer] = torch.cat([m.flatten(2)[0].T for m in maps]).double()  # (all pixels, C)
    for layer_a, layer_b in (("encoder.body.1", "encoder"), ("encoder", "encoder")):
        for debiased in (True, False):
            expected = cka.linear_cka(rows["a", layer_a], rows["b", layer_b], debiased)
            assert found.matrix(debiased).loc[layer_a, layer_b] == pytest.approx(expected, abs=1e-6)
    assert found.examples == sum(picture[0, 0].numel() for picture in pictures)


def test_same_layers_are_the_diagonal_and_the_mean_leaves_the_last_one_out(pictures):
    a, b = tiny(1), tiny(2)
    full = compare.layer_matrix(a, b, pictures)
    readers = {"a": compare.Reader(a), "b": compare.Reader(b)}
    pair = compare.same_layers("a", "b", readers["a"].names, readers["b"].names)
    reductions = {"pixels": features.pixels_as_examples}
    diagonal = compare.compare_all(readers, [pair], pictures, reductions)["pixels", pair]
    matrix = full.matrix().to_numpy()
    assert diagonal.estimates[True].numpy() == pytest.approx(matrix.diagonal(), abs=1e-9)
    assert diagonal.mean(compare.block_cells(diagonal)).mean == pytest.approx(matrix.diagonal()[:-1].mean(), abs=1e-9)
    assert full.mean(compare.block_cells(full)).low == pytest.approx(
        diagonal.mean(compare.block_cells(diagonal)).low, abs=1e-6
    )


def test_pictures_as_examples_equal_the_textbook_on_flattened_maps(pictures):
    a, b = tiny(1), tiny(2)
    crops = compare.crop_alike(pictures)
    assert {tuple(crop.shape) for crop in crops} == {(1, 3, 20, 24)}
    found = compare.layer_matrix(a, b, crops, reduction=features.pictures_as_examples)
    x, y = (torch.cat([m.encode(crop).flatten(1) for crop in crops]).detach().double() for m in (a, b))
    k, m = x @ x.T, y @ y.T
    h = torch.eye(10, dtype=torch.float64) - 0.1
    biased = torch.trace(k @ h @ m @ h) / (torch.trace(k @ h @ k @ h) * torch.trace(m @ h @ m @ h)).sqrt()
    assert found.mean(debiased=False).mean == pytest.approx(float(biased), abs=1e-5)
    assert found.examples == 10


def test_pictures_of_different_sizes_cannot_be_examples(pictures):
    with pytest.raises(ValueError, match="crop_alike"):
        compare.layer_matrix(tiny(), tiny(), pictures, reduction=features.pictures_as_examples)


def test_portions_of_layers_change_nothing(pictures, monkeypatch):
    crops, read = compare.crop_alike(pictures), compare.Reader(tiny())
    reductions = {"pictures": features.pictures_as_examples}
    at_once = compare.picture_grams(read, crops, reductions)["pictures"]
    monkeypatch.setattr(compare, "GRAM_BYTES", 1)
    one_by_one = compare.picture_grams(read, crops, reductions)["pictures"]
    assert list(one_by_one) == list(at_once)
    assert all(torch.equal(one_by_one[layer], at_once[layer]) for layer in at_once)


def test_other_pictures_are_unlike_even_to_the_model_itself(pictures):
    model = tiny()
    assert compare.layer_matrix(model, model, pictures).mean().mean == pytest.approx(1, abs=1e-9)
    null = compare.layer_matrix(model, model, pictures, shuffled=True)
    assert abs(null.mean().mean) < 0.3
    assert null.mean().low < 0 < null.mean().high


def test_the_null_pairs_each_picture_with_the_one_before_it(pictures):
    model = tiny()
    null = compare.layer_matrix(model, model, pictures, shuffled=True).mean(debiased=False).mean
    x, y = [], []
    for i, picture in enumerate(pictures):
        one, other = model.encode(picture).detach(), model.encode(pictures[i - 1]).detach()
        h, w = min(one.shape[-2], other.shape[-2]), min(one.shape[-1], other.shape[-1])
        x.append(one[0, :, :h, :w].flatten(1).T)
        y.append(other[0, :, :h, :w].flatten(1).T)
    assert null == pytest.approx(cka.linear_cka(torch.cat(x).double(), torch.cat(y).double()), abs=1e-6)


def test_a_difference_is_paired_so_that_it_is_surer_than_its_parts(pictures):
    a, b, c = tiny(1), tiny(2), tiny(3)
    ab, ac = compare.layer_matrix(a, b, pictures), compare.layer_matrix(a, c, pictures)
    gap = ab.minus(ac, over=compare.last_cell)
    assert gap.mean == pytest.approx(ab.mean().mean - ac.mean().mean, abs=1e-12)
    assert ab.minus(ab, over=compare.last_cell).high == pytest.approx(0, abs=1e-12)
    nearly = copy.deepcopy(a)
    with torch.no_grad():
        nearly.encoder.conv_first.weight.mul_(torch.linspace(0.97, 1.03, 6).view(6, 1, 1, 1))
    close = ab.minus(compare.layer_matrix(nearly, b, pictures), over=compare.last_cell)
    assert close.high - close.low < 0.2 * (ab.mean().high - ab.mean().low)
    nothing = ab.minus(ac, ab, over=compare.last_cell)
    assert nothing.mean == pytest.approx(gap.mean / 2, abs=1e-12)


def test_the_interval_of_a_difference_is_that_of_scipy_on_fishers_z():
    """Nine pictures, so halves of four: scatter times sqrt(4 / 5) and Student's t with eight degrees of freedom."""
    generator, cell = torch.Generator().manual_seed(0), (("layer", "layer"),)
    drawn = [0.6 + 0.1 * torch.randn(50, 1, generator=generator, dtype=torch.float64) for _ in range(3)]
    here, *others = (
        compare.Comparison(cell, {True: torch.tensor([value], dtype=torch.float64)}, {True: draws}, 9, 9)
        for value, draws in zip((0.7, 0.6, 0.4), drawn, strict=True)
    )
    gap = here.minus(*others, over=compare.last_cell)
    own, first, second = (draws.numpy()[:, 0] for draws in drawn)
    scatter = np.std(np.arctanh(own) - np.arctanh((first + second) / 2), ddof=1)
    low, high = stats.t.interval(0.95, 8, loc=np.arctanh(0.5), scale=scatter * np.sqrt(4 / 5))
    assert (gap.low, gap.mean, gap.high) == pytest.approx((0.7 - np.tanh(high), 0.2, 0.7 - np.tanh(low)), abs=1e-12)


def test_a_mean_over_no_cells_is_refused(pictures):
    model = tiny()
    found = compare.layer_matrix(model, model, pictures[:4], ["encoder"], ["encoder"])
    assert compare.block_cells(found) == []
    assert found.mean(None).mean == found.mean().mean == pytest.approx(1, abs=1e-9)
    with pytest.raises(ValueError, match=r"a mean over no cells.*one layer"):
        found.mean(compare.block_cells(found))
    with pytest.raises(ValueError, match="a mean over no cells"):
        found.minus(found, over=compare.block_cells)
    with pytest.raises(ValueError, match=r"no cells \[\('encoder', 'x'\)\] here"):
        found.mean([("encoder", "x")])


def test_a_pair_given_twice_is_compared_once(pictures):
    readers = {"a": compare.Reader(tiny(1)), "b": compare.Reader(tiny(2))}
    pair = compare.same_layers("a", "b", ["encoder"], ["encoder"])
    for reduction in (features.pixels_as_examples, features.pooled_as_examples):
        once, twice = (compare.compare_all(readers, [pair] * n, pictures, {"": reduction}) for n in (1, 2))
        assert list(twice) == [("", pair)]
        assert twice["", pair].examples == once["", pair].examples
        assert twice["", pair].mean() == once["", pair].mean()


def test_nothing_to_compare_is_refused():
    model = tiny()
    for reduction in (None, features.pictures_as_examples):
        with pytest.raises(ValueError, match="no pictures, expected at least one"):
            compare.layer_matrix(model, model, [], reduction=reduction)
    with pytest.raises(ValueError, match="no pictures, expected at least one"):
        compare.crop_alike([])
    with pytest.raises(ValueError, match="no pairs to compare"):
        compare.compare_all({}, [], [torch.zeros(1, 3, 8, 8)], {"": features.pixels_as_examples})


def test_few_pictures_give_a_number_and_no_interval(pictures):
    a, b = tiny(1), tiny(2)
    found = compare.layer_matrix(a, b, pictures[:3])
    assert 0 < found.mean().mean < 1
    assert math.isnan(found.mean().low)
    assert str(found.mean()).endswith(" (no interval)")
    assert math.isnan(found.minus(found, over=compare.last_cell).low)


def test_every_second_row_and_column_is_what_step_takes(pictures):
    a, b = tiny(0), tiny(1)
    layers = compare.layers_of(a)
    found = compare.layer_matrix(a, b, pictures, layers, layers, n_resamples=0, step=2).matrix()
    with torch.no_grad():
        maps = [[compare.Reader(m, layers)(lr) for lr in pictures] for m in (a, b)]
    x, y = (torch.cat([m[layers[0]][0, :, ::2, ::2].flatten(1).T for m in side]) for side in maps)
    assert found.iloc[0, 0] == pytest.approx(cka.linear_cka(x, y, debiased=True), abs=1e-6)
