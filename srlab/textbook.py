"""Textbook room: the plain form of what other rooms compute in a faster one. Tensors or arrays in, the same out.

Written as the definition reads, for no purpose but comparison: `srlab bench` times the lab against these forms, after
both have given the same answer. Nothing else in the lab uses them.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BT601 = (65.481, 128.553, 24.966)  # luma of red, green, blue in [0, 1], on the scale 16 to 235


def luma(picture: np.ndarray) -> np.ndarray:
    """Luma (H, W) in float64, 16 to 235, of an 8-bit picture (H, W, 3): ITU-R BT.601."""
    return picture @ (np.array(BT601) / 255) + 16


def cka_of_copies(x: Tensor, y: Tensor) -> float:
    """Biased linear CKA of (n, p) and (n, q) by centred float64 copies (Kornblith et al. 2019, arXiv 1905.00414)."""
    x, y = (each.double() - each.double().mean(0) for each in (x, y))
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def debiased_cka_of_grams(x: Tensor, y: Tensor) -> float:
    """Debiased linear CKA of (n, p) and (n, q) by two Gram matrices (n, n) and HSIC_1 (Song et al. 2012, JMLR 13)."""
    k, l = (each.double() @ each.double().T for each in (x, y))  # noqa: E741  (named as in the paper)
    for gram in (k, l):
        gram.fill_diagonal_(0)
    return _hsic_1(k, l) / math.sqrt(_hsic_1(k, k) * _hsic_1(l, l))


def _hsic_1(k: Tensor, l: Tensor) -> float:  # noqa: E741
    n = len(k)
    rows = float(k.sum(1) @ l.sum(1))
    total = float(k.sum() * l.sum()) / ((n - 1) * (n - 2))
    return (float((k * l).sum()) + total - 2 * rows / (n - 2)) / (n * (n - 3))


def correlation(phases_a: Tensor, phases_b: Tensor) -> float:
    """Pearson correlation of two kernels, phase images (rgb, C, k, k, r, r) and (rgb, C, k, k, s, s) with r >= s.

    Tiny image by tiny image the finer one is read at the coarser one's sub-pixel centres, along rows, then columns.
    """
    r, s = phases_a.shape[-1], phases_b.shape[-1]
    centres_r, centres_s = (((2 * np.arange(n) + 1) / n - 1) for n in (r, s))
    first, second = [], []
    for place in itertools.product(*(range(n) for n in phases_a.shape[:4])):
        fine, coarse = phases_a[place].double().numpy(), phases_b[place].double().numpy()
        rows = [np.interp(centres_s, centres_r, line) for line in fine]
        read = [np.interp(centres_s, centres_r, line) for line in np.stack(rows).T]
        first.append(np.stack(read).T.ravel())
        second.append(coarse.ravel())
    return float(np.corrcoef(np.concatenate(first), np.concatenate(second))[0, 1])


def kernel(hyper: nn.Module, scale: int) -> Tensor:
    """Kernel of a `hypernetwork.ImplicitKernel`, not averaged, (maps * scale**2, C, k, k), as the official code has it.

    Coordinates are repeated for each of the N kernel elements; the features (N, D, scale, scale) go through a chain of
    1x1 convolutions, grouped ones where the network has groups.
    """
    centres = (2 * torch.arange(scale).to(hyper.frequency) + 1) / scale - 1
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="ij"))  # (y, x), row, column
    y, x = grid.repeat(len(hyper.frequency), 1, 1, 1).split(1, dim=1)  # (N, 1, row, column) each
    along_x, along_y = hyper.frequency[:, :, None, None].chunk(2, dim=1)
    phase = hyper.phase(centres.new_full((1, 1, 1, 1), 2 / min(scale, hyper.max_scale)))
    theta = math.pi * (along_x * x + along_y * y + phase)  # (N, D / 2, row, column)
    parts = [theta[:, group :: hyper.groups] for group in range(hyper.groups)]
    values = torch.cat([wave for part in parts for wave in (part.cos(), part.sin())], dim=1)
    values = hyper.amplitude[:, :, None, None] * values
    for i, layer in enumerate(hyper.layers):
        values = layer(F.relu(values) if i else values)
    k = hyper.kernel_size
    values = values.view(hyper.channels, k, k, hyper.maps, scale, scale).permute(3, 4, 5, 0, 1, 2)
    return values.reshape(hyper.maps * scale**2, hyper.channels, k, k)


def eight_ways(kernel: Tensor) -> list[Tensor]:
    """A kernel (..., k, k) with its taps flipped and rotated in all eight ways."""
    turned = [torch.rot90(kernel, quarters, (-2, -1)) for quarters in range(4)]
    return turned + [each.flip(-1) for each in turned]


def edsr(encoder: nn.Module, lr: Tensor) -> Tensor:
    """Features of an EDSR encoder (BasicSR's code), weights as they are in memory."""
    shallow = feats = encoder.conv_first(lr)
    for block in encoder.body:
        feats = feats + block.conv2(F.relu_(block.conv1(feats))) * block.res_scale
    return encoder.conv_after_body(feats) + shallow


def smfanet(encoder: nn.Module, lr: Tensor) -> Tensor:
    """Features of an SMFANet encoder (its authors' code)."""
    shallow = feats = encoder.shallow(lr)
    for block in encoder.blocks:
        feats = smfanet_block(block, feats)
    return feats + shallow


def smfanet_block(block: nn.Module, feats: Tensor) -> Tensor:
    """A block of SMFANet as its authors' code writes it: slices of activations, `var`, `normalize`, plain layers."""

    def conv(x: Tensor, layer: nn.Conv2d, padding: int = 0, groups: int = 1) -> Tensor:
        return F.conv2d(x, layer.weight, layer.bias, padding=padding, groups=groups)

    one, two = block.modulation, block.feed_forward
    channels, h, w = feats.shape[-3:]
    fine, broad = conv(F.normalize(feats), one.split).chunk(2, dim=1)
    pooled = conv(F.adaptive_max_pool2d(broad, (h // 8, w // 8)), one.coarse, padding=1, groups=channels)
    seen = pooled * one.coarse_weight + torch.var(broad, dim=(-2, -1), keepdim=True) * one.variance_weight
    gated = broad * F.interpolate(F.gelu(conv(seen, one.gate)), size=(h, w), mode="nearest")
    detail = conv(conv(fine, one.detail[0], padding=1, groups=channels), one.detail[1])
    feats = conv(gated + conv(F.gelu(detail), one.detail[3]), one.merge) + feats
    hidden = F.gelu(conv(F.normalize(feats), two.widen))
    mixed, kept = hidden.split([two.part, hidden.shape[1] - two.part], dim=1)
    return conv(torch.cat([F.gelu(conv(mixed, two.partial, padding=1)), kept], dim=1), two.narrow) + feats


def igconv_plus(module: nn.Module, feats: Tensor, scale: int, lr: Tensor) -> Tensor:
    """An `igconv.IGConvPlus` as released: eight convolutions averaged, maps shuffled to HR pixels before sampling.

    Args:
        module: the live module, `fgrep` on.
        feats: (B, C, h, w).
        scale: upsampling factor.
        lr: (B, 3, h, w).

    Returns:
        (B, 3, h * scale, w * scale).
    """
    eight = [F.conv2d(feats, each, padding=1) for each in eight_ways(kernel(module.main.hyper, scale))]
    picture = F.pixel_shuffle(torch.stack(eight).mean(0), scale)
    averaged = torch.stack(eight_ways(kernel(module.skip.hyper, scale))).mean(0)
    maps = F.pixel_shuffle(F.conv2d(feats, averaged, padding=1), scale)  # (B, 12, H, W)
    shift, scope = maps.chunk(2, dim=1)
    batch, _, h, w = lr.shape
    shift = (0.5 * shift * scope.sigmoid()).view(batch, 2, 3, h * scale, w * scale)  # x, y in LR pixels
    columns, lines = (((torch.arange(n * scale).to(lr) + 0.5) / scale - 0.5) for n in (w, h))
    x = 2 * (columns + shift[:, 0] + 0.5) / w - 1
    y = 2 * (lines[:, None] + shift[:, 1] + 0.5) / h - 1
    grid = torch.stack([x, y], dim=-1).flatten(0, 1)  # (B * 3, H, W, 2)
    sampled = F.grid_sample(lr.reshape(batch * 3, 1, h, w), grid, padding_mode="border", align_corners=False)
    return picture + sampled.view_as(picture)


def frequency_loss(sr: Tensor, hr: Tensor, weight: float) -> Tensor:
    """Mean absolute difference of the spectra of two (..., H, W), both transformed, their two parts stacked."""
    stacked = [torch.stack([f.real, f.imag], dim=-1) for f in (torch.fft.rfft2(sr), torch.fft.rfft2(hr))]
    return weight * F.l1_loss(*stacked)


def ring_means(picture: Tensor) -> np.ndarray:
    """Power density (C, rings) of a picture (C, H, W) by the whole complex plane and a mask per ring (Hann window)."""
    from scipy import ndimage

    x = picture.double().numpy()
    height, width = x.shape[-2:]
    taper = np.outer(*(np.hanning(n + 1)[:-1] for n in (height, width)))
    mean = (x * taper).sum((-2, -1), keepdims=True) / taper.sum()
    power = np.abs(np.fft.fft2((x - mean) * taper)) ** 2 / np.square(taper).sum()
    power[..., 0, 0] = mean[..., 0, 0] ** 2 * height * width
    rings = min(height, width) // 2
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    index = np.round(f.astype(np.float32) * 2 * rings).astype(int)
    return np.stack([ndimage.mean(plane, index, np.arange(rings + 1)) for plane in power])


def ridge(
    feats_from: Sequence[Tensor], feats_to: Sequence[Tensor], alphas: Sequence[float], folds: int
) -> tuple[np.ndarray, float]:
    """Map (B, A) between the pixels of two encoders' features and its penalty, chosen by leaving pictures out.

    Every fold and every penalty is one fit of scikit-learn's `Ridge` to all pixels, as its guide shows it.

    Args:
        feats_from, feats_to: per picture (A, h, w) and (B, h, w).
        alphas: penalties, in units of the mean variance of `feats_from`.
        folds: picture i is left out in fold i % folds.
    """
    from sklearn.linear_model import Ridge

    def rows(feats: Sequence[Tensor], chosen: list[int]) -> np.ndarray:
        return np.concatenate([feats[i].double().flatten(1).T.numpy() for i in chosen])

    def fitted(alpha: float, chosen: list[int]) -> Ridge:
        x, y = rows(feats_from, chosen), rows(feats_to, chosen)
        return Ridge(alpha=alpha * x.var(0).mean() * len(x)).fit(x, y)

    everyone = list(range(len(feats_from)))
    errors = {}
    for alpha in alphas:
        errors[alpha] = 0.0
        for fold in range(folds):
            out = [i for i in everyone if i % folds == fold]
            model = fitted(alpha, [i for i in everyone if i % folds != fold])
            errors[alpha] += np.square(rows(feats_to, out) - model.predict(rows(feats_from, out))).sum()
    best = min(errors, key=errors.get)
    return fitted(best, everyone).coef_, best


def training_pair(file: BinaryIO, patch: int, scale: int) -> tuple[Tensor, Tensor]:
    """One crop as the released loader makes it: decode, cut, flip, turn, shrink the crop by Pillow's bicubic.

    Returns:
        lr (3, patch, patch), hr (3, patch * scale, patch * scale), float32 in [0, 1].
    """
    from PIL import Image

    side = patch * scale
    picture = np.asarray(Image.open(file)).astype(np.float32) / 255
    top, left = (random.randint(0, n - side) for n in picture.shape[:2])
    crop = picture[top : top + side, left : left + side]
    crop = crop[:, ::-1] if random.random() < 0.5 else crop
    crop = crop[::-1] if random.random() < 0.5 else crop
    crop = crop.transpose(1, 0, 2) if random.random() < 0.5 else crop
    hr = torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))
    whole = Image.fromarray(hr.mul(255).byte().permute(1, 2, 0).contiguous().numpy())
    small = np.array(whole.resize((patch, patch), Image.Resampling.BICUBIC))
    return torch.from_numpy(small).permute(2, 0, 1).float().div(255), hr
