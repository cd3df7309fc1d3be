"""Training: one visible loop (`fit`) that follows a `Recipe`.

Pictures come from `datasets.CropStore`, the model from `models.build`; weights, log and checkpoint go to a folder:

    runs/NAME/recipe.json   what was asked for
             /log.csv       one row per `log_every` steps
             /validation.csv   a row per scale and validation, where the recipe has one
             /last.ckpt     everything needed to go on; replaced as a whole, so a crash leaves the previous one
             /best.safetensors   the weights of the best validation
             /model.safetensors  the finished weights (EMA where the recipe has one)
             /tensorboard   the same curves, where tensorboard is installed

Each micro-batch draws its scale, crops and flips from a generator seeded by (seed, step, its number), so a run that was
stopped, by Ctrl-C or by a power cut, goes on as if nothing had happened: on a CPU with as many threads, bit for bit.
Several processes (`team.Team`) share the micro-batches of a step by their numbers and so train the same model.
"""

from __future__ import annotations

import contextlib
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
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from srlab import datasets, evaluate, images, losses, models, runtime, statistics, transfer, weights
from srlab.imagesets import ImageSet
from srlab.recipes import RECIPES, Recipe, field_docs
from srlab.runlog import Curves, Table
from srlab.team import Team, TeamError

__all__ = ["RECIPES", "Recipe", "Result", "TeamError", "TrainingError", "field_docs", "fit", "is_finished"]

CHECKPOINT_FORMAT = 1
CHECKPOINT_PARTS = ("recipe", "step", "model", "optimizer", "ema", "log", "window", "seconds")  # in every one of them
LOG = ("step", "loss", "l1", "fft", "gradient_norm", "learning_rate", "seconds")
PARTS = ("l1", "fft")
VALIDATION = ("step", "weights", "dataset", "images", "scale", "psnr_y", "ssim_y")

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
    validation: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Rows of validation.csv: step, weights (ema or raw), dataset, images, scale, psnr_y, ssim_y. PSNR is the mean over
    pictures that are not exact (theirs is infinite), and None where all are."""


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
    should_stop: Callable[[], bool] | None = None,
) -> Result:
    """Train `recipe`, or go on with it where `folder` holds a checkpoint.

    Args:
        recipe: what to train.
        folder: run folder; None makes `runs/MODEL-seedN`.
        resume: go on from the folder's last checkpoint. False refuses a folder that already holds one.
        store: crops to train on, when the caller has them; else made from `recipe.data`.
        on_log: called with each new row of the log and the model in training, for live curves.
        stop_after: stop after this many steps in this call, with a checkpoint; the rest can be done later.
        accelerator: as Lightning Fabric names them: "auto" (what `SRLAB_DEVICE` says), "cpu", "cuda".
        should_stop: asked after each step, for a pause button; True ends the call as Ctrl-C does.

    Raises:
        TrainingError: the folder holds another recipe's run, or loss or gradient are no longer finite, or a picture of
            the validation cannot be scored at all scales; the last is found out before the first step.
        TeamError: another process of the team was ended.
    """
    folder = Path(folder or f"runs/{recipe.model_name}-seed{recipe.seed}")
    run = _Run(recipe, folder, resume, accelerator)
    if store is None:
        store = datasets.CropStore(datasets.load(recipe.data), recipe.scales, patch=recipe.patch)
    store = store.to(run.team.device)
    stop = recipe.steps if stop_after is None else min(recipe.steps, run.step + stop_after)
    progress = tqdm(total=recipe.steps, initial=run.step, unit="step", desc=folder.name, mininterval=1.0, leave=False,
                    disable=not run.team.leads)  # fmt: skip
    with progress, contextlib.closing(run), _finish_step_on_interrupt() as interrupted:
        asked = False
        if run.validation_is_due():  # the last call was ended between the checkpoint and the validation of a step
            run.validate()
        while run.step < stop and not asked:
            run.take_step(store)
            progress.update()
            if run.step % recipe.log_every == 0:
                row = run.log_row()
                progress.set_postfix(loss=f"{row['loss']:.4f}")
                if on_log and run.team.leads:
                    on_log(row, run.model)
            due = run.validation_is_due()
            if due or (run.step % recipe.save_every == 0 and run.step < stop):
                run.save()
            if due:  # after the checkpoint: no step is lost to a validation that fails
                run.validate()
            asked = run.team.any(interrupted() or (should_stop is not None and should_stop()))
        run.save()
        model = run.finish(store)
    return Result(model, run.log.rows, folder, run.step, run.validation.rows)


class _Run:
    """State of a run: model, optimiser, average, log; one step, saving, loading."""

    def __init__(self, recipe: Recipe, folder: Path, resume: bool, accelerator: str):
        self.recipe, self.folder = recipe, folder
        self.team = Team(accelerator, recipe.precision)
        if self.team.size > recipe.micro_batches:
            raise TrainingError(
                f"{self.team.size} processes for {recipe.micro_batches} micro-batches a step: some would have nothing "
                f"to do; start fewer, or ask for more micro_batches (which is another recipe)"
            )
        checkpoint = self.team.share(self._load(resume) if self.team.leads else None)
        torch.manual_seed(recipe.seed)
        self.model = recipe.build()
        self.start = checkpoint.get("start") if checkpoint else transfer.start_from(self.model, recipe.start_from)
        self.model.to(self.team.device, memory_format=torch.channels_last).train()
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema)) if recipe.ema else None
        self.network = torch.compile(self.model) if recipe.compile else self.model
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, recipe.learning_rate, recipe.betas, fused=True)
        state = checkpoint or {"step": 0, "log": [], "window": {}, "seconds": 0.0}
        if checkpoint:
            self._restore(checkpoint)
        self.step = self.began = state["step"]
        self.window = state["window"]
        self.seconds, self.cpu_seconds = state["seconds"], state.get("cpu_seconds", 0.0)
        files = folder if self.team.leads else None
        if files:
            self._write_recipe()
        self.log = Table(files and files / "log.csv", LOG, state["log"])
        rows = state.get("validation", [])
        self.validation = Table((files and recipe.validation and files / "validation.csv") or None, VALIDATION, rows)
        self.curves = Curves(files and files / "tensorboard", self.step)
        needed = recipe.validation and files and (self.step < recipe.steps or self.validation_is_due())
        self.pictures = self._pictures_to_validate_on() if needed else None

    def take_step(self, store: datasets.CropStore) -> None:
        """One optimiser step: several micro-batches, each with a scale of its own."""
        started, cpu_started = time.perf_counter(), time.process_time()
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(self.step)
        batches = []
        for scale, generators in self._scales_of_step().items():
            lr, hr = self._batch(store, scale, generators)
            with self.team.autocast():
                sr = self.network(lr, scale)
            loss, parts = losses.total_loss(sr, hr, recipe.fft_weight)
            share = len(generators) / recipe.micro_batches
            (share * loss).backward()
            batches.append({"scale": scale, "share": share, "lr": lr, "hr": hr, **parts})
        sums = self.team.add_up(self.parameters, _weighted_sums(batches))
        parts = dict(zip(PARTS, sums, strict=True))
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]).item()
        if not math.isfinite(sum(sums) + norm):
            self._give_up(sum(sums), norm, batches)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update_parameters(self.model)
        self.step += 1
        now = {**parts, "gradient_norm": norm, "count": 1}
        self.window = {name: self.window.get(name, 0.0) + value for name, value in now.items()}
        self.seconds += time.perf_counter() - started
        self.cpu_seconds += time.process_time() - cpu_started

    def _give_up(self, loss: float, norm: float, batches: list[dict[str, Any]]) -> None:
        """Stop before the weights take a step that cannot be taken back, and keep what led to it."""
        path = self.folder / f"bad-step{self.step}-process{self.team.rank}.pt"
        state = {"step": self.step, "batches": batches, "model": self.model.state_dict()}
        _write(path, state)
        last = self.folder / "last.ckpt"
        raise TrainingError(
            f"the loss is {loss} and the gradient's norm {norm} at step {self.step}: the weights have diverged, most "
            f"often from a learning rate that is too high. {path} holds the pictures and weights of this step; "
            + (f"{last} holds the last good state" if last.exists() else "there is no checkpoint yet")
        )

    def _scales_of_step(self) -> dict[int, list[torch.Generator]]:
        """Draw each micro-batch's scale; those that drew the same one are computed together, their kernel only once."""
        groups: dict[int, list[torch.Generator]] = {}
        for number in self.team.mine(self.recipe.micro_batches):
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
        self.curves.add("training", row)
        return self.log.add(row)

    def _pictures_to_validate_on(self) -> ImageSet:
        """Open the set, and see that its smallest picture can be scored at each scale."""
        pictures = datasets.load(self.recipe.validation)
        smallest = min(range(len(pictures)), key=lambda index: min(pictures.size(index)))
        name = pictures.names[smallest]
        for scale in self.recipe.scales:
            try:
                evaluate.benchmark(self.model, pictures.subset([name]), scale, progress=False)
            except ValueError as error:
                raise TrainingError(
                    f"{self.recipe.validation}: the picture {name} cannot be scored at x{scale} ({error}): leave it "
                    f"out of the validation, or this scale out of the recipe"
                ) from error
        return pictures

    def validation_is_due(self) -> bool:
        """Whether this step has a validation that is still to be done."""
        step, recipe = self.step, self.recipe
        if not (recipe.validation and step and (step % recipe.validate_every == 0 or step == recipe.steps)):
            return False
        return all(row["step"] != step for row in self.validation.rows)

    def validate(self) -> None:
        """Score the weights that would be saved now, in the protocol of the benchmarks; keep the best ones."""
        if not self.team.leads:
            return
        pictures = self.pictures
        model = self.scored_model()
        for scale in self.recipe.scales:
            table = evaluate.benchmark(model, pictures, scale, progress=False)
            finite, _ = statistics.split_infinite(table["psnr_y"])
            means = {"psnr_y": float(finite.mean()) if len(finite) else None, "ssim_y": float(table["ssim_y"].mean())}
            about = {"step": self.step, "weights": self.weights, "dataset": pictures.name, "images": len(pictures)}
            self.curves.add(f"validation x{scale}", self.validation.add({**about, "scale": scale, **means}))
        self.model.train()
        if self.best()["step"] == self.step:
            weights.save(model, self.folder / "best.safetensors", self.card(self.recipe.data))

    def best(self) -> dict[str, Any] | None:
        """Step and mean PSNR over scales of the best validation so far; None for one that is infinite."""
        means: dict[int, float] = {}
        for row in self.validation.rows:
            psnr = math.inf if row["psnr_y"] is None else row["psnr_y"]
            means[row["step"]] = means.get(row["step"], 0.0) + psnr / len(self.recipe.scales)
        if not means:
            return None
        step = max(means, key=means.get)
        return {"step": step, "psnr_y": means[step] if math.isfinite(means[step]) else None}  # for JSON

    def save(self) -> None:
        """Write last.ckpt."""
        if not self.team.leads:
            return
        state = {
            "format": CHECKPOINT_FORMAT,
            "recipe": _plain(self.recipe),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "start": self.start,
            "log": self.log.rows,
            "validation": self.validation.rows,
            "window": self.window,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }
        _write(self.folder / "last.ckpt", state)

    def _load(self, resume: bool) -> dict[str, Any] | None:
        path = self.folder / "last.ckpt"
        for draft in self.folder.glob(".last.*.ckpt"):  # left behind by a process that was killed while it saved
            draft.unlink()
        if not path.exists():
            return None
        if not resume:
            raise TrainingError(f"{self.folder} already holds a run: resume it, or give another folder")
        state = weights.load_tensors(path)
        if state.get("format") != CHECKPOINT_FORMAT:
            raise TrainingError(f"{path} is no checkpoint of this trainer: expected format {CHECKPOINT_FORMAT}")
        if absent := [name for name in CHECKPOINT_PARTS if name not in state]:
            raise TrainingError(
                f"{path} is no whole checkpoint, it lacks {', '.join(absent)}: did another program write it?"
            )
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

    def _write_recipe(self) -> None:
        text = json.dumps(dataclasses.asdict(self.recipe), indent=1)
        runtime.atomic_write(self.folder / "recipe.json", lambda path: path.write_text(text, encoding="utf-8"))

    def finish(self, store: datasets.CropStore) -> models.SRModel:
        """Write the weights of a finished run, with who made them, once; say how to go on with another."""
        model = self.scored_model()
        if self.team.leads and self.step < self.recipe.steps:
            print(f"stopped at step {self.step} of {self.recipe.steps}; to go on: srlab train --resume {self.folder}")
        elif self.team.leads and not (self.step == self.began and is_finished(self.recipe, self.folder)):
            weights.save(model, self.folder / "model.safetensors", self.card(store.name))
        return model

    @property
    def weights(self) -> str:
        """Which weights are scored and saved: their running average or those of the last step."""
        return "ema" if self.ema else "raw"

    def scored_model(self) -> models.SRModel:
        """The model with these weights, in evaluation mode; not a copy."""
        return (self.ema.module if self.ema else self.model).eval()

    def card(self, data: str) -> dict[str, Any]:
        """What weights of this run say about themselves."""
        return {
            "recipe": dataclasses.asdict(self.recipe),
            "step": self.step,
            "weights": self.weights,
            "data": data,
            "start": self.start,
            "best_validation": self.best(),
            "seconds": round(self.seconds, 1),  # of training steps alone, as the log has them
            "cpu_seconds": round(self.cpu_seconds, 1),
            "processes": self.team.size,
            "device": str(self.team.device),
            "threads": torch.get_num_threads(),
            "commit": runtime.commit(),
        }

    def close(self) -> None:
        self.curves.close()


def is_finished(recipe: Recipe, folder: str | Path) -> bool:
    """Whether `folder` holds the finished weights of this recipe, by what they say of themselves.

    Weights of another recipe, or that cannot be read, are not taken for them; a start may have moved since.
    """
    try:
        header = weights.read_header(Path(folder) / "model.safetensors")
        written = Recipe.from_dict(header["card"]["recipe"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # none, damaged, another's, of another time
        return False
    return dataclasses.replace(written, start_from=recipe.start_from) == recipe


def _weighted_sums(batches: list[dict[str, Any]]) -> list[float]:
    """Each part of the loss over all batches of a step; asked of the device once, since each answer makes it wait."""
    values = torch.stack([batch[part] for batch in batches for part in PARTS]).view(len(batches), -1).tolist()
    shares = [batch["share"] for batch in batches]
    columns = zip(*values, strict=True)
    return [sum(share * value for share, value in zip(shares, column, strict=True)) for column in columns]


def _write(path: Path, state: dict[str, Any]) -> None:
    """`torch.save`, whole or not at all; a full disk is an OSError here too."""
    try:
        runtime.atomic_write(path, lambda draft: torch.save(state, draft))
    except RuntimeError as error:  # "[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"
        raise OSError(f"{path} cannot be written ({error}): is the disk full?") from error


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
