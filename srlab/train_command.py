"""Train command room: the options of `srlab train`, one per field of a recipe, and what they start.

Takes parsed words, gives calls to `train`, prints what they return; `cli` hangs it below `srlab train`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from srlab import sweeps, train


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--recipe`, `--folder`, `--resume`, `--stop-after` and one option per field of a recipe."""
    parser.add_argument("--recipe", metavar="NAME", help=f"the recipe to start from: {', '.join(train.RECIPES)}")
    parser.add_argument("--folder", type=Path, help="run folder; a run it holds is resumed. Default: runs/MODEL-seedN")
    parser.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="go on with the run in this folder, as it was begun"
    )
    parser.add_argument("--sweep", metavar="NAME", help=f"train a list of recipes: {', '.join(sweeps.SWEEPS)}")
    parser.add_argument("--part", metavar="I/N", help="with --sweep: the share of process I of N, as in 1/2")
    parser.add_argument("--stop-after", type=int, metavar="STEPS", help="stop after so many steps, with a checkpoint")
    fields = parser.add_argument_group("fields of the recipe", "Defaults are the paper's; a named recipe sets its own.")
    docs, types = train.field_docs(), typing.get_type_hints(train.Recipe)
    for field in dataclasses.fields(train.Recipe):
        option = f"--{field.name.replace('_', '-')}"
        text = f"{docs[field.name]} Default: {_shown(getattr(train.Recipe(), field.name))}".replace("%", "%%")
        fields.add_argument(
            option, dest=field.name, default=argparse.SUPPRESS, help=text, **_reading(types[field.name])
        )


def _reading(kind: Any) -> dict[str, Any]:
    """How argparse reads a field of this type: (int, ...), (float, float), float | None, int, float, str, bool."""
    inner = [part for part in typing.get_args(kind) if part is not type(None)]
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if isinstance(kind, type) and issubclass(kind, dict):
        return {"type": _name_and_value, "nargs": "*", "action": _IntoDict, "metavar": "NAME=VALUE"}
    if typing.get_origin(kind) is tuple:
        return {"type": inner[0], "nargs": "*" if inner[-1] is Ellipsis else len(inner), "metavar": inner[0].__name__}
    kind = inner[0] if inner else kind
    return {"type": kind, "metavar": kind.__name__}


def _name_and_value(text: str) -> tuple[str, Any]:
    """`channels=16` -> ("channels", 16); a value that is no number, list, true, false or none is a word."""
    name, equals, value = text.partition("=")
    if not (name.strip() and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE, such as channels=16 or fgrep=false")
    lower = value.strip().lower()
    try:
        return name.strip(), json.loads({"none": "null"}.get(lower, lower))
    except json.JSONDecodeError:
        return name.strip(), value


class _IntoDict(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, dict(values))


def _shown(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, dict):
        return " ".join(f"{name}={inner}" for name, inner in value.items()) or "none"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def run(options: argparse.Namespace) -> int:
    """Train as asked and return the exit code: 0 done, 130 stopped by Ctrl-C."""
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in vars(options).items()}
    name, folder = values.pop("recipe"), values.pop("folder")
    resume, stop_after = values.pop("resume"), values.pop("stop_after")
    sweep, part = values.pop("sweep"), values.pop("part")
    if sweep or part:
        if not sweep or name or values or resume or stop_after:
            raise ValueError("--sweep trains the recipes of a list as they are: only --part and --folder go with it")
        return _run_sweep(sweep, folder or Path("runs") / sweep, part or "1/1")
    if resume:
        if name or values or folder:
            raise ValueError("--resume goes on with the recipe in its folder: leave out recipe, fields and --folder")
        recipe = train.Recipe.from_dict(json.loads((resume / "recipe.json").read_text(encoding="utf-8")))
    elif name not in train.RECIPES:
        known = ", ".join(train.RECIPES)
        said = f"no recipe {name!r}" if name else "no recipe named"
        raise ValueError(
            f"{said}: expected one of {known}, or --resume FOLDER (example: srlab train --recipe demo --steps 300)"
        )
    else:
        recipe = dataclasses.replace(train.RECIPES[name], **values)
    for field, value in dataclasses.asdict(recipe).items():
        print(f"{field:>22} {_shown(value)}")
    result = train.fit(recipe, resume or folder, stop_after=stop_after)
    if result.step < recipe.steps:
        return 0 if stop_after else 130
    print(
        f"done: {result.folder / 'model.safetensors'} (srlab evaluate {result.folder / 'model.safetensors'} --scale 2)"
    )
    return 0


def _run_sweep(name: str, folder: Path, part: str) -> int:
    outcomes = sweeps.run(sweeps.named(name), folder, part=part)
    states = [outcome.state for outcome in outcomes]
    if "interrupted" in states:
        return 130
    return int("failed" in states)
