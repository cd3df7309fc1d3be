"""Super-resolution models: an encoder and an upsampler joined, and the short table of named ones.

`build("edsr-tiny", "igconv", scales=(2, 3, 4))` gives a fresh model; `model(lr, scale)` upscales. Trained weights come
from `weights.py`, training from `train.py`.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from srlab import upsamplers
from srlab.encoders.bsrn import BSRN
from srlab.encoders.edsr import EDSR
from srlab.encoders.imdn import IMDN
from srlab.encoders.rcan import RCAN
from srlab.encoders.rdn import RDN
from srlab.encoders.smfanet import SMFANet
from srlab.igconv import IGConv, IGConvPlus
from srlab.upsamplers import ScaleError, checked_scale

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)  # mean colour of the DIV2K training pictures, as EDSR-style codes subtract it
NO_MEAN = (0.0, 0.0, 0.0)

# name -> (class, sizes, mean colour taken off the input)
ENCODERS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any], tuple[float, float, float]]] = {
    "edsr-nano": (EDSR, {"channels": 16, "blocks": 4, "res_scale": 1.0}, DIV2K_MEAN),
    "edsr-tiny": (EDSR, {"channels": 32, "blocks": 8, "res_scale": 1.0}, DIV2K_MEAN),
    "edsr-baseline": (EDSR, {"channels": 64, "blocks": 16, "res_scale": 1.0}, DIV2K_MEAN),
    "edsr": (EDSR, {"channels": 256, "blocks": 32, "res_scale": 0.1}, DIV2K_MEAN),
    "smfanet": (SMFANet, {"channels": 36, "blocks": 8, "expansion": 2.0}, NO_MEAN),
    "smfanet+": (SMFANet, {"channels": 48, "blocks": 12, "expansion": 2.0}, NO_MEAN),
    "imdn": (IMDN, {"channels": 64, "blocks": 6}, NO_MEAN),
    "bsrn": (BSRN, {"channels": 64, "blocks": 8, "copies": 4}, NO_MEAN),
    "rdn": (RDN, {"channels": 64, "blocks": 16, "layers": 8, "growth": 64}, NO_MEAN),
    "rcan": (RCAN, {"channels": 64, "groups": 10, "blocks": 20, "reduction": 16}, DIV2K_MEAN),
}


def _heads(head: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """One head for one scale, separate heads on the shared encoder for several."""

    def make(channels: int, scales: tuple[int, ...], **sizes: Any) -> nn.Module:
        heads = [head(channels, scale, **sizes) for scale in scales]
        return heads[0] if len(heads) == 1 else upsamplers.SeparateHeads(heads)

    make.__signature__ = inspect.signature(head, eval_str=True)
    return make


def _any_scale(upsampler: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def make(channels: int, scales: tuple[int, ...], **sizes: Any) -> nn.Module:
        return upsampler(channels, **sizes)

    make.__signature__ = inspect.signature(upsampler, eval_str=True)
    return make


# name -> maker(channels, scales, **sizes)
UPSAMPLERS: dict[str, Callable[..., nn.Module]] = {
    "spconv": _heads(upsamplers.SPConv),
    "spconv+": _heads(upsamplers.SPConvPlus),
    "igconv": _any_scale(IGConv),
    "igconv+": _any_scale(IGConvPlus),
}

# name -> skip(mean): the picture enlarged plainly, added to what the upsampler paints
SKIPS: dict[str, Callable[..., nn.Module]] = {"bilinear": upsamplers.BilinearSkip, "bicubic": upsamplers.BicubicSkip}


class SRModel(nn.Module):
    """An encoder and an upsampler, for one or several scales.

    sr = upsampler(encoder((lr - mean) * img_range)) / img_range + mean, where an upsampler that looks at the picture
    itself (a skip, IGConv+) gets `lr * img_range`.

    Args:
        encoder: lr -> feats, see `srlab.encoders`.
        upsampler: feats, scale -> sr, see `srlab.upsamplers`.
        scales: the scales it is meant for.
        mean: colour taken off the input and added to the output.
        img_range: what an input value of 1 becomes before the encoder.
        config: arguments of `build` that make the same model again; None for models put together by hand.
    """

    def __init__(
        self,
        encoder: nn.Module,
        upsampler: nn.Module,
        *,
        scales: Sequence[int],
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        img_range: float = 1.0,
        config: dict[str, Any] | None = None,
    ):
        super().__init__()
        if not scales:
            raise ScaleError("scales is empty, expected at least one, such as (2, 3, 4)")
        self.encoder, self.upsampler = encoder, upsampler
        self.scales = tuple(sorted(checked_scale(scale, upsampler.scales) for scale in scales))
        self.img_range = float(img_range)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.config = copy.deepcopy(config)

    @property
    def receptive_radius(self) -> int | None:
        """LR pixels beyond which an input pixel cannot change an output pixel; None if the encoder looks globally."""
        radius = self.encoder.receptive_radius
        return None if radius is None else radius + self.upsampler.receptive_radius

    def encode(self, lr: Tensor) -> Tensor:
        """Features (B, C, h, w) of pictures `lr` (B, 3, h, w), RGB in [0, 1]."""
        if lr.ndim != 4 or lr.shape[1] != 3 or not lr.is_floating_point():
            raise ValueError(
                f"lr is {lr.dtype} of shape {tuple(lr.shape)}, expected float (B, 3, h, w) in [0, 1]: "
                f"srlab.images.to_float turns an 8-bit picture into floats, picture[None] adds the batch axis"
            )
        return self.encoder((lr - self.mean) * self.img_range)

    def forward(self, lr: Tensor, scale: int | None = None) -> Tensor:
        """Upscale `lr` (B, 3, h, w) to (B, 3, h * scale, w * scale); `scale` may be left out if there is only one."""
        scale = self._checked(scale)
        feats = self.encode(lr)
        return self.upsampler(feats, scale, lr * self.img_range) / self.img_range + self.mean

    def instantiate(self, scale: int) -> SRModel:
        """A new model for one scale, independent of this one: kernels stored, no hyper-network inside."""
        scale = self._checked(scale)
        return SRModel(
            copy.deepcopy(self.encoder),
            self.upsampler.instantiate(scale),
            scales=(scale,),
            mean=self.mean.flatten().tolist(),
            img_range=self.img_range,
        ).train(self.training)

    def _checked(self, scale: int | None) -> int:
        if scale is None:
            if len(self.scales) > 1:
                raise ScaleError(f"scale was left out, but this model serves {self.scales}: say which")
            return self.scales[0]
        scale = checked_scale(scale, self.upsampler.scales)
        if scale not in self.scales:
            trained = ", ".join(f"x{s}" for s in self.scales)
            warnings.warn(f"x{scale} was never trained (trained: {trained}); the result is extrapolated", stacklevel=3)
        return scale


def build(
    encoder: str = "edsr-baseline",
    upsampler: str = "igconv+",
    scales: Sequence[int] = (2, 3, 4),
    *,
    mean: Sequence[float] | None = None,
    img_range: float = 1.0,
    skip: str | None = None,
    **sizes: Any,
) -> SRModel:
    """Make a fresh model from two names.

    Everything IGConv+ adds can be left out, one at a time: `fgrep=False` (kernels not averaged), `fourier=False` (plain
    coordinates instead of Fourier features); "igconv" with `fgrep=True` has no IGSample, and with `skip="bilinear"` too
    has one whose shifts stay at zero.

    Args:
        encoder: a key of `ENCODERS`.
        upsampler: a key of `UPSAMPLERS`. "spconv" and "spconv+" with several scales get separate heads.
        scales: scales it is meant for.
        mean, img_range: as in `SRModel`; None takes the named encoder's mean colour.
        skip: a key of `SKIPS`, or None: add the enlarged input picture. Not for "igconv+", which samples it already.
        sizes: replaces any size of the named encoder (`channels`, `blocks`, ...) or upsampler (`implicit_dim`, ...).

    Raises:
        ValueError: unknown name or size, the message lists the valid ones; a value that no model can be made with; or
            a skip beside "igconv+".
        ScaleError: a scale that is no whole number of at least 1, or is there twice.
    """
    check_names(encoder, upsampler, scales, {"mean": mean, "img_range": img_range, "skip": skip, **sizes})
    encoder_class, encoder_sizes, usual_mean = ENCODERS[encoder]
    scales = tuple(checked_scale(scale) for scale in scales)
    for_encoder, upsampler_sizes = _split_sizes(encoder, upsampler, sizes)
    make_skip = _skip_beside(upsampler, skip)
    body = encoder_class(**{**encoder_sizes, **for_encoder})
    mean = list(usual_mean if mean is None else mean)
    head = UPSAMPLERS[upsampler](body.channels, scales, **upsampler_sizes)
    if make_skip:  # the model adds the mean colour to the sum
        head = upsamplers.WithSkip(head, make_skip([img_range * colour for colour in mean]))
    return SRModel(
        body,
        head,
        scales=scales,
        mean=mean,
        img_range=img_range,
        config={
            "encoder": encoder,
            "upsampler": upsampler,
            "scales": list(scales),
            "mean": mean,
            "img_range": img_range,
            "skip": skip,
            **sizes,
        },
    )


def _named(kind: str, name: str, table: dict[str, Any]) -> Any:
    if not isinstance(name, str) or name not in table:
        near = difflib.get_close_matches(str(name), table, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown {kind} {name!r}: expected one of {', '.join(table)}{hint}")
    return table[name]


def _skip_beside(upsampler: str, skip: str | None) -> Callable[..., nn.Module] | None:
    if skip is None:
        return None
    if upsampler == "igconv+":
        raise ValueError(f"skip is {skip!r} beside igconv+, which adds the input picture itself: expected None")
    return _named("skip", skip, SKIPS)


def _split_sizes(encoder: str, upsampler: str, sizes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sizes that belong to the encoder and those that belong to the upsampler."""
    encoder_takes = inspect.signature(ENCODERS[encoder][0], eval_str=True).parameters
    upsampler_takes = dict(inspect.signature(UPSAMPLERS[upsampler]).parameters)
    for name in ("channels", "scale"):
        upsampler_takes.pop(name, None)
    for name, value in sizes.items():
        if name not in encoder_takes and name not in upsampler_takes:
            raise ValueError(
                f"unknown size {name!r}: {encoder} takes {sorted(encoder_takes)}, {upsampler} {sorted(upsampler_takes)}"
            )
        _check_size(name, value, (encoder_takes.get(name) or upsampler_takes[name]).annotation)
    for_encoder = {name: value for name, value in sizes.items() if name in encoder_takes}
    return for_encoder, {name: value for name, value in sizes.items() if name not in encoder_takes}


def check_names(encoder: str, upsampler: str, scales: Sequence[int], options: Mapping[str, Any] | None = None) -> None:
    """Raise what `build` would raise for these names, scales and `options`, without building anything."""
    _named("encoder", encoder, ENCODERS)
    _named("upsampler", upsampler, UPSAMPLERS)
    if len({checked_scale(scale) for scale in scales}) < len(scales):
        raise ScaleError(f"scales are {tuple(scales)}, expected each one once")
    sizes = dict(options or {})
    _skip_beside(upsampler, sizes.pop("skip", None))
    mean, img_range = sizes.pop("mean", None), sizes.pop("img_range", 1.0)
    three = isinstance(mean, Sequence) and len(mean) == 3 and all(map(_is_number, mean))
    _require("mean", mean, mean is None or three, "three finite numbers, one for each colour, or None")
    fits = _is_number(img_range) and img_range > 0
    _require("img_range", img_range, fits, "a finite number above 0: what an input value of 1 becomes")
    _split_sizes(encoder, upsampler, sizes)


def _check_size(name: str, value: Any, kind: Any) -> None:
    """Refuse a value that is not of the parameter's type, or that no layer can have."""
    if kind is bool:
        _require(name, value, isinstance(value, bool), "True or False")
    elif kind is float:
        _require(name, value, _is_number(value), "a finite number")
        _require(name, value, value > 0 or name != "expansion", "a number above 0: widths are multiplied by it")
    elif kind is int:
        least = 0 if name == "hidden_layers" else 1
        whole = isinstance(value, Integral) and not isinstance(value, bool) and value >= least
        _require(name, value, whole, f"a whole number of at least {least}")
        if name == "kernel_size":
            _require(name, value, value % 2 == 1, "an odd number: an even kernel has no middle, and shifts the picture")


def _require(name: str, value: Any, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"size {name} is {value!r}, expected {expected}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
