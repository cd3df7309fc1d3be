"""Team room: the processes that train one model together, one per device, on one machine or on many.

Takes what `torchrun` says in the environment, and parameters whose gradients are to be added up; gives the same sum to
every process. Alone, all of this costs nothing. Lightning Fabric chooses the device and starts the process group.

Each process computes its own micro-batches, of whatever scales they drew, and holds the sum of their shares of the
gradient; `add_up` adds these sums, once per optimiser step. That is the exact gradient of all micro-batches, also where
one process had more of them than another, or where a part of the model (a head for a scale) was used by some processes
only: two cases in which averaging per process, as data-parallel wrappers do, gives another number.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from srlab import machine

PORT = 29400  # where the processes of several machines meet; torchrun's own default


class TeamError(RuntimeError):
    """Another process of the team has gone."""


class Team:
    """All processes of a training; `size` is 1 when torchrun did not start this one.

    Args:
        accelerator: as Lightning Fabric names them: "auto", "cpu", "cuda". For a team of one "auto" is the device of
            `machine.pick_device`, which `SRLAB_DEVICE` can name; of many, each process has a device of its own.
        precision: "32-true" or "bf16-mixed".

    Raises:
        ValueError: `SRLAB_DEVICE` names a device that cannot be had.
    """

    def __init__(self, accelerator: str = "auto", precision: str = "32-true"):
        from lightning_fabric import Fabric  # takes a second or two to load, and only a training needs it

        self.size, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        where: dict[str, Any] = {"accelerator": accelerator, "devices": 1}
        if self.size > 1:
            where |= {"strategy": "ddp", "devices": here, "num_nodes": self.size // here}
        elif accelerator == "auto":
            device = machine.pick_device()
            where = {"accelerator": device.type, "devices": 1 if device.index is None else [device.index]}
        self.fabric = Fabric(precision=precision, **where)
        if self.size > 1:
            self.fabric.launch()

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and talks."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager:
        """Context in which the model computes in the chosen precision."""
        return self.fabric.autocast()

    def mine(self, count: int) -> range:
        """Numbers of the micro-batches of a step that this process computes."""
        return range(self.rank, count, self.size)

    def add_up(self, parameters: Sequence[torch.nn.Parameter], numbers: Sequence[float]) -> list[float]:
        """Replace each gradient by its sum over all processes, and add up `numbers` on the way.

        A parameter that no process used keeps no gradient, so that its optimiser state rests as it does alone.

        Raises:
            TeamError: a process does not answer.
        """
        if self.size == 1:
            return list(numbers)
        used = [float(p.grad is not None) for p in parameters]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        extra = torch.tensor([*numbers, *used], device=self.device)
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), extra])
        self._all_reduce(flat)
        *sums, extra = flat.split([*(gradient.numel() for gradient in gradients), len(extra)])
        extra = extra.tolist()
        for p, total, users in zip(parameters, sums, extra[len(numbers) :], strict=True):
            p.grad = torch.empty_like(p).copy_(total.view_as(p)) if users else None  # laid out as the parameter
        return extra[: len(numbers)]

    def any(self, asked: bool) -> bool:
        """Whether any process asks; every process hears the same answer."""
        if self.size == 1:
            return asked
        flag = torch.tensor([float(asked)], device=self.device)
        self._all_reduce(flag)
        return bool(flag)

    def share(self, value: Any) -> Any:
        """The leader's value, in every process."""
        return self.fabric.broadcast(value) if self.size > 1 else value

    def _all_reduce(self, tensor: Tensor) -> None:
        try:
            torch.distributed.all_reduce(tensor)
            tensor.sum().item()  # wait for it: on a GPU the call above only hands it over
        except RuntimeError as error:
            raise TeamError(
                f"process {self.rank} of {self.size} has lost the others: one of them was ended, or the network broke. "
                f"Give the same command again to go on from the last checkpoint"
            ) from error


def launch_command(words: Sequence[str], nodes: int = 1, devices: int = 1) -> str:
    """The command that starts `srlab train WORDS` on `nodes` machines with `devices` devices each.

    With several machines it is given on each of them, HOST replaced by the name of one of them; all read and write one
    run folder only where they share a disk, otherwise the first machine's folder is the run.

    Raises:
        ValueError: no device.
    """
    if nodes < 1 or devices < 1:
        raise ValueError(f"{nodes} nodes with {devices} devices: expected at least 1 of each")
    meeting = (
        ["--standalone"]
        if nodes == 1
        else [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint=HOST:{PORT}", "--rdzv-id=srlab"]
    )
    return shlex.join(["torchrun", *meeting, f"--nproc-per-node={devices}", "-m", "srlab", "train", *words])
