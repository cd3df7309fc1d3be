"""Claims room: the reproduction scorecard. Every claim of the paper, our number, its interval and control, a verdict.

`CLAIMS` lists what *Implicit Grid Convolution for Multi-Scale Image Super-Resolution* (arXiv 2408.09674) claims, with
its place in the paper, and the function of `judges` that looks at the records in `data/results/`, which name the run
that made them (`srlab verify` prints it): no claim holds a number of its own. `scorecard` puts all of it into a table.
Whether the records come out the same when parts of them are measured anew is asked in `recheck`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from srlab import judges, runtime
from srlab.judges import Evidence

SCORECARD = "scorecard"
MARKS = "<!-- scorecard: srlab claims --update -->", "<!-- end of scorecard -->"


@dataclass(frozen=True)
class Claim:
    """One claim of the paper."""

    name: str
    statement: str
    source: str
    printed: Callable[[], str]
    """the published number, read from `data/paper/`; "" where the paper gives none"""
    notebook: str
    judge: Callable[[], Evidence]


def scorecard() -> pd.DataFrame:
    """Every claim judged from the recorded results.

    Returns:
        A row per claim: claim, statement, source, published, ours, value, low, high, spread (see `Evidence`), unit,
        control, also, verdict, rests_on, notebook.

    Raises:
        RecordError: a record is missing or of other weights, pictures or settings than this project now has.
    """
    rows = []
    for claim in CLAIMS:
        about = {"claim": claim.name, "statement": claim.statement, "source": claim.source}
        found = asdict(claim.judge())
        row = about | {"published": claim.printed()} | found | {"notebook": claim.notebook}
        rows.append(row)
    columns = ["claim", "statement", "source", "published", "ours", "value", "low", "high", "spread", "unit"]
    return pd.DataFrame(rows)[[*columns, "control", "also", "verdict", "rests_on", "notebook"]]


def lines(table: pd.DataFrame) -> Iterator[str]:
    """The scorecard as text for a terminal: a block per claim."""
    for row in table.itertuples():
        yield f"{row.claim}: {row.verdict.upper()}"
        yield f"    the paper ({row.source}): {row.statement}" + (f" [{row.published}]" if row.published else "")
        yield f"    here: {row.ours}"
        if row.control:
            yield f"    beside: {row.control}" + (f"; {row.also}" if row.also else "")
        yield f"    rests on {row.rests_on or 'nothing yet'}; shown in notebook {row.notebook[:2]}"


def as_markdown(table: pd.DataFrame) -> str:
    """The scorecard as a table for README, short: what the paper says, our number, its control, the verdict."""
    head = "| the paper says | here | to be held against | verdict | notebook |\n|---|---|---|---|---|\n"
    cells = []
    for row in table.itertuples():
        form = "+.3f" if row.unit.startswith("dB") else ".2f"
        value, low, high = (format(number, form) for number in (row.value, row.low, row.high))
        spread = f"{value} {row.unit} ({low} to {high} over {row.spread})"
        number = spread if row.spread else f"{value} [{low}, {high}] {row.unit}"
        shown_in = f"[{row.notebook[:2]}](notebooks/{row.notebook})"
        cells.append((row.statement, number, row.control, f"**{row.verdict}**", shown_in))
    return head + "".join("| " + " | ".join(row) + " |\n" for row in cells)


def update(table: pd.DataFrame) -> Iterator[Path]:
    """Write the scorecard to `data/results/scorecard.csv` and, in a clone, between the marks in README.md."""
    target = runtime.repo_data("results", f"{SCORECARD}.csv")
    yield runtime.atomic_write(target, lambda draft: table.to_csv(draft, index=False, lineterminator="\n"))
    readme = (runtime.project_root() or Path()) / "README.md"
    if readme.is_file():
        text = readme.read_text(encoding="utf-8")
        if not all(mark in text for mark in MARKS):
            raise ValueError(f"{readme} lacks the lines {' and '.join(MARKS)} that the scorecard stands between")
        before, rest = text.split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        text = f"{before}{MARKS[0]}\n{as_markdown(table)}{MARKS[1]}{after}"
        yield runtime.atomic_write(readme, lambda draft: draft.write_text(text, encoding="utf-8"))


# what the paper printed


def _nothing() -> str:
    return ""


def _printed_gain(upsampler: str, tables: Sequence[str]) -> str:
    """Mean, lowest and highest published gain of one model for all scales over one model per scale."""
    table = pd.read_csv(runtime.repo_data("paper", "tables.csv"))
    table = table[table["table"].isin(tables)]
    cells = table.pivot_table("psnr", ["table", "encoder", "dataset", "scale"], "upsampler")
    fixed = cells.reindex(columns=["SPConv", "SPConv+"]).bfill(axis=1)["SPConv"]  # whichever the original work has
    gains = (cells[upsampler] - fixed).dropna()
    return f"{gains.mean():+.2f} dB over {len(gains)} cells, {judges.span(gains, '+.2f')}; no interval"


def _printed_latency(upsampler: str, other: str) -> str:
    table = pd.read_csv(runtime.repo_data("paper", "efficiency.csv")).set_index("upsampler")["latency_ms"]
    return f"{table[upsampler]:.2f} against {table[other]:.2f} ms, ratio {table[upsampler] / table[other]:.2f}"


CLAIMS = (
    Claim("similar-encoders", "Encoders trained at different scales extract similar features.", "abstract",
          _nothing, "04_encoder_similarity_cka.ipynb", judges.similar_encoders),
    Claim("correlated-kernels", "Sub-pixel convolutions trained at different scales are significantly correlated.",
          "abstract", _nothing, "05_kernels_across_scales.ipynb", judges.correlated_kernels),
    Claim("one-kernel", "One continuous kernel lies behind the sub-pixel convolutions of all scales.", "method",
          _nothing, "05_kernels_across_scales.ipynb", judges.one_kernel),
    Claim("comparable-quality", "One model with IGConv is on a par with one model per scale.", "Tables 2 and 3",
          lambda: _printed_gain("IGConv", ("Table 2", "Table 3")),
          "08_train_one_model_for_all_scales.ipynb", judges.comparable),
    Claim("training-budget", "Training one model costs a third of training three.", "abstract",
          _nothing, "08_train_one_model_for_all_scales.ipynb", judges.training),
    Claim("stored-parameters", "One model stores a third of the parameters of three.", "abstract",
          _nothing, "07_implicit_grid_convolution.ipynb", judges.storage),
    Claim("same-latency", "An instantiated IGConv takes as long as SPConv.", "Figure 1a",
          lambda: _printed_latency("IGConv", "SPConv"), "07_implicit_grid_convolution.ipynb", judges.latency),
    Claim("cheaper", "IGConv+ takes less time and memory than SPConv+.", "Figure 1a",
          lambda: _printed_latency("IGConv+", "SPConv+"), "07_implicit_grid_convolution.ipynb", judges.cheaper),
    Claim("igconv+-better", "IGConv+ is better than one model per scale.", "Tables 2, 3 and 4",
          lambda: _printed_gain("IGConv+", ("Table 2", "Table 3", "Table 4")),
          "08_train_one_model_for_all_scales.ipynb", judges.better),
    Claim("frequency-loss", "A frequency loss treats spectral bias.", "abstract",
          _nothing, "06_spectral_bias.ipynb", judges.frequency_loss),
    Claim("fgrep", "FGRep, an ensemble inside the kernel, is free of charge.", "method",
          _nothing, "07_implicit_grid_convolution.ipynb", judges.fgrep),
    Claim("unseen-scales", "The continuous kernel serves scales never trained (not claimed; it would follow).",
          "method", _nothing, "07_implicit_grid_convolution.ipynb", judges.unseen_scales),
)  # fmt: skip
"""In the order of the paper's argument."""
