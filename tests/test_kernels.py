import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge

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


def simulated(seed, kernel_noise=0.3, channels=10):
    """Three models: one smooth field sampled at x2, x3 and x4 and disturbed, read through channels mixed in three ways.

    Returns:
        Per scale: `stored`, the kernel as that model would have it; `feats`, its features; `mixing`, its features from
        those all three have in common; `kernel`, the kernel for those.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    common = smooth_maps(12, channels, 14, generator)
    frequency, phase = (4 * torch.rand(2, channels, 3, 1, generator=generator) for _ in range(2))
    models = {}
    for scale in (2, 3, 4):
        # a bright pixel paints sub-pixel v of its neighbour at `tap` at this distance from its own middle
        at = torch.tensor([(2 * v + 1) / (2 * scale) - 0.5 - tap for tap in (-1, 0, 1) for v in range(scale)])
        down, across = torch.cos(frequency * at + phase)  # (C, waves, 3 * scale) each
        painted = torch.einsum("cwy,cwx->cyx", down, across)
        field = painted.unflatten(1, (3, scale)).unflatten(3, (3, scale)).permute(0, 1, 3, 2, 4)
        kernel = field + kernel_noise * normal(3, *field.shape)
        gains = 0.5 + 1.5 * torch.rand(channels, 1, generator=generator)
        mixing = gains * torch.linalg.qr(normal(channels, channels))[0]
        models[scale] = {
            "kernel": kernel,
            "mixing": mixing,
            "stored": torch.einsum("gc...,cd->gd...", kernel, torch.linalg.inv(mixing)),
            "feats": torch.einsum("dc,pchw->pdhw", mixing, common),
        }
    return models


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_simulated_kernels_are_recovered_by_alignment_and_not_without(a, b):
    models = simulated(seed=5)
    of_a, of_b = models[a], models[b]
    noise = torch.randn(of_b["feats"].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    table = kernels.compare(
        of_a["stored"], of_b["stored"], of_a["feats"], of_b["feats"] + 0.3 * noise, draws=99, resamples=200
    ).set_index(["basis", "part"])
    b_for_a = torch.einsum("gc...,cd->gd...", of_b["kernel"], torch.linalg.inv(of_a["mixing"]))
    truth = kernels.correlate(of_a["stored"], b_for_a)
    for part in kernels.PARTS:
        aligned, same = table.loc["aligned", part], table.loc["same channel", part]
        assert aligned.low < getattr(truth, part) < aligned.high
        assert aligned.low > 0.7
        assert aligned.p_channels == aligned.p_smooth == 0.01
        assert abs(same.value) < 0.3
        assert same.p_channels > 0.05
        assert 0.8 < aligned.r2_painted < 1
    assert table.loc["aligned", "varying"]["p_sub-pixels"] == 0.01
    assert np.isnan(table.loc["aligned", "mean"]["p_sub-pixels"])
    assert table.loc["functional", "varying"].low > 0.5


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    held, widths = [], []
    for seed in range(10):
        models, generator = simulated(seed), torch.Generator().manual_seed(1000 + seed)
        for a, b in PAIRS:
            of_a, of_b = models[a], models[b]
            noise = torch.randn(of_b["feats"].shape, generator=generator, dtype=torch.float64)
            found = kernels.align(kernels.assemble(of_b["stored"]), of_a["feats"], of_b["feats"] + 0.3 * noise).map
            draws = alignment.resampled_pictures(12, 40, generator)
            value, *resampled = (
                kernels.correlate(of_a["stored"], kernels.carry(of_b["stored"], matrix)).varying
                for matrix in (found.matrix, *(found.refit(weights) for weights in draws))
            )
            b_for_a = torch.einsum("gc...,cd->gd...", of_b["kernel"], torch.linalg.inv(of_a["mixing"]))
            interval = kernels.bootstrap_interval(value, resampled, 12)
            widths.append(interval.high - interval.low)
            held.append(not interval.excludes(kernels.correlate(of_a["stored"], b_for_a).varying))
    assert sum(held) >= 25  # of 30, where 28.5 are expected
    assert np.mean(widths) < 0.03  # values are off by 0.013 (standard deviation); [-1, 1] would always hold the truth


def test_painted_r2_is_one_minus_the_error_of_the_painting():
    """A map fitted without the picture, the kernel applied after it, against the kernel's own painting."""
    generator = torch.Generator().manual_seed(2)
    x = smooth_maps(4, 3, 10, generator)
    y = x[:, :2] * 2 + 0.5 * torch.randn(4, 2, 10, 10, generator=generator, dtype=torch.float64) + 1
    weight = torch.randn(12, 2, 3, 3, generator=generator, dtype=torch.float64)
    found = kernels.align(weight, x, y).map
    errors, totals = [], []
    for i in range(4):
        others = [j for j in range(4) if j != i]
        rows_x, rows_y = (each[others].movedim(1, -1).flatten(0, 2) for each in (x, y))
        model = Ridge(alpha=found.alpha * len(rows_x) * rows_x.var(0, correction=0).mean().item()).fit(rows_x, rows_y)
        predicted = torch.tensor(model.predict(x[i].flatten(1).T)).T.view(2, 10, 10)
        middle = rows_y.mean(0)[:, None, None]
        errors.append(F.pixel_shuffle(F.conv2d(y[i] - predicted, weight), 2))
        totals.append(F.pixel_shuffle(F.conv2d(y[i] - middle, weight), 2))
    phases = kernels.phase_images(weight, 2)
    survived = kernels.painted_r2(phases, found, x, y)
    error, total = torch.stack(errors), torch.stack(totals)
    assert survived["whole"] == pytest.approx(1 - float(error.square().sum() / total.square().sum()), abs=1e-9)
    error, total = F.avg_pool2d(error, 2), F.avg_pool2d(total, 2)
    assert survived["mean"] == pytest.approx(1 - float(error.square().sum() / total.square().sum()), abs=1e-9)


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


def test_features_that_make_no_number_are_refused_in_words():
    of_a, of_b = (simulated(seed=1)[scale] for scale in (2, 4))
    kernel_b, good_a, good_b = kernels.assemble(of_b["stored"]), of_a["feats"], of_b["feats"]
    with pytest.raises(ValueError, match="no pictures, expected some"):
        kernels.align(kernel_b, [], [])

    def compared(feats_a, feats_b, **settings):
        return kernels.compare(of_a["stored"], of_b["stored"], feats_a, feats_b, **settings)

    with pytest.raises(ValueError, match="no pictures, expected some"):
        compared([], [])
    with pytest.raises(ValueError, match=r"features of picture 0 are \(10, 2, 9\), expected at least 3 x 3 pixels"):
        compared(good_a[..., :2, :9], good_b[..., :2, :9])
    with pytest.raises(ValueError, match="no channel of feats_from varies"):
        compared(torch.zeros_like(good_a), good_b)
    for draws, resamples in ((0, 2), (1, 1)):
        with pytest.raises(ValueError, match=f"draws={draws} and resamples={resamples}, expected at least 1 and 2"):
            compared(good_a, good_b, draws=draws, resamples=resamples)
