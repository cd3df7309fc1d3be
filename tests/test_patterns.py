"""Test patterns: what they hold, and what a lens sees of what comes back."""

import pytest
import torch

from srlab import patterns, resize, spectra


@pytest.mark.parametrize("name", patterns.PATTERNS)
def test_patterns_are_colour_pictures_with_contrast(name):
    picture = patterns.pattern(name, 96, 0.1)
    assert picture.shape == (3, 96, 96)
    assert picture.dtype == torch.float32
    assert 0 <= picture.min() < 0.25 < 0.75 < picture.max() <= 1


def test_only_the_grating_depends_on_the_frequency():
    for name in patterns.PATTERNS:
        same = torch.equal(patterns.pattern(name, 48, 0.1), patterns.pattern(name, 48, 0.2))
        assert same == (name != "grating")
    with pytest.raises(ValueError, match="zone plate"):
        patterns.pattern("stripes", 48, 0.1)


def test_the_photograph_is_cut_from_one_corner_and_no_larger_than_it_is():
    small, largest = (patterns.pattern("photo", size, 0.1) for size in (96, 362))
    assert largest.shape == (3, 362, 362)
    assert torch.equal(largest[:, :96, :96], small)
    with pytest.raises(ValueError, match="size is 363, expected at most 362"):
        patterns.pattern("photo", 363, 0.1)
    with pytest.raises(ValueError, match="size is 400, expected at most 362"):
        patterns.Lens({}, (0.1,), scale=4, size=400)


def test_octaves_side_by_side_share_out_the_picture():
    picture = torch.randn(2, 40, 40, generator=torch.Generator().manual_seed(0))
    centres = [0.5 / 2**0.5 / 2**n for n in range(8)]  # octaves that touch, from 0.5 down
    parts = [patterns.octave(picture, centre) for centre in centres]
    whole = sum(parts)
    mirrored = torch.cat([picture, picture.flip(-1)], -1)
    spectrum = torch.fft.rfft2(torch.cat([mirrored, mirrored.flip(-2)], -2))
    f = torch.hypot(torch.fft.fftfreq(80)[:, None], torch.fft.rfftfreq(80)[None])
    expected = torch.fft.irfft2(spectrum * ((f > 0) & (f <= 0.5)), s=(80, 80))[:, :40, :40]
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-4)


def test_an_octave_holds_its_grating_and_no_other():
    grating = spectra.grating(128, 0.125, angle=30.0)[0] - 0.5
    middle = (slice(16, 112), slice(16, 112))
    assert patterns.octave(grating, 0.125)[middle].std() > 0.8 * grating.std()
    assert patterns.octave(grating, 0.3)[middle].std() < 0.15 * grating.std()


def test_a_lens_sees_what_was_kept_and_what_was_lost():
    methods = {"the truth": lambda lr, scale: lens_truth, "bicubic": resize.imresize}
    stops = (0.05, 0.3)
    lens_truth = torch.stack([patterns.pattern("grating", 64, stop) for stop in stops])
    monkey = dict(methods)

    def truth(lr, scale):
        return lens_truth if len(lr) == 2 else resize.imresize(lr, scale)

    monkey["the truth"] = truth
    lens = patterns.Lens(monkey, stops, scale=4, size=64)
    slow, fast = lens.look("grating", 0.05), lens.look("grating", 0.3)
    assert list(slow.pictures) == ["true", "the truth", "bicubic"]
    for view in (slow, fast):
        assert view.gain["the truth"] == pytest.approx(1, abs=1e-4)
        assert view.agreement["the truth"] == pytest.approx(1, abs=1e-4)
    assert slow.agreement["bicubic"] > 0.95
    assert fast.gain["bicubic"] < 0.2  # 0.3 is beyond 1/8, the finest that the small picture holds
    assert torch.equal(lens.look("grating", 0.29).pictures["true"], fast.pictures["true"])  # the nearest stop
    with pytest.raises(ValueError, match="zone plate"):
        lens.look("stripes", 0.1)


def test_a_size_that_is_no_multiple_is_refused():
    with pytest.raises(ValueError, match="multiple of the scale"):
        patterns.Lens({}, (0.1,), scale=4, size=66)
