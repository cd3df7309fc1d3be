"""Similarity of two sets of features: CKA and its neighbours. A maths room: tensors in, numbers out.

Row i of `x` (n, p) and row i of `y` (n, q) describe the same example, a pixel or a picture (`features.REDUCTIONS`).
Many examples: `CKA` and `CKAMatrix` take one picture after the other and hold sums only. Few examples: Gram matrices
(n, n) from `linear_gram` or `rbf_gram`, then `cka_from_grams`. Both come with an interval over pictures.

Linear CKA is HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)) (Kornblith et al. 2019, arXiv 1905.00414). `debiased` takes the
unbiased HSIC_1 (Song et al. 2012, JMLR 13; Nguyen et al. 2021, arXiv 2010.15327), which is 0 on average for unrelated
features; the biased one is not: about 0.5 for 64 Gaussian features and n = 64. HSIC_1 is an inner product of U-centred
matrices (Szekely & Rizzo 2014), so even the debiased CKA lies in [-1, 1] and its root is never of a negative number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from srlab import hsic

_FEWEST = 4  # HSIC_1 divides by n - 3
_CHUNK = 4096  # examples that origin and unit are taken from; a matrix product takes two such chunks
_LARGE_CHUNK = 65536  # the same on a GPU
_COLUMNS = 65536  # features per product when a Gram matrix is made
_EXACT_GRAM = 2**24  # a Gram matrix of so few multiply-adds is made in float64: a millisecond
_EXACT = 2**28  # the first so many multiply-adds are done in float64, whatever the batches: about 10 ms in all
_WIDE = 128  # stacked features from which on oneDNN pays


def linear_cka(x: Tensor, y: Tensor, debiased: bool = False) -> float:
    """Linear CKA of two sets of features, computed in the smaller space (features or examples).

    Args:
        x: features of n examples, (n, p), any floating dtype and any mean.
        y: features of the same n examples, (n, q).
        debiased: unbiased HSIC_1 in place of the biased HSIC.

    Returns:
        Similarity: biased in [0, 1], debiased in [-1, 1]. Unchanged by rotation, shift and isotropic scaling. Raises
        ValueError on other shapes, n < 4, two different n, NaN or infinite values, or features that do not vary.
    """
    _check_rows({"x": x, "y": y})
    (n, p), q = x.shape, y.shape[1]
    if n * (p + q) < p * p + p * q + q * q:
        return float(cka_from_grams(linear_gram(x), linear_gram(y), debiased))
    sums = CKA()
    sums.update(x, y)
    return sums.compute(debiased)


class CKAMatrix:
    """Linear CKA of every layer of one model with every layer of another, in one pass over the pictures.

    Holds sums only: for layers of p and q features (p + 2)(q + 2) numbers a pair, in float64. Features are measured
    from an origin and in a unit taken from the first of them, which CKA does not see and float32 products need: large
    means cost no digits. The first examples, and float64 features, are multiplied in float64.

    Args:
        names_x, names_y: layers, in the order of the matrix' rows and columns; `update` picks them from its dicts.
        keep_per_batch: keep the sums of each `update`, for `half_samples` and `bootstrap`; memory grows with each.
    """

    def __init__(self, names_x: Sequence[str], names_y: Sequence[str], keep_per_batch: bool = False):
        self.names_x, self.names_y = tuple(names_x), tuple(names_y)
        if any(not names or len(set(names)) < len(names) for names in (self.names_x, self.names_y)):
            raise ValueError(f"got layers {self.names_x} and {self.names_y}, expected one or more each, none twice")
        self.n = 0  # examples so far
        self._keep, self._kept = keep_per_batch, []
        self._sides: list[_Side] = []

    def update(self, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> None:
        """Add a batch (for `bootstrap`: a picture): layer name -> features, (n, width), the same n >= 1 for all.

        So `features.capture` gives them, after a reduction. Layers not among the names are ignored.
        """
        named = _pick("x", x, self.names_x) | _pick("y", y, self.names_y)
        _check_rows(named, fewest=1)
        rows = list(named.values())
        batch = rows[: len(self.names_x)], rows[len(self.names_x) :]
        widths = [[features.shape[1] for features in side] for side in batch]
        sides = self._sides or [_Side.about(side) for side in batch]
        before = [side.widths for side in sides]
        if widths != before:
            raise ValueError(f"layers have {widths} features, expected {before} as before: maps of another size?")
        sums = _sums(sides, batch, self.n)
        if not all(part.isfinite().all() for part in sums):
            _check_finite(named)
            raise ValueError("sums overflow, expected values within 1e8 times the first batch's spread: did it vary?")
        self._sides = sides  # only now: nothing is kept of a batch that was refused
        self._total = [a + b for a, b in zip(self._total, sums, strict=True)] if self.n else sums
        self.n += len(rows[0])
        if self._keep:
            self._kept.append(sums)

    def compute(self, debiased: bool = False) -> Tensor:
        """Similarities so far, (layers of x, layers of y), float64; refuses n < 4 and layers that do not vary."""
        _check_enough(self.n)
        own = iter(self._total[1:])
        for side, names in zip(self._sides, (self.names_x, self.names_y), strict=True):
            for name, origin, factor in zip(names, side.origins, side.factors, strict=True):
                sums = next(own) / self.n
                mean, length = sums[:-2, -1], float(sums[-2, -1])
                variance = length - float(mean.square().sum())
                _check_varies(name, variance, float((factor * origin + mean).square().sum()))
        return self._similarities([self._total], torch.ones(1, 1, dtype=torch.float64))[debiased][0]

    def half_samples(self, n_resamples: int = 1000, seed: int = 0) -> dict[bool, Tensor]:
        """Similarities in random halves of the pictures: debiased or not -> (n_resamples, layers of x, layers of y).

        For a statistic of the matrix (mean of its diagonal): of these, of `compute()`, then `half_sample_interval`.
        """
        halves = _halves(len(self._kept), n_resamples, seed).double()
        _check_enough(int((halves @ torch.stack([cross[-1, -1] for cross, *_ in self._kept])).min()))
        return self._similarities(self._kept, halves)

    def bootstrap(self, n_resamples: int = 1000, seed: int = 0, debiased: bool = False) -> tuple[Tensor, Tensor]:
        """95 % interval (low, high) over pictures, each (layers of x, layers of y); see `half_sample_interval`."""
        draws = self.half_samples(n_resamples, seed)[debiased]
        return half_sample_interval(self.compute(debiased), draws, len(self._kept))

    def _similarities(self, pictures: Sequence[list[Tensor]], weights: Tensor) -> dict[bool, Tensor]:
        """Sums of each picture; how often draws take it, (draws, pictures) -> (draws, layers of x, layers of y)."""
        cross, *own = (torch.stack(parts) for parts in zip(*pictures, strict=True))
        left, right = ([width + 2 for width in side.widths] for side in self._sides)
        alone = hsic.of_sums(hsic.cells(own), weights).clamp(min=0).sqrt()
        rows = [hsic.of_sums(hsic.cells(row.split(right, dim=2)), weights) for row in cross.split(left, dim=1)]
        both = torch.stack(rows, dim=2) / (alone[..., : len(left), None] * alone[..., None, len(left) :])
        return dict(zip((False, True), both, strict=True))


class CKA:
    """Linear CKA of one pair of layers, fed batch by batch: a `CKAMatrix` of one cell, with the same arguments."""

    def __init__(self, keep_per_batch: bool = False):
        self._matrix = CKAMatrix(["features"], ["features"], keep_per_batch)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add a batch (for `bootstrap`: a picture), (n, p) and (n, q), any n >= 1."""
        self._matrix.update({"features": x}, {"features": y})

    def compute(self, debiased: bool = False) -> float:
        """Similarity of everything fed so far."""
        return float(self._matrix.compute(debiased))

    def bootstrap(self, n_resamples: int = 1000, seed: int = 0, debiased: bool = False) -> tuple[float, float]:
        """95 % interval (low, high) over batches (pictures); see `half_sample_interval`."""
        low, high = self._matrix.bootstrap(n_resamples, seed, debiased)
        return float(low), float(high)


class _Side:
    """The layers on one side, stacked: of a layer of p features p + 2 rows, its features, their sum of squares, a one.

    One matrix product of such rows gives all that both forms of HSIC need, for every pair of layers.
    """

    def __init__(self, widths: list[int], origins: list[Tensor], factors: list[float]):
        self.widths, self.origins, self.factors = widths, origins, factors
        self.height = sum(widths) + 2 * len(widths)

    @classmethod
    def about(cls, rows: list[Tensor]) -> _Side:
        """Measure from a value that many rows share, such as the zero of a ReLU, or else from the mean, in spreads.

        A shared value off the origin has products that round the same way each time: the errors of float32 add up.
        """
        origins, factors = [], []
        for features in rows:
            first = _double(features[:_CHUNK]).cpu()
            shared, mean = first[:1024].mode(dim=0).values, first.mean(0)
            often = (first == shared).double().mean(0) > 0.01
            origins.append(torch.where(often, shared, mean).float())
            spread = float((first - origins[-1]).square().mean().sqrt())
            factors.append(2.0 ** -round(math.log2(spread)) if 1e-30 < spread < 1e30 else 1.0)  # exact: rounds nothing
        return cls([features.shape[1] for features in rows], origins, factors)

    def stack(self, rows: list[Tensor], dtype: torch.dtype, by_example: bool) -> Tensor:
        """Features of each layer, (c, p) -> one block, (height, c); in memory one example after the other, or not."""
        sizes = (len(rows[0]), self.height) if by_example else (self.height, len(rows[0]))
        block = torch.empty(sizes, dtype=dtype, device=rows[0].device)
        block = block.T if by_example else block
        heights = [width + 2 for width in self.widths]
        for layer, features, origin, factor in zip(block.split(heights), rows, self.origins, self.factors, strict=True):
            values, squares, ones = layer.split([features.shape[1], 1, 1])
            torch.add(-factor * origin.to(block)[:, None], features.T, alpha=factor, out=values)
            torch.sum(values.square(), dim=0, keepdim=True, out=squares)
            ones.fill_(1)
        return block


def _sums(sides: Sequence[_Side], batch: Sequence[list[Tensor]], seen: int) -> list[Tensor]:
    """Products of the stacked rows of a batch in float64: all of x with all of y, then every layer with itself."""
    left, right = sides
    every = [features.detach() for rows in batch for features in rows]
    n, on_cpu = len(every[0]), every[0].device.type == "cpu"
    heights = [[width + 2 for width in side.widths] for side in sides]
    sizes = [(left.height, right.height), *((height, height) for height in itertools.chain(*heights))]
    cost = sum(math.prod(size) for size in sizes)
    exact = n if any(features.dtype == torch.float64 for features in every) else min(n, max(0, _EXACT // cost - seen))
    # oneDNN is twice as fast as torch.mm (MKL) on AMD, with half a digit less, and wants each feature in one piece.
    wide = on_cpu and torch.backends.mkldnn.is_available() and min(left.height, right.height) >= _WIDE
    chunk = 2 * _CHUNK if on_cpu else _LARGE_CHUNK
    total = [torch.zeros(size, dtype=torch.float64) for size in sizes]
    for start, stop in itertools.pairwise([*range(0, exact, chunk), *range(exact, n, chunk), n]):
        rows = [_double(features[start:stop]) if start < exact else features[start:stop] for features in every]
        dtype, onednn = (torch.float64, False) if start < exact else (torch.float32, wide)
        by_example = not onednn and rows[0].stride(1) == 1
        x = left.stack(rows[: len(left.widths)], dtype, by_example)
        y = right.stack(rows[len(left.widths) :], dtype, by_example)
        pairs = [
            (x, y),
            *((part, part) for block, each in zip((x, y), heights, strict=True) for part in block.split(each)),
        ]
        for sums, (a, b) in zip(total, pairs, strict=True):
            sums += (F.linear(a.to_mkldnn(), b).to_dense() if onednn else a @ b.T).cpu()
    return total


def linear_gram(x: Tensor | Sequence[Tensor]) -> Tensor:
    """Dot products of all examples about the mean, (n, p) -> (n, n) float64; p may be millions.

    Large float32 input is multiplied in float32, over so few features at once that their float64 sum keeps
    six digits of a CKA. (About the first example instead of the mean it would be a little faster, and keep five.) The
    mean need not be exact: CKA centres Gram matrices itself, and so forgets what is left of it.

    Args:
        x: (n, p), or its rows in parts (m, p) of one dtype: they are put together for a few features at a time.
    """
    parts = [x] if isinstance(x, Tensor) else list(x)
    for part in parts:
        _check_rows({"x": part}, fewest=1)
    _check_enough(n := sum(map(len, parts)))
    size, dtype = parts[0].shape[1], parts[0].dtype
    small = dtype == torch.float64 or n * n * size <= _EXACT_GRAM
    gram, offset = torch.zeros(n, n, dtype=torch.float64), 0.0
    for start in range(0, size, _COLUMNS):
        columns = torch.cat([part.detach()[:, start : start + _COLUMNS] for part in parts])
        columns = _double(columns) if small else columns.float()
        mean = columns.mean(0)
        columns -= mean  # of the copy that `cat` has made
        gram += _double(columns @ columns.T).cpu()
        offset += float(_double(mean).square().sum())
    if not gram.isfinite().all():
        for part in parts:
            _check_finite({"x": part})
    _check_varies("x", float(gram.diagonal().mean()), offset)
    return gram


def rbf_gram(x: Tensor, bandwidth: float = 1.0) -> Tensor:
    """Gaussian kernel exp(-d^2 / (2 s^2)) of all distances, (n, p) -> (n, n) float64.

    s is `bandwidth` times the median distance (Kornblith et al. use 0.2, 0.4 and 0.8); as in their notebook the
    median is taken over the whole matrix, diagonal included.
    """
    _check_rows({"x": x})
    gram = linear_gram(_double(x))  # distances of near examples are small differences of large numbers
    squared = (gram.diagonal()[:, None] + gram.diagonal() - 2 * gram).clamp(min=0)
    median = float(np.median(squared.numpy()))
    if median <= 0:
        raise ValueError("the median distance is 0, expected distinct examples: are most rows of x equal, dead units?")
    return torch.exp(-squared / (2 * bandwidth**2 * median))


def rbf_cka(x: Tensor, y: Tensor, bandwidth: float = 1.0, debiased: bool = False) -> float:
    """CKA of (n, p) and (n, q) with Gaussian kernels: sensitive to neighbourhoods, not only to the large directions."""
    return float(cka_from_grams(rbf_gram(x, bandwidth), rbf_gram(y, bandwidth), debiased))


def cka_from_grams(grams_x: Tensor, grams_y: Tensor, debiased: bool = False) -> Tensor:
    """CKA of Gram matrices, centred or not: (n, n) twice -> scalar; (Lx, n, n) and (Ly, n, n) -> (Lx, Ly), float64."""
    shapes, n = (grams_x.shape, grams_y.shape), grams_x.shape[-1]
    if any(shape[-2:] != (n, n) for shape in shapes) or not 2 <= grams_x.ndim == grams_y.ndim <= 3:
        got = f"{tuple(shapes[0])} and {tuple(shapes[1])}"
        raise ValueError(f"got Gram matrices {got}, expected twice (n, n) or (layers, n, n) of one n: other pictures?")
    _check_enough(n)
    flat = []
    for grams in (grams_x.double(), grams_y.double()):
        centred = _centred(grams, debiased).flatten(-2)
        norm = centred.norm(dim=-1, keepdim=True)
        if not (norm > 1e-13 * grams.flatten(-2).norm(dim=-1, keepdim=True)).all():
            raise ValueError("a centred Gram matrix vanishes or is NaN, expected unequal distances: one-hot rows?")
        flat.append(centred / norm)
    return flat[0] @ flat[1].mT if flat[0].ndim > 1 else flat[0] @ flat[1]


def _centred(grams: Tensor, debiased: bool) -> Tensor:
    """H K H; or the U-centred matrix, of which the inner product is n (n - 3) HSIC_1."""
    n = grams.shape[-1]
    rows = grams.mean(-1, keepdim=True)
    centred = grams - rows - rows.mT + rows.mean(-2, keepdim=True)
    if not debiased:
        return centred
    off = centred - centred.diagonal(dim1=-2, dim2=-1).diag_embed()
    rows = off.sum(-1, keepdim=True) / (n - 2)
    off = off - rows - rows.mT + rows.sum(-2, keepdim=True) / (n - 1)
    return off - off.diagonal(dim1=-2, dim2=-1).diag_embed()


def half_sample_interval(estimate: Tensor, draws: Tensor, n: int, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Interval (low, high) around `estimate` (any shape), from `draws` of it in random halves of its n pictures.

    Half-sampling is the bootstrap without replacement: values in random halves scatter around the full sample's as
    that does around the truth (Shao & Wu 1989). With replacement it fails: a picture drawn twice is a pair of perfectly
    alike examples and lifts CKA. In simulations with a known CKA such 95 % intervals covered it in 45 to 86 % of the
    cases, these in 90 to 100 %. Taken on Fisher's z = atanh, which stays in [-1, 1], with Student's t.
    """
    reach, centre = half_sample_reach(fisher(draws), n, level), fisher(estimate)
    return (centre - reach).tanh(), (centre + reach).tanh()


def fisher(similarity: Tensor) -> Tensor:
    """Fisher's z = atanh of a correlation, finite even at -1 and 1."""
    return similarity.clamp(-1 + 1e-12, 1 - 1e-12).atanh()


def half_sample_reach(draws: Tensor, n: int, level: float = 0.95) -> Tensor:
    """Half the length of an interval, from draws (n_resamples, ...) of a number in random halves of n pictures."""
    half = n // 2
    return draws.std(dim=0) * math.sqrt(half / (n - half)) * float(stats.t.ppf((1 + level) / 2, n - 1))


def _halves(n: int, n_resamples: int, seed: int) -> Tensor:
    """Which of n pictures each resample holds, (n_resamples, n) bool with n // 2 True in each row."""
    if n < _FEWEST:
        raise ValueError(f"got {n} pictures, expected {_FEWEST} or more: one per update, and keep_per_batch=True?")
    order = torch.rand(n_resamples, n, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return order < n // 2


def bootstrap_grams(
    grams_x: Tensor, grams_y: Tensor, n_resamples: int = 1000, seed: int = 0, debiased: bool = False
) -> tuple[Tensor, Tensor]:
    """95 % interval (low, high) of `cka_from_grams` over examples (pictures); see `half_sample_interval`."""
    n, draws = grams_x.shape[-1], []
    for half in _halves(n, n_resamples, seed):
        rows, columns = half.nonzero(), half.nonzero().T
        draws.append(cka_from_grams(grams_x[..., rows, columns], grams_y[..., rows, columns], debiased))
    return half_sample_interval(cka_from_grams(grams_x, grams_y, debiased), torch.stack(draws), n)


def null_by_shuffling(
    grams_x: Tensor, grams_y: Tensor, n_shuffles: int = 200, seed: int = 0, debiased: bool = False
) -> Tensor:
    """CKA of examples paired at random, (n_shuffles, *shape of `cka_from_grams`): what n and p alone give."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(grams_y.shape[-1], generator=generator) for _ in range(n_shuffles)]
    return torch.stack([cka_from_grams(grams_x, grams_y[..., i[:, None], i], debiased) for i in orders])


def cca(x: Tensor, y: Tensor) -> float:
    """Mean canonical correlation of (n, p) and (n, q) over min(p, q) directions; unchanged by any invertible map."""
    return _mean_correlation(x, y, keep=1.0)


def svcca(x: Tensor, y: Tensor, keep: float = 0.99) -> float:
    """`cca` of the leading principal directions that hold `keep` of the variance (Raghu et al. 2017, 1706.05806)."""
    return _mean_correlation(x, y, keep)


def procrustes(x: Tensor, y: Tensor) -> float:
    """1 - d^2 / 2 with d the orthogonal Procrustes distance of features centred and of norm 1: in [0, 1].

    It equals the nuclear norm of x'y (Ding et al. 2021, arXiv 2108.01661). Unchanged by rotation, shift and scaling.
    """
    _check_rows({"x": x, "y": y})
    a, b = _coordinates(x), _coordinates(y)
    return float(torch.linalg.matrix_norm(a.T @ b, "nuc") / (a.norm() * b.norm()))


def _coordinates(x: Tensor, keep: float = 1.0) -> Tensor:
    """Centred examples along their principal axes, largest first, (n, rank) float64; from n x n where n < p."""
    if x.shape[0] < x.shape[1]:
        values, vectors = torch.linalg.eigh(linear_gram(_double(x)))
        coordinates = vectors * values.clamp(min=0).sqrt()
    else:
        _check_finite({"x": x})
        mean = _double(x.detach()).mean(0)
        centred = (_double(x.detach()) - mean).cpu()
        _check_varies("x", float(centred.square().sum()) / len(x), float(mean.square().sum()))
        values, vectors = torch.linalg.eigh(centred.T @ centred)
        coordinates = centred @ vectors
    values, coordinates = values.flip(0), coordinates.flip(1)
    rank = int((values > values[0] * max(x.shape) * 2.3e-16).sum())  # the rest is rounding
    if keep < 1:
        rank = min(rank, 1 + int((values.cumsum(0) < keep * values.sum()).sum()))
    return coordinates[:, :rank]


def _mean_correlation(x: Tensor, y: Tensor, keep: float) -> float:
    _check_rows({"x": x, "y": y})
    a, b = _coordinates(x, keep), _coordinates(y, keep)
    rank = max(a.shape[1], b.shape[1])
    if rank >= len(a) - 1:
        raise ValueError(f"got {rank} directions from {len(a)} examples, expected < n - 1: pixels or `svcca` meant?")
    correlations = torch.linalg.svdvals(torch.linalg.qr(a).Q.T @ torch.linalg.qr(b).Q)
    return float(correlations.clamp(max=1).mean())


def _double(x: Tensor) -> Tensor:
    return x.to("cpu" if x.device.type == "mps" else x.device, torch.float64)  # MPS has no float64


def _pick(side: str, features: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    missing = [name for name in names if name not in features]
    if missing:
        raise ValueError(f"{side} has layers {list(features)}, expected also {missing}: another capture, or model?")
    return {f"{side}[{name!r}]": features[name] for name in names}


def _check_rows(named: Mapping[str, Tensor], fewest: int = _FEWEST) -> None:
    """All (n, features), floating, one n."""
    for name, rows in named.items():
        if rows.ndim != 2 or not rows.shape[1]:
            raise ValueError(f"{name} has shape {tuple(rows.shape)}, expected (examples, features): maps not reduced?")
        if not rows.is_floating_point():
            raise ValueError(f"{name} has dtype {rows.dtype}, expected a floating one: is it a picture in uint8?")
    counts = {name: len(rows) for name, rows in named.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"numbers of examples differ, {counts}, expected one n: other pictures, crops or strides?")
    _check_enough(min(counts.values()), fewest)


def _check_enough(n: int, fewest: int = _FEWEST) -> None:
    if n < fewest:
        raise ValueError(f"got {n} examples, expected at least {fewest}: were pixels meant, or halves of few pictures?")


def _check_finite(named: Mapping[str, Tensor]) -> None:
    for name, rows in named.items():
        if bad := int((~rows.isfinite()).sum()):
            raise ValueError(f"{name} holds {bad} NaN or infinite values, expected none: diverged, or half precision?")


def _check_varies(name: str, variance: float, offset: float) -> None:
    """Refuse features that differ by no more than float32 rounding of their mean, whose squared length is `offset`."""
    if not variance > (4 * torch.finfo(torch.float32).eps) ** 2 * offset:
        raise ValueError(f"{name!r} does not vary (variance {variance:.1e}), expected more: dead layer, one picture?")
