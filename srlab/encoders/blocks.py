"""Blocks that two or more encoders share: channel attention in its plain and its contrast-aware form.

Features (B, C, h, w) in, the same features with each channel scaled by a number between 0 and 1 out. The number is
worked out from a summary of the whole channel, so an encoder with one of these looks globally.
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
