"""Kernel study: members of known truth, controls on the right grid, verdicts that follow from numbers, the record."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from srlab import datasets, images, kernel_study, kernels, models, runtime, weights
from srlab.kernel_study import Member, Protocol

QUICK = Protocol(draws=119, resamples=10)


def tiny(upsampler="spconv", scales=(2,), seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"implicit_dim": 16} if upsampler.startswith("igconv") else {}
        return models.build("edsr-tiny", upsampler, scales, channels=6, blocks=1, **sizes).eval()


@pytest.fixture(scope="module")
def pictures():
    return kernel_study.middles(datasets.load("demo"), 4, count=6, side=20)


def mixed(member, generator):
    """The same model with channels of its own: features rotated and stretched, the kernel made to fit them."""
    channels = member.phases.shape[1]
    rotation = torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64))[0]
    matrix = (0.5 + torch.rand(channels, 1, generator=generator, dtype=torch.float64)) * rotation
    feats = [torch.einsum("dc,chw->dhw", matrix, each.double()) for each in member.feats]
    return Member(kernels.carry(member.phases.double(), torch.linalg.inv(matrix)), feats)


@pytest.fixture(scope="module")
def families():
    """One smooth field at three scales, and the same read through channels mixed anew for each scale."""
    generator = torch.Generator().manual_seed(0)
    feats = F.avg_pool2d(torch.randn(8, 6, 14, 14, generator=generator), 3, stride=1)
    plain, other = {}, {}
    for scale in (2, 3, 4):
        phases = kernels.smooth_random_phases(6, scale, torch.Generator().manual_seed(1), length=0.6)
        plain[scale] = Member(phases, feats, [torch.randn(phases.shape, generator=generator)])
        other[scale] = mixed(plain[scale], generator)
    return plain, other


def test_middles_are_cut_from_the_first_pictures_that_are_large_enough(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for number, (height, width) in enumerate([(64, 72), (40, 90), (56, 50)]):
        picture = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        images.save_image(tmp_path / f"{number}.png", picture)
    photos = datasets.load(tmp_path)
    cut = kernel_study.middles(photos, 2, count=2, side=22)  # the second is 20 pixels high at x2
    assert [tuple(picture.shape) for picture in cut] == [(1, 3, 22, 22)] * 2
    torch.testing.assert_close(cut[0][0] * 255, photos.pair(0, 2)[0][:, 5:27, 7:29].float())
    torch.testing.assert_close(cut[1][0] * 255, photos.pair(2, 2)[0][:, 3:25, 1:23].float())
    with pytest.raises(ValueError, match="2 LR pictures of at least 22 x 22 pixels at x2, expected 3"):
        kernel_study.middles(photos, 2, count=3, side=22)


@pytest.mark.parametrize("upsampler", ["spconv", "igconv"])
def test_kernel_and_features_together_are_the_model(upsampler, pictures):
    """Features convolved with the assembled kernel and shuffled, plus the bias, are the model's own picture."""
    model = tiny(upsampler, (2, 3))
    for scale in (2, 3):
        member = kernel_study.read(model, scale, pictures[:2], untrained=2)
        weight = kernels.assemble(member.phases)
        bias = getattr(model.instantiate(scale).upsampler, "bias", None)
        for lr, feats in zip(pictures, member.feats, strict=False):
            painted = F.pixel_shuffle(F.conv2d(feats[None], weight, bias, padding=1), scale) + model.mean
            torch.testing.assert_close(painted, model(lr, scale), atol=1e-5, rtol=1e-5)
        assert len(member.untrained) == 2
        assert not torch.equal(*member.untrained)
        assert member.untrained[0].shape == member.phases.shape


@pytest.mark.parametrize("upsampler", ["spconv+", "igconv+"])
def test_upsamplers_without_one_kernel_are_refused(upsampler):
    with pytest.raises(ValueError, match="expected SPConv or IGConv"):
        kernel_study.kernel_of(tiny(upsampler), 2)


def test_one_picture_in_other_channels_is_seen_after_alignment_only(families):
    plain, other = families
    family = {scale: (plain, other)[scale % 2][scale] for scale in (2, 3)} | {4: other[4]}
    table = kernel_study.compare_scales(family, QUICK)
    assert list(zip(table.scale_a, table.scale_b, table.grid, strict=True))[::9] == [(2, 3, 2), (2, 4, 2), (3, 4, 3)]
    rows = table[table.part == "varying"].set_index(["basis", "scale_a", "scale_b"])
    for pair in ((2, 3), (2, 4), (3, 4)):
        aligned, same = rows.loc[("aligned", *pair)], rows.loc[("same channel", *pair)]
        expected = kernels.correlate(plain[pair[0]].phases, plain[pair[1]].phases).varying
        assert aligned.r2 > 0.9999
        assert expected > 0.9
        assert aligned.value == pytest.approx(expected, abs=0.1)  # in other channels entries weigh differently
        assert kernel_study.above_nulls(aligned)
        assert not kernel_study.above_nulls(same)


def test_the_ceiling_stands_on_every_grid_a_pair_of_scales_is_compared_on(families):
    plain, other = families
    table = kernel_study.compare_twins(plain, other, QUICK)
    places = list(dict.fromkeys(zip(table.scale_a, table.scale_b, table.grid, strict=True)))
    assert places == [(2, 2, 2), (3, 3, 2), (3, 3, 3), (4, 4, 2), (4, 4, 3)]
    aligned = table[table.basis == "aligned"]
    np.testing.assert_allclose(aligned.value, 1, atol=1e-3)  # the same model but for its channels
    assert (table[(table.basis == "same channel") & (table.part == "varying")].value < 0.8).all()
    shrunk = kernel_study.at_grid(plain[4], 2)
    torch.testing.assert_close(shrunk.phases, F.avg_pool2d(plain[4].phases.flatten(0, 3), 2).view(3, 6, 3, 3, 2, 2))
    assert shrunk.untrained[0].shape == shrunk.phases.shape


def test_a_map_fitted_to_wrong_pictures_carries_nothing_that_both_share(families):
    plain, other = families
    table = kernel_study.compare_members(plain[2], other[4], QUICK).set_index(["basis", "part"])
    aligned = table.loc[("aligned", "varying")]
    moved = [*other[4].feats[1:], other[4].feats[0]]
    carried = kernels.align(kernels.assemble(other[4].phases), plain[2].feats, moved).weight
    by_hand = kernels.correlate(plain[2].phases, kernels.phase_images(carried, 4)).varying
    assert abs(by_hand) <= aligned.null_pictures < 0.7 < aligned.value
    assert kernel_study.wrong_pictures(plain[2], other[4], 1)["varying"] == pytest.approx(abs(by_hand))
    assert kernel_study.largest_null(aligned) >= aligned.null_pictures
    assert np.isnan(table.loc[("functional", "varying"), "null_pictures"])


def row(control, a, scale_a, scale_b, value, basis="aligned", kind="B", grid=2, null=0.1, p=0.002):
    nulls = {f"null_{name}": null for name in ("channels", "smooth", "untrained", "pictures")}
    nulls |= {"null_sub-pixels": math.nan}
    ps = {f"p_{name}": p for name in ("channels", "smooth")} | {"p_sub-pixels": math.nan}
    place = {"control": control, "a": a, "b": a, "scale_a": scale_a, "scale_b": scale_b, "grid": grid}
    ends = {"value": value, "low": value - 0.1, "high": value + 0.1, "r2": 0.9}
    return {**place, "provenance": kind, "basis": basis, "part": "varying", **ends, **nulls, **ps}


def by_hand():
    rows = []
    for name, kind, aligned, p in (("smfanet-df2k", "B", 0.6, 0.002), ("imdn", "A", 0.5, 0.3)):
        rows += [row("scales", name, 2, 4, aligned, kind=kind, p=p)]
        rows += [
            row("scales", name, 2, 4, 0.05, "same channel", kind, null=0.06),
            row("scales", name, 2, 4, 0.9, "functional", kind),
        ]
    rows += [row("other training", "smfanet-df2k", s, s, value) for s, value in ((2, 0.7), (4, 0.9))]
    rows += [row("other training", "smfanet-df2k", 4, 4, 0.1, grid=3), row("other architecture", "bsrn", 2, 2, 0.3)]
    return pd.DataFrame(rows)


def test_verdict_says_what_the_numbers_say():
    separate, inherited, architecture = kernel_study.verdict(by_hand())
    assert separate == (
        "Trained separately (class B: smfanet-df2k): as stored 0.05 to 0.05, above every null in 0 of 1 pairs; aligned "
        "0.60 to 0.60, above every null in 1 of 1 pairs. Of the ceiling (same scale, other data) that is 75% to 75%."
    )
    assert inherited.startswith("x3 and x4 inherited from x2 (class A: imdn)")
    assert "aligned 0.50 to 0.50, above every null in 0 of 1 pairs" in inherited  # p is 0.3
    assert architecture == "Same scale, another architecture: aligned 0.30 to 0.30, above every null in 1 of 1 pairs."


def test_summary_and_chart_hold_a_number_beside_its_null_and_ceiling():
    table = by_hand()
    summary = kernel_study.summary_table(table).set_index("models")
    assert summary.loc["smfanet-df2k", "ceiling"] == pytest.approx(0.8)  # of x2 and x4 on the grid of x2
    assert np.isnan(summary.loc["imdn", "ceiling"])
    assert summary.loc["imdn", ["same channel", "aligned", "null", "p aligned"]].tolist() == [0.05, 0.5, 0.1, 0.3]
    chart = kernel_study.chart(table)
    groups = chart.groupby("group", sort=False)["mean"].apply(list).to_dict()
    assert groups == {
        "aligned": [0.6, 0.5],
        "null of aligned": [0.1, 0.1],
        "as stored": [0.05, 0.05],
        "null of as stored": [0.06, 0.06],
        "ceiling: other data": [pytest.approx(0.8)],
    }
    assert chart[chart.group == "aligned"].low.tolist() == pytest.approx([0.5, 0.4])


def test_microscope_shows_a_kernel_in_another_encoders_channels(families):
    plain, other = families
    scope = kernel_study.Microscope({2: plain[2], 3: other[3], 4: plain[4]})
    luma = torch.tensor(kernels.LUMA)
    for scale, member in ((2, plain[2]), (4, plain[4])):
        torch.testing.assert_close(scope.stored[scale], torch.einsum("g,gcpquv->cpquv", luma, member.phases.float()))
        torch.testing.assert_close(scope.carried[scale][scale], scope.stored[scale])
    unmixed = torch.einsum("g,gcpquv->cpquv", luma, plain[3].phases.float())
    torch.testing.assert_close(scope.carried[2][3], unmixed, atol=1e-3, rtol=1e-3)
    shown = scope.rows(2, channel=5, tap=(0, 2))
    assert [tuple(pair.shape) for pair in shown.values()] == [(2, 2, 2), (2, 3, 3), (2, 4, 4)]
    torch.testing.assert_close(shown["x3"][1], unmixed[5, 0, 2], atol=1e-3, rtol=1e-3)
    bright = torch.zeros(1, 6, 3, 3)
    bright[0, 5, 1, 1] = 1
    painted = F.pixel_shuffle(F.conv2d(bright, kernels.assemble(scope.stored[4][None]), padding=1), 4)[0, 0]
    torch.testing.assert_close(scope.rows(2, channel=5, tap=None)["x4"][0], painted)
    spread = (scope.stored[4] - scope.stored[4].mean((-2, -1), keepdim=True)).flatten(1).norm(dim=1)
    assert scope.strongest(4) == sorted(range(6), key=lambda c: -spread[c])


def test_a_whole_line_of_the_plan_with_models_of_ours(monkeypatch, pictures):
    made = {f"{name}-x{s}": tiny(scales=(s,), seed=i) for i, name in enumerate(("one", "two")) for s in (2, 3, 4)}
    monkeypatch.setattr(weights, "load", made.__getitem__)
    monkeypatch.setattr(weights, "card", lambda name: weights.Card(name, "", (2,), "", 0, "", "B", "", ""))
    quick = Protocol(draws=9, resamples=4, untrained=1)
    for control, lines in (("scales", 3), ("other training", 5), ("other architecture", 3)):
        table = kernel_study.study(control, "one", "one" if control == "scales" else "two", pictures, quick)
        assert len(table) == 9 * lines
        assert set(table.control) == {control}
        assert table.columns[:10].tolist()[-1] == "pictures"
        assert table.null_untrained.notna().all()
        assert (table.null_pictures.notna() == (table.basis == "aligned")).all()
        assert set(table.provenance) <= {"A", "B", "C", "unrelated"}
        assert (table.hidden.isna() == (control == "other architecture")).all()


# the record


def test_record_is_of_the_weights_and_settings_of_this_project():
    table = kernel_study.recorded_kernels()
    assert {control for control, *_ in kernel_study.plan()} == set(table.control)
    for control, a, b in kernel_study.plan():
        rows = table[(table.control == control) & (table.a == a) & (table.b == b)]
        assert len(rows) == 9 * (5 if control == "other training" else 3)
    assert table.value[table.basis != "same channel"].notna().all()


def test_record_missing_says_how_to_make_it(monkeypatch):
    monkeypatch.setattr(kernel_study, "PROTOCOL", Protocol(pictures=7))
    monkeypatch.delenv("SRLAB_RECORD", raising=False)
    with pytest.raises(runtime.RecordError, match="SRLAB_RECORD=1"):
        kernel_study.recorded_kernels()


@pytest.mark.benchmark_data("smfanet-df2k-x2", "smfanet-df2k-x4", "smfanet-div2k-x2", "b100")
def test_a_line_of_the_record_can_be_had_again():
    """Same pictures and weights, another road to the aligned number: a map fitted by least squares."""
    recorded = kernel_study.recorded_kernels()
    lr = kernel_study.pictures_of()
    two, four = (kernel_study.read(weights.load(f"smfanet-df2k-x{s}"), s, lr) for s in (2, 4))
    rows = recorded[(recorded.control == "scales") & (recorded.a == "smfanet-df2k") & (recorded.scale_b == 4)]
    rows = rows[(rows.scale_a == 2) & (rows.part == "varying")].set_index("basis")
    same = kernels.correlate(two.phases, four.phases).varying
    assert same == pytest.approx(rows.loc["same channel", "value"], abs=2e-4)
    x, y = (torch.cat([f.flatten(1) for f in member.feats], dim=1).double() for member in (two, four))
    x, y = (each - each.mean(1, keepdim=True) for each in (x, y))
    matrix = torch.linalg.lstsq(x.T, y.T).solution.T
    aligned = kernels.correlate(two.phases, kernels.carry(four.phases.double(), matrix)).varying
    assert aligned == pytest.approx(rows.loc["aligned", "value"], abs=0.03)  # the record's map has a ridge penalty
