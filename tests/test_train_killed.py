"""Training that is killed again and again, wherever it is, ends with the weights of the undisturbed run."""

import dataclasses
import multiprocessing
import os
import random
import signal
import sys

import pytest
import torch

from srlab import images, runtime, train, weights
from srlab.recipes import Recipe

SEED, KILLS = 20, 10
TINY = Recipe("edsr-nano", "spconv", scales=(2, 3), sizes={"channels": 8, "blocks": 1}, steps=60, micro_batch=1,
              micro_batches=2, patch=8, ema=0.9, learning_rate=1e-3, warmup=5, final_learning_rate=1e-5, log_every=4,
              save_every=2)  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for name in "ab":
        images.save_image(folder / f"{name}.png", torch.rand(3, 32, 32, generator=generator))
    return dataclasses.replace(TINY, data=str(folder))


def attempt(recipe, folder, moment, only_while_saving, report):
    """Train in a process that kills itself after `moment` calls of functions (Python's or C's), whoever makes them."""
    torch.set_num_threads(1)
    calls = {"all": 0, "saving": 0}
    kind = "saving" if only_while_saving else "all"
    saving = [False]
    write = runtime.atomic_write

    def watched(path, writer):
        saving[0] = path.name == "last.ckpt"
        try:
            return write(path, writer)
        finally:
            saving[0] = False

    def count(frame, event, argument):
        if event in ("call", "c_call"):
            calls["all"] += 1
            calls["saving"] += saving[0]
            if calls[kind] == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    runtime.atomic_write = watched
    sys.setprofile(count)
    train.fit(recipe, folder, accelerator="cpu")
    sys.setprofile(None)
    report.put(calls)


def run(recipe, folder, moment=None, only_while_saving=False):
    """Exit code of one attempt, and how many calls a whole one had."""
    context = multiprocessing.get_context("forkserver")  # loads torch once, each attempt is a copy
    context.set_forkserver_preload(["srlab.train"])
    report = context.SimpleQueue()
    process = context.Process(target=attempt, args=(recipe, folder, moment, only_while_saving, report))
    process.start()
    process.join(120)
    return process.exitcode, None if process.exitcode else report.get()


def test_a_run_killed_at_ten_random_moments_ends_bit_for_bit_as_the_undisturbed_one(recipe, tmp_path):
    code, calls = run(recipe, tmp_path / "undisturbed")
    assert code == 0
    moments = random.Random(SEED)
    folder = tmp_path / "killed"
    reached, cut_short = [], 0
    for number in range(KILLS):
        while_saving = number % 3 == 1
        # at most a twelfth of the run each: ten of them cannot finish it
        moment = moments.randint(1, calls["saving" if while_saving else "all"] // (KILLS + 2))
        code, _ = run(recipe, folder, moment, while_saving)
        assert code == -signal.SIGKILL
        cut_short += len(list(folder.glob(".last.*.ckpt")))
        last = folder / "last.ckpt"
        reached.append(weights.load_tensors(last)["step"] if last.exists() else 0)
        assert not (folder / "model.safetensors").exists()
    assert cut_short  # some were killed while they wrote the checkpoint
    assert reached == sorted(reached)  # no step is ever lost again
    assert 0 < reached[-1] < recipe.steps
    code, _ = run(recipe, folder)
    assert code == 0
    assert not list(folder.glob(".*"))
    one, two = (weights.load_tensors(place / "last.ckpt") for place in (tmp_path / "undisturbed", folder))
    for part in ("model", "ema"):
        assert all(torch.equal(one[part][name], value) for name, value in two[part].items())
    for number, moments in one["optimizer"]["state"].items():
        assert all(torch.equal(value, two["optimizer"]["state"][number][name]) for name, value in moments.items())
    finished = [weights.load_checkpoint(place / "model.safetensors") for place in (tmp_path / "undisturbed", folder)]
    assert all(map(torch.equal, *(model.state_dict().values() for model in finished)))
    logs = [(place / "log.csv").read_text().splitlines() for place in (tmp_path / "undisturbed", folder)]
    assert [line.rsplit(",", 1)[0] for line in logs[0]] == [line.rsplit(",", 1)[0] for line in logs[1]]
