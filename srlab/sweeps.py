"""Sweeps room: named lists of trainings, done one after another by as many processes as there are cores to give.

Takes a sweep's name, or any list of (run name, recipe), and a folder; leaves one run folder per recipe, as `train.fit`
writes them. Runs that are finished are skipped, begun ones go on where they were, so the same command is repeated until
all is done.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from srlab import runtime, train
from srlab.recipes import Recipe
from srlab.train import is_finished

Sweep = Sequence[tuple[str, Recipe]]
"""Runs in the order in which they are wanted: name of the folder, recipe. A recipe may start from a run of the sweep,
named in `start_from`; the run it starts from stands before it."""

SCALES = (2, 3, 4)
WEIGHTS = "model.safetensors"

# What two cores do in two hours: bf16 and smaller crops than the paper's 48 buy more steps, and are the same for all
# runs, so that no comparison within a sweep rests on them.
_TINY = Recipe("edsr-tiny", "spconv", steps=6000, patch=32, learning_rate=2e-3, final_learning_rate=1e-6, warmup=200,
               precision="bf16-mixed", save_every=500)  # fmt: skip
_NANO = dataclasses.replace(_TINY, encoder="edsr-nano", steps=2000, patch=48)


def _library() -> Sweep:
    """The trained models that ship with the project, and the control of each claim: one model or three, twice."""
    runs = []
    for seed in (0, 1):
        runs += [
            (f"spconv-x{scale}-seed{seed}", dataclasses.replace(_TINY, scales=(scale,), seed=seed)) for scale in SCALES
        ]
        runs.append((f"igconv-seed{seed}", dataclasses.replace(_TINY, upsampler="igconv", seed=seed)))
        runs.append(
            (f"igconv-plus-seed{seed}", dataclasses.replace(_TINY, upsampler="igconv+", fft_weight=0.05, seed=seed))
        )
        if seed == 0:
            runs.append((f"heads-seed{seed}", dataclasses.replace(_TINY, scales=SCALES, seed=seed)))
    return runs


def _provenance() -> Sweep:
    """What do two encoders share when they have nothing in common, one seed (the same first weights and the same order
    of pictures), or when x3 and x4 were fine-tuned from x2?"""
    runs = []
    for seed in (0, 1, 2):
        runs += [(f"x{scale}-seed{seed}", dataclasses.replace(_NANO, scales=(scale,), seed=seed)) for scale in SCALES]
        for scale in (3, 4):  # a seed of its own: only the start is shared
            recipe = dataclasses.replace(_NANO, scales=(scale,), seed=10 + seed, start_from=f"x2-seed{seed}")
            runs.append((f"x{scale}-from-x2-seed{seed}", recipe))
    return runs


SWEEPS: dict[str, Sweep] = {"library": _library(), "provenance": _provenance()}
"""Named sweeps, all on `bsd400`, with equal steps per model as in the paper."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one run."""

    name: str
    state: str
    """"finished", "was finished", "interrupted" or "failed" """
    message: str = ""
    """Why it failed."""


def named(name: str) -> Sweep:
    """A sweep of the table.

    Raises:
        ValueError: no such sweep; the message lists them.
    """
    if name not in SWEEPS:
        near = difflib.get_close_matches(name, SWEEPS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no sweep {name!r}: expected one of {', '.join(SWEEPS)}{hint}")
    return SWEEPS[name]


def part_of(sweep: Sweep, part: str = "1/1") -> list[tuple[str, Recipe]]:
    """The share of one process: part "2/3" takes every third run from the second on.

    A run that starts from another one goes where that one goes, so that no process waits for another.

    Raises:
        ValueError: no such part; two runs of one name; a start that stands nowhere before the run.
    """
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", part)
    if not found or int(found[1]) > int(found[2]):
        raise ValueError(f"part is {part!r}, expected I/N with I from 1 to N: 1/2 is the first of two processes")
    wanted, parts = int(found[1]) - 1, int(found[2])
    place: dict[str, int] = {}
    names = {name for name, _ in sweep}
    independent = 0
    for name, recipe in sweep:
        if name in place:
            raise ValueError(f"sweep: two runs are called {name!r}")
        if recipe.start_from in names:
            if recipe.start_from not in place:
                raise ValueError(f"sweep: {name} starts from {recipe.start_from}, which stands after it")
            place[name] = place[recipe.start_from]
        else:
            place[name] = independent % parts
            independent += 1
    return [(name, recipe) for name, recipe in sweep if place[name] == wanted]


def run(
    sweep: Sweep,
    folder: str | Path,
    *,
    part: str = "1/1",
    accelerator: str = "auto",
    callback: Callable[[str], train.OnLog | None] | None = None,
) -> list[Outcome]:
    """Train what is not yet trained, one run after another, each in `folder / NAME`.

    Args:
        sweep: what to train; for a table's one `named(name)`.
        folder: of the sweep.
        part: this process's share, see `part_of`.
        accelerator: as `train.fit` has it.
        callback: called with a run's name, gives what `train.fit` calls with each row of that run's log, or None.

    Returns:
        What became of each run. After Ctrl-C the rest is left out; a run that fails does not stop the others.

    Raises:
        ValueError: see `part_of`.
        TeamError: another process of the team was ended.
    """
    folder = Path(folder)
    names = {name for name, _ in sweep}
    outcomes = []
    mine = part_of(sweep, part)
    for number, (name, recipe) in enumerate(mine, 1):
        if recipe.start_from in names:
            recipe = dataclasses.replace(recipe, start_from=str(folder / recipe.start_from / WEIGHTS))
        print(f"{time.strftime('%H:%M')} {number} of {len(mine)}: {name}", flush=True)
        outcome = _run_one(name, recipe, folder / name, accelerator, callback(name) if callback else None)
        outcomes.append(outcome)
        print(f"      {outcome.state} {outcome.message}".rstrip(), flush=True)
        if outcome.state == "interrupted":
            break
    return outcomes


def _run_one(name: str, recipe: Recipe, folder: Path, accelerator: str, on_log: train.OnLog | None) -> Outcome:
    try:
        if is_finished(recipe, folder):
            return Outcome(name, "was finished")
        done = train.fit(recipe, folder, accelerator=accelerator, on_log=on_log)
    except train.TeamError:
        raise  # this process has lost the others, and so has every run to come
    except Exception as error:  # of whatever kind: the others may still be had
        return Outcome(name, "failed", f"{type(error).__name__}: {error}")
    return Outcome(name, "finished" if done.step == recipe.steps else "interrupted")


def bundle(sweep: Sweep, folder: str | Path, target: str | Path, prefix: str = "") -> list[Path]:
    """Copy what a finished sweep left behind, so that it can ship: weights and log of each run, as NAME.safetensors and
    NAME.csv.

    Args:
        sweep: as given to `run`.
        folder: of the sweep.
        target: where to, such as `data/weights`.
        prefix: of the names, before those of the runs.

    Returns:
        The files written.

    Raises:
        ValueError: runs are not finished, or are of other recipes; nothing has been copied then.
    """
    folder, target = Path(folder), Path(target)
    if missing := [name for name, recipe in sweep if not is_finished(recipe, folder / name)]:
        raise ValueError(f"{folder} lacks finished runs of these recipes: {', '.join(missing)}. Is the sweep done?")
    copied = []
    for name, _ in sweep:
        for source in ("log.csv", WEIGHTS):
            path = target / f"{prefix}{name}{Path(source).suffix}"
            copied.append(runtime.atomic_write(path, functools.partial(shutil.copyfile, folder / name / source)))
    return copied
