"""SMFANet encoder (Zheng et al., ECCV 2024): blocks that modulate features by a coarse view of the whole picture.

A picture (B, 3, h, w) in [0, 1] in, features (B, C, h, w) out. SMFANet and SMFANet+ are the same network in two sizes
(36 channels and 8 blocks, 48 channels and 12 blocks). Behaviour follows the authors' public code; the names of the
layers are ours, and `public.py` says which tensor of a public checkpoint belongs where.

Where the public code takes slices of a layer's output, this one takes slices of the layer's weight: the same numbers,
but every part comes out whole in memory and nothing has to be put together or copied for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlab.encoders.blocks import Pointwise, pointwise
from srlab.encoders.edsr import conv3x3

COARSE = 8  # the coarse branch looks at the picture pooled to 1/8 of its sides


def depthwise3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    """3x3 convolution in which every output channel reads one input channel."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, groups=channels_in)


class Modulation(nn.Module):
    """SMFA: one half of the features keeps detail, the other is scaled by a gate seen from far away.

    gate = conv(gelu(alpha * depthwise(pooled x) + beta * variance of x)), repeated up to full size. Both the pooling
    and the variance see the whole picture.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.split = Pointwise(channels, 2 * channels)  # first half fine, second half broad
        self.coarse = depthwise3x3(channels, channels)
        self.coarse_weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.variance_weight = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gate = Pointwise(channels, channels)
        self.detail = nn.Sequential(
            depthwise3x3(channels, 2 * channels),
            Pointwise(2 * channels, 2 * channels),
            nn.GELU(),
            Pointwise(2 * channels, channels),
        )
        self.merge = Pointwise(channels, channels)

    def forward(self, feats: Tensor) -> Tensor:
        channels, h, w = feats.shape[-3:]
        broad = pointwise(feats, self.split.weight[channels:], self.split.bias[channels:])  # (B, C, h, w)
        pooled = self.coarse(F.adaptive_max_pool2d(broad, (h // COARSE, w // COARSE)))  # (B, C, h // 8, w // 8)
        variance = _variance(broad)  # (B, C, 1, 1)
        gate = F.gelu(self.gate(pooled * self.coarse_weight + variance * self.variance_weight))
        gate = F.interpolate(gate, size=(h, w), mode="nearest")
        return self.merge(broad * gate + self._fine(feats))

    def _fine(self, feats: Tensor) -> Tensor:
        """The detail branch, (B, C, h, w)."""
        channels = feats.shape[1]
        widen, *others = self.detail
        fine = _widened(pointwise(feats, self.split.weight[:channels], self.split.bias[:channels]), widen)
        for layer in others:
            fine = layer(fine)
        return fine


def _widened(feats: Tensor, conv: nn.Conv2d) -> Tensor:
    """`conv(feats)` where each input channel feeds two outputs: a CPU is fast only if the channel is there twice."""
    if feats.device.type != "cpu" or not feats.is_contiguous(memory_format=torch.channels_last):
        return conv(feats)
    twice = feats.permute(0, 2, 3, 1)[..., None].expand(-1, -1, -1, -1, 2).flatten(3).permute(0, 3, 1, 2)
    return F.conv2d(twice, conv.weight, conv.bias, padding=1, groups=twice.shape[1])


def _unit_length(feats: Tensor) -> Tensor:
    """`F.normalize(feats)`, with fewer passes over the features on the way back."""
    if feats.dtype not in (torch.float32, torch.float64):  # sums of squares would overflow in half precision
        return F.normalize(feats)
    return feats * feats.square().sum(dim=1, keepdim=True).clamp_min(1e-24).rsqrt()


def _variance(feats: Tensor) -> Tensor:
    """Variance of each channel, (B, C, 1, 1), with n - 1 as the public code has it."""
    exact = feats.dtype in (torch.float32, torch.float64)  # a mean in half precision is too coarse to be taken off
    return _Variance.apply(feats) if exact else feats.var(dim=(2, 3), keepdim=True)


class _Variance(torch.autograd.Function):
    """`feats.var(dim=(2, 3), keepdim=True)` in two passes: the mean, then the squares of what is left without it.

    PyTorch updates mean and squares pixel by pixel, which takes four times as long on features in channels_last order
    (measured, 640 x 360) and was a sixth of the encoder's time. A second derivative is refused: the mean is no part of
    the graph, so it would be wrong.
    """

    @staticmethod
    def forward(ctx: Any, feats: Tensor) -> Tensor:
        mean = feats.mean(dim=(2, 3), keepdim=True)
        ctx.save_for_backward(feats, mean)
        return (feats - mean).square_().sum(dim=(2, 3), keepdim=True) / (feats.shape[2] * feats.shape[3] - 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("SMFANet's variance has first derivatives only: create_graph=True asks for more")
        feats, mean = ctx.saved_tensors
        return (feats - mean).mul_(gradient * (2 / (feats.shape[2] * feats.shape[3] - 1)))


class PartialFeedForward(nn.Module):
    """PCFN: widen, convolve a quarter of the channels over 3x3 pixels, narrow."""

    def __init__(self, channels: int, expansion: float):
        super().__init__()
        hidden = round(channels * expansion)
        self.part = hidden // 4
        self.widen = Pointwise(channels, hidden)
        self.partial = conv3x3(self.part, self.part)
        self.narrow = Pointwise(hidden, channels)

    def forward(self, feats: Tensor) -> Tensor:
        part, widen, narrow = self.part, self.widen, self.narrow
        mixed = F.gelu(pointwise(feats, widen.weight[:part], widen.bias[:part]))  # (B, a quarter, h, w)
        kept = F.gelu(pointwise(feats, widen.weight[part:], widen.bias[part:]))
        mixed = F.gelu(self.partial(mixed))
        return pointwise(mixed, narrow.weight[:, :part], narrow.bias) + pointwise(kept, narrow.weight[:, part:])


class ModulationBlock(nn.Module):
    """x + modulation(x), then x + feed-forward(x); both read the features at unit length per pixel."""

    def __init__(self, channels: int, expansion: float):
        super().__init__()
        self.modulation = Modulation(channels)
        self.feed_forward = PartialFeedForward(channels, expansion)

    def forward(self, feats: Tensor) -> Tensor:
        feats = feats + self.modulation(_unit_length(feats))
        return feats + self.feed_forward(_unit_length(feats))


class SMFANet(nn.Module):
    """SMFANet without its last convolution and pixel shuffle.

    Args:
        channels: width C. Paper: 36 (SMFANet), 48 (SMFANet+).
        blocks: paper: 8 (SMFANet), 12 (SMFANet+).
        expansion: hidden width of the feed-forward part, in units of C.
    """

    receptive_radius = None  # pooling and variance see the whole picture

    def __init__(self, channels: int = 36, blocks: int = 8, expansion: float = 2.0):
        super().__init__()
        self.channels = channels
        self.shallow = conv3x3(3, channels)
        self.blocks = nn.Sequential(*(ModulationBlock(channels, expansion) for _ in range(blocks)))

    def forward(self, lr: Tensor) -> Tensor:
        """lr (B, 3, h, w) in [0, 1] -> feats (B, C, h, w).

        Raises:
            ValueError: a side is shorter than 8 pixels.
        """
        h, w = lr.shape[-2:]
        if min(h, w) < COARSE:
            raise ValueError(
                f"lr is {h} x {w} pixels, expected sides of at least {COARSE}: SMFANet pools to 1/{COARSE} of the "
                f"sides, to nothing here; pad the picture (torch.nn.functional.pad, mode='replicate') and crop after"
            )
        shallow = self.shallow(lr)
        return self.blocks(shallow) + shallow
