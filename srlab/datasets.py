"""Room "datasets": named sets of pictures, folders of pictures, and training crops.

Takes a name or a folder; gives uint8 pictures (3, H, W), LR/HR pairs and batches of aligned crops. Files come from the
installed packages (`demo`), from pinned public addresses by way of the room `fetch`, or from the user's folder. LR
pictures are the set's own where it has them; elsewhere they are made by `resize.imresize` from the HR picture.
"""

from __future__ import annotations

import copy
import difflib
import errno
import importlib.util
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from srlab.fetch import (  # the last ones are passed on, so that users need one import
    FetchError,
    PinnedFile,
    cache_dir,
    fetch,
    fetch_all,
    fetch_file,
    find_file,
    is_here,
    read_registry,
)
from srlab.images import check_scale, load_image
from srlab.imagesets import DatasetError, ImageSet, by, find_files

__all__ = [
    "NAMES",
    "CropStore",
    "DatasetError",
    "FetchError",
    "ImageSet",
    "PinnedFile",
    "SetStatus",
    "cache_dir",
    "fetch",
    "fetch_file",
    "load",
    "read_registry",
    "status",
]

FETCHED = ("set5", "set14", "b100", "urban100", "bsd400")
NAMES = ("demo", *FETCHED)

# Photographs that come inside installed packages, everyday pictures first: (name, package, file).
DEMO = (
    ("coffee", "skimage", "data/coffee.png"),
    ("chelsea", "skimage", "data/chelsea.png"),
    ("astronaut", "skimage", "data/astronaut.png"),
    ("china", "sklearn", "datasets/images/china.jpg"),
    ("flower", "sklearn", "datasets/images/flower.jpg"),
    ("rocket", "skimage", "data/rocket.jpg"),
    ("stereo_motorcycle", "skimage", "data/motorcycle_left.png"),
    ("immunohistochemistry", "skimage", "data/ihc.png"),
    ("retina", "skimage", "data/retina.jpg"),
    ("hubble_deep_field", "skimage", "data/hubble_deep_field.jpg"),
)

MEMORY_BYTES = 2**30  # a CropStore above this lives in memory-mapped files


def load(name: str | os.PathLike, *, partial: bool = False) -> ImageSet:
    """Load a set of pictures by name, or the pictures of a folder.

    - `"demo"`: colour photographs inside the installed packages; nothing is downloaded.
    - `"set5"`, `"set14"`: HR and the LR pictures that MATLAB made at x2, x3, x4, x8.
    - `"b100"`, `"urban100"`, `"bsd400"`: HR only; LR is made by `resize.imresize`.
    - a folder: its pictures are HR; or a folder with `HR/` and `LR_bicubic/X2/NAMEx2.png`, ... (names ending in `_HR`
      and `_LR_bicubic`, as in DIV2K, will do). Such a folder is checked as a whole before it is used.

    Files that are not on this machine are fetched and verified first.

    Args:
        name: one of `NAMES`, or a folder.
        partial: take the pictures that are here already, fetch nothing. The set's name then says how many there are.

    Raises:
        DatasetError: no or unknown name, or a folder with nothing usable in it; all troubles in one message.
        FileNotFoundError: no such folder.
        FetchError: files are missing and cannot be fetched.
    """
    if isinstance(name, str) and name == "demo":
        return _load_demo()
    if isinstance(name, str) and name in FETCHED:
        return _load_fetched(name, partial)
    if not str(name).strip():  # Path("") would be the folder one happens to be in
        raise DatasetError(f"the name of the set is empty; there are: {', '.join(NAMES)}, or give a folder")
    folder = Path(name).expanduser()
    if folder.is_dir():
        files = find_files(folder)
        return ImageSet(folder.resolve().name, files.hr, files.lr)
    if isinstance(name, str) and folder.name == name:  # one word, no path: more likely a misspelt set
        raise DatasetError(_unknown(name))
    raise FileNotFoundError(f"no folder {folder} (looked at {folder.absolute()}); sets with a name: {', '.join(NAMES)}")


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), NAMES, n=3, cutoff=0.5)
    guess = f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
    return f"no set called {name!r}, and no folder of that name here; there are: {', '.join(NAMES)}.{guess}"


def _load_demo() -> ImageSet:
    paths = {name: _package_file(package, file) for name, package, file in DEMO}
    found = {name: path for name, path in paths.items() if path is not None}
    if absent := [name for name in paths if name not in found]:
        warnings.warn(
            f"demo: {', '.join(absent)} not in the installed scikit-image and scikit-learn; going on with "
            f"{len(found)} pictures",
            stacklevel=3,
        )
    return ImageSet("demo", found)


def _package_file(package: str, file: str) -> Path | None:
    """A file inside an installed package, found without importing it; None when it is not there."""
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((path for folder in folders if (path := Path(folder, file)).is_file()), None)


def _load_fetched(name: str, partial: bool) -> ImageSet:
    entries = read_registry(name)
    title = name
    if partial:
        here = {entry: find_file(entry.url, entry.sha256, entry.size) for entry in entries}
        files = {entry: path for entry, path in here.items() if path is not None}
        if not files:
            raise FetchError(f"{name}: none of its {len(entries)} files is on this machine; `srlab fetch {name}`")
        if len(files) < len(entries):
            title = f"{name} ({len(files)} of {len(entries)} files)"
    else:
        files = _fetch_set(name, entries)
    hr = {_picture_name(entry): path for entry, path in files.items() if _lr_scale(entry) is None}
    lr: dict[int, dict[str, Path]] = {}
    for entry, path in files.items():
        if scale := _lr_scale(entry):
            lr.setdefault(scale, {})[_picture_name(entry)] = path
    # with a part of the files only, an LR scale counts when it is whole: a set must not mix two kinds of LR
    return ImageSet(title, hr, {scale: lr[scale] for scale in lr if lr[scale].keys() >= hr.keys()})


def _fetch_set(name: str, entries: Sequence[PinnedFile]) -> dict[PinnedFile, Path]:
    try:
        return dict(zip(entries, fetch_all(entries, name), strict=True))
    except FetchError as error:
        absent = [entry.name for entry in entries if find_file(entry.url, entry.sha256, entry.size) is None]
        shown = ", ".join(absent if len(absent) <= 6 else [*absent[:3], "...", *absent[-2:]])
        raise FetchError(
            f"{name}: {len(absent)} of {len(entries)} files are not on this machine and cannot be fetched: {shown}.\n"
            f"`load({name!r}, partial=True)` goes on with what is here. The first trouble was: {error}"
        ) from error


def _lr_scale(entry: PinnedFile) -> int | None:
    found = re.search(r"LR_bicubic/X(\d+)/", entry.path)
    return int(found[1]) if found else None


def _picture_name(entry: PinnedFile) -> str:
    """Picture a pinned file belongs to: `babyx2.png` -> baby, `img_001_SRF_4_HR.png` -> img_001."""
    stem = Path(entry.path).stem.removesuffix("_SRF_4_HR")
    scale = _lr_scale(entry)
    return stem.removesuffix(f"x{scale}") if scale else stem


class CropStore:
    """Training crops from pictures that are decoded once and kept as bytes; LR pictures are made once per scale.

    A crop is cut at a whole LR pixel from the LR picture and at the same place from the HR picture, so the two are
    aligned exactly and the LR crop is what MATLAB's bicubic gives for the whole picture: nothing is resized while
    training.

    Args:
        image_set: HR pictures; its own LR files are used for the scales that have them.
        scales: scales for which batches will be asked.
        cache: folder for memory-mapped files, used when all pictures together take more than `MEMORY_BYTES`; they are
            kept and found again. Default: `crops` in the cache folder.
        patch: side of the LR crops to come, if known: pictures too small for it are refused now rather than later.

    Raises:
        DatasetError: pictures are too small; all are named.
        ValueError: a scale is not a whole number from 1 on, or there is none.
    """

    def __init__(
        self, image_set: ImageSet, scales: Sequence[int], cache: str | os.PathLike | None = None, *, patch: int = 1
    ) -> None:
        for scale in scales:
            check_scale(scale)
        self.scales = tuple(sorted(set(scales)))
        if not self.scales:
            raise ValueError("scales is empty: name at least one, such as (2, 3, 4)")
        self.name, self.names = image_set.name, image_set.names
        hr_sizes = [image_set.size(index) for index in range(len(image_set))]
        # keyed by how many HR pixels one of its pixels spans: 1 is HR itself
        self._sizes = {step: [(h // step, w // step) for h, w in hr_sizes] for step in (1, *self.scales)}
        self._smallest = {scale: min(map(min, self._sizes[scale])) for scale in self.scales}
        self._check_patch(self.scales[-1], patch)  # where the LR pictures are smallest
        self._starts = {step: _starts(sizes) for step, sizes in self._sizes.items()}
        total = sum(starts[-1] for starts in self._starts.values())
        folder = None if total <= MEMORY_BYTES else Path(cache or cache_dir() / "crops").expanduser()
        self._bytes = self._pack(image_set, folder)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def device(self) -> torch.device:
        """Where the pictures are and where batches are made."""
        return self._bytes[1].device

    def to(self, device: torch.device | str) -> CropStore:
        """The same store with its pictures on `device`; with the same generator it gives the same crops there."""
        moved = copy.copy(self)
        moved._bytes = {step: data.to(device) for step, data in self._bytes.items()}
        return moved

    def batch(self, scale: int, size: int, patch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw aligned crops, each one from a picture, a place and one of 8 flips and transposes drawn uniformly.

        Args:
            scale: one of `scales`.
            size: crops in the batch.
            patch: side of the LR crop in pixels.
            generator: a CPU generator; its state alone decides the crops, on every device, and moves on by the same
                amount whatever `scale` and `patch` are.

        Returns:
            lr uint8 (size, 3, patch, patch), hr uint8 (size, 3, patch * scale, patch * scale), on `device`.

        Raises:
            ValueError: a scale that is not in the store, or size or patch below 1.
            DatasetError: pictures smaller than the patch; all are named.
        """
        if scale not in self.scales:
            raise ValueError(f"scale {scale!r} is not in this store, which was made for {self.scales}")
        if size < 1 or patch < 1:
            raise ValueError(f"size and patch must be at least 1, got {size} and {patch}")
        self._check_patch(scale, patch)
        draws = torch.rand(size, 4, dtype=torch.float64, generator=generator).tolist()
        lr = torch.empty(size, 3, patch, patch, dtype=torch.uint8, device=self.device)
        hr = torch.empty(size, 3, patch * scale, patch * scale, dtype=torch.uint8, device=self.device)
        for slot, (which, down, right, turn) in enumerate(draws):
            picture = int(which * len(self))
            height, width = self._sizes[scale][picture]
            row, column = int(down * (height - patch + 1)), int(right * (width - patch + 1))
            turn = int(turn * 8)
            lr[slot] = _turned(self._crop(scale, picture, row, column, patch), turn)
            hr[slot] = _turned(self._crop(1, picture, row * scale, column * scale, patch * scale), turn)
        return lr, hr

    def _crop(self, step: int, picture: int, row: int, column: int, side: int) -> Tensor:
        """View (3, side, side) into the bytes of a picture."""
        height, width = self._sizes[step][picture]
        start = self._starts[step][picture] + row * width + column
        return self._bytes[step].as_strided((3, side, side), (height * width, width, 1), start)

    def _check_patch(self, scale: int, patch: int) -> None:
        """Refuse an LR patch that some LR pictures cannot hold."""
        if patch <= self._smallest[scale]:
            return
        small = [
            f"{name} ({height}x{width})"
            for name, (height, width) in zip(self.names, self._sizes[scale], strict=True)
            if min(height, width) < patch
        ]
        listed = ", ".join(small if len(small) <= 10 else [*small[:10], f"and {len(small) - 10} more"])
        raise DatasetError(
            f"{self.name}: {len(small)} of {len(self)} LR pictures at x{scale} are smaller than the {patch}x{patch} "
            f"patch: {listed}. Take a smaller patch, or leave these pictures out."
        )

    def _pack(self, image_set: ImageSet, folder: Path | None) -> dict[int, Tensor]:
        """Decode every picture once and lay the bytes of HR and of each scale end to end, in memory or in `folder`."""
        totals = {step: starts[-1] for step, starts in self._starts.items()}
        if folder is None:
            packed = {step: torch.empty(total, dtype=torch.uint8) for step, total in totals.items()}
            self._fill(image_set, packed)
            return packed
        folder.mkdir(parents=True, exist_ok=True)
        key = image_set.sha256()[:24]
        files = {step: folder / f"{key}-{'hr' if step == 1 else f'x{step}'}.bytes" for step in totals}
        missing = [step for step in files if not _has_size(files[step], totals[step])]
        needed, free = sum(totals[step] for step in missing), shutil.disk_usage(folder).free
        if needed > free:  # writing to a mapped file on a full disk would end the process without a word
            raise OSError(
                errno.ENOSPC, f"{needed / 1e9:.1f} GB of decoded pictures, {free / 1e9:.1f} GB free", str(folder)
            )
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder, ignore_cleanup_errors=True) as parts:
            new = {step: Path(parts, str(step)) for step in missing}
            self._fill(image_set, {step: _map(new[step], totals[step], write=True) for step in missing})
            for step in missing:  # whole now: take its name in one step, so that nobody ever sees half a file
                with open(new[step], "rb+") as file:  # on the disk first: a crash must not leave the name with zeros
                    os.fsync(file.fileno())
                os.replace(new[step], files[step])
        return {step: _map(files[step], totals[step]) for step in files}

    def _fill(self, image_set: ImageSet, packed: Mapping[int, Tensor]) -> None:
        if not packed:
            return
        for index in tqdm(range(len(self)), desc=f"decoding {self.name}", unit="picture", delay=2, leave=False):
            hr = load_image(image_set.path(index))
            for step, data in packed.items():
                picture = hr if step == 1 else image_set.make_lr(index, step, hr)
                if tuple(picture.shape[-2:]) != self._sizes[step][index]:
                    height, width = self._sizes[step][index]
                    raise DatasetError(
                        f"{image_set.path(index)} decodes to {by(picture)}, but its header promised {height}x{width}"
                    )
                start, end = self._starts[step][index : index + 2]
                data[start:end] = picture.flatten()


def status() -> list[SetStatus]:
    """Say for every named set how many of its files are on this machine; looks at names and sizes, opens nothing.

    Raises:
        FetchError: `SRLAB_MIRROR` is set to something that is no mirror.
    """
    demo = [_package_file(package, file) is not None for _, package, file in DEMO]
    rows = [SetStatus("demo", sum(demo), len(demo), "pip install scikit-image scikit-learn")]
    for name in FETCHED:
        entries = read_registry(name)
        present = sum(map(is_here, entries))
        rows.append(SetStatus(name, present, len(entries), f"srlab fetch {name}"))
    return rows


class SetStatus(NamedTuple):
    """How much of a set is on this machine."""

    name: str
    present: int
    """Files here, in the mirror folder or in the cache."""
    total: int
    command: str
    """What gets the rest."""


def _starts(sizes: Iterable[tuple[int, int]]) -> list[int]:
    """First byte of each picture when (3, H, W) pictures lie end to end, and the end of the last."""
    starts = [0]
    for height, width in sizes:
        starts.append(starts[-1] + 3 * height * width)
    return starts


def _turned(crop: Tensor, turn: int) -> Tensor:
    """One of the 8 flips and transposes of a square: bit 4 transposes, then bit 1 flips rows and bit 2 columns."""
    if turn & 4:
        crop = crop.mT
    flips = [axis for bit, axis in ((1, -2), (2, -1)) if turn & bit]
    return crop.flip(flips) if flips else crop


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _map(path: Path, size: int, write: bool = False) -> Tensor:
    """The bytes of a file as a tensor, read from disk page by page when they are used."""
    return torch.from_file(str(path), shared=write, size=size, dtype=torch.uint8)
