"""Bench models room: what models do, by the lab and in the plain form.

Gives functions size -> `Work` for `bench_cases`.
"""

from __future__ import annotations

import copy
import io
import math
import random
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from srlab import (
    compare,
    datasets,
    efficiency,
    evaluate,
    hypernetwork,
    images,
    losses,
    models,
    textbook,
    weights,
)
from srlab.bench_work import Companion, Floor, Work, chance

PATCH, BATCH, FFT_WEIGHT = 48, 4, 0.05  # of the released recipes


def layer_matrix(reduction: Callable[[Tensor], Tensor]) -> Callable[[int], Work]:
    """Every block of an EDSR-baseline with every block of another, 48 x 48 pixels, without intervals."""

    def make(pictures: int) -> Work:
        pair = [models.build("edsr-baseline", "spconv", (scale,)).eval() for scale in (2, 3)]
        lr = [torch.rand(1, 3, PATCH, PATCH, generator=chance(i)) for i in range(pictures)]

        def ours() -> compare.Comparison:
            return compare.layer_matrix(*pair, lr, reduction=reduction, n_resamples=0)

        def forwards() -> None:
            with torch.no_grad():
                for picture in lr:
                    for model in pair:
                        model.encode(picture)

        with torch.device("meta"):
            encoder, whole = models.build("edsr-baseline", "spconv", (2,)), torch.empty(pictures, 3, PATCH, PATCH)
        flops = efficiency.count_flops(lambda: encoder.encode(whole))
        return Work(ours, forwards, Floor("the two forward passes", flops=2 * flops))

    return make


# models


def hyper_network(scale: int) -> Work:
    """Kernel of IGConv at a scale and its gradient, for 64 channels."""
    torch.manual_seed(0)
    hyper = hypernetwork.ImplicitKernel(64, 3).train()
    elements, width, hidden = len(hyper.frequency), hyper.frequency.shape[1], len(hyper.layers) - 1

    def trained(kernel: Callable[[], Tensor]) -> Callable[[], None]:
        def step() -> None:
            kernel().square().sum().backward()
            hyper.zero_grad()

        return step

    flops = 3 * 2.0 * elements * scale**2 * (hidden * width**2 + 3 * width)
    return Work(
        trained(lambda: hyper(scale)),
        trained(lambda: textbook.kernel(hyper, scale)),
        Floor("matrix products, forward and backward", flops=flops),
        lambda: (hyper(scale) - textbook.kernel(hyper, scale)).abs().max().item(),
    )


def upsampling(ours: Callable[[], nn.Module], other: Callable[[], nn.Module]) -> Callable[[int], Work]:
    """Two upsamplers of 64 features to x2, at 16 : 9."""

    def make(pixels: int) -> Work:
        height = max(1, round(math.sqrt(pixels * 9 / 16)))
        feats = torch.randn(1, 64, height, max(1, round(pixels / height)), generator=chance(0))
        lr = torch.rand(1, 3, *feats.shape[-2:], generator=chance(1))
        modules: list[nn.Module] = [make_module().eval() for make_module in (ours, other)]
        flops = efficiency.count_flops(lambda: modules[0].to("meta")(feats.to("meta"), 2, lr.to("meta")))
        modules[0] = ours().eval()
        calls = [_without_gradients(module, feats, lr) for module in modules]
        read = 4.0 * (feats.numel() + 4 * lr.numel())
        return Work(*calls, Floor("its convolutions; features read, picture written", bytes=read, flops=flops))

    return make


def _without_gradients(module: nn.Module, feats: Tensor, lr: Tensor) -> Callable[[], Tensor]:
    @torch.no_grad()
    def call() -> Tensor:
        return module(feats, 2, lr)

    return call


# training


RELEASED_ENCODERS = {"edsr-baseline": textbook.edsr, "smfanet": textbook.smfanet}


def training_step(encoder: str) -> Callable[[int], Work]:
    """A step of IGConv+ at a scale, batch of 4 crops, as `train.fit` takes it and as the released code does.

    The released form has the encoder, upsampler, losses, optimiser and average as the authors' code writes them. It
    runs in this process, so it profits from the lab's setting of the allocator.
    """
    encode = RELEASED_ENCODERS[encoder]

    def make(scale: int) -> Work:
        torch.manual_seed(0)
        ours, plain = (models.build(encoder, "igconv+").train() for _ in range(2))
        plain.load_state_dict(ours.state_dict())
        lr = torch.rand(BATCH, 3, PATCH, PATCH, generator=chance(0))
        hr = torch.rand(BATCH, 3, PATCH * scale, PATCH * scale, generator=chance(1))
        with torch.no_grad():
            apart = (ours(lr, scale) - _released(plain, encode, lr, scale)).abs().max().item()
        with torch.device("meta"):
            shadow = models.build(encoder, "igconv+").train()
            pictures = torch.empty(BATCH, 3, PATCH, PATCH)
        flops = efficiency.count_flops(lambda: shadow(pictures, scale).sum().backward())
        floor = Floor("convolutions and matrix products, forward and backward", flops=flops)
        step = our_step(ours)
        return Work(lambda: step([(scale, lr, hr)]), released_step(plain, encode, scale, lr, hr), floor, lambda: apart)

    return make


def _released(model: models.SRModel, encode: Callable[..., Tensor], lr: Tensor, scale: int) -> Tensor:
    return textbook.igconv_plus(model.upsampler, encode(model.encoder, lr - model.mean), scale, lr) + model.mean


def our_step(model: models.SRModel) -> Callable[[list[tuple[int, Tensor, Tensor]]], None]:
    """A step over batches (scale, lr, hr), with what `train` does in one: both losses, fused Adam, moving average."""
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-6, fused=True)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))

    def step(batches: list[tuple[int, Tensor, Tensor]]) -> None:
        for scale, lr, hr in batches:
            lr = lr.contiguous(memory_format=torch.channels_last)
            loss, _ = losses.total_loss(model(lr, scale), hr, FFT_WEIGHT)
            (loss / len(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)

    return step


def released_step(
    model: models.SRModel, encode: Callable[..., Tensor], scale: int, lr: Tensor, hr: Tensor
) -> Callable[[], None]:
    """The same step by textbook forms: plain memory order, eight convolutions, two transforms, a loop for the mean.

    Args:
        model: with IGConv+, its weights change with each step.
        encode: textbook form of its encoder.
        scale: upsampling factor.
        lr, hr: (B, 3, h, w) and (B, 3, h * scale, w * scale) in [0, 1].
    """
    optimizer = torch.optim.Adam(model.parameters(), 1e-6)
    average = copy.deepcopy(model)

    def step() -> None:
        optimizer.zero_grad()
        sr = _released(model, encode, lr, scale)
        (F.l1_loss(sr, hr) + textbook.frequency_loss(sr, hr, FFT_WEIGHT)).backward()
        optimizer.step()
        for kept, now in zip(average.parameters(), model.parameters(), strict=True):
            kept.data.mul_(0.999).add_(now.data, alpha=0.001)

    return step


STEPS = ({2: 2, 3: 1, 4: 1}, {2: 1, 3: 2, 4: 1}, {2: 2, 3: 2}, {2: 2, 4: 2}, {3: 2, 4: 2})
"""How many of four micro-batches drew each scale, in five steps: 2.4 scales a step, as equal chances give (65 / 27)."""


def one_for_all(encoder: str, upsampler: str) -> Callable[[int], Work]:
    """Five optimiser steps of four micro-batches: one upsampler for all scales, and heads of their own.

    Micro-batches of one scale are computed together, so that the kernel of a scale is computed once in a step. Both
    sides minimise the same loss. The floor has the convolutions of the formula, of which IGConv+ computes a third.
    """

    def make(crops: int) -> Work:
        batches = {
            (scale, n): (scale, torch.rand(n, 3, PATCH, PATCH), torch.rand(n, 3, PATCH * scale, PATCH * scale))
            for scale in (2, 3, 4)
            for n in (crops, 2 * crops)
        }
        drawn = [[batches[scale, n * crops] for scale, n in step.items()] for step in STEPS]
        with torch.device("meta"):
            shadow = models.build(encoder, upsampler).train()
            calls = [(torch.empty(n * crops, 3, PATCH, PATCH), scale) for step in STEPS for scale, n in step.items()]
        flops = efficiency.count_flops(lambda: [shadow(*call).sum().backward() for call in calls])
        floor = Floor("convolutions and matrix products, forward and backward", flops=flops)
        steps = [our_step(models.build(encoder, each).train()) for each in (upsampler, "spconv")]
        ours, heads = ((lambda step=step: [step(each) for each in drawn]) for step in steps)
        return Work(ours, heads, floor)

    return make


def crops(scale: int) -> Callable[[int], Work]:
    """A training batch: cut from pictures that are kept, and as the released loader makes it, from JPEGs by Pillow."""

    def make(size: int) -> Work:
        from PIL import Image

        photos = datasets.load("demo")
        store = datasets.CropStore(photos.subset(photos.names[:2]), (scale,), patch=PATCH)
        generator, files = chance(0), []
        for i in range(2):
            files.append(io.BytesIO())
            picture = photos.image(i)[:, :321, :481].permute(1, 2, 0).contiguous().numpy()  # the size of BSDS
            Image.fromarray(picture).save(files[-1], "JPEG", quality=90)

        def ours() -> tuple[Tensor, ...]:
            return tuple(images.to_float(each) for each in store.batch(scale, size, PATCH, generator))

        def released() -> list[Tensor]:
            pairs = [textbook.training_pair(random.choice(files), PATCH, scale) for _ in range(size)]
            return [torch.stack(each) for each in zip(*pairs, strict=True)]

        written = 4.0 * size * 3 * PATCH**2 * (1 + scale**2)
        return Work(ours, released, Floor("both batches written", bytes=written))

    return make


# whole pictures


def whole_picture(encoder: str) -> Callable[[int], Work]:
    """A picture at 16 : 9 to x2 by `evaluate.upscale`, and by the model in a process as PyTorch and glibc come."""

    def make(pixels: int) -> Work:
        model, lr = _model_and_picture(encoder, pixels)
        plain = as_it_comes(encoder, pixels)

        def ours() -> Tensor:
            return evaluate.upscale(model, lr, 2, tile=0)

        def apart() -> float:
            return (ours() - plain()).abs().max().item()

        there = f"bench_work.serve(bench_models.as_it_comes({encoder!r}, {pixels}), {torch.get_num_threads()})"
        other = Companion(f"from srlab import bench_models, bench_work; {there}")
        flops = efficiency.model_flops(model.instantiate(2), 2, tuple(lr.shape[-2:]))
        return Work(ours, other, Floor("convolutions, kernels stored", flops=flops), apart)

    return make


def as_it_comes(encoder: str, pixels: int) -> Callable[[], Tensor]:
    """The model called as any module of PyTorch, in plain memory order."""
    model, lr = _model_and_picture(encoder, pixels)

    @torch.no_grad()
    def call() -> Tensor:
        return model(lr, 2)

    return call


def _model_and_picture(encoder: str, pixels: int) -> tuple[models.SRModel, Tensor]:
    """The same numbers in every process."""
    torch.manual_seed(0)
    height = max(12, round(math.sqrt(pixels * 9 / 16)))
    lr = torch.rand(1, 3, height, max(12, round(pixels / height)), generator=chance(0))
    return models.build(encoder, "igconv").eval(), lr


def tiled(pixels: int) -> Work:
    """An 8-bit picture at 4 : 3 to x2 by the bundled model, in tiles and as a whole."""
    model = weights.load("edsr-tiny-igconv")
    height = max(8, round(math.sqrt(pixels * 3 / 4)))
    lr = torch.randint(0, 256, (3, height, round(pixels / height)), dtype=torch.uint8, generator=chance(0))

    def ours() -> Tensor:
        return evaluate.upscale(model, lr, 2, tile=evaluate.TILE)

    def whole() -> Tensor:
        return evaluate.upscale(model, lr, 2, tile=0)

    def apart() -> float:
        return float(np.abs(ours().numpy().astype(int) - whole().numpy()).max())

    flops = efficiency.model_flops(model.instantiate(2), 2, tuple(lr.shape[-2:]))
    return Work(ours, whole, Floor("convolutions, no overlap of tiles", flops=flops), apart)
