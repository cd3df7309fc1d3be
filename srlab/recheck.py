"""Recheck room: are the records in `data/results/` what this machine measures today? Parts of them, measured anew.

A record is made once, with care, over hours; a scorecard that only repeats it would not notice that code has changed
since. `recheck` takes a part of each record that takes seconds, computes it from the weights and pictures again, and
says whether the value lies in the interval on record and, where the same weights see the same pictures, equals it but
for rounding. `srlab claims --rerun` prints it. Times want a machine that does nothing else, as on record.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from srlab import bench, cka_study, compare, datasets, evaluate, fetch, kernel_study, statistics, unseen
from srlab import weights as weight_sets
from srlab.cka_study import INPUT

ROUNDING = 1e-3
"""Records keep four decimals, and another processor adds in another order; in dB, CKA and correlation."""
COSTS = ("instantiated IGConv", "instantiated IGConv+")
"""Cases of `bench` whose times two claims rest on. Timed as on record: same clock, as many threads, fresh processes."""
PROCESSES = 3
"""How many; their mean has to lie where the record expects a single one."""
SERIES = "imdn"
"""Published weights that the studies of encoders and kernels are repeated for."""


@dataclass(frozen=True)
class Check:
    """One number, on record and now."""

    record: str
    """name of the record in `data/results/`"""
    what: str
    value: float
    low: float
    high: float
    now: float | None
    """None where it could not be measured"""
    why_not: str = ""
    tolerance: float = ROUNDING
    """how far the new value may be from the one on record; infinite for times, whose interval says it"""

    @property
    def inside(self) -> bool | None:
        """Whether the new value lies in the interval on record and is the one on record; None if there is none."""
        if self.now is None:
            return None
        in_interval = self.low - ROUNDING <= self.now <= self.high + ROUNDING
        return bool(in_interval and abs(self.now - self.value) <= self.tolerance)

    def line(self) -> str:
        """The check in one line."""
        words = {True: "reproduced", False: "NOT REPRODUCED", None: f"not measured: {self.why_not}"}[self.inside]
        now = "" if self.now is None else f" now {self.now:.4f};"
        return f"{self.record}, {self.what}: {self.value:.4f} [{self.low:.4f}, {self.high:.4f}];{now} {words}"


def recheck(profile: str = "demo") -> Iterator[Check]:
    """Measure parts of the records anew; minutes on a laptop. What lacks pictures or weights says which.

    Args:
        profile: "smoke" looks at the scores of the bundled model alone, "demo" and "paper" at a part of each record.
    """
    for name, measure in itertools.islice(PARTS.items(), 1 if profile == "smoke" else None):
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the lines that say where each record comes from
                checks = list(measure())
            yield from checks
        except fetch.FetchError as error:
            yield Check(name, "a part of it", *[float("nan")] * 3, None, str(error).splitlines()[0])


def _scores() -> Iterator[Check]:
    record = evaluate.recorded_benchmarks()
    model = weight_sets.load(unseen.MODEL)
    rows = record[(record["model"] == unseen.MODEL) & (record["dataset"] == "set5")]
    for scale, group in rows.groupby("scale"):
        then = statistics.bootstrap_mean(group["psnr_y"])
        now = evaluate.benchmark(model, "set5", int(scale), progress=False)["psnr_y"].mean()
        yield Check(evaluate.RECORD, f"PSNR on Set5 x{scale}", then.mean, then.low, then.high, now)


def _encoders() -> Iterator[Check]:
    rows = cka_study.recorded_scales().rows
    pictures = compare.lr_pictures("set14", 4)
    last = (compare.UPSAMPLER_INPUT,)
    readers = {f"x{s}": compare.Reader(weight_sets.load(f"{SERIES}-x{s}"), last) for s in cka_study.SCALES}
    pairs = [compare.same_layers(a, b, last, last) for a, b in itertools.combinations(readers, 2)]
    found = compare.compare_all(readers, pairs, pictures, cka_study.PIXELS, n_resamples=2)
    chosen = (rows["data"] == "set14 x4") & (rows["series"] == SERIES) & (rows["control"] == "scales")
    table = rows[chosen & (rows["where"] == INPUT)].set_index(["a", "b"])
    for (_, pair), comparison in found.items():
        then, now = table.loc[(pair.a, pair.b)], comparison.mean(compare.last_cell(comparison)).mean
        what = f"CKA of {SERIES} {pair.a} and {pair.b} on Set14"
        yield Check("cka_scales", what, then["estimate"], then["low"], then["high"], now)


def _kernels() -> Iterator[Check]:
    keys = ["a", "b", "scale_a", "scale_b", "part", "basis"]
    about = (kernel_study.SCALES_APART, SERIES, SERIES)
    now = kernel_study.study(*about, kernel_study.pictures_of()).set_index(keys)
    record = kernel_study.recorded_kernels()
    then = record[(record["control"] == about[0]) & (record["a"] == SERIES) & (record["part"] == "varying")]
    for row in then[then["basis"] == "aligned"].itertuples():
        value = now.loc[tuple(getattr(row, key) for key in keys), "value"]
        what = f"aligned correlation of {SERIES} x{row.scale_a} and x{row.scale_b}"
        yield Check(kernel_study.RECORD, what, row.value, row.low, row.high, value)


def _unseen() -> Iterator[Check]:
    record = dict(unseen.differences(unseen.recorded_unseen()))
    largest = max(record)
    rows = unseen.score(weight_sets.load(unseen.MODEL), datasets.load(unseen.DATA), (largest,))
    now = dict(unseen.differences(rows))[largest].interval.mean
    then = record[largest].interval
    what = f"asked directly for x{largest}, minus the detour"
    yield Check(unseen.RECORD, what, then.mean, then.low, then.high, now)


def _costs() -> Iterator[Check]:
    record = bench.recorded_costs().set_index("case")
    for case in bench.chosen(COSTS):
        then, ratio = record.loc[case.name], None
        clock = bench.clock_called(then["clock"])
        if not (busy := bench.too_busy(clock)):
            now = bench.in_processes(case, clock, PROCESSES)
            ratio = bench.over_processes(now[:, 0] / now[:, 1])[0]
        what = f"{then['clock']} of {case.name} / {case.other}"
        ends = then["again_low"], then["again_high"]
        yield Check(bench.RECORD, what, then["ratio"], *ends, ratio, busy, tolerance=float("inf"))


PARTS: dict[str, Callable[[], Iterator[Check]]] = {
    evaluate.RECORD: _scores,
    "cka_scales": _encoders,
    kernel_study.RECORD: _kernels,
    unseen.RECORD: _unseen,
    bench.RECORD: _costs,
}
"""Record -> what is measured anew. Trainings are not repeated here: `srlab train --sweep` does, in hours."""
