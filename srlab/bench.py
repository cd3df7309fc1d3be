"""Bench room: how fast the lab is, each thing beside another way to do it and beside what the machine allows.

Takes the cases of `bench_cases`; gives a table of times, ratios and memory, which ships as `data/results/bench.csv`.
Two ways are timed in turns within one process, since times drift by a quarter on a shared machine and ratios within a
round do not. The next process gives another ratio, by more than its rounds differ: where things lie in memory is
decided once for each. So the record takes several, and its intervals are over processes. The floor is the least work
(bytes or FLOPs) over the rates that this machine reaches when it copies memory and multiplies matrices, measured on
the spot.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import itertools
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import stats

from srlab import bench_cases, efficiency, machine, runtime
from srlab.bench_work import Case, Companion, Program, Work

MIB = 2**20
RECORD = "bench"
FORM = 1
"""Raised when rows come to mean something else."""
PROCESSES = 5
"""Fresh processes behind each row of the record."""
SLOW = 5.0
"""Seconds from which on a run of the growth curve is not repeated."""
COLUMNS = (
    "case", "other", "size", "unit", "compared_at", "seconds", "other_seconds", "ratio", "low", "high", "again_low",
    "again_high", "processes", "memory_mib", "memory_ratio", "floor_seconds", "over_floor", "floor", "slope", "apart",
    "goal", "goals", "met", "clock", "commit", "date",
)  # fmt: skip


class Clock(NamedTuple):
    """What is counted as time."""

    name: str
    now: Callable[[], float]
    threads: int

    def __str__(self) -> str:
        return f"{self.name}, {self.threads} thread{'s' if self.threads > 1 else ''}"


def wall_clock() -> Clock:
    """Time on the wall, with as many threads as PyTorch has: for a machine that does nothing else."""
    return Clock("wall time", time.perf_counter, torch.get_num_threads())


def cpu_clock() -> Clock:
    """Time on a processor, this process and finished children, with one thread: for a machine that is busy."""
    try:
        import resource
    except ImportError:  # Windows: programs started from here are not counted
        return Clock("CPU time", time.process_time, 1)

    def now() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)

    return Clock("CPU time", now, 1)


def others_running(seconds: float = 0.5) -> float:
    """How many threads besides this one want a processor of this machine, on average; NaN where it does not tell.

    Two threads that wait for each other in turn lose many times what their rivals take: with two trainings beside it on
    two cores, instantiated IGConv+ took 1.8 to 2.2 times SPConv+'s wall time instead of 0.23 (three processes of each).
    """
    seen = []
    for _ in range(20):
        time.sleep(seconds / 20)
        try:
            now = Path("/proc/loadavg").read_text(encoding="utf-8").split()[3]  # such as 2/317: running, of how many
        except OSError:
            return math.nan
        seen.append(int(now.split("/")[0]) - 1)
    return float(np.mean(seen))


def too_busy(clock: Clock) -> str:
    """Why times on this clock would say nothing now, in words; "" if they would."""
    others = 0.0 if clock.name != "wall time" else others_running()
    return f"wall time wants a quiet machine, and {others:.1f} other threads run on this one" if others > 0.5 else ""


def clock_called(name: str) -> Clock:
    """The clock that a row of the record was made with, such as "wall time, 2 threads"; `str(clock)` gives the name.

    Raises:
        ValueError: no clock is called so.
    """
    known = re.fullmatch(r"(wall|CPU) time, (\d+) threads?", name)
    if not known:
        raise ValueError(f"clock is {name!r}, expected a name such as 'wall time, 2 threads'")
    return (wall_clock() if known[1] == "wall" else cpu_clock())._replace(threads=int(known[2]))


class Rates(NamedTuple):
    """What this machine reaches at its best."""

    bytes: float
    """per second, read and written"""
    flops: float
    """per second, float32"""


def machine_rates(clock: Clock) -> Rates:
    """The best of ten: 256 MiB copied; a product of matrices, and a convolution, which has a library of its own."""
    source, target = torch.zeros(64 * MIB), torch.empty(64 * MIB)
    a, x, kernel = torch.randn(1024, 1024), torch.randn(4, 64, 48, 48), torch.randn(64, 64, 3, 3)
    x, kernel = (each.contiguous(memory_format=torch.channels_last) for each in (x, kernel))
    copied = _best(lambda: target.copy_(source), clock)
    multiplied = 2 * 1024**3 / _best(lambda: a @ a, clock)
    convolved = 2 * 9 * 64 * x.numel() / _best(lambda: F.conv2d(x, kernel, padding=1), clock)
    return Rates(2 * 4 * source.numel() / copied, max(multiplied, convolved))


def _best(call: Callable[[], object], clock: Clock) -> float:
    call()
    return min(_seconds(call, clock) for _ in range(10))


def _seconds(call: Callable[[], object], clock: Clock) -> float:
    if isinstance(call, Companion):
        return call.seconds(clock.name)
    start = clock.now()
    call()
    return clock.now() - start


def measure(case: Case, clock: Clock, rates: Rates, processes: int = 0) -> dict[str, object]:
    """One row of the table: see `run`."""
    size = case.sizes[-1]
    works = dict.fromkeys(case.sizes[:-1])
    grown = [(number, _typical(case.make(number), clock)) for number in works]
    at = case.compared_at or size
    work = case.make(at)
    if (apart := work.apart()) > case.within:
        raise ArithmeticError(f"{case.name} and {case.other} are {apart:.3g} apart, expected at most {case.within:g}")
    rounds = in_turns(work, case.rounds, clock) if processes < 2 else in_processes(case, clock, processes)
    few = 1 if rounds.max() > SLOW else 3
    peaks = [peak(call, few) for call in (work.ours, work.other)]
    ratio, low, high, *again = (middle if processes < 2 else over_processes)(rounds[:, 0] / rounds[:, 1])
    seconds, memory = float(np.median(rounds[:, 0])), peaks[0]
    if at != size:
        work = case.make(size)
        seconds, memory = _typical(work, clock), peak(work.ours, 1)
    grown.append((size, seconds))
    floor = max(work.floor.bytes / rates.bytes, work.floor.flops / rates.flops) or math.nan
    row = {
        "case": case.name,
        "other": case.other,
        "size": size,
        "unit": case.unit,
        "compared_at": at,
        "seconds": seconds,
        "other_seconds": float(np.median(rounds[:, 1])),
        "ratio": ratio,
        "low": low,
        "high": high,
        **dict(zip(("again_low", "again_high"), again or [math.nan] * 2, strict=True)),
        "processes": max(processes, 1),
        "memory_mib": memory / MIB,
        "memory_ratio": peaks[0] / peaks[1] if peaks[1] > 0 else math.nan,
        "floor_seconds": floor,
        "over_floor": seconds / floor,
        "floor": work.floor.what,
        "slope": slope(grown),
        "apart": apart,
        "goal": math.nan if case.goal.ratio is None else case.goal.ratio,
        "goals": str(case.goal),
        "clock": str(clock),
    }
    return row | {"met": met(case, row)}


def _typical(work: Work, clock: Clock) -> float:
    """Median of five runs of our way after one more; one run alone where it is slow."""
    first = _seconds(work.ours, clock)
    return first if first > SLOW else float(np.median([_seconds(work.ours, clock) for _ in range(5)]))


def in_turns(work: Work, rounds: int, clock: Clock) -> np.ndarray:
    """Seconds (rounds, 2) of our way and the other, every second round the other first, after a round not counted."""
    taken = np.empty((rounds + 1, 2))
    for number in range(rounds + 1):
        for which in (0, 1) if number % 2 else (1, 0):
            taken[number, which] = _seconds((work.ours, work.other)[which], clock)
    return taken[1:]


def in_processes(case: Case, clock: Clock, processes: int = PROCESSES) -> np.ndarray:
    """Seconds (processes, 2) of our way and the other from fresh processes, one after the other; see `one_process`."""
    code = f"from srlab import bench; print(*bench.one_process({case.name!r}, {str(clock)!r}))"
    return np.array([[float(word) for word in Program(code)().split()] for _ in range(processes)])


def one_process(name: str, clock: str) -> tuple[float, float]:
    """Seconds of our way and the other in this process: median of the other's, and that times the median ratio.

    Half the rounds of the case: more processes tell more than more rounds.
    """
    (case,), clock = chosen([name]), clock_called(clock)
    torch.set_num_threads(clock.threads)
    machine.tune_allocator()
    rounds = in_turns(case.make(case.compared_at or case.sizes[-1]), math.ceil(case.rounds / 2), clock)
    other = float(np.median(rounds[:, 1]))
    return float(np.median(rounds[:, 0] / rounds[:, 1])) * other, other


def over_processes(ratios: np.ndarray) -> tuple[float, float, float, float, float]:
    """Mean of n ratios, its 95 % interval, and the interval that one more of them falls into in 95 % of cases.

    Student's t on the logarithms: a ratio and its inverse are judged alike, and two or more processes are enough.
    """
    logs = np.log(ratios)
    spread = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1)
    ends = [sign * spread * math.sqrt(more + 1 / len(logs)) for more in (0, 1) for sign in (-1, 1)]
    return tuple(float(np.exp(logs.mean() + end)) for end in (0, *ends))


def middle(values: np.ndarray) -> tuple[float, float, float]:
    """Median of n values and its 95 % interval from their ranks, whatever they are distributed like.

    The median of what they were drawn from lies below k of n values as seldom as a fair coin shows k heads in n throws.
    Below six values the interval is all of them, and holds the median less often than 95 %.
    """
    ordered = np.sort(values)
    cut = max(int(stats.binom.ppf(0.025, len(ordered), 0.5)), 1) - 1
    return float(np.median(ordered)), float(ordered[cut]), float(ordered[-1 - cut])


def peak(call: Callable[[], object], calls: int = 3) -> float:
    """Bytes a call needs at most: on top of what was there, middle of some calls; of a program all that it holds."""
    return (
        call.peak()
        if isinstance(call, Program | Companion)
        else max(efficiency.peak_memory(call, "cpu", calls=calls), 0.0)
    )


def slope(grown: Sequence[tuple[int, float]]) -> float:
    """Exponent b of seconds = a * size**b through (size, seconds), by least squares of the logarithms."""
    if len(grown) < 2:
        return math.nan
    size, seconds = np.log(np.array(grown)).T
    return float(np.polyfit(size, seconds, 1)[0])


def met(case: Case, row: dict[str, object]) -> str:
    """Whether the goals of a case are met, in words.

    "no" if one is broken; "not measured" if none is, but one asks for memory, which not every system tells; "within
    noise" for a ratio above its goal whose interval holds the goal; else "yes", or "" where nothing is asked for.
    """
    goal = case.goal
    limits = {"memory_ratio": goal.memory_ratio, "seconds": goal.seconds, "memory_mib": goal.memory_mib}
    asked = {name: limit for name, limit in limits.items() if limit is not None}
    broken = [name for name, limit in asked.items() if row[name] > limit]  # NaN is not
    if goal.beyond is not None and row["seconds"] - row["other_seconds"] > goal.beyond:
        broken.append("beyond")
    if goal.ratio is not None and row["low"] > goal.ratio:
        broken.append("ratio")
    if broken:
        return "no"
    if any(math.isnan(row[name]) for name in asked):
        return "not measured"
    if goal.ratio is not None and row["ratio"] > goal.ratio:
        return "within noise"
    return "yes" if str(goal) else ""


def run(
    cases: Iterable[Case] = bench_cases.CASES, clock: Clock | None = None, processes: int = 0
) -> Iterator[dict[str, object]]:
    """Measure cases one after the other.

    Args:
        cases: what to measure.
        clock: `wall_clock()`, the default, or `cpu_clock()`.
        processes: how many fresh processes time the two ways, two or more; else this one does, which is quicker.

    Yields:
        A row per case: case, other; size, unit, compared_at (the same unless the other way cannot do that size);
        seconds and other_seconds, medians (of us at size, of the other at compared_at); ratio of ours / other within a
        round, with its 95 % interval low, high; again_low and again_high, where one more process should find it (NaN
        where there was but one); processes; memory_mib of our way, memory_ratio to the other's;
        floor_seconds, over_floor (seconds / floor_seconds), floor (what it is); slope, exponent of seconds against
        size; apart, how far the two answers are apart; goal (a ratio), goals (all of them, in words), met; clock.

    Raises:
        ArithmeticError: the two ways do not give the same answer.
    """
    clock = clock or wall_clock()
    before = torch.get_num_threads()
    torch.set_num_threads(clock.threads)
    machine.tune_allocator()  # for both ways
    try:
        rates = machine_rates(clock)
        for case in cases:
            yield measure(case, clock, rates, processes)
    finally:
        torch.set_num_threads(before)


def chosen(names: Sequence[str]) -> list[Case]:
    """Cases by name or, where that is none, by beginning of a name; all of them if nothing is given."""
    known = [case.name for case in bench_cases.CASES]
    meant = {name: [name] if name in known else [full for full in known if full.startswith(name)] for name in names}
    for name, found in meant.items():
        if not found:
            raise ValueError(f"no case begins with {name!r}: expected {', '.join(map(repr, known))}")
    wanted = set(itertools.chain(*meant.values())) if names else set(known)
    return [case for case in bench_cases.CASES if case.name in wanted]


def line(row: dict[str, object]) -> str:
    """A row for a terminal."""
    goal = f"; {row['goals']}: {row['met']}" if row["goals"] else ""
    floor = f"; {row['over_floor']:.1f} times the floor" if row["over_floor"] == row["over_floor"] else ""
    grows = f"; grows as size^{row['slope']:.2f}" if row["slope"] == row["slope"] else ""
    return (
        f"{row['case']}: {1e3 * row['seconds']:.1f} ms, {row['memory_mib']:.0f} MiB at {row['size']:,} {row['unit']}; "
        f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}] of {row['other']}, memory {row['memory_ratio']:.2f}"
        f"{floor}{grows}{goal} ({row['clock']})"
    )


# record


def recorded_costs() -> pd.DataFrame:
    """The table as it ships with the project, `data/results/bench.csv`; `srlab bench --record` makes it.

    Returns:
        A row per case on record, as `run` gives them, with the commit and the date of each.

    Raises:
        RecordError: there is no record, or one of its cases is now compared with something else or at other sizes.
    """

    made_by = "`srlab bench --record`, or for some of its cases `srlab bench --record CASE`,"
    with _recording(False):
        return runtime.recorded(RECORD, pd.DataFrame, settings=_settings(_names_on_record()), made_by=made_by)


def record(cases: Sequence[Case], clock: Clock, processes: int = PROCESSES) -> pd.DataFrame:
    """Measure these cases and bring `data/results/bench.csv` up to date; the other rows stay if their cases did.

    Raises:
        RuntimeError: wall time is asked for, and the machine has other work to do.
    """
    if busy := too_busy(clock):
        raise RuntimeError(f"{busy}: wait for them, or take --cpu-time")
    made = {"commit": runtime.commit(), "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")}
    table = _rows_that_hold()
    for row in run(cases, clock, processes):
        print(line(row), flush=True)
        others = table[table["case"] != row["case"]]  # also those still to come: a call that is ended loses none
        table = pd.concat([others, pd.DataFrame([row | made])], ignore_index=True)[list(COLUMNS)]
        _write(table)
    return table


def _write(table: pd.DataFrame) -> None:
    names = [case.name for case in bench_cases.CASES if case.name in set(table["case"])]
    ordered = table.set_index("case").loc[names].reset_index()
    with _recording(True), contextlib.redirect_stdout(io.StringIO()):
        runtime.recorded(RECORD, lambda: ordered, settings=_settings(names))


@contextlib.contextmanager
def _recording(yes: bool) -> Iterator[None]:
    """`SRLAB_RECORD` for the time of a `with`: the record is made by `record` alone, since it takes an hour."""
    before = os.environ.pop("SRLAB_RECORD", None)
    if yes:
        os.environ["SRLAB_RECORD"] = "1"
    try:
        yield
    finally:
        os.environ.pop("SRLAB_RECORD", None)
        if before is not None:
            os.environ["SRLAB_RECORD"] = before


def _path() -> Path:
    return runtime.repo_data("results", f"{RECORD}.csv")


def _settings(names: Sequence[str]) -> dict[str, Any]:
    """What is compared with what at which sizes: nothing that depends on how fast the machine is."""
    known = {case.name: case for case in bench_cases.CASES}
    cases = {name: [case.other, *case.sizes, case.compared_at] for name in names if (case := known.get(name))}
    return {"cases": cases, "form": FORM}


def _settings_on_record() -> dict[str, Any]:
    about = _path().with_suffix(".json")
    if not (_path().is_file() and about.is_file()):
        return {"cases": {}, "form": FORM}
    return json.loads(about.read_text(encoding="utf-8"))["settings"]


def _names_on_record() -> list[str]:
    return list(_settings_on_record()["cases"])


def _rows_that_hold() -> pd.DataFrame:
    """Rows of the shipped record whose cases are still the same."""
    then = _settings_on_record()
    now = _settings(list(then["cases"]))
    same = [name for name, about in now["cases"].items() if then["cases"][name] == about and then["form"] == FORM]
    rows = pd.read_csv(_path(), float_precision="round_trip") if same else pd.DataFrame(columns=list(COLUMNS))
    return rows[rows["case"].isin(same)]
