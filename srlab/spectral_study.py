"""Spectral study room: spectral bias from the ground up, on a line, on a photograph, on the kernels of real models.

A network trained on a signal learns its slow parts first (Rahaman et al., ICML 2019; Xu et al., 2019), unless the
place enters through waves that are fast enough (Fourier features; Tancik et al., NeurIPS 2020). Three experiments ask
for it: `fit_line` (a sum of sines), `fit_photo` (a coordinate network paints), `fit_kernel` (the hyper-network of
IGConv reproduces a stored sub-pixel kernel). Networks are trained side by side, as one batch of matrices.

Takes tensors and the names of models; gives errors by frequency and step. The slow one, `recorded_kernel_fits`, ships
as `data/results/spectral_kernels.csv`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from srlab import datasets, hypernetwork, images, kernels, resize, runtime, spectra, statistics, weights
from srlab.statistics import Interval

LEVEL = 0.1
"""A frequency counts as learnt when its error has fallen to this share of its amplitude."""

# networks in a batch


def first_weights(networks: int, widths: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Weights (networks, in, out) and biases (networks, 1, out), layer by layer; He's initialisation, biases zero."""
    parameters = []
    for inputs, outputs in itertools.pairwise(widths):
        weight = torch.randn(networks, inputs, outputs, generator=generator) * math.sqrt(2 / inputs)
        parameters += [weight.requires_grad_(), torch.zeros(networks, 1, outputs).requires_grad_()]
    return parameters


def run_networks(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """ReLU networks side by side: (networks, points, in) -> (networks, points, out)."""
    last = len(parameters) // 2 - 1
    for layer in range(last + 1):
        x = torch.baddbmm(parameters[2 * layer + 1], x, parameters[2 * layer])
        x = torch.relu(x) if layer < last else x
    return x


def waves(places: Tensor, frequencies: Tensor) -> Tensor:
    """Fourier features [cos, sin](2 pi f . x): places (networks, points, d), frequencies (networks, d, m) in cycles."""
    angle = 2 * math.pi * places @ frequencies
    return torch.cat([angle.cos(), angle.sin()], dim=-1)  # (networks, points, 2 m)


# a sum of sines


@dataclass(frozen=True)
class LineFit:
    """How a network learns each sine of a sum."""

    frequencies: Tensor
    """(K,) cycles over the whole line"""
    error: Tensor
    """(steps + 1, networks, K): what is missing of each sine, as a share of its amplitude, after 0, 1, 2, ... steps"""

    def time_to(self, level: float = LEVEL) -> Tensor:
        """Steps (networks, K) until the error is at most `level` for the first time; inf where it never is."""
        reached = self.error <= level
        first = reached.int().argmax(dim=0).to(self.error.dtype)
        return torch.where(reached.any(dim=0), first, torch.full_like(first, math.inf))

    def course(self, points: int = 60) -> tuple[Tensor, Tensor]:
        """Steps (points,) and errors (points, K) for drawing: geometric means over networks and growing spans."""
        last = len(self.error) - 1
        edges = torch.unique(torch.logspace(0, math.log10(last + 1), points + 1).round().long())
        typical = self.error.clamp_min(1e-6).log().mean(1)  # (steps + 1, K)
        pieces = [typical[a:b].mean(0) for a, b in itertools.pairwise(edges.tolist())]
        return (edges[:-1] * edges[1:]).double().sqrt(), torch.stack(pieces).exp()

    def order(self, level: float = LEVEL) -> Interval:
        """Rank correlation of frequency and `time_to`, mean over networks with Student's t interval over them.

        1 means slow ones first in every network, 0 no order. Sines that are never learnt rank last, all alike.
        """
        times = self.time_to(level).clamp(max=len(self.error)).numpy()
        if (np.ptp(times, axis=1) == 0).any():
            raise ValueError(f"a network learnt all sines at one step, or none: is {level} a level they cross?")
        return statistics.bootstrap_mean([statistics.rank_correlation(self.frequencies, row).mean for row in times])


def fit_line(
    spread: float | None = None,
    *,
    networks: int = 8,
    frequencies: Sequence[int] = tuple(range(1, 11)),
    steps: int = 3000,
    points: int = 128,
    width: int = 64,
    features: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> LineFit:
    """Train small networks on a sum of sines of equal amplitude on [0, 1], each network with phases of its own.

    Args:
        spread: of the Fourier features' random frequencies (standard deviation, cycles over the line); None gives the
            network the bare place instead.
        networks: how many, each with its own target, first weights and frequencies.
        frequencies: whole cycles over the line.
        steps: of Adam on all points.
        points, width, features, learning_rate: sizes; three hidden layers.
        seed: of everything.
    """
    generator = torch.Generator().manual_seed(seed)
    place = ((torch.arange(points) + 0.5) / points)[None, :, None].expand(networks, -1, -1)  # (networks, points, 1)
    cycles = torch.tensor(frequencies, dtype=torch.float32)
    phases = torch.rand(networks, len(cycles), 1, generator=generator) * 2 * math.pi
    target = torch.sin(2 * math.pi * cycles[:, None] * place[:, None, :, 0] + phases).sum(1)[..., None]
    if spread is None:
        x = 2 * place - 1
    else:
        x = waves(place, spread * torch.randn(networks, 1, features, generator=generator))
    parameters = first_weights(networks, [x.shape[-1], width, width, width, 1], generator)
    optimizer = torch.optim.Adam(parameters, learning_rate)
    analysis = torch.exp(-2j * math.pi * place[0] * cycles) * 2 / points  # (points, K), amplitude and phase of each
    wanted = target[..., 0].to(torch.complex64) @ analysis
    errors = []
    for step in range(steps + 1):
        found = run_networks(x, parameters)
        reached = found.detach()[..., 0].to(torch.complex64) @ analysis
        errors.append((reached - wanted).abs() / wanted.abs())
        if step < steps:
            optimizer.zero_grad()
            (found - target).square().mean((1, 2)).sum().backward()
            optimizer.step()
    return LineFit(cycles, torch.stack(errors))


# a photograph


@dataclass(frozen=True)
class PhotoFit:
    """How a network learns to paint a picture, octave by octave."""

    steps: list[int]
    error: Tensor
    """(looks, networks, bands): power of the error relative to the picture's in the band"""
    painted: Tensor
    """(looks, networks, H, W), in the units of the picture"""


PHOTO_BANDS = (0.0, 1 / 16, 1 / 8, 1 / 4, 0.7072)
"""Octaves that a picture of 64 pixels can hold apart."""


def photo(side: int = 64) -> Tensor:
    """The astronaut's face, luma (side, side) in [0, 1], at half its size so that it is full of fine detail."""
    photographs = datasets.load("demo")
    y = images.rgb_to_y(photographs.image(photographs.names.index("astronaut"))).float() / 255
    return resize.imresize(y, 0.5)[0, 10 : 10 + side, 80 : 80 + side].clone()


def fit_photo(
    picture: Tensor,
    spread: float | None = None,
    *,
    networks: int = 3,
    looks: Sequence[int] = (25, 50, 100, 200, 400),
    width: int = 64,
    features: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> PhotoFit:
    """Train networks that say how bright a picture is at (x, y).

    Args:
        picture: (H, W).
        spread: as in `fit_line`, in cycles over the picture's side.
        looks: steps after which the octaves are looked at; the last one ends the training.
        networks, width, features, learning_rate, seed: as in `fit_line`.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width_ = picture.shape
    rows, columns = ((torch.arange(n) + 0.5) / n for n in (height, width_))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    places = torch.stack([x, y], dim=-1).reshape(1, -1, 2).expand(networks, -1, -1)
    if spread is None:
        inputs = 2 * places - 1
    else:
        inputs = waves(places, spread * torch.randn(networks, 2, features, generator=generator))
    mean, scale = picture.mean(), picture.std()
    target = ((picture - mean) / scale).reshape(1, -1, 1)
    parameters = first_weights(networks, [inputs.shape[-1], width, width, width, 1], generator)
    optimizer = torch.optim.Adam(parameters, learning_rate)
    painted = []
    for step in range(1, max(looks) + 1):
        optimizer.zero_grad()
        (run_networks(inputs, parameters) - target).square().mean((1, 2)).sum().backward()
        optimizer.step()
        if step in looks:
            with torch.no_grad():
                painted.append(run_networks(inputs, parameters).reshape(networks, height, width_) * scale + mean)
    stack = torch.stack(painted)
    error = spectra.band_errors(stack, picture.expand_as(stack), edges=PHOTO_BANDS).relative
    return PhotoFit(sorted(looks), error, stack)


# the hyper-network of IGConv on real kernels


class Way(NamedTuple):
    """How the place enters the hyper-network."""

    fourier: bool
    spread: float | None
    """standard deviation of the first frequencies, in half turns per half pixel; None keeps the official 0.02"""


WAYS = {
    "plain coordinates": Way(False, None),
    "Fourier features, as released": Way(True, None),
    "Fourier features, fast start": Way(True, 1.0),
}
"""The official code draws the first frequencies with a standard deviation of 0.02: at the start all waves are flat."""

REAL_KERNELS = ("smfanet-div2k-x4", "smfanet-df2k-x4", "imdn-x4", "bsrn-x4")
BUNDLED = "edsr-tiny-igconv"
RECORD = "spectral_kernels"


class KernelSizes(NamedTuple):
    """Sizes of the kernel fits; the defaults are those of the record."""

    channels: int = 16
    implicit_dim: int = 128
    looks: tuple[int, ...] = (25, 50, 100, 150, 200)
    learning_rate: float = 2e-3
    seeds: tuple[int, ...] = (0, 1)


SIZES = KernelSizes()


def kernels_here() -> list[str]:
    """Published models whose sub-pixel kernel can be read on this machine; nothing is fetched."""
    return [name for name in REAL_KERNELS if weights.card(name).is_here]


def real_kernel(name: str, channels: int, seed: int = 0, scale: int = 4) -> Tensor:
    """Some channels of a model's sub-pixel kernel as phase images (3, channels, k, k, scale, scale), of unit deviation.

    A model without a stored kernel (the bundled one) gives the one it would store: that one has passed through an
    IGConv already, so it is an easier target.
    """
    head = weights.load(name).upsampler
    head = head if hasattr(head, "weight") else head.instantiate(scale)
    phases = kernels.phase_images(head.weight.detach(), scale)
    chosen = torch.randperm(phases.shape[1], generator=torch.Generator().manual_seed(seed))[:channels]
    phases = phases[:, chosen]
    return phases / phases.std()


def cosine_levels(phases: Tensor) -> Tensor:
    """Power of (..., r, r) pictures by frequency, (r,): level n has n half turns across the pixel in one direction.

    The cosine transform is taken, because a pixel has no periodic border: what leaves on the right does not enter on
    the left. Level 0 is the mean over the pixel. Summed over all other axes; the levels add up to the sum of squares.
    """
    r = phases.shape[-1]
    order, place = torch.arange(r)[:, None], torch.arange(r) + 0.5
    matrix = torch.cos(math.pi * order * place / r) * math.sqrt(2 / r)
    matrix[0] /= math.sqrt(2)
    power = (matrix @ phases.float() @ matrix.T).square().flatten(0, -3).sum(0)  # (r, r)
    level = torch.maximum(torch.arange(r)[:, None], torch.arange(r))
    return torch.zeros(r).index_add_(0, level.flatten(), power.flatten())


def fit_kernel(phases: Tensor, way: Way, sizes: KernelSizes = SIZES, seed: int = 0) -> pd.DataFrame:
    """Train a hyper-network to emit a stored kernel.

    Args:
        phases: (3, C, k, k, r, r), see `real_kernel`.
        way: how the place enters.
        sizes: of the hyper-network and the training.
        seed: of its first weights.

    Returns:
        Columns step, level, error (power of the error over the kernel's at that level), share (of the kernel's power).
    """
    torch.manual_seed(seed)
    _, channels, k, _, scale, _ = phases.shape
    shape = {"kernel_size": k, "implicit_dim": sizes.implicit_dim, "fourier": way.fourier}
    hyper = hypernetwork.ImplicitKernel(channels, 3, **shape)
    if way.spread is not None:
        with torch.no_grad():
            hyper.frequency.normal_(std=way.spread)
    optimizer = torch.optim.Adam(hyper.parameters(), sizes.learning_rate)
    held = cosine_levels(phases)
    rows = []
    for step in range(1, max(sizes.looks) + 1):
        optimizer.zero_grad()
        (kernels.phase_images(hyper(scale), scale) - phases).square().mean().backward()
        optimizer.step()
        if step in sizes.looks:
            with torch.no_grad():
                missed = cosine_levels(kernels.phase_images(hyper(scale), scale) - phases) / held
            rows += [{"step": step, "level": level, "error": round(missed[level].item(), 5)} for level in range(scale)]
    share = (held / held.sum()).tolist()
    return pd.DataFrame(rows).assign(share=lambda table: [round(share[level], 4) for level in table["level"]])


def fit_kernels(names: Sequence[str], sizes: KernelSizes = SIZES) -> pd.DataFrame:
    """`fit_kernel` for several models, seeds (of channels and first weights) and all `WAYS`: one table."""
    tables = [
        fit_kernel(real_kernel(name, sizes.channels, seed), way, sizes, seed).assign(kernel=name, way=label, seed=seed)
        for name in names
        for seed in sizes.seeds
        for label, way in WAYS.items()
    ]
    return pd.concat(tables, ignore_index=True)[["kernel", "way", "seed", "step", "level", "error", "share"]]


def recorded_kernel_fits() -> pd.DataFrame:
    """`fit_kernels` of the published models as it ships: needs no weights. `SRLAB_RECORD=1` makes it anew (minutes).

    Raises:
        srlab.runtime.RecordError: the record is missing, or of other weights or sizes.
    """
    settings = {
        "weights": {name: weights.card(name).sha256 for name in REAL_KERNELS},
        "sizes": SIZES._asdict(),
        "ways": {name: list(way) for name, way in WAYS.items()},
    }
    made_by = "SRLAB_RECORD=1 and `spectral_study.recorded_kernel_fits()`, or notebook 06,"
    return runtime.recorded(RECORD, lambda: fit_kernels(REAL_KERNELS), settings=settings, made_by=made_by)


def kernel_summary(table: pd.DataFrame, step: int) -> pd.DataFrame:
    """Error by way and level after `step`, mean over kernels with Student's t interval (seeds averaged first).

    Columns name (of the level), group (the way), mean, low, high: what `figures.draw_bars_with_intervals` takes.
    """
    rows = []
    for (way, level), group in table[table["step"] == step].groupby(["way", "level"], sort=False):
        found = statistics.bootstrap_mean(group.groupby("kernel")["error"].mean())
        name = _level_name(level, "mean over the pixel")
        rows.append({"name": name, "group": way, "mean": found.mean, "low": found.low, "high": found.high})
    return pd.DataFrame(rows)


def kernel_courses(table: pd.DataFrame) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Steps and error of each level, mean over kernels and seeds, by way: what `draw_error_courses` takes."""
    courses: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for (way, level), errors in table.groupby(["way", "level"], sort=False)["error"]:
        means = errors.groupby(table["step"]).mean()
        courses.setdefault(way, {})[_level_name(level, "mean")] = means.index.to_numpy(), means.to_numpy()
    return courses


def _level_name(level: int, mean: str) -> str:
    return mean if level == 0 else f"{level} half turn{'s' * (level > 1)}"


def cycles_per_pixel(model_name: str = BUNDLED) -> Iterator[tuple[str, float]]:
    """Median and 95 % quantile of the frequencies that a trained IGConv ended with, in cycles per LR pixel."""
    hyper = weights.load(model_name).upsampler.hyper
    speeds = hyper.frequency.detach().view(len(hyper.frequency), 2, -1).norm(dim=1).flatten()
    for name, share in (("median", 0.5), ("95 % quantile", 0.95)):
        yield name, float(np.quantile(speeds.numpy(), share))  # torch.quantile takes 16 million at most
