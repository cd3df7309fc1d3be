"""Spectral bias from the ground up: slow before fast, and what removes the order."""

import math

import numpy as np
import pytest
import torch
from scipy import fft, stats

from srlab import kernels, runtime, spectral_study, weights


def test_slow_sines_are_learnt_first_and_fast_waves_remove_the_order():
    plain = spectral_study.fit_line(None, steps=500, networks=4)
    fast = spectral_study.fit_line(15.0, steps=80)
    assert plain.error.shape == (501, 4, 10)
    assert plain.order().low > 0.5
    assert plain.order().method == "Student t"
    assert not fast.order().excludes(0)
    assert fast.time_to().isfinite().all()
    final = plain.error[-1].mean(0)
    assert final[0] < 0.2 < 0.5 < final[-1]


def test_slow_waves_keep_the_order():
    slow = spectral_study.fit_line(1.0, steps=150, networks=4)
    assert slow.order().low > 0.5


def test_times_are_the_first_crossings():
    error = torch.tensor([[1.0, 1.0, 1.0], [0.5, 0.05, 1.0], [0.1, 0.5, 1.0]])[:, None]  # (3 looks, 1 network, 3)
    fit = spectral_study.LineFit(torch.tensor([1.0, 2.0, 3.0]), error)
    assert fit.time_to()[0].tolist() == [2.0, 1.0, math.inf]
    steps, errors = fit.course(points=3)
    assert len(steps) == len(errors)
    with pytest.raises(ValueError, match="they cross"):
        spectral_study.LineFit(torch.tensor([1.0, 2.0, 3.0]), torch.ones(3, 2, 3)).order()


def test_the_order_is_scipys_rank_correlation_mean_over_networks():
    error = torch.rand(40, 3, 6, generator=torch.Generator().manual_seed(0))  # (looks, networks, frequencies)
    fit = spectral_study.LineFit(torch.arange(1.0, 7.0), error)
    expected = [stats.spearmanr(np.arange(6), row).statistic for row in fit.time_to().numpy()]
    assert fit.order().mean == pytest.approx(np.mean(expected), abs=1e-11)
    assert fit.order().high - fit.order().low == pytest.approx(
        2 * stats.t.ppf(0.975, 2) * stats.sem(expected), abs=1e-11
    )


def test_all_frequencies_of_a_large_hyper_network_count(monkeypatch):
    """Elements far down the list are faster: the quantiles of the first 100,000 would be too slow."""
    elements, waves = 3000, 100
    speeds = torch.arange(elements * waves, dtype=torch.float32).view(elements, 1, waves) / (elements * waves)
    frequency = torch.cat([0.6 * speeds, 0.8 * speeds], dim=1).view(elements, 2 * waves)  # (3, 4, 5) triangles
    head = type("Head", (), {"hyper": type("Hyper", (), {"frequency": frequency})})
    monkeypatch.setattr(weights, "load", lambda name: type("Model", (), {"upsampler": head}))
    assert dict(spectral_study.cycles_per_pixel("large")) == pytest.approx(
        {"median": 0.5, "95 % quantile": 0.95}, abs=1e-4
    )


def test_networks_side_by_side_do_not_see_each_other():
    generator = torch.Generator().manual_seed(0)
    parameters = spectral_study.first_weights(3, [2, 5, 1], generator)
    x = torch.randn(3, 7, 2, generator=generator)
    together = spectral_study.run_networks(x, parameters)
    for number in range(3):
        first, bias, last, end = (p[number] for p in parameters)
        alone = torch.relu(x[number] @ first + bias) @ last + end
        torch.testing.assert_close(together[number], alone)


def test_waves_of_whole_frequencies_are_cosines_and_sines():
    places = torch.linspace(0, 1, 9)[None, :, None]
    features = spectral_study.waves(places, torch.tensor([[[1.0, 2.0]]]))
    turn = 2 * math.pi * places[0]
    torch.testing.assert_close(features[0], torch.cat([turn.cos(), (2 * turn).cos(), turn.sin(), (2 * turn).sin()], -1))


def test_the_finest_octave_of_a_photograph_waits_without_fast_waves():
    picture = spectral_study.photo(32)
    assert picture.shape == (32, 32)
    bare = spectral_study.fit_photo(picture, None, networks=1, looks=(60,), width=32)
    helped = spectral_study.fit_photo(picture, 15.0, networks=1, looks=(60,))
    assert bare.error[0, 0, 3] > 0.95 > bare.error[0, 0, :3].max()  # nothing of the finest octave yet
    assert helped.error[0, 0, :3].max() < 0.1 < 0.5 < bare.error[0, 0, :3].min()
    assert bare.painted.shape == (1, 1, 32, 32)


def test_levels_are_those_of_the_cosine_transform():
    phases = torch.randn(3, 2, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    power = fft.dctn(phases.numpy(), axes=(-2, -1), norm="ortho") ** 2
    level = np.maximum(*np.indices((4, 4)))
    expected = [power[..., level == n].sum() for n in range(4)]
    found = spectral_study.cosine_levels(phases)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)
    assert found.sum().item() == pytest.approx(phases.square().sum().item(), rel=1e-4)  # nothing is lost
    flat = spectral_study.cosine_levels(torch.ones(1, 4, 4))
    assert flat[1:].abs().max() < 1e-6 < flat[0]


def test_the_hyper_network_as_released_learns_slow_levels_first_and_fast_waves_do_not():
    white = torch.randn(3, 4, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))  # all levels alike
    sizes = spectral_study.KernelSizes(channels=4, implicit_dim=128, looks=(60,), learning_rate=2e-3, seeds=(0,))
    spread = {}
    for name, way in spectral_study.WAYS.items():
        table = spectral_study.fit_kernel(white, way, sizes).set_index("level")["error"]
        assert list(table.index) == [0, 1, 2, 3]
        spread[name] = table[3] - table[0]
    assert spread["Fourier features, as released"] > 0.5
    assert spread["plain coordinates"] > 0.5
    assert abs(spread["Fourier features, fast start"]) < 0.1


def test_the_bundled_kernel_is_the_one_the_model_uses():
    found = spectral_study.real_kernel(spectral_study.BUNDLED, 8)
    assert found.shape == (3, 8, 3, 3, 4, 4)
    assert found.std().item() == pytest.approx(1, abs=1e-5)
    kernel = weights.load(spectral_study.BUNDLED).upsampler.kernel(4)
    chosen = torch.randperm(32, generator=torch.Generator().manual_seed(0))[:8]
    mine = kernels.phase_images(kernel.detach(), 4)[:, chosen]
    torch.testing.assert_close(found, mine / mine.std())


@pytest.mark.benchmark_data("smfanet-div2k-x4")
def test_a_published_kernel_is_read_as_it_is_stored():
    found = spectral_study.real_kernel("smfanet-div2k-x4", 4, seed=1)
    stored = weights.load("smfanet-div2k-x4").upsampler.weight.detach()  # (3 * 16, 36, 3, 3)
    chosen = torch.randperm(36, generator=torch.Generator().manual_seed(1))[:4]
    torch.testing.assert_close(found[2, 0, 1, 2, 3, 1] / found[0, 3, 0, 0, 0, 0],
                               stored[2 * 16 + 13, chosen[0], 1, 2] / stored[0, chosen[3], 0, 0])  # fmt: skip


def test_the_record_is_whole_and_says_what_the_notebook_says():
    table = spectral_study.recorded_kernel_fits()
    assert set(table["kernel"]) == set(spectral_study.REAL_KERNELS)
    assert set(table["way"]) == set(spectral_study.WAYS)
    assert not table.duplicated(["kernel", "way", "seed", "step", "level"]).any()
    middle = sorted(table["step"].unique())[2]
    summary = spectral_study.kernel_summary(table, middle).set_index(["group", "name"])["mean"]
    released, fast = (summary[name] for name in list(spectral_study.WAYS)[1:])
    assert released["3 half turns"] > 5 * released["mean over the pixel"]
    assert fast["3 half turns"] < released["3 half turns"] / 3


def test_courses_are_means_over_kernels_and_seeds():
    table = spectral_study.recorded_kernel_fits()
    courses = spectral_study.kernel_courses(table)
    assert list(courses) == list(spectral_study.WAYS)
    for way, lines in courses.items():
        assert list(lines) == ["mean", "1 half turn", "2 half turns", "3 half turns"]
        for level, (steps, errors) in enumerate(lines.values()):
            assert steps.tolist() == sorted(table["step"].unique())
            asked = (table["way"] == way) & (table["level"] == level) & (table["step"] == steps[-1])
            assert errors[-1] == pytest.approx(table.loc[asked, "error"].mean())


def test_a_record_that_is_not_there_is_not_computed_in_passing(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "repo_data", lambda *parts: tmp_path.joinpath(*parts))
    monkeypatch.setattr(weights, "card", lambda name: type("Card", (), {"sha256": name}))
    with pytest.raises(runtime.RecordError, match="SRLAB_RECORD"):
        spectral_study.recorded_kernel_fits()
