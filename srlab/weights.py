"""Room "weights": trained models by name or from a file.

`load("imdn-x2")` fetches a published checkpoint (pinned address and hash) or opens one that ships in `data/weights/`;
`load_checkpoint(path)` reads a file or a state dict; both give an `SRModel` ready to evaluate. `card(name)` says who
trained it, on what, under which licence; `save` writes our own files.

Three kinds of files are read: ours (safetensors whose header holds the model's configuration), fixed-scale checkpoints
of SMFANet, IMDN, BSRN and EDSR as their authors published them, and the official IGConv releases for EDSR, SMFANet+,
RCAN and RDN. `encoders/public.py` knows how public tensors are called. A pickle that holds code is refused.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from srlab import fetch, models, runtime
from srlab.encoders import public
from srlab.encoders.public import CheckpointError
from srlab.models import SRModel

__all__ = [
    "PROVENANCE",
    "Card",
    "CheckpointError",
    "card",
    "cards",
    "load",
    "load_checkpoint",
    "load_tensors",
    "names",
    "read_header",
    "save",
]

HEADER = "srlab"  # key of our JSON in the metadata of a safetensors file

PROVENANCE = {
    "A": "x3 and x4 were fine-tuned from x2",
    "B": "scales trained separately, apparently from one random seed",
    "C": "scales trained separately, unrelated",
}


@dataclass(frozen=True)
class Card:
    """What is known about a set of weights."""

    name: str
    family: str
    scales: tuple[int, ...]
    trained_on: str
    parameters: int
    licence: str
    provenance: str
    """A, B or C (see `PROVENANCE`), or a few words."""
    inferred_from: str
    """How the provenance was found out; empty if it is simply known."""
    citation: str
    url: str = ""
    sha256: str = ""
    size: int = 0
    """Bytes of the file."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the file's header says: recipe, step, commit, scores."""

    @property
    def is_here(self) -> bool:
        """Whether the file is on this machine, whole (bundled, in the mirror folder or in the cache)."""
        return not self.url or fetch.find_file(self.url, self.sha256, self.size) is not None


@dataclass(frozen=True)
class _Series:
    """Published checkpoints of one model, one per scale."""

    family: str
    file: str
    """Path in `data/registry/weights.csv`, with the scale left open."""
    trained_on: str
    parameters: dict[int, int]
    licence: str
    provenance: str
    cosines: str
    """Cosines between same-named weights of two scales, x2-x3, x2-x4, x3-x4: median over the hidden layers; first."""
    citation: str


_SMFANET = "Zheng-MJ/SMFANet/a05e0bb554bbbb80cd27d8fd2b78d4228c657170/pretrain/"
_IMDN = "Zheng222/IMDN/8f158e6a5ac9db6e5857d9159fd4a6c4214da574/checkpoints/"
_BSRN = "xiaom233/BSRN/2d63d5239c9fa9810b9c1aea93e98d42ece09efc/experiments/pretrained_models/"
_ZHENG_2024 = "Zheng, Sun, Dong, Pan: SMFANet, ECCV 2024"
_SMFANET_SIZE = {2: 185_628, 3: 190_503, 4: 197_328}

_SERIES = {
    "smfanet-div2k": _Series(
        "SMFANet", _SMFANET + "SMFANet_DIV2K_100w_x{}SR.pth", "DIV2K", _SMFANET_SIZE, "Apache-2.0",
        "B", "0.06, 0.06, 0.05; of their first layers 0.83, 0.82, 0.86", _ZHENG_2024,
    ),
    "smfanet-df2k": _Series(
        "SMFANet", _SMFANET + "SMFANet_DF2K_100w_x{}SR.pth", "DF2K", _SMFANET_SIZE, "Apache-2.0",
        "B", "0.07, 0.05, 0.07; of their first layers 0.85, 0.81, 0.86", _ZHENG_2024,
    ),
    "smfanet+-df2k": _Series(
        "SMFANet+", _SMFANET + "SMFANet_plus_DF2K_100w_x{}SR.pth", "DF2K", {2: 480_300, 3: 486_795, 4: 495_888},
        "Apache-2.0", "B", "0.05, 0.05, 0.07; of their first layers 0.84, 0.84, 0.89", _ZHENG_2024,
    ),
    "imdn": _Series(
        "IMDN", _IMDN + "IMDN_x{}.pth", "DIV2K", {2: 694_404, 3: 703_059, 4: 715_176},
        "none stated: read locally, do not redistribute", "A", "0.92, 0.88, 0.93; of their first layers above 0.99",
        "Hui, Gao, Yang, Wang: Information Multi-distillation Network, ACM MM 2019, arXiv 1909.11856",
    ),
    "bsrn": _Series(
        "BSRN", _BSRN + "net_g_BSRN_x{}.pth", "DF2K", {2: 331_628, 3: 340_283, 4: 352_400}, "MIT",
        "B", "0.04, 0.04, 0.04; of their first layers 0.92, 0.93, 0.92",
        "Li, Liu, Chen, Cai, Gu, Qiao, Dong: Blueprint Separable Residual Network, CVPRW 2022, arXiv 2205.05996",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Untold:
    """What the tensors of a public checkpoint cannot tell; None stands for the published model's value."""

    res_scale: float | None
    img_range: float | None
    max_scale: int | None
    fgrep: bool | None
    scales: tuple[int, ...] | None

    def refuse(self, names: Sequence[str], why: str) -> None:
        """Raise if one of these arguments was given."""
        if said := [name for name in names if getattr(self, name) is not None]:
            raise CheckpointError(f"{', '.join(said)} cannot be chosen: {why}")


def names() -> list[str]:
    """Names that `load` knows: published ones first, then those that ship with the project."""
    return [*_published(), *_bundled()]


def card(name: str) -> Card:
    """The card of one set of weights; nothing is downloaded.

    Raises:
        ValueError: unknown name; the message lists near ones.
    """
    if name in _published():
        series_name, scale = _published()[name]
        series, entry = _SERIES[series_name], _entry(name)
        return Card(
            name=name,
            family=series.family,
            scales=(scale,),
            trained_on=series.trained_on,
            parameters=series.parameters[scale],
            licence=series.licence,
            provenance=series.provenance,
            inferred_from=(
                f"the weights themselves, not the authors' word: cosines of same-named weights of two scales "
                f"(x2-x3, x2-x4, x3-x4), median over the hidden layers: {series.cosines}"
            ),
            citation=series.citation,
            url=entry.url,
            sha256=entry.sha256,
            size=entry.size,
        )
    return _card_of_file(_known(name))


def cards() -> list[Card]:
    """All cards, in the order of `names()`."""
    return [card(name) for name in names()]


def load(name: str) -> SRModel:
    """Load a model by name, in evaluation mode, fetching its file if it is not here yet.

    Raises:
        ValueError: unknown name; the message lists near ones.
        srlab.fetch.FetchError: the file cannot be had.
        CheckpointError: a bundled file is damaged.
    """
    return load_checkpoint(fetch.fetch(_entry(name)) if name in _published() else _known(name))


def load_checkpoint(
    source: str | os.PathLike | Mapping[str, Tensor],
    *,
    res_scale: float | None = None,
    img_range: float | None = None,
    max_scale: int | None = None,
    fgrep: bool | None = None,
    scales: Sequence[int] | None = None,
) -> SRModel:
    """Read a checkpoint file, or a state dict, as a model in evaluation mode.

    Sizes are read from the shapes of the tensors; each tensor must fit, exactly once. What tensors cannot tell is an
    argument, with the published model's value when left out. Files of our own tell everything themselves.

    Args:
        source: a .safetensors file of ours or of a public model's tensors, a .pth file, or a mapping name -> tensor.
            Wrapped dicts ("params_ema", "params", "state_dict") and the prefix "module." are unwrapped.
        res_scale: weight of EDSR's residual branches; left out: 0.1 from 256 channels on, else 1 (EDSR's paper).
        img_range: what an input value of 1 becomes before the encoder; left out: 255 for fixed-scale EDSR, else 1.
        max_scale: scale above which IGConv's phase is frozen; left out: 8 for RCAN, else 4 (official configurations).
        fgrep: whether IGConv averages its kernels over flips and rotations; left out: exactly for IGConv+.
        scales: the scales an IGConv model is for; left out: (2, 3, 4), and 8 with RCAN (official configurations).

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: damaged, cut short, code inside, unknown architecture, names or shapes that do not fit
            (the first ones are named), NaN or infinite weights, or an argument that this file has no use for.
    """
    untold = _Untold(res_scale, img_range, max_scale, fgrep, None if scales is None else tuple(scales))
    if isinstance(source, Mapping):
        with _about("the mapping"):
            return _from_public(public.unwrap(source), untold)
    path = Path(source)
    header = read_header(path) if path.suffix == ".safetensors" else None
    content = load_tensors(path)
    with _about(path):
        return _from_ours(content, header, untold) if header else _from_public(public.unwrap(content), untold)


def load_tensors(path: str | os.PathLike) -> dict[str, Any]:
    """Read a .pth, .pt or .ckpt file (tensors, numbers, text, lists, dicts; never code) or a safetensors file.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file holds code, is cut short or damaged, or is no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file {path}; models with a name: {', '.join(names())}")
    if path.suffix == ".safetensors":
        return _reading(path, lambda: safetensors.torch.load_file(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on pickle protocols; what cannot be read is said below
        content = _reading(path, lambda: torch.load(path, map_location="cpu", weights_only=True))
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a dict of tensors by name")
    return content


def save(model: SRModel, path: str | os.PathLike, card: Mapping[str, Any]) -> Path:
    """Write a model as one safetensors file: tensors, configuration and card; whole or not at all.

    Args:
        model: made by `models.build`, so that its configuration is known.
        path: name of the file, ending in .safetensors.
        card: what is known about the weights, JSON-able: fields of `Card` such as `trained_on`, and anything else.

    Raises:
        ValueError: another suffix, no configuration, or NaN or infinite weights.
        OSError: the file cannot be written; the disk may be full.
        TypeError: something in the card cannot be written as JSON.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path is {path}, expected a name ending in .safetensors")
    if model.config is None:
        raise ValueError(
            "this model has no configuration, so it could not be built again when loaded: it was put together by hand "
            "or instantiated for one scale; save the model it came from, and instantiate after loading"
        )
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with _about("the model"):
        public.check_finite(state)
    header = {HEADER: json.dumps({"config": model.config, "card": dict(card)}, allow_nan=False)}
    try:
        return runtime.atomic_write(path, lambda draft: safetensors.torch.save_file(state, draft, header))
    except SafetensorError as error:  # its word for what Python calls an OSError
        raise OSError(f"{path} cannot be written: {error}") from error


def _published() -> dict[str, tuple[str, int]]:
    """Name -> (series, scale)."""
    return {f"{name}-x{scale}": (name, scale) for name, series in _SERIES.items() for scale in series.parameters}


def _entry(name: str) -> fetch.PinnedFile:
    """Address, hash and size of a published file."""
    series, scale = _published()[name]
    path = _SERIES[series].file.format(scale)
    return next(entry for entry in fetch.read_registry("weights") if entry.path == path)


def _bundled() -> dict[str, Path]:
    return {path.stem: path for path in sorted(runtime.repo_data("weights").glob("*.safetensors"))}


def _known(name: str) -> Path:
    """Path of a bundled file."""
    if name not in _bundled():
        near = difflib.get_close_matches(str(name), names(), n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise ValueError(f"no weights called {name!r}{hint} All names: {', '.join(names())}")
    return _bundled()[name]


def _card_of_file(path: Path) -> Card:
    """Card from the header of one of our files."""
    header = read_header(path)
    if header is None:
        raise CheckpointError(f"{path} has no header of ours: it was not written by srlab.weights.save")
    config, notes = header["config"], dict(header["card"])
    with safe_open(path, framework="pt") as file:
        parameters = sum(math.prod(file.get_slice(tensor).get_shape()) for tensor in file.offset_keys())
    return Card(
        name=path.stem,
        family=notes.pop("family", f"{config['encoder']} with {config['upsampler']}"),
        scales=tuple(config["scales"]),
        trained_on=notes.pop("trained_on", notes.pop("data", "not stated")),
        parameters=parameters,
        licence=notes.pop("licence", "MIT"),
        provenance=notes.pop("provenance", "trained by this project"),
        inferred_from=notes.pop("inferred_from", ""),
        citation=notes.pop("citation", "SR Lab"),
        size=path.stat().st_size,
        notes=notes,
    )


def read_header(path: Path) -> dict[str, Any] | None:
    """Our part of a safetensors header, {"config": ..., "card": ...}; None if the file is another's.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: damaged, or a header in our name that `save` has not written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file {path}")

    def read() -> dict[str, str]:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}

    metadata = _reading(path, read)
    if HEADER not in metadata:
        return None
    header = _reading(path, lambda: json.loads(metadata[HEADER]))
    parts = [header.get(name) for name in ("config", "card")] if isinstance(header, dict) else [None]
    if not all(isinstance(part, dict) for part in parts) or not parts[0].keys() >= {"encoder", "upsampler", "scales"}:
        raise CheckpointError(
            f"{path} has a header of ours that lacks the configuration or the card: was it written by another program "
            f"than srlab.weights.save?"
        )
    return header


def _reading(path: Path, read: Callable[[], Any]) -> Any:
    """Call `read`, turning what libraries say about a bad file into what is wrong with it."""
    damaged = f"{path} cannot be read as a checkpoint ({path.stat().st_size} bytes)"
    try:
        return read()
    except pickle.UnpicklingError as error:
        # torch's own message advises to load the file unsafely: it stays in the chain, and is not repeated here
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{path} was refused: besides tensors it asks for code to be run on loading ({asked[1]}), which a "
                f"checkpoint has no need of; nothing of it was executed. Ask its author for the bare state dict or for "
                f"safetensors"
            ) from error
        raise CheckpointError(f"{damaged}: a web page, a text, a plain pickle, or damaged") from error
    except Exception as error:  # a changed byte can send an unpickler anywhere
        problem = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{damaged}: cut short (a broken download?) or of another kind ({problem})") from error


@contextlib.contextmanager
def _about(origin: str | Path) -> Iterator[None]:
    """Turn whatever content leads to, which can be anything, into an error that names where it came from."""
    try:
        yield
    except Exception as error:
        said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{origin}: {said}") from error


def _from_public(state: dict[str, Tensor], untold: _Untold) -> SRModel:
    """Model from a state dict with public names."""
    family, arguments, ours = public.from_public(state, max_scale=untold.max_scale, fgrep=untold.fgrep)
    implicit = "scale" not in arguments
    if not implicit:
        untold.refuse(("max_scale", "fgrep", "scales"), f"this {family.title} is for x{arguments['scale']} alone")
    if family is not public.EDSR:
        untold.refuse(("res_scale",), f"{family.title} has none, only EDSR does")
    else:
        usual = 0.1 if arguments["channels"] >= 256 else 1.0
        arguments["res_scale"] = usual if untold.res_scale is None else untold.res_scale
    usual = 1.0 if implicit else family.fixed_range
    arguments["img_range"] = usual if untold.img_range is None else untold.img_range
    if implicit:
        arguments["scales"] = untold.scales or ((2, 3, 4, 8) if family.max_scale == 8 else (2, 3, 4))
    else:
        arguments["scales"] = (arguments.pop("scale"),)
    return _fill(models.build(**arguments), ours)


def _from_ours(state: dict[str, Tensor], header: dict[str, Any], untold: _Untold) -> SRModel:
    untold.refuse(list(vars(untold)), "the file says it itself")
    public.check_finite(state)
    return _fill(models.build(**header["config"]), state)


def _fill(model: SRModel, state: Mapping[str, Tensor]) -> SRModel:
    """Copy the tensors in, each to its place; any left over, absent or of another shape is an error."""
    wanted = model.state_dict()
    missing, unused = [name for name in wanted if name not in state], [name for name in state if name not in wanted]
    if missing or unused:
        raise CheckpointError(
            f"tensors and model do not match: {len(missing)} are missing ({public.some(missing) or 'none'}) and "
            f"{len(unused)} have no place ({public.some(unused) or 'none'}), in our names; a file of another variant?"
        )
    wrong = [name for name in wanted if wanted[name].shape != state[name].shape]
    if wrong:
        first = wrong[0]
        raise CheckpointError(
            f"{len(wrong)} tensors have another shape than the rest of the file asks for; the first is {first!r} (our "
            f"name) with {tuple(state[first].shape)}, expected {tuple(wanted[first].shape)}"
        )
    model.load_state_dict(state)
    return model.eval()
