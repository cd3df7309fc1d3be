"""Spectra: known answers for gratings, noise and zone plates, and energy balances."""

import math

import pytest
import torch
import torch.nn.functional as F

from srlab import resize, spectra


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def smooth(*shape, seed=0):
    """Noise with the falling spectrum of a photograph, roughly."""
    padded = noise(*shape[:-2], shape[-2] + 8, shape[-1] + 8, seed=seed)
    return F.avg_pool2d(padded, 9, stride=1) + 0.02 * noise(*shape, seed=seed + 1) + 0.5


# --- power -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frequency_bin", [1, 5, 16, 31])
@pytest.mark.parametrize("angle", [0, 90])
def test_pure_sine_lands_in_its_ring_with_its_power(frequency_bin, angle):
    picture = spectra.grating(64, frequency_bin / 64, angle)
    frequencies, power = spectra.radial_power_spectrum(picture, window="none", total=True)
    expected = torch.zeros(33)
    expected[0], expected[frequency_bin] = 0.5**2, 0.5**2 / 2  # mean 1/2, amplitude 1/2
    torch.testing.assert_close(power[0], expected, rtol=0, atol=1e-6)
    assert frequencies[frequency_bin].item() == frequency_bin / 64


def test_hann_keeps_a_sine_within_one_ring_of_its_own():
    _, power = spectra.radial_power_spectrum(spectra.grating(64, 10 / 64), total=True)
    assert power[0, 9:12].sum().item() == pytest.approx(1 / 8, abs=1e-5)
    assert power[0, 10].item() == pytest.approx(1 / 8 * 2 / 3, abs=2e-3)  # Hann's 1/4, 1/2, 1/4, squared


def test_diagonal_sine_lies_at_its_length_and_its_place_on_the_map():
    rows, columns = torch.arange(48.0)[:, None], torch.arange(64.0)
    picture = torch.cos(2 * math.pi * (6 * rows / 48 + 8 * columns / 64))[None]
    frequencies, power = spectra.radial_power_spectrum(picture, window="none", total=True)
    assert abs(frequencies[power[0].argmax()].item() - math.hypot(6 / 48, 8 / 64)) <= 0.5 / 48
    plane = spectra.power_map(picture, window="none")[0]
    fy, fx = spectra.frequency_axes(48, 64)
    peaks = {(round(fy[i].item() * 48), round(fx[j].item() * 64)) for i, j in (plane > 0.1).nonzero()}
    assert peaks == {(6, 8), (-6, -8)}


@pytest.mark.parametrize("window", ["hann", "none"])
@pytest.mark.parametrize("size", [(96, 96), (64, 81)])
def test_white_noise_is_flat_at_its_variance(window, size):
    frequencies, density = spectra.radial_power_spectrum(0.5 + 0.1 * noise(60, *size), window)
    density = density.mean(0)[frequencies > 0.05]
    torch.testing.assert_close(density, torch.full_like(density, 0.01), rtol=0.12, atol=0)
    octaves = spectra.band_errors(noise(60, *size), noise(60, *size, seed=1), window=window).relative
    # a ratio of two noises leans upwards where a band holds few coefficients, hence the upper bands only
    torch.testing.assert_close(octaves.mean(0)[2:], torch.full((3,), 2.0, dtype=torch.float64), rtol=0.1, atol=0)


@pytest.mark.parametrize("size", [(32, 32), (33, 40), (40, 27), (31, 31)])
def test_parseval(size):
    picture = smooth(2, 3, *size)
    _, rings = spectra.radial_power_spectrum(picture, window="none", total=True, corners=True)
    mean_square = picture.square().mean(dim=(-2, -1))
    torch.testing.assert_close(rings.sum(-1), mean_square, rtol=1e-6, atol=0)
    torch.testing.assert_close(spectra.power_map(picture, "none").sum(dim=(-2, -1)), mean_square, rtol=1e-6, atol=0)


def test_parseval_with_a_window_and_in_single_precision():
    picture = smooth(3, 50, 36).float()
    taper = torch.outer(torch.hann_window(50), torch.hann_window(36))
    mean = (picture * taper).sum(dim=(1, 2)) / taper.sum()
    rest = ((picture - mean[:, None, None]) * taper).square().sum(dim=(1, 2)) / taper.square().sum()
    _, rings = spectra.radial_power_spectrum(picture, total=True, corners=True)
    torch.testing.assert_close(rings.sum(-1), mean**2 + rest, rtol=2e-6, atol=0)


def test_map_is_the_full_transform():
    picture = noise(5, 6, 9)
    full = torch.fft.fft2(picture).abs().square() / (6 * 9) ** 2
    full = torch.fft.fftshift(full, dim=(-2, -1))
    torch.testing.assert_close(spectra.power_map(picture, "none"), full)
    for axis, size in zip(spectra.frequency_axes(6, 9), (6, 9), strict=True):
        torch.testing.assert_close(axis, torch.fft.fftshift(torch.fft.fftfreq(size)))


def test_spectrum_is_linear_and_batches_and_devices_do_not_mix():
    a, b = smooth(2, 3, 24, 30), smooth(2, 3, 24, 30, seed=5)
    torch.testing.assert_close(spectra.fourier(a - 2 * b), spectra.fourier(a) - 2 * spectra.fourier(b))
    _, together = spectra.radial_power_spectrum(a)
    assert together.shape == (2, 3, 13)
    torch.testing.assert_close(together[1, 2], spectra.radial_power_spectrum(a[1, 2])[1])
    eight_bit = (a.clamp(0, 1) * 255).round().to(torch.uint8)
    torch.testing.assert_close(spectra.fourier(eight_bit), spectra.fourier(eight_bit.float() / 255))


def test_rings_can_be_shared_by_pictures_of_different_size():
    shared = [spectra.radial_power_spectrum(noise(20, *size), rings=16) for size in ((64, 48), (33, 90))]
    torch.testing.assert_close(shared[0][0], shared[1][0])
    torch.testing.assert_close(shared[0][1].mean(0)[2:], shared[1][1].mean(0)[2:], rtol=0.3, atol=0)


def test_azimuthal_average_of_the_frequency_is_the_frequency():
    height, width = 40, 41
    length = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    frequencies, means = spectra.azimuthal_average(length, width)
    assert (means - frequencies).abs().max() < 0.25 / 20


def test_lines_of_a_pattern_of_period_8_are_removed_and_nothing_else():
    plain = noise(20, 128, 128)
    pattern = torch.zeros(128, 128, dtype=torch.float64)
    pattern[::8], pattern[:, ::8] = 1.0, 1.0
    _, expected = spectra.radial_power_spectrum(plain)
    _, lined = spectra.radial_power_spectrum(plain + pattern)
    _, cleaned = spectra.radial_power_spectrum(plain + pattern, lines=spectra.JPEG_LINES)
    rings = [16, 32, 48, 64]  # multiples of 1/8
    assert (lined.mean(0)[rings] > 1.5 * expected.mean(0)[rings]).all()
    torch.testing.assert_close(cleaned.mean(0)[4:], expected.mean(0)[4:], rtol=0.15, atol=0)
    with pytest.raises(ValueError, match="leave nothing"):
        spectra.radial_power_spectrum(noise(32, 32), lines=spectra.JPEG_LINES)


# --- sr against hr -----------------------------------------------------------------------------------------------


def test_identical_pictures_have_no_error_in_any_band():
    picture = smooth(2, 64, 64)
    errors = spectra.band_errors(picture, picture)
    assert errors.relative.shape == (2, len(spectra.OCTAVES) - 1)
    assert not errors.relative.any()
    assert errors.snr_db.isinf().all()
    torch.testing.assert_close(errors.gain, torch.ones_like(errors.gain))


def test_a_weakened_picture_errs_in_amplitude_and_a_shifted_one_in_phase():
    hr = smooth(3, 64, 64)
    weak = spectra.band_errors(0.9 * hr, hr, window="none")
    torch.testing.assert_close(weak.relative, torch.full_like(weak.relative, 0.01))
    torch.testing.assert_close(weak.amplitude, weak.relative)
    torch.testing.assert_close(weak.gain, torch.full_like(weak.gain, 0.81))
    torch.testing.assert_close(weak.snr_db, torch.full_like(weak.gain, 20.0))

    shifted = spectra.band_errors(hr.roll(1, dims=-1), hr, window="none")
    assert (shifted.amplitude < 1e-20).all()
    assert (shifted.phase.diff(dim=-1) > 0).all()  # one pixel is a larger angle for finer detail


def test_parts_add_up_and_bands_add_up_to_the_squared_error():
    hr, sr = smooth(4, 48, 48), smooth(4, 48, 48, seed=9)
    errors = spectra.band_errors(sr, hr, window="none", edges=(0, 0.1, 0.25, 0.7072))
    torch.testing.assert_close(errors.amplitude + errors.phase, errors.relative)
    signal = spectra.band_errors(0 * hr, hr, window="none", edges=(0, 0.7072))
    assert (signal.relative == 1).all()  # nothing at all costs the whole band
    difference = sr - hr
    rest = difference - difference.mean(dim=(-2, -1), keepdim=True)
    variance = (hr - hr.mean(dim=(-2, -1), keepdim=True)).square().mean(dim=(-2, -1))
    whole = spectra.band_errors(sr, hr, window="none", edges=(0, 0.7072)).relative[:, 0]
    torch.testing.assert_close(whole * variance, rest.square().mean(dim=(-2, -1)))


def test_bicubic_keeps_what_the_small_picture_knew_and_no_more():
    hr = spectra.zone_plate(192)[None]
    sr = resize.imresize(resize.imresize(hr, 1 / 4), 4)
    errors = spectra.band_errors(sr, hr)
    assert errors.relative[..., 1] < 0.02 < 0.9 < errors.relative[..., 3]
    assert (errors.gain[..., 3:] < 0.15).all()


def test_bad_pairs_and_bands_are_refused():
    hr = smooth(3, 32, 32)
    with pytest.raises(ValueError, match="same scale"):
        spectra.band_errors(hr[..., :-2], hr)
    with pytest.raises(ValueError, match="rising"):
        spectra.band_errors(hr, hr, edges=(0.5, 0.25))
    with pytest.raises(ValueError, match="too small for these bands"):
        spectra.band_errors(hr, hr, edges=(0, 0.01, 0.5))
    with pytest.raises(ValueError, match="diverged"):
        spectra.fourier(hr / 0)
    with pytest.raises(ValueError, match="hold no finer"):
        spectra.radial_power_spectrum(hr, rings=20)
    with pytest.raises(ValueError, match="'blackman'"):
        spectra.fourier(hr, "blackman")
    with pytest.raises(ValueError, match="sides of at least 4"):
        spectra.fourier(torch.zeros(3))


# --- ring correlation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", ["hann", "none"])
def test_identical_pictures_correlate_fully_in_every_ring(window):
    picture = smooth(2, 3, 64, 48)
    ring = spectra.ring_correlation(picture, 0.3 * picture + 0.1, window)  # brightness and contrast do not count
    torch.testing.assert_close(ring.correlation, torch.ones_like(ring.correlation))
    assert (ring.cutoff(ring.one_bit) == 0.5).all()


@pytest.mark.parametrize("window", ["hann", "none"])
def test_independent_noise_stays_under_the_one_bit_curve(window):
    ring = spectra.ring_correlation(noise(100, 96, 96), noise(100, 96, 96, seed=1), window)
    above = ring.correlation > ring.one_bit
    assert not above[:, 5:].any()
    assert above.double().mean() < 1e-3  # the lowest rings hold few coefficients
    assert ring.cutoff(ring.one_bit).mean() < 1e-3
    assert (ring.half_bit < ring.one_bit).all()


def test_signal_to_noise_of_one_half_meets_the_one_bit_curve():
    """Van Heel's limits for many coefficients: signal to noise 0.5 for one bit and 0.2071 for half a bit."""
    for signal_to_noise in (0.5, 0.2071):
        signal = signal_to_noise**0.5 * noise(1024, 1024)
        ring = spectra.ring_correlation(*(signal + noise(1024, 1024, seed=seed) for seed in (1, 2)), window="none")
        curve = ring.one_bit if signal_to_noise == 0.5 else ring.half_bit
        limit = signal_to_noise / (1 + signal_to_noise)
        assert ring.correlation[200:].mean().item() == pytest.approx(limit, abs=0.01)
        assert limit < curve[-1].item() < limit + 0.04
        assert curve[0] > curve[50] > curve[-1]  # few coefficients ask for more agreement


def test_cutoff_is_where_two_pictures_part():
    shared, own = torch.fft.rfft2(noise(10, 128, 128)), torch.fft.rfft2(noise(10, 128, 128, seed=1))
    length = torch.hypot(torch.fft.fftfreq(128)[:, None], torch.fft.rfftfreq(128)[None])
    a = torch.fft.irfft2(shared)
    b = torch.fft.irfft2(torch.where(length < 0.2, shared, own))
    ring = spectra.ring_correlation(a, b)
    for threshold in (ring.one_bit, ring.half_bit, 1 / 7):
        torch.testing.assert_close(
            ring.cutoff(threshold), torch.full((10,), 0.2, dtype=torch.float64), rtol=0, atol=0.02
        )
    assert ring.cutoff(2.0).eq(0).all()
    empty = spectra.ring_correlation(a, torch.zeros_like(a))
    assert not empty.correlation.any()


# --- replicas ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_zone_plate_through_nearest_shows_replicas_and_bicubic_does_not(scale):
    lr = spectra.zone_plate(96)[None]
    nearest = lr.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    energy = [
        spectra.replica_energy(sr, scale).item()
        for sr in (nearest, resize.imresize(lr, scale), spectra.zone_plate(96 * scale, 0.5 / scale))
    ]
    assert energy[0] > 0.03
    assert energy[1] < energy[0] / 100
    assert energy[2] < 1e-6


def test_replicas_of_nearest_x4_lie_at_multiples_of_a_quarter():
    lr = spectra.grating(32, 5 / 32)
    nearest = lr.repeat_interleave(4, -1).repeat_interleave(4, -2)
    frequencies, power = spectra.radial_power_spectrum(nearest, window="none", total=True)
    held = frequencies[power[0] > 1e-6]
    base = 5 / 128
    torch.testing.assert_close(held, torch.tensor([0, base, 0.25 - base, 0.25 + base, 0.5 - base]))
    away = spectra.replica_energy(nearest, 4, radius=base * 0.9, window="none")
    near = spectra.replica_energy(nearest, 4, radius=base * 1.1, window="none")
    assert away.item() < 1e-9
    assert near.item() == pytest.approx((power[0] * (frequencies > 0.1)).sum().item() / (1 / 8 * 0.9), rel=0.2)


def test_checkerboard_energy_is_the_power_at_the_lattice_of_the_spectrum():
    picture = smooth(2, 3, 48, 36)
    plane = torch.fft.fft2(picture).abs().square() / (48 * 36) ** 2
    lattice = plane[..., :: 48 // 4, :: 36 // 4]  # (2, 3, 4, 4), every frequency a multiple of 1/4
    expected = lattice.sum(dim=(-2, -1)) - lattice[..., 0, 0]
    torch.testing.assert_close(spectra.checkerboard_energy(picture, 4), expected)
    board = spectra.checker(64)
    assert spectra.checkerboard_energy(board, 2).item() == pytest.approx(0.25)
    assert spectra.checkerboard_energy(board, 3).item() < 1e-3
    with pytest.raises(ValueError, match="at least 2"):
        spectra.checkerboard_energy(board, 1)
    with pytest.raises(ValueError, match="at least 2"):
        spectra.replica_energy(board, 1)


def test_an_untrained_sub_pixel_convolution_prints_a_checkerboard_and_bicubic_none():
    torch.manual_seed(0)
    lr = smooth(1, 3, 24, 24).float()
    sr = F.pixel_shuffle(F.conv2d(lr, torch.randn(48, 3, 3, 3) / 5, torch.randn(48) / 5, padding=1), 4).detach()
    assert (
        spectra.checkerboard_energy(sr, 4).mean() > 100 * spectra.checkerboard_energy(resize.imresize(lr, 4), 4).mean()
    )


# --- test pictures -----------------------------------------------------------------------------------------------


def test_patterns_are_pictures():
    for picture in (
        spectra.zone_plate(33, channels=3),
        spectra.grating(33, 0.1, 30, channels=3),
        spectra.checker(33, 4, 3),
    ):
        assert picture.shape == (3, 33, 33)
        assert picture.dtype == torch.float32
        assert 0 <= picture.min() < 0.05 < 0.95 < picture.max() <= 1
    assert spectra.checker(4, 2)[0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]


def test_zone_plate_has_its_highest_frequency_at_the_middle_of_a_side():
    row = spectra.zone_plate(257, highest=0.25)[0, 128]
    crossings = ((row[:-1] - 0.5) * (row[1:] - 0.5) < 0).double()
    assert crossings[-16:].sum().item() / 2 / 16 == pytest.approx(0.25, abs=0.05)
    assert crossings[124:132].sum() == 0
