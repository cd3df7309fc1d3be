"""Room "public names": how the tensors of public checkpoints are called, and where they belong here.

A state dict (name -> tensor) as its authors published it goes in; the arguments of `models.build` and a state dict with
our names come out. One table per architecture, no code per checkpoint: what a table does not know is an error, and
sizes (channels, blocks, ...) are read from the shapes of the tensors. Files are opened in `weights.py`.

In the tables `#` stands for a number and `@` for "weight" or "bias"; `#/2` is half that number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]
SHOWN = 5  # names listed in a message
WRAPPERS = ("params_ema", "params", "state_dict")  # first one found is taken: the released tables used the average
PARALLEL_PREFIX = "module."  # left behind by torch.nn.DataParallel


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit a model; the message names the file's first oddities."""


@dataclass(frozen=True)
class Family:
    """How one architecture's public checkpoints are laid out."""

    title: str
    encoder: str
    """Name in `models.ENCODERS`."""
    marker: str
    """Prefix of names that only this architecture has; `#` as in the tables."""
    names: Mapping[str, str]
    """Public name -> ours, below `encoder.`."""
    sizes: Callable[[State], dict[str, Any]]
    """Our names -> sizes of the encoder."""
    tail: str
    """Name of the fixed-scale convolution before pixel shuffle; empty if none is known."""
    implicit: str = ""
    """Prefix of the IGConv upsampler in the official release; empty if there is none."""
    counts_from: int = 0
    """Number of the first block in public names; ours count from 0."""
    fixed_range: float = 1.0
    """What an input value of 1 becomes before the encoder, in fixed-scale checkpoints."""
    max_scale: int = 4
    """Largest scale the official IGConv release of this architecture was trained for, its `max_scale`."""


def _count(state: State, prefix: str) -> int:
    """1 + the largest number that follows `prefix` in a name."""
    numbers = [int(name[len(prefix) :].split(".")[0]) for name in state if name.startswith(prefix)]
    count = 1 + max(numbers, default=-1)
    if count > len(state):
        raise CheckpointError(f"{prefix}{count - 1} is there, but only {len(state)} tensors are: a damaged name?")
    return count


def _shape(state: State, name: str, axes: int = 4) -> torch.Size:
    if name not in state:
        raise CheckpointError(f"the tensor for {name!r} is missing, so the sizes of the model cannot be read from it")
    shape = state[name].shape
    if len(shape) != axes or 0 in shape:
        raise CheckpointError(
            f"the tensor for {name!r} has shape {tuple(shape)}, expected {axes} axes, none of them empty: another "
            f"variant of the architecture, or a damaged file?"
        )
    return shape


def _edsr_sizes(state: State) -> dict[str, Any]:
    return {"channels": _shape(state, "encoder.conv_first.weight")[0], "blocks": _count(state, "encoder.body.")}


def _smfanet_sizes(state: State) -> dict[str, Any]:
    hidden, channels = _shape(state, "encoder.blocks.0.feed_forward.widen.weight")[:2]
    return {"channels": channels, "blocks": _count(state, "encoder.blocks."), "expansion": hidden / channels}


def _imdn_sizes(state: State) -> dict[str, Any]:
    return {"channels": _shape(state, "encoder.shallow.weight")[0], "blocks": _count(state, "encoder.blocks.")}


def _bsrn_sizes(state: State) -> dict[str, Any]:
    channels, inputs = _shape(state, "encoder.shallow.pointwise.weight")[:2]
    return {"channels": channels, "blocks": _count(state, "encoder.blocks."), "copies": inputs // 3}


def _rdn_sizes(state: State) -> dict[str, Any]:
    return {
        "channels": _shape(state, "encoder.shallow.0.weight")[0],
        "blocks": _count(state, "encoder.blocks."),
        "layers": _count(state, "encoder.blocks.0.layers."),
        "growth": _shape(state, "encoder.blocks.0.layers.0.weight")[0],
    }


def _rcan_sizes(state: State) -> dict[str, Any]:
    channels = _shape(state, "encoder.shallow.weight")[0]
    return {
        "channels": channels,
        "groups": _count(state, "encoder.groups."),
        "blocks": _count(state, "encoder.groups.0.blocks."),
        "reduction": channels // _shape(state, "encoder.groups.0.blocks.0.attention.squeeze.weight")[0],
    }


EDSR = Family(
    title="EDSR",
    encoder="edsr",
    marker="body.#.conv",
    names={
        "conv_first.@": "conv_first.@",
        "body.#.conv1.@": "body.#.conv1.@",
        "body.#.conv2.@": "body.#.conv2.@",
        "conv_after_body.@": "conv_after_body.@",
    },
    sizes=_edsr_sizes,
    tail="",
    implicit="upsample",
    fixed_range=255.0,
)
SMFANET = Family(
    title="SMFANet",
    encoder="smfanet",
    marker="feats.#.smfa.",
    names={
        "to_feat.@": "shallow.@",
        "feats.#.smfa.linear_0.@": "blocks.#.modulation.split.@",
        "feats.#.smfa.dw_conv.@": "blocks.#.modulation.coarse.@",
        "feats.#.smfa.alpha": "blocks.#.modulation.coarse_weight",
        "feats.#.smfa.belt": "blocks.#.modulation.variance_weight",
        "feats.#.smfa.linear_1.@": "blocks.#.modulation.gate.@",
        "feats.#.smfa.lde.conv_0.0.@": "blocks.#.modulation.detail.0.@",
        "feats.#.smfa.lde.conv_0.1.@": "blocks.#.modulation.detail.1.@",
        "feats.#.smfa.lde.conv_1.@": "blocks.#.modulation.detail.3.@",
        "feats.#.smfa.linear_2.@": "blocks.#.modulation.merge.@",
        "feats.#.pcfn.conv_0.@": "blocks.#.feed_forward.widen.@",
        "feats.#.pcfn.conv_1.@": "blocks.#.feed_forward.partial.@",
        "feats.#.pcfn.conv_2.@": "blocks.#.feed_forward.narrow.@",
    },
    sizes=_smfanet_sizes,
    tail="to_img.0",
    implicit="to_img",
)
IMDN = Family(
    title="IMDN",
    encoder="imdn",
    marker="IMDB#.",
    names={
        "fea_conv.@": "shallow.@",
        "IMDB#.c5.@": "blocks.#.fuse.@",
        "IMDB#.c#.@": "blocks.#.steps.#.@",
        "IMDB#.cca.conv_du.0.@": "blocks.#.attention.squeeze.@",
        "IMDB#.cca.conv_du.2.@": "blocks.#.attention.excite.@",
        "c.0.@": "gather.@",
        "LR_conv.@": "last.@",
    },
    sizes=_imdn_sizes,
    tail="upsampler.0",
    counts_from=1,
)
BSRN = Family(
    title="BSRN",
    encoder="bsrn",
    marker="B#.c1_",
    names={
        "fea_conv.pw.weight": "shallow.pointwise.weight",
        "fea_conv.dw.@": "shallow.depthwise.@",
        "B#.c#_d.@": "blocks.#.branches.#.@",
        "B#.c#_r.pw.weight": "blocks.#.refine.#.pointwise.weight",
        "B#.c#_r.dw.@": "blocks.#.refine.#.depthwise.@",
        "B#.c4.pw.weight": "blocks.#.end.pointwise.weight",
        "B#.c4.dw.@": "blocks.#.end.depthwise.@",
        "B#.c5.@": "blocks.#.fuse.@",
        "B#.esa.conv1.@": "blocks.#.spatial.narrow.@",
        "B#.esa.conv2.pw.weight": "blocks.#.spatial.shrink.pointwise.weight",
        "B#.esa.conv2.dw.@": "blocks.#.spatial.shrink.depthwise.@",
        "B#.esa.conv_max.pw.weight": "blocks.#.spatial.coarse.0.pointwise.weight",
        "B#.esa.conv_max.dw.@": "blocks.#.spatial.coarse.0.depthwise.@",
        "B#.esa.conv3.pw.weight": "blocks.#.spatial.coarse.1.pointwise.weight",
        "B#.esa.conv3.dw.@": "blocks.#.spatial.coarse.1.depthwise.@",
        "B#.esa.conv3_.pw.weight": "blocks.#.spatial.coarse.2.pointwise.weight",
        "B#.esa.conv3_.dw.@": "blocks.#.spatial.coarse.2.depthwise.@",
        "B#.esa.conv_f.@": "blocks.#.spatial.shortcut.@",
        "B#.esa.conv4.@": "blocks.#.spatial.widen.@",
        "B#.cca.conv_du.0.@": "blocks.#.contrast.squeeze.@",
        "B#.cca.conv_du.2.@": "blocks.#.contrast.excite.@",
        "c1.@": "gather.@",
        "c2.pw.weight": "last.pointwise.weight",
        "c2.dw.@": "last.depthwise.@",
    },
    sizes=_bsrn_sizes,
    tail="upsampler.upsampleOneStep.0",
    counts_from=1,
)
RDN = Family(
    title="RDN",
    encoder="rdn",
    marker="RDBs.#.",
    names={
        "SFENet1.@": "shallow.0.@",
        "SFENet2.@": "shallow.1.@",
        "RDBs.#.convs.#.conv.0.@": "blocks.#.layers.#.@",
        "RDBs.#.LFF.@": "blocks.#.fuse.@",
        "GFF.#.@": "gather.#.@",
    },
    sizes=_rdn_sizes,
    tail="",
    implicit="UPNet",
)
RCAN = Family(
    title="RCAN",
    encoder="rcan",
    marker="body.#.body.#.body.",
    names={
        "sub_mean.@": "colour.@",
        "head.0.@": "shallow.@",
        "body.#.body.#.body.0.@": "groups.#.blocks.#.conv1.@",
        "body.#.body.#.body.2.@": "groups.#.blocks.#.conv2.@",
        "body.#.body.#.body.3.conv_du.0.@": "groups.#.blocks.#.attention.squeeze.@",
        "body.#.body.#.body.3.conv_du.2.@": "groups.#.blocks.#.attention.excite.@",
        "body.#.body.#.@": "groups.#.last.@",
        "body.#.@": "last.@",
    },
    sizes=_rcan_sizes,
    tail="",
    implicit="tail",
    max_scale=8,
)
FAMILIES = (RCAN, EDSR, SMFANET, IMDN, BSRN, RDN)

HYPER = {  # below the prefix of one hyper-network of the official IGConv code
    "freq": "frequency",
    "amplitude": "amplitude",
    "phase.@": "phase.@",
    "query_kernel.#.@": "layers.#/2.@",  # odd numbers are the activations between the layers
}


def unwrap(content: Mapping[str, Any]) -> State:
    """Bare state dict: without a wrapper, without the prefix of parallel training.

    Raises:
        CheckpointError: not all of it are tensors with names and finite values.
    """
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not content:
        raise CheckpointError("no tensors in it")
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise CheckpointError(
                f"no state dict: {name!r} is a {type(value).__name__}, expected names with tensors. Known wrappers are "
                f"{', '.join(WRAPPERS)}; a run folder of srlab.train is resumed by srlab.train.fit"
            )
    state = {name.removeprefix(PARALLEL_PREFIX): tensor for name, tensor in content.items()}
    check_finite(state)
    return state


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Raise a CheckpointError at the first tensor that holds NaN or infinite values."""
    for name, tensor in state.items():
        if bad := int((~tensor.isfinite()).sum()):
            raise CheckpointError(
                f"NaN or infinite weights: {bad} of {tensor.numel()} values in {name!r}; the training diverged, or the "
                f"file is damaged"
            )


def from_public(
    state: Mapping[str, Tensor], *, max_scale: int | None = None, fgrep: bool | None = None
) -> tuple[Family, dict[str, Any], State]:
    """Translate a public state dict, plain tensors without a wrapper.

    Args:
        state: names as published -> tensors.
        max_scale: scale above which the phase of IGConv is frozen; None takes the released model's (RCAN 8, others 4).
        fgrep: whether IGConv averages its kernels over flips and rotations; None: exactly for IGConv+, as released.

    Returns:
        The family, the arguments of `models.build` except `scales`, and the state dict in our names, each tensor once.
        For a fixed scale the arguments hold `scale` too; `mean` is there if the checkpoint has one.

    Raises:
        CheckpointError: unknown architecture; names that do not fit it (the first ones are listed); missing tensors.
    """
    family = find_family(state)
    upsampler, upsampler_names = _upsampler(family, state)
    table = {public: f"encoder.{ours}" for public, ours in family.names.items()} | upsampler_names
    if family is RCAN and upsampler.startswith("igconv"):
        table["add_mean.@"] = "output_colour.@"
    ours = _rename(state, table, family)
    arguments = {"encoder": family.encoder, "upsampler": upsampler, **family.sizes(ours)}
    if upsampler.startswith("igconv"):
        arguments |= _igconv_sizes(ours, upsampler, arguments["channels"])
        arguments["max_scale"] = family.max_scale if max_scale is None else max_scale
        arguments["fgrep"] = upsampler == "igconv+" if fgrep is None else fgrep
        if family is RCAN:
            arguments["mean"] = _fold_output_colour(ours, upsampler)
    else:
        arguments |= _fixed_sizes(ours, upsampler)
    return family, arguments, ours


def find_family(state: Mapping[str, Tensor]) -> Family:
    """The architecture whose marker is among the names.

    Raises:
        CheckpointError: none is, with the first names and what can be read.
    """
    for family in FAMILIES:
        marker = re.compile(_pattern(family.marker))
        if any(marker.match(name) for name in state):
            return family
    readable = ", ".join(family.title for family in FAMILIES)
    raise CheckpointError(
        f"unknown architecture: its {len(state)} tensors start with {some(state)}; what can be read is {readable} "
        f"(fixed-scale checkpoints of the authors, official IGConv releases) and files written by srlab.weights.save"
    )


def _upsampler(family: Family, state: Mapping[str, Tensor]) -> tuple[str, dict[str, str]]:
    """Name in `models.UPSAMPLERS` and the table of its tensors."""
    implicit = f"{family.implicit}."
    if family.implicit and any(name.startswith(implicit + "query_kernel.") for name in state):
        plus = any(name.startswith("skip.") for name in state)
        main = "upsampler.main.hyper." if plus else "upsampler.hyper."
        table = {implicit + public: main + ours for public, ours in HYPER.items()}
        if plus:
            table |= {"skip.convs." + public: "upsampler.skip.hyper." + ours for public, ours in HYPER.items()}
        return ("igconv+" if plus else "igconv"), table
    if family is EDSR:
        return "spconv+", {"upsample.#.@": "upsampler.stages.#.@", "conv_last.@": "upsampler.to_rgb.@"}
    tail = family.tail or family.implicit  # with one stored kernel an IGConv is a plain convolution under its own name
    if family.implicit and f"{implicit}weight" in state:
        tail = family.implicit
    return "spconv", {f"{tail}.@": "upsampler.@"}


def _rename(state: Mapping[str, Tensor], table: Mapping[str, str], family: Family) -> State:
    rules = [(re.compile(_pattern(public)), ours) for public, ours in table.items()]
    renamed: State = {}
    unknown = []
    for name, tensor in state.items():
        new = next((_fill(ours, match, family) for rule, ours in rules if (match := rule.fullmatch(name))), None)
        if new is None or new in renamed:
            unknown.append(name)
        else:
            renamed[new] = tensor
            if new.endswith((".frequency", ".amplitude")) and tensor.ndim == 4:
                renamed[new] = tensor.flatten(1)  # (N, D, 1, 1) as published, (N, D) here
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} of {len(state)} tensors do not fit {family.title}, the first are {some(unknown)}: "
            f"another variant of the architecture, or renamed layers?"
        )
    return renamed


@cache
def _pattern(public: str) -> str:
    return re.escape(public).replace(r"\#", r"(\d+)").replace("@", "(weight|bias)")


def _fill(ours: str, match: re.Match[str], family: Family) -> str:
    """Put what `#` and `@` stood for into our name, in order; blocks here count from 0."""
    numbers = iter([int(group) - family.counts_from for group in match.groups() if group.isdigit()])
    ours = re.sub(r"#(/2)?", lambda m: str(next(numbers) // (2 if m[1] else 1)), ours)
    return ours.replace("@", match.groups()[-1] if match.groups() else "")


def _igconv_sizes(state: State, upsampler: str, channels: int) -> dict[str, Any]:
    hyper = "upsampler.main.hyper." if upsampler == "igconv+" else "upsampler.hyper."
    elements, implicit_dim = _shape(state, hyper + "frequency", axes=2)
    return {
        "kernel_size": math.isqrt(elements // channels),
        "implicit_dim": implicit_dim,
        "hidden_layers": _count(state, hyper + "layers.") - 1,
    }


def _fixed_sizes(state: State, upsampler: str) -> dict[str, Any]:
    """Scale and form of a fixed-scale upsampler, from the shapes of its weights."""
    if upsampler == "spconv":
        out_channels, _, kernel_size, _ = _shape(state, "upsampler.weight")
        scale = math.isqrt(out_channels // 3)
        if 3 * scale**2 != out_channels:
            raise CheckpointError(
                f"the last convolution has {out_channels} output channels, expected 3 * scale**2 (12, 27, 48, ...) "
                f"for RGB: a model for grey pictures?"
            )
        return {"scale": scale, "kernel_size": kernel_size, "bias": "upsampler.bias" in state}
    stages = [_shape(state, name) for name in state if re.fullmatch(r"upsampler\.stages\.\d+\.weight", name)]
    return {"scale": math.prod(math.isqrt(shape[0] // shape[1]) for shape in stages)}


def _fold_output_colour(state: State, upsampler: str) -> list[float]:
    """Fold RCAN's learnt output colours into the hyper-network; returns what is left of them, a mean colour.

    After pixel shuffle the released RCAN has a 1x1 convolution W sr + b. W mixes the three maps that the last layer of
    the hyper-network emits, so it can be multiplied into that layer. b is added to the output, as the mean colour of
    every model here; that colour is also taken off the input, so the encoder's input colours have to put it back.
    """
    weight, bias = (state.pop(f"output_colour.{part}", None) for part in ("weight", "bias"))
    if weight is None or bias is None or weight.shape != (3, 3, 1, 1) or bias.shape != (3,):
        raise CheckpointError(
            "RCAN's output colours add_mean.weight (3, 3, 1, 1) and add_mean.bias (3,) are missing or of other shapes"
        )
    hyper = "upsampler.main.hyper." if upsampler == "igconv+" else "upsampler.hyper."
    last = f"{hyper}layers.{_count(state, hyper + 'layers.') - 1}"
    matrix, mean = weight.double().flatten(1), bias.float().double()
    for name, axes in ((f"{last}.weight", 4), (f"{last}.bias", 1)):
        _shape(state, name, axes)
        state[name] = torch.tensordot(matrix, state[name].double(), dims=1).to(weight.dtype)
    _shape(state, "encoder.colour.weight"), _shape(state, "encoder.colour.bias", axes=1)
    put_back = state["encoder.colour.weight"].double().flatten(1) @ mean
    state["encoder.colour.bias"] = (state["encoder.colour.bias"].double() + put_back).to(weight.dtype)
    return mean.tolist()


def some(names: Any) -> str:
    """The first few names, quoted, for a message."""
    names = list(names)
    return ", ".join(repr(name) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
