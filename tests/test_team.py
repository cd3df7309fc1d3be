"""Teams: two processes train the model that one would, and a lost process ends in words, not in silence."""

import dataclasses
import multiprocessing
import os
import signal
import socket
import traceback

import pytest
import torch

from srlab import images, team, train, weights
from srlab.recipes import Recipe

# separate heads: in most steps some process, or all, leave one of them out
HEADS = Recipe("edsr-nano", "spconv", scales=(2, 3, 4), sizes={"channels": 8, "blocks": 1}, steps=6, micro_batch=1,
               micro_batches=3, patch=8, ema=0.9, learning_rate=1e-4, log_every=2, save_every=2)  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for name in "abc":
        images.save_image(folder / f"{name}.png", torch.rand(3, 48, 48, generator=generator))
    return dataclasses.replace(HEADS, data=str(folder))


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    return train.fit(recipe, tmp_path_factory.mktemp("alone"), accelerator="cpu")


def member(rank, size, port, recipe, folder, killed_in_step):
    """One process as torchrun starts it; what it prints goes to a file, what it dies of as well."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
                   "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                   "TORCHELASTIC_RUN_ID": "test"}  # fmt: skip
    torch.set_num_threads(1)
    take_step = train._Run.take_step

    def doomed(run, store):
        if rank == 1 and run.step == killed_in_step:
            os.kill(os.getpid(), signal.SIGKILL)
        take_step(run, store)

    train._Run.take_step = doomed
    try:
        train.fit(recipe, folder, accelerator="cpu")
    except Exception:
        (folder / f"error{rank}.txt").write_text(traceback.format_exc())
        raise SystemExit(1) from None


def run_team(recipe, folder, size=2, killed_in_step=None):
    """Train with `size` processes; their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")  # loads torch once, each process is a copy
    context.set_forkserver_preload(["srlab.train"])
    processes = [context.Process(target=member, args=(rank, size, port, recipe, folder, killed_in_step))
                 for rank in range(size)]  # fmt: skip
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def state_of(folder):
    return weights.load_tensors(folder / "last.ckpt")


def test_two_processes_train_the_model_that_one_trains(recipe, alone, tmp_path):
    assert run_team(recipe, tmp_path) == [0, 0]
    one, two = state_of(alone.folder), state_of(tmp_path)
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, atol=1e-6, rtol=0)
    assert one["optimizer"]["state"].keys() == two["optimizer"]["state"].keys()  # the same heads have moved, as often
    for number, moments in one["optimizer"]["state"].items():
        assert two["optimizer"]["state"][number]["step"] == moments["step"]
    for row, other in zip(one["log"], two["log"], strict=True):
        for column in ("step", "loss", "gradient_norm", "learning_rate"):
            assert row[column] == pytest.approx(other[column], rel=1e-5)
    model = weights.load_checkpoint(tmp_path / "model.safetensors")
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-6, rtol=0)


def test_a_killed_process_ends_the_job_with_a_message_and_the_run_goes_on(recipe, tmp_path):
    whole = tmp_path / "whole"
    assert run_team(recipe, whole) == [0, 0]
    broken = tmp_path / "broken"
    assert run_team(recipe, broken, killed_in_step=3) == [1, -signal.SIGKILL]
    said = (broken / "error0.txt").read_text()
    assert "process 0 of 2 has lost the others" in said
    assert "same command again" in said
    assert state_of(broken)["step"] == 2
    assert run_team(recipe, broken) == [0, 0]
    one, two = state_of(whole), state_of(broken)
    assert all(torch.equal(two["model"][name], value) for name, value in one["model"].items())


def test_more_processes_than_micro_batches_are_refused(recipe, tmp_path, monkeypatch):
    class Three(team.Team):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.size = 4

    monkeypatch.setattr(train, "Team", Three)
    with pytest.raises(train.TrainingError, match="4 processes for 3 micro-batches"):
        train.fit(recipe, tmp_path, accelerator="cpu")


@pytest.mark.parametrize(
    ("device", "accelerator", "expected"),
    [("cpu", "auto", ("cpu", 1)), ("cuda", "auto", ("cuda", 1)), ("cuda:1", "auto", ("cuda", [1])),
     ("cuda:1", "cpu", ("cpu", 1))],
)  # fmt: skip
def test_alone_the_device_is_the_one_that_srlab_device_names(device, accelerator, expected, monkeypatch):
    import lightning_fabric

    asked = {}
    monkeypatch.setattr(lightning_fabric, "Fabric", lambda **options: asked.update(options))
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: None)  # this machine has it
    monkeypatch.setenv("SRLAB_DEVICE", device)
    team.Team(accelerator)
    assert (asked["accelerator"], asked["devices"]) == expected


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("SRLAB_DEVICE", "cuda:77")
    with pytest.raises(ValueError, match="SRLAB_DEVICE is 'cuda:77', but torch cannot use it"):
        team.Team()
    assert team.Team("cpu").device == torch.device("cpu")


def test_every_micro_batch_is_computed_by_one_process():
    for size in (1, 2, 3, 5):
        shares = []
        for rank in range(size):
            one = object.__new__(team.Team)
            one.size, one.rank = size, rank
            shares += one.mine(16)
        assert sorted(shares) == list(range(16))


def test_the_launch_command_starts_every_device_of_every_machine():
    words = ["--recipe", "edsr-igconv+", "--data", "/my pictures"]
    one = team.launch_command(words, devices=4)
    assert one == "torchrun --standalone --nproc-per-node=4 -m srlab train --recipe edsr-igconv+ --data '/my pictures'"
    many = team.launch_command(words, nodes=2, devices=8)
    assert many.startswith("torchrun --nnodes=2 --rdzv-backend=c10d --rdzv-endpoint=HOST:29400")
    assert "--nproc-per-node=8 -m srlab train" in many
    with pytest.raises(ValueError, match="expected at least 1"):
        team.launch_command(words, nodes=0)
