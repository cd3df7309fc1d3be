"""Room "fetch": a pinned file by its checksum, from a mirror, the cache or its own address.

Takes pinned files (address, sha256, bytes), read from the small CSV tables in `data/registry/`; gives paths of whole,
verified files on this machine. `datasets` and `weights` stand on it; nothing else in the lab touches the network.

Sources, in the order in which they are asked:

1. `SRLAB_MIRROR` when it is a folder (a USB stick, a shared disk): files at OWNER/REPO/COMMIT/PATH are used in place,
   after their hash has been checked. Nothing in that folder is ever written or deleted.
2. The cache folder: `SRLAB_CACHE`, or the usual cache place of the operating system. It has the same layout, so a file
   downloaded by hand may be put there, and a full cache folder may serve as somebody else's mirror.
3. `SRLAB_MIRROR` when it is a base url, then the file's own address.
"""

from __future__ import annotations

import csv
import os
import secrets
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event
from urllib.parse import urlparse

import pooch
from tqdm.auto import tqdm

from srlab import runtime

ATTEMPTS = 2  # one retry: enough for a hiccup, not enough to hammer a server that has changed its file
PAUSE = 1.0  # seconds before the retry
TIMEOUT = 30.0  # seconds without a byte before a server counts as silent
PARALLEL = 8  # downloads at a time: the sets are many small files, and waiting is most of the cost


class FetchError(RuntimeError):
    """A pinned file cannot be had; the message says what was tried and what to do about it."""


@dataclass(frozen=True)
class PinnedFile:
    """One public file whose content is known beforehand."""

    path: str
    """Path below the table's base address, such as `HR/baby.png`."""
    url: str
    """Full address, commit included."""
    sha256: str
    size: int
    """Bytes."""
    terms: str = ""
    """Terms of use in a few words."""

    @property
    def name(self) -> str:
        """File name without folders."""
        return self.path.rsplit("/", 1)[-1]


@cache
def read_registry(name: str) -> tuple[PinnedFile, ...]:
    """Read the table of pinned files `data/registry/NAME.csv`.

    Above the CSV header stand comment lines; `# base: URL` is put before every path and `# terms: ...` holds for all
    files, unless the table has a column `terms` of its own.

    Raises:
        FetchError: there is no such table, or it lacks its base or a column.
    """
    folder = runtime.repo_data("registry")
    table = folder / f"{name}.csv"
    if not table.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.csv")))
        raise FetchError(f"no table of pinned files called {name!r}; there are: {known or 'none'} (in {folder})")
    lines = table.read_text(encoding="utf-8").splitlines()
    notes = dict(line[1:].strip().split(": ", 1) for line in lines if line.startswith("#") and ": " in line)
    rows = csv.DictReader(line for line in lines if line and not line.startswith("#"))
    if not {"path", "sha256", "bytes"} <= set(rows.fieldnames or ()):
        raise FetchError(f"{table} has columns {rows.fieldnames}, expected path,sha256,bytes under its comment lines")
    if "base" not in notes:
        raise FetchError(f"{table} lacks the line '# base: ADDRESS/', which is put before every path")
    return tuple(
        PinnedFile(
            path=row["path"],
            url=notes["base"] + row["path"],
            sha256=row["sha256"],
            size=int(row["bytes"]),
            terms=row.get("terms") or notes.get("terms", ""),
        )
        for row in rows
    )


def pinned(name: str) -> str:
    """One hash, 12 digits, over the files that a named set consists of, whether or not they are here.

    Raises:
        FetchError: there is no such table.
    """
    files = " ".join(f"{entry.path} {entry.sha256}" for entry in read_registry(name))
    return runtime.text_sha256(files)[:12]


def cache_dir() -> Path:
    """Folder for fetched files: `SRLAB_CACHE`, or the cache place of the operating system. It need not exist yet."""
    return Path(os.environ.get("SRLAB_CACHE") or pooch.os_cache("srlab")).expanduser()


def mirror() -> Path | str | None:
    """What `SRLAB_MIRROR` names: a folder, a base url, or None when it is not set.

    Raises:
        FetchError: it is set, but is neither.
    """
    value = os.environ.get("SRLAB_MIRROR", "").strip()
    if not value:
        return None
    if value.startswith(("http://", "https://")):
        return value.rstrip("/")
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise FetchError(
            f"SRLAB_MIRROR is {value!r}: neither a folder that exists nor an address starting with http:// or "
            f"https://. Is the stick plugged in? Unset the variable to do without a mirror."
        )
    return folder


def find_file(url: str, sha256: str, size: int) -> Path | None:
    """Look for a pinned file on this machine, in the mirror folder and then in the cache; no network, nothing changed.

    Returns:
        Path of a file whose size and hash are right, or None.
    """
    candidates = [_cached(url)]
    if isinstance(source := mirror(), Path):
        candidates.insert(0, source / _relative(url))
    return next((path for path in candidates if _is_whole(path, sha256, size)), None)


def is_here(entry: PinnedFile) -> bool:
    """Whether a file of the right size is in the mirror folder or the cache; a quick look that reads no bytes."""
    source = mirror()
    candidates = [_cached(entry.url), *([source / _relative(entry.url)] if isinstance(source, Path) else [])]
    return any(path.is_file() and path.stat().st_size == entry.size for path in candidates)


def fetch_file(url: str, sha256: str, size: int, *, progress: bool = False) -> Path:
    """Return a verified local copy of a pinned file, downloading it when it is not here yet.

    A file with a wrong hash is deleted from the cache (never from a mirror folder), downloaded once more, then refused.
    Downloads go to a temporary name and are renamed when verified: a half-downloaded file is never taken for a whole
    one, and several processes may ask for the same file at once.

    Args:
        url: full address of the file.
        sha256: its hash, 64 hex digits.
        size: its length in bytes.
        progress: show a bar with the bytes of this file.

    Raises:
        FetchError: no source had the right file; the message lists what each one said and where to put it by hand.
    """
    if found := find_file(url, sha256, size):
        return found
    source = mirror()
    troubles = []
    if isinstance(source, Path) and (source / _relative(url)).is_file():
        troubles.append(f"{source / _relative(url)}: {_wrong(source / _relative(url), sha256, size)}")
    target = _cached(url)
    _make_folder(target.parent)
    if target.is_file():
        troubles.append(f"{target} (deleted): {_wrong(target, sha256, size)}")
        target.unlink(missing_ok=True)
    addresses = [f"{source}/{_relative(url)}"] if isinstance(source, str) else []
    for address in [*addresses, url]:
        trouble = _download(address, target, sha256, size, progress)
        if trouble is None:
            return target
        troubles.append(f"{address}: {trouble}")
    raise FetchError(_no_source(url, target, source, troubles))


def fetch(entry: PinnedFile, *, progress: bool = False) -> Path:
    """`fetch_file` for a row of a table of pinned files."""
    return fetch_file(entry.url, entry.sha256, entry.size, progress=progress)


def fetch_all(entries: Sequence[PinnedFile], title: str) -> list[Path]:
    """Fetch many files, a few at a time, with one progress bar over those that are not here yet.

    Args:
        entries: pinned files.
        title: what to call them in the progress bar.

    Returns:
        Their paths, in the order of `entries`.

    Raises:
        FetchError: the first one that cannot be had ends the work; files fetched until then stay in the cache.
    """
    found = {entry: find_file(entry.url, entry.sha256, entry.size) for entry in entries}
    missing = [entry for entry, path in found.items() if path is None]
    if missing:
        found.update(zip(missing, _in_parallel(missing, f"fetching {title}"), strict=True))
    return [found[entry] for entry in entries]


def _in_parallel(entries: Sequence[PinnedFile], title: str) -> list[Path]:
    """Fetch files a few at a time; after the first failure the others are left alone."""
    given_up = Event()

    def work(entry: PinnedFile) -> Path:
        if given_up.is_set():  # no result is read from here on: an earlier file's error comes first
            raise FetchError(f"{entry.url} was not tried after another file had failed")
        try:
            return fetch(entry)
        except BaseException:
            given_up.set()
            raise

    with ThreadPoolExecutor(PARALLEL) as pool, tqdm(total=len(entries), desc=title, unit="file") as bar:
        paths = []
        jobs = [pool.submit(work, entry) for entry in entries]
        try:
            for job in jobs:
                paths.append(job.result())
                bar.update()
            return paths
        except BaseException:  # Ctrl-C included
            given_up.set()
            raise


def _relative(url: str) -> str:
    """Path of a file below a mirror or the cache: the path part of its address."""
    return urlparse(url).path.lstrip("/")


def _cached(url: str) -> Path:
    return cache_dir() / _relative(url)


@cache
def _hash(path: Path, size: int, modified_ns: int) -> str:
    """SHA-256 of a file; size and time of change are part of the key, so that an altered file is read again."""
    return pooch.file_hash(str(path), alg="sha256")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, remembered while size and time of change stay the same."""
    stat = path.stat()
    return _hash(path, stat.st_size, stat.st_mtime_ns)


def _is_whole(path: Path, sha256: str, size: int) -> bool:
    try:
        return path.stat().st_size == size and file_sha256(path) == sha256
    except OSError:  # not there, or not readable: as good as absent
        return False


def _wrong(path: Path, sha256: str, size: int) -> str:
    """Say in words how a file differs from the pinned one, or why it cannot be read."""
    try:
        actual, found = path.stat().st_size, file_sha256(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    cut = " (cut short?)" if actual < size else ""
    return f"{actual} bytes{cut} with sha256 {found}; expected {size} bytes with sha256 {sha256}"


def _make_folder(folder: Path) -> None:
    """Make a folder of the cache and see that files can be put there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FetchError(
            f"cannot write to the cache folder {cache_dir()}: {error}. Set SRLAB_CACHE to a folder of yours."
        ) from error


def _download(address: str, target: Path, sha256: str, size: int, progress: bool) -> str | None:
    """Try an address, twice if need be. Returns None when `target` is whole, else what went wrong."""
    trouble = "not tried"
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE)
        # no mkstemp: its files are for their owner alone, and a cache may be everybody's mirror
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        try:
            pooch.HTTPDownloader(progressbar=progress, timeout=TIMEOUT)(address, str(part), None)
            if _is_whole(part, sha256, size):
                os.replace(part, target)
                return None
            trouble = _wrong(part, sha256, size)
        except OSError as error:  # requests' errors are OSErrors: no network, no such host, HTTP status, cut connection
            cause = getattr(error.args[0], "reason", error) if error.args else error  # without the chain of wrappers
            trouble = f"{type(error).__name__}: {cause}"
        finally:
            part.unlink(missing_ok=True)
        if _is_whole(target, sha256, size):  # another process was quicker
            return None
    return f"{trouble} (tried {ATTEMPTS} times)"


def _no_source(url: str, target: Path, source: Path | str | None, troubles: Sequence[str]) -> str:
    """The message of a file that cannot be had."""
    tried = "\n".join(f"  - {trouble}" for trouble in troubles)
    if source is None:
        mirror_hint = "set SRLAB_MIRROR to a folder (or base url) that repeats the files as OWNER/REPO/COMMIT/PATH"
    elif isinstance(source, Path):
        mirror_hint = f"add it to your mirror, as {source / _relative(url)}"
    else:
        mirror_hint = f"check SRLAB_MIRROR, which is {source}"
    return (
        f"cannot fetch {url}\n{tried}\n"
        f"Without network: {mirror_hint}; or download the file by hand on another machine and put it at {target}"
    )
