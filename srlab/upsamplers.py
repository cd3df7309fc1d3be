"""Upsamplers: features of a low-resolution picture in, the high-resolution picture out.

Every upsampler is an `nn.Module` with the same three members, so that any of them fits any encoder:

* `forward(feats, scale, lr=None)`: feats (B, C, h, w) -> sr (B, 3, h * scale, w * scale). `lr` (B, 3, h, w) is the
  input picture in the encoder's units; only upsamplers that look at the picture itself (skips, IGConv+) use it.
* `scales`: the scales it can serve, or `None` when it serves every integer.
* `instantiate(scale)`: a new upsampler for that one scale, with nothing in it that the scale does not need.

Here live the classical ones: sub-pixel convolution (SPConv; Shi et al. 2016), its heavier form (SPConv+, as in EDSR),
separate heads on a shared encoder (as MDSR does), and skips that upscale the input picture. The implicit ones are in
`igconv.py`.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlab.resize import imresize

RGB = 3


class ScaleError(ValueError):
    """A scale that is not a whole number, or that this upsampler has no weights for."""


def checked_scale(scale: int, allowed: tuple[int, ...] | None = None) -> int:
    """Return `scale` as an int, or say what is wrong with it.

    Args:
        scale: upsampling factor; whole and at least 1 (pixel shuffle knows no other).
        allowed: scales there are weights for; `None` allows every integer.

    Raises:
        ScaleError: not whole, below 1, or not among `allowed`.
    """
    try:
        value = None if isinstance(scale, bool) else operator.index(scale)
    except TypeError:
        value = None
    if value is None:
        raise ScaleError(
            f"scale is {scale!r}, expected a whole number such as 2, 3 or 4: pixel shuffle paints whole blocks of "
            f"pixels, so for a fractional scale upscale by the next integer and shrink with srlab.resize.imresize"
        )
    if value < 1:
        raise ScaleError(f"scale is {value}, expected at least 1; to shrink a picture use srlab.resize.imresize")
    if allowed is not None and value not in allowed:
        known = ", ".join(f"x{s}" for s in allowed)
        raise ScaleError(
            f"scale x{value} was asked for, but this upsampler has weights for {known} only: a sub-pixel convolution "
            f"is trained for one scale; a model with an IGConv upsampler can be asked for any integer"
        )
    return value


class SPConv(nn.Conv2d):
    """Sub-pixel convolution: one convolution computes scale**2 values per colour, pixel shuffle lays them out.

    Weight (3 * scale**2, C, k, k) in `nn.PixelShuffle` order: colour slowest, then sub-pixel row, then column.
    This is "pixelshuffledirect" of lightweight models (Shi et al. 2016, arXiv 1609.05158). It is also what an IGConv
    turns into once its kernel is stored; then it has no bias.

    Args:
        channels: width C of the features.
        scale: the one scale it serves.
        bias: whether the convolution has one.
        kernel_size: odd side of the taps.
    """

    def __init__(self, channels: int, scale: int, *, bias: bool = True, kernel_size: int = 3):
        self.scale = checked_scale(scale)
        super().__init__(channels, RGB * self.scale**2, kernel_size, padding=kernel_size // 2, bias=bias)

    @property
    def scales(self) -> tuple[int, ...]:
        return (self.scale,)

    @property
    def receptive_radius(self) -> int:
        """How far a feature reaches, in LR pixels."""
        return self.kernel_size[0] // 2

    def forward(self, feats: Tensor, scale: int | None = None, lr: Tensor | None = None) -> Tensor:
        checked_scale(self.scale if scale is None else scale, self.scales)
        return F.pixel_shuffle(super().forward(feats), self.scale)  # (B, 3, h * scale, w * scale)

    def instantiate(self, scale: int) -> SPConv:
        checked_scale(scale, self.scales)
        return copy.deepcopy(self)


class SPConvPlus(nn.Module):
    """Pixel shuffle at full feature width, then a convolution to RGB ("pixelshuffle"; EDSR, RCAN, SwinIR).

    x2 and x3 widen once (C -> C * scale**2), x4 doubles twice; every other power of two doubles repeatedly, and any
    other integer widens once. A last 3x3 convolution maps C -> 3.
    """

    def __init__(self, channels: int, scale: int, *, kernel_size: int = 3):
        super().__init__()
        self.scale = checked_scale(scale)
        padding = kernel_size // 2
        doublings = self.scale.bit_length() - 1
        factors = [2] * doublings if self.scale == 2**doublings else [self.scale]
        stages: list[nn.Module] = []
        for factor in factors:
            stages += [nn.Conv2d(channels, channels * factor**2, kernel_size, padding=padding), nn.PixelShuffle(factor)]
        self.stages = nn.Sequential(*stages)
        self.to_rgb = nn.Conv2d(channels, RGB, kernel_size, padding=padding)

    @property
    def scales(self) -> tuple[int, ...]:
        return (self.scale,)

    @property
    def receptive_radius(self) -> int:
        """How far a feature reaches, in LR pixels: the convolutions' radii, those on finer grids rounded up."""
        radius = reach = self.to_rgb.kernel_size[0] // 2
        for shuffle in reversed(self.stages[1::2]):
            reach = math.ceil(reach / shuffle.upscale_factor) + radius
        return reach

    def forward(self, feats: Tensor, scale: int | None = None, lr: Tensor | None = None) -> Tensor:
        checked_scale(self.scale if scale is None else scale, self.scales)
        return self.to_rgb(self.stages(feats))  # stages: (B, C, h * scale, w * scale)

    def instantiate(self, scale: int) -> SPConvPlus:
        checked_scale(scale, self.scales)
        return copy.deepcopy(self)


class SeparateHeads(nn.Module):
    """One upsampler per scale on one shared encoder, as MDSR has: the plain way to serve several scales.

    Args:
        heads: one upsampler for each scale; each must serve exactly one.
    """

    def __init__(self, heads: list[SPConv | SPConvPlus]):
        super().__init__()
        self.heads = nn.ModuleDict({str(head.scale): head for head in heads})
        if len(self.heads) != len(heads):
            raise ScaleError(f"heads for scales {[head.scale for head in heads]}: expected each scale once")

    @property
    def scales(self) -> tuple[int, ...]:
        return tuple(int(scale) for scale in self.heads)

    @property
    def receptive_radius(self) -> int:
        return max(head.receptive_radius for head in self.heads.values())

    def forward(self, feats: Tensor, scale: int, lr: Tensor | None = None) -> Tensor:
        return self.heads[str(checked_scale(scale, self.scales))](feats, scale)

    def instantiate(self, scale: int) -> SPConv | SPConvPlus:
        return self.heads[str(checked_scale(scale, self.scales))].instantiate(scale)


class PictureSkip(nn.Module):
    """The input picture itself, enlarged: what an upsampler then only has to correct. Base of the two below.

    Args:
        mean: colour taken off the picture, in its units, for models that add it to the sum (see `models.SRModel`).
    """

    scales = None  # any integer

    def __init__(self, mean: Sequence[float] = (0.0, 0.0, 0.0)):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, RGB, 1, 1), persistent=False)

    def enlarge(self, lr: Tensor, scale: int) -> Tensor:
        """(B, 3, h, w) -> (B, 3, h * scale, w * scale)."""
        raise NotImplementedError

    def forward(self, feats: Tensor, scale: int, lr: Tensor) -> Tensor:
        return self.enlarge(lr - self.mean, checked_scale(scale))

    def instantiate(self, scale: int) -> PictureSkip:
        checked_scale(scale)
        return copy.deepcopy(self)


class BilinearSkip(PictureSkip):
    """Upscale the input picture bilinearly (half-pixel centres): what IGSample does while its offsets are zero."""

    receptive_radius = 1

    def enlarge(self, lr: Tensor, scale: int) -> Tensor:
        return F.interpolate(lr, scale_factor=scale, mode="bilinear", align_corners=False)


class BicubicSkip(PictureSkip):
    """Upscale the input picture by MATLAB's bicubic rule (VDSR's skip)."""

    receptive_radius = 2

    def enlarge(self, lr: Tensor, scale: int) -> Tensor:
        return imresize(lr, scale)


class WithSkip(nn.Module):
    """The sum of an upsampler and a skip: `main(feats) + skip(lr)`, at any scale both can serve."""

    def __init__(self, main: nn.Module, skip: nn.Module):
        super().__init__()
        self.main, self.skip = main, skip

    @property
    def scales(self) -> tuple[int, ...] | None:
        return self.main.scales

    @property
    def receptive_radius(self) -> int:
        return max(self.main.receptive_radius, self.skip.receptive_radius)

    def forward(self, feats: Tensor, scale: int, lr: Tensor | None = None) -> Tensor:
        if lr is None:
            raise ValueError("this upsampler adds an upscaled input picture: pass it as lr (B, 3, h, w)")
        return self.main(feats, scale) + self.skip(feats, scale, lr)

    def instantiate(self, scale: int) -> WithSkip:
        return WithSkip(self.main.instantiate(scale), self.skip.instantiate(scale))


def count_parameters(module: nn.Module) -> int:
    """Number of stored learnable values."""
    return sum(p.numel() for p in module.parameters() if isinstance(p, torch.nn.Parameter))
