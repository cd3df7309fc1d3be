"""PSNR and SSIM as super-resolution papers report them, and the protocol that makes two such numbers comparable.

Takes pairs of RGB tensors (3, H, W), gives Python floats. No files, no models. The same picture scores up to 2 dB
differently by channel, border and rounding, so the choices live in one object, `Protocol`, whose `line()` belongs under
every table. `STANDARD` is the protocol of today's published tables: pictures clamped and rounded to 8 bits, `scale`
pixels cut at each side, luma Y of BT.601 (16 to 235, itself not rounded), mean over pictures.

Both scores are computed from the sum and the difference of the two pictures rather than from each picture: the
difference of 8-bit pictures is a whole number, so 32-bit floats hold it without a loss that shows (below 1e-6 dB).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from srlab.images import LUMA, LUMA_OFFSET, rgb_to_y, to_uint8

WINDOW = 11  # side of the Gaussian window of SSIM, Wang et al. 2004
SIGMA = 1.5
C1 = (0.01 * 255) ** 2
C2 = (0.03 * 255) ** 2

_STRIP = 16  # rows of SSIM computed at once: four maps of them stay in a core's cache


@dataclass(frozen=True)
class Protocol:
    """How two pictures are compared. Change a field to see how far a convention moves the score."""

    channel: Literal["y", "rgb"] = "y"
    """"y": luma of BT.601, 16 to 235, not rounded. "rgb": the three channels, averaged."""
    border: int | None = None
    """Pixels cut at each side before comparing; None cuts as many as the scale."""
    quantise: bool = True
    """Clamp to [0, 1] and round to 8 bits first, as saving a file would; False compares floats as they come."""
    round_y: bool = False
    """Round Y to whole numbers, as MATLAB's rgb2ycbcr does with 8-bit pictures: tables before about 2017."""
    resizer: str = "matlab"
    """Which bicubic made the LR pictures. Words for `line()`: the scores themselves don't depend on it."""

    def __post_init__(self) -> None:
        if self.channel not in ("y", "rgb"):
            raise ValueError(f'channel must be "y" or "rgb", got {self.channel!r}')
        if self.border is not None:
            _check_border(self.border)

    def psnr(self, sr: Tensor, hr: Tensor, scale: int | None = None) -> float:
        """Peak signal-to-noise ratio in dB, peak 255; `inf` for identical pictures. Arguments and errors: `psnr_y`."""
        difference = self._mixed(*self._pair(sr, hr, scale), sign=-1)
        mse = torch.linalg.vector_norm(difference, dtype=torch.float64).item() ** 2 / difference.numel()
        return 10 * math.log10(255**2 / mse) if mse else math.inf

    def ssim(self, sr: Tensor, hr: Tensor, scale: int | None = None) -> float:
        """Structural similarity, 1 for identical pictures. Arguments and errors: `ssim_y`."""
        sr, hr = self._pair(sr, hr, scale)
        if min(hr.shape[-2:]) < WINDOW:
            raise ValueError(
                f"SSIM needs {WINDOW} x {WINDOW} pixels after the border is cut, got {hr.shape[-2]} x {hr.shape[-1]}"
            )
        return _ssim(self._mixed(sr, hr, sign=1), self._mixed(sr, hr, sign=-1))

    def line(self, scale: int | None = None) -> str:
        """One sentence for the foot of a table."""
        luma = f"luma Y (BT.601, 16 to 235, {'rounded' if self.round_y else 'not rounded'})"
        channel = luma if self.channel == "y" else "R, G and B, averaged,"
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
        for name, picture, most in (("sr", sr, 16), ("hr", hr, 2)):  # a model may overshoot, a picture is one
            if picture.is_floating_point() and (highest := picture.detach().abs().max()) > most:
                raise ValueError(
                    f"{name} holds values up to {highest:.0f}: float pictures lie in [0, 1], 0..255 goes as uint8"
                )
        cut = (slice(None), slice(border, hr.shape[1] - border), slice(border, hr.shape[2] - border))
        return self._depth(sr[cut].detach(), "sr"), self._depth(hr[cut].detach(), "hr")

    def _depth(self, picture: Tensor, name: str) -> Tensor:
        if picture.is_floating_point() and picture.isnan().any():
            raise ValueError(f"{name} holds NaN: did the training diverge, or was something divided by zero?")
        return to_uint8(picture).cpu() if self.quantise else picture.cpu()

    def _mixed(self, sr: Tensor, hr: Tensor, *, sign: int) -> Tensor:
        """sr + hr or sr - hr in the protocol's channel, (channels, h, w) float32 on the scale 0..255."""
        if self.round_y or sr.dtype != torch.uint8 or hr.dtype != torch.uint8:
            return self._signal(sr).add_(self._signal(hr), alpha=sign).float()
        if self.channel == "rgb":
            return sr.to(torch.int16).add_(hr, alpha=sign).float()
        return _whole_luma(sr, hr, sign)

    def _signal(self, picture: Tensor) -> Tensor:
        """What is compared, (channels, h, w) float64 on the scale 0..255."""
        if self.channel == "y":
            y = rgb_to_y(picture)
            return y.add_(0.5).floor_() if self.round_y else y
        return picture.double() if picture.dtype == torch.uint8 else picture.double() * 255


STANDARD = Protocol()


def psnr_y(sr: Tensor, hr: Tensor, border: int) -> float:
    """PSNR of the luma by the published protocol.

    Args:
        sr, hr: RGB pictures of one size, (3, H, W) or (1, 3, H, W); uint8, or float in [0, 1], then clamped and
            rounded to 8 bits.
        border: pixels cut at each side, by convention the scale.

    Returns:
        dB; `inf` for identical pictures.

    Raises:
        TypeError: not tensors, or neither uint8 nor float.
        ValueError: sizes differ, several pictures, border leaves nothing, NaN, hr not in [0, 1], sr far outside.
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
    if isinstance(border, bool) or not isinstance(border, Integral) or border < 0:
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


def _whole_luma(sr: Tensor, hr: Tensor, sign: int) -> Tensor:
    """Luma of the sum or difference of two 8-bit pictures (3, h, w), in whole numbers: (1, h, w) float32.

    The luma weights are whole thousandths, so differences up to 75 grey levels are exact before the last division.
    """
    y = torch.zeros_like(sr[:1], dtype=torch.float32)
    for weight, first, second in zip(LUMA, sr, hr, strict=True):
        y.add_(first.to(torch.int16).add_(second, alpha=sign), alpha=round(1000 * weight))
    return y.div_(255 * 1000).add_(LUMA_OFFSET * (1 + sign))


def _ssim(total: Tensor, difference: Tensor) -> float:
    """Mean SSIM over channels and all positions where the window fits, from sum and difference (channels, h, w).

    With s = x + y and d = x - y, SSIM is the product of (E[s]^2 - E[d]^2 + 2 C1) / (E[s]^2 + E[d]^2 + 2 C1) and of
    the same with variances and C2: four maps to blur instead of five. Variances of flat areas need 64 bits.
    """
    summed, count = 0.0, 0
    for s, d in zip(total, difference, strict=True):
        for strip in _strips(torch.stack([s, d])):
            strip = strip.double()
            means, squares = _blur(torch.cat([strip, strip * strip])).split(2)
            light_s, light_d = means.square_()
            spread_s, spread_d = squares.sub_(means)
            structure = (spread_s - spread_d + 2 * C2) / (spread_s + spread_d + 2 * C2)
            light = (light_s - light_d + 2 * C1) / (light_s + light_d + 2 * C1)
            summed += structure.mul_(light).sum().item()
            count += light.numel()
    return summed / count


def _strips(maps: Tensor) -> Iterator[Tensor]:
    """(n, h, w) in strips of rows that overlap by what the window needs."""
    reach = WINDOW - 1
    for top in range(0, maps.shape[1] - reach, _STRIP):
        yield maps[:, top : top + _STRIP + reach]


def _blur(maps: Tensor) -> Tensor:
    """Gaussian window over (n, rows, columns), full windows only: (n, rows - 10, columns - 10)."""
    offsets = [tap - WINDOW // 2 for tap in range(WINDOW)]
    gaussian = [math.exp(-(offset**2) / (2 * SIGMA**2)) for offset in offsets]
    for axis in (1, 2):
        size = maps.shape[axis] - WINDOW + 1
        result = maps.narrow(axis, 0, size) * (gaussian[0] / sum(gaussian))
        for tap in range(1, WINDOW):
            result.add_(maps.narrow(axis, tap, size), alpha=gaussian[tap] / sum(gaussian))
        maps = result
    return maps
