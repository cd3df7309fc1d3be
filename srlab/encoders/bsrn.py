"""BSRN encoder (Li et al., CVPRW 2022, arXiv 2205.05996): blueprint separable convolutions and two attentions.

A picture (B, 3, h, w) in [0, 1] in, features (B, C, h, w) out. Behaviour follows the authors' public code; the names of
the layers are ours, and `public.py` says which tensor of a public checkpoint belongs where.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlab.encoders.blocks import ContrastAttention

STEPS = 3  # refinement steps in a block; a fourth convolution ends it
SMALLEST_SIDE = 15  # 15 pixels leave 7 after the strided convolution, the side of the pooling window


class BlueprintConv(nn.Module):
    """A 3x3 convolution in two cheap parts: mix the channels in each pixel, then filter each channel."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1, padding: int = 1):
        super().__init__()
        self.pointwise = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.depthwise = nn.Conv2d(channels_out, channels_out, 3, stride=stride, padding=padding, groups=channels_out)

    def forward(self, feats: Tensor) -> Tensor:
        return self.depthwise(self.pointwise(feats))


class SpatialAttention(nn.Module):
    """ESA: a mask over pixels, worked out on a picture about six times smaller."""

    def __init__(self, channels: int):
        super().__init__()
        width = channels // 4
        self.narrow = nn.Conv2d(channels, width, 1)
        self.shrink = BlueprintConv(width, width, stride=2, padding=0)
        self.coarse = nn.ModuleList(BlueprintConv(width, width) for _ in range(3))
        self.shortcut = nn.Conv2d(width, width, 1)
        self.widen = nn.Conv2d(width, channels, 1)

    def forward(self, feats: Tensor) -> Tensor:
        narrow = self.narrow(feats)  # (B, C // 4, h, w)
        coarse = F.max_pool2d(self.shrink(narrow), 7, stride=3)
        coarse = self.coarse[2](F.gelu(self.coarse[1](F.gelu(self.coarse[0](coarse)))))
        coarse = F.interpolate(coarse, size=feats.shape[-2:], mode="bilinear", align_corners=False)
        return feats * self.widen(coarse + self.shortcut(narrow)).sigmoid()


class DistillationBlock(nn.Module):
    """ESDB: three refinements, each also read by a narrow 1x1 branch; all branches fused, then both attentions."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.branches = nn.ModuleList(nn.Conv2d(channels, half, 1) for _ in range(STEPS))
        self.refine = nn.ModuleList(BlueprintConv(channels, channels) for _ in range(STEPS))
        self.end = BlueprintConv(channels, half)
        self.fuse = nn.Conv2d((STEPS + 1) * half, channels, 1)
        self.spatial = SpatialAttention(channels)
        self.contrast = ContrastAttention(channels)

    def forward(self, feats: Tensor) -> Tensor:
        kept, refined = [], feats
        for branch, refine in zip(self.branches, self.refine, strict=True):
            kept.append(F.gelu(branch(refined)))
            refined = F.gelu(refine(refined) + refined)
        kept.append(F.gelu(self.end(refined)))
        return self.contrast(self.spatial(self.fuse(torch.cat(kept, dim=1)))) + feats


class BSRN(nn.Module):
    """BSRN without its last convolution and pixel shuffle.

    Args:
        channels: width C. Paper: 64.
        blocks: distillation blocks. Paper: 8.
        copies: how often the input picture is repeated along the channels before the first layer. Paper: 4.
    """

    receptive_radius = None  # the contrast attention takes means over the whole picture

    def __init__(self, channels: int = 64, blocks: int = 8, copies: int = 4):
        super().__init__()
        self.channels, self.copies = channels, copies
        self.shallow = BlueprintConv(3 * copies, channels)
        self.blocks = nn.ModuleList(DistillationBlock(channels) for _ in range(blocks))
        self.gather = nn.Conv2d(channels * blocks, channels, 1)
        self.last = BlueprintConv(channels, channels)

    def forward(self, lr: Tensor) -> Tensor:
        """lr (B, 3, h, w) in [0, 1] -> feats (B, C, h, w).

        Raises:
            ValueError: a side is shorter than 15 pixels.
        """
        h, w = lr.shape[-2:]
        if min(h, w) < SMALLEST_SIDE:
            raise ValueError(
                f"lr is {h} x {w} pixels, expected sides of at least {SMALLEST_SIDE}: BSRN's spatial attention "
                f"shrinks the picture to nothing; pad it (torch.nn.functional.pad, mode='replicate') and crop after"
            )
        feats = shallow = self.shallow(lr.repeat(1, self.copies, 1, 1))
        outputs = []
        for block in self.blocks:
            feats = block(feats)
            outputs.append(feats)
        gathered = F.gelu(self.gather(torch.cat(outputs, dim=1)))
        return self.last(gathered) + shallow
