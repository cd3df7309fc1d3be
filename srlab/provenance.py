"""Provenance room: which run made this figure or table, and is the file still what the run wrote?

Takes a file that the lab made: a record of `data/results/`, a figure or table of `results/figures/`, trained weights.
Reads the JSON beside it, or what is written into the file itself (a PNG on its own still knows). Only of the table of
numbers (CSV) a hash is kept: a changed one is refused. Pictures and weights are taken at their word, and the lines of
text that go to `srlab verify` say so.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from srlab import runtime

PICTURES = (".png", ".pdf", ".svg")
OURS = {"name", "seed", "commit", "versions"}  # every record and figure of this project says these


class UnknownOriginError(ValueError):
    """A file that says nothing about the run that made it."""


def verify(path: str | Path) -> Iterator[str]:
    """Lines that say which run made a file: name, commit, seed, settings, versions, date; and whether it was changed.

    Only a table (CSV) can be seen to have changed; where the file is something else, the last line says so.

    Args:
        path: CSV, JSON, PNG, PDF, SVG or safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        UnknownOriginError: the file holds no provenance of this project and has none beside it, it cannot be read, or
            its table was changed afterwards.
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
        yield from _said(key, value)
    yield from _compare_hash(path, about)


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """What is known of the run, and where it says so."""
    if path.suffix == ".safetensors" and (about := _inside_weights(path)):
        return about, "the file's own metadata"
    beside = path.with_suffix(".json")
    if beside.is_file() and (about := _parsed(_decoded(beside, lambda: beside.read_text(encoding="utf-8")))):
        return about, str(beside)
    if path.suffix in PICTURES and (about := _parsed(_decoded(path, lambda: _inside_picture(path)))):
        return about, "the picture's own metadata"
    raise UnknownOriginError(
        f"{path} does not say which run made it: expected {beside.name} beside it, or a figure or weights written by "
        f"this project. A picture that was edited or sent through a messenger loses its metadata"
    )


def _decoded(path: Path, read: Callable[[], Any]) -> Any:
    """Call `read`, turning what decoders say about a bad file into what is wrong with it."""
    from safetensors import SafetensorError

    try:
        return read()
    except (OSError, SyntaxError, ValueError, SafetensorError) as error:
        raise UnknownOriginError(f"{path} cannot be read ({error}): was it copied completely?") from error


def _parsed(text: str | None) -> dict[str, Any] | None:
    """What a JSON text says of a run of this project; None if it is something else."""
    try:
        about = json.loads(text or "")
    except ValueError:
        return None
    return about if isinstance(about, dict) and about.keys() >= OURS else None


def _inside_weights(path: Path) -> dict[str, Any] | None:
    """Card and configuration that `weights.save` wrote into a file; None if another program wrote it."""
    from safetensors import safe_open

    def read() -> dict[str, Any] | None:
        with safe_open(path, framework="np") as file:
            written = (file.metadata() or {}).get("srlab")
        return written and json.loads(written)

    header = _decoded(path, read)
    parts = [header.get(part) for part in ("config", "card")] if isinstance(header, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        return None
    config, card = parts
    return {"name": f"weights of {config.get('encoder')} with {config.get('upsampler')}", "config": config} | {
        "data hash" if key == "data_sha256" else key: value for key, value in card.items()
    }


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
    if expected and not table.is_file():
        yield f"  table     {table.name} is not here; its hash was {expected[:12]}"
    elif expected:
        found = runtime.text_sha256(table.read_text(encoding="utf-8", errors="replace"))
        if found != expected:
            raise UnknownOriginError(
                f"{table} was changed after the run: its sha256 is {found[:12]}, the run wrote {expected[:12]}"
            )
        yield f"  table     {table.name} is what the run wrote (sha256 {found[:12]})"
    if not expected or path != table:
        yield f"  unchecked {path.name}: the run kept no hash of it, so a change of it would not be seen"


def _said(key: str, value: Any) -> list[str]:
    """Lines of one fact, the entries of a dict one after the other."""
    if isinstance(value, dict):
        value = ", ".join(f"{name} {_words(entry)}" for name, entry in value.items())
    return textwrap.wrap(
        _words(value),
        120,
        initial_indent=f"  {key:<9} ",
        subsequent_indent=" " * 12,
        max_lines=6,
        placeholder=" ...",
        break_on_hyphens=False,
    )


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
