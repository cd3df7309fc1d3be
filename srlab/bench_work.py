"""Bench work room: what a case of `srlab bench` is made of, and how a program of its own is run.

`bench_maths` and `bench_models` make `Work` of given sizes, `bench_cases` lists the cases, `bench` times them.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch

from srlab import efficiency


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


class Companion:
    """Some code in a Python of its own that stays: for what can only be timed where memory is not set up by the lab.

    glibc cannot be told to forget what it holds, so "as PyTorch comes" can only be timed where the lab has set nothing.

    Args:
        code: ends with a call of `serve`. It is started when first asked, without settings of the allocator.
    """

    def __init__(self, code: str):
        self.code = code
        self._process: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Do it once."""
        self._ask("time")

    def seconds(self, clock: str) -> float:
        """What doing it once takes there, "wall time" or "CPU time"."""
        wall, cpu = self._ask("time")
        return wall if clock == "wall time" else cpu

    def peak(self) -> float:
        """Bytes that doing it once needs at most; NaN where the system does not tell."""
        return self._ask("peak")[0]

    def _ask(self, what: str) -> list[float]:
        if self._process is None:
            self._start()
        try:
            print(what, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            raise RuntimeError(f"a program that begins {self.code[:60]!r} has ended; its last words are above")
        return [float(word) for word in answer.split()]

    def _start(self) -> None:
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN"))}
        command = [sys.executable, "-c", self.code]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, env=plain, text=True, **pipes)
        weakref.finalize(self, _end, self._process)


def _end(process: subprocess.Popen) -> None:
    process.communicate()  # its input ends, and so does it


def serve(call: Callable[[], object], threads: int) -> None:
    """Answer what a `Companion` asks on standard input, until it ends: seconds of a call (wall, CPU), or bytes."""
    torch.set_num_threads(threads)
    for asked in sys.stdin:
        if asked.strip() == "peak":
            print(efficiency.peak_memory(call, "cpu"), flush=True)
            continue
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)


def chance(seed: int) -> torch.Generator:
    """A generator of its own, so that a case has the same numbers whatever ran before."""
    return torch.Generator().manual_seed(seed)
