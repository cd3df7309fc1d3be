"""Alignment room: how well one encoder's features predict another's, pixel by pixel. Features in, linear maps out.

Two encoders trained apart number and mix their channels as chance had it. Before anything that reads channels, such as
a kernel, can be carried from one to the other, a linear map between their features has to be found. It is fitted by
ridge regression on features both gave for the same low-resolution pictures (`SRModel.encode`); `kernels` uses it.

All fits start from sums over the pixels of each picture. So leaving pictures out, or drawing them anew for a bootstrap,
costs one small matrix equation and no second look at the features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHAS = tuple(10.0**exponent for exponent in range(-8, 2))  # ridge penalties tried, in units of the mean variance
FOLDS = 5

Features = Tensor | Sequence[Tensor]  # (P, C, h, w), or one (C, h, w) per picture where sizes differ


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
        """One row of sums in which picture i counts `weights[i]` times; weights (P,)."""
        sums = (torch.tensordot(weights[None], getattr(self, name), dims=1) for name in self.__dataclass_fields__)
        return PictureMoments(*sums)


@dataclass(frozen=True)
class ChannelMap:
    """y = matrix @ x + a constant: features y (B channels) from features x (A channels), and how good that is."""

    matrix: Tensor
    """(B, A), float64"""
    alpha: float
    """ridge penalty with the best cross-validated fit, in units of the mean variance of x"""
    r2: float
    """share of the variance of all channels predicted in pictures left out of the fit; 1: all, below 0: worse than the
    mean of the other pictures"""
    r2_channels: Tensor
    """the same for each channel, (B,); NaN for one that does not vary"""
    moments: PictureMoments = field(repr=False)
    """the sums it was fitted from"""

    def refit(self, weights: Tensor) -> Tensor:
        """The matrix (B, A), fitted with picture i counted `weights[i]` times, weights (P,), and the same penalty."""
        return fit_map(self.moments, self.alpha, weights)[0]


def fit_channel_map(feats_from: Features, feats_to: Features, alphas: Sequence[float] = ALPHAS) -> ChannelMap:
    """Fit feats_to = matrix @ feats_from + constant by ridge regression, every pixel of every picture a sample.

    The penalty is chosen by cross-validation with whole pictures left out, since neighbouring pixels are no independent
    samples. R2 is that of the chosen penalty on the same folds; with ten penalties and thousands of pixels the choice
    hardly flatters it.

    Args:
        feats_from: features x, (P, A, h, w) or P times (A, h, w).
        feats_to: features y for the same pictures, (P, B, h, w) or P times (B, h, w).
        alphas: penalties to choose from, in units of the mean variance of x.

    Raises:
        ValueError: features that do not match each other, or only one picture; NaN or infinite values; features of
            which no channel varies. Some dead channels do no harm.
    """
    moments = picture_moments(feats_from, feats_to)
    if len(moments) < 2:
        raise ValueError(
            "features of one picture, expected two or more: R2 is measured on pictures left out of the fit"
        )
    _check_varies(moments)
    errors, total = _cross_validate(moments, alphas)  # (alphas, B), (B,)
    best = int(errors.sum(1).argmin())
    matrix, _, _ = fit_map(moments, alphas[best])
    r2 = 1 - float(errors[best].sum() / total.sum())
    return ChannelMap(matrix, alphas[best], r2, 1 - errors[best] / total, moments)


def picture_moments(feats_x: Features, feats_y: Features) -> PictureMoments:
    """Collect `PictureMoments` from the features two encoders gave for the same LR pictures, in float64.

    Raises:
        ValueError: no pictures, not the same number of them, or not the same size of one; NaN or infinite values.
    """
    width_of(feats_x)
    if len(feats_x) != len(feats_y):
        raise ValueError(
            f"features of {len(feats_x)} and of {len(feats_y)} pictures, expected the same pictures for both"
        )
    rows = []
    for i, (a, b) in enumerate(zip(feats_x, feats_y, strict=True)):
        if a.ndim != 3 or b.ndim != 3 or a.shape[1:] != b.shape[1:]:
            raise ValueError(
                f"features of picture {i} are {tuple(a.shape)} and {tuple(b.shape)}, expected (C, h, w) with the same "
                f"h and w: both encoders have to see the same low-resolution picture"
            )
        x, y = (_checked(each, i).flatten(1) for each in (a, b))  # (A, n), (B, n)
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
    weights = torch.ones_like(moments.count) if weights is None else weights
    (matrix,), mean_x, mean_y = _fit_maps(moments, [alpha], weights)
    return matrix, mean_x, mean_y


def fits_without(
    moments: PictureMoments, alphas: Sequence[float]
) -> Iterator[tuple[Tensor, list[Tensor], Tensor, Tensor]]:
    """Cross-validation: fits to all pictures but some, every picture left out once.

    Yields:
        which pictures were left out, (P,), 1 or 0; per penalty the matrix (B, A) fitted to the others; their mean_x
        (A,) and mean_y (B,).
    """
    pictures = len(moments)
    folds = min(FOLDS, pictures)
    for number in range(folds):
        out = (torch.arange(pictures) % folds == number).double()
        yield out, *_fit_maps(moments, alphas, 1 - out)


def patch_covariance(feats: Features, kernel_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over all patches inside each picture, in float64, for `kernels.functional_correlation`.

    Args:
        feats: (P, C, h, w) or P times (C, h, w).
        kernel_size: side k of the patches, taken where they lie inside the picture.

    Returns:
        count (P,), sum (P, D), sum of products (P, D, D) with D = C * k * k in the order of a kernel's weight. The
        covariance of one choice of pictures is `pooled_covariance` of these.

    Raises:
        ValueError: no pictures, one smaller than a patch, NaN or infinite values.
    """
    width_of(feats)
    rows = []
    for i, picture in enumerate(feats):
        if min(picture.shape[-2:]) < kernel_size:
            raise ValueError(
                f"features of picture {i} are {tuple(picture.shape)}, expected at least {kernel_size} x {kernel_size} "
                f"pixels, the kernel's taps: were the pictures cropped too far?"
            )
        patches = F.unfold(_checked(picture, i)[None], kernel_size)[0]  # (D, n)
        rows.append((patches.new_tensor(patches.shape[1]), patches.sum(1), patches @ patches.T))
    count, first, second = (torch.stack(column) for column in zip(*rows, strict=True))
    return count, first, second


def pooled_covariance(sums: tuple[Tensor, Tensor, Tensor], weights: Tensor | None = None) -> Tensor:
    """Covariance (D, D) of the patches of all pictures, picture i counted `weights[i]` times (once if left out)."""
    weights = torch.ones_like(sums[0]) if weights is None else weights
    count, first, second = (torch.tensordot(weights, each, dims=1) for each in sums)
    return second / count - torch.outer(first, first) / count**2


def resampled_pictures(pictures: int, resamples: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Bootstrap choices of pictures: how often each one was drawn, (pictures,)."""
    for _ in range(resamples):
        drawn = torch.randint(pictures, (pictures,), generator=generator)
        yield torch.bincount(drawn, minlength=pictures).double()


def width_of(feats: Features) -> int:
    """How many channels features have, C.

    Raises:
        ValueError: there are none.
    """
    if not len(feats):
        raise ValueError("features of no pictures, expected some: an empty folder, or a choice that left none?")
    return feats[0].shape[0]


def _checked(feats: Tensor, picture: int) -> Tensor:
    """Features of one picture in float64, on the CPU, and finite."""
    feats = feats.detach().cpu().double()
    if bad := int((~feats.isfinite()).sum()):
        raise ValueError(
            f"features of picture {picture} hold {bad} NaN or infinite values, expected none: did the model diverge, "
            f"or run in half precision?"
        )
    return feats


def _check_varies(moments: PictureMoments) -> None:
    """Refuse features of which no channel differs, from pixel to pixel, by more than float32 rounding of its mean."""
    count, x, y, xx, _, yy = (getattr(moments, name).sum(0) for name in moments.__dataclass_fields__)
    for name, total, squares in (("feats_from", x, xx.diagonal()), ("feats_to", y, yy)):
        offset = (total / count).square()
        if not (squares / count - offset > (4 * torch.finfo(torch.float32).eps) ** 2 * offset).any():
            raise ValueError(f"no channel of {name} varies, expected some that do: dead layer, or grey pictures?")


def _fit_maps(moments: PictureMoments, alphas: Sequence[float], weights: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """One matrix (B, A) per penalty at the price of one eigendecomposition, and the means of x and y."""
    sums = moments.weighted(weights)
    mean_x, mean_y = sums.x[0] / sums.count[0], sums.y[0] / sums.count[0]
    sxx = sums.xx[0] / sums.count[0] - torch.outer(mean_x, mean_x)
    sxy = sums.xy[0] / sums.count[0] - torch.outer(mean_x, mean_y)
    values, vectors = torch.linalg.eigh(sxx)
    values, right = values.clamp(min=0), vectors.T @ sxy
    matrices = [(vectors @ (right / (values + alpha * values.mean())[:, None])).T for alpha in alphas]
    return matrices, mean_x, mean_y


def _cross_validate(moments: PictureMoments, alphas: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Squared errors (alphas, B) in pictures left out of the fit, and of predicting the mean of the others, (B,)."""
    errors = total = torch.zeros(())
    for out, matrices, mean_x, mean_y in fits_without(moments, alphas):
        left = moments.weighted(out)
        n, x, y, xx, xy, yy = (getattr(left, name)[0] for name in left.__dataclass_fields__)
        # moments of the pictures left out, about the means of the others
        xx = xx - torch.outer(x, mean_x) - torch.outer(mean_x, x) + n * torch.outer(mean_x, mean_x)
        xy = xy - torch.outer(x, mean_y) - torch.outer(mean_x, y) + n * torch.outer(mean_x, mean_y)
        yy = yy - 2 * mean_y * y + n * mean_y.square()
        errors = errors + torch.stack([yy - 2 * (m * xy.T).sum(1) + (m @ xx * m).sum(1) for m in matrices])
        total = total + yy
    return errors, total
