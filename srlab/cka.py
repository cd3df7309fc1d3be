"""Similarity of two sets of features: CKA and its neighbours. A maths room: tensors in, numbers out.

Row i of `x` (n, p) and row i of `y` (n, q) describe the same example. What an example is decides what the number
means, so the reductions from feature maps (B, C, h, w) to examples have names: see `REDUCTIONS`.

- Many examples (pixels): `CKA` and `CKAMatrix` take one picture after the other and hold sums only.
- Few examples (pictures): Gram matrices, (n, n), from `linear_gram` or `rbf_gram`, then `cka_from_grams`.
- Either way comes with an interval over pictures (`bootstrap`) and a null (`shuffled_pairs`, `null_by_shuffling`).

Linear CKA is HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)) (Kornblith et al. 2019, arXiv 1905.00414). `debiased` takes the
unbiased HSIC_1 (Song et al. 2012, JMLR 13; Nguyen et al. 2021, arXiv 2010.15327), which is 0 on average for unrelated
features; the biased one is not: about 0.5 for 64 Gaussian features and n = 64. HSIC_1 is an inner product of U-centred
matrices, so even the debiased CKA lies in [-1, 1] and its root is never of a negative number.

How a sum replaces a Gram matrix: about the mean, the rows of a linear Gram matrix sum to 0, and then, with k_i the
squared length of example i,  n (n - 3) HSIC_1 = |x'y|^2 - n / (n - 2) sum k_i l_i + sum k_i sum l_i / ((n-1)(n-2)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

_FEWEST = 4  # HSIC_1 divides by n - 3
_CHUNK = 4096  # examples per matrix product: a chunk of some hundred features stays in the cache
_GPU_CHUNK = 65536
_EXACT = 2**28  # a batch that costs fewer multiply-adds than this is multiplied in float64: about 10 ms
_COLUMNS = 65536  # features per matrix product when a Gram matrix is made
_RESAMPLED = 2**23  # numbers held at once while resampling


# ---------------------------------------------------------------------------------------------- maps -> examples
def pixels_as_examples(feats: Tensor, every: int = 1) -> Tensor:
    """(B, C, h, w) -> (B * h * w, C): each pixel is an example, channels are its features.

    Asks: do the two layers code the same local content? n is large, so bias is small, but neighbouring pixels are
    alike: take intervals over pictures, not over pixels. `every` = 2 keeps every second row and column.
    """
    _check_maps(feats)
    return feats[..., ::every, ::every].permute(0, 2, 3, 1).flatten(0, 2)


def pictures_as_examples(feats: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C * h * w): each picture is an example, its whole map is one long feature vector.

    Asks: do the two layers find the same pictures alike? n is small and features are many: use the debiased form.
    All pictures need one size.
    """
    _check_maps(feats)
    return feats.flatten(1)


def pooled_as_examples(feats: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C): each picture is an example, described by the mean of each channel."""
    _check_maps(feats)
    return feats.mean(dim=(2, 3))


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "pixels": pixels_as_examples,
    "pictures": pictures_as_examples,
    "pooled": pooled_as_examples,
}


# --------------------------------------------------------------------------------------------- sums over examples
def linear_cka(x: Tensor, y: Tensor, debiased: bool = False) -> float:
    """Linear CKA of two sets of features, computed in the smaller space (features or examples).

    Args:
        x: features of n examples, (n, p), any floating dtype and any mean.
        y: features of the same n examples, (n, q).
        debiased: unbiased HSIC_1 in place of the biased HSIC.

    Returns:
        Similarity: biased in [0, 1], debiased in [-1, 1]. Unchanged by rotation, shift and isotropic scaling.

    Raises:
        ValueError: not two (n, features) tensors with one n >= 4, not finite, or features that do not vary.
    """
    _check_rows({"x": x, "y": y})
    (n, p), q = x.shape, y.shape[1]
    if n * (p + q) < p * p + p * q + q * q:
        return float(cka_from_grams(linear_gram(x), linear_gram(y), debiased))
    sums = CKA()
    sums.update(x, y)
    return sums.compute(debiased)


class CKA:
    """Linear CKA of one pair of layers, fed batch by batch; see `CKAMatrix`, of which this is one cell."""

    def __init__(self, keep_per_batch: bool = False):
        self._matrix = CKAMatrix(["x"], ["y"], keep_per_batch)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add a batch: (n, p) and (n, q), any n >= 1. For `bootstrap`, one picture is one batch."""
        self._matrix.update({"x": x}, {"y": y})

    def compute(self, debiased: bool = False) -> float:
        """Similarity of everything fed so far."""
        return float(self._matrix.compute(debiased))

    def bootstrap(
        self, n_resamples: int = 1000, seed: int = 0, debiased: bool = False, level: float = 0.95
    ) -> tuple[float, float]:
        """Interval (low, high) over batches (pictures); see `CKAMatrix.bootstrap`."""
        low, high = self._matrix.bootstrap(n_resamples, seed, debiased, level)
        return float(low), float(high)


class CKAMatrix:
    """Linear CKA of every layer of one model with every layer of another, in one pass over the pictures.

    Holds sums only: for layers of p and q features (p + 2)(q + 2) numbers a pair, in float64. Features are measured
    from the first chunk's mean and in units of its spread, which CKA does not see and float32 products need: large
    means cost no digits. Small batches and float64 features are multiplied in float64.

    Args:
        names_x, names_y: layers, in the order of the matrix' rows and columns; `update` picks them from its dicts.
        keep_per_batch: keep the sums of each `update` apart, for `half_samples` and `bootstrap`. Memory grows by
            the size of the sums with every batch.
    """

    def __init__(self, names_x: Sequence[str], names_y: Sequence[str], keep_per_batch: bool = False):
        self.names_x, self.names_y = tuple(names_x), tuple(names_y)
        if not self.names_x or not self.names_y:
            raise ValueError(f"got {len(self.names_x)} and {len(self.names_y)} layer names, expected one or more each")
        self.n = 0
        self._keep = keep_per_batch
        self._kept: list[list[Tensor]] = []
        self._sides: tuple[_Side, _Side] | None = None

    def update(self, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> None:
        """Add a batch (for `bootstrap`: a picture).

        Args:
            x, y: layer name -> features, (n, width of that layer), the same n >= 1 for all; as `features.capture`
                gives them after a reduction. Layers not among the names are ignored.
        """
        rows_x, rows_y = _pick(x, self.names_x, "x"), _pick(y, self.names_y, "y")
        named = {f"x[{k!r}]": v for k, v in rows_x.items()} | {f"y[{k!r}]": v for k, v in rows_y.items()}
        _check_rows(named, fewest=1)
        xs, ys = list(rows_x.values()), list(rows_y.values())
        if self._sides is None:
            _check_finite(named, rows=_CHUNK)
            sides = _Side.about(xs), _Side.about(ys)
        else:
            sides = self._sides
        for side, rows, names in zip(sides, (xs, ys), (self.names_x, self.names_y), strict=True):
            side.check_widths(rows, names)

        sums = _sums(sides, xs, ys)
        if not all(bool(part.isfinite().all()) for part in sums):
            _check_finite(named)
            raise ValueError(
                "the sums overflowed although all features are finite, expected values within 1e8 times the spread of "
                "the first batch: did the model diverge, or was the first batch nearly constant? float64 features help"
            )
        self._total = sums if self._sides is None else [a + b for a, b in zip(self._total, sums, strict=True)]
        self._sides = sides  # only now: nothing is kept of a batch that was refused
        self.n += xs[0].shape[0]
        if self._keep:
            self._kept.append(sums)

    def compute(self, debiased: bool = False) -> Tensor:
        """Similarities, (layers of x, layers of y), float64.

        Raises:
            ValueError: fewer than 4 examples so far, or a layer that does not vary.
        """
        if self._sides is None or self.n < _FEWEST:
            raise ValueError(_too_few(self.n))
        own = self._total[1:]
        for side, names, parts in zip(
            self._sides, (self.names_x, self.names_y), (own[: len(self.names_x)], own[len(self.names_x) :]), strict=True
        ):
            side.check_varies(parts, names)
        return self._similarity(self._total, debiased)

    def half_samples(self, n_resamples: int = 1000, seed: int = 0, debiased: bool = False) -> Tensor:
        """Similarities in random halves of the batches (pictures), (n_resamples, layers of x, layers of y).

        For a statistic of the matrix, such as the mean of its diagonal: take it here and in `compute()`, then
        `half_sample_interval`.
        """
        if not self._keep:
            raise ValueError("sums per picture were not kept, expected CKAMatrix(..., keep_per_batch=True)")
        chosen = _halves(len(self._kept), n_resamples, seed)
        shapes = [part.shape for part in self._kept[0]]
        kept = [torch.stack(parts).flatten(1) for parts in zip(*self._kept, strict=True)]
        at_once = max(1, _RESAMPLED // sum(part.shape[1] for part in kept))
        draws = []
        for weights in chosen.double().split(at_once):
            sums = [(weights @ part).unflatten(1, shape) for part, shape in zip(kept, shapes, strict=True)]
            fewest = int(sums[0][:, -1, -1].min())
            if fewest < _FEWEST:
                raise ValueError(_too_few(fewest) + " (in a half-sample of the pictures)")
            draws.append(self._similarity(sums, debiased))
        return torch.cat(draws)

    def bootstrap(
        self, n_resamples: int = 1000, seed: int = 0, debiased: bool = False, level: float = 0.95
    ) -> tuple[Tensor, Tensor]:
        """Interval (low, high) over pictures, each (layers of x, layers of y); see `half_sample_interval`.

        Raises:
            ValueError: sums were not kept, or fewer than 4 batches.
        """
        draws = self.half_samples(n_resamples, seed, debiased)
        return half_sample_interval(self.compute(debiased), draws, len(self._kept), level)

    def _similarity(self, sums: list[Tensor], debiased: bool) -> Tensor:
        """Sums, maybe with leading dimensions -> (..., layers of x, layers of y)."""
        left, right = self._sides
        own = [_Side(side.widths[i : i + 1]) for side in (left, right) for i in range(len(side.widths))]
        parts = [_hsic(part, side, side, debiased) for part, side in zip(sums[1:], own, strict=True)]
        own_x = torch.cat(parts[: len(left.widths)], dim=-2).clamp(min=0)  # (..., layers of x, 1)
        own_y = torch.cat(parts[len(left.widths) :], dim=-1).clamp(min=0)  # (..., 1, layers of y)
        return _hsic(sums[0], left, right, debiased) / (own_x.sqrt() * own_y.sqrt())


class _Side:
    """The layers on one side, stacked: a layer of p features has p + 2 rows, its features, their sum of squares, a one.

    With those rows a single matrix product gives all that both forms of HSIC need, for every pair of layers.
    """

    def __init__(self, widths: list[int], origins: list[Tensor] | None = None, units: list[float] | None = None):
        self.widths, self.origins, self.units = widths, origins, units
        ends = torch.tensor(widths).add(2).cumsum(0)
        self.height = int(ends[-1])
        self.ones, self.squares = ends - 1, ends - 2
        self.spans = [slice(int(end) - width - 2, int(end)) for end, width in zip(ends, widths, strict=True)]
        self.features = torch.cat([torch.arange(span.start, span.stop - 2) for span in self.spans])
        layer = torch.arange(len(widths)).repeat_interleave(torch.tensor(widths))
        self.member = F.one_hot(layer, len(widths)).double()  # (all features, layers)

    @classmethod
    def about(cls, rows: list[Tensor]) -> _Side:
        """Measure from the mean of the first rows, in units of their spread, both exact in float32."""
        origins, units = [], []
        for features in rows:
            first = _double(features[:_CHUNK]).cpu()
            origins.append(first.mean(0).float())
            spread = float((first - origins[-1]).square().mean().sqrt())
            units.append(2.0 ** min(max(round(math.log2(spread)), -100), 100) if 0 < spread < math.inf else 1.0)
        return cls([features.shape[1] for features in rows], origins, units)

    def stack(self, rows: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Features of each layer, (c, p) -> one block, (height, c)."""
        block = torch.empty(self.height, rows[0].shape[0], dtype=dtype, device=rows[0].device)
        for features, span, origin, unit in zip(rows, self.spans, self.origins, self.units, strict=True):
            layer = block[span]
            torch.sub(features.T, origin.to(block)[:, None], out=layer[:-2])
            layer[:-2] *= 1 / unit
            torch.sum(layer[:-2].square(), dim=0, out=layer[-2])
            layer[-1] = 1
        return block

    def moments(self, sums: Tensor, other: _Side) -> Tensor:
        """Map from stacked rows to squared lengths about the mean, (..., height, layers): k = |x|^2 - 2 x.m + |m|^2."""
        n = sums[..., -1, -1, None]
        mean = sums[..., self.features, other.ones[0]] / n  # (..., all features)
        lengths = mean.square() @ self.member  # (..., layers)
        layers = torch.arange(len(self.widths))
        to_length = sums.new_zeros(*sums.shape[:-2], self.height, len(self.widths))
        to_length[..., self.features, :] = -2 * mean[..., None] * self.member
        to_length[..., self.squares, layers] = 1
        to_length[..., self.ones, layers] = lengths
        return to_length

    def check_widths(self, rows: list[Tensor], names: Sequence[str]) -> None:
        for features, width, name in zip(rows, self.widths, names, strict=True):
            if features.shape[1] != width:
                raise ValueError(
                    f"layer {name!r} has {features.shape[1]} features, expected {width} as in the batches before: "
                    f"another model, or flattened maps of pictures of another size?"
                )

    def check_varies(self, own: list[Tensor], names: Sequence[str]) -> None:
        for part, name, origin, unit in zip(own, names, self.origins, self.units, strict=True):
            mean = part[:-2, -1] / part[-1, -1]
            variance = float(part[-2, -1] / part[-1, -1] - mean.square().sum()) * unit**2
            _check_varies(variance, float((origin + unit * mean).square().sum()), name)


def _sums(sides: tuple[_Side, _Side], xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
    """Products of the stacked rows of a batch in float64: x with y, then every layer with itself."""
    n = xs[0].shape[0]
    pairs = sides[0].height * sides[1].height + sum((width + 2) ** 2 for side in sides for width in side.widths)
    exact = n * pairs < _EXACT or any(features.dtype == torch.float64 for features in (*xs, *ys))
    chunk = _CHUNK if xs[0].device.type == "cpu" else _GPU_CHUNK
    total: list[Tensor] = []
    for start in range(0, n, chunk):
        blocks = []
        for side, rows in zip(sides, (xs, ys), strict=True):
            part = [features.detach()[start : start + chunk] for features in rows]
            part = [_double(features) for features in part] if exact else part
            blocks.append(side.stack(part, torch.float64 if exact else torch.float32))
        own = [block[span] for side, block in zip(sides, blocks, strict=True) for span in side.spans]
        products = [_product(*blocks), *(_product(layer, layer) for layer in own)]
        total = [a + b for a, b in zip(total, products, strict=True)] if total else products
    return total


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b' of (P, c) and (Q, c), in float64 on the CPU. oneDNN has twice the speed of torch.mm's MKL on AMD machines."""
    if a.dtype == torch.float32 and a.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return F.linear(a.to_mkldnn(), b).to_dense().double()
    return (a @ b.T).cpu().double()


def _hsic(sums: Tensor, left: _Side, right: _Side, debiased: bool) -> Tensor:
    """Products of stacked rows, (..., left.height, right.height) -> HSIC of every pair, up to a factor of n only."""
    n = sums[..., -1, -1, None, None]
    mean_x = sums[..., left.features, :][..., right.ones[:1]] / n  # (..., p, 1)
    mean_y = sums[..., left.ones[:1], :][..., right.features] / n  # (..., 1, q)
    about_mean = sums[..., left.features, :][..., right.features] - n * mean_x * mean_y
    hsic = left.member.T @ about_mean.square() @ right.member  # (..., layers, layers)
    if not debiased:
        return hsic
    to_k, to_l = left.moments(sums, right), right.moments(sums.mT, left)
    k_l = to_k.mT @ sums @ to_l  # sum over examples of k_i l_i
    k, l = to_k.mT @ sums[..., right.ones[:1]], sums[..., left.ones[:1], :] @ to_l
    return hsic - n / (n - 2) * k_l + k * l / ((n - 1) * (n - 2))


# ---------------------------------------------------------------------------------------------------- Gram matrices
def linear_gram(x: Tensor) -> Tensor:
    """Dot products of all examples about the mean, (n, p) -> (n, n) float64; p may be millions."""
    _check_rows({"x": x})
    gram = torch.zeros(len(x), len(x), dtype=torch.float64)
    offset = 0.0
    for columns in x.detach().split(_COLUMNS, dim=1):
        columns = _double(columns)
        mean = columns.mean(0)
        offset += float(mean.square().sum())
        columns = columns - mean
        gram += (columns @ columns.T).cpu()
    if not gram.isfinite().all():
        _check_finite({"x": x})
    _check_varies(float(gram.diagonal().mean()), offset, "x")
    return gram


def rbf_gram(x: Tensor, bandwidth: float = 1.0) -> Tensor:
    """Gaussian kernel exp(-d^2 / (2 s^2)) of all distances, (n, p) -> (n, n) float64.

    s is `bandwidth` times the median distance (Kornblith et al. use 0.2, 0.4 and 0.8); as in their notebook the
    median is taken over the whole matrix, diagonal included.
    """
    gram = linear_gram(x)
    lengths = gram.diagonal()
    squared = (lengths[:, None] + lengths - 2 * gram).clamp(min=0)
    median = float(np.median(squared.numpy()))
    if median <= 0:
        raise ValueError("the median distance is 0, expected distinct examples: are most rows of x equal, dead units?")
    return torch.exp(-squared / (2 * bandwidth**2 * median))


def rbf_cka(x: Tensor, y: Tensor, bandwidth: float = 1.0, debiased: bool = False) -> float:
    """CKA with a Gaussian kernel on both sides: sensitive to neighbourhoods, not only to the large directions."""
    _check_rows({"x": x, "y": y})
    return float(cka_from_grams(rbf_gram(x, bandwidth), rbf_gram(y, bandwidth), debiased))


def cka_from_grams(grams_x: Tensor, grams_y: Tensor, debiased: bool = False) -> Tensor:
    """CKA of Gram matrices, centred or not: (n, n) twice -> scalar; (Lx, n, n) and (Ly, n, n) -> (Lx, Ly), float64.

    Raises:
        ValueError: not square Gram matrices of one n >= 4, or one of features that do not vary.
    """
    n = grams_x.shape[-1]
    if any(g.ndim not in (2, 3) or g.shape[-2:] != (n, n) for g in (grams_x, grams_y)):
        raise ValueError(
            f"Gram matrices have shapes {tuple(grams_x.shape)} and {tuple(grams_y.shape)}, expected (n, n) or "
            f"(layers, n, n) with one n: were features passed, or another number of pictures?"
        )
    if n < _FEWEST:
        raise ValueError(_too_few(n))
    xs, ys = (_centred(grams, debiased).flatten(-2) for grams in (grams_x, grams_y))
    norms_x, norms_y = xs.norm(dim=-1), ys.norm(dim=-1)
    for norm, grams in ((norms_x, grams_x), (norms_y, grams_y)):
        if not (norm > 1e-13 * grams.double().flatten(-2).norm(dim=-1)).all():
            raise ValueError(
                "a Gram matrix is not finite, or vanishes when centred, expected examples that differ from each other "
                "unevenly: constant features, NaN, or one-hot rows, which are all equally far apart?"
            )
    return xs @ ys.mT / (norms_x[:, None] * norms_y) if xs.ndim > 1 else xs @ ys / (norms_x * norms_y)


def _centred(grams: Tensor, debiased: bool) -> Tensor:
    """H K H, or the U-centred matrix, whose inner product over n (n - 3) is HSIC_1 (Szekely & Rizzo 2014)."""
    grams = grams.double()
    n = grams.shape[-1]
    if not debiased:
        rows = grams.mean(-1, keepdim=True)
        return grams - rows - rows.mT + rows.mean(-2, keepdim=True)
    # About the mean first: zeroing the diagonal of a matrix of large means would leave small differences of large sums.
    centred = _centred(grams, debiased=False)
    off = centred - torch.diag_embed(centred.diagonal(dim1=-2, dim2=-1))
    rows = off.sum(-1, keepdim=True) / (n - 2)
    off = off - rows - rows.mT + rows.sum(-2, keepdim=True) / (n - 1)
    return off - torch.diag_embed(off.diagonal(dim1=-2, dim2=-1))


# ----------------------------------------------------------------------------------------------- intervals and nulls
def bootstrap_grams(
    grams_x: Tensor,
    grams_y: Tensor,
    n_resamples: int = 1000,
    seed: int = 0,
    debiased: bool = False,
    level: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Interval (low, high) over examples (pictures) of `cka_from_grams`, in its shape; see `half_sample_interval`."""
    draws = []
    for weights in _halves(grams_x.shape[-1], n_resamples, seed):
        some = weights.nonzero().squeeze(1)
        halves = (grams[..., some, :][..., some] for grams in (grams_x, grams_y))
        draws.append(cka_from_grams(*halves, debiased))
    estimate = cka_from_grams(grams_x, grams_y, debiased)
    return half_sample_interval(estimate, torch.stack(draws), grams_x.shape[-1], level)


def half_sample_interval(
    estimate: Tensor, draws: Tensor, n_pictures: int, level: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Interval for a similarity from its values in random halves of the pictures.

    Half-sampling is the bootstrap without replacement: values in random halves scatter around the full sample's as
    that does around the truth (Efron 1982, chapter 8; Shao & Wu 1989). A drawing with replacement will not do here:
    a picture drawn twice is a pair of perfectly alike examples, and lifts CKA, the debiased form most of all.
    The scatter is taken on Fisher's z = atanh, which keeps the interval inside [-1, 1], with Student's t.

    Args:
        estimate: similarity of the full sample, any shape.
        draws: (n_resamples, *shape of estimate), as `CKAMatrix.half_samples` gives them.
        n_pictures: pictures in the full sample.

    Returns:
        low, high, each in the shape of `estimate`.
    """
    edge = 1 - 1e-12
    half = n_pictures // 2
    scatter = draws.clamp(-edge, edge).atanh().std(dim=0) * math.sqrt(half / (n_pictures - half))
    reach = scatter * float(stats.t.ppf((1 + level) / 2, n_pictures - 1))
    centre = estimate.clamp(-edge, edge).atanh()
    return (centre - reach).tanh(), (centre + reach).tanh()


def _halves(n: int, n_resamples: int, seed: int) -> Tensor:
    """Which of n pictures each resample holds, (n_resamples, n) bool with n // 2 True in each row."""
    if n < _FEWEST:
        raise ValueError(f"got {n} pictures, expected at least {_FEWEST} for an interval: feed one picture per update")
    order = torch.rand(n_resamples, n, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return order < n // 2


def null_by_shuffling(
    grams_x: Tensor, grams_y: Tensor, n_shuffles: int = 200, seed: int = 0, debiased: bool = False
) -> Tensor:
    """CKA of examples paired at random, (n_shuffles, *shape of `cka_from_grams`): what n and p alone give."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(grams_y.shape[-1], generator=generator) for _ in range(n_shuffles)]
    return torch.stack([cka_from_grams(grams_x, grams_y[..., order, :][..., order], debiased) for order in orders])


Feats = Tensor | Mapping[str, Tensor]


def shuffled_pairs(pairs: Iterable[tuple[Feats, Feats]]) -> Iterator[tuple[Feats, Feats]]:
    """Pair x of each picture with y of the picture before, of the last one for the first: a null for pixels.

    Feed the result to another accumulator. Pixels keep their place, so this null holds what place and picture
    borders alone explain; only the content is swapped. Maps of two sizes are cropped at the right and at the bottom.
    Holds two pictures.

    Args:
        pairs: per picture, the maps (B, C, h, w) of both sides, or dicts layer -> maps.
    """
    first_x, before, count = None, None, 0
    for x, y in pairs:
        count += 1
        if before is None:
            first_x = x
        else:
            yield _crop(x, before), _crop(before, x)
        before = y
    if count < 2:
        raise ValueError(f"got {count} pictures, expected at least 2: a picture cannot be swapped with itself")
    yield _crop(first_x, before), _crop(before, first_x)


def _crop(feats: Feats, other: Feats) -> Feats:
    maps = [m for side in (feats, other) for m in (side.values() if isinstance(side, Mapping) else [side])]
    height, width = (min(m.shape[axis] for m in maps) for axis in (-2, -1))
    if isinstance(feats, Mapping):
        return {name: m[..., :height, :width] for name, m in feats.items()}
    return feats[..., :height, :width]


# ------------------------------------------------------------------------------------------------- other similarities
def cca(x: Tensor, y: Tensor) -> float:
    """Mean canonical correlation of (n, p) and (n, q) over min(p, q) directions; unchanged by any invertible map.

    Raises:
        ValueError: as `linear_cka`; and when n leaves no room: with n - 1 <= rank, correlations are 1 for any features.
    """
    _check_rows({"x": x, "y": y})
    return _mean_correlation(_coordinates(x), _coordinates(y))


def svcca(x: Tensor, y: Tensor, keep: float = 0.99) -> float:
    """`cca` of the leading principal directions that hold `keep` of the variance (Raghu et al. 2017, 1706.05806)."""
    _check_rows({"x": x, "y": y})
    return _mean_correlation(_coordinates(x, keep), _coordinates(y, keep))


def procrustes(x: Tensor, y: Tensor) -> float:
    """1 - d^2 / 2 with d the orthogonal Procrustes distance of features centred and of norm 1: in [0, 1].

    It equals the nuclear norm of x'y (Ding et al. 2021, arXiv 2108.01661). Unchanged by rotation, shift and scaling.
    """
    _check_rows({"x": x, "y": y})
    a, b = _coordinates(x), _coordinates(y)
    return float(torch.linalg.matrix_norm(a.T @ b, "nuc") / (a.norm() * b.norm()))


def _coordinates(x: Tensor, keep: float = 1.0) -> Tensor:
    """Centred examples along their principal axes, (n, rank) float64, in the smaller space; largest axis first."""
    n, p = x.shape
    if n < p:
        variances, axes = torch.linalg.eigh(linear_gram(x))
        coordinates = axes * variances.clamp(min=0).sqrt()
    else:
        centred = _double(x.detach()).cpu()
        centred = centred - centred.mean(0)
        _check_finite({"x": x})
        variances, axes = torch.linalg.eigh(centred.T @ centred)
        _check_varies(float(variances.sum()) / n, float(_double(x.detach()).mean(0).square().sum()), "x")
        coordinates = centred @ axes
    variances, coordinates = variances.flip(0), coordinates.flip(1)
    held = variances.cumsum(0) / variances.sum()
    rank = int((variances > variances[0] * max(n, p) * torch.finfo(torch.float64).eps).sum())
    if keep < 1:
        rank = min(rank, int((held < keep).sum()) + 1)
    return coordinates[:, :rank]


def _mean_correlation(a: Tensor, b: Tensor) -> float:
    n, rank = len(a), max(a.shape[1], b.shape[1])
    if rank >= n - 1:
        raise ValueError(
            f"features span {rank} directions with only {n} examples, expected n > {rank + 1}: correlations would be 1 "
            f"whatever the features are. Take pixels or pooled maps as examples, or `svcca` with a smaller `keep`"
        )
    a, b = (torch.linalg.qr(side).Q for side in (a, b))
    return float(torch.linalg.svdvals(a.T @ b).clamp(max=1).mean())


# -------------------------------------------------------------------------------------------------------- refusals
def _double(x: Tensor) -> Tensor:
    return x.to("cpu" if x.device.type == "mps" else x.device, torch.float64)  # MPS has no float64


def _check_maps(feats: Tensor) -> None:
    if feats.ndim != 4:
        raise ValueError(
            f"feature maps have shape {tuple(feats.shape)}, expected (B, C, h, w): is the batch axis missing?"
        )


def _pick(features: Mapping[str, Tensor], names: Sequence[str], side: str) -> dict[str, Tensor]:
    missing = [name for name in names if name not in features]
    if missing:
        raise ValueError(
            f"{side} lacks layers {missing}, expected {list(names)}, got {list(features)}: other captures?"
        )
    return {name: features[name] for name in names}


def _check_rows(named: Mapping[str, Tensor], fewest: int = _FEWEST) -> None:
    """All (n, features), floating, one n."""
    counts = {}
    for name, rows in named.items():
        if rows.ndim != 2 or not rows.shape[1]:
            raise ValueError(
                f"{name} has shape {tuple(rows.shape)}, expected (examples, features): feature maps go through a "
                f"reduction first, such as pixels_as_examples"
            )
        if not rows.is_floating_point():
            raise ValueError(f"{name} has dtype {rows.dtype}, expected a floating one: is it a picture in uint8?")
        counts[name] = rows.shape[0]
    if len(set(counts.values())) > 1:
        raise ValueError(f"numbers of examples differ, {counts}, expected one n: other pictures, crops or strides?")
    if min(counts.values()) < fewest:
        raise ValueError(_too_few(min(counts.values()), fewest))


def _too_few(n: int, fewest: int = _FEWEST) -> str:
    return (
        f"got {n} examples, expected at least {fewest} (and many more to say anything): are pictures the examples where "
        f"pixels were meant, or x and y transposed?"
    )


def _check_finite(named: Mapping[str, Tensor], rows: int | None = None) -> None:
    for name, values in named.items():
        bad = int((~values[:rows].isfinite()).sum())
        if bad:
            raise ValueError(
                f"{name} holds {bad} NaN or infinite values, expected finite features: did the model diverge, or did "
                f"half precision overflow?"
            )


def _check_varies(variance: float, offset: float, name: str) -> None:
    """Refuse features that differ by no more than float32 rounding of their mean (`offset`: squared length of it)."""
    if not variance > (4 * torch.finfo(torch.float32).eps) ** 2 * offset:
        raise ValueError(
            f"layer {name!r} does not vary over the examples (variance {variance:.1e} about a mean of length "
            f"{offset**0.5:.1e}), expected features that do: a dead layer, a blank picture, or one picture repeated?"
        )
