"""Room "imagesets": pictures in a fixed order with their LR pictures, and folders read as such a set.

Takes picture files; gives uint8 pictures (3, H, W) and LR/HR pairs. A folder is checked as a whole, by the headers of
its files, before anybody works with it. `datasets` stands on it and adds the sets that have a name.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from srlab.fetch import file_sha256
from srlab.images import check_scale, crop_to_multiple, load_image
from srlab.resize import imresize

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
DECODED_BYTES = 256 * 2**20  # decoded pictures an ImageSet keeps at hand
ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 swap width and height
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises on a bad header


class DatasetError(ValueError):
    """A set or folder of pictures is not what it should be; the message lists everything that is wrong with it."""


class ImageSet:
    """Pictures in a fixed order, with the LR pictures that belong to them.

    Pictures are decoded when they are asked for; the last ones asked for are kept.

    Args:
        name: what tables and logs call the set.
        paths: HR files by picture name, in order.
        lr_paths: per scale, LR files by picture name; scales without files are made by `imresize`.
    """

    def __init__(
        self, name: str, paths: Mapping[str, Path], lr_paths: Mapping[int, Mapping[str, Path]] | None = None
    ) -> None:
        if not paths:
            raise DatasetError(f"{name}: a set needs at least one picture")
        self.name = name
        self.names = tuple(paths)
        self._paths = dict(paths)
        self._lr_paths = {scale: dict(files) for scale, files in (lr_paths or {}).items()}
        self._decoded: OrderedDict[Path, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        own = f", LR files at {', '.join(f'x{scale}' for scale in self.lr_scales)}" if self._lr_paths else ""
        return f"ImageSet({self.name!r}, {len(self)} pictures{own})"

    def subset(self, names: Iterable[str]) -> ImageSet:
        """The pictures with these names, in the order given, with their LR pictures.

        Raises:
            DatasetError: a name that is not in the set, or none at all.
        """
        names = list(names)
        if unknown := [name for name in names if name not in self._paths]:
            raise DatasetError(
                f"{self.name} has no picture {', '.join(map(repr, unknown))}; it has {', '.join(self.names)}"
            )
        lr_paths = {scale: {name: files[name] for name in names} for scale, files in self._lr_paths.items()}
        chosen = ImageSet(self.name, {name: self._paths[name] for name in names}, lr_paths)
        chosen._decoded = self._decoded  # decoded pictures are shared
        return chosen

    @property
    def lr_scales(self) -> tuple[int, ...]:
        """Scales for which the set has LR files of its own."""
        return tuple(sorted(self._lr_paths))

    def path(self, index: int) -> Path:
        """File of HR picture `index`."""
        return self._paths[self.names[index]]

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of HR picture `index`, from the file's header."""
        return header_size(self.path(index))

    def image(self, index: int) -> Tensor:
        """HR picture `index`, uint8 (3, H, W); yours to write into."""
        return self._decode(self.path(index)).clone()

    def pair(self, index: int, scale: int) -> tuple[Tensor, Tensor]:
        """LR and HR picture `index`, both uint8: (3, h, w) and (3, h * scale, w * scale).

        The LR picture is the set's own file where it has one, else `imresize` of the HR picture by MATLAB's 8-bit rule.
        An HR picture whose sides are no multiples of `scale` loses the rows and columns that are over, at the bottom
        and on the right, before anything else; this is how the benchmark files were made.

        Raises:
            ValueError: `scale` is not a whole number from 1 on.
            DatasetError: the picture is smaller than `scale`, or its LR file has the wrong size.
        """
        check_scale(scale)
        name, hr = self.names[index], self._decode(self.path(index))
        height, width = hr.shape[-2] // scale, hr.shape[-1] // scale
        if not height or not width:
            raise DatasetError(f"{self.name}/{name} is {by(hr)} pixels: too small for an LR picture at x{scale}")
        return self.make_lr(index, scale, hr), crop_to_multiple(hr, scale).clone()

    def make_lr(self, index: int, scale: int, hr: Tensor) -> Tensor:
        """LR picture `index` for its decoded HR picture `hr` (3, H, W): read from file or made, uint8 (3, h, w)."""
        hr = crop_to_multiple(hr, scale)
        if scale not in self._lr_paths:
            return imresize(hr, Fraction(1, scale))
        name = self.names[index]
        lr = load_image(self._lr_paths[scale][name])
        if lr.shape[-2] * scale != hr.shape[-2] or lr.shape[-1] * scale != hr.shape[-1]:
            raise DatasetError(f"{self.name}/{name}: the LR file is {by(lr)}, not HR {by(hr)} divided by {scale}")
        return lr

    def sha256(self) -> str:
        """One hash over names and contents of all picture files, HR and LR: the same wherever the files lie."""
        digest = hashlib.sha256()
        for scale, files in [(1, self._paths), *sorted(self._lr_paths.items())]:
            for name, path in files.items():
                digest.update(f"{scale} {name} {file_sha256(path)}\n".encode())
        return digest.hexdigest()

    def _decode(self, path: Path) -> Tensor:
        """Decode a file, keeping the last pictures up to `DECODED_BYTES`. Callers must not write into the result."""
        picture = self._decoded.pop(path, None)
        if picture is None:
            picture = load_image(path)
        self._decoded[path] = picture
        while len(self._decoded) > 1 and sum(kept.numel() for kept in self._decoded.values()) > DECODED_BYTES:
            self._decoded.popitem(last=False)
        return picture


class Files(NamedTuple):
    """Picture files of a set."""

    hr: dict[str, Path]
    """HR files by picture name, in order."""
    lr: dict[int, dict[str, Path]]
    """LR files by scale and picture name."""


def header_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture as it will be decoded, from its header alone.

    Raises:
        One of `UNREADABLE`: the file is not there, or no picture.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, but nothing is decoded here
        with Image.open(path) as image:
            width, height = image.size
            exif = Image.Image.getexif(image)  # the base class's: that of PNG decodes the whole picture first
    turned = exif.get(ORIENTATION) in (5, 6, 7, 8)  # others are no orientation, and nothing is turned
    return (width, height) if turned else (height, width)


def find_files(folder: Path) -> Files:
    """Find the pictures of a folder: directly in it, or in `HR/` with LR pictures as `LR_bicubic/X2/NAMEx2.png`.

    Folder names that end in `_HR` and `_LR_bicubic` will do, as in DIV2K; names may hold any character.

    Raises:
        DatasetError: no pictures, unreadable ones, names that occur twice, LR files that are missing, too many or of
            the wrong size; everything found is in the one message.
    """
    hr_folder = _one_of(folder, "HR")
    if hr_folder is None:
        paths, troubles = _by_name(_pictures(folder))
        if not paths:
            inside = [path.name for path in sorted(folder.iterdir()) if path.is_dir()]
            hint = f"; it holds folders: {', '.join(inside[:8])}. Is one of them meant?" if inside else ""
            raise DatasetError(
                f"{folder} has no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}) and no folder HR{hint}"
            )
        lr: dict[int, dict[str, Path]] = {}
    else:
        paths, troubles = _by_name(_pictures(hr_folder))
        lr, lr_troubles = _lr_files(folder, paths)
        troubles += lr_troubles
        if not paths:
            troubles.append(f"{hr_folder.name}/ has no pictures")
    troubles += _size_troubles(folder, paths, lr)
    if troubles:
        listed = "\n".join(f"  - {trouble}" for trouble in troubles)
        raise DatasetError(f"{folder} cannot be used, {len(troubles)} trouble(s):\n{listed}")
    return Files(paths, lr)


def _one_of(folder: Path, ending: str) -> Path | None:
    """The subfolder called `ending` or `..._ending`; None without one."""
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and (path.name == ending or path.name.endswith(f"_{ending}"))
    ]
    if len(found) > 1:
        raise DatasetError(f"{folder} has several folders of {ending}: {', '.join(path.name for path in found)}")
    return found[0] if found else None


def _pictures(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]


def _by_name(files: Iterable[Path]) -> tuple[dict[str, Path], list[str]]:
    """Files by stem, and the stems that occur twice."""
    paths: dict[str, Path] = {}
    troubles = []
    for path in files:
        if path.stem in paths:
            troubles.append(
                f"two pictures in {path.parent.name}/ are called {path.stem}: {paths[path.stem].name} and {path.name}"
            )
        paths.setdefault(path.stem, path)
    return paths, troubles


def _lr_files(folder: Path, hr: Mapping[str, Path]) -> tuple[dict[int, dict[str, Path]], list[str]]:
    """LR files of a folder by scale and picture name, with what is missing and what is too many."""
    lr_folder = _one_of(folder, "LR_bicubic")
    lr: dict[int, dict[str, Path]] = {}
    troubles = []
    for sub in sorted(lr_folder.iterdir()) if lr_folder else []:
        found = re.fullmatch(r"[xX](\d+)", sub.name)
        if not found or not sub.is_dir():
            continue
        scale = int(found[1])
        files, twice = _by_name(_pictures(sub))
        troubles += twice
        wanted = {f"{name}x{scale}": name for name in hr}
        lr[scale] = {wanted[stem]: path for stem, path in files.items() if stem in wanted}
        where = f"{lr_folder.name}/{sub.name}"
        troubles += [f"missing: {where}/{stem}.png" for stem in wanted if stem not in files]
        troubles += [
            f"extra: {where}/{path.name} belongs to no HR picture" for stem, path in files.items() if stem not in wanted
        ]
    if lr_folder and not lr:
        troubles.append(f"{lr_folder.name}/ has no folder X2, X3, ... with files called NAMEx2.png, NAMEx3.png, ...")
    return lr, troubles


def _size_troubles(folder: Path, hr: Mapping[str, Path], lr: Mapping[int, Mapping[str, Path]]) -> list[str]:
    """Pictures whose header cannot be read, and LR files whose size does not fit their HR file."""
    troubles = []
    for name, path in hr.items():
        try:
            height, width = header_size(path)
        except UNREADABLE as error:
            troubles.append(f"unreadable: {path.relative_to(folder)}: {error}")
            continue
        for scale in sorted(scale for scale in lr if name in lr[scale]):
            lr_path = lr[scale][name]
            try:
                size = header_size(lr_path)
            except UNREADABLE as error:
                troubles.append(f"unreadable: {lr_path.relative_to(folder)}: {error}")
                continue
            wanted = (height // scale, width // scale)
            if size != wanted:
                troubles.append(
                    f"wrong size: {lr_path.relative_to(folder)} is {size[0]}x{size[1]}, but HR {height}x{width} at "
                    f"x{scale} needs {wanted[0]}x{wanted[1]} (height x width)"
                )
    return troubles


def by(picture: Tensor) -> str:
    """Height and width of a picture (..., H, W) in words."""
    return f"{picture.shape[-2]}x{picture.shape[-1]}"
