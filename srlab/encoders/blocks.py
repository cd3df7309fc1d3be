"""Blocks that two or more encoders share: channel attention, plain and contrast-aware, and fast 1x1 convolutions.

Attention takes features (B, C, h, w) and scales each channel by a number between 0 and 1. The number is worked out from
a summary of the whole channel, so an encoder with one of these looks globally.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """Scale each channel by what two small layers make of all channels' means (RCAN, arXiv 1807.02758).

    Args:
        channels: width C of the features.
        reduction: the hidden layer has C // reduction units.
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        if channels < reduction:
            raise ValueError(
                f"channels is {channels} with reduction {reduction}: the hidden layer of channel attention would have "
                f"no units; expected at least {reduction} channels"
            )
        self.squeeze = nn.Conv2d(channels, channels // reduction, 1)
        self.excite = nn.Conv2d(channels // reduction, channels, 1)

    def summary(self, feats: Tensor) -> Tensor:
        """One number per channel, (B, C, 1, 1)."""
        return feats.mean(dim=(2, 3), keepdim=True)

    def forward(self, feats: Tensor) -> Tensor:
        return feats * self.excite(F.relu(self.squeeze(self.summary(feats)))).sigmoid()


class ContrastAttention(ChannelAttention):
    """Channel attention whose summary is mean plus standard deviation (IMDN, arXiv 1909.11856, and BSRN)."""

    def summary(self, feats: Tensor) -> Tensor:
        variance = feats.var(dim=(2, 3), keepdim=True, correction=0)
        smallest = torch.finfo(variance.dtype).tiny  # keeps the square root's gradient finite in a constant channel
        return feats.mean(dim=(2, 3), keepdim=True) + variance.clamp(min=smallest).sqrt()


def pointwise(feats: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1x1 convolution: (B, C, h, w), (D, C, 1, 1) -> (B, D, h, w).

    On one CPU thread PyTorch hands 1x1 convolutions of fewer than 16 pictures to its slower library. It makes no
    difference to a 1x1 convolution which picture a pixel belongs to, so strips of rows stand in for pictures: a view
    of channels_last features, 0.6 times the time (measured, forward and backward).
    """
    batch, channels, h, w = feats.shape
    if batch >= 16 or feats.device.type != "cpu" or not feats.is_contiguous(memory_format=torch.channels_last):
        return F.conv2d(feats, weight, bias)
    strips = next((n for n in range(1, h) if h % n == 0 and batch * n >= 16), h)
    rows = feats.permute(0, 2, 3, 1).reshape(batch * strips, h // strips, w, channels).permute(0, 3, 1, 2)
    rows = F.conv2d(rows, weight, bias).permute(0, 2, 3, 1)
    return rows.reshape(batch, h, w, len(weight)).permute(0, 3, 1, 2)


class Pointwise(nn.Conv2d):
    """A layer of `pointwise`; parameters as those of a 1x1 `nn.Conv2d`."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__(channels_in, channels_out, 1)

    def forward(self, feats: Tensor) -> Tensor:
        return pointwise(feats, self.weight, self.bias)
