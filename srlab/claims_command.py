"""Claims command room: the options of `srlab claims` and `srlab verify`, and what they start.

Takes parsed words, gives calls to `claims`, `recheck` and `provenance`, prints what they return; `cli` hangs it below
the two words. The rooms are imported on use, since they load torch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path

from srlab import runtime


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--rerun`, `--profile`, `--output` and `--update`."""
    parser.add_argument("--rerun", action="store_true", help="measure parts of the records anew and compare (minutes)")
    text = "with --rerun: how much is measured; default: SRLAB_PROFILE, or demo"
    parser.add_argument("--profile", choices=runtime.PROFILES, help=text)
    parser.add_argument("--output", type=Path, metavar="CSV", help="the table goes here")
    parser.add_argument("--update", action="store_true", help="bring data/results/scorecard.csv and README up to date")


def run(options: argparse.Namespace) -> int:
    """Print the scorecard; 1 if with `--rerun` a number on record did not come out again."""
    if options.output and options.output.suffix != ".csv":
        raise ValueError(f"--output is {options.output}, expected a name ending in .csv")
    from srlab import claims

    with contextlib.redirect_stdout(io.StringIO()):  # the line that says where each record comes from: `srlab verify`
        table = claims.scorecard()
    print(*claims.lines(table), sep="\n")
    if options.output:
        runtime.atomic_write(options.output, lambda draft: table.to_csv(draft, index=False))
    if options.update:
        print(*(f"wrote {path}" for path in claims.update(table)), sep="\n")
    return _rerun(options.profile or runtime.profile()) if options.rerun else 0


def _rerun(profile: str) -> int:
    from srlab import recheck

    print("\nmeasured anew:")
    failed = 0
    for check in recheck.recheck(profile):
        print(check.line(), flush=True)
        failed += check.inside is False
    return int(failed > 0)


def add_verify_options(parser: argparse.ArgumentParser) -> None:
    """Add the files."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="figures, tables or weights of the lab")


def verify(options: argparse.Namespace) -> int:
    """Print which run made each file."""
    from srlab import provenance

    for path in options.files:
        print(*provenance.verify(path), sep="\n")
    return 0
