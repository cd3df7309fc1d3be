"""Bench command room: the options of `srlab bench`, and what they start.

Takes parsed words, gives calls to `bench`, prints what it returns; `cli` hangs it below the word. `bench` is imported
on use, since it loads torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from srlab import runtime


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the cases, `--record`, `--cpu-time` and `--output`."""
    parser.add_argument("cases", nargs="*", metavar="CASE", help="beginnings of names, such as imresize; default: all")
    parser.add_argument("--record", action="store_true", help="write them to data/results/bench.csv, the rest is kept")
    parser.add_argument("--cpu-time", action="store_true", help="time on a processor, one thread: for busy machines")
    parser.add_argument("--output", type=Path, metavar="CSV", help="the table goes here")


def run(options: argparse.Namespace) -> int:
    """Print a line per case; 1 if one of them misses its goal."""
    if options.output and options.output.suffix != ".csv":
        raise ValueError(f"--output is {options.output}, expected a name ending in .csv")
    import pandas as pd

    from srlab import bench

    cases = bench.chosen(options.cases)
    clock = bench.cpu_clock() if options.cpu_time else bench.wall_clock()
    if options.record:
        table = bench.record(cases, clock)
    else:
        rows = []
        for row in bench.run(cases, clock):
            print(bench.line(row), flush=True)
            rows.append(row)
        table = pd.DataFrame(rows)
    if options.output:
        runtime.atomic_write(options.output, lambda draft: table.to_csv(draft, index=False))
    return int((table["met"] == "no").any())
