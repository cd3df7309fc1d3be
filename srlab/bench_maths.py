"""Bench maths room: pictures, similarity, kernels and spectra, each computed by the lab and by another way.

Gives functions size -> `Work` for `bench_cases`. The other way is a package where one is well known, else `textbook`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from srlab import alignment, cka, kernels, resize, spectra, textbook
from srlab.bench_work import Floor, Work, chance

# pictures


def _picture(pixels: int, seed: int = 0) -> Tensor:
    """Noise, uint8 (3, h, w) of 3 : 2, sides multiples of 12."""
    height = max(12, 12 * round(math.sqrt(pixels / 1.5) / 12))
    width = max(12, 12 * round(pixels / height / 12))
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=chance(seed))


def shrinking(scale: int) -> Callable[[int], Work]:
    """8-bit pictures made smaller by `scale`: `resize.imresize` and Pillow, which rounds otherwise."""

    def make(pixels: int) -> Work:
        from PIL import Image

        x = _picture(pixels)
        picture = Image.fromarray(x.permute(1, 2, 0).contiguous().numpy())
        size = (x.shape[2] // scale, x.shape[1] // scale)

        def ours() -> Tensor:
            return resize.imresize(x, Fraction(1, scale))

        def pillow() -> Image.Image:
            return picture.resize(size, Image.Resampling.BICUBIC)

        def apart() -> float:
            return float(np.abs(ours().permute(1, 2, 0).numpy().astype(float) - np.asarray(pillow())).mean())

        floor = Floor("picture read, result written", bytes=x.numel() * (1 + 1 / scale**2))
        return Work(ours, pillow, floor, apart)

    return make


def scoring(score: Callable[[Tensor, Tensor, int], float], name: str) -> Callable[[int], Work]:
    """PSNR ("psnr") or SSIM ("ssim") of the luma of two 8-bit pictures: `metrics` and scikit-image."""

    def make(pixels: int) -> Work:
        from skimage import metrics as skimage_metrics

        hr = _picture(pixels)
        noise = torch.randint(-9, 10, hr.shape, generator=chance(1))
        sr = (hr + noise).clamp(0, 255).to(torch.uint8)
        arrays = [each[:, 2:-2, 2:-2].permute(1, 2, 0).contiguous().numpy() for each in (hr, sr)]
        gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}

        def ours() -> float:
            return score(sr, hr, 2)

        def skimage() -> float:
            y = [textbook.luma(each) for each in arrays]
            if name == "psnr":
                return skimage_metrics.peak_signal_noise_ratio(*y, data_range=255)
            return skimage_metrics.structural_similarity(*y, data_range=255, **gaussian)

        return Work(ours, skimage, Floor("both pictures read", bytes=2 * hr.numel()), lambda: abs(ours() - skimage()))

    return make


def spectrum(pixels: int) -> Work:
    """Radial power spectrum of an RGB picture."""
    x = _picture(pixels).float() / 255
    points = x.shape[1] * x.shape[2]

    def ours() -> Tensor:
        return spectra.radial_power_spectrum(x)[1]

    def apart() -> float:
        return float(np.abs(ours().numpy() / textbook.ring_means(x) - 1).max())

    floor = Floor("real FFT, 2.5 N log2 N", bytes=8.0 * x.numel(), flops=3 * 2.5 * points * math.log2(points))
    return Work(ours, lambda: textbook.ring_means(x), floor, apart)


# similarity and kernels


def _features(n: int, width: int = 64) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, width, generator=chance(0)).add_(1)
    return x, torch.randn(n, width, generator=chance(1)).add_(x)


def similarity(debiased: bool, other: Callable[[Tensor, Tensor], float]) -> Callable[[int], Work]:
    """CKA of two sets of 64 features, `cka.linear_cka` and a textbook form."""

    def make(n: int) -> Work:
        x, y = _features(n)
        width = x.shape[1]
        read, products = 4.0 * (x.numel() + y.numel()), 2.0 * n * 3 * width**2
        return Work(
            lambda: cka.linear_cka(x, y, debiased),
            lambda: other(x, y),
            Floor("features read once, three products of width x width", bytes=read, flops=products),
            lambda: abs(cka.linear_cka(x, y, debiased) - other(x, y)),
        )

    return make


def aligning(pictures: int) -> Work:
    """A kernel carried into another encoder's 64 channels, the map fitted on features of 48 x 48 pixels."""
    width, side = 64, 48
    mix = torch.randn(width, width, generator=chance(2)) / 8
    feats_from = [torch.randn(width, side, side, generator=chance(i)) for i in range(pictures)]
    feats_to = [
        torch.einsum("ba,ahw->bhw", mix, feats) + torch.randn(feats.shape, generator=chance(99 + i))
        for i, feats in enumerate(feats_from)
    ]
    weight = torch.randn(27, width, 3, 3, generator=chance(3))

    def ours() -> kernels.Alignment:
        return kernels.align(weight, feats_from, feats_to)

    def sklearn() -> Tensor:
        matrix, _ = textbook.ridge(feats_from, feats_to, alignment.ALPHAS, alignment.FOLDS)
        return kernels.carry(weight, torch.from_numpy(matrix))

    rows = pictures * side**2
    floor = Floor("features read once, two products", bytes=8.0 * rows * width, flops=2.0 * rows * 2 * width**2)
    return Work(ours, sklearn, floor, lambda: float((ours().weight - sklearn()).abs().max()))


def correlating(channels: int) -> Work:
    """Correlation of a x4 and a x2 kernel."""
    phases = [
        kernels.phase_images(torch.randn(3 * scale**2, channels, 3, 3, generator=chance(scale)), scale)
        for scale in (4, 2)
    ]
    read = 4.0 * sum(each.numel() for each in phases)

    def apart() -> float:
        return abs(kernels.correlate(*phases).whole - textbook.correlation(*phases))

    return Work(
        lambda: kernels.correlate(*phases),
        lambda: textbook.correlation(*phases),
        Floor("both kernels read", bytes=read),
        apart,
    )
