"""Bench models room: what models do, by the lab and in the plain form.

Gives functions size -> `Work` for `bench_cases`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from srlab import cka, compare, efficiency, igconv, models, textbook
from srlab.bench_work import Floor, Work, chance


def layer_matrix(pictures: int) -> Work:
    """Every block of an EDSR-baseline with every block of another, as `compare.layer_matrix`, without intervals."""
    pair = [models.build("edsr-baseline", "spconv", (scale,)).eval() for scale in (2, 3)]
    lr = [torch.rand(1, 3, 48, 48, generator=chance(i)) for i in range(pictures)]
    readers = [compare.Reader(model) for model in pair]

    def ours() -> Tensor:
        found = cka.CKAMatrix(*(reader.names for reader in readers))
        for picture in lr:
            maps = [{name: m[0].flatten(1).T for name, m in reader(picture).items()} for reader in readers]
            found.update(*maps)
        return found.compute(debiased=True)

    def forwards() -> None:
        with torch.no_grad():
            for picture in lr:
                for model in pair:
                    model.encode(picture)

    layers, rows = len(readers[0].names), pictures * 48 * 48
    with torch.device("meta"):
        flops = efficiency.count_flops(
            lambda: models.build("edsr-baseline", "spconv", (2,)).encode(torch.empty(pictures, 3, 48, 48))
        )
    products = 2.0 * rows * 64**2 * (layers**2 + 2 * layers)
    return Work(ours, forwards, Floor("two forward passes, all products", flops=2 * flops + products))


# models


def hyper_network(scale: int) -> Work:
    """Kernel of IGConv at a scale and its gradient, for 64 channels."""
    torch.manual_seed(0)
    hyper = igconv.ImplicitKernel(64, 3).train()
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


def upsampling(ours: Callable[[], torch.nn.Module], other: Callable[[], torch.nn.Module]) -> Callable[[int], Work]:
    """Two upsamplers of 64 features to x2, at 16 : 9."""

    def make(pixels: int) -> Work:
        height = max(1, round(math.sqrt(pixels * 9 / 16)))
        feats = torch.randn(1, 64, height, max(1, round(pixels / height)), generator=chance(0))
        lr = torch.rand(1, 3, *feats.shape[-2:], generator=chance(1))
        modules = [make_module().eval() for make_module in (ours, other)]
        flops = efficiency.count_flops(lambda: modules[0].to("meta")(feats.to("meta"), 2, lr.to("meta")))
        modules[0] = ours().eval()
        calls = [_without_gradients(module, feats, lr) for module in modules]
        read = 4.0 * (feats.numel() + 4 * lr.numel())
        return Work(*calls, Floor("its convolutions; features read, picture written", bytes=read, flops=flops))

    return make


def _without_gradients(module: torch.nn.Module, feats: Tensor, lr: Tensor) -> Callable[[], Tensor]:
    @torch.no_grad()
    def call() -> Tensor:
        return module(feats, 2, lr)

    return call
