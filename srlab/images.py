"""The door between picture files and tensors.

Takes a path and gives a uint8 RGB tensor (3, H, W), whatever the file held: greyscale, 16-bit, palette, CMYK, alpha,
a rotated phone photograph. Gives tensors back to disk as PNG or JPEG, atomically. Also the few conversions every other
room agrees on: uint8 to float and back, the luma channel, the crop to a multiple of the scale.
"""

from __future__ import annotations

import difflib
import os
import secrets
import warnings
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

# Luma of ITU-R BT.601 in its 16..235 range, for R, G, B in [0, 1]; the numbers of MATLAB's rgb2ycbcr.
LUMA = (65.481, 128.553, 24.966)
LUMA_OFFSET = 16.0

_SAVE_OPTIONS = {
    ".png": {"format": "PNG", "compress_level": 4},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}
# What a decoder may raise on a damaged file; MemoryError and KeyboardInterrupt are not among them.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError)

# What a file named as a picture turns out to be, by its first bytes.
_OTHER_FILES = {
    b"version https://git-lfs": "a Git LFS pointer: the picture itself was not fetched (git lfs pull)",
    b"\x89PNG": "a PNG cut short or damaged in its header: copy or download it again",
    b"\xff\xd8": "a JPEG cut short or damaged in its header: copy or download it again",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF",
    b"\x93NUMPY": "a NumPy array",
}


class PictureError(ValueError):
    """A file that is there but can't be read as a picture. The message says what the file looks like."""


class PictureWarning(UserWarning):
    """A picture was read, but something in it could not be kept: alpha, bits beyond 8, further frames, inks."""


def load_image(path: str | os.PathLike[str]) -> Tensor:
    """Read a picture file as RGB, the way a viewer on a white page would show it.

    What is done with files that are not plain 8-bit RGB, each with a `PictureWarning` when something is lost:
    greyscale is repeated in three channels; 16-bit samples are rounded to 8 bits (colour: Pillow keeps the high byte);
    transparent pixels are composited on white; CMYK goes through Pillow's plain formula, without ink profile;
    the EXIF orientation is applied; of an animation the first frame is taken.

    Args:
        path: the picture file, in any format that Pillow knows (the name's suffix is not trusted).

    Returns:
        uint8 tensor (3, H, W), RGB, contiguous.

    Raises:
        FileNotFoundError: no such file; names that look alike are listed.
        IsADirectoryError: the path is a folder.
        PictureError: the file is damaged, cut short, too large or no picture at all.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, a picture file was expected; datasets.load opens whole folders")
    if not path.exists():
        raise FileNotFoundError(_missing(path))
    with path.open("rb") as file, warnings.catch_warnings():
        # A 100 megapixel photograph is a photograph; the error above about 179 megapixels stays.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(file)
        except UnidentifiedImageError:
            raise PictureError(f"{path} can't be read as a picture: it looks like {_looks_like(path)}") from None
        except Image.DecompressionBombError as error:
            raise PictureError(f"{path} is larger than this library decodes at once: {error}; cut it first") from None
        except _DECODER_ERRORS as error:
            raise PictureError(
                f"{path} has a damaged header ({error}): was it copied or downloaded completely?"
            ) from error
        with image:
            deep_colour = any(";16" in str(tile[-1]) for tile in image.tile)  # Pillow drops the lower bytes of these
            try:
                image.load()
                ImageOps.exif_transpose(image, in_place=True)  # reads EXIF, which may be damaged as well
            except _DECODER_ERRORS as error:
                raise PictureError(
                    f"{path} says it is a {image.format} of {image.width} x {image.height} pixels but can't be decoded "
                    f"to the end ({error}): it is truncated or damaged, copy or download it again"
                ) from error
            return _planes(image, deep_colour, path)


def save_image(path: str | os.PathLike[str], picture: Tensor) -> Path:
    """Write a picture as PNG or JPEG (quality 95, full colour resolution), whole or not at all.

    The bytes go to a file beside the target, which then takes the target's name: a full disk or a kill leaves the old
    picture as it was. Missing folders are made.

    Args:
        path: target; its suffix (.png, .jpg, .jpeg) chooses the format.
        picture: (3, H, W) or (1, 3, H, W); uint8, or float in [0, 1] (clamped and rounded to 8 bits).

    Returns:
        The path written.

    Raises:
        ValueError: unknown suffix, wrong shape, no pixels, NaN.
    """
    path = Path(path)
    check_target(path)
    if picture.ndim == 4 and len(picture) == 1:
        picture = picture[0]
    if picture.ndim != 3 or picture.shape[0] != 3 or picture.numel() == 0:
        raise ValueError(f"expected one RGB picture (3, H, W) or (1, 3, H, W), got {tuple(picture.shape)}")
    pixels = to_uint8(picture.detach()).cpu().permute(1, 2, 0).contiguous().numpy()  # (H, W, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part")
    try:
        with beside.open("xb") as file:
            Image.fromarray(pixels).save(file, **_SAVE_OPTIONS[path.suffix.lower()])
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def check_target(path: Path) -> None:
    """Refuse a path that `save_image` could not write, before the work that the picture takes.

    Raises:
        ValueError: unknown suffix.
        OSError: the path is a folder, or its folder is a file or closed to the user.
    """
    if path.suffix.lower() not in _SAVE_OPTIONS:
        raise ValueError(
            f"{path.name}: can write {', '.join(_SAVE_OPTIONS)}, not {path.suffix or 'a name without suffix'}"
        )
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, the name of a picture file was expected")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {folder} is a file, a folder was expected")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{path} cannot be written: {folder} is closed to you")


def check_scale(scale: int) -> None:
    """Refuse a scale that is not a whole number from 1 on, with ValueError."""
    if isinstance(scale, bool) or not isinstance(scale, Integral) or scale < 1:
        raise ValueError(f"scale must be a whole number from 1 on, such as 2, 3 or 4; got {scale!r}")


def to_float(picture: Tensor) -> Tensor:
    """Convert uint8 to float32 in [0, 1]; a picture that is float already is returned as it is."""
    if picture.dtype == torch.uint8:
        return picture.to(torch.float32).div_(255)
    _check_float(picture)
    return picture


def to_uint8(picture: Tensor) -> Tensor:
    """Round a float picture in [0, 1] to 8 bits: clamp, times 255, half up. uint8 is returned as it is.

    Raises:
        ValueError: the picture holds NaN, which no grey value can stand for.
    """
    if picture.dtype == torch.uint8:
        return picture
    _check_float(picture)
    if picture.dtype in (torch.float16, torch.bfloat16):
        picture = picture.float()  # bfloat16 holds no half steps above 128
    if picture.isnan().any():
        raise ValueError("the picture holds NaN: did the training diverge, or was something divided by zero?")
    return picture.clamp(0, 1).mul(255).add_(0.5).floor_().to(torch.uint8)


def rgb_to_y(picture: Tensor) -> Tensor:
    """Luma by ITU-R BT.601, as super-resolution papers score it: 16 + 65.481 R + 128.553 G + 24.966 B, not rounded.

    Args:
        picture: (..., 3, H, W), RGB; uint8, or float in [0, 1].

    Returns:
        float64 (..., 1, H, W), from 16 (black) to 235 (white).
    """
    if picture.ndim < 3 or picture.shape[-3] != 3:
        raise ValueError(f"expected RGB (..., 3, H, W), got {tuple(picture.shape)}: are the channels last?")
    if picture.dtype != torch.uint8:
        _check_float(picture)
    step = 255.0 if picture.dtype == torch.uint8 else 1.0
    red, green, blue = picture.to(torch.float64).unbind(-3)
    y = red * (LUMA[0] / step) + green * (LUMA[1] / step) + blue * (LUMA[2] / step) + LUMA_OFFSET
    return y.unsqueeze(-3)


def crop_to_multiple(picture: Tensor, scale: int) -> Tensor:
    """Cut rows at the bottom and columns at the right until both sides are multiples of `scale`. A view, (..., H, W).

    Raises:
        ValueError: a side is smaller than `scale`, or `scale` is no whole number from 1 on.
    """
    check_scale(scale)
    height, width = picture.shape[-2:]
    if min(height, width) < scale:
        raise ValueError(f"a picture of {height} x {width} pixels (height x width) has no multiple of {scale} inside")
    return picture[..., : height - height % scale, : width - width % scale]


def _check_float(picture: Tensor) -> None:
    if not picture.is_floating_point():
        raise TypeError(f"a picture is uint8 in 0..255 or float in [0, 1], got {picture.dtype}")


def _planes(image: Image.Image, deep_colour: bool, path: Path) -> Tensor:
    """Decoded Pillow image of any mode -> uint8 (3, H, W)."""
    if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: one photograph with a preview behind it
        _warn(path, f"has {image.n_frames} frames, the first is taken")
    if image.mode == "F":
        raise PictureError(
            f"{path} holds floating-point samples: what is black and what white? Save it as 8 bits first"
        )
    if image.mode.startswith("I"):
        _warn(path, "has 16 bits per sample, rounded to 8")
        return _sixteen_to_eight(np.asarray(image), path).expand(3, -1, -1).contiguous()
    if deep_colour:
        _warn(path, "has 16 bits per sample, of which the upper 8 are read")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            _warn(path, "has transparent pixels, composited on white")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode == "CMYK":
        _warn(path, "is CMYK, converted by the plain formula: printed colours will differ")
    if image.mode == "L":
        return torch.from_numpy(np.array(image)).expand(3, -1, -1).contiguous()
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))  # (H, W, 3)
    planes = np.empty((3, *pixels.shape[:2]), np.uint8)
    for channel, plane in enumerate(planes):  # channel by channel, twice as fast as one transposed copy
        plane[:] = pixels[..., channel]
    return torch.from_numpy(planes)


def _sixteen_to_eight(samples: np.ndarray, path: Path) -> Tensor:
    """0..65535 -> 0..255, rounded; 8-bit values stored as v * 257 come back exactly."""
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high > 65535:
        raise PictureError(f"{path} holds samples from {low} to {high}, beyond 16 bits: save it as 8 or 16 bits first")
    return torch.from_numpy(((samples.astype(np.int32) + 128) // 257).astype(np.uint8))


def _warn(path: Path, what: str) -> None:
    warnings.warn(f"{path.name} {what}", PictureWarning, stacklevel=4)  # the line that called load_image


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"no file {path}: its folder does not exist either (working folder: {Path.cwd()})"
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=3)
    if near:
        return f"no file {path}; did you mean {' or '.join(near)}?"
    return f"no file {path}; no name in {path.parent.absolute()} looks like it"


def _looks_like(path: Path) -> str:
    """Words for what a file that no decoder knows seems to be, from its first bytes."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "an empty file (was a download interrupted?)"
    if head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page (a download that met an error page or a login?)"
    if head.lstrip().startswith((b"<svg", b"<?xml")):
        return "an SVG or XML file: export it as PNG first"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return "an HEIC or AVIF photograph that this Pillow can't decode: export it as JPEG or PNG"
    for magic, name in _OTHER_FILES.items():
        if head.startswith(magic):
            return name
    text = head.decode("utf-8", errors="ignore").strip()
    if len(text.encode()) >= len(head.strip()) - 3 and all(c.isprintable() or c.isspace() for c in text) and text:
        return f"a text file that begins with {text.splitlines()[0][:40]!r}"
    return f"an unknown binary format (first bytes {head[:8].hex(' ')})"
