"""Facts about scores: what scikit-image says by the same conventions, what the literature printed, what is refused."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from srlab import datasets, images, metrics
from srlab.metrics import Protocol, psnr_y, ssim_y
from srlab.resize import imresize

# Bicubic rows that super-resolution tables have repeated since VDSR (Kim et al. 2016): (set, scale) -> PSNR, SSIM.
PRINTED = {
    ("set5", 2): (33.66, 0.9299),
    ("set5", 3): (30.39, 0.8682),
    ("set5", 4): (28.42, 0.8104),
    ("set14", 2): (30.24, 0.8688),
    ("set14", 3): (27.55, 0.7742),
    ("set14", 4): (26.00, 0.7027),
}


@pytest.fixture
def pair():
    """A smooth picture with a flat area, and the same with noise: (3, 60, 83), uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (3, 6, 9), generator=generator).float()
    hr = images.to_uint8(imresize(coarse, 10)[:, :, :83] / 255)
    hr[:, :20, :30] = 250
    noise = torch.randint(-20, 21, hr.shape, generator=generator)
    return (hr.int() + noise).clamp(0, 255).to(torch.uint8), hr


def inner(picture, border):
    """(3, H, W) -> (h, w, 3) array without its border."""
    picture = picture.permute(1, 2, 0).numpy()
    return picture[border : picture.shape[0] - border, border : picture.shape[1] - border]


def reference_ssim(sr, hr):
    """scikit-image with the window of Wang et al.; only positions where the window fits."""
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255, "full": True}
    return structural_similarity(sr, hr, **options)[1][5:-5, 5:-5].mean()


# --- values ---


@pytest.mark.parametrize("border", [0, 3])
def test_scores_are_those_of_scikit_image_on_its_own_luma(pair, border):
    luma = [rgb2ycbcr(inner(picture, border))[..., 0] for picture in pair]
    assert psnr_y(*pair, border) == pytest.approx(peak_signal_noise_ratio(luma[1], luma[0], data_range=255), abs=1e-6)
    assert ssim_y(*pair, border) == pytest.approx(reference_ssim(*luma), abs=1e-7)


def test_rgb_scores_average_the_channels(pair):
    protocol, (sr, hr) = Protocol(channel="rgb", border=2), [inner(picture, 2).astype(float) for picture in pair]
    assert protocol.psnr(*pair) == pytest.approx(peak_signal_noise_ratio(hr, sr, data_range=255), abs=1e-6)
    expected = np.mean([reference_ssim(sr[..., channel], hr[..., channel]) for channel in range(3)])
    assert protocol.ssim(*pair) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("channel", ["y", "rgb"])
def test_float_scores_without_rounding(pair, channel):
    """Random floats, a little outside [0, 1] too, which only an unquantised protocol sees."""
    _, hr = (images.to_float(picture) for picture in pair)
    sr = hr + 0.05 * torch.randn(hr.shape, generator=torch.Generator().manual_seed(1))
    protocol = Protocol(channel=channel, border=1, quantise=False)
    planes = [
        rgb2ycbcr(inner(p.double(), 1))[..., :1] if channel == "y" else 255 * inner(p.double(), 1) for p in (sr, hr)
    ]
    assert protocol.psnr(sr, hr) == pytest.approx(peak_signal_noise_ratio(*planes, data_range=255), abs=1e-5)
    ssims = [reference_ssim(planes[0][..., c], planes[1][..., c]) for c in range(planes[0].shape[-1])]
    assert protocol.ssim(sr, hr) == pytest.approx(np.mean(ssims), abs=1e-6)
    assert Protocol(channel=channel, border=1).psnr(sr, hr) > protocol.psnr(sr, hr)  # clamping removes error


def test_ssim_by_its_definition_at_one_position():
    """On 11 x 11 pixels the window fits once: the formula of Wang et al. with weighted moments, by hand."""
    x, y = torch.randint(0, 256, (2, 11, 11), generator=torch.Generator().manual_seed(0)).double().numpy()
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    mx, my = (window * x).sum(), (window * y).sum()
    vx, vy, cov = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum(), (window * (x - mx) * (y - my)).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    grey = [torch.from_numpy(plane).to(torch.uint8).expand(3, 11, 11) for plane in (x, y)]
    assert Protocol(channel="rgb", border=0).ssim(*grey) == pytest.approx(expected, abs=1e-12)


def test_identical_pictures(pair):
    _, hr = pair
    assert psnr_y(hr, hr, 2) == math.inf
    assert ssim_y(hr, hr, 2) == 1
    assert psnr_y(images.to_float(hr), hr, 2) == math.inf
    assert psnr_y(images.to_float(hr) + 0.4 / 255, hr, 2) == math.inf  # less than half a grey level is rounded away


def test_one_grey_level_is_48_dB_in_rgb_and_more_in_luma():
    hr = torch.full((3, 20, 20), 100, dtype=torch.uint8)
    assert Protocol(channel="rgb", border=0).psnr(hr + 1, hr) == pytest.approx(20 * math.log10(255))
    assert psnr_y(hr + 1, hr, 0) == pytest.approx(20 * math.log10(255 * 255 / 219))  # luma spans 219 of 255 levels


def test_batch_of_one_float_and_any_side_swapped_score_alike(pair):
    sr, hr = pair
    score = psnr_y(sr, hr, 4), ssim_y(sr, hr, 4)
    assert (psnr_y(sr[None], hr, 4), ssim_y(sr, hr[None], 4)) == score
    assert (psnr_y(hr, sr, 4), ssim_y(hr, sr, 4)) == pytest.approx(score)
    assert (psnr_y(images.to_float(sr), hr, 4), ssim_y(images.to_float(sr), images.to_float(hr), 4)) == score
    assert psnr_y((images.to_float(sr) - 1).requires_grad_() + 1, hr, 4) == pytest.approx(score[0])


def test_only_the_inside_counts(pair):
    sr, hr = pair
    spoilt = sr.clone()
    spoilt[:, :3] = spoilt[:, -3:] = spoilt[:, :, :3] = spoilt[:, :, -3:] = 0
    assert psnr_y(spoilt, hr, 3) == psnr_y(sr, hr, 3)
    assert ssim_y(spoilt, hr, 3) == ssim_y(sr, hr, 3)
    assert psnr_y(spoilt, hr, 2) < psnr_y(sr, hr, 2)


@pytest.mark.parametrize("height", [11, 26, 27, 43])  # around the height of the strips SSIM works in
def test_ssim_does_not_depend_on_how_the_picture_is_cut_into_strips(pair, height):
    sr, hr = (picture[:, :height] for picture in pair)
    luma = [rgb2ycbcr(inner(picture, 0))[..., 0] for picture in (sr, hr)]
    assert ssim_y(sr, hr, 0) == pytest.approx(reference_ssim(*luma), abs=1e-7)


def test_an_inconsistent_channel_moves_the_score(pair):
    """What the conventions are worth on one pair: none of them agrees with another."""
    protocols = [Protocol(), Protocol(border=0), Protocol(channel="rgb"), Protocol(round_y=True)]
    scores = [protocol.psnr(*pair, scale=3) for protocol in protocols]
    assert len({round(score, 3) for score in scores}) == len(protocols)
    assert scores[2] < scores[0]  # RGB reads lower than luma: noise in three channels, range 255 instead of 219


# --- the literature ---


def old_matlab_scores(hr, scale, stored_grey):
    """Bicubic as the rows were made: LR kept in floats, SR rounded to 8 bits, Y rounded, grey files as they are."""
    lr = imresize(images.to_float(hr), Fraction(1, scale))
    sr = images.to_uint8(imresize(lr, scale))
    protocol = Protocol(channel="rgb") if stored_grey else Protocol(round_y=True)
    return protocol.psnr(sr, hr, scale), protocol.ssim(sr, hr, scale)


@pytest.mark.benchmark_data("set5", "set14")
@pytest.mark.parametrize(("name", "scale"), PRINTED)
def test_bicubic_scores_as_printed(name, scale):
    """`bridge` of Set14 is a grey file: MATLAB scored its 0..255 as it is, not a luma of 16..235 (1.3 dB apart)."""
    benchmark = datasets.load(name)
    scores = []
    for index, picture in enumerate(benchmark.names):
        _, hr = benchmark.pair(index, scale)
        scores.append(old_matlab_scores(hr, scale, stored_grey=picture == "bridge"))
    psnr, ssim = np.mean(scores, axis=0)
    assert psnr == pytest.approx(PRINTED[name, scale][0], abs=0.02)
    assert ssim == pytest.approx(PRINTED[name, scale][1], abs=0.0005)


@pytest.mark.benchmark_data("set5")
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_todays_protocol_reads_a_little_higher_than_the_printed_rows(scale):
    """8-bit LR files, Y not rounded: the same bicubic gains about a hundredth of a dB and up to 0.0008."""
    benchmark = datasets.load("set5")
    scores = []
    for index in range(len(benchmark)):
        lr, hr = benchmark.pair(index, scale)
        sr = imresize(lr, scale)
        scores.append((psnr_y(sr, hr, scale), ssim_y(sr, hr, scale)))
    gain = np.mean(scores, axis=0) - PRINTED["set5", scale]
    assert 0 < gain[0] < 0.02
    assert 0 < gain[1] < 0.0008


# --- words ---


def test_line_says_every_choice():
    line = metrics.STANDARD.line(scale=3)
    for word in ("luma Y", "BT.601", "not rounded", "8-bit", "3 px cut", "matlab bicubic", "mean over pictures"):
        assert word in line
    assert "as many pixels as the scale" in metrics.STANDARD.line()
    other = Protocol("rgb", border=0, quantise=False, resizer="Pillow").line(scale=3)
    for word in ("R, G and B", "float pictures", "0 px cut", "Pillow bicubic"):
        assert word in other


# --- bad input ---


def test_unequal_sizes_name_both_and_the_likely_cause(pair):
    sr, hr = pair
    with pytest.raises(ValueError, match=r"sr is 60 x 82, hr is 60 x 83 .* multiple of the scale"):
        psnr_y(sr[..., :-1], hr, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x.numpy(), TypeError, "ndarray"),
        (lambda x: x.int(), TypeError, "torch.int32"),
        (lambda x: x[:1], ValueError, "is it grey"),
        (lambda x: x.permute(1, 2, 0), ValueError, "channels last"),
        (lambda x: torch.stack([x, x]), ValueError, "2 pictures: score them one by one"),
        (lambda x: x.float() / 255 * torch.nan, ValueError, "sr holds NaN"),
    ],
)
@pytest.mark.parametrize("protocol", [Protocol(), Protocol(quantise=False)])
def test_what_cannot_be_scored(pair, change, error, message, protocol):
    sr, hr = pair
    for score in (protocol.psnr, protocol.ssim):
        with pytest.raises(error, match=message):
            score(change(sr), hr, 2)


def test_floats_up_to_255_are_refused(pair):
    sr, hr = pair
    with pytest.raises(ValueError, match=r"float pictures lie in \[0, 1\]"):
        psnr_y(sr.float(), hr.float(), 2)


@pytest.mark.parametrize("protocol", [Protocol(), Protocol(quantise=False)])
@pytest.mark.parametrize("damage", [lambda x: x.float(), lambda x: x / 255 + torch.inf, lambda x: x / 255 - torch.inf])
def test_an_output_far_from_what_pictures_hold_is_refused(pair, damage, protocol):
    """255 for white would be clamped to a picture of 1, and lose without a word to any other model."""
    _, hr = pair
    for score in (protocol.psnr, protocol.ssim):
        with pytest.raises(ValueError, match=r"sr holds values up to .*: float pictures lie in \[0, 1\]"):
            score(damage(hr), hr, 2)
    assert protocol.psnr(hr.float() / 255 * 3 - 1, hr, 2) < 20  # a bad model, but a picture


def test_borders_that_make_no_sense(pair):
    with pytest.raises(ValueError, match=r"a border of 30 .* leaves nothing of 60 x 83"):
        psnr_y(*pair, 30)
    assert psnr_y(*pair, np.int64(2)) == psnr_y(*pair, 2)
    for border in (-1, 2.0, True, None):
        with pytest.raises(ValueError, match="border"):
            psnr_y(*pair, border)
    with pytest.raises(ValueError, match="pass scale"):
        metrics.STANDARD.psnr(*pair)


def test_ssim_needs_room_for_one_window(pair):
    with pytest.raises(ValueError, match=r"11 x 11 .* got 10 x 33"):
        ssim_y(*pair, 25)
    assert psnr_y(*pair, 25) > 0


def test_unknown_channel_lists_the_known():
    with pytest.raises(ValueError, match='"y" or "rgb"'):
        Protocol(channel="luma")
