"""IMDN encoder (Hui et al., ACM MM 2019, arXiv 1909.11856): blocks that set channels aside step by step.

A picture (B, 3, h, w) in [0, 1] in, features (B, C, h, w) out. Behaviour follows the authors' public code; the names of
the layers are ours, and `public.py` says which tensor of a public checkpoint belongs where.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlab.encoders.blocks import ContrastAttention
from srlab.encoders.edsr import conv3x3

SLOPE = 0.05  # of the leaky ReLU below zero
STEPS = 4  # convolutions in a block, and quarters of the channels kept


class DistillationBlock(nn.Module):
    """Four convolutions in a row; each keeps a quarter of its channels for the end and hands the rest on."""

    def __init__(self, channels: int):
        super().__init__()
        self.kept = channels // STEPS
        passed_on = channels - self.kept
        widths_in = [channels] + [passed_on] * (STEPS - 1)
        widths_out = [channels] * (STEPS - 1) + [self.kept]
        self.steps = nn.ModuleList(conv3x3(a, b) for a, b in zip(widths_in, widths_out, strict=True))
        self.attention = ContrastAttention(STEPS * self.kept)
        self.fuse = nn.Conv2d(channels, channels, 1)

    def forward(self, feats: Tensor) -> Tensor:
        kept, rest = [], feats
        for step in self.steps[:-1]:
            out = F.leaky_relu(step(rest), SLOPE)  # (B, C, h, w)
            kept.append(out[:, : self.kept])
            rest = out[:, self.kept :]
        kept.append(self.steps[-1](rest))  # no activation on the last step
        return self.fuse(self.attention(torch.cat(kept, dim=1))) + feats


class IMDN(nn.Module):
    """IMDN without its last convolution and pixel shuffle.

    Args:
        channels: width C, a multiple of 4. Paper: 64.
        blocks: distillation blocks. Paper: 6.
    """

    receptive_radius = None  # the attention takes means over the whole picture

    def __init__(self, channels: int = 64, blocks: int = 6):
        super().__init__()
        if channels % STEPS:
            raise ValueError(
                f"channels is {channels}, expected a multiple of {STEPS}: each block keeps them in quarters"
            )
        self.channels = channels
        self.shallow = conv3x3(3, channels)
        self.blocks = nn.ModuleList(DistillationBlock(channels) for _ in range(blocks))
        self.gather = nn.Conv2d(channels * blocks, channels, 1)
        self.last = conv3x3(channels, channels)

    def forward(self, lr: Tensor) -> Tensor:
        feats = shallow = self.shallow(lr)
        outputs = []
        for block in self.blocks:
            feats = block(feats)
            outputs.append(feats)
        gathered = F.leaky_relu(self.gather(torch.cat(outputs, dim=1)), SLOPE)
        return self.last(gathered) + shallow
