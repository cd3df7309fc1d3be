"""Judges room: a function per claim of the paper that reads records and says what they are evidence of.

Records of `data/results/` in, `Evidence` out; `claims` puts it beside the paper's words. A judge holds no number of its
own but the margins below and `library.PAR`. It compares an interval with a margin and answers by code: all of it on the
good side, all of it on the bad side, or "within noise" when the margin lies inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from srlab import (
    ablation,
    ablation_verdicts,
    ancestry,
    bench,
    cka_study,
    cka_verdicts,
    efficiency,
    igconv,
    kernel_study,
    library,
    runtime,
    unseen,
)
from srlab.cka_study import INPUT

HOLDS, FAILS, NOISE, OPEN = "holds", "does not hold", "within noise", "not tested yet"
ONLY = "holds only "
SAME_LATENCY = 1.02
"""Ratio of two times up to which they count as equal."""
THREE_FOLD = 2.5
"""Saving from which "three-fold" counts as met: three models replaced by one and a hyper-network."""
NEAR_A_THIRD = 5 / 12
"""Share of three trainings up to which "a third" counts as met: nearer to a third than to a half."""


@dataclass(frozen=True)
class Evidence:
    """What the lab found about a claim."""

    ours: str
    """the finding, in words and numbers"""
    verdict: str
    """`HOLDS`, `FAILS`, `NOISE` or `OPEN`, or `ONLY` and what it holds for; words that narrow it may follow"""
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


def _at_least(low: float, high: float, limit: float = 0.0) -> str:
    """Is a number at least `limit`? By its interval."""
    return HOLDS if low >= limit else FAILS if high < limit else NOISE


# encoders and kernels


def similar_encoders() -> Evidence:
    """More alike than either is to the picture, or to an untrained encoder: where a start is shared, and where not."""
    record = cka_study.recorded_scales()
    pairs = cka_verdicts.pairs_of_scales(cka_verdicts.of(record.rows, *cka_verdicts.MAIN), INPUT)
    kinds = record.weights.groupby("series")["kind"].agg(lambda kind: "".join(sorted(set(kind))))
    inherited = pairs["series"].isin(kinds.index[kinds.str.contains("A")])
    apart = pairs[~inherited & (pairs["to_floor"] != "")]  # "": too few pictures for an interval
    if apart.empty:
        return Evidence("no pair of scales was trained apart", OPEN)
    above, known = apart[apart["to_floor"] == "above"], apart[apart["to_ceiling"] != ""]
    beyond = ancestry.nothing_shared(ancestry.MEASURES[0], ancestry.PICTURE)
    verdict = cka_verdicts.judge(len(above), len(apart))
    if verdict == HOLDS and not beyond.low > 0:
        verdict = f"{ONLY}for models that share a start"
    elif verdict not in (HOLDS, FAILS):
        verdict = f"{ONLY}for {len(above)} of {len(apart)} pairs of scales"
    return Evidence(
        ours=f"CKA at the upsampler's input {span(apart['estimate'])} in {len(apart)} pairs of scales that share a "
        f"start, above the floor in {len(above)}, as high as two trainings of one scale in "
        f"{int((known['to_ceiling'] != 'below').sum())} of {len(known)}",
        verdict=verdict,
        value=apart["estimate"].mean(),
        low=apart["estimate"].min(),
        high=apart["estimate"].max(),
        spread="pairs",
        unit="CKA at the upsampler's input",
        control=f"floor {span(apart['floor'])} (the picture itself, or an untrained encoder), ceiling "
        f"{span(known['ceiling'])} (one scale trained twice); small models that share nothing: {beyond:+z.3f} "
        f"against the picture",
        also=f"other pictures {span(apart['null'])}; small models that share nothing "
        f"{ancestry.nothing_shared(ancestry.MEASURES[0], ancestry.ONE_SCALE):+z.3f} against one scale trained twice; "
        f"{ancestry.control_of_encoders()}",
        rests_on="cka_scales, cka_weights, ancestry: SMFANet, SMFANet+, BSRN on Urban100 crops; EDSR-nano",
    )


def correlated_kernels() -> Evidence:
    """Above every null: as stored, where nothing is shared, and once the channels of one are mapped to the other's."""
    aligned, ceilings = _aligned_kernels()
    if aligned.empty:
        return Evidence("no pair of scales was trained apart", OPEN)
    above = sum(kernel_study.above_nulls(row) for _, row in aligned.iterrows())
    nulls = [kernel_study.largest_null(row) for _, row in aligned.iterrows()]
    stored, alone = ancestry.kernels_that_share_nothing()
    verdict = HOLDS if above == len(aligned) else f"{ONLY}for {above} of {len(aligned)} pairs" if above else FAILS
    if verdict == HOLDS and stored < alone:
        verdict = f"{ONLY}for kernels whose channels are aligned"
    return Evidence(
        ours=f"after aligning channels {span(aligned['value'])} for the part that varies inside a pixel, above every "
        f"null in {above} of {len(aligned)} pairs of scales trained apart",
        verdict=verdict,
        value=aligned["value"].mean(),
        low=aligned["value"].min(),
        high=aligned["value"].max(),
        spread="pairs",
        unit="correlation after aligning channels",
        control=f"nulls at most {max(nulls):.2f}, ceiling {span(ceilings.dropna())} (one scale, other data); as "
        f"stored, where nothing is shared, above nulls in {stored} of {alone} pairs",
        also=f"small models of known kinship: {ancestry.control_of_kernels()}",
        rests_on="kernels_scales, ancestry: SMFANet, BSRN on B100; EDSR-nano",
    )


def one_kernel() -> Evidence:
    """As much correlation between scales as between two trainings of one scale."""
    aligned, ceilings = _aligned_kernels()
    shares = (aligned["value"] / ceilings).dropna()
    if shares.empty:
        return Evidence("no scale was trained twice", OPEN)
    reached = int((aligned["high"] >= ceilings)[ceilings.notna()].sum())
    alone = ancestry.nothing_shared(ancestry.KERNELS["aligned", "varying"], ancestry.ONE_SCALE)
    between = f"{shares.min():.0%} to {shares.max():.0%}"
    return Evidence(
        ours=f"kernels of two scales reach {between} of the correlation that two trainings of one scale reach with "
        f"each other, all of it in {reached} of {len(shares)} pairs",
        verdict=HOLDS if reached == len(shares) else f"{ONLY}for {between} of the ceiling",
        value=shares.mean(),
        low=shares.min(),
        high=shares.max(),
        spread="pairs",
        unit="of the ceiling",
        control=f"ceiling {span(ceilings.dropna())}: one scale, trained on DIV2K and on DF2K, which share more than "
        f"two scales do; small models that share nothing: {alone:+z.3f} against their ceiling",
        rests_on="kernels_scales, ancestry: SMFANet on B100; EDSR-nano",
    )


def _aligned_kernels() -> tuple[pd.DataFrame, pd.Series]:
    """Pairs of scales trained apart, aligned, the part that varies inside a pixel; and the ceiling of each, or NaN."""
    table = kernel_study.recorded_kernels()
    chosen = (table["control"] == kernel_study.SCALES_APART) & (table["part"] == "varying")
    rows = table[chosen & (table["basis"] == "aligned") & (table["provenance"] != "A")]
    ceilings = [
        kernel_study.ceiling(table, row.scale_a, row.scale_b, "aligned", "varying")
        if row.a in kernel_study.TWINS
        else math.nan
        for row in rows.itertuples()
    ]
    return rows, pd.Series(ceilings, index=rows.index, dtype=float)


# costs


def training() -> Evidence:
    """FLOPs of one training against three of as many steps each."""
    about = {"encoders": ["edsr-baseline", "edsr", "smfanet", "imdn", "bsrn"], "upsamplers": ["igconv", "igconv+"]}
    table = runtime.recorded("training_flops", lambda: efficiency.training_flops(**about), settings=about)
    fits = table["ratio"] <= NEAR_A_THIRD
    heavy = table[table["fixed_upsampler"] == "spconv+"]
    only = sorted(set(table["encoder"]) - set(table[~fits]["encoder"]))
    return Evidence(
        ours=f"FLOPs of one training over those of three with as many steps each: {span(table['ratio'])}; encoders "
        f"published with SPConv+, whose heavier upsampler goes as well, {span(heavy['ratio'])}",
        verdict=HOLDS if fits.all() else f"{ONLY}for {', '.join(only)}" if only else FAILS,
        value=table["ratio"].median(),
        low=table["ratio"].min(),
        high=table["ratio"].max(),
        spread="encoders",
        unit="of three trainings' FLOPs",
        control="1/3 if upsamplers cost nothing; says nothing of quality at equal steps, which is a claim of its own",
        rests_on="training_flops: counted on the models",
    )


def storage() -> Evidence:
    """Parameters of three models against those of one."""
    about = {"encoders": ["edsr", "rdn", "rcan", "edsr-baseline", "smfanet", "smfanet+", "imdn", "bsrn"]}
    table = runtime.recorded("stored_parameters", lambda: efficiency.stored_parameters(**about), settings=about)
    savings = table.set_index("encoder")["saving_igconv"]
    only, lost = savings[savings >= THREE_FOLD].index, savings[savings < 1].index
    return Evidence(
        ours=f"three models / one: {span(savings)}"
        + (f"; {', '.join(lost)} with IGConv is larger than its three models" if len(lost) else ""),
        verdict=HOLDS if len(only) == len(savings) else f"{ONLY}for {', '.join(only)}" if len(only) else FAILS,
        value=savings.median(),
        low=savings.min(),
        high=savings.max(),
        spread="encoders",
        unit="times fewer parameters",
        control="the hyper-network alone holds 512 numbers for each kernel element",
        rests_on="stored_parameters: counted on the models; equal to the paper's counts where it gives them",
    )


def latency() -> Evidence:
    """Time of an instantiated IGConv against SPConv's."""
    return _ratio("instantiated IGConv", "SPConv", SAME_LATENCY, "an instantiated IGConv is an SPConv without bias")


def cheaper() -> Evidence:
    """Time and memory of IGConv+ against SPConv+'s."""
    return _ratio("instantiated IGConv+", "SPConv+", 1.0, "the paper timed on an NVIDIA A6000", memory=1.0)


def _ratio(ours: str, other: str, limit: float, control: str, memory: float = math.inf) -> Evidence:
    row = bench.recorded_costs().set_index("case").loc[ours]
    time = _at_least(-row["high"], -row["low"], -limit)
    return Evidence(
        ours=f"time {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}] of {other}'s, memory "
        f"{row['memory_ratio']:.2f}",
        verdict=FAILS if row["memory_ratio"] > memory else time,
        value=row["ratio"],
        low=row["low"],
        high=row["high"],
        unit=f"of {other}'s time",
        control=control,
        rests_on="bench: 64 channels, 640x360 to 1280x720, on a CPU",
    )


# quality


def comparable() -> Evidence:
    """On a par: behind by no more than `library.PAR` at any scale, whole intervals counted."""
    rows = _against_three(library.IGCONV)
    found = {_at_least(row["low"], row["high"], -library.PAR) for row in rows.values()}
    verdict = FAILS if FAILS in found else NOISE if NOISE in found else HOLDS
    if verdict == NOISE:
        behind = ", though behind beyond chance" if rows[library.ALL]["verdict"] == "hurts" else ""
        verdict = f"{NOISE} of {library.PAR:g} dB, the margin of a par{behind}"
    return _one_for_all(library.IGCONV, rows, verdict)


def better() -> Evidence:
    """Better at every scale, or at least in the mean over scales. No scale is picked out afterwards: three tries at
    95 % are more than one."""
    rows = _against_three(library.PLUS)
    overall = {"helps": f"{ONLY}for the mean over scales", "hurts": FAILS}.get(rows[library.ALL]["verdict"], NOISE)
    return _one_for_all(
        library.PLUS, rows, HOLDS if all(row["verdict"] == "helps" for row in rows.values()) else overall
    )


def _against_three(kind: str) -> dict[str, pd.Series]:
    """Scale ("x2", ..., `library.ALL`) -> row of `library.effects` over all sets."""
    found = _effects((kind, library.THREE))
    return {scale: row for (_, _, scale), row in found.iterrows()}


def _effects(*questions: tuple[str, str]) -> pd.DataFrame:
    found = library.effects(library.scores(), datasets=[library.ALL], questions=questions)
    return found.set_index(["kind", "against", "scale"])


def _one_for_all(kind: str, rows: Mapping[str, pd.Series], verdict: str) -> Evidence:
    """One model of a kind against three, beside the control: one encoder with a head per scale."""
    beside = _effects((library.HEADS, library.THREE), (kind, library.HEADS))
    heads = beside.loc[library.HEADS, library.THREE, library.ALL]
    overall = rows[library.ALL]
    return Evidence(
        ours=f"small models after equal steps: {_gain(overall)} against three models; "
        + ", ".join(f"{scale} {_gain(row)}" for scale, row in rows.items() if scale != library.ALL),
        verdict=f"{verdict}, in small models",
        value=overall["gain"],
        low=overall["low"],
        high=overall["high"],
        unit="dB against three models",
        control=f"one encoder with a plain SPConv per scale: {_gain(heads)} against three models; {kind} is "
        f"{_gain(beside.loc[kind, library.HEADS, library.ALL])} against it",
        also=f"seeds: {', '.join(f'{name} {len(library.seeds(name))}' for name in library.KINDS)}",
        rests_on="benchmarks: EDSR-tiny trained here on BSDS400, on Set5, Set14, B100, Urban100",
    )


def _gain(row: pd.Series) -> str:
    return f"{row['gain']:+.3f} dB [{row['low']:+.3f}, {row['high']:+.3f}]"


def frequency_loss() -> Evidence:
    """A cure for a bias has to help most where the bias is: the highest octave is held against the lowest."""
    table = ablation_verdicts.measures(ablation.recorded_scores())
    high, low = (_part(table, "FFT loss", octave) for octave in ("snr4", "snr0"))
    elsewhere = ablation_verdicts.difference_of(table, "FFT loss", "snr0", "snr4")
    verdict = {"helps": HOLDS, "hurts": FAILS}.get(high["verdict"], NOISE)
    if verdict == HOLDS and elsewhere.verdict() == "helps":
        verdict = f"{ONLY}for the error as a whole: low frequencies gain more than high ones"
    return _with_and_without(
        high,
        verdict,
        ours="signal-to-noise in the highest octave {} with it, against equal training without",
        unit="dB in the highest octave",
        control=f"in the lowest octave {_gain(low)}",
    )


def fgrep() -> Evidence:
    """Free of charge: as many numbers once instantiated, and no more than `library.PAR` lost."""
    heads = [igconv.IGConvPlus(64, fgrep=on).instantiate(2) for on in (True, False)]
    shapes = [[tuple(weight.shape) for weight in head.parameters()] for head in heads]
    row = _part(ablation_verdicts.measures(ablation.recorded_scores()), "FGRep", "psnr_y")
    verdict = _at_least(row["low"], row["high"], -library.PAR) if shapes[0] == shapes[1] else FAILS
    return _with_and_without(
        row,
        verdict,
        ours="kernels of {} numbers with it, of {} without, once instantiated for x2; ".format(
            *(sum(map(math.prod, each)) for each in shapes)
        )
        + "PSNR {} with it, against equal training without",
        unit="dB of PSNR, kernels of the same shape",
        control="a margin of 0.1 dB",
    )


def _part(table: pd.DataFrame, part: str, measure: str) -> dict[str, object]:
    """A row of `ablation_verdicts.effect` with the wider ends as low and high."""
    row = ablation_verdicts.effect(table, part, measure)
    ends = {"low": min(row["pictures_low"], row["seeds_low"]), "high": max(row["pictures_high"], row["seeds_high"])}
    return row | ends


def _with_and_without(row: Mapping[str, object], verdict: str, ours: str, unit: str, control: str) -> Evidence:
    return Evidence(
        ours=ours.format(_gain(row)),
        verdict=verdict,
        value=row["gain"],
        low=row["low"],
        high=row["high"],
        unit=unit,
        control=f"{control}; equal trainings without it, interval over pictures or over seeds, the wider one",
        rests_on="ablation: EDSR-nano with IGConv+ on BSDS500",
    )


def unseen_scales() -> Evidence:
    """Asked for scales that were never trained, beside the detour through a trained one and beside bicubic."""
    rows = unseen.recorded_unseen()
    new = {scale: d for scale, d in unseen.differences(rows) if not rows[rows["scale"] == scale]["trained"].any()}
    if not new:
        return Evidence("no scale was left untrained", OPEN)
    over = {scale: d for scale, d in unseen.differences(rows, unseen.BICUBIC) if scale in new}
    detour, bicubic = ([_at_least(d.interval.low, d.interval.high) for d in each.values()] for each in (new, over))
    verdict = FAILS if FAILS in detour else NOISE if NOISE in detour else HOLDS
    if verdict != HOLDS and set(bicubic) == {HOLDS}:
        verdict = f"{ONLY}against bicubic, not against the detour"
    means, gains = (pd.Series({scale: d.interval.mean for scale, d in each.items()}) for each in (new, over))
    return Evidence(
        ours=f"at {', '.join(f'x{scale}' for scale in new)} {span(means, '+.3f')} dB against the detour through the "
        f"trained x4, {span(gains, '+.2f')} dB over bicubic",
        verdict=verdict,
        value=means.mean(),
        low=means.min(),
        high=means.max(),
        spread="scales",
        unit="dB against the detour",
        control=f"the detour: the trained x4, resized bicubically to the scale asked for; {span(gains, '+.2f')} dB "
        f"over bicubic alone",
        rests_on="unseen_scales: bundled EDSR-tiny with IGConv on B100",
    )


def span(values: pd.Series, form: str = ".2f") -> str:
    """Least and greatest of some numbers in words, "0.52 to 0.81"."""
    low, high = format(values.min(), form), format(values.max(), form)
    return low if low == high else f"{low} to {high}"
