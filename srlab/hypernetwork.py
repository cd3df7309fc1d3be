"""Hyper-network room: one small network that emits the kernel of a sub-pixel convolution for any integer scale.

Takes a scale; gives a kernel (maps * scale**2, C, k, k), differentiable in the network's weights. `igconv` makes
upsamplers of it. The formulas are the paper's (section on IGConv) and the official code's, so that its checkpoints fit;
their plain form is in `textbook`. The form here computes the same in the order that costs least.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlab.upsamplers import checked_scale


def grid_centres(scale: int, *, device=None, dtype=torch.float32) -> Tensor:
    """Centres of `scale` equal cells on [-1, 1]: the sub-pixels of one LR pixel along one axis, (scale,)."""
    return (2 * torch.arange(scale, device=device, dtype=dtype) + 1) / scale - 1


def average_over_flips_and_rotations(kernel: Tensor) -> Tensor:
    """FGRep: mean of a kernel over the eight flips and rotations of its taps (paper's geometric re-parameterisation).

    Convolution is linear in its kernel, so one convolution with the mean equals the mean of eight, in value and in
    gradient. Every flip or rotation is a product of a transposition and two mirrorings, hence three halvings.

    Args:
        kernel: (..., k, k). Colours and sub-pixels are not permuted, only taps.

    Returns:
        Same shape; for k = 3 each filter keeps three free numbers (centre, edge, corner).
    """
    for transform in (lambda k: k.transpose(-1, -2), lambda k: k.flip(-1), lambda k: k.flip(-2)):
        kernel = (kernel + transform(kernel)) / 2
    return kernel


def _places(centres: Tensor) -> Tensor:
    """(x, y) of the sub-pixels of one LR pixel, row by row, (scale * scale, 2); from `grid_centres`."""
    return torch.cartesian_prod(centres, centres).flip(-1)


class _Waves(torch.autograd.Function):
    """amplitude * [cos(theta), sin(theta)] where theta = x * along_x + y * along_y + phase, on a grid of places.

    PyTorch's own graph of this formula walks over the rows three times as often; they are many, and walking is all that
    is to be done. A cosine is written as a sine a quarter turn ahead, so that there is one array of waves.
    A second derivative is refused: the waves are no part of the graph, so it would be wrong.

    Args:
        along: (N, 2, w), turns per unit of x and of y.
        amplitude: (N, 2 * w), of the cosines, then of the sines.
        phase: (w,).
        centres: (s,), places along one axis; takes no gradient.

    Returns:
        (N, s * s, 2 * w), y slowest.
    """

    @staticmethod
    def forward(ctx: Any, along: Tensor, amplitude: Tensor, phase: Tensor, centres: Tensor) -> Tensor:
        along_x, along_y = torch.cat([along, along], dim=-1).unbind(-2)  # (N, 2 * w) each
        phase = torch.cat([phase + math.pi / 2, phase])
        of_columns = along_x[:, None] * centres[:, None]  # (N, s, 2 * w)
        of_lines = torch.addcmul(phase, along_y[:, None], centres[:, None])
        waves = (of_lines[:, :, None] + of_columns[:, None]).flatten(1, 2).sin_()
        ctx.save_for_backward(waves, amplitude, centres)
        return waves * amplitude[:, None]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("a kernel of ImplicitKernel has first derivatives only: create_graph=True asks for more")
        waves, amplitude, centres = ctx.saved_tensors
        for_amplitude = (gradient * waves).sum(-2)
        gradient = gradient * amplitude[:, None]
        for_cosines, for_sines = gradient.chunk(2, dim=-1)
        cosines, sines = waves.chunk(2, dim=-1)
        for_theta = (for_sines * cosines).addcmul_(for_cosines, sines, value=-1)
        return _places(centres).T @ for_theta, for_amplitude, for_theta.sum((0, 1)), None


class ImplicitKernel(nn.Module):
    """Hyper-network: the kernel of a sub-pixel convolution as a function of the scale.

    For kernel element j (channel c, tap row p, tap column q) and sub-pixel (u, v) at (y, x) in [-1, 1]:
    theta = fx[j] * x + fy[j] * y + phase(2 / min(scale, max_scale)),
    features = amplitude[j] * [cos(pi theta), sin(pi theta)],
    and an MLP shared by all elements maps the features to `maps` values (paper, section on IGConv; official code).

    Args:
        channels: width C of the features the kernel will read.
        maps: values per sub-pixel: 3 colours, or 12 sampling maps.
        kernel_size: odd side k of the taps.
        implicit_dim: D, number of Fourier features per kernel element; even.
        hidden_layers: L, hidden layers of the MLP, each as wide as the features.
        groups: the features are split into this many independent MLPs, every groups-th frequency to the same one.
        last_bias: whether the last layer has a bias.
        fgrep: average the kernel over flips and rotations.
        max_scale: above it the phase is frozen (the grid still gets finer).
        fourier: False gives the plain coordinate network instead, for comparison: each element has a learnt code, and
            code, x, y and 2 / scale enter the MLP as they are. The MLP is as wide, and codes are as long as makes the
            whole store as many numbers (0.4 % fewer at most), so that only the way in differs.
    """

    def __init__(
        self,
        channels: int,
        maps: int,
        *,
        kernel_size: int = 3,
        implicit_dim: int = 256,
        hidden_layers: int = 4,
        groups: int = 1,
        last_bias: bool = True,
        fgrep: bool = False,
        max_scale: int = 4,
        fourier: bool = True,
    ):
        super().__init__()
        if implicit_dim % (2 * groups) or maps % groups:
            raise ValueError(
                f"implicit_dim is {implicit_dim} and maps is {maps}: expected multiples of {2 * groups} and {groups}, "
                f"since half the features are cosines, half sines, shared out over {groups} group(s)"
            )
        self.channels, self.maps, self.kernel_size = channels, maps, kernel_size
        self.groups, self.fgrep, self.max_scale, self.fourier = groups, fgrep, max_scale, fourier
        elements = channels * kernel_size**2
        widths = [implicit_dim] * (hidden_layers + 1)
        # small random numbers, so that before training the kernel hardly depends on the position
        if fourier:  # (N, D) each; of the frequencies, the first half for x, the second for y
            self.frequency = nn.Parameter(0.02 * torch.randn(elements, implicit_dim))
            self.amplitude = nn.Parameter(0.02 * torch.randn(elements, implicit_dim))
            self.phase = nn.Conv2d(1, implicit_dim // 2, 1)
        else:
            numbers = 2 * elements * implicit_dim + (implicit_dim // groups - 2) * implicit_dim  # to be made up
            code_width = numbers // (elements + implicit_dim // groups) // groups * groups
            self.code = nn.Parameter(0.02 * torch.randn(elements, code_width))
            widths[0] = code_width + 3 * groups  # each group also reads x, y and 2 / scale
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 1, groups=groups) for a, b in itertools.pairwise(widths))
        self.layers.append(nn.Conv2d(implicit_dim, maps, 1, groups=groups, bias=last_bias))
        self._cache: dict[int, tuple[tuple, Tensor]] = {}

    def forward(self, scale: int) -> Tensor:
        """Kernel of `scale`, (maps * scale**2, C, k, k), map slowest, then sub-pixel row, then column.

        In evaluation without gradients the kernel is kept and given again until a weight has changed: read it, do not
        write into it (`IGConv.kernel` gives a copy). What is written through a weight's `.data` is not seen: PyTorch
        does not count it; `train()` and `eval()` empty the cache. Inference tensors are not counted either, so that a
        model built under `torch.inference_mode` computes its kernel every time.
        """
        scale = checked_scale(scale)
        if self.training or torch.is_grad_enabled():
            return self._compute(scale)
        parameters = list(self.parameters())
        if any(p.is_inference() for p in parameters):
            return self._compute(scale)
        kind = parameters[0].device.type
        possible = torch.amp.is_autocast_available(kind)  # not where only shapes are computed
        mixed = torch.get_autocast_dtype(kind) if possible and torch.is_autocast_enabled(kind) else None
        version = (mixed, *((p.data_ptr(), p._version, p.dtype) for p in parameters))
        if scale not in self._cache or self._cache[scale][0] != version:
            self._cache[scale] = (version, self._compute(scale))
        return self._cache[scale][1]

    def train(self, mode: bool = True) -> ImplicitKernel:
        self._cache.clear()
        return super().train(mode)

    def fourier_features(self, scale: int) -> list[Tensor]:
        """amplitude * [cos(pi theta), sin(pi theta)] at each sub-pixel; per group (N, scale * scale, D / groups)."""
        elements, groups = len(self.frequency), self.groups
        phase = self.phase.weight.flatten() * (2 / min(scale, self.max_scale)) + self.phase.bias  # (D / 2,)
        # every groups-th frequency to the same group; of the amplitudes, a group has its cosines and its sines together
        along = (math.pi * self.frequency).view(elements, 2, -1, groups).unbind(-1)
        phase = (math.pi * phase).view(-1, groups).unbind(-1)
        shares = zip(along, self.amplitude.chunk(groups, dim=-1), phase, strict=True)
        centres = grid_centres(scale, device=self.frequency.device, dtype=self.frequency.dtype)
        return [_Waves.apply(*share, centres) for share in shares]

    def plain_features(self, scale: int) -> list[Tensor]:
        """[code, x, y, 2 / scale] at each sub-pixel; per group (N, scale * scale, code width / groups + 3)."""
        places = _places(grid_centres(scale, device=self.code.device, dtype=self.code.dtype))
        places = torch.cat([places, torch.full_like(places[:, :1], 2 / min(scale, self.max_scale))], dim=1)
        places = places.expand(len(self.code), -1, -1)
        codes = self.code[:, None].expand(-1, scale**2, -1).chunk(self.groups, dim=-1)
        return [torch.cat([code, places], dim=-1) for code in codes]

    def _compute(self, scale: int) -> Tensor:
        features = self.fourier_features(scale) if self.fourier else self.plain_features(scale)
        maps = torch.cat([self._mlp(rows, group) for group, rows in enumerate(features)], dim=-1)
        k = self.kernel_size
        kernel = maps.permute(3, 2, 0, 1).reshape(self.maps * scale**2, self.channels, k, k)
        return average_over_flips_and_rotations(kernel) if self.fgrep else kernel

    def _mlp(self, features: Tensor, group: int) -> Tensor:
        """One group's MLP on every row of features: (N, scale * scale, d) -> (C, k * k, scale * scale, maps / groups).

        Rows go through 1x1 convolutions on a channels_last view: the same product as `F.linear`, but on the faster of
        PyTorch's two CPU matrix libraries, except for the last, which is too narrow for it. Groups run one after the
        other, as plain products, for the same reason.
        """
        x = features.reshape(self.channels, self.kernel_size**2, -1, features.shape[-1])
        x = x.permute(0, 3, 1, 2)  # (C, d, k * k, scale * scale), channels_last in memory: nothing is copied
        *hidden, last = (self._share(layer, group) for layer in self.layers)
        for weight, bias in hidden:
            x = F.relu_(F.conv2d(x, weight, bias))
        weight, bias = last
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias)

    def _share(self, layer: nn.Conv2d, group: int) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of one group of a layer."""
        if self.groups == 1:  # a share that is the whole would be copied on the way back
            return layer.weight, layer.bias
        weight = layer.weight.chunk(self.groups)[group]
        return weight, None if layer.bias is None else layer.bias.chunk(self.groups)[group]

    def extra_repr(self) -> str:
        return f"channels={self.channels}, maps={self.maps}, kernel_size={self.kernel_size}, fgrep={self.fgrep}"
