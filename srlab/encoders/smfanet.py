"""SMFANet encoder (Zheng et al., ECCV 2024): blocks that modulate features by a coarse view of the whole picture.

A picture (B, 3, h, w) in [0, 1] in, features (B, C, h, w) out. SMFANet and SMFANet+ are the same network in two sizes
(36 channels and 8 blocks, 48 channels and 12 blocks). Behaviour follows the authors' public code; the names of the
layers are ours, and `public.py` says which tensor of a public checkpoint belongs where.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        self.split = nn.Conv2d(channels, 2 * channels, 1)
        self.coarse = depthwise3x3(channels, channels)
        self.coarse_weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.variance_weight = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gate = nn.Conv2d(channels, channels, 1)
        self.detail = nn.Sequential(
            depthwise3x3(channels, 2 * channels),
            nn.Conv2d(2 * channels, 2 * channels, 1),
            nn.GELU(),
            nn.Conv2d(2 * channels, channels, 1),
        )
        self.merge = nn.Conv2d(channels, channels, 1)

    def forward(self, feats: Tensor) -> Tensor:
        h, w = feats.shape[-2:]
        fine, broad = self.split(feats).chunk(2, dim=1)  # (B, C, h, w) each
        pooled = self.coarse(F.adaptive_max_pool2d(broad, (h // COARSE, w // COARSE)))  # (B, C, h // 8, w // 8)
        variance = broad.var(dim=(2, 3), keepdim=True)  # (B, C, 1, 1), with n - 1 as the public code has it
        gate = F.gelu(self.gate(pooled * self.coarse_weight + variance * self.variance_weight))
        gate = F.interpolate(gate, size=(h, w), mode="nearest")
        return self.merge(broad * gate + self.detail(fine))


class PartialFeedForward(nn.Module):
    """PCFN: widen, convolve a quarter of the channels over 3x3 pixels, narrow."""

    def __init__(self, channels: int, expansion: float):
        super().__init__()
        hidden = round(channels * expansion)
        self.part = hidden // 4
        self.widen = nn.Conv2d(channels, hidden, 1)
        self.partial = conv3x3(self.part, self.part)
        self.narrow = nn.Conv2d(hidden, channels, 1)

    def forward(self, feats: Tensor) -> Tensor:
        hidden = F.gelu(self.widen(feats))
        mixed, kept = hidden[:, : self.part], hidden[:, self.part :]
        return self.narrow(torch.cat([F.gelu(self.partial(mixed)), kept], dim=1))


class ModulationBlock(nn.Module):
    """x + modulation(x), then x + feed-forward(x); both read the features at unit length per pixel."""

    def __init__(self, channels: int, expansion: float):
        super().__init__()
        self.modulation = Modulation(channels)
        self.feed_forward = PartialFeedForward(channels, expansion)

    def forward(self, feats: Tensor) -> Tensor:
        feats = feats + self.modulation(F.normalize(feats))
        return feats + self.feed_forward(F.normalize(feats))


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
