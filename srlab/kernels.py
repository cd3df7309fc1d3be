"""Kernels room: do the sub-pixel convolutions of two scales paint the same picture? Tensors in, tables out.

A sub-pixel convolution of scale r stores r x r numbers for each colour, feature channel and tap: a tiny *phase image*.
Weights come from `models` and `weights`, features from `SRModel.encode`; the numbers go to figures and tables. Phase
images of two scales are compared in four steps.

* `resample` brings them to one grid. Sub-pixel v of r has its centre at (2v + 1) / r - 1 of a low-resolution pixel that
  reaches from -1 to 1, as in IGConv (arXiv 2408.09674). The finer kernel is brought to the coarser grid, not the other
  way round: all coarse centres lie between fine ones, so nothing is extrapolated.
* `align` carries a kernel into the channels of another encoder. Encoders trained apart number and mix their channels
  differently; their kernels can be compared only after a linear map between the features of both.
* `correlate` compares kernels entry by entry, `functional_correlation` compares what both paint for real features.
  Each gives three numbers: `mean` for the average over the sub-pixels (what could be painted at low resolution),
  `varying` for the rest (what makes sub-pixels differ, the work of an upsampler), and `whole` for both together.
  Where features hardly vary, neither a kernel nor the map is held to anything, and what the encoders do not share is
  lost: the entrywise number is a bound from below. The functional one hardly suffers (in simulations 0.02 lost against
  0.07, R2 0.92), but two heads that both paint well have to agree there: it shows that they do, not why.
* Nulls say what to expect of kernels that have nothing in common: shuffled channels, shuffled sub-pixels, smooth random
  kernels. `compare` puts everything into one table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from srlab import alignment
from srlab.alignment import ChannelMap, Features
from srlab.statistics import Interval

LUMA = (0.2126, 0.7152, 0.0722)  # weights of red, green and blue, as the official analysis notebook has them
PARTS = ("whole", "mean", "varying")
BASES = ("same channel", "aligned", "functional")
DEGREES = {"linear": 1, "cubic": 3}  # of the polynomials `resample` lays through neighbouring centres


def phase_images(weight: Tensor, scale: int) -> Tensor:
    """View a sub-pixel convolution weight as one tiny image per tap.

    Pixel shuffle lays the `scale**2` values computed at one LR pixel out as a block of HR pixels.
    For one fixed tap, that block is what a single bright LR pixel paints, up to its brightness.

    Args:
        weight: convolution weight, (rgb * scale**2, C, k, k), channels in `nn.PixelShuffle` order: colour slowest, then
            row, then column.
        scale: upsampling factor the weight was trained for.

    Returns:
        Phase images, (rgb, C, k, k, scale, scale). A view: no values are copied.
    """
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, expected (rgb * scale**2, C, k, k): is it a convolution's?"
        )
    rgb, remainder = divmod(len(weight), scale**2)
    if remainder:
        raise ValueError(
            f"weight has {len(weight)} output channels, not a multiple of scale**2 = {scale**2}: "
            f"was it trained for another scale?"
        )
    grid = weight.unflatten(0, (rgb, scale, scale))  # (rgb, row, col, C, k, k)
    return grid.permute(0, 3, 4, 5, 1, 2)  # (rgb, C, k, k, row, col)


def assemble(phases: Tensor) -> Tensor:
    """The convolution weight (rgb * scale**2, C, k, k) of phase images (rgb, C, k, k, scale, scale)."""
    return phases.permute(0, 4, 5, 1, 2, 3).flatten(0, 2)


def paint(phases: Tensor) -> Tensor:
    """What one bright LR pixel of each channel paints: (rgb, C, k, k, r, r) -> (rgb, C, k * r, k * r).

    `F.conv2d` correlates, so the tap below right of the centre paints above left of the pixel: taps are mirrored.
    """
    rgb, channels, k, _, scale, _ = phases.shape
    blocks = phases.flip(2, 3).permute(0, 1, 2, 4, 3, 5)  # (rgb, C, tap row, row, tap column, column)
    return blocks.reshape(rgb, channels, k * scale, k * scale)


def kernel_field(phases: Tensor) -> Tensor:
    """Luma of the mean over taps, (C, r, r): the picture of a kernel that the official analysis notebook draws."""
    luma = torch.tensor(LUMA, dtype=phases.dtype, device=phases.device)
    return torch.einsum("g,gcpquv->cuv", luma, phases) / (phases.shape[2] * phases.shape[3])


def resampling_matrix(scale_from: int, scale_to: int, method: str = "linear") -> Tensor:
    """Values at `scale_from` cells as values at `scale_to` cells of the same length, (scale_to, scale_from), float64.

    Args:
        method: "linear" or "cubic": the polynomial through the 2 or 4 nearest centres (all, where there are fewer),
            also beyond the outermost. "area": the mean over what a new cell covers, as if an old cell had one value.
    """
    if method == "area":
        edges_from, edges_to = (torch.linspace(0, 1, r + 1, dtype=torch.float64) for r in (scale_from, scale_to))
        above = torch.minimum(edges_from[1:], edges_to[1:, None])
        below = torch.maximum(edges_from[:-1], edges_to[:-1, None])
        return (above - below).clamp(min=0) * scale_to
    if method not in DEGREES:
        raise ValueError(f"method is {method!r}, expected one of {', '.join([*DEGREES, 'area'])}")
    old, new = _centres(scale_from), _centres(scale_to)
    n = min(DEGREES[method] + 1, scale_from)  # points of each polynomial
    matrix = torch.zeros(scale_to, scale_from, dtype=torch.float64)
    for i, x in enumerate(new.tolist()):
        first = round((x + 1) / 2 * scale_from - n / 2)  # where n neighbouring cells are centred on x
        window = range(max(0, min(first, scale_from - n)), scale_from)[:n]
        for j in window:
            others = old[[m for m in window if m != j]]
            matrix[i, j] = ((x - others) / (old[j] - others)).prod()
    return matrix


def resample(phases: Tensor, scale: int, method: str = "linear") -> Tensor:
    """Phase images (..., r, r) on the sub-pixel grid of another scale, (..., scale, scale).

    "linear" and "cubic" take entries as samples of a smooth function, exactly for polynomials of degree 1 and 3 (fewer
    from x2 and x3); "area" takes them as averages over cells. From x4 to x2 all but "cubic" average 2 x 2 blocks.
    """
    if phases.shape[-1] == scale:
        return phases
    matrix = resampling_matrix(phases.shape[-1], scale, method).to(phases)
    return matrix @ phases @ matrix.mT


@dataclass(frozen=True)
class Correlation:
    """Pearson correlations of two kernels on one grid; NaN where one of them does not vary at all."""

    whole: float
    """of all entries"""
    mean: float
    """of the averages over the sub-pixels"""
    varying: float
    """of the deviations from these averages"""
    share_a: float
    """part of the first kernel's variance that lies in the deviations, 0 to 1"""
    share_b: float
    """the same of the second kernel"""


def correlate(phases_a: Tensor, phases_b: Tensor, method: str = "linear") -> Correlation:
    """Correlate two kernels entry by entry, channel c of one with channel c of the other.

    Args:
        phases_a, phases_b: phase images (rgb, C, k, k, r, r), any two scales; the finer is resampled to the coarser.
        method: see `resample`.

    Raises:
        ValueError: other axes than the last two differ.
    """
    return _correlation(_products(*common_grid(phases_a, phases_b, method)))


def functional_correlation(
    phases_a: Tensor, phases_b: Tensor, covariance: Tensor, method: str = "linear"
) -> Correlation:
    """Correlate what two kernels paint when both read the same features, HR pixel by HR pixel.

    Painting is linear, so the covariance of feature patches says it all: with kernels as rows, cov(a, b) = A S B'. The
    mean of each colour and sub-pixel is taken off, as Pearson's correlation does.

    Args:
        phases_a, phases_b: as in `correlate`.
        covariance: of feature patches, (C * k * k, C * k * k), see `alignment.patch_covariance`.
        method: see `resample`.
    """
    return _correlation(_products(*common_grid(phases_a, phases_b, method), covariance))


def common_grid(phases_a: Tensor, phases_b: Tensor, method: str = "linear") -> tuple[Tensor, Tensor]:
    """Both kernels, (rgb, C, k, k, r, r) each, in float64 on the coarser of their two grids."""
    if phases_a.shape[:-2] != phases_b.shape[:-2]:
        raise ValueError(
            f"phase images have shapes {tuple(phases_a.shape)} and {tuple(phases_b.shape)}, expected the same but for "
            f"the last two axes: encoders of unequal width share no channels, carry one kernel over with align()"
        )
    scale = min(phases_a.shape[-1], phases_b.shape[-1])
    return _at(phases_a, scale, method), _at(phases_b, scale, method)


@dataclass(frozen=True)
class Alignment:
    """A kernel carried into the channels of another encoder."""

    weight: Tensor
    """the kernel in the channels of `feats_from`, (rgb * r**2, A, k, k)"""
    map: ChannelMap
    """the map between the features, with its cross-validated R2"""


def align(
    weight: Tensor, feats_from: Features, feats_to: Features, alphas: Sequence[float] = alignment.ALPHAS
) -> Alignment:
    """Express a kernel that reads `feats_to` in the channels of `feats_from`.

    A kernel K after a linear map M of channels is again a kernel, K o M, which reads `feats_from`. M is fitted on the
    features; its constant would add a constant colour and is left out. See `alignment.fit_channel_map`.

    Args:
        weight: kernel (rgb * r**2, B, k, k).
        feats_from: features of the other encoder, (P, A, h, w) or P times (A, h, w).
        feats_to: features of the kernel's own encoder for the same pictures, (P, B, h, w) or P times (B, h, w).
        alphas: ridge penalties to choose from.

    Raises:
        ValueError: features that do not match each other or the kernel, that are NaN or do not vary; only one picture.
    """
    if weight.shape[1] != (width := alignment.width_of(feats_to)):
        raise ValueError(
            f"the kernel reads {weight.shape[1]} channels, feats_to has {width}: expected the features of the kernel's "
            f"own encoder as feats_to, the other encoder's as feats_from"
        )
    channel_map = alignment.fit_channel_map(feats_from, feats_to, alphas)
    return Alignment(carry(weight.detach(), channel_map.matrix), channel_map)


def carry(weight: Tensor, matrix: Tensor) -> Tensor:
    """A kernel after a map of channels (B, A): weight (n, B, k, k) -> (n, A, k, k), and likewise phase images."""
    return torch.einsum("ob...,ba->oa...", weight, matrix.to(weight))


def painted_r2(phases: Tensor, channel_map: ChannelMap, feats_from: Features, feats_to: Features) -> dict[str, float]:
    """How much of what a kernel paints survives the map to another encoder's channels, in pictures left out of the fit.

    The R2 of the features counts every feature by its variance; a kernel may live on features of small variance, which
    a map misses first. Where this number is small, aligned correlations say little: they come out too low.

    Args:
        phases: kernel (rgb, B, k, k, r, r) that reads `feats_to`.
        channel_map, feats_from, feats_to: as `align` gave and took them.

    Returns:
        One R2 for each of `PARTS`.
    """
    weight = assemble(phases.detach().cpu().double())
    squares = torch.zeros(2, 2, dtype=torch.float64)  # (mean, varying) x (error, painted)
    for out, (matrix,), mean_x, mean_y in alignment.fits_without(channel_map.moments, [channel_map.alpha]):
        for picture in out.nonzero().flatten().tolist():
            x, y = (feats[picture].detach().cpu().double() for feats in (feats_from, feats_to))
            y = y - mean_y[:, None, None]
            error = y - torch.einsum("ba,ahw->bhw", matrix, x - mean_x[:, None, None])
            painted = F.conv2d(torch.stack([error, y]), weight)  # where all taps lie inside the picture
            painted = painted.unflatten(1, (len(phases), -1))  # (2, rgb, r * r, h, w)
            average = painted.mean(2, keepdim=True)
            for row, each in zip(squares, (average.expand_as(painted), painted - average), strict=True):
                row += each.square().flatten(1).sum(1)
    rows = dict(zip(PARTS, [squares.sum(0), *squares], strict=True))
    return {part: 1 - float(error / total) for part, (error, total) in rows.items()}


def shuffle_channels(phases: Tensor, generator: torch.Generator) -> Tensor:
    """Null: the same tiny images (rgb, C, k, k, r, r), each handed to another channel."""
    return phases[:, torch.randperm(phases.shape[1], generator=generator)]


def shuffle_sub_pixels(phases: Tensor, generator: torch.Generator) -> Tensor:
    """Null: in each channel of (rgb, C, k, k, r, r) the sub-pixels change places, alike for all colours and taps.

    Averages over the sub-pixels stay what they were, so for the part `mean` this is no null.
    """
    channels, scale = phases.shape[1], phases.shape[-1]
    order = torch.rand(channels, scale**2, generator=generator).argsort(1)
    flat = phases.flatten(-2)
    return flat.gather(-1, order[None, :, None, None].expand_as(flat)).view_as(phases)


def smooth_random_phases(
    channels: int, scale: int, generator: torch.Generator, *, kernel_size: int = 3, length: float = 1.0, waves: int = 32
) -> Tensor:
    """Null: phase images of smooth random kernels, (3, C, k, k, scale, scale), grey as trained ones nearly are.

    Each channel paints a Gaussian random field of its own, a sum of waves, with correlation exp(-d**2 / (2 length**2))
    at a distance of d LR pixels. The same generator state gives the same fields at every scale.
    """
    frequency = torch.randn(2, channels, waves, generator=generator, dtype=torch.float64) / length
    phase = 2 * math.pi * torch.rand(channels, waves, generator=generator, dtype=torch.float64)
    taps = torch.arange(kernel_size, dtype=torch.float64)[:, None] - kernel_size // 2
    place = (_centres(scale) / 2 - taps).flatten()  # of every (tap, sub-pixel) from the middle of the bright pixel
    y, x = frequency[..., None, None]  # (C, waves, 1, 1) each
    theta = y * place[:, None] + x * place + phase[..., None, None]  # (C, waves, k * scale, k * scale)
    painted = theta.cos().sum(1) * math.sqrt(2 / waves)  # (C, k * scale, k * scale)
    phases = painted.unflatten(1, (kernel_size, scale)).unflatten(3, (kernel_size, scale)).permute(0, 1, 3, 2, 4)
    return phases.expand(3, -1, -1, -1, -1, -1)


def permutation_p(value: float, null: Sequence[float] | np.ndarray) -> float:
    """Share of draws from a null at least as far from zero as `value`, which counts as one; NaN if any is NaN."""
    null = np.abs(np.asarray(null, dtype=float))
    if np.isnan([value, *null]).any():
        return math.nan
    return float((1 + np.count_nonzero(null >= abs(value) - 1e-12)) / (1 + len(null)))


def bootstrap_interval(value: float, resampled: Sequence[float], pictures: int, level: float = 0.95) -> Interval:
    """Interval of a correlation from its values on resampled pictures, on Fisher's z = arctanh.

    Noise in a fitted map lowers a correlation, in a resampled fit by as much again as in the first one. So the interval
    is centred where `value` would be without that loss, 2 z - mean of the resampled z; its length comes from their
    scatter and Student's t, since few pictures resampled scatter less than as many new ones would.

    In simulations with 12 pictures the 95 % interval of an aligned correlation held the truth in 92 to 98 % of 60 draws
    when R2 was 0.96 or more, in 75 to 90 % at an R2 of 0.80, always erring towards zero.
    """
    z, *draws = np.arctanh(np.clip([value, *resampled], -1 + 1e-12, 1 - 1e-12))
    spread = np.std(draws) * math.sqrt(pictures / (pictures - 1)) * stats.t.ppf((1 + level) / 2, pictures - 1)
    centre = 2 * z - np.mean(draws)
    low, high = np.tanh([centre - spread, centre + spread]).tolist()
    return Interval(low, high, float(value), pictures, level, "bootstrap, Student's t")


def compare(
    phases_a: Tensor,
    phases_b: Tensor,
    feats_a: Features,
    feats_b: Features,
    *,
    untrained: Sequence[Tensor] = (),
    method: str = "linear",
    draws: int = 499,
    resamples: int = 499,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """All correlations of two models' kernels with their nulls and intervals, a row per basis and part.

    Bases: "same channel" takes both as they are, "aligned" carries kernel B into the channels of encoder A,
    "functional" compares what A and the carried B paint for the features of A. Parts: see the top of this file.

    Args:
        phases_a, phases_b: phase images of two kernels, any two scales.
        feats_a, feats_b: features their encoders gave for the same LR pictures.
        untrained: kernels of untrained models, put in place of B as another null.
        method, draws: see `resample`; kernels drawn from each null, one or more.
        resamples: bootstrap resamples of the pictures, two or more; each fits the map between the encoders again.
        level, seed: of the intervals, of all draws.

    Returns:
        Columns basis, part, value; low, high: interval over pictures (NaN for "same channel", which knows none; other
        models of the same kind, trained anew, would scatter more); r2 of the map and r2_painted, see `painted_r2`;
        for each null "channels", "sub-pixels", "smooth": null_NAME, below which 95 % of |null| lie, and p_NAME,
        two-sided; null_untrained, the largest |correlation| with an untrained kernel. NaN where a null changes nothing.

    Raises:
        ValueError: kernels of unequal size, features as in `align` or smaller than a kernel, too few draws.
    """
    if draws < 1 or resamples < 2:
        raise ValueError(f"draws={draws} and resamples={resamples}, expected at least 1 and 2: no spread without them")
    if phases_a.shape[1] != (width := alignment.width_of(feats_a)) or phases_a.shape[2:4] != phases_b.shape[2:4]:
        raise ValueError(
            f"kernels have shapes {tuple(phases_a.shape)} and {tuple(phases_b.shape)}, feats_a {width} channels: "
            f"expected as many as kernel A reads and as many taps in both; were A and B swapped?"
        )
    channel_map = align(assemble(phases_b), feats_a, feats_b).map
    scale = min(phases_a.shape[-1], phases_b.shape[-1])
    a, b = (_at(phases, scale, method) for phases in (phases_a, phases_b))
    sums = alignment.patch_covariance(feats_a, a.shape[2])
    covariance = alignment.pooled_covariance(sums)
    painted = painted_r2(phases_b, channel_map, feats_a, feats_b)

    def measure(kernel: Tensor) -> np.ndarray:
        return _on_all_bases(a, kernel, channel_map.matrix, covariance)

    values = measure(b)  # (basis, part)
    generator = torch.Generator().manual_seed(seed)
    nulls = {
        "channels": lambda: shuffle_channels(b, generator),
        "sub-pixels": lambda: shuffle_sub_pixels(b, generator),
        "smooth": lambda: _smooth_like(b, phases_b.shape[-1], method, generator),
    }
    drawn = {name: np.stack([measure(draw()) for _ in range(draws)]) for name, draw in nulls.items()}
    drawn["sub-pixels"][..., PARTS.index("mean")] = math.nan
    choices = alignment.resampled_pictures(len(feats_a), resamples, generator)
    refitted = [_on_all_bases(a, b, channel_map.refit(w), alignment.pooled_covariance(sums, w)) for w in choices]
    controls = [measure(_at(kernel, scale, method)) for kernel in untrained]
    largest = np.abs(controls).max(0) if controls else np.full_like(values, math.nan)

    rows = []
    for place in np.ndindex(values.shape):
        basis, part = BASES[place[0]], PARTS[place[1]]
        row = {"basis": basis, "part": part, "value": values[place]}
        row |= dict.fromkeys(("low", "high", "r2", "r2_painted"), math.nan)
        if basis != "same channel":
            interval = bootstrap_interval(values[place], [each[place] for each in refitted], len(feats_a), level)
            row |= {"low": interval.low, "high": interval.high, "r2": channel_map.r2, "r2_painted": painted[part]}
        for name, null in drawn.items():
            row[f"null_{name}"] = float(np.quantile(np.abs(null[:, *place]), 0.95))
            row[f"p_{name}"] = permutation_p(values[place], null[:, *place])
        rows.append(row | {"null_untrained": largest[place]})
    return pd.DataFrame(rows)


def _on_all_bases(a: Tensor, b: Tensor, matrix: Tensor, covariance: Tensor) -> np.ndarray:
    """Correlations (basis, part) of kernel a with kernel b, which reads other channels."""
    carried = carry(b, matrix)
    same = _products(a, b) if a.shape == b.shape else torch.full((2, 3), math.nan)
    found = [_correlation(products) for products in (same, _products(a, carried), _products(a, carried, covariance))]
    return np.array([[getattr(each, part) for part in PARTS] for each in found])


def _at(phases: Tensor, scale: int, method: str) -> Tensor:
    return resample(phases.detach().cpu().double(), scale, method)


def _smooth_like(b: Tensor, sampled_at: int, method: str, generator: torch.Generator) -> Tensor:
    """A smooth random kernel in place of b, sampled at the scale b had before it was resampled."""
    smooth = smooth_random_phases(b.shape[1], sampled_at, generator, kernel_size=b.shape[2])
    return resample(smooth[: b.shape[0]], b.shape[-1], method)


def _centres(scale: int) -> Tensor:
    """Centres of the sub-pixels of one LR pixel that reaches from -1 to 1, (scale,)."""
    return (2 * torch.arange(scale, dtype=torch.float64) + 1) / scale - 1


def _products(a: Tensor, b: Tensor, covariance: Tensor | None = None) -> Tensor:
    """Scalar products aa, bb, ab of two kernels: of their averages over the sub-pixels and of the deviations, (2, 3).

    Averages and deviations are orthogonal, so the two rows add up to the products of the whole kernels.
    """
    sub_pixels = a.shape[-1] * a.shape[-2]
    averages = [x.mean((-2, -1), keepdim=True) for x in (a, b)]
    deviations = [x - average for x, average in zip((a, b), averages, strict=True)]
    if covariance is None:  # Pearson: the mean of all entries is taken off. It is that of the averages
        averages = [average - average.mean() for average in averages]
    rows = []
    for (x, y), times in ((averages, sub_pixels), (deviations, 1)):
        x, y = (each.permute(0, 4, 5, 1, 2, 3).flatten(3).flatten(0, 2) for each in (x, y))  # (outputs, C * k * k)
        sx, sy = (x, y) if covariance is None else (x @ covariance, y @ covariance)
        rows.append(times * torch.stack([(sx * x).sum(), (sy * y).sum(), (sx * y).sum()]))
    return torch.stack(rows)


def _correlation(products: Tensor) -> Correlation:
    mean, varying = products.tolist()
    whole = [m + v for m, v in zip(mean, varying, strict=True)]
    floor = 1e-24 * max(abs(x) for x in whole)  # what rounding leaves of a part that is not there

    def cosine(aa: float, bb: float, ab: float) -> float:
        return ab / math.sqrt(aa * bb) if min(aa, bb) > floor else math.nan

    shares = [v / w if w > 0 else math.nan for v, w in zip(varying[:2], whole[:2], strict=True)]
    return Correlation(cosine(*whole), cosine(*mean), cosine(*varying), *shares)
