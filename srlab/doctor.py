"""Doctor room: what is installed, which device, data and weights are here, and the command that gets the rest.

Looks at the installation, the environment and the disk; gives lines of text for `srlab doctor` and `srlab models`.
Nothing is fetched, repaired or changed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from srlab import machine, runtime


def missing_packages() -> list[str]:
    """What the installation lacks of what pyproject.toml asks for, in words; empty if it is whole."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in metadata.requires("srlab") or ()]
    except metadata.PackageNotFoundError:
        return ["srlab itself is not installed, only its folder is here"]
    troubles = []
    for requirement in requirements:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            troubles.append(f"{requirement.name} is absent, expected {requirement.specifier}")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            troubles.append(f"{requirement.name} is {found}, expected {requirement.specifier}")
    return troubles


def report_broken(troubles: Sequence[str]) -> Iterator[str]:
    """Lines for an installation that lacks something."""
    yield from _about_code()
    yield from (f"BROKEN     {trouble}" for trouble in troubles)
    yield "           repair it: pip install -c constraints.txt -e '.[dev]'"


def report() -> Iterator[str]:
    """Lines for an installation that is whole.

    Raises:
        ValueError: an SRLAB_* variable holds something unusable.
    """
    import torch

    from srlab import datasets, weights

    yield from _about_code()
    device = machine.pick_device()
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    yield f"device     {device}{name}, {torch.get_num_threads()} CPU threads, {os.cpu_count()} cores"
    settings = [f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith("SRLAB_")]
    yield f"settings   profile {runtime.profile()}; {', '.join(settings) or 'no SRLAB_* variable is set'}"
    for label, folder in (("results", runtime.results_dir()), ("cache", datasets.cache_dir())):
        yield f"{label:<10} {folder}, {_free_space(folder):.0f} GB free"
    yield "pictures"
    yield from in_columns(
        [
            (
                f"  {row.name}",
                f"{row.present}/{row.total}",
                "" if row.present == row.total else f"get it: {row.command}",
            )
            for row in datasets.status()
        ]
    )
    yield "weights"
    yield from in_columns([_about_weights(card.name, bool(card.url), card.is_here) for card in weights.cards()])


def models() -> list[str]:
    """Lines of `srlab models`: a row for every set of weights with a name, and what the classes of provenance mean."""
    from srlab import weights

    head = ("name", "model", "scales", "parameters", "trained on", "licence", "class", "here")
    rows = [
        (
            card.name,
            card.family,
            " ".join(f"x{scale}" for scale in card.scales),
            f"{card.parameters:,}",
            card.trained_on,
            card.licence.split(":")[0],
            card.provenance if card.provenance in weights.PROVENANCE else "-",
            "yes" if card.is_here else f"srlab fetch {card.name}",
        )
        for card in weights.cards()
    ]
    classes = [f"class {letter}: {meaning}" for letter, meaning in weights.PROVENANCE.items()]
    return [*in_columns([head, *rows]), *classes, "also: bicubic (needs no weights), or a checkpoint file"]


def about_model(name: str) -> list[str]:
    """Lines of `srlab models NAME`: everything its card says.

    Raises:
        ValueError: unknown name.
    """
    from srlab import weights

    card = weights.card(name)
    facts = {name: value for name, value in vars(card).items() if name != "notes"} | dict(card.notes)
    return in_columns([(f"{name}:", str(value)) for name, value in facts.items() if value not in ("", 0)])


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in which the cells of each column start below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in padded]


def _about_code() -> Iterator[str]:
    yield f"SR Lab     {runtime.project_root() or Path(__file__).parent}, commit {runtime.commit()}"
    yield "versions   " + ", ".join(f"{name} {version}" for name, version in runtime.versions().items())


def _about_weights(name: str, published: bool, here: bool) -> tuple[str, str, str]:
    if not published:
        return f"  {name}", "bundled", ""
    return f"  {name}", "here" if here else "missing", "" if here else f"get it: srlab fetch {name}"


def _free_space(folder: Path) -> float:
    """Free gigabytes where `folder` is, or would be."""
    there = next((parent for parent in (folder, *folder.absolute().parents) if parent.exists()), None)
    return shutil.disk_usage(there).free / 1e9 if there else 0.0  # a drive of Windows that is not there
