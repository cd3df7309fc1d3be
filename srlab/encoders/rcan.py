"""RCAN encoder (Zhang et al. 2018, arXiv 1807.02758): residual groups of residual blocks with channel attention.

A picture (B, 3, h, w) in [0, 1] in, features (B, C, h, w) out. Here so that the official IGConv release for RCAN
(10 groups of 20 blocks, 64 channels) can be read; `public.py` maps its tensors.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from srlab.encoders.blocks import ChannelAttention
from srlab.encoders.edsr import conv3x3


class AttentionBlock(nn.Module):
    """x + attention(conv(relu(conv(x))))."""

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.conv1 = conv3x3(channels, channels)
        self.conv2 = conv3x3(channels, channels)
        self.attention = ChannelAttention(channels, reduction)

    def forward(self, feats: Tensor) -> Tensor:
        return feats + self.attention(self.conv2(F.relu(self.conv1(feats))))


class ResidualGroup(nn.Module):
    """Blocks and a convolution, with a skip around all of them."""

    def __init__(self, channels: int, blocks: int, reduction: int):
        super().__init__()
        self.blocks = nn.Sequential(*(AttentionBlock(channels, reduction) for _ in range(blocks)))
        self.last = conv3x3(channels, channels)

    def forward(self, feats: Tensor) -> Tensor:
        return feats + self.last(self.blocks(feats))


class RCAN(nn.Module):
    """RCAN without its upsampler.

    Args:
        channels: width C.
        groups: residual groups.
        blocks: blocks per group.
        reduction: hidden width of the attention is C // reduction.
    """

    receptive_radius = None  # the attention takes means over the whole picture

    def __init__(self, channels: int = 64, groups: int = 10, blocks: int = 20, reduction: int = 16):
        super().__init__()
        self.channels = channels
        # The model takes the mean colour off. The official IGConv code does that with a 1x1 convolution, and trains it
        # unawares; what became of it in training has its place here. In a fresh encoder it does nothing.
        self.colour = nn.Conv2d(3, 3, 1)
        nn.init.dirac_(self.colour.weight)
        nn.init.zeros_(self.colour.bias)
        self.shallow = conv3x3(3, channels)
        self.groups = nn.Sequential(*(ResidualGroup(channels, blocks, reduction) for _ in range(groups)))
        self.last = conv3x3(channels, channels)

    def forward(self, lr: Tensor) -> Tensor:
        shallow = self.shallow(self.colour(lr))
        return self.last(self.groups(shallow)) + shallow
