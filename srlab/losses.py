"""Losses room: what training minimises. Two pictures in, scalar tensors out; `train.py` calls `total_loss` per step.

The frequency loss follows the released code of IGConv (arXiv 2408.09674): L1 alone trains the plain IGConv, L1 plus
the frequency loss trains IGConv+. Both terms take the raw output of the network, unclamped, RGB in [0, 1].
"""

import math

import torch
from torch import Tensor


def l1_loss(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute difference of two pictures (..., H, W) in [0, 1]; a scalar tensor.

    Raises:
        ValueError: the shapes differ (torch would broadcast them and train towards the wrong thing).
    """
    return _difference(sr, hr).abs().mean()


def fft_loss(sr: Tensor, hr: Tensor, weight: float = 0.05) -> Tensor:
    """`weight` times the mean absolute difference of two spectra, real and imaginary parts apart.

    The official code transforms both pictures and subtracts; the transform is linear, so one `rfft2` of the difference
    gives the same number for half the work. As there, the transform is not normalised: its coefficients, and with them
    this term, grow with the side of the patch (see `white_residual_ratio`). Only the half spectrum that `rfft2`
    stores is averaged, so columns 0 and Nyquist count once and all others stand for two.

    Args:
        sr: output of the network, (..., H, W), in [0, 1] but not clamped.
        hr: the picture it should have been, same shape.
        weight: 0.05 in most released recipes, 0.02 for PLKSR and the fine-tuning of ATD.

    Returns:
        A scalar tensor, float32 (float64 for float64 input): half precision has no FFT on most devices.

    Raises:
        ValueError: the shapes differ.
    """
    spectrum = torch.fft.rfft2(_difference(sr, hr))  # (..., H, W // 2 + 1), complex
    return weight * torch.view_as_real(spectrum).abs().mean()


def total_loss(sr: Tensor, hr: Tensor, fft_weight: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to minimise and the parts it is the sum of.

    Args:
        sr: output of the network, (..., H, W).
        hr: the picture it should have been, same shape.
        fft_weight: weight of the frequency loss; at 0 no transform is computed.

    Returns:
        `total`, a scalar tensor with gradient, and `{"l1": ..., "fft": ...}`, detached scalars, weights included, so
        that the parts add up to the total and `fft / total` is the share of the frequency loss.

    Raises:
        ValueError: the shapes differ, or `fft_weight` is negative or not finite.
    """
    if not (math.isfinite(fft_weight) and fft_weight >= 0):
        raise ValueError(f"fft_weight is {fft_weight}, expected a finite number >= 0 (0 turns the frequency loss off)")
    l1 = l1_loss(sr, hr)
    fft = fft_loss(sr, hr, fft_weight) if fft_weight else torch.zeros_like(l1)
    return l1 + fft, {"l1": l1.detach(), "fft": fft.detach()}


def white_residual_ratio(height: int, width: int, weight: float = 0.05) -> float:
    """How many times L1 the frequency loss weighs when the residual is white Gaussian noise: weight * sqrt(HW / 2).

    Each real or imaginary part of an unnormalised transform of HW values of variance s**2 has variance HW s**2 / 2, and
    the mean absolute value of a Gaussian is the same multiple of its deviation on both sides, so the ratio of the
    two losses is sqrt(HW / 2). At 48-pixel LR patches that is 3.4, 5.1 and 6.8 for x2, x3 and x4 with weight 0.05.

    A real residual departs from it both ways. Transforms of heavy-tailed noise are Gaussian all the same while its L1
    is smaller, so Laplacian noise has a ratio 2 / sqrt(pi) = 1.13 times higher; a residual whose power sits in few
    frequencies has a lower one.
    """
    return weight * math.sqrt(height * width / 2)


def _difference(sr: Tensor, hr: Tensor) -> Tensor:
    """sr - hr in float32 or better."""
    if sr.shape != hr.shape:
        raise ValueError(
            f"sr is {tuple(sr.shape)} and hr is {tuple(hr.shape)}, expected one shape: "
            f"was the picture upscaled by another scale than its target?"
        )
    dtype = torch.promote_types(torch.promote_types(sr.dtype, hr.dtype), torch.float32)
    return sr.to(dtype) - hr.to(dtype)
