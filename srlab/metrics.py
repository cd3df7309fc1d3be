"""PSNR and SSIM as super-resolution papers report them, and the protocol that makes two such numbers comparable.

Takes pairs of RGB tensors (3, H, W), gives Python floats. No files, no models. The same picture scores up to 2 dB
differently by channel, border and rounding, so the choices live in one object, `Protocol`, whose `line()` belongs under
every table. `STANDARD` is the protocol of the published tables: pictures clamped and rounded to 8 bits, `scale` pixels cut
at each side, luma Y of BT.601 (16 to 235, itself not rounded), 64-bit arithmetic, mean over pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from srlab.images import LUMA, rgb_to_y, to_uint8

WINDOW = 11  # side of the Gaussian window of SSIM, Wang et al. 2004
SIGMA = 1.5
C1 = (0.01 * 255) ** 2
C2 = (0.03 * 255) ** 2

_STRIP = 64  # rows of SSIM computed at once: small enough to stay in cache
_BLOCK = 32  # columns per banded matrix product


@dataclass(frozen=True)
class Protocol:
    """How two pictures are compared. Change a field to see how far a convention moves the score."""

    channel: Literal["y", "rgb"] = "y"
    """"y": luma of BT.601, 16 to 235, not rounded. "rgb": the three channels, averaged."""
    border: int | None = None
    """Pixels cut at each side before comparing; None cuts as many as the scale."""
    quantise: bool = True
    """Clamp to [0, 1] and round to 8 bits first, as saving a file would; False compares floats as they come."""
    resizer: str = "matlab"
    """Which bicubic made the LR pictures. Words for `line()`: the scores themselves don't depend on it."""

    def __post_init__(self) -> None:
        if self.channel not in ("y", "rgb"):
            raise ValueError(f'channel must be "y" or "rgb", got {self.channel!r}')
        if self.border is not None:
            _check_border(self.border)

    def psnr(self, sr: Tensor, hr: Tensor, scale: int | None = None) -> float:
        """Peak signal-to-noise ratio in dB, peak 255; `inf` for identical pictures. Arguments and errors: `psnr_y`."""
        sr, hr = self._pair(sr, hr, scale)
        mse = _mean_square_luma(sr, hr) if self.channel == "y" else _mean_square(sr, hr)
        return 10 * math.log10(255**2 / mse) if mse else math.inf

    def ssim(self, sr: Tensor, hr: Tensor, scale: int | None = None) -> float:
        """Structural similarity, 1 for identical pictures. Arguments and errors: `ssim_y`."""
        sr, hr = self._pair(sr, hr, scale)
        if min(hr.shape[-2:]) < WINDOW:
            raise ValueError(
                f"SSIM needs {WINDOW} x {WINDOW} pixels after the border is cut, got {hr.shape[-2]} x {hr.shape[-1]}"
            )
        return _ssim(self._signal(sr), self._signal(hr))

    def line(self, scale: int | None = None) -> str:
        """One sentence for the foot of a table."""
        channel = "luma Y (BT.601, 16 to 235, not rounded)" if self.channel == "y" else "RGB, mean of the channels,"
        depth = "8-bit pictures" if self.quantise else "float pictures, neither clamped nor rounded"
        width = scale if self.border is None else self.border
        border = f"{'as many pixels as the scale' if width is None else f'{width} px'} cut at each side"
        return f"PSNR and SSIM on {channel} of {depth}, {border}; LR by {self.resizer} bicubic; mean over pictures."

    def _pair(self, sr: Tensor, hr: Tensor, scale: int | None) -> tuple[Tensor, Tensor]:
        """Checked pictures (3, h, w) on the CPU, border cut, rounded if the protocol says so."""
        border = scale if self.border is None else self.border
        if border is None:
            raise ValueError("this protocol cuts as many border pixels as the scale: pass scale, or set border")
        _check_border(border)
        sr, hr = _single(sr, "sr"), _single(hr, "hr")
        _check_shapes(sr, hr, border)
        if hr.is_floating_point() and hr.max() > 2:
            raise ValueError(
                f"hr holds values up to {hr.max():.0f}: float pictures lie in [0, 1], 0..255 goes as uint8"
            )
        cut = (slice(None), slice(border, hr.shape[1] - border), slice(border, hr.shape[2] - border))
        return self._depth(sr[cut].detach(), "sr"), self._depth(hr[cut].detach(), "hr")

    def _depth(self, picture: Tensor, name: str) -> Tensor:
        if picture.is_floating_point() and picture.isnan().any():
            raise ValueError(f"{name} holds NaN: did the training diverge, or was something divided by zero?")
        return to_uint8(picture).cpu() if self.quantise else picture.cpu()

    def _signal(self, picture: Tensor) -> Tensor:
        """What is compared, (channels, h, w) float64 on the scale 0..255."""
        if self.channel == "y":
            return rgb_to_y(picture)
        return picture.double() if picture.dtype == torch.uint8 else picture.double() * 255


STANDARD = Protocol()


def psnr_y(sr: Tensor, hr: Tensor, border: int) -> float:
    """PSNR of the luma by the published protocol.

    Args:
        sr, hr: RGB pictures of one size, (3, H, W) or (1, 3, H, W); uint8, or float in [0, 1] (clamped, rounded to 8 bits).
        border: pixels cut at each side, by convention the scale.

    Returns:
        dB; `inf` for identical pictures.

    Raises:
        TypeError: not tensors, or neither uint8 nor float.
        ValueError: sizes differ, several pictures, border leaves nothing, NaN, hr not in [0, 1].
    """
    return Protocol(border=border).psnr(sr, hr)


def ssim_y(sr: Tensor, hr: Tensor, border: int) -> float:
    """SSIM of the luma by the published protocol (Wang et al. 2004: 11x11 Gaussian, sigma 1.5, full windows only).

    Args:
        sr, hr, border: as in `psnr_y`.

    Returns:
        Mean over all window positions, at most 1.

    Raises:
        TypeError, ValueError: as `psnr_y`; also when fewer than 11 x 11 pixels are left.
    """
    return Protocol(border=border).ssim(sr, hr)


def _check_border(border: int) -> None:
    if isinstance(border, bool) or not isinstance(border, int) or border < 0:
        raise ValueError(f"border must be a whole number of pixels, 0 or more, got {border!r}")


def _single(picture: Tensor, name: str) -> Tensor:
    """(3, H, W) or (1, 3, H, W) -> (3, H, W)."""
    if not isinstance(picture, Tensor):
        raise TypeError(f"{name}: expected a tensor (3, H, W), got {type(picture).__name__}")
    if picture.dtype != torch.uint8 and not picture.is_floating_point():
        raise TypeError(f"{name}: a picture is uint8 in 0..255 or float in [0, 1], got {picture.dtype}")
    if picture.ndim == 4 and len(picture) > 1:
        raise ValueError(f"{name} holds {len(picture)} pictures: score them one by one, tables average per picture")
    if picture.ndim == 4 and len(picture) == 1:
        picture = picture[0]
    if picture.ndim != 3 or picture.shape[0] != 3:
        raise ValueError(
            f"{name}: expected RGB (3, H, W), got {tuple(picture.shape)}: are the channels last, or is it grey?"
        )
    return picture


def _check_shapes(sr: Tensor, hr: Tensor, border: int) -> None:
    height, width = hr.shape[-2:]
    if sr.shape != hr.shape:
        raise ValueError(
            f"sr is {sr.shape[-2]} x {sr.shape[-1]}, hr is {height} x {width} (height x width): "
            "was hr not cropped to a multiple of the scale (images.crop_to_multiple), or sr made at another scale?"
        )
    if min(height, width) <= 2 * border:
        raise ValueError(
            f"a border of {border} at each side leaves nothing of {height} x {width} pixels (height x width)"
        )


def _mean_square_luma(sr: Tensor, hr: Tensor) -> float:
    """Mean squared difference of Y on the scale 0..255.

    8-bit pictures differ by whole numbers, and the luma weights are whole thousandths: 32-bit floats hold the weighted
    difference exactly up to 75 grey levels and to 1e-7 beyond, so one float picture is enough.
    """
    if sr.dtype != torch.uint8 or hr.dtype != torch.uint8:
        return (rgb_to_y(sr) - rgb_to_y(hr)).square().mean().item()
    red, green, blue = (round(1000 * weight) for weight in LUMA)
    difference = sr.to(torch.int16).sub_(hr).to(torch.float32)  # (3, h, w)
    y = difference[0].mul_(red).add_(difference[1], alpha=green).add_(difference[2], alpha=blue)
    square = torch.linalg.vector_norm(y, dtype=torch.float64).item() ** 2
    return square / y.numel() / (1000 * 255) ** 2


def _mean_square(sr: Tensor, hr: Tensor) -> float:
    """Mean squared difference over all channels on the scale 0..255."""
    step = [1 if picture.dtype == torch.uint8 else 255 for picture in (sr, hr)]
    return (sr.double() * step[0] - hr.double() * step[1]).square().mean().item()


def _ssim(x: Tensor, y: Tensor) -> float:
    """Mean SSIM of (channels, h, w) float64 signals on the scale 0..255, over the positions where the window fits."""
    channels, height, width = x.shape
    total = sum(strip.sum().item() for a, b in zip(x, y, strict=True) for strip in _ssim_strips(a, b))
    return total / (channels * (height - WINDOW + 1) * (width - WINDOW + 1))


def _ssim_strips(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """The SSIM map of two signals (h, w), in strips of at most 64 rows."""
    reach = WINDOW - 1
    for top in range(0, x.shape[0] - reach, _STRIP):
        a, b = x[top : top + _STRIP + reach], y[top : top + _STRIP + reach]
        maps = torch.stack([a, b, a * a + b * b, a * b])  # the variances are needed as a sum only
        mean_a, mean_b, squares, product = _blur(maps)
        mean_product, mean_squares = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
        structure = (2 * (product - mean_product) + C2) / (squares - mean_squares + C2)
        yield structure * (2 * mean_product + C1) / (mean_squares + C1)


def _blur(maps: Tensor) -> Tensor:
    """Gaussian window over (n, rows, columns), full windows only: (n, rows - 10, columns - 10).

    Each axis is a product with a banded matrix, block by block. It multiplies more zeros than a convolution, and is
    still faster in 64-bit floats, for which torch has no convolution of its own.
    """
    n, rows, columns = maps.shape
    reach = WINDOW - 1
    maps = _band(rows - reach) @ maps  # (n, rows - 10, columns)
    whole = (columns - reach) // _BLOCK
    parts = []
    if whole:
        blocks = maps.unfold(-1, _BLOCK + reach, _BLOCK)[:, :, :whole]  # (n, rows - 10, whole, 42), overlapping views
        product = blocks.transpose(1, 2) @ _band(_BLOCK).t()  # (n, whole, rows - 10, 32)
        parts.append(product.transpose(1, 2).reshape(n, -1, whole * _BLOCK))
    if left := columns - reach - whole * _BLOCK:
        parts.append(maps[..., whole * _BLOCK :] @ _band(left).t())
    return torch.cat(parts, -1)


@lru_cache(maxsize=_STRIP + _BLOCK)
def _band(out: int) -> Tensor:
    """(out, out + 10) float64: row i holds the Gaussian, sum 1, from column i on."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    gaussian = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    gaussian /= gaussian.sum()
    band = torch.zeros(out, out + WINDOW - 1, dtype=torch.float64)
    for row in range(out):
        band[row, row : row + WINDOW] = gaussian
    return band
