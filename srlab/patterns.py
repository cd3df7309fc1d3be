"""Patterns room: test pictures whose answer is known, and what methods make of them, octave by octave.

A zone plate, gratings, letters and a photograph are made small and enlarged again by any callables (lr, scale) -> sr. A
`Lens` does so beforehand, so that a slider over frequencies answers at once; notebook 06 draws what it sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from srlab import datasets, images, resize, spectra

PATTERNS = ("zone plate", "grating", "text", "photo")


def text_pattern(size: int) -> Tensor:
    """Lines of letters from large to small, black on white, (3, size, size) float in [0, 1]."""
    page = Image.new("L", (size, size), 255)
    draw, top, height = ImageDraw.Draw(page), 2, size // 5
    while height >= 7 and top < size:
        font = ImageFont.load_default(height)
        draw.text((3, top), "Super-resolution 0123456789 " * 3, fill=0, font=font)
        top, height = top + round(1.15 * height), round(0.78 * height)
    return torch.from_numpy(np.array(page)).float().div(255).expand(3, -1, -1).clone()


def pattern(name: str, size: int, frequency: float) -> Tensor:
    """A test picture (3, size, size) float in [0, 1].

    Args:
        name: one of `PATTERNS`.
        size: side in pixels; for "photo" at most 362.
        frequency: cycles per pixel, of the grating; the others hold all frequencies at once.

    Raises:
        ValueError: no such pattern, or a photograph larger than there is.
    """
    if name == "grating":
        return spectra.grating(size, frequency, angle=30.0, channels=3)
    if name == "zone plate":
        return spectra.zone_plate(size, channels=3)
    if name == "text":
        return text_pattern(size)
    if name == "photo":
        photographs = datasets.load("demo")
        photograph = photographs.image(photographs.names.index("astronaut"))[:, 30:, 150:]
        if size > (largest := min(photograph.shape[1:])):
            raise ValueError(f"size is {size}, expected at most {largest} for the photograph: it ends there")
        return images.to_float(photograph[:, :size, :size])
    raise ValueError(f"no test pattern {name!r}: expected one of {', '.join(PATTERNS)}")


def octave(picture: Tensor, frequency: float) -> Tensor:
    """What a picture (..., H, W) holds within half an octave of `frequency` (cycles per pixel), mean zero.

    The picture is mirrored at its borders first, so that they make no jump.
    """
    height, width = picture.shape[-2:]
    wide = torch.cat([picture, picture.flip(-1)], dim=-1)
    wide = torch.cat([wide, wide.flip(-2)], dim=-2)
    f = torch.hypot(torch.fft.fftfreq(2 * height)[:, None], torch.fft.rfftfreq(2 * width)[None])
    inside = (f > frequency / math.sqrt(2)) & (f <= frequency * math.sqrt(2))
    return torch.fft.irfft2(torch.fft.rfft2(wide) * inside, s=wide.shape[-2:])[..., :height, :width]


class View(NamedTuple):
    """One test pattern, as it is and as each method brings it back."""

    pictures: dict[str, Tensor]
    """name -> luma (H, W) in [0, 1]; "true" first"""
    octaves: dict[str, Tensor]
    """name -> the octave of that picture, (H, W)"""
    gain: dict[str, float]
    """name -> amplitude of the octave over the true one's"""
    agreement: dict[str, float]
    """name -> correlation of the octave with the true one: 1 is the right detail in the right place"""


class Lens:
    """Test patterns through methods, computed beforehand, so that a slider answers at once.

    Args:
        methods: name -> callable (lr (B, 3, h, w), scale) -> sr.
        scale: upsampling factor.
        frequencies: the stops of the slider, in cycles per HR pixel.
        size: HR side, a multiple of `scale`, at most 362 (see `pattern`).
    """

    def __init__(
        self,
        methods: Mapping[str, Callable[[Tensor, int], Tensor]],
        frequencies: Sequence[float],
        scale: int = 4,
        size: int = 144,
    ):
        if size % scale:
            raise ValueError(f"size is {size}, expected a multiple of the scale {scale}")
        self.scale, self.frequencies = scale, tuple(frequencies)
        self._views = {}
        for name in PATTERNS:
            stops = self.frequencies if name == "grating" else self.frequencies[:1]
            hr = torch.stack([pattern(name, size, stop) for stop in stops])
            lr = resize.imresize(hr, 1 / scale).clamp(0, 1)
            with torch.no_grad():
                through = {label: method(lr, scale).clamp(0, 1) for label, method in methods.items()}
            self._views[name] = {label: _luma(pictures) for label, pictures in {"true": hr, **through}.items()}

    def look(self, name: str, frequency: float) -> View:
        """The pattern `name` and its octave round `frequency`; a grating is the one of the nearest stop.

        Raises:
            ValueError: no such pattern.
        """
        if name not in self._views:
            raise ValueError(f"no test pattern {name!r}: expected one of {', '.join(PATTERNS)}")
        nearest = int(np.argmin([abs(stop - frequency) for stop in self.frequencies])) if name == "grating" else 0
        pictures = {label: stack[nearest] for label, stack in self._views[name].items()}
        parts = {label: octave(picture, frequency) for label, picture in pictures.items()}
        true = parts["true"]
        gain = {label: (part.norm() / true.norm().clamp_min(1e-6)).item() for label, part in parts.items()}
        agreement = {
            label: ((part * true).sum() / (part.norm() * true.norm()).clamp_min(1e-6)).item()
            for label, part in parts.items()
        }
        return View(pictures, parts, gain, agreement)


def _luma(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, H, W), 0 black and 1 white."""
    return ((images.rgb_to_y(pictures)[:, 0] - 16) / 219).float()
