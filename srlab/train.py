"""Training: one frozen `Recipe`, one visible loop (`fit`).

Pictures come from `datasets.CropStore`, the model from `models.build`; weights, log and checkpoint go to a folder:

    runs/NAME/recipe.json   what was asked for
             /log.csv       one row per `log_every` steps
             /last.ckpt     everything needed to go on; replaced as a whole, so a crash leaves the previous one
             /model.safetensors   the finished weights (EMA where the recipe has one)

Each micro-batch draws its scale, crops and flips from a generator seeded by (seed, step, its number), so a run that was
stopped, by Ctrl-C or by a power cut, goes on as if nothing had happened: on a CPU, bit for bit.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import dataclasses
import difflib
import inspect
import itertools
import json
import math
import signal
import time
import typing
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

from srlab import datasets, images, losses, models, runtime, weights

CHECKPOINT_FORMAT = 1


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run ends with. Defaults: the paper's EDSR with IGConv (official code).

    Raises:
        ValueError: a value out of range; nothing has been computed by then.
    """

    encoder: str = "edsr"
    """Encoder, a name in `models.ENCODERS`."""
    upsampler: str = "igconv"
    """Upsampler, a name in `models.UPSAMPLERS`."""
    scales: tuple[int, ...] = (2, 3, 4)
    """Scales to train for; each micro-batch draws one of them with equal chance."""
    data: str = "bsd400"
    """Training pictures: a named set or a folder. The paper uses DIV2K, which has to be given as a folder."""
    steps: int = 300_000
    """Optimiser steps. The paper gives one multi-scale model the steps of one fixed-scale model."""
    micro_batch: int = 4
    """Crops per micro-batch, all of one scale (the paper: 4 on each GPU)."""
    micro_batches: int = 4
    """Micro-batches per optimiser step, each with its own scale. The paper's four GPUs draw four scales a step; one
    batch of 16 at one scale would be another gradient."""
    patch: int = 48
    """Side of the LR crops in pixels; the HR crops are `scale` times larger."""
    learning_rate: float = 1e-4
    """Learning rate of Adam at the start."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of Adam's two running means."""
    milestones: tuple[int, ...] = (200_000,)
    """Steps at which the learning rate is halved; unused when `final_learning_rate` is given."""
    final_learning_rate: float | None = None
    """Follow a cosine from `learning_rate` down to this at the last step, instead of milestones."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly from zero."""
    ema: float = 0.999
    """Decay per step of the running average of the weights; 0 keeps none. The average is what is saved and scored."""
    fft_weight: float = 0.0
    """Weight of the frequency loss beside L1; the paper's IGConv+ has 0.05."""
    seed: int = 0
    """Seed of the first weights and of all crops."""
    log_every: int = 100
    """Steps per row of the log."""
    save_every: int = 1000
    """Steps per checkpoint."""

    def __post_init__(self) -> None:
        for name in ("steps", "micro_batch", "micro_batches", "patch", "log_every", "save_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require(
            "patch", self.patch >= 8, "at least 8 LR pixels: smaller crops show an encoder mostly its own border"
        )
        self._require("scales", len(self.scales) >= 1, "at least one scale, such as (2, 3, 4)")
        self._require("learning_rate", 0 < self.learning_rate < 1, "between 0 and 1")
        self._require("betas", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two values in [0, 1)")
        self._require("ema", 0 <= self.ema < 1, "in [0, 1)")
        self._require("fft_weight", self.fft_weight >= 0, "0 or more")
        self._require("warmup", self.warmup >= 0, "0 or more")
        self._require("milestones", list(self.milestones) == sorted(self.milestones), "in rising order")
        if self.final_learning_rate is not None:
            fits = 0 <= self.final_learning_rate <= self.learning_rate
            self._require("final_learning_rate", fits, f"between 0 and learning_rate = {self.learning_rate}")
        models.check_names(self.encoder, self.upsampler, self.scales)

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"recipe: {name} is {getattr(self, name)!r}, expected {expected}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Make a recipe from plain values (JSON, command line); a name it does not know raises with the nearest one."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(known)}"
                raise ValueError(f"recipe: unknown field {name!r}; {hint}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the optimiser step number `step`, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.final_learning_rate is None:
            return self.learning_rate * 0.5 ** sum(step >= milestone for milestone in self.milestones)
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        swing = (self.learning_rate - self.final_learning_rate) / 2
        return self.final_learning_rate + swing * (1 + math.cos(math.pi * progress))


RECIPES: dict[str, Recipe] = {
    # seconds: shows that everything works
    "smoke": Recipe("edsr-tiny", "igconv", data="demo", steps=20, micro_batch=2, micro_batches=2, patch=16,
                    learning_rate=1e-3, final_learning_rate=1e-5, ema=0.9, log_every=5, save_every=20),
    # two minutes on two cores: a model that visibly beats bicubic
    "demo": Recipe("edsr-tiny", "igconv", data="demo", steps=600, micro_batch=4, micro_batches=3, patch=32,
                   learning_rate=2e-3, final_learning_rate=1e-5, warmup=50, ema=0.99, log_every=10, save_every=200),
    # an hour or two on two cores: the model in data/weights
    "edsr-tiny-igconv": Recipe("edsr-tiny", "igconv", steps=16_000, learning_rate=2e-3, final_learning_rate=1e-6,
                               warmup=200),
    # the paper's
    "edsr-igconv": Recipe(),
}  # fmt: skip
"""Named recipes. Change one with `dataclasses.replace(RECIPES["demo"], steps=100)`."""


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
    on_log: Callable[[dict[str, float], models.SRModel], None] | None = None,
    stop_after: int | None = None,
    accelerator: str = "auto",
) -> Result:
    """Train `recipe`, or go on with it where `folder` holds a checkpoint.

    Args:
        recipe: what to train.
        folder: run folder; None makes `runs/ENCODER-UPSAMPLER-seedN`.
        resume: go on from the folder's last checkpoint. False refuses a folder that already holds one.
        store: crops to train on, when the caller has them; else made from `recipe.data`.
        on_log: called with each new row of the log and the model in training, for live curves.
        stop_after: stop after this many steps in this call, with a checkpoint; the rest can be done later.
        accelerator: as Lightning Fabric names them: "auto", "cpu", "cuda".

    Raises:
        TrainingError: the folder holds another recipe's run, or the loss is no longer finite.
    """
    folder = Path(folder or f"runs/{recipe.encoder}-{recipe.upsampler}-seed{recipe.seed}")
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
        card = {"recipe": dataclasses.asdict(recipe), "step": run.step, "weights": "ema" if recipe.ema else "raw",
                "data": store.name, "commit": runtime.commit()}  # fmt: skip
        weights.save(model, folder / "model.safetensors", card)
    return Result(model, run.log, folder, run.step)


class _Run:
    """State of a run: model, optimiser, average, log; one step, saving, loading."""

    def __init__(self, recipe: Recipe, folder: Path, resume: bool, accelerator: str):
        self.recipe, self.folder = recipe, folder
        checkpoint = self._load(resume)
        self.fabric = Fabric(accelerator=accelerator, devices=1)
        torch.manual_seed(recipe.seed)
        self.model = models.build(recipe.encoder, recipe.upsampler, recipe.scales)
        self.model.to(self.fabric.device, memory_format=torch.channels_last).train()
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema)) if recipe.ema else None
        optimizer = torch.optim.Adam(self.model.parameters(), recipe.learning_rate, recipe.betas, fused=True)
        self.network, self.optimizer = self.fabric.setup(self.model, optimizer)
        self.step, self.log, self.window, self.seconds = 0, [], {}, 0.0
        if checkpoint:
            self._restore(checkpoint)
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(recipe), indent=1)
        runtime.atomic_write(self.folder / "recipe.json", lambda path: path.write_text(text, encoding="utf-8"))
        self._write_log()

    def take_step(self, store: datasets.CropStore) -> None:
        """One optimiser step: several micro-batches, each with a scale of its own."""
        started = time.perf_counter()
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
            "log": self.log,
            "window": self.window,
            "seconds": self.seconds,
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
        other = [f"{name}: {state['recipe'].get(name)!r} there, {asked[name]!r} asked" for name in asked
                 if state["recipe"].get(name) != asked[name]]  # fmt: skip
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
        self.window, self.seconds = state["window"], state["seconds"]

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


def field_docs() -> dict[str, str]:
    """The sentence below each field of `Recipe`, for `srlab train --help`."""
    body = ast.parse(inspect.getsource(Recipe)).body[0].body
    docs = {}
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            docs[typing.cast(ast.Name, field.target).id] = inspect.cleandoc(below.value.value).replace("\n", " ")
    return docs
