"""EDSR encoder (Lim et al. 2017, arXiv 1707.02921): residual blocks without normalisation, one long skip.

Takes a picture whose mean colour was taken off, gives features; written from the architecture's description, with the
layer order of the widely used BasicSR form so that its checkpoints fit (see `srlab.weights`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps height and width: (B, channels_in, h, w) -> (B, channels_out, h, w)."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


class ResidualBlock(nn.Module):
    """x + res_scale * conv(relu(conv(x))), all (B, C, h, w)."""

    def __init__(self, channels: int, res_scale: float):
        super().__init__()
        self.conv1 = conv3x3(channels, channels)
        self.conv2 = conv3x3(channels, channels)
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.conv2(F.relu_(self.conv1(x))), alpha=self.res_scale)


class EDSR(nn.Module):
    """EDSR without its upsampler.

    Args:
        channels: width C. Paper: 64 (baseline), 256 (full).
        blocks: residual blocks. Paper: 16 (baseline), 32 (full).
        res_scale: weight of each residual branch; 0.1 keeps the full size stable, 1 in the baseline.
    """

    def __init__(self, channels: int = 64, blocks: int = 16, res_scale: float = 1.0):
        super().__init__()
        self.channels = channels
        self.receptive_radius = 2 * blocks + 2  # one pixel for each 3x3 convolution
        self.conv_first = conv3x3(3, channels)
        self.body = nn.Sequential(*(ResidualBlock(channels, res_scale) for _ in range(blocks)))
        self.conv_after_body = conv3x3(channels, channels)

    def forward(self, lr: Tensor) -> Tensor:
        shallow = self.conv_first(lr)  # (B, C, h, w)
        return self.conv_after_body(self.body(shallow)) + shallow
