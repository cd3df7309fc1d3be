"""Bench work room: what a case of `srlab bench` is made of, and how a program of its own is run.

`bench_maths` and `bench_models` make `Work` of given sizes, `bench_cases` lists the cases, `bench` times them.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Floor:
    """What no way of doing it can avoid."""

    what: str
    bytes: float = 0.0
    """to be read and written"""
    flops: float = 0.0
    """multiplications and additions"""


@dataclass(frozen=True)
class Work:
    """One thing to do, at one size, in two ways."""

    ours: Callable[[], object]
    other: Callable[[], object] | None
    floor: Floor
    apart: Callable[[], float] = lambda: math.nan
    """how far the two answers are apart"""


@dataclass(frozen=True)
class Goal:
    """What this project wants of a case; None where it wants nothing."""

    ratio: float | None = None
    """time over the other's"""
    memory_ratio: float | None = None
    seconds: float | None = None
    """of our way, at the largest size"""
    beyond: float | None = None
    """seconds that our way may take longer than the other"""
    memory_mib: float | None = None
    """of our way, at the largest size"""

    def __str__(self) -> str:
        names = {"ratio": "time", "memory_ratio": "memory", "seconds": "seconds", "beyond": "seconds more than it"}
        names["memory_mib"] = "MiB"
        asked = {words: getattr(self, name) for name, words in names.items()}
        said = ", ".join(f"{words} <= {limit:g}" for words, limit in asked.items() if limit is not None)
        return f"goal of this project: {said}" if said else ""


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    name: str
    other: str
    """what it is compared with"""
    unit: str
    """what a size counts"""
    sizes: tuple[int, ...]
    """growing; the slope is taken over them, everything else at the last"""
    make: Callable[[int], Work]
    goal: Goal = Goal()
    within: float = math.inf
    """how far the two answers may be apart"""
    compared_at: int | None = None
    """size of the comparison, where the other way cannot do the last one"""
    rounds: int = 15


@dataclass(frozen=True)
class Program:
    """Some code in a fresh Python, as a function without arguments."""

    code: str

    def __call__(self) -> str:
        with tempfile.TemporaryDirectory() as results:
            calm = {"MPLBACKEND": "agg", "SRLAB_RESULTS": results, "SRLAB_PROFILE": "smoke"}
            command = [sys.executable, "-c", self.code]
            done = subprocess.run(command, env={**os.environ, **calm}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"a program that begins {self.code[:60]!r} failed:\n{done.stderr[-800:]}")
        return done.stdout

    def peak(self) -> float:
        """Bytes it holds at most; NaN where the system does not tell. (What `wait4` tells includes the parent's.)"""
        if sys.platform != "linux":
            return math.nan
        last_words = "import atexit; atexit.register(lambda: print(open('/proc/self/status').read()))\n"
        said = Program(last_words + self.code)()
        return 1024.0 * int(next(line.split()[1] for line in said.splitlines() if line.startswith("VmHWM:")))


def chance(seed: int) -> torch.Generator:
    """A generator of its own, so that a case has the same numbers whatever ran before."""
    return torch.Generator().manual_seed(seed)
