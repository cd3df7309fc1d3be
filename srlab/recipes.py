"""Recipes: everything that decides what a training run ends with, and the named ones.

Takes nothing but values, checks them at once, computes nothing. `train.fit` follows a recipe, `srlab train --help`
shows the sentence below each field.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from srlab import models

PRECISIONS = ("32-true", "bf16-mixed")


class Sizes(dict):
    """A dict that cannot change once made, so that a recipe that holds one can be hashed. Lists become tuples."""

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()):
        super().__init__((name, _frozen(value)) for name, value in dict(items).items())

    def __hash__(self) -> int:
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return Sizes, (dict(self),)

    def _refuse(self, *_: Any, **__: Any) -> typing.NoReturn:
        raise TypeError("the sizes of a recipe cannot change: make another recipe with dataclasses.replace")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run ends with. Defaults: the paper's EDSR with IGConv (official code).

    Raises:
        ValueError: a value out of range; nothing has been computed by then.
    """

    encoder: str = "edsr"
    """Encoder, a name in `models.ENCODERS`."""
    upsampler: str = "igconv"
    """Upsampler, a name in `models.UPSAMPLERS`."""
    scales: tuple[int, ...] = (2, 3, 4)
    """Scales to train for; each micro-batch draws one of them with equal chance."""
    sizes: Sizes = dataclasses.field(default_factory=Sizes)
    """Options of `models.build`, such as {"channels": 16, "fgrep": False}; what is not named is as the encoder and the
    upsampler have it. On the command line NAME=VALUE, as in channels=16 fgrep=false."""
    data: str = "bsd400"
    """Training pictures: a named set or a folder. The paper uses DIV2K, which has to be given as a folder."""
    start_from: str = ""
    """Weights to begin with instead of random ones: a file, or a name of `srlab models`. The encoder must fit; of the
    upsampler whatever has the same name and shape is taken."""
    steps: int = 300_000
    """Optimiser steps. The paper gives one multi-scale model the steps of one fixed-scale model."""
    micro_batch: int = 4
    """Crops per micro-batch, all of one scale (the paper: 4 on each GPU)."""
    micro_batches: int = 4
    """Micro-batches per optimiser step, each with its own scale. The paper's four GPUs draw four scales a step; one
    batch of 16 at one scale would be another gradient."""
    patch: int = 48
    """Side of the LR crops in pixels; the HR crops are `scale` times larger."""
    learning_rate: float = 1e-4
    """Learning rate of Adam at the start."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of Adam's two running means."""
    milestones: tuple[int, ...] = (200_000,)
    """Steps at which the learning rate is halved; unused when `final_learning_rate` is given."""
    final_learning_rate: float | None = None
    """Follow a cosine from `learning_rate` down to this at the last step, instead of milestones."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly from zero."""
    ema: float = 0.999
    """Decay per step of the running average of the weights; 0 keeps none. The average is what is saved and scored."""
    fft_weight: float = 0.0
    """Weight of the frequency loss beside L1; the paper's IGConv+ has 0.05."""
    seed: int = 0
    """Seed of the first weights and of all crops."""
    precision: str = "32-true"
    """Numbers the model computes with: 32-true, or bf16-mixed (weights and losses stay in 32 bits), which is another
    result in half the time where the processor has bf16 units (measured: 0.50 of a step of EDSR-tiny on a CPU)."""
    compile: bool = False
    """Let torch compile the model: 10 to 60 seconds at the start of each scale, then 0.87 of the time of a step (same
    measurement). Needs a C++ compiler on a CPU."""
    validation: str = ""
    """Pictures to validate on, a named set or a folder; none by default. Never those that are trained on."""
    validate_every: int = 1000
    """Steps per validation, in the protocol of the benchmarks."""
    log_every: int = 100
    """Steps per row of the log."""
    save_every: int = 1000
    """Steps per checkpoint."""

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(Recipe).items():
            is_one, expected = _KINDS[kind]
            self._require(name, is_one(getattr(self, name)), expected)
        for name in ("steps", "micro_batch", "micro_batches", "patch", "log_every", "save_every", "validate_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require(
            "patch", self.patch >= 8, "at least 8 LR pixels: smaller crops show an encoder mostly its own border"
        )
        self._require("scales", len(self.scales) >= 1, "at least one scale, such as (2, 3, 4)")
        self._require("seed", 0 <= self.seed < 2**64, "from 0 to 2**64 - 1")
        self._require("learning_rate", 0 < self.learning_rate < 1, "between 0 and 1")
        self._require("betas", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two values in [0, 1)")
        self._require("ema", 0 <= self.ema < 1, "in [0, 1)")
        self._require("fft_weight", self.fft_weight >= 0, "0 or more")
        self._require("warmup", self.warmup >= 0, "0 or more")
        self._require("milestones", list(self.milestones) == sorted(self.milestones), "in rising order")
        self._require(
            "validation", not self.validation or self.validation != self.data, "other pictures than those trained on"
        )
        self._require("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        if self.final_learning_rate is not None:
            fits = 0 <= self.final_learning_rate <= self.learning_rate
            self._require("final_learning_rate", fits, f"between 0 and learning_rate = {self.learning_rate}")
        object.__setattr__(self, "sizes", Sizes(self.sizes))  # a plain dict is welcome, a frozen one is kept
        models.check_names(self.encoder, self.upsampler, self.scales, self.sizes)

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"recipe: {name} is {getattr(self, name)!r}, expected {expected}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Make a recipe from plain values (JSON, command line); a name it does not know raises with the nearest one."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(known)}"
                raise ValueError(f"recipe: unknown field {name!r}; {hint}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the optimiser step number `step`, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.final_learning_rate is None:
            return self.learning_rate * 0.5 ** sum(step >= milestone for milestone in self.milestones)
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        swing = (self.learning_rate - self.final_learning_rate) / 2
        return self.final_learning_rate + swing * (1 + math.cos(math.pi * progress))

    def build(self) -> models.SRModel:
        """A fresh model for this recipe; its first weights come from torch's generator as it stands."""
        return models.build(self.encoder, self.upsampler, self.scales, **self.sizes)

    @property
    def model_name(self) -> str:
        """Encoder, upsampler and sizes in one word, as run folders are called."""
        return "-".join([self.encoder, self.upsampler, *(f"{name}={value}" for name, value in self.sizes.items())])


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _are(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(kind, value))


# type of a field -> whether a value is one, in words
_KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (_is_whole, "a whole number"),
    float: (_is_number, "a finite number"),
    float | None: (lambda value: value is None or _is_number(value), "a finite number, or None"),
    bool: (lambda value: isinstance(value, bool), "True or False"),
    str: (lambda value: isinstance(value, str), "text"),
    tuple[int, ...]: (_are(_is_whole), "whole numbers in a tuple, such as (2, 3, 4)"),
    tuple[float, float]: (_are(_is_number), "two finite numbers in a tuple"),
    Sizes: (lambda value: isinstance(value, Mapping), "names with values, such as {'channels': 16}"),
}


def _recipes() -> dict[str, tuple[Recipe, str]]:
    """Name -> recipe, where its values come from."""
    # seconds: shows that everything works
    smoke = Recipe(
        "edsr-tiny",
        "igconv",
        data="demo",
        steps=20,
        micro_batch=2,
        micro_batches=2,
        patch=16,
        learning_rate=1e-3,
        final_learning_rate=1e-5,
        ema=0.9,
        log_every=5,
        save_every=20,
    )
    # Three minutes on two cores for a model that beats bicubic. A plain IGConv spends them learning what interpolation
    # does (32.9 dB at x2 after 400 steps), so this one paints what bicubic lacks.
    demo = Recipe(
        "edsr-tiny",
        "igconv",
        sizes={"skip": "bicubic", "implicit_dim": 128},
        data="demo",
        steps=1800,
        micro_batch=4,
        micro_batches=3,
        patch=32,
        learning_rate=2e-3,
        final_learning_rate=1e-5,
        warmup=50,
        ema=0.99,
        log_every=20,
        save_every=200,
    )
    # an hour or two on two cores: the model in data/weights
    tiny = Recipe("edsr-tiny", "igconv", steps=16_000, learning_rate=2e-3, final_learning_rate=1e-6, warmup=200)
    edsr = Recipe()
    # a cosine over 1000k steps, 64 crops of 64 pixels
    smfanet = Recipe(
        "smfanet+", "igconv", steps=1_000_000, micro_batch=16, patch=64, learning_rate=1e-3, final_learning_rate=1e-6
    )
    rdn = Recipe(
        "rdn",
        "igconv+",
        steps=1_000_000,
        micro_batch=8,
        milestones=(200_000, 400_000, 600_000, 800_000),
        ema=0.0,
        fft_weight=0.05,
    )
    rcan = Recipe(
        "rcan",
        "igconv+",
        (2, 3, 4, 8),
        {"max_scale": 8},
        steps=1_000_000,
        betas=(0.9, 0.999),
        milestones=(200_000, 400_000, 600_000, 800_000),
        ema=0.0,
        fft_weight=0.05,
    )
    # inferred: no released configuration trains these encoders with IGConv
    imdn = Recipe(
        "imdn",
        "igconv",
        steps=1_000_000,
        learning_rate=2e-4,
        betas=(0.9, 0.999),
        milestones=(200_000, 400_000, 600_000, 800_000),
        ema=0.0,
    )
    bsrn = Recipe("bsrn", "igconv", steps=1_000_000, micro_batch=16, learning_rate=1e-3, final_learning_rate=1e-6)
    ours, official = "this project", "the official code's configuration"
    inferred = "inferred, no released configuration has it:"
    return {
        "smoke": (smoke, ours),
        "demo": (demo, ours),
        "edsr-tiny-igconv": (tiny, ours),
        "edsr-igconv": (edsr, f"{official} EDSRIG_DIV2K; data DIV2K"),
        "edsr-igconv+": (_plus(edsr), f"{official} EDSRIGPlus_DIV2K; data DIV2K"),
        "smfanet+-igconv": (smfanet, f"{official} SMFANet_IG_DF2K; data DIV2K and Flickr2K"),
        "smfanet+-igconv+": (_plus(smfanet), f"{official} SMFANet_IGPlus_DF2K; data DIV2K and Flickr2K"),
        "rdn-igconv": (dataclasses.replace(rdn, upsampler="igconv", fft_weight=0.0), f"{inferred} as rdn-igconv+"),
        "rdn-igconv+": (rdn, f"{official} RDN_IGPlus_DIV2K; data DIV2K"),
        "rcan-igconv": (dataclasses.replace(rcan, upsampler="igconv", fft_weight=0.0), f"{inferred} as rcan-igconv+"),
        "rcan-igconv+": (rcan, f"{official} RCAN_IGPlus_DIV2K_S2348; data DIV2K, whose pictures hold x8 crops"),
        "edsr-baseline-igconv": (dataclasses.replace(edsr, encoder="edsr-baseline"), f"{inferred} as edsr-igconv"),
        "edsr-baseline-igconv+": (
            _plus(dataclasses.replace(edsr, encoder="edsr-baseline")), f"{inferred} as edsr-igconv+"),
        "smfanet-igconv": (dataclasses.replace(smfanet, encoder="smfanet"), f"{inferred} as smfanet+-igconv"),
        "smfanet-igconv+": (_plus(dataclasses.replace(smfanet, encoder="smfanet")), f"{inferred} as smfanet+-igconv+"),
        "imdn-igconv": (imdn, f"{inferred} the schedule of IMDN's paper, crops of 48 as for EDSR; data DIV2K"),
        "imdn-igconv+": (_plus(imdn), f"{inferred} as imdn-igconv, the loss of IGConv+"),
        "bsrn-igconv": (bsrn, f"{inferred} batch and learning rate of BSRN's paper; data DIV2K and Flickr2K"),
        "bsrn-igconv+": (_plus(bsrn), f"{inferred} as bsrn-igconv, the loss of IGConv+"),
    }  # fmt: skip


def _plus(recipe: Recipe) -> Recipe:
    """The same for IGConv+, with its frequency loss."""
    return dataclasses.replace(recipe, upsampler="igconv+", fft_weight=0.05)


RECIPES: dict[str, Recipe] = {name: recipe for name, (recipe, _) in _recipes().items()}
"""Named recipes. Change one with `dataclasses.replace(RECIPES["demo"], steps=100)`. The paper's data have to be given
as a folder; without, they train on `bsd400`."""

SOURCES: dict[str, str] = {name: source for name, (_, source) in _recipes().items()}
"""Where the values of each named recipe come from."""


def field_docs() -> dict[str, str]:
    """The sentence below each field of `Recipe`, for `srlab train --help`."""
    body = ast.parse(inspect.getsource(Recipe)).body[0].body
    docs = {}
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            docs[typing.cast(ast.Name, field.target).id] = inspect.cleandoc(below.value.value).replace("\n", " ")
    return docs
