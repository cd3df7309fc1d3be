"""Provenance room: which run made this figure or table, and is the file still what the run wrote?

Takes a file that the lab made: a record of `data/results/`, a figure or table of `results/figures/`, trained weights.
Reads the JSON beside it, or what is written into the file itself (a PNG on its own still knows), and compares hashes.
Gives lines of text for `srlab verify`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srlab import runtime

PICTURES = (".png", ".pdf", ".svg")


class UnknownOriginError(ValueError):
    """A file that says nothing about the run that made it."""


def verify(path: str | Path) -> Iterator[str]:
    """Lines that say which run made a file: name, commit, seed, settings, versions, date; and whether it was changed.

    Args:
        path: CSV, JSON, PNG, PDF, SVG or safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        UnknownOriginError: the file holds no provenance and has none beside it, or it was changed afterwards.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    about, whence = _read(path)
    yield f"{path.name}: {about.get('caption') or about.get('name') or 'no name given'}"
    yield f"  told by   {whence}"
    for key, value in about.items():
        if key in ("name", "caption", "data_sha256") or value in (None, ""):
            continue
        yield f"  {key:<10}{_short(value)}"
    yield from _compare_hash(path, about)


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """What is known of the run, and where it says so."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
        if metadata:
            return {key: _parsed(value) for key, value in metadata.items()}, "the file's own metadata"
    beside = path.with_suffix(".json")
    if beside.is_file():
        about = json.loads(beside.read_text(encoding="utf-8"))
        if isinstance(about, dict) and ("commit" in about or "settings" in about):
            return about, str(beside)
    if path.suffix in PICTURES and (text := _inside_picture(path)):
        return json.loads(text), "the picture's own metadata"
    raise UnknownOriginError(
        f"{path} does not say which run made it: expected {beside.name} beside it, or a figure or weights written by "
        f"this project. A picture that was edited or sent through a messenger loses its metadata"
    )


def _inside_picture(path: Path) -> str | None:
    if path.suffix == ".png":
        from PIL import Image

        with Image.open(path) as picture:
            return picture.info.get("Comment")
    text = path.read_bytes().decode("utf-8", errors="ignore")
    if path.suffix == ".svg":
        from html import unescape

        found = re.search(r"<dc:source>(.*?)</dc:source>", text, re.DOTALL)
        return unescape(re.sub(r"<[^>]+>", "", found[1])).strip() if found else None
    return None  # PDF keeps it in an encoding that only a PDF reader undoes; the JSON file beside it is asked first


def _compare_hash(path: Path, about: dict[str, Any]) -> Iterator[str]:
    expected, table = about.get("data_sha256"), path.with_suffix(".csv")
    if not expected:
        return
    if not table.is_file():
        yield f"  table     {table.name} is not here; its hash was {expected[:12]}"
        return
    found = runtime.text_sha256(table.read_text(encoding="utf-8"))
    if found != expected:
        raise UnknownOriginError(
            f"{table} was changed after the run: its sha256 is {found[:12]}, the run wrote {expected[:12]}"
        )
    yield f"  table     {table.name} is what the run wrote (sha256 {found[:12]})"


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 300 else f"{text[:297]}..."
