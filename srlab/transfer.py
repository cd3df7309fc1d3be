"""Transfer room: a training that begins with the weights of another one, as x3 and x4 models often begin with x2's.

Takes a fresh model and a weights file or name; copies the encoder, and of the upsampler what fits; gives a note for the
card of the new weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srlab import runtime, weights
from srlab.models import SRModel


class StartError(ValueError):
    """Weights that cannot be the start of this training; the message says why."""


def start_from(model: SRModel, source: str) -> dict[str, Any] | None:
    """Copy the encoder of other weights into `model`, and of their upsampler what has the same name and shape.

    Args:
        model: fresh; changed in place.
        source: a weights file or a name of `weights.names()`; "" leaves the model alone.

    Returns:
        A note for the card: the source, sha256 of its file, how many of the upsampler's tensors were copied and how
        many stay new. None for "".

    Raises:
        StartError: another encoder, or one that was trained on other units; nothing has been copied then.
        ValueError: neither such a file nor such a name.
    """
    if not source:
        return None
    sha256 = sha256_of(source)
    other = weights.load_checkpoint(source) if Path(source).is_file() else weights.load(source)
    encoder, wanted = other.encoder.state_dict(), model.encoder.state_dict()
    differ = [name for name in {**encoder, **wanted} if _shape(encoder, name) != _shape(wanted, name)]
    if differ:
        name = differ[0]
        raise StartError(
            f"start_from {source}: its encoder is another one: {len(differ)} of {len(wanted)} tensors differ, such as "
            f"{name}, {_shape(encoder, name) or 'absent'} there and {_shape(wanted, name) or 'absent'} here"
        )
    if other.img_range != model.img_range or not torch.equal(other.mean, model.mean):
        raise StartError(
            f"start_from {source}: its encoder saw pictures of img_range {other.img_range} less the mean "
            f"{other.mean.flatten().tolist()}, this model has {model.img_range} and {model.mean.flatten().tolist()}: "
            f"give img_range and mean in the sizes of the recipe"
        )
    theirs, ours = other.upsampler.state_dict(), model.upsampler.state_dict()
    fitting = {name: theirs[name] for name in ours if _shape(theirs, name) == _shape(ours, name)}
    model.encoder.load_state_dict(encoder)
    model.upsampler.load_state_dict({**ours, **fitting})
    copied = {"upsampler_copied": len(fitting), "upsampler_new": len(ours) - len(fitting)}
    return {"source": source, "sha256": sha256, **copied}


def same_start(source: str, note: Mapping[str, Any] | None) -> bool:
    """Whether `source`, where it is now, is the file that `note` was made from."""
    try:
        return bool(source and note) and sha256_of(source) == note["sha256"]
    except ValueError:  # gone since
        return False


def sha256_of(source: str) -> str:
    """Hash of a weights file, given by path or name.

    Raises:
        ValueError: there is neither such a file nor such a name; near names are listed.
    """
    path = Path(source)
    if not path.is_file():
        if path.suffix and source not in weights.names():
            raise StartError(f"start_from: no weights file {source} (looked at {path.absolute()})")
        if pinned := weights.card(source).sha256:
            return pinned
        path = runtime.repo_data("weights", f"{source}.safetensors")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None
