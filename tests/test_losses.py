"""Losses: known values, the scaling law of the frequency loss, and gradients."""

import math

import pytest
import torch

from srlab import losses


def pictures(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=dtype), torch.rand(*shape, generator=generator, dtype=dtype)


def dft_matrix(n):
    index = torch.arange(n, dtype=torch.float64)
    return torch.exp(-2j * math.pi * torch.outer(index, index) / n)


def test_l1_of_a_constant_offset_is_the_offset():
    _, hr = pictures(2, 3, 8, 8)
    assert losses.l1_loss(hr + 0.125, hr).item() == pytest.approx(0.125, abs=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (6, 11)])
def test_fft_loss_is_the_difference_of_two_spectra_summed_by_hand(size):
    sr, hr = pictures(2, 3, *size, dtype=torch.float64)
    height, width = size
    rows, columns = dft_matrix(height), dft_matrix(width)

    def spectrum(picture):  # the definition of the transform, its left half
        return (rows @ picture.to(torch.complex128) @ columns)[..., : width // 2 + 1]

    a, b = spectrum(sr), spectrum(hr)
    stacked = torch.stack([a.real - b.real, a.imag - b.imag])
    torch.testing.assert_close(losses.fft_loss(sr, hr, weight=0.3), 0.3 * stacked.abs().mean(), rtol=1e-10, atol=0)


def test_fft_loss_of_one_bright_pixel_counts_every_coefficient():
    hr = torch.zeros(1, 1, 4, 4)
    sr = hr.clone()
    sr[..., 0, 0] = 1.0  # all coefficients are 1 + 0i
    assert losses.fft_loss(sr, hr, weight=1.0).item() == pytest.approx(0.5)


@pytest.mark.parametrize(("side", "ratio"), [(96, 3.4), (144, 5.1), (192, 6.8)])
def test_frequency_loss_outweighs_l1_by_the_stated_factor_for_a_white_residual(side, ratio):
    residual = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(side))
    measured = losses.fft_loss(residual, 0 * residual) / losses.l1_loss(residual, 0 * residual)
    assert measured.item() == pytest.approx(ratio, abs=0.05)
    assert measured.item() == pytest.approx(losses.white_residual_ratio(side, side), rel=0.01)


def test_heavy_tails_raise_the_factor_and_smoothness_lowers_it():
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(4, 3, 96, 96, generator=generator, dtype=torch.float64) - 0.5
    laplacian = -uniform.sign() * torch.log1p(-2 * uniform.abs())
    smooth = torch.nn.functional.avg_pool2d(torch.randn(4, 3, 96, 96, generator=generator), 9, stride=1, padding=4)

    def ratio(residual):
        return (losses.fft_loss(residual, 0 * residual) / losses.l1_loss(residual, 0 * residual)).item()

    white = losses.white_residual_ratio(96, 96)
    assert ratio(laplacian) == pytest.approx(2 / math.sqrt(math.pi) * white, rel=0.01)
    assert ratio(smooth) < 0.5 * white


def test_parts_add_up_to_the_total_and_carry_no_gradient():
    sr, hr = pictures(1, 3, 12, 12)
    sr.requires_grad_()
    total, parts = losses.total_loss(sr, hr, 0.05)
    assert set(parts) == {"l1", "fft"}
    assert sum(parts.values()).item() == pytest.approx(total.item(), rel=1e-6)
    assert not any(part.requires_grad for part in parts.values())

    plain, parts = losses.total_loss(sr, hr, 0.0)
    assert parts["fft"].item() == 0
    assert plain.item() == losses.l1_loss(sr, hr).item()


def test_gradient_of_the_total_is_right():
    sr, hr = pictures(1, 1, 5, 6, dtype=torch.float64)
    sr.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses.total_loss(x, hr, 0.05)[0], (sr,))


def test_half_precision_is_widened():
    sr, hr = pictures(1, 3, 8, 8)
    total, _ = losses.total_loss(sr.bfloat16(), hr, 0.05)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(losses.total_loss(sr, hr, 0.05)[0].item(), rel=0.02)


def test_unequal_shapes_and_bad_weights_are_refused():
    sr, hr = pictures(1, 3, 8, 8)
    with pytest.raises(ValueError, match="another scale"):
        losses.total_loss(sr, hr[..., :1], 0.05)
    with pytest.raises(ValueError, match="fft_weight"):
        losses.total_loss(sr, hr, -1.0)
    with pytest.raises(ValueError, match="fft_weight"):
        losses.total_loss(sr, hr, math.nan)
