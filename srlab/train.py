"""Training: one visible loop (`fit`) that follows a `Recipe`.

Pictures come from `datasets.CropStore`, the model from `models.build`; weights, log and checkpoint go to a folder:

    runs/NAME/recipe.json   what was asked for
             /log.csv       one row per `log_every` steps
             /last.ckpt     everything needed to go on; replaced as a whole, so a crash leaves the previous one
             /model.safetensors   the finished weights (EMA where the recipe has one)

Each micro-batch draws its scale, crops and flips from a generator seeded by (seed, step, its number), so a run that was
stopped, by Ctrl-C or by a power cut, goes on as if nothing had happened: on a CPU, bit for bit.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from srlab import datasets, images, losses, models, runtime, transfer, weights
from srlab.recipes import RECIPES, Recipe, field_docs

__all__ = ["RECIPES", "Recipe", "Result", "TrainingError", "field_docs", "fit"]

CHECKPOINT_FORMAT = 1

OnLog = Callable[[dict[str, float], models.SRModel], None]
"""Called with each new row of the log and the model in training."""


@dataclass(frozen=True)
class Result:
    """What a run ended with."""

    model: models.SRModel
    """In evaluation mode; the averaged weights where the recipe has an `ema`, else the raw ones."""
    log: list[dict[str, float]]
    """Rows of log.csv: step, loss, l1, fft, gradient_norm, learning_rate, seconds."""
    folder: Path
    step: int
    """Steps done; less than `recipe.steps` when the run was interrupted."""


class TrainingError(RuntimeError):
    """A run that cannot start, go on or be resumed; the message says why."""


def fit(
    recipe: Recipe,
    folder: str | Path | None = None,
    *,
    resume: bool = True,
    store: datasets.CropStore | None = None,
    on_log: OnLog | None = None,
    stop_after: int | None = None,
    accelerator: str = "auto",
) -> Result:
    """Train `recipe`, or go on with it where `folder` holds a checkpoint.

    Args:
        recipe: what to train.
        folder: run folder; None makes `runs/MODEL-seedN`.
        resume: go on from the folder's last checkpoint. False refuses a folder that already holds one.
        store: crops to train on, when the caller has them; else made from `recipe.data`.
        on_log: called with each new row of the log and the model in training, for live curves.
        stop_after: stop after this many steps in this call, with a checkpoint; the rest can be done later.
        accelerator: as Lightning Fabric names them: "auto", "cpu", "cuda".

    Raises:
        TrainingError: the folder holds another recipe's run, or the loss is no longer finite.
    """
    folder = Path(folder or f"runs/{recipe.model_name}-seed{recipe.seed}")
    run = _Run(recipe, folder, resume, accelerator)
    if store is None:
        store = datasets.CropStore(datasets.load(recipe.data), recipe.scales, patch=recipe.patch)
    store = store.to(run.fabric.device)
    stop = recipe.steps if stop_after is None else min(recipe.steps, run.step + stop_after)
    progress = tqdm(total=recipe.steps, initial=run.step, unit="step", desc=folder.name, mininterval=1.0, leave=False)
    with progress, _finish_step_on_interrupt() as interrupted:
        while run.step < stop and not interrupted():
            run.take_step(store)
            progress.update()
            if run.step % recipe.log_every == 0:
                row = run.log_row()
                progress.set_postfix(loss=f"{row['loss']:.4f}")
                if on_log:
                    on_log(row, run.model)
            if run.step % recipe.save_every == 0 and run.step < stop:
                run.save()
        run.save()
    if run.step < recipe.steps:
        print(f"stopped at step {run.step} of {recipe.steps}; to go on: srlab train --resume {folder}")
    model = run.finished_model()
    if run.step == recipe.steps:
        weights.save(model, folder / "model.safetensors", run.card(store))
    return Result(model, run.log, folder, run.step)


class _Run:
    """State of a run: model, optimiser, average, log; one step, saving, loading."""

    def __init__(self, recipe: Recipe, folder: Path, resume: bool, accelerator: str):
        self.recipe, self.folder = recipe, folder
        checkpoint = self._load(resume)
        self.fabric = Fabric(accelerator=accelerator, devices=1)
        torch.manual_seed(recipe.seed)
        self.model = recipe.build()
        self.start = checkpoint.get("start") if checkpoint else transfer.start_from(self.model, recipe.start_from)
        self.model.to(self.fabric.device, memory_format=torch.channels_last).train()
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema)) if recipe.ema else None
        optimizer = torch.optim.Adam(self.model.parameters(), recipe.learning_rate, recipe.betas, fused=True)
        self.network, self.optimizer = self.fabric.setup(self.model, optimizer)
        self.step, self.log, self.window = 0, [], {}
        self.seconds, self.cpu_seconds = 0.0, 0.0
        if checkpoint:
            self._restore(checkpoint)
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(recipe), indent=1)
        runtime.atomic_write(self.folder / "recipe.json", lambda path: path.write_text(text, encoding="utf-8"))
        self._write_log()

    def take_step(self, store: datasets.CropStore) -> None:
        """One optimiser step: several micro-batches, each with a scale of its own."""
        started, cpu_started = time.perf_counter(), time.process_time()
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(self.step)
        parts = {"l1": 0.0, "fft": 0.0}
        for scale, generators in self._scales_of_step().items():
            lr, hr = self._batch(store, scale, generators)
            loss, detail = losses.total_loss(self.network(lr, scale), hr, recipe.fft_weight)
            share = len(generators) / recipe.micro_batches
            self.fabric.backward(share * loss)
            for name, value in detail.items():
                parts[name] += share * value.item()
        if not math.isfinite(sum(parts.values())):
            raise TrainingError(
                f"the loss is {sum(parts.values())} at step {self.step}: the weights have diverged, most often from a "
                f"learning rate that is too high; {self.folder / 'last.ckpt'} holds the last good state"
            )
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]).item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update_parameters(self.model)
        self.step += 1
        now = {**parts, "gradient_norm": norm, "count": 1}
        self.window = {name: self.window.get(name, 0.0) + value for name, value in now.items()}
        self.seconds += time.perf_counter() - started
        self.cpu_seconds += time.process_time() - cpu_started

    def _scales_of_step(self) -> dict[int, list[torch.Generator]]:
        """Draw each micro-batch's scale; those that drew the same one are computed together, their kernel only once."""
        groups: dict[int, list[torch.Generator]] = {}
        for number in range(self.recipe.micro_batches):
            seed = np.random.SeedSequence((self.recipe.seed, self.step, number)).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(seed[0] >> 1))
            choice = int(torch.randint(len(self.recipe.scales), (), generator=generator))
            groups.setdefault(self.recipe.scales[choice], []).append(generator)
        return groups

    def _batch(self, store: datasets.CropStore, scale: int, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        recipe = self.recipe
        crops = [store.batch(scale, recipe.micro_batch, recipe.patch, generator) for generator in generators]
        lr, hr = (torch.cat(pictures) for pictures in zip(*crops, strict=True))
        lr = images.to_float(lr).contiguous(memory_format=torch.channels_last)  # (n * micro_batch, 3, patch, patch)
        return lr, images.to_float(hr)

    def log_row(self) -> dict[str, float]:
        """Means since the last row."""
        count = self.window.pop("count")
        row = {"step": self.step, "loss": (self.window["l1"] + self.window["fft"]) / count}
        row |= {name: value / count for name, value in self.window.items()}
        row |= {"learning_rate": self.recipe.learning_rate_at(self.step - 1), "seconds": round(self.seconds, 2)}
        self.window = {}
        self.log.append(row)
        with (self.folder / "log.csv").open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, row).writerow(row)
        return row

    def _write_log(self) -> None:
        """Start log.csv anew from the rows that belong to the state at hand: rows after the checkpoint are dropped."""
        columns = ["step", "loss", "l1", "fft", "gradient_norm", "learning_rate", "seconds"]

        def write(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(self.log)

        runtime.atomic_write(self.folder / "log.csv", write)

    def save(self) -> None:
        state = {
            "format": CHECKPOINT_FORMAT,
            "recipe": _plain(self.recipe),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "start": self.start,
            "log": self.log,
            "window": self.window,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }
        runtime.atomic_write(self.folder / "last.ckpt", lambda path: torch.save(state, path))

    def _load(self, resume: bool) -> dict[str, Any] | None:
        path = self.folder / "last.ckpt"
        if not path.exists():
            return None
        if not resume:
            raise TrainingError(f"{self.folder} already holds a run: resume it, or give another folder")
        state = weights.load_tensors(path)
        if state.get("format") != CHECKPOINT_FORMAT:
            raise TrainingError(f"{path} is no checkpoint of this trainer: expected format {CHECKPOINT_FORMAT}")
        asked = _plain(self.recipe)
        there = _plain(Recipe()) | state["recipe"]  # a field that is younger than the checkpoint had its default
        if transfer.same_start(self.recipe.start_from, state.get("start")):  # both may have moved
            there["start_from"] = self.recipe.start_from
        other = [
            f"{name}: {there[name]!r} there, {asked[name]!r} asked" for name in asked if there[name] != asked[name]
        ]
        if other:
            raise TrainingError(
                f"{self.folder} holds the run of another recipe ({'; '.join(other)}): give another folder"
            )
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.step, self.log = state["step"], state["log"]
        self.window, self.seconds, self.cpu_seconds = state["window"], state["seconds"], state.get("cpu_seconds", 0.0)

    def card(self, store: datasets.CropStore) -> dict[str, Any]:
        """What the finished weights say about themselves."""
        return {
            "recipe": dataclasses.asdict(self.recipe),
            "step": self.step,
            "weights": "ema" if self.ema else "raw",
            "data": store.name,
            "start": self.start,
            "seconds": round(self.seconds, 1),  # of training steps alone, as the log has them
            "cpu_seconds": round(self.cpu_seconds, 1),
            "device": str(self.fabric.device),
            "threads": torch.get_num_threads(),
            "commit": runtime.commit(),
        }

    def finished_model(self) -> models.SRModel:
        return (self.ema.module if self.ema else self.model).eval()


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON would give it back: tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


@contextlib.contextmanager
def _finish_step_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C (and a notebook's stop button) into a question asked between steps; a second one stops at once."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread: nobody can press Ctrl-C there
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
