"""Kernels room: do the sub-pixel convolutions of two scales paint the same picture? Tensors in, tensors and tables out.

A sub-pixel convolution of scale r stores, for each colour, feature channel and tap, r x r numbers: a tiny *phase image*.
Weights come from `models` and `weights`, features from `SRModel.encode`; the numbers go to figures and tables. Phase
images of two scales are compared in four steps.

* `resample` brings them to one grid. Sub-pixel v of r has its centre at (2v + 1) / r - 1 of a low-resolution pixel that
  reaches from -1 to 1, as in IGConv (arXiv 2408.09674). The finer one is brought to the coarser grid, never the other way
  round: all coarse centres lie between fine ones, so nothing is extrapolated.
* `align` carries a kernel into the channels of another encoder. Two encoders trained apart number and mix their channels
  differently; kernels can only be compared after a linear map between the features of both has been taken into account.
* `correlate` compares kernels entry by entry, `functional_correlation` compares what both paint for real features.
  Each gives three numbers: `mean` for the average over the sub-pixels (what could be painted at low resolution),
  `varying` for the rest (what makes sub-pixels differ, the work of an upsampler), and `whole` for both together.
* Nulls say what to expect of kernels that have nothing in common: shuffled channels, shuffled sub-pixels, smooth random
  kernels. `compare` puts everything into one table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from srlab.statistics import Interval

LUMA = (0.2126, 0.7152, 0.0722)  # weights of red, green and blue, as the official analysis notebook has them
PARTS = ("whole", "mean", "varying")
DEGREES = {"linear": 1, "cubic": 3}  # of the polynomials `resample` lays through neighbouring centres
ALPHAS = tuple(10.0**exponent for exponent in range(-8, 2))  # ridge penalties tried, in units of the mean variance
FOLDS = 5

Features = Tensor | Sequence[Tensor]  # (B, C, h, w), or one (C, h, w) per picture where sizes differ


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
    out_channels, channels, k, _ = weight.shape
    rgb, remainder = divmod(out_channels, scale**2)
    if remainder:
        raise ValueError(
            f"weight has {out_channels} output channels, not a multiple of scale**2 = {scale**2}: "
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
        method: "linear" or "cubic": the polynomial through the 2 or 4 nearest centres (through all, where there are
            fewer), which goes on beyond the outermost ones. "area": the mean over the part of each old cell that the new
            cell covers, as if a cell had one value all over.
    """
    if method == "area":
        edges_from, edges_to = (torch.linspace(0, 1, scale + 1, dtype=torch.float64) for scale in (scale_from, scale_to))
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

    "linear" takes the entries as samples of a smooth function and is exact for planes; "cubic" is exact for polynomials
    of degree 3 (2 from x3, 1 from x2); "area" takes them as averages over cells and keeps their mean. From x4 to x2 all
    but "cubic" are the mean over 2 x 2 blocks. See `resampling_matrix`.
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


def functional_correlation(phases_a: Tensor, phases_b: Tensor, covariance: Tensor, method: str = "linear") -> Correlation:
    """Correlate what two kernels paint when both read the same features, HR pixel by HR pixel.

    Painting is linear, so the covariance of feature patches says it all: with kernels as rows, cov(a, b) = A S B'. Means
    over each colour and sub-pixel are taken off, as Pearson's correlation does.

    Args:
        phases_a, phases_b: as in `correlate`.
        covariance: of feature patches, (C * k * k, C * k * k), see `patch_covariance`.
        method: see `resample`.
    """
    return _correlation(_products(*common_grid(phases_a, phases_b, method), covariance))


def common_grid(phases_a: Tensor, phases_b: Tensor, method: str = "linear") -> tuple[Tensor, Tensor]:
    """Both kernels in float64 on the coarser of their two grids."""
    if phases_a.shape[:-2] != phases_b.shape[:-2]:
        raise ValueError(
            f"phase images have shapes {tuple(phases_a.shape)} and {tuple(phases_b.shape)}, expected the same but for the "
            f"last two axes: encoders of unequal width have no channels in common, carry one kernel over with align()"
        )
    scale = min(phases_a.shape[-1], phases_b.shape[-1])
    return resample(phases_a.double(), scale, method), resample(phases_b.double(), scale, method)


@dataclass(frozen=True)
class PictureMoments:
    """Sums over the pixels of each picture, P of them: enough to fit a map between features to any choice of pictures.

    `x` are features of one encoder (A channels), `y` of the other (B channels), `count` says how many pixels there are.
    """

    count: Tensor
    """(P,)"""
    x: Tensor
    """(P, A)"""
    y: Tensor
    """(P, B)"""
    xx: Tensor
    """(P, A, A)"""
    xy: Tensor
    """(P, A, B)"""
    yy: Tensor
    """(P, B), of the squares"""

    def __len__(self) -> int:
        return len(self.count)

    def weighted(self, weights: Tensor) -> PictureMoments:
        """One row of sums in which picture i counts `weights[i]` times."""
        sums = (torch.tensordot(weights[None], getattr(self, name), dims=1) for name in self.__dataclass_fields__)
        return PictureMoments(*sums)


def picture_moments(feats_x: Features, feats_y: Features) -> PictureMoments:
    """Collect `PictureMoments` from the features two encoders gave for the same LR pictures, in float64.

    Raises:
        ValueError: not the same number of pictures, or not the same size of one of them.
    """
    if len(feats_x) != len(feats_y):
        raise ValueError(f"features of {len(feats_x)} and of {len(feats_y)} pictures, expected the same pictures for both")
    rows = []
    for i, (a, b) in enumerate(zip(feats_x, feats_y, strict=True)):
        if a.ndim != 3 or b.ndim != 3 or a.shape[1:] != b.shape[1:]:
            raise ValueError(
                f"features of picture {i} are {tuple(a.shape)} and {tuple(b.shape)}, expected (C, h, w) with the same h and "
                f"w: both encoders have to see the same low-resolution picture"
            )
        x, y = a.double().flatten(1), b.double().flatten(1)  # (A, n), (B, n)
        count = x.new_tensor(x.shape[1])
        rows.append((count, x.sum(1), y.sum(1), x @ x.T, x @ y.T, y.square().sum(1)))
    return PictureMoments(*(torch.stack(column) for column in zip(*rows, strict=True)))


def fit_map(moments: PictureMoments, alpha: float, weights: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Ridge regression y = matrix @ (x - mean_x) + mean_y from sums.

    Args:
        alpha: penalty in units of the mean variance of x.
        weights: (P,), how often each picture counts; once each if left out.

    Returns:
        matrix (B, A), mean_x (A,), mean_y (B,).
    """
    return next(_fit_maps(moments, [alpha], torch.ones_like(moments.count) if weights is None else weights))


@dataclass(frozen=True)
class Alignment:
    """A kernel carried into the channels of another encoder, and how well the channels predict each other."""

    weight: Tensor
    """the kernel in the channels of `feats_from`, (rgb * r**2, A, k, k)"""
    matrix: Tensor
    """the map, (B, A): features of the kernel's own encoder = matrix @ features of the other + a constant"""
    alpha: float
    """ridge penalty with the best cross-validated fit, in units of the mean variance"""
    r2: float
    """share of the variance of all channels predicted in pictures left out of the fit; 1 is perfect, below 0 worse than
    the mean"""
    r2_channels: Tensor
    """the same for each channel, (B,)"""
    moments: PictureMoments = field(repr=False)
    """sums over each picture, to fit the map again"""


def align(weight: Tensor, feats_from: Features, feats_to: Features, alphas: Sequence[float] = ALPHAS) -> Alignment:
    """Express a kernel that reads `feats_to` in the channels of `feats_from`.

    A linear map M with feats_to = M feats_from + constant is fitted by ridge regression, pixel by pixel. A kernel K after
    that map is again a kernel, K o M, which reads `feats_from`. (The constant adds a constant colour and is left out.)
    The penalty is chosen by cross-validation with whole pictures left out, since neighbouring pixels are no
    independent samples; R2 is that of the chosen penalty, from the same folds.

    Args:
        weight: kernel (rgb * r**2, B, k, k).
        feats_from: features of the other encoder, (P, A, h, w) or P times (A, h, w).
        feats_to: features of the kernel's own encoder for the same pictures, (P, B, h, w) or P times (B, h, w).
        alphas: penalties to choose from, in units of the mean variance of `feats_from`.

    Raises:
        ValueError: features that do not match each other or the kernel, or only one picture.
    """
    moments = picture_moments(feats_from, feats_to)
    if len(moments) < 2:
        raise ValueError("features of one picture, expected at least two: R2 is measured on pictures left out of the fit")
    if weight.shape[1] != moments.y.shape[1]:
        raise ValueError(
            f"the kernel reads {weight.shape[1]} channels, feats_to has {moments.y.shape[1]}: expected the features of the "
            f"kernel's own encoder as feats_to, the other encoder's as feats_from"
        )
    errors, total = _cross_validate(moments, alphas)  # (alphas, B), (B,)
    best = int(errors.sum(1).argmin())
    matrix, _, _ = fit_map(moments, alphas[best])
    return Alignment(
        weight=carry(weight, matrix),
        matrix=matrix,
        alpha=alphas[best],
        r2=1 - float(errors[best].sum() / total.sum()),
        r2_channels=1 - errors[best] / total,
        moments=moments,
    )


def carry(weight: Tensor, matrix: Tensor) -> Tensor:
    """The kernel `weight` (n, B, k, k) after a map (B, A) of channels: (n, A, k, k)."""
    return torch.einsum("obpq,ba->oapq", weight, matrix.to(weight))


def patch_covariance(feats: Features, kernel_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over all patches inside each picture, in float64, for `functional_correlation`.

    Args:
        feats: (P, C, h, w) or P times (C, h, w).
        kernel_size: side k of the patches, taken where they lie inside the picture.

    Returns:
        count (P,), sum (P, D), sum of products (P, D, D) with D = C * k * k in the order of a kernel's weight. The
        covariance of one choice of pictures is `pooled_covariance` of these.
    """
    rows = []
    for picture in feats:
        patches = F.unfold(picture.double()[None], kernel_size)[0]  # (D, n)
        rows.append((patches.new_tensor(patches.shape[1]), patches.sum(1), patches @ patches.T))
    count, first, second = (torch.stack(column) for column in zip(*rows, strict=True))
    return count, first, second


def pooled_covariance(sums: tuple[Tensor, Tensor, Tensor], weights: Tensor | None = None) -> Tensor:
    """Covariance (D, D) of the patches of all pictures, picture i counted `weights[i]` times (once if left out)."""
    weights = torch.ones_like(sums[0]) if weights is None else weights
    count, first, second = (torch.tensordot(weights, each, dims=1) for each in sums)
    return second / count - torch.outer(first, first) / count**2


def shuffle_channels(phases: Tensor, generator: torch.Generator) -> Tensor:
    """Null: the same tiny images, each handed to another channel."""
    return phases[:, torch.randperm(phases.shape[1], generator=generator)]


def shuffle_sub_pixels(phases: Tensor, generator: torch.Generator) -> Tensor:
    """Null: in each channel the sub-pixels change places, in the same way for all colours and taps.

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

    Each channel paints a Gaussian random field of its own, a sum of waves, with correlation exp(-d**2 / (2 length**2)) at
    a distance of d LR pixels. The same generator state gives the same fields at every scale.
    """
    frequency = torch.randn(2, channels, waves, generator=generator, dtype=torch.float64) / length
    phase = 2 * math.pi * torch.rand(channels, waves, generator=generator, dtype=torch.float64)
    taps = torch.arange(kernel_size, dtype=torch.float64)[:, None] - kernel_size // 2
    place = (_centres(scale) / 2 - taps).flatten()  # of every (tap, sub-pixel) from the middle of the bright pixel
    theta = frequency[0][..., None, None] * place[:, None] + frequency[1][..., None, None] * place + phase[..., None, None]
    painted = theta.cos().sum(1) * math.sqrt(2 / waves)  # (C, k * scale, k * scale)
    phases = painted.unflatten(1, (kernel_size, scale)).unflatten(3, (kernel_size, scale)).permute(0, 1, 3, 2, 4)
    return phases.expand(3, -1, -1, -1, -1, -1)


def permutation_p(value: float, null: Sequence[float] | np.ndarray) -> float:
    """Share of draws from a null at least as far from zero as `value`, which itself counts as one; NaN for no draw."""
    null = np.abs(np.asarray(null, dtype=float))
    if not len(null) or np.isnan(null).any() or math.isnan(value):
        return math.nan
    return float((1 + np.count_nonzero(null >= abs(value) - 1e-12)) / (1 + len(null)))


def bootstrap_interval(value: float, resampled: Sequence[float], n: int, level: float = 0.95) -> Interval:
    """Interval of a correlation from its values on resampled pictures ("basic" bootstrap on Fisher's z).

    Noise in a fitted map lowers a correlation, in a resampled fit as in the first one. The basic interval mirrors the
    resampled values at `value` and thereby takes that loss off, where quantiles as they are would count it twice.
    """
    z = np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
    draws = np.arctanh(np.clip(np.asarray(resampled, dtype=float), -1 + 1e-12, 1 - 1e-12))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.tanh(2 * z - high)), float(np.tanh(2 * z - low)), float(value), n, level, "basic bootstrap")
