"""RDN encoder (Zhang et al. 2018, arXiv 1802.08797): densely connected blocks, all their outputs fused.

A picture (B, 3, h, w) in [0, 1] in, features (B, C, h, w) out. Here so that the official IGConv release for RDN
(configuration B: 16 blocks of 8 layers, 64 channels each) can be read; `public.py` maps its tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlab.encoders.edsr import conv3x3


class DenseBlock(nn.Module):
    """Each layer reads everything before it and adds `growth` channels; a 1x1 convolution folds them back to C."""

    def __init__(self, channels: int, layers: int, growth: int):
        super().__init__()
        self.layers = nn.ModuleList(conv3x3(channels + i * growth, growth) for i in range(layers))
        self.fuse = nn.Conv2d(channels + layers * growth, channels, 1)

    def forward(self, feats: Tensor) -> Tensor:
        seen = feats
        for layer in self.layers:
            seen = torch.cat([seen, F.relu(layer(seen))], dim=1)
        return self.fuse(seen) + feats


class RDN(nn.Module):
    """RDN without its upsampler; defaults are configuration B.

    Args:
        channels: width C.
        blocks: residual dense blocks.
        layers: convolutions per block.
        growth: channels each of them adds.
    """

    def __init__(self, channels: int = 64, blocks: int = 16, layers: int = 8, growth: int = 64):
        super().__init__()
        self.channels = channels
        self.receptive_radius = blocks * layers + 3  # one pixel for each 3x3 convolution
        self.shallow = nn.ModuleList([conv3x3(3, channels), conv3x3(channels, channels)])
        self.blocks = nn.ModuleList(DenseBlock(channels, layers, growth) for _ in range(blocks))
        self.gather = nn.Sequential(nn.Conv2d(channels * blocks, channels, 1), conv3x3(channels, channels))

    def forward(self, lr: Tensor) -> Tensor:
        first = self.shallow[0](lr)  # (B, C, h, w)
        feats, outputs = self.shallow[1](first), []
        for block in self.blocks:
            feats = block(feats)
            outputs.append(feats)
        return self.gather(torch.cat(outputs, dim=1)) + first
