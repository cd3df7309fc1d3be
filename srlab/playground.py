"""Playground room: somebody's picture in, enlarged pictures and what can be measured about them out.

Takes the bytes of an uploaded file, or a picture; gives the picture enlarged by bicubic and by a model, scores where
there is a truth to score against, and spectra. Everything stays in memory: nothing is written, so two people who use
one machine cannot meet. `dashboard.py` puts sliders around it.
"""

from __future__ import annotations

import functools
import io
import re
import tempfile
import time
import warnings
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from srlab import evaluate, images, machine, metrics, spectra, weights
from srlab.images import PictureError
from srlab.resize import imresize
from srlab.upsamplers import ScaleError

SCALES = (2, 8)
"""Smallest and largest scale on offer; models are asked for those they were not trained for as well."""
LARGEST_FILE = 9_000_000
"""Bytes: a Jupyter server drops the connection at messages of 10 MiB (tornado's `websocket_max_message_size`)."""
MOST_PIXELS = 40_000_000
WORKING_SIDE = 512
"""Pictures with a truth are made to fit into this square first, so that every answer comes at once."""
OUTPUT_PIXELS = 600_000
"""Without a truth, the middle of a picture is enlarged, as much as gives so many pixels."""
SMALLEST_SIDE, SMALLEST_WITH_TRUTH = 8, 64


@dataclass(frozen=True)
class Photo:
    """A picture to play with."""

    name: str
    pixels: Tensor
    """uint8 (3, H, W)"""
    notes: tuple[str, ...] = ()
    """what could not be kept when its file was read"""


@dataclass(frozen=True)
class Enlarged:
    """One picture, enlarged twice."""

    lr: Tensor
    """uint8 (3, h, w)"""
    bicubic: Tensor
    """uint8 (3, h * scale, w * scale)"""
    sr: Tensor
    """the same by the model"""
    truth: Tensor | None
    """what both should be; None if nobody knows"""
    scale: int
    seconds: float
    """that the model took"""
    notes: tuple[str, ...]

    @property
    def psnr_y(self) -> dict[str, float]:
        """PSNR on luminance in dB of "bicubic" and "model"; empty without a truth."""
        if self.truth is None:
            return {}
        both = {"bicubic": self.bicubic, "model": self.sr}
        return {name: metrics.STANDARD.psnr(picture, self.truth, self.scale) for name, picture in both.items()}

    @property
    def png(self) -> bytes:
        """The model's picture as a PNG file."""
        buffer = io.BytesIO()
        Image.fromarray(self.sr.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
        return buffer.getvalue()


def read_upload(name: str, content: bytes | memoryview) -> Photo:
    """Read an uploaded file, whatever its name says it is.

    Args:
        name: the file's name on the other machine; used in messages only.
        content: its bytes.

    Returns:
        The picture as 8-bit RGB on white, with notes on what that cost (16 bits, transparency, further frames, ...).

    Raises:
        PictureError: no picture, cut short, too many bytes or pixels, or too small. The message is for the person who
            chose the file.
    """
    name = Path(name.replace("\\", "/")).name or "picture"
    if len(content) > LARGEST_FILE:
        raise PictureError(f"{name} {too_large(len(content))}")
    with tempfile.TemporaryDirectory() as folder:  # the reader of pictures wants a path
        path = Path(folder) / re.sub(r"[^\w. -]", "_", name)[-100:]
        path.write_bytes(content)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", images.PictureWarning)
            try:
                _check_pixels(path)
                pixels = images.load_image(path)
            except PictureError as error:
                raise PictureError(str(error).replace(str(path), name)) from None
    height, width = pixels.shape[1:]
    if min(height, width) < SMALLEST_SIDE:
        raise PictureError(
            f"{name} is {width} x {height} pixels, expected at least {SMALLEST_SIDE} x {SMALLEST_SIDE}: "
            f"a model looks at the surroundings of each pixel, and here are none"
        )
    found = [str(warning.message) for warning in caught if issubclass(warning.category, images.PictureWarning)]
    if (pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all():
        found.append(f"{name} is grey: its three colours are the same, and so are the result's, nearly")
    return Photo(name, pixels, tuple(found))


def too_large(size: int) -> str:
    """What to do with a file of so many bytes, as the end of a sentence."""
    return (
        f"has {size / 1e6:,.0f} MB, at most {LARGEST_FILE / 1e6:.0f} MB can be sent through a browser: save it as a "
        f"JPEG or cut it; files of any size are enlarged by `srlab upscale FILE --scale 2`"
    )


def _check_pixels(path: Path) -> None:
    """Refuse a small file that unpacks to a huge picture, before it does. What is no picture is somebody else's."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
    except Exception:
        return
    if width * height > MOST_PIXELS:
        raise PictureError(
            f"{path} is {width} x {height} pixels, at most {MOST_PIXELS // 1_000_000} million are unpacked here: "
            f"cut it first, or use `srlab upscale`"
        )


def models_here() -> dict[str, tuple[int, ...] | None]:
    """Families of models on this machine -> scales there are weights for; None for one that takes any scale.

    Members of an experiment, called NAME-seedN, are left out: they differ by less than an eye can see.
    """
    found: dict[str, tuple[int, ...] | None] = {}
    for card in weights.cards():
        if not card.is_here or re.search(r"-seed\d+$", card.name):
            continue
        family = re.sub(r"-x\d+$", "", card.name)
        one_for_all = family == card.name and "igconv" in card.name
        found[family] = None if one_for_all else tuple(sorted({*(found.get(family) or ()), *card.scales}))
    one_for_all = [family for family, scales in found.items() if scales is None]
    return {family: found[family] for family in [*one_for_all, *(set_ for set_ in found if set_ not in one_for_all)]}


def enlarge(photo: Photo, family: str, scale: int, *, with_truth: bool) -> Enlarged:
    """Enlarge a picture by bicubic and by a model.

    Args:
        photo: the picture.
        family: a name of `models_here()`.
        scale: 2 to 8.
        with_truth: shrink the picture first and enlarge it again, so that the result can be scored; else enlarge it
            as it is, the middle of it if it is large.

    Raises:
        ScaleError: the family has no weights for this scale; the message names one that has.
        PictureError: the picture is too small to be shrunk.
    """
    _check_scale(family, scale)
    notes = list(photo.notes)
    truth, lr = _shrunk(photo, scale, notes) if with_truth else (None, _middle(photo, scale, notes))
    model, trained = _model(family, scale)
    if scale not in trained:
        notes.append(f"{family} was trained for {', '.join(f'x{s}' for s in trained)}: x{scale} is beyond its training")
    started = time.perf_counter()
    sr = evaluate.upscale(model, lr, scale)
    seconds = time.perf_counter() - started
    bicubic = evaluate.upscale(evaluate.Bicubic(), lr, scale)
    return Enlarged(lr, bicubic, sr, truth, scale, seconds, tuple(dict.fromkeys(notes)))


def _check_scale(family: str, scale: int) -> None:
    here = models_here()
    if family not in here:
        raise ValueError(f"no model {family!r} on this machine; here are {', '.join(here)}")
    trained = here[family]
    if trained is not None and scale not in trained:
        any_scale = next((name for name, scales in here.items() if scales is None), None)
        other = f", or {any_scale}, which paints any scale" if any_scale else ""
        raise ScaleError(
            f"{family} has weights for {', '.join(f'x{s}' for s in trained)} only, not for x{scale}: "
            f"choose one of these{other}"
        )


@functools.lru_cache(maxsize=16)
def _model(family: str, scale: int) -> tuple[torch.nn.Module, tuple[int, ...]]:
    """The model of a family with its kernel for one scale (faster, and equal), and the scales of its training."""
    model = weights.load(family if family in weights.names() else f"{family}-x{scale}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a scale beyond its training: said in words by the caller
        return model.instantiate(scale).to(machine.pick_device()), tuple(model.scales)


def _shrunk(photo: Photo, scale: int, notes: list[str]) -> tuple[Tensor, Tensor]:
    """The true picture and its small version."""
    height, width = photo.pixels.shape[1:]
    if min(height, width) < SMALLEST_WITH_TRUTH:
        raise PictureError(
            f"{photo.name} is {width} x {height} pixels, expected at least {SMALLEST_WITH_TRUTH} x "
            f"{SMALLEST_WITH_TRUTH} where it is shrunk first: choose to enlarge it as it is"
        )
    truth = photo.pixels
    if max(height, width) > WORKING_SIDE:
        share = WORKING_SIDE / max(height, width)
        size = max(SMALLEST_SIDE * scale, round(width * share)), max(SMALLEST_SIDE * scale, round(height * share))
        whole = Image.fromarray(truth.permute(1, 2, 0).contiguous().numpy())
        truth = torch.from_numpy(np.array(whole.resize(size, Image.Resampling.LANCZOS))).permute(2, 0, 1).contiguous()
        notes.append(f"the true picture here is {photo.name} reduced from {width} x {height} to {size[0]} x {size[1]}")
    truth = images.crop_to_multiple(truth, scale).contiguous()
    return truth, imresize(truth, Fraction(1, scale))


def _middle(photo: Photo, scale: int, notes: list[str]) -> Tensor:
    """As much of the middle of a picture as can be enlarged at once."""
    height, width = photo.pixels.shape[1:]
    most = OUTPUT_PIXELS / scale**2
    if height * width <= most:
        return photo.pixels
    h = min(height, max(int((most * height / width) ** 0.5), SMALLEST_SIDE))
    w = min(width, int(most / h))
    top, left = (height - h) // 2, (width - w) // 2
    notes.append(
        f"only the middle {w} x {h} pixels of {photo.name} ({width} x {height}) are enlarged here; "
        f"`srlab upscale` enlarges all of it"
    )
    return photo.pixels[:, top : top + h, left : left + w].contiguous()


def spectra_of(result: Enlarged) -> dict[str, tuple[Tensor, Tensor]]:
    """Radial power of the luminance per spatial frequency: name -> (cycles per pixel, power)."""
    pictures = {"true picture": result.truth, "bicubic": result.bicubic, "model": result.sr}
    found = {}
    rings = min(64, min(result.sr.shape[1:]) // 2)  # a small picture holds no finer ones
    for name, picture in pictures.items():
        if picture is not None:
            frequencies, power = spectra.radial_power_spectrum(images.rgb_to_y(picture)[0] / 255, rings=rings)
            found[name] = frequencies[1:], power[1:]  # frequency 0 is the mean brightness
    return found
