"""Claims room: the reproduction scorecard. Every claim of the paper, our number, its interval and control, a verdict.

`CLAIMS` lists what *Implicit Grid Convolution for Multi-Scale Image Super-Resolution* (arXiv 2408.09674) claims, with
its place in the paper. `scorecard` judges each from the records in `data/results/`, which name the run that made them
(`srlab verify` prints it): no claim holds a number of its own, and a verdict follows from intervals by code.
Whether the records come out the same when parts of them are measured anew is asked in `recheck`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from srlab import (
    ablation,
    ablation_verdicts,
    ancestry,
    bench,
    cka_study,
    cka_verdicts,
    efficiency,
    kernel_study,
    library,
    runtime,
    unseen,
)
from srlab.cka_study import INPUT

HOLDS, FAILS, NOISE, OPEN = "holds", "does not hold", "within noise", "not tested yet"
ONLY = "holds only for "
SCORECARD = "scorecard"
MARKS = "<!-- scorecard: srlab claims --update -->", "<!-- end of scorecard -->"
SAME_LATENCY = 1.02
"""Ratio of two times up to which they count as equal."""
THREE_FOLD = 2.5
"""Saving from which "three-fold" counts as met: three models replaced by one and a hyper-network."""


@dataclass(frozen=True)
class Evidence:
    """What the lab found about a claim."""

    ours: str
    """the finding, in words and numbers"""
    verdict: str
    """`HOLDS`, `FAILS`, `NOISE`, `OPEN`, or `ONLY` with what it holds for"""
    value: float = float("nan")
    """the number that stands for it, in `unit`"""
    low: float = float("nan")
    high: float = float("nan")
    spread: str = ""
    """what `low` and `high` are the least and the most of, such as "encoders"; "" for a 95 % interval"""
    unit: str = ""
    """words that follow the number"""
    control: str = ""
    """what the number has to be held against"""
    also: str = ""
    """more of that, for readers who have the time"""
    rests_on: str = ""
    """records, models and data"""


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
    return f"{gains.mean():+.2f} dB over {len(gains)} cells, {_span(gains, '+.2f')}; no interval"


def _printed_latency(upsampler: str, other: str) -> str:
    table = pd.read_csv(runtime.repo_data("paper", "efficiency.csv")).set_index("upsampler")["latency_ms"]
    return f"{table[upsampler]:.2f} against {table[other]:.2f} ms, ratio {table[upsampler] / table[other]:.2f}"


# encoders and kernels


def _similar_encoders() -> Evidence:
    record = cka_study.recorded_scales()
    pairs = cka_verdicts.pairs_of_scales(cka_verdicts.of(record.rows, *cka_verdicts.MAIN), INPUT)
    kinds = record.weights.groupby("series")["kind"].agg(lambda kind: "".join(sorted(set(kind))))
    apart = pairs[pairs["series"].map(lambda series: "A" not in kinds[series])]  # not inherited from one another
    above, known = apart[apart["to_floor"] == "above"], apart[apart["to_ceiling"] != ""]
    at_ceiling = known[known["to_ceiling"] != "below"]
    verdict = cka_verdicts.judge(len(above), len(apart))
    if verdict == HOLDS and len(at_ceiling) < len(known):
        verdict = f"{ONLY}the comparison with the picture itself, not with a second training"
    elif verdict not in (HOLDS, FAILS):
        verdict = f"{ONLY}{len(above)} of {len(apart)} pairs of scales"
    return Evidence(
        ours=f"CKA at the upsampler's input {_span(apart['estimate'])} in {len(apart)} pairs of scales trained apart, "
        f"above the floor in {len(above)}, as high as two trainings of one scale in {len(at_ceiling)} of {len(known)}",
        verdict=verdict,
        value=apart["estimate"].mean(),
        low=apart["estimate"].min(),
        high=apart["estimate"].max(),
        spread="pairs",
        unit="CKA at the upsampler's input",
        control=f"floor {_span(apart['floor'])} (the picture itself, or an untrained encoder), ceiling "
        f"{_span(known['ceiling'])} (one scale trained twice), other pictures {_span(apart['null'])}",
        also=f"small models of known kinship: {ancestry.control_of_encoders()}",
        rests_on="cka_scales, cka_weights, ancestry: SMFANet, SMFANet+, BSRN on Urban100 crops; EDSR-nano",
    )


def _correlated_kernels() -> Evidence:
    aligned, ceilings = _aligned_kernels()
    above = sum(kernel_study.above_nulls(row) for _, row in aligned.iterrows())
    nulls = aligned.apply(kernel_study.largest_null, axis=1)
    stored, alone = ancestry.kernels_that_share_nothing()
    verdict = HOLDS if above == len(aligned) else f"{ONLY}{above} of {len(aligned)} pairs" if above else FAILS
    if verdict == HOLDS and stored < alone:
        verdict = f"{ONLY}kernels whose channels are aligned"
    return Evidence(
        ours=f"after aligning channels {_span(aligned['value'])} for the part that varies inside a pixel, above every "
        f"null in {above} of {len(aligned)} pairs of scales trained apart",
        verdict=verdict,
        value=aligned["value"].mean(),
        low=aligned["value"].min(),
        high=aligned["value"].max(),
        spread="pairs",
        unit="correlation after aligning channels",
        control=f"nulls at most {nulls.max():.2f}, ceiling {_span(ceilings.dropna())} (one scale, other data); as "
        f"stored, where nothing is shared, above nulls in {stored} of {alone} pairs",
        also=f"small models of known kinship: {ancestry.control_of_kernels()}",
        rests_on="kernels_scales, ancestry: SMFANet, BSRN on B100; EDSR-nano",
    )


def _one_kernel() -> Evidence:
    aligned, ceilings = _aligned_kernels()
    shares = (aligned["value"] / ceilings).dropna()
    reached = int((aligned["high"] >= ceilings)[ceilings.notna()].sum())
    return Evidence(
        ours=f"kernels of two scales reach {shares.min():.0%} to {shares.max():.0%} of the correlation that two "
        f"trainings of one scale reach with each other, all of it in {reached} of {len(shares)} pairs",
        verdict=HOLDS if reached == len(shares) else f"{ONLY}{shares.min():.0%} to {shares.max():.0%} of the ceiling",
        value=shares.mean(),
        low=shares.min(),
        high=shares.max(),
        spread="pairs",
        unit="of the ceiling",
        control=f"ceiling {_span(ceilings.dropna())}: one scale, trained on DIV2K and on DF2K",
        rests_on="kernels_scales: SMFANet on B100",
    )


def _aligned_kernels() -> tuple[pd.DataFrame, pd.Series]:
    """Pairs of scales trained apart, aligned, the part that varies inside a pixel; and the ceiling of each, or NaN."""
    table = kernel_study.recorded_kernels()
    chosen = (table["control"] == kernel_study.SCALES_APART) & (table["part"] == "varying")
    rows = table[chosen & (table["basis"] == "aligned") & (table["provenance"] != "A")]
    ceilings = [
        kernel_study.ceiling(table, row.scale_a, row.scale_b, "aligned", "varying")
        if row.a in kernel_study.TWINS
        else float("nan")
        for row in rows.itertuples()
    ]
    return rows, pd.Series(ceilings, index=rows.index)


# costs


def _training() -> Evidence:
    about = {"encoders": ["edsr-baseline", "edsr", "smfanet", "imdn", "bsrn"], "upsamplers": ["igconv", "igconv+"]}
    table = runtime.recorded("training_flops", lambda: efficiency.training_flops(**about), settings=about)
    fits = table[table["ratio"] <= 0.5 - 1 / 12]  # nearer to a third than to a half
    heavy = table[table["fixed_upsampler"] == "spconv+"]
    only = sorted(set(fits["encoder"]) - set(table[~table.index.isin(fits.index)]["encoder"]))
    return Evidence(
        ours=f"FLOPs of one training over those of three with as many steps each: {_span(table['ratio'])}; large "
        f"encoders published with SPConv+ {_span(heavy['ratio'])}",
        verdict=HOLDS if len(fits) == len(table) else f"{ONLY}{', '.join(only)}" if only else FAILS,
        value=table["ratio"].median(),
        low=table["ratio"].min(),
        high=table["ratio"].max(),
        spread="encoders",
        unit="of three trainings' FLOPs",
        control="1/3 if upsamplers cost nothing; says nothing of quality at equal steps, which is a claim of its own",
        rests_on="training_flops: counted on the models",
    )


def _storage() -> Evidence:
    about = {"encoders": ["edsr", "rdn", "rcan", "edsr-baseline", "smfanet", "smfanet+", "imdn", "bsrn"]}
    table = runtime.recorded("stored_parameters", lambda: efficiency.stored_parameters(**about), settings=about)
    table = table.set_index("encoder")
    savings = table["saving_igconv"]
    only = savings[savings >= THREE_FOLD].index
    lost = savings[savings < 1].index
    return Evidence(
        ours=f"three models / one: {_span(savings)}"
        + (f"; {', '.join(lost)} with IGConv is larger than its three models" if len(lost) else ""),
        verdict=HOLDS if len(only) == len(savings) else f"{ONLY}{', '.join(only)}" if len(only) else FAILS,
        value=savings.median(),
        low=savings.min(),
        high=savings.max(),
        spread="encoders",
        unit="times fewer parameters",
        control="the hyper-network alone holds 512 numbers for each kernel element",
        rests_on="stored_parameters: counted on the models; equal to the paper's counts where it gives them",
    )


def _latency() -> Evidence:
    return _ratio("instantiated IGConv", "SPConv", SAME_LATENCY, "an instantiated IGConv is an SPConv without bias")


def _cheaper() -> Evidence:
    return _ratio("instantiated IGConv+", "SPConv+", 1.0, "the paper timed on an NVIDIA A6000")


def _ratio(ours: str, other: str, limit: float, control: str) -> Evidence:
    row = bench.recorded_costs().set_index("case").loc[ours]
    return Evidence(
        ours=f"time {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}] of {other}'s, memory "
        f"{row['memory_ratio']:.2f}",
        verdict=HOLDS if row["low"] <= limit else FAILS,
        value=row["ratio"],
        low=row["low"],
        high=row["high"],
        unit=f"of {other}'s time",
        control=control,
        rests_on="bench: 64 channels, 640x360 to 1280x720, on a CPU",
    )


# quality


def _comparable() -> Evidence:
    """On a par is a statement about size: not even the lower end of the interval may lie below `library.PAR`. Where
    it does, being behind beyond chance is enough for the claim to fail."""
    return _one_for_all(
        library.IGCONV,
        lambda row: row["low"] >= -library.PAR,
        lambda row: row["verdict"] == "hurts" and not library.on_a_par(row),
    )


def _better() -> Evidence:
    return _one_for_all(library.PLUS, lambda row: row["verdict"] == "helps", lambda row: row["verdict"] == "hurts")


def _one_for_all(kind: str, holds: Callable[[pd.Series], bool], fails: Callable[[pd.Series], bool]) -> Evidence:
    """One model of a kind against three, judged scale by scale."""
    questions = [(kind, library.THREE), (library.HEADS, library.THREE), (kind, library.HEADS)]
    found = library.effects(library.scores(), datasets=[library.ALL], questions=questions)
    found = found.set_index(["kind", "against", "scale"])
    rows = found.loc[kind, library.THREE]
    overall, scales = rows.loc[library.ALL], rows.drop(index=library.ALL)
    fits = [scale for scale, row in scales.iterrows() if holds(row)]
    none = FAILS if any(fails(row) for _, row in scales.iterrows()) else NOISE
    verdict = HOLDS if len(fits) == len(scales) else f"{ONLY}{', '.join(fits)}" if fits else none
    heads, beside = found.loc[library.HEADS, library.THREE, library.ALL], found.loc[kind, library.HEADS, library.ALL]
    return Evidence(
        ours=f"small models after equal steps: {_gain(overall)} against three models; "
        + ", ".join(f"{scale} {_gain(row)}" for scale, row in scales.iterrows()),
        verdict=f"{verdict} in small models",
        value=overall["gain"],
        low=overall["low"],
        high=overall["high"],
        unit="dB against three models",
        control=f"one encoder with a plain SPConv per scale: {_gain(heads)} against three models; {kind} is "
        f"{_gain(beside)} against it",
        also=f"seeds: {', '.join(f'{name} {len(library.seeds(name))}' for name in library.KINDS)}",
        rests_on="benchmarks: EDSR-tiny trained here on BSDS400, on Set5, Set14, B100, Urban100",
    )


def _gain(row: pd.Series) -> str:
    return f"{row['gain']:+.3f} dB [{row['low']:+.3f}, {row['high']:+.3f}]"


def _frequency_loss() -> Evidence:
    """A cure for a bias has to help most where the bias is: the highest octave is held against the lowest."""
    high = _part("FFT loss", "snr4", "signal-to-noise in the highest octave", "dB in the highest octave")
    low = _part("FFT loss", "snr0", "in the lowest octave", "dB in the lowest octave")
    verdict = high.verdict
    if verdict == HOLDS and low.low > high.high:
        verdict = f"{ONLY}the error as a whole: low frequencies gain more than high ones"
    lowest = f"in the lowest octave {low.value:+.2f} dB [{low.low:+.2f}, {low.high:+.2f}]"
    return Evidence(**{**asdict(high), "control": f"{lowest}; {high.control}", "verdict": verdict})


def _fgrep() -> Evidence:
    found = _part("FGRep", "psnr_y", "PSNR", "dB of PSNR; no parameter and no operation more once instantiated")
    stored = "no parameter and no operation more once instantiated"
    verdict = FAILS if found.verdict == FAILS else HOLDS
    return Evidence(**{**asdict(found), "ours": f"{stored}; {found.ours}", "verdict": verdict})


def _part(part: str, measure: str, what: str, unit: str) -> Evidence:
    table = ablation_verdicts.measures(ablation.recorded_scores())
    row = ablation_verdicts.effect(table, part, measure)
    low, high = min(row["pictures_low"], row["seeds_low"]), max(row["pictures_high"], row["seeds_high"])
    return Evidence(
        ours=f"{what} {row['gain']:+.3f} dB [{low:+.3f}, {high:+.3f}] with it, against equal training without",
        verdict={"helps": HOLDS, "hurts": FAILS}.get(row["verdict"], NOISE),
        value=row["gain"],
        low=low,
        high=high,
        unit=unit,
        control="equal trainings without it; interval over pictures or over seeds, the wider one",
        rests_on="ablation: EDSR-nano with IGConv+ on BSDS500",
    )


def _unseen() -> Evidence:
    rows = unseen.recorded_unseen()
    new = {scale: d for scale, d in unseen.differences(rows) if not rows[rows["scale"] == scale]["trained"].any()}
    over = {scale: d for scale, d in unseen.differences(rows, unseen.BICUBIC) if scale in new}
    means, gains = (pd.Series({scale: d.interval.mean for scale, d in each.items()}) for each in (new, over))
    better = [scale for scale, d in new.items() if d.interval.low > 0]
    return Evidence(
        ours=f"at {', '.join(f'x{scale}' for scale in new)} {_span(means, '+.3f')} dB against the detour through the "
        f"trained x4, {_span(gains, '+.2f')} dB over bicubic",
        verdict=HOLDS if len(better) == len(new) else f"{ONLY}x{better}" if better else FAILS,
        value=means.mean(),
        low=means.min(),
        high=means.max(),
        spread="scales",
        unit="dB against the detour",
        control="the detour: the trained x4, resized bicubically to the scale asked for",
        rests_on="unseen_scales: bundled EDSR-tiny with IGConv on B100",
    )


def _span(values: pd.Series, form: str = ".2f") -> str:
    low, high = format(values.min(), form), format(values.max(), form)
    return low if low == high else f"{low} to {high}"


CLAIMS = (
    Claim("similar-encoders", "Encoders trained at different scales extract similar features.", "abstract",
          _nothing, "04_encoder_similarity_cka.ipynb", _similar_encoders),
    Claim("correlated-kernels", "Sub-pixel convolutions trained at different scales are significantly correlated.",
          "abstract", _nothing, "05_kernels_across_scales.ipynb", _correlated_kernels),
    Claim("one-kernel", "One continuous kernel lies behind the sub-pixel convolutions of all scales.", "method",
          _nothing, "05_kernels_across_scales.ipynb", _one_kernel),
    Claim("comparable-quality", "One model with IGConv is on a par with one model per scale.", "Tables 2 and 3",
          lambda: _printed_gain("IGConv", ("Table 2", "Table 3")),
          "08_train_one_model_for_all_scales.ipynb", _comparable),
    Claim("training-budget", "Training one model costs a third of training three.", "abstract",
          _nothing, "07_implicit_grid_convolution.ipynb", _training),
    Claim("stored-parameters", "One model stores a third of the parameters of three.", "abstract",
          _nothing, "07_implicit_grid_convolution.ipynb", _storage),
    Claim("same-latency", "An instantiated IGConv takes as long as SPConv.", "Figure 1a",
          lambda: _printed_latency("IGConv", "SPConv"), "07_implicit_grid_convolution.ipynb", _latency),
    Claim("cheaper", "IGConv+ takes less time and memory than SPConv+.", "Figure 1a",
          lambda: _printed_latency("IGConv+", "SPConv+"), "07_implicit_grid_convolution.ipynb", _cheaper),
    Claim("igconv+-better", "IGConv+ is better than one model per scale.", "Tables 2, 3 and 4",
          lambda: _printed_gain("IGConv+", ("Table 2", "Table 3", "Table 4")),
          "08_train_one_model_for_all_scales.ipynb", _better),
    Claim("frequency-loss", "A frequency loss treats spectral bias.", "abstract",
          _nothing, "06_spectral_bias.ipynb", _frequency_loss),
    Claim("fgrep", "FGRep, an ensemble inside the kernel, is free of charge.", "method",
          _nothing, "07_implicit_grid_convolution.ipynb", _fgrep),
    Claim("unseen-scales", "The continuous kernel serves scales that were never trained.", "not claimed, would follow",
          _nothing, "07_implicit_grid_convolution.ipynb", _unseen),
)  # fmt: skip
"""In the order of the paper's argument."""
