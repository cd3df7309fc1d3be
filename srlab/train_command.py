"""Train command room: the options of `srlab train`, one per field of a recipe, and what they start.

Takes parsed words, gives calls to `train`, prints what they return; `cli` hangs it below `srlab train`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import typing
from pathlib import Path
from typing import Any

from srlab import ablation, datasets, evaluate, recipes, sweeps, team, train

SWEEPS = (*sweeps.SWEEPS, ablation.RECORD)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--recipe`, `--folder`, `--resume`, `--stop-after` and one option per field of a recipe."""
    parser.add_argument("--recipe", metavar="NAME", help=f"the recipe to start from: {', '.join(train.RECIPES)}")
    parser.add_argument("--list", action="store_true", help="show the recipes and where their values come from")
    parser.add_argument("--folder", type=Path, help="run folder; a run it holds is resumed. Default: runs/MODEL-seedN")
    parser.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="go on with the run in this folder, as it was begun"
    )
    parser.add_argument("--sweep", metavar="NAME", help=f"train a list of recipes: {', '.join(SWEEPS)}")
    parser.add_argument("--part", metavar="I/N", help="with --sweep: the share of process I of N, as in 1/2")
    parser.add_argument("--print-launch", action="store_true", help="print the command for many devices, train nothing")
    parser.add_argument("--nodes", type=int, default=1, help="with --print-launch: machines. Default: 1")
    parser.add_argument("--devices", type=int, default=1, help="with --print-launch: devices of each. Default: 1")
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


def _words(value: Any) -> list[str]:
    """A value as it is typed on the command line."""
    if isinstance(value, dict):
        return [f"{name}={json.dumps(inner)}" for name, inner in value.items()]
    return [str(inner) for inner in value] if isinstance(value, tuple) else [str(value)]


def _shown(value: Any) -> str:
    return " ".join(_words(value)) or "none"


def run(options: argparse.Namespace) -> int:
    """Train as asked and return the exit code: 0 done, 1 a run of a sweep failed, 130 stopped by Ctrl-C."""
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in vars(options).items()}
    asked = {name: values.pop(name) for name in NO_FIELDS}
    if asked["list"]:
        for name, recipe in train.RECIPES.items():
            print(f"{name:<22} {recipe.steps:>9,} steps  {recipes.SOURCES[name]}")
        return 0
    stop_after = asked["stop_after"]
    if stop_after is not None and stop_after < 1:
        raise ValueError(f"--stop-after is {stop_after}, expected at least one step: without a step nothing is trained")
    if (asked["nodes"], asked["devices"]) != (1, 1) and not asked["print_launch"]:
        raise ValueError(
            "--nodes and --devices are for --print-launch: add it, and give the command that it prints; this one would "
            "train on a single device"
        )
    if asked["sweep"] or asked["part"]:
        alone = ("recipe", "resume", "stop_after", "print_launch")
        if not asked["sweep"] or values or any(asked[name] for name in alone):
            raise ValueError("--sweep trains the recipes of a list as they are: only --part and --folder go with it")
        return _run_sweep(asked["sweep"], asked["folder"] or Path("runs") / asked["sweep"], asked["part"] or "1/1")
    recipe = _recipe(asked, values)
    if asked["print_launch"]:
        _print_launch(recipe, asked, values)
        return 0
    leads = os.environ.get("RANK", "0") == "0"
    for field, value in dataclasses.asdict(recipe).items() if leads else ():
        print(f"{field:>22} {_shown(value)}")
    result = train.fit(recipe, asked["resume"] or asked["folder"], stop_after=stop_after)
    if result.step < recipe.steps:
        return 130 if stop_after is None else 0
    if leads:
        _tell(result, recipe)
    return 0


NO_FIELDS = ("recipe", "list", "folder", "resume", "sweep", "part", "print_launch", "nodes", "devices", "stop_after")
"""Options that are no fields of a recipe."""


def _recipe(asked: dict[str, Any], values: dict[str, Any]) -> train.Recipe:
    """The recipe that is asked for: named and changed by `values`, or the one of the folder to go on with."""
    name, resume = asked["recipe"], asked["resume"]
    if resume:
        if name or values or asked["folder"]:
            raise ValueError("--resume goes on with the recipe in its folder: leave out recipe, fields and --folder")
        return train.Recipe.from_dict(json.loads((resume / "recipe.json").read_text(encoding="utf-8")))
    if name not in train.RECIPES:
        known = ", ".join(train.RECIPES)
        said = f"no recipe {name!r}" if name else "no recipe named"
        raise ValueError(
            f"{said}: expected one of {known}, or --resume FOLDER (example: srlab train --recipe demo --steps 300)"
        )
    recipe = train.RECIPES[name]
    try:
        return dataclasses.replace(recipe, **values)
    except ValueError as error:
        if not str(error).startswith("unknown size") or "sizes" in values:
            raise
        sizes = " ".join(f"{size}={value}" for size, value in recipe.sizes.items())
        raise ValueError(
            f"{error}. The recipe has {sizes}: say --sizes again, for what you put in its place"
        ) from error


def _print_launch(recipe: train.Recipe, asked: dict[str, Any], values: dict[str, Any]) -> None:
    """The same words as were given, behind torchrun."""
    words = []
    for name in ("recipe", "folder", "resume", "stop_after"):
        words += [f"--{name.replace('_', '-')}", str(asked[name])] if asked[name] else []
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        words += [option if value else f"--no-{option[2:]}"] if isinstance(value, bool) else [option, *_words(value)]
    processes = asked["nodes"] * asked["devices"]
    print(team.launch_command(words, asked["nodes"], asked["devices"]))
    if processes > recipe.micro_batches:
        raise ValueError(f"{processes} processes for {recipe.micro_batches} micro-batches a step: add --micro-batches")
    if recipe.micro_batches % processes:
        print(f"# {recipe.micro_batches} micro-batches over {processes} processes: some compute one more than others")
    if asked["nodes"] > 1:
        print("# on each machine, with HOST replaced by the name of one of them; give it again to go on after a stop")


def _tell(result: train.Result, recipe: train.Recipe) -> None:
    """Where the weights are, and on the small test set, if it is on this machine, what they are worth."""
    path = result.folder / "model.safetensors"
    print(f"done: {path} ({'running average' if recipe.ema else 'last'} weights of step {result.step})")
    here = {status.name: status.present == status.total for status in datasets.status()}
    name = "set5" if here["set5"] else "demo"
    seen = ", which it was trained on" if name == recipe.data else ""
    pictures = datasets.load(name).subset(["coffee", "chelsea", "astronaut"]) if name == "demo" else datasets.load(name)
    print(f"PSNR-Y on {name}{seen}, {len(pictures)} pictures:")
    for scale in recipe.scales:
        ours, plain = (
            evaluate.benchmark(model, pictures, scale, progress=False)["psnr_y"].mean()
            for model in (result.model, evaluate.Bicubic())
        )
        print(f"    x{scale}  {ours:.2f} dB, bicubic {plain:.2f}, gain {ours - plain:+.2f}")
    print(f"next: srlab evaluate {path} --scale {' '.join(map(str, recipe.scales))}")


def _run_sweep(name: str, folder: Path, part: str) -> int:
    if name == ablation.RECORD:  # looks at octaves on the way, so it has a loop of its own
        for run in ablation.train_all(folder, part=part):
            print(f"{run} is finished", flush=True)
        return 0
    outcomes = sweeps.run(sweeps.named(name), folder, part=part)
    states = [outcome.state for outcome in outcomes]
    if "interrupted" in states:
        return 130
    return int("failed" in states)
