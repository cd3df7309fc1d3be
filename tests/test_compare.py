"""Comparing, controls, study: similarities of known truth, controls that are what they say, records that agree."""

import math
import sys

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from srlab import cka, compare, controls, features, models, runtime, study, weights
from srlab.resize import imresize


def tiny(seed=0, **sizes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.build("edsr-tiny", "spconv", (2,), channels=6, blocks=3, **sizes).eval()


@pytest.fixture(scope="module")
def pictures():
    """Ten smooth random pictures of different sizes."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(20 + 2 * i, 34 - i) for i in range(10)]
    return [imresize(torch.rand(1, 3, h // 4, w // 4, generator=generator), 4).clamp(0, 1) for h, w in sizes]


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


def test_a_difference_is_paired_so_that_its_interval_is_narrower(pictures):
    a, b, c = tiny(1), tiny(2), tiny(3)
    ab, ac = compare.layer_matrix(a, b, pictures), compare.layer_matrix(a, c, pictures)
    gap = ab.minus(ac, over=compare.last_cell)
    assert gap.mean == pytest.approx(ab.mean().mean - ac.mean().mean, abs=1e-12)
    assert ab.minus(ab, over=compare.last_cell).high == pytest.approx(0, abs=1e-12)
    nothing = ab.minus(ac, ab, over=compare.last_cell)
    assert nothing.mean == pytest.approx(gap.mean / 2, abs=1e-12)


def test_few_pictures_give_a_number_and_no_interval(pictures):
    a, b = tiny(1), tiny(2)
    found = compare.layer_matrix(a, b, pictures[:3])
    assert 0 < found.mean().mean < 1
    assert math.isnan(found.mean().low)
    assert math.isnan(found.minus(found, over=compare.last_cell).low)


# controls


def test_an_untrained_twin_has_the_shape_and_none_of_the_weights():
    model = tiny()
    twin = controls.untrained(model, seed=7)
    before, after = model.state_dict(), twin.state_dict()
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before if before[name].ndim)
    again = controls.untrained(model, seed=7).state_dict()
    assert all(torch.equal(after[name], again[name]) for name in after)


def test_the_untrained_twin_of_somebodys_model_names_what_stays_trained():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gain = nn.Conv2d(3, 4, 3), nn.Parameter(torch.full((4,), 2.0))

    model = Own()
    with pytest.warns(UserWarning, match="gain"):
        twin = controls.untrained(model)
    assert not torch.equal(twin.conv.weight, model.conv.weight)
    assert torch.equal(twin.gain, model.gain)


def test_what_linear_filters_of_the_picture_explain_is_taken_out(pictures):
    """Features made of 5 x 5 filters leave nothing; an added square of the picture is what remains."""
    generator = torch.Generator().manual_seed(3)
    filters = torch.randn(4, 3, 5, 5, generator=generator)

    def read(lr):
        filtered = F.conv2d(F.pad(lr, [2] * 4, mode="replicate"), filters)
        return {"linear": filtered, "squared": filtered + 5 * lr.square().sum(1, keepdim=True)}

    without = controls.TakenOut(read, ["linear", "squared"], pictures)
    left = without(pictures[0])
    assert left["linear"].abs().max() < 1e-3
    assert left["squared"].std() > 0.05
    assert left["squared"].std() < 0.5 * read(pictures[0])["squared"].std()


def test_classes_of_provenance_on_weights_of_known_origin():
    start = tiny(0)
    moved, fine_tuned = tiny(0), tiny(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for model, far in ((moved, 4.0), (fine_tuned, 0.3)):
            for weight in model.encoder.parameters():
                weight += far * weight.std() * torch.randn(weight.shape, generator=generator)
    a, b, c = (controls.weight_cosines(start, model) for model in (fine_tuned, moved, tiny(9)))
    assert [a.kind, b.kind, c.kind] == ["A", "B", "C"]
    assert a.hidden == pytest.approx(1 / math.sqrt(1 + 0.3**2), abs=0.02)
    assert b.hidden == pytest.approx(1 / math.sqrt(1 + 4.0**2), abs=0.1)
    assert controls.weight_cosines(start, start).hidden == pytest.approx(1)
    assert a.layers == 7  # two convolutions in each of three blocks, one after them


def test_chance_is_as_large_as_independent_weights_are_alike():
    found = [controls.weight_cosines(tiny(i), tiny(i + 1)) for i in range(0, 40, 2)]
    beyond = sum(pair.hidden > pair.hidden_null for pair in found)
    assert beyond <= 2, "at p < 1 / 200 hardly any of 20 independent pairs lies beyond chance"
    assert found[0].expected == pytest.approx(0.6745 / math.sqrt(6 * 6 * 9))
    with pytest.raises(ValueError, match="same architecture"):
        controls.weight_cosines(tiny(), models.build("smfanet", "spconv", (2,), channels=8, blocks=1))


# study


def test_table_of_a_family_has_every_control_and_gaps_that_add_up(pictures):
    family, others = ({f"x{i}": tiny(seed + i) for i in (2, 3, 4)} for seed in (0, 10))
    reductions = {"pixels": features.pixels_as_examples, "pictures": features.pictures_as_examples}
    tables = study.last_feature_table(family, compare.crop_alike(pictures), others, reductions, n_resamples=50)
    for reduction in reductions:
        rows = tables.rows[tables.rows["reduction"] == reduction]
        counts = rows[rows["where"] == study.INPUT]["control"].value_counts().to_dict()
        expected = {"scales": 3, "shuffled": 3, "ceiling": 3, "untrained": 3, "picture": 3, "two untrained": 1}
        assert counts == expected | {"above the floor": 3, "below the ceiling": 3}
        for where in (study.INPUT, study.BLOCKS):
            at = {(row.control, row.a, row.b): row.estimate for row in rows[rows["where"] == where].itertuples()}
            controls_of = [at[control, a, b] for control, a, b in at if control in study.FLOORS and a in ("x2", "x3")]
            gap = at["scales", "x2", "x3"] - max(controls_of)
            assert at["above the floor", "x2", "x3"] == pytest.approx(gap, abs=1e-9)
            ceiling = sum(value for (control, a, _), value in at.items() if control == "ceiling" and a != "x4") / 2
            gap = ceiling - at["scales", "x2", "x3"]
            assert at["below the ceiling", "x2", "x3"] == pytest.approx(gap, abs=1e-9)
    assert len(tables.layers) == 2 * 3 * 4**2
    diagonal = tables.layers.query("reduction == 'pixels' and a == 'x2' and b == 'x3' and layer_a == layer_b")
    assert diagonal["layer_a"].tolist() == ["1", "2", "3", "in"]
    summary = study.summary_table(tables.rows[tables.rows["reduction"] == "pixels"])
    assert summary["scales"].tolist() == ["x2-x3", "x2-x4", "x3-x4"]
    assert summary["verdict"].str.contains("the floor, ").all()


@pytest.mark.parametrize(
    ("above", "below", "words"),
    [
        ((0.1, 0.2), (0.01, 0.02), "above the floor, below the ceiling"),
        ((0.1, 0.2), (-0.01, 0.02), "above the floor, at the ceiling"),
        ((-0.1, 0.2), (0.01, 0.02), "at the floor, below the ceiling"),
        ((-0.2, -0.1), None, "below the floor, ceiling unknown"),
    ],
)
def test_verdicts_follow_from_intervals(above, below, words):
    gap = lambda ends: None if ends is None else pd.Series({"low": ends[0], "high": ends[1]})  # noqa: E731
    assert study.verdict(gap(above), gap(below)) == words


def test_report_of_two_models_of_different_kinds(pictures):
    own = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1))
    found = study.report(tiny(), own, pictures, layers_b=["*"])
    text = "\n".join(found.lines())
    assert found.layers.shape == (4, 3)
    assert "architectures differ" in text
    for what in ("A and B", "untrained B", "both untrained", "other pictures", "A, the picture", "B, the picture"):
        assert what in text
    table = found.table()
    assert len(table) == 7 + 12
    assert table.query("layer_a == 'encoder' and layer_b == '2'")["estimate"].item() == pytest.approx(
        found.controls["estimate"][0]
    )


def test_report_leaves_the_picture_out_where_maps_have_another_size(pictures):
    own = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU())
    found = study.report(own, own, pictures, ["*"], ["*"])
    assert not found.controls["what"].str.contains("the picture").any()
    assert found.controls["estimate"][0] == pytest.approx(1)


def test_shipped_record_is_whole_and_of_these_weights(monkeypatch):
    if not runtime.repo_data("results", f"{study.RECORDS[0]}.csv").is_file():
        pytest.skip("not recorded yet")
    monkeypatch.delenv("SRLAB_RECORD", raising=False)
    tables = study.recorded_scales()
    scales = tables.rows[tables.rows["control"] == "scales"]
    assert set(scales["series"]) == set(study.SERIES)
    assert set(scales["data"]) == set(study.PROTOCOLS)
    for control in ("scales", "ceiling", "untrained", "picture", "two untrained", "shuffled", "across"):
        rows = tables.rows[tables.rows["control"] == control]
        assert rows["estimate"].between(-1, 1).all()
        assert (rows["low"] <= rows["estimate"] + 1e-4).all()
        assert (rows["estimate"] <= rows["high"] + 1e-4).all()
    in_matrix = tables.layers.query("layer_a == 'in' and layer_b == 'in'").set_index(["data", "series", "a", "b"])
    at_input = scales[(scales["where"] == study.INPUT) & (scales["reduction"] == "pixels")]
    for row in at_input.itertuples():
        cells = in_matrix.loc[[(row.data, row.series, row.a, row.b)]].query("reduction == 'pixels'")
        assert cells["debiased"].item() == pytest.approx(row.estimate, abs=2e-4)


@pytest.mark.benchmark_data(
    "smfanet-df2k-x2", "smfanet-df2k-x3", "smfanet-div2k-x2", "imdn-x2", "imdn-x4", "bsrn-x3", "bsrn-x4"
)
def test_provenance_of_published_weights_is_what_their_cards_say():
    pairs = [
        ("smfanet-df2k-x2", "smfanet-df2k-x3"),
        ("imdn-x2", "imdn-x4"),
        ("bsrn-x3", "bsrn-x4"),
        ("smfanet-df2k-x2", "smfanet-div2k-x2"),
    ]
    found = {pair: controls.weight_cosines(*map(weights.load, pair)) for pair in pairs}
    for pair in pairs[:3]:
        assert found[pair].kind == weights.card(pair[0]).provenance
    assert found[pairs[3]].kind == "B", "the ceiling shares its start, too"
    assert 0.8 < found[pairs[1]].hidden < 0.95
    assert found[pairs[0]].hidden < 0.15 < 0.8 < found[pairs[0]].first


@pytest.mark.benchmark_data("set14", "bsrn-x2", "bsrn-x3")
def test_a_published_pair_computed_anew_equals_the_record(monkeypatch):
    if not runtime.repo_data("results", f"{study.RECORDS[0]}.csv").is_file():
        pytest.skip("not recorded yet")
    monkeypatch.delenv("SRLAB_RECORD", raising=False)
    recorded = study.recorded_scales().rows
    found = study.across_table(
        {name: weights.load(f"bsrn-{name}") for name in ("x2", "x3")}, compare.lr_pictures("set14", 4)
    ).iloc[0]
    row = recorded.query("data == 'set14 x4' and series == 'bsrn' and control == 'scales' and a == 'x2' and b == 'x3'")
    row = row[row["where"] == study.INPUT].iloc[0]
    for column in ("estimate", "low", "high", "biased"):
        assert found[column] == pytest.approx(row[column], abs=5e-4)
