import numpy as np
import pytest
import torch
import torch.nn.functional as F

from srlab import alignment, kernels

PAIRS = [(2, 3), (2, 4), (3, 4)]


def smooth_maps(pictures, channels, size, generator):
    """Features in which neighbouring pixels resemble each other and channels overlap, as an encoder's do."""
    noise = torch.randn(pictures, channels, size, size, generator=generator, dtype=torch.float64)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64) / channels**0.5
    maps = F.avg_pool2d(noise, 3, stride=1, padding=1) * 3 + 0.3 * noise
    return torch.einsum("dc,pchw->pdhw", mixing + torch.eye(channels, dtype=torch.float64), maps)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_phase_images_are_what_one_bright_pixel_paints(scale):
    weight = torch.randn(3 * scale**2, 1, 3, 3)
    lr = torch.zeros(1, 1, 3, 3)
    lr[..., 1, 1] = 1.0
    sr = F.pixel_shuffle(F.conv2d(lr, weight, padding=1), scale)  # (1, 3, 3*scale, 3*scale)

    phases = kernels.phase_images(weight, scale)[:, 0].flip(1, 2)  # conv2d correlates: taps are mirrored
    painted = phases.permute(0, 1, 3, 2, 4).reshape(3, 3 * scale, 3 * scale)
    torch.testing.assert_close(painted, sr[0])
    torch.testing.assert_close(kernels.paint(kernels.phase_images(weight, scale))[:, 0], sr[0])


def test_phase_images_share_memory_and_assemble_takes_them_back():
    weight = torch.randn(27, 4, 3, 3)
    phases = kernels.phase_images(weight, 3)
    assert phases.shape == (3, 4, 3, 3, 3, 3)
    assert phases.data_ptr() == weight.data_ptr()
    assert torch.equal(kernels.assemble(phases), weight)


def test_a_kernel_of_another_scale_is_refused():
    with pytest.raises(ValueError, match=r"12 output channels, not a multiple of scale\*\*2 = 9"):
        kernels.phase_images(torch.zeros(12, 4, 3, 3), 3)
    with pytest.raises(ValueError, match="is it a convolution's"):
        kernels.phase_images(torch.zeros(12, 4), 2)


def test_kernel_field_is_the_luma_of_the_summed_painting_over_nine():
    """All taps lit at once: every LR pixel bright, read at the middle one."""
    weight = torch.randn(3 * 16, 2, 3, 3)
    for channel in range(2):
        lr = torch.zeros(1, 2, 3, 3)
        lr[:, channel] = 1.0
        r, g, b = F.pixel_shuffle(F.conv2d(lr, weight), 4)[0]
        expected = (0.2126 * r + 0.7152 * g + 0.0722 * b) / 9
        torch.testing.assert_close(kernels.kernel_field(kernels.phase_images(weight, 4))[channel], expected)


@pytest.mark.parametrize("scale_from", [2, 3, 4, 5])
@pytest.mark.parametrize("scale_to", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("method", "degree"), [("linear", 1), ("cubic", 3)])
def test_resampling_is_exact_for_polynomials(scale_from, scale_to, method, degree):
    degree = min(degree, scale_from - 1)
    coefficients = torch.randn(degree + 1, degree + 1, dtype=torch.float64)

    def sampled(scale):
        at = [-1 + (2 * v + 1) / scale for v in range(scale)]
        return torch.tensor(np.polynomial.polynomial.polygrid2d(at, at, coefficients.numpy()))

    torch.testing.assert_close(kernels.resample(sampled(scale_from), scale_to, method), sampled(scale_to))


@pytest.mark.parametrize(("fine", "coarse"), [(3, 2), (4, 2), (4, 3), (5, 3), (8, 3)])
def test_linear_resampling_to_a_coarser_grid_is_plain_interpolation(fine, coarse):
    values = np.random.default_rng(0).normal(size=fine)
    old, new = (np.arange(n) / n + 0.5 / n for n in (fine, coarse))
    line = torch.tensor(values)[:, None].expand(fine, fine)
    expected = np.interp(new, old, values)  # holds the outermost value beyond the outermost centre
    assert kernels.resample(line, coarse)[:, 0].numpy() == pytest.approx(expected, abs=1e-12)


def test_area_resampling_averages_what_a_cell_covers():
    """Repeated up to a common multiple of both grids, a cell of the new one is a block to be averaged."""
    phases = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    repeated = phases.repeat_interleave(3, -1).repeat_interleave(3, -2)
    torch.testing.assert_close(kernels.resample(phases, 3, "area"), F.avg_pool2d(repeated, 4))
    for scale in (1, 2, 5):
        torch.testing.assert_close(kernels.resample(phases, scale, "area").mean((-1, -2)), phases.mean((-1, -2)))
    with pytest.raises(ValueError, match="expected one of linear, cubic, area"):
        kernels.resample(phases, 2, "nearest")


def test_correlations_are_numpys():
    a, b = torch.randn(2, 3, 5, 3, 3, 3, 3, dtype=torch.float64) + 0.4
    b = b + 0.5 * a
    found = kernels.correlate(a, b)
    averages = [x.mean((-1, -2)) for x in (a, b)]
    deviations = [x - m[..., None, None] for x, m in zip((a, b), averages, strict=True)]
    for value, (x, y) in [(found.whole, (a, b)), (found.mean, averages), (found.varying, deviations)]:
        assert value == pytest.approx(np.corrcoef(x.flatten(), y.flatten())[0, 1], abs=1e-12)
    assert found.share_a == pytest.approx(float(deviations[0].var() / a.var()), abs=1e-12)


def test_a_part_that_does_not_vary_has_no_correlation():
    flat = torch.randn(3, 5, 3, 3, 1, 1).expand(-1, -1, -1, -1, 2, 2)
    found = kernels.correlate(flat, torch.randn(3, 5, 3, 3, 4, 4))
    assert np.isnan(found.varying)
    assert found.share_a == pytest.approx(0)
    assert np.isfinite([found.whole, found.mean]).all()
    with pytest.raises(ValueError, match="share no channels"):
        kernels.correlate(flat, torch.randn(3, 6, 3, 3, 4, 4))


def test_functional_correlation_is_that_of_the_painted_pictures():
    feats = smooth_maps(4, 5, 9, torch.Generator().manual_seed(0)) + 2
    fine, coarse = torch.randn(48, 5, 3, 3, dtype=torch.float64), torch.randn(12, 5, 3, 3, dtype=torch.float64)
    a, b = kernels.phase_images(coarse, 2), kernels.phase_images(fine, 4)
    covariance = alignment.pooled_covariance(alignment.patch_covariance(feats, 3))
    found = kernels.functional_correlation(a, b, covariance)

    painted = [F.conv2d(feats, coarse), F.conv2d(feats, fine)]  # patches inside the pictures only
    painted[1] = F.avg_pool2d(F.pixel_shuffle(painted[1], 4), 2)  # from x4 to x2 "linear" is the mean of 2 x 2
    painted[0] = F.pixel_shuffle(painted[0], 2)
    blocks = [p.unflatten(2, (7, 2)).unflatten(4, (7, 2)) for p in painted]  # (P, 3, 7, 2, 7, 2)
    centred = [block - block.mean((0, 2, 4), keepdim=True) for block in blocks]
    averages = [block.mean((3, 5), keepdim=True) for block in centred]
    deviations = [block - average for block, average in zip(centred, averages, strict=True)]
    for value, (x, y) in [(found.whole, centred), (found.mean, averages), (found.varying, deviations)]:
        assert value == pytest.approx(np.corrcoef(x.flatten(), y.flatten())[0, 1], abs=1e-9)


def test_a_carried_kernel_paints_what_the_kernel_paints_after_the_map():
    feats = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    matrix = torch.randn(6, 4, dtype=torch.float64)
    weight = torch.randn(12, 6, 3, 3, dtype=torch.float64)
    mapped = torch.einsum("ba,pahw->pbhw", matrix, feats)
    torch.testing.assert_close(F.conv2d(feats, kernels.carry(weight, matrix)), F.conv2d(mapped, weight))
    phases = kernels.phase_images(weight, 2)
    torch.testing.assert_close(kernels.assemble(kernels.carry(phases, matrix)), kernels.carry(weight, matrix))

    aligned = kernels.align(weight, feats, mapped + 3.0)
    torch.testing.assert_close(aligned.weight, kernels.carry(weight, matrix), rtol=1e-5, atol=1e-5)
    assert aligned.map.r2 > 0.999999
    with pytest.raises(ValueError, match="the kernel reads 6 channels, feats_to has 4"):
        kernels.align(weight, mapped, feats)


def test_shuffles_keep_what_they_do_not_destroy():
    generator = torch.Generator().manual_seed(3)
    phases = torch.randn(3, 8, 3, 3, 3, 3)
    channels = kernels.shuffle_channels(phases, generator)
    assert sorted(channels[0, :, 0, 0, 0, 0].tolist()) == sorted(phases[0, :, 0, 0, 0, 0].tolist())
    shuffled = kernels.shuffle_sub_pixels(phases, generator)
    assert not torch.equal(shuffled, phases)
    torch.testing.assert_close(shuffled.mean((-1, -2)), phases.mean((-1, -2)))
    order = [phases[0, 2, 0, 0].flatten().tolist().index(v) for v in shuffled[0, 2, 0, 0].flatten().tolist()]
    torch.testing.assert_close(shuffled[:, 2].flatten(-2), phases[:, 2].flatten(-2)[..., order])  # all colours and taps


def test_smooth_random_kernels_are_one_function_at_every_scale():
    """Odd multiples of a scale sample the same places; neighbouring pixels meet without a step."""
    fine, coarse = (kernels.smooth_random_phases(6, r, torch.Generator().manual_seed(1)) for r in (9, 3))
    torch.testing.assert_close(kernels.paint(fine)[..., 1::3, 1::3], kernels.paint(coarse))
    painted = kernels.paint(fine)[0]
    steps = painted.diff(dim=-1).abs().amax((0, 1))  # between neighbouring columns
    assert steps[[8, 17]].max() < 1.3 * steps.max()
    assert steps.max() < 0.5 * painted.std() * 2
    many = kernels.paint(kernels.smooth_random_phases(3000, 2, torch.Generator().manual_seed(1)))[0]
    at_distance_one = (many[:, 0, 0] * many[:, 0, 2]).mean() / many[:, 0, 0].square().mean()
    assert at_distance_one == pytest.approx(np.exp(-1 / 2), abs=0.06)


def test_permutation_p_counts_the_value_itself():
    assert kernels.permutation_p(0.9, [0.1, -0.2, 0.3]) == 0.25
    assert kernels.permutation_p(0.2, [0.1, -0.2, 0.3]) == 0.75
    assert np.isnan(kernels.permutation_p(0.2, [0.1, float("nan")]))


def simulated(seed, mixing_noise=0.05, kernel_noise=0.3):
    """Kernels of three scales that sample one smooth field, each read through channels mixed in a way of its own.

    Returns per scale the kernel before mixing (with its noise), the kernel as a model would store it, and features.
    """
    generator = torch.Generator().manual_seed(seed)
    channels, made = 10, {}
    latent = smooth_maps(12, channels, 14, generator)
    frequency, phase = (torch.rand(2, channels, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    for scale in (2, 3, 4):
        at = torch.tensor([tap + (2 * v + 1) / (2 * scale) - 0.5 for tap in (1, 0, -1) for v in range(scale)])
        waves = [torch.cos(4 * f[..., None] * at + 6.3 * p[..., None]) for f, p in zip(frequency, phase, strict=True)]
        painted = (waves[0][..., :, None] * waves[1][..., None, :]).sum(1)  # (C, 3 * scale, 3 * scale)
        field = painted.unflatten(1, (3, scale)).unflatten(3, (3, scale)).permute(0, 1, 3, 2, 4)
        disturbed = field + kernel_noise * torch.randn(3, *field.shape, generator=generator, dtype=torch.float64)
        mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
        feats = torch.einsum("dc,pchw->pdhw", mixing, latent)
        feats = feats + mixing_noise * feats.std() * torch.randn(feats.shape, generator=generator, dtype=torch.float64)
        stored = torch.einsum("gc...,cd->gd...", disturbed, torch.linalg.inv(mixing))
        # as kernel A of a pair reads its own, mixed channels, the truth for that pair is carried there as well
        made[scale] = {"truth": disturbed, "mixing": mixing, "stored": stored, "feats": feats}
    return made


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_simulated_kernels_are_recovered_by_alignment_and_by_nothing_else(a, b):
    made = simulated(seed=5)
    table = kernels.compare(
        made[a]["stored"], made[b]["stored"], made[a]["feats"], made[b]["feats"], draws=99, resamples=200
    ).set_index(["basis", "part"])
    in_channels_of_a = torch.linalg.inv(made[a]["mixing"])
    kernel_b = torch.einsum("gc...,cd->gd...", made[b]["truth"], in_channels_of_a)
    for part in kernels.PARTS:
        truth = getattr(kernels.correlate(made[a]["stored"], kernel_b), part)
        assert truth > 0.5
        aligned = table.loc["aligned", part]
        assert aligned.low < truth < aligned.high
        assert aligned.high - aligned.low < 0.2
        assert aligned.p_channels == aligned.p_smooth == 0.01
        assert abs(table.loc["same channel", part].value) < truth / 2
        assert table.loc["functional", part].value > 0.5
    assert table.loc["aligned", "varying"]["p_sub-pixels"] == 0.01
    assert np.isnan(table.loc["aligned", "mean"]["p_sub-pixels"])


def test_unrelated_kernels_stay_among_their_nulls():
    made, other = simulated(seed=1), simulated(seed=2)
    table = kernels.compare(
        made[2]["stored"],
        other[4]["stored"],
        made[2]["feats"],
        made[4]["feats"],
        untrained=[torch.randn(3, 10, 3, 3, 4, 4)],
        draws=99,
        resamples=50,
    )
    varying = table[table.part == "varying"]
    assert (varying.p_channels > 0.02).all()
    assert varying.null_untrained.notna().all()
    again = kernels.compare(
        made[2]["stored"], other[4]["stored"], made[2]["feats"], made[4]["feats"], draws=2, resamples=2
    )
    assert again.value.tolist() == table.value.tolist()
