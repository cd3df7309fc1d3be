"""HSIC out of sums, for all draws of pictures at once. A maths room: tensors in, numbers out; `cka` stands on it.

Of a layer with p features every example is a row of p + 2 numbers: its features, their sum of squares, a one. What
comes in are products of such rows of two layers, (p + 2, q + 2), one for each picture.

How sums replace a Gram matrix: about the mean, its rows sum to 0, and then, with k_i and l_i the squared lengths of
example i in x and in y,  n (n - 3) HSIC_1 = |x'y|^2 - n / (n - 2) sum k_i l_i + sum k_i sum l_i / ((n - 1) (n - 2)).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_RESAMPLED = 2**23  # numbers held at once while resampling


def cells(sums: Sequence[Tensor]) -> Tensor:
    """Sums of pairs of layers, (pictures, p + 2, q + 2) each -> (pairs, pictures, ...), with features of zero added."""
    tall, wide = (max(part.shape[axis] for part in sums) for axis in (1, 2))
    return torch.stack([F.pad(part, (wide - part.shape[2], 0, tall - part.shape[1], 0)) for part in sums])


def _move(sums: Tensor, mean: Tensor) -> None:
    """Measure the rows' features from their mean, in place: (..., p + 2, any), (..., p)."""
    features, squares, ones = sums.split([mean.shape[-1], 1, 1], dim=-2)
    squares -= 2 * mean[..., None, :] @ features - mean.square().sum(-1)[..., None, None] * ones
    features.addcmul_(mean[..., None], ones, value=-1)


def of_sums(sums: Tensor, weights: Tensor) -> Tensor:
    """HSIC but for a factor, biased and debiased, of pairs of layers in draws of pictures.

    A draw's own mean is never taken off its features: what that would change is a polynomial in the weights, whose
    coefficients are small, and the large sums are gone through once, however many draws there are.

    Args:
        sums: products of stacked rows, (pairs, pictures, p + 2, q + 2); they are changed.
        weights: how often each draw takes each picture, (draws, pictures).

    Returns:
        (2, draws, pairs).
    """
    total = sums.sum(dim=1, keepdim=True)  # about the mean of all pictures no digits cancel
    _move(sums, total[..., :-2, -1] / total[..., -1, -1:])
    _move(sums.mT, total[..., -1, :-2] / total[..., -1, -1:])
    products, xs, ys = sums[..., :-2, :-2].contiguous(), sums[..., :-2, -1], sums[..., -1, :-2]
    n = weights @ sums[0, :, -1, -1]  # (draws)
    x, y = weights @ xs / n[:, None], weights @ ys / n[:, None]  # mean in each draw, (pairs, draws, p or q)
    xx, yy = x.square().sum(-1), y.square().sum(-1)
    flat = products.flatten(2)
    square = ((weights @ (flat @ flat.mT)) * weights).sum(-1)
    # x' (sum of products) y, where y is a sum over pictures too, or, when these are many, over features
    factors, basis = (weights[None], ys) if ys.shape[1] < ys.shape[2] else (weights @ ys, torch.eye(ys.shape[2]).to(ys))
    onto = (products @ basis.mT.unsqueeze(-3)).mT.flatten(1, 2)  # (pairs, pictures * factors, p)
    parts = []
    for i in torch.arange(len(weights)).split(max(1, _RESAMPLED // (len(factors) * onto.shape[1]))):
        both = weights[i, :, None] * factors[:, i, None]  # (1 or pairs, draws, pictures, factors)
        parts.append((both.flatten(2) @ onto * x[:, i]).sum(-1))
    xy = torch.cat(parts, dim=1) / n
    biased = square - 2 * n * xy + n.square() * xx * yy
    k, l = weights @ sums[..., -2, :], weights @ sums[..., -2]  # noqa: E741
    sum_kl = k[..., -2] - 2 * (k[..., :-2] * y).sum(-1) - 2 * (l[..., :-2] * x).sum(-1) + 4 * xy
    sum_kl += k[..., -1] * yy + l[..., -1] * xx - 3 * n * xx * yy
    sum_k, sum_l = k[..., -1] - n * xx, l[..., -1] - n * yy
    debiased = biased - n / (n - 2) * sum_kl + sum_k * sum_l / ((n - 1) * (n - 2))
    return torch.stack([biased, debiased]).mT
