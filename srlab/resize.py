"""Bicubic resizing exactly as MATLAB's `imresize`, the tool that made the low-resolution pictures of every benchmark.

Takes tensors (..., H, W) and gives tensors; no files, no models. One rule in two precisions: 8-bit pictures come out
bit for bit as MATLAB writes them, float tensors come out unrounded and differentiable.

The rule, along one axis: output pixel x looks at the input position (x + 1/2) / scale - 1/2 and sums the pixels around
it with Keys' cubic (a = -1/2) as weights, scaled to sum 1. When shrinking, the cubic is widened by 1 / scale so that it
also blurs what the coarser grid can't hold. Beyond the border the picture is mirrored, edge pixel included. Height goes
first; 8-bit pictures are rounded half up and clamped after each axis.

A rational scale p / q makes every weight a ratio of whole numbers, so the 8-bit rule is computed in whole numbers and
is the same on every device.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from numbers import Integral, Rational, Real
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Border = Literal["symmetric", "replicate"]
BORDERS = ("symmetric", "replicate")
MAX_DENOMINATOR = 10_000
MAX_FACTOR = 500

# Factors at which torch's 8-bit kernel rounds every value as the rule does. Its weights are 16-bit integers: at 2, 4
# and 8 they hold the rule's weights exactly; at 3 they err by less than any sum's distance from the next rounding edge.
FAST_FACTORS = (2, 3, 4, 8)


class Contributions(NamedTuple):
    """Which input pixels make each output pixel along one axis, and with what weight."""

    indices: Tensor
    """(out, taps) int64, into the input axis; the border rule is already applied."""
    weights: Tensor
    """(out, taps) float64; each row sums to 1."""


def imresize(x: Tensor, scale: Real, *, border: Border = "symmetric") -> Tensor:
    """Resize the last two axes by `scale` with MATLAB's antialiased bicubic.

    Args:
        x: (..., H, W). uint8: MATLAB's 8-bit rule. float of any range: unrounded, differentiable, in the dtype of `x`.
        scale: output side / input side, an int, a float or a Fraction from 1/500 to 500; taken as the nearest fraction
            whose terms are at most 10,000, so 1 / 3 given as a float is one third.
        border: "symmetric" mirrors the picture beyond its edges; "replicate" repeats the edge pixel as older MATLAB did
            (the x8 files of Set5 and Set14 were made so).

    Returns:
        (..., ceil(H * scale), ceil(W * scale)), dtype and device of `x`.

    Raises:
        TypeError: `x` is no tensor, or neither uint8 nor float.
        ValueError: `x` has no pixels, or scale or border make no sense.
    """
    _check_picture(x)
    fraction = as_fraction(scale)
    _check_border(border)
    if fraction == 1:
        return x.clone()
    if x.dtype == torch.uint8:
        if fraction.numerator == 1 and fraction.denominator in FAST_FACTORS and x.device.type == "cpu":
            return _shrink_fast(x, fraction.denominator, border)
        rows = _resize_axis_8bit(x, -2, fraction, border)
        return _resize_axis_8bit(rows, -1, fraction, border)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # half precision would round after every tap
    rows = _resize_axis(wide, -2, fraction, border)
    return _resize_axis(rows, -1, fraction, border).to(x.dtype)


def contributions(length: int, scale: Real, border: Border = "symmetric") -> Contributions:
    """The rule itself, for one axis: `out[i] = sum_t weights[i, t] * line[indices[i, t]]`.

    Args:
        length: pixels along the input axis.
        scale: as in `imresize`.
        border: as in `imresize`.

    Returns:
        Contributions with ceil(length * scale) rows.

    Raises:
        TypeError: scale is no real number.
        ValueError: length is no whole number from 1 on, or scale or border make no sense.
    """
    if isinstance(length, bool) or not isinstance(length, Integral) or length < 1:
        raise ValueError(f"length must be a whole number of pixels from 1 on, got {length!r}")
    _check_border(border)
    indices, whole = _whole_contributions(length, as_fraction(scale), border)
    return Contributions(torch.tensor(indices), torch.from_numpy(whole / whole.sum(axis=1, keepdims=True)))


def cubic(t: Tensor) -> Tensor:
    """Keys' cubic with a = -1/2, the curve behind the weights: 1 at 0, 0 at 1 and from 2 on, negative between."""
    t = t.abs()
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return torch.where(t <= 1, near, torch.where(t < 2, far, torch.zeros_like(t)))


def as_fraction(scale: Real) -> Fraction:
    """The fraction that `scale` means, both terms at most 10,000: 2.0 -> 2, 0.333... -> 1/3, 0.7 -> 7/10.

    Raises:
        TypeError: not a real number.
        ValueError: zero, negative, NaN, infinite, or outside 1/500 to 500.
    """
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"scale must be an int, a float or a Fraction, got {scale!r} ({type(scale).__name__})")
    if not math.isfinite(scale) or scale <= 0:
        raise ValueError(f"scale must be a positive number (2 doubles the sides, 1 / 2 halves them), got {scale}")
    if not 1 / MAX_FACTOR <= scale <= MAX_FACTOR:
        raise ValueError(
            f"scale must lie between 1/{MAX_FACTOR} and {MAX_FACTOR}, got {scale}: is it a size in pixels?"
        )
    exact = Fraction(scale) if isinstance(scale, Rational) else Fraction(float(scale))
    if exact > 1:
        return 1 / (1 / exact).limit_denominator(MAX_DENOMINATOR)
    return exact.limit_denominator(MAX_DENOMINATOR)


def _check_picture(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"expected a tensor (..., H, W), got {type(x).__name__}: torch.from_numpy or images.load_image make one"
        )
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise TypeError(
            f"expected uint8 in 0..255 or a float tensor, got {x.dtype}: convert it, so that its range is known"
        )
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"expected pixels (..., H, W), got an empty or flat tensor of shape {tuple(x.shape)}")


def _check_border(border: str) -> None:
    if border not in BORDERS:
        raise ValueError(f"border must be one of {', '.join(map(repr, BORDERS))}, got {border!r}")


@lru_cache(maxsize=64)
def _whole_contributions(length: int, scale: Fraction, border: Border) -> tuple[np.ndarray, np.ndarray]:
    """Indices (out, taps) and weights (out, taps) as whole numbers, each row without common divisor.

    Distances are multiples of 1 / (2p) input pixels, so the cubic is a multiple of 1 / (2 d**3), d = 2 max(p, q).
    """
    p, q = scale.numerator, scale.denominator
    d = 2 * max(p, q)
    out = -(-length * p // q)  # ceil
    centre = (2 * np.arange(out, dtype=np.int64)[:, None] + 1) * q - p  # position times 2p
    first = (centre - 2 * d) // (2 * p) + 1
    indices = first + np.arange(-(-2 * d // p))  # (out, taps)
    n = np.abs(centre - 2 * p * indices)  # distance times 2p; times 2q when the cubic is widened by q / p
    near = 3 * n**3 - 5 * n**2 * d + 2 * d**3
    far = -(n**3) + 5 * n**2 * d - 8 * n * d**2 + 4 * d**3
    weights = np.where(n <= d, near, np.where(n < 2 * d, far, 0))
    weights //= np.gcd.reduce(weights, axis=1, keepdims=True)
    used = weights.any(axis=0)
    return _inside(indices[:, used], length, border), np.ascontiguousarray(weights[:, used])


def _inside(indices: np.ndarray, length: int, border: Border) -> np.ndarray:
    """Map positions beyond the border to pixels that stand for them."""
    if border == "replicate":
        return indices.clip(0, length - 1)
    folded = indices % (2 * length)  # the mirrored picture repeats every two lengths
    return np.minimum(folded, 2 * length - 1 - folded)


def _resize_axis(x: Tensor, axis: int, scale: Fraction, border: Border) -> Tensor:
    indices, weights = contributions(x.shape[axis], scale, border)
    return _weighted_sum(x, axis, indices, weights.to(x.dtype))


def _resize_axis_8bit(x: Tensor, axis: int, scale: Fraction, border: Border) -> Tensor:
    """Whole-number sum, then division rounded half up: floor((2 sum + total) / (2 total)), clamped."""
    indices, whole = _whole_contributions(x.shape[axis], scale, border)
    total = whole.sum(axis=1)
    largest = 2 * 255 * np.abs(whole).sum(axis=1).max() + total.max()
    dtype = torch.float32 if largest < 2**24 else torch.int64  # float32 counts whole numbers exactly up to 2**24
    twice = _weighted_sum(x.to(dtype), axis, torch.from_numpy(indices), torch.from_numpy(2 * whole).to(dtype))
    total = torch.from_numpy(total).to(x.device, dtype)
    total = total[:, None] if axis == -2 else total
    return torch.div(twice.add_(total), 2 * total, rounding_mode="floor").clamp_(0, 255).to(torch.uint8)


def _weighted_sum(x: Tensor, axis: int, indices: Tensor, weights: Tensor) -> Tensor:
    """Sum over taps of gathered rows times weights; one tap at a time, so that memory stays at a few pictures.

    Columns are treated as rows of the transposed picture: whole rows are gathered several times faster than pixels.
    """
    if axis == -1:
        return _weighted_sum(x.transpose(-1, -2).contiguous(), -2, indices, weights).transpose(-1, -2).contiguous()
    indices = indices.t().contiguous().to(x.device)  # (taps, out)
    weights = weights.t().contiguous().to(x.device)[..., None]  # (taps, out, 1): along the columns
    result = x.index_select(-2, indices[0]) * weights[0]
    for rows, weight in zip(indices[1:], weights[1:], strict=True):
        result = result.addcmul_(x.index_select(-2, rows), weight)
    return result


def _shrink_fast(x: Tensor, factor: int, border: Border) -> Tensor:
    """Both axes by torch's 8-bit kernel, one at a time, on a padded picture whose false border is cut off."""
    *leading, height, width = x.shape
    planes = x.reshape(-1, 3 if math.prod(leading) % 3 == 0 else 1, height, width)
    pixels = _channels_last(planes)
    for axis in (1, 2):
        pixels = _shrink_axis_fast(pixels, axis, factor, border)
    return pixels.permute(0, 3, 1, 2).contiguous().reshape(*leading, *pixels.shape[1:3])


def _channels_last(planes: Tensor) -> Tensor:
    """(N, C, H, W) -> contiguous (N, H, W, C); put together from channels, 2.5 times as fast as one permuted copy."""
    pixels = planes.permute(0, 2, 3, 1)
    return pixels if pixels.is_contiguous() else torch.stack(planes.unbind(1), dim=-1)


def _shrink_axis_fast(pixels: Tensor, axis: int, factor: int, border: Border) -> Tensor:
    """(N, H, W, C) uint8 -> the same with side ceil(side / factor) along `axis`, 1 or 2."""
    length = pixels.shape[axis]
    out = -(-length // factor)
    margin = 2 * factor  # the widened cubic reaches 2 factors far: two outputs at each end are false
    before = torch.from_numpy(_inside(np.arange(-margin, 0), length, border))
    after = torch.from_numpy(_inside(np.arange(length, out * factor + margin), length, border))
    pixels = torch.cat([pixels.index_select(axis, before), pixels, pixels.index_select(axis, after)], axis)
    size = (out + 4, pixels.shape[2]) if axis == 1 else (pixels.shape[1], out + 4)
    planes = F.interpolate(pixels.permute(0, 3, 1, 2), size=size, mode="bicubic", antialias=True)
    return planes.permute(0, 2, 3, 1).narrow(axis, 2, out)
