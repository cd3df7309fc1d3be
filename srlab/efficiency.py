"""Efficiency room: what a model costs. Models and scales in; parameters, FLOPs, seconds and bytes out, as tables.

Parameters and FLOPs are counted on PyTorch's meta device: exact, the same on every machine, and no arithmetic is done.
Seconds and bytes are measured where the model lives. Absolute times drift by a quarter on a shared machine, so whatever
is compared runs in turns within one process, and ratios are taken within a turn (`compare`).

FLOPs are those of convolutions and matrix products, a multiplication and an addition each counting one. Sampling,
activations, sums and Fourier transforms are left out, as everywhere in the field; together they are under one per cent.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from srlab import models, runtime
from srlab.encoders.edsr import EDSR
from srlab.encoders.rcan import RCAN
from srlab.encoders.rdn import RDN
from srlab.igconv import IGConv, IGConvPlus
from srlab.models import SRModel
from srlab.upsamplers import SPConv, SPConvPlus, count_parameters

FULL_WIDTH_ENCODERS = (EDSR, RCAN, RDN)  # published with SPConv+, the others with SPConv


@dataclass(frozen=True)
class Report:
    """What upscaling one picture costs once the kernels of its scale are stored."""

    model: str
    """names of encoder and upsampler; "" for a model put together by hand"""
    scale: int
    height: int
    """of the LR picture, pixels"""
    width: int
    parameters_stored: int
    """of the model as it is, for all its scales"""
    parameters_instantiated: int
    """of the model for this scale alone"""
    flops: int
    """of the instantiated model"""
    flops_live: int
    """of the model as it is, when it has to compute its kernels first"""
    seconds: float
    """median of the instantiated model's runs"""
    peak_bytes: float
    """memory the instantiated model needs on top of its weights and the LR picture; NaN where it cannot be measured"""
    device: str
    threads: int
    """CPU threads of PyTorch"""


def report(model: SRModel, scale: int, size: tuple[int, int] = (360, 640), *, repeats: int = 5) -> Report:
    """Count and measure one model at one scale, on the device and in the memory format its weights have.

    Args:
        model: any `SRModel`; it is not changed.
        scale: upsampling factor.
        size: height and width of the LR picture.
        repeats: timed runs, after one that is not.
    """
    stored = model.instantiate(scale).eval()
    parameter = next(model.parameters())
    lr = torch.rand(1, 3, *size, device=parameter.device, dtype=parameter.dtype)

    def upscale() -> Tensor:
        return stored(lr)

    with torch.no_grad():
        seconds = float(compare({"model": upscale}, repeats=repeats).seconds["model"])
        peak = peak_memory(upscale, parameter.device)
    config = model.config or {}
    return Report(
        model=" + ".join(config[part] for part in ("encoder", "upsampler") if part in config),
        scale=scale,
        height=size[0],
        width=size[1],
        parameters_stored=count_parameters(model),
        parameters_instantiated=count_parameters(stored),
        flops=model_flops(stored, scale, size),
        flops_live=model_flops(model, scale, size),
        seconds=seconds,
        peak_bytes=peak,
        device=device_name(parameter.device),
        threads=torch.get_num_threads(),
    )


def device_name(device: torch.device) -> str:
    """Name of a GPU, or the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def count_flops(call: Callable[[], object]) -> int:
    """FLOPs of the convolutions and matrix products of one call, backward passes inside it included."""
    corrected = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=corrected) as counter:
        call()
    return counter.get_total_flops()


def _convolution_backward(grad, x, weight, *options, out_shape=None) -> int:
    """Each gradient costs what the convolution does. PyTorch's own count forgets the groups of depthwise ones."""
    *_, transposed, _, _, wanted = options  # which of the gradients of x, weight and bias
    return conv_flop_count(x, weight, grad, transposed) * sum(wanted[:2])


@torch.no_grad()
def model_flops(model: SRModel, scale: int, size: tuple[int, int]) -> int:
    """FLOPs of upscaling one picture of `size` (height, width), kernels computed anew. Counted without computing."""
    shadow = copy.deepcopy(model).to("meta").eval()
    lr = torch.empty(1, 3, *size, device="meta")
    return count_flops(lambda: shadow(lr, scale))


def compare(calls: Mapping[str, Callable[[], object]], *, repeats: int = 10, warm_up: int = 1) -> pd.DataFrame:
    """Time several calls in turns: in each round every call once, every other round in reverse order.

    Args:
        calls: name -> function without arguments. The first one is what the others are compared with.
        repeats: timed rounds.
        warm_up: rounds before, not timed.

    Returns:
        A row per name: `seconds`, median over rounds; `ratio`, median over rounds of (this call / first call);
        `ratio_low`, `ratio_high`, its quartiles. `.attrs["rounds"]` holds all seconds, a row per round.
    """
    if not calls or repeats < 1:
        raise ValueError(f"{len(calls)} calls and {repeats} repeats, expected at least one of each")
    for _ in range(warm_up):
        for call in calls.values():
            call()
    names = list(calls)
    taken = []
    for number in range(repeats):
        order = names[::-1] if number % 2 else names
        taken.append({name: _seconds(calls[name]) for name in order})
    rounds = pd.DataFrame(taken, columns=names)
    ratios = rounds.div(rounds[names[0]], axis=0).quantile([0.25, 0.5, 0.75])
    table = pd.DataFrame(
        {
            "seconds": rounds.median(),
            "ratio": ratios.loc[0.5],
            "ratio_low": ratios.loc[0.25],
            "ratio_high": ratios.loc[0.75],
        }
    )
    table.attrs["rounds"] = rounds
    return table


def _seconds(call: Callable[[], object]) -> float:
    _wait_for_gpu()
    start = time.perf_counter()
    call()
    _wait_for_gpu()
    return time.perf_counter() - start


def _wait_for_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_memory(call: Callable[[], object], device: torch.device | str | None = None, *, calls: int = 3) -> float:
    """Bytes by which memory grows at most during a call, after a first call that is not counted.

    On CUDA: bytes of tensors. On a CPU: the process's resident memory, which includes what the convolution library sets
    aside for itself, and other threads of the process; the middle of several calls, since the system may page programs
    out and in meanwhile. Known on Linux only, elsewhere NaN.

    Args:
        call: function without arguments.
        device: where to look; CUDA if this process has used it, else the CPU.
        calls: on a CPU, how many calls to take the middle of.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_initialized() else "cpu"))
    call()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before)
    if device.type != "cpu":
        return math.nan
    return statistics.median(_resident_growth(call) for _ in range(calls))


def _resident_growth(call: Callable[[], object]) -> float:
    if not _restart_peak():
        return math.nan
    before = _resident("VmRSS")
    call()
    return float(_resident("VmHWM") - before)


def _restart_peak() -> bool:
    """Hand freed memory back to the system and let the kernel forget this process's peak; whether that worked."""
    if platform.system() != "Linux":
        return False
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # memory that is free but still held would be used again without growing
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmHWM") > 0
    except (OSError, LookupError):
        return False


def _resident(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def upsamplers_compared(
    scale: int = 2,
    *,
    channels: int = 64,
    size: tuple[int, int] = (360, 640),
    repeats: int = 5,
    device: torch.device | str = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
) -> pd.DataFrame:
    """The paper's Fig. 1a anew: four upsamplers on the same features, implicit kernels instantiated before.

    Args:
        scale: upsampling factor (the figure: 2).
        channels: width of the features (64).
        size: height and width of the features (360 x 640).
        repeats: timed rounds.
        device: where to run.
        memory_format: of the features and of the weights.

    Returns:
        A row per upsampler: parameters, gflops, ms, ratio (to SPConv, median of rounds), ratio_plus (to SPConv+),
        peak_mib; for x2, 64 channels and 360 x 640 also the paper's numbers.
    """
    modules = {
        "SPConv": SPConv(channels, scale),
        "IGConv": IGConv(channels).eval().instantiate(scale),
        "SPConv+": SPConvPlus(channels, scale),
        "IGConv+": IGConvPlus(channels).eval().instantiate(scale),
    }
    feats = torch.randn(1, channels, *size, device=device).contiguous(memory_format=memory_format)
    lr = torch.rand(1, 3, *size, device=device)
    modules = {name: module.eval().to(device, memory_format=memory_format) for name, module in modules.items()}
    calls = {name: _reading(module, feats, scale, lr) for name, module in modules.items()}
    on_meta = [_reading(copy.deepcopy(m).to("meta"), feats.to("meta"), scale, lr.to("meta")) for m in modules.values()]
    with torch.no_grad():
        rounds = compare(calls, repeats=repeats).attrs["rounds"]
        table = pd.DataFrame(
            {
                "parameters": [count_parameters(module) for module in modules.values()],
                "gflops": [count_flops(call) / 1e9 for call in on_meta],
                "ms": 1e3 * rounds.median(),
                "ratio": rounds.div(rounds["SPConv"], axis=0).median(),
                "ratio_plus": rounds.div(rounds["SPConv+"], axis=0).median(),
                "peak_mib": [peak_memory(call, device) / 2**20 for call in calls.values()],
            },
            index=list(modules),
        )
    return table.join(paper_figure()) if (scale, channels, tuple(size)) == (2, 64, (360, 640)) else table


def paper_figure() -> pd.DataFrame:
    """Fig. 1a of the paper: upsamplers on an RTX A6000, features 64 x 360 x 640, x2. Kernels were instantiated before.

    Returns:
        A row per upsampler: paper_parameters (such as "7 K"), paper_ms, paper_mb.
    """
    table = pd.read_csv(runtime.repo_data("paper", "efficiency.csv")).set_index("upsampler")
    named = {"params_k": "paper_parameters", "latency_ms": "paper_ms", "memory_mb": "paper_mb"}
    table = table[list(named)].rename(columns=named).rename_axis(None)
    return table.assign(paper_parameters=table["paper_parameters"].astype(str) + " K")


def _reading(module: nn.Module, feats: Tensor, scale: int, lr: Tensor) -> Callable[[], Tensor]:
    return lambda: module(feats, scale, lr)


def stored_parameters(encoders: Sequence[str] | None = None, scales: Sequence[int] = (2, 3, 4)) -> pd.DataFrame:
    """How many parameters have to be stored to serve all `scales`: one model each, or one model for all.

    The saving is the paper's "three-fold" only where the encoder outweighs the hyper-network, whose frequencies and
    amplitudes take 512 numbers for each kernel element.

    Args:
        encoders: keys of `models.ENCODERS`; all of them if left out.
        scales: scales to be served.

    Returns:
        A row per encoder: encoder, alone (the encoder without upsampler), fixed_upsampler (the one it was published
        with), fixed (sum of one model per scale), igconv, igconv+, saving_igconv, saving_igconv+ (fixed / one model).
    """
    rows = []
    for name in models.ENCODERS if encoders is None else encoders:
        upsampler = fixed_upsampler(name)
        fixed = [_on_meta(name, upsampler, (scale,)) for scale in scales]
        implicit = {key: count_parameters(_on_meta(name, key, scales)) for key in ("igconv", "igconv+")}
        total = sum(count_parameters(model) for model in fixed)
        row = {
            "encoder": name,
            "alone": count_parameters(fixed[0].encoder),
            "fixed_upsampler": upsampler,
            "fixed": total,
        }
        rows.append(row | implicit | {f"saving_{key}": total / stored for key, stored in implicit.items()})
    return pd.DataFrame(rows)


def fixed_upsampler(encoder: str) -> str:
    """The scale-specific upsampler an encoder of `models.ENCODERS` was published with, a key of `models.UPSAMPLERS`."""
    models.check_names(encoder, "spconv", ())
    return "spconv+" if models.ENCODERS[encoder][0] in FULL_WIDTH_ENCODERS else "spconv"


def _on_meta(encoder: str, upsampler: str, scales: Sequence[int]) -> SRModel:
    with torch.device("meta"):
        return models.build(encoder, upsampler, scales)


def training_flops(
    encoders: Sequence[str] = ("edsr-baseline", "edsr"),
    upsamplers: Sequence[str] = ("igconv", "igconv+"),
    scales: Sequence[int] = (2, 3, 4),
    *,
    patch: int = 48,
    micro_batch: int = 4,
    micro_batches: int = 4,
    steps: int = 300_000,
) -> pd.DataFrame:
    """FLOPs of training one model for all scales, and of training one for each scale with as many steps.

    Forward and backward passes are counted as `train.fit` makes them: each micro-batch draws one scale, and a kernel is
    computed once in a step for all micro-batches that drew its scale. Loss and optimiser are left out.

    Args:
        encoders, upsamplers: what the one model is made of; the others have `fixed_upsampler`.
        scales: drawn with equal chance by the one model.
        patch: side of the LR crops.
        micro_batch, micro_batches: crops in a micro-batch, micro-batches in a step.
        steps: optimiser steps of each training, as in the paper's recipes.

    Returns:
        A row per encoder and upsampler: encoder, upsampler, fixed_upsampler, one_pflop (10**15 FLOPs expected for
        the one model), each_pflop (sum over the models for one scale), ratio (one / each; 1/3 if upsamplers were free).
    """
    about = {"patch": patch, "micro_batch": micro_batch, "micro_batches": micro_batches, "steps": steps}
    rows = []
    for encoder in encoders:
        fixed = fixed_upsampler(encoder)
        each = sum(expected_flops(encoder, fixed, (scale,), **about) for scale in scales)
        for upsampler in upsamplers:
            one = expected_flops(encoder, upsampler, scales, **about)
            rows.append(
                {
                    "encoder": encoder,
                    "upsampler": upsampler,
                    "fixed_upsampler": fixed,
                    "one_pflop": one / 1e15,
                    "each_pflop": each / 1e15,
                    "ratio": one / each,
                }
            )
    return pd.DataFrame(rows)


def expected_flops(
    encoder: str,
    upsampler: str,
    scales: Sequence[int],
    *,
    patch: int = 48,
    micro_batch: int = 4,
    micro_batches: int = 4,
    steps: int = 300_000,
) -> float:
    """FLOPs of one training, expected over the draws of scales; counted and left out as in `training_flops`."""
    drawn_at_all = 1 - (1 - 1 / len(scales)) ** micro_batches
    costs = [_step_flops(encoder, upsampler, scale, micro_batch, patch) for scale in scales]
    return steps * sum(drawn_at_all * kernel + micro_batches / len(scales) * batch for kernel, batch in costs)


def _step_flops(encoder: str, upsampler: str, scale: int, crops: int, patch: int) -> tuple[int, int]:
    """FLOPs, forward and backward, of what a step does once per scale (its kernel), and once per micro-batch."""
    model = _on_meta(encoder, upsampler, (scale,)).train()

    def step(batch: int) -> int:
        lr = torch.empty(batch, 3, patch, patch, device="meta")
        return count_flops(lambda: model(lr, scale).sum().backward())

    once, twice = step(crops), step(2 * crops)  # FLOPs grow linearly with the batch, but for the kernel's
    return 2 * once - twice, twice - once
