"""Ancestry room: how alike are encoders and kernels of x2, x3, x4 when we know what they have in common?

Published trios all started from one seed or from each other, so none tells what training finds from what was inherited.
Here are fifteen small models of one recipe (`sweeps`, "provenance"; EDSR-nano with an SPConv, weights and logs in
`data/weights/provenance/`): x2, x3 and x4 from three seeds, and x3, x4 fine-tuned from each x2. Two of them share
nothing, a seed (the first weights and the order of pictures), or an ancestor, by construction.

`plan` lists what is compared, controls included, `measure` compares with the means of `compare`, `controls` and
`kernel_study`, `recorded_ancestry` ships the table as `data/results/ancestry.csv`. All of it needs the demo photographs
only. `summary_table`, `effects` and `verdicts` read it: means over pairs of scales, intervals over seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from torch import Tensor

from srlab import compare, controls, datasets, fetch, kernel_study, runtime, statistics, weights
from srlab.cka_study import BLOCKS, INPUT, PIXELS
from srlab.compare import every_layer, same_layers
from srlab.kernel_study import Protocol
from srlab.models import SRModel
from srlab.statistics import Interval

SCALES, SEEDS = (2, 3, 4), (0, 1, 2)
NOTHING, SEED, TUNED = "nothing shared", "one seed", "fine-tuned"
ONE_SCALE = "one scale"
UNTRAINED, TWO_STARTS, ONE_START, OWN_START = "untrained", "two starts", "one start", "own start"
PICTURE, OTHER_PICTURES = "picture", "other pictures"
CONDITIONS = {
    NOTHING: "two scales, two seeds",
    SEED: "two scales, the same first weights and the same order of pictures",
    TUNED: "two scales, x3 and x4 started from the trained x2",
    ONE_SCALE: "ceiling: the same scale, two seeds",
    UNTRAINED: "floor: a trained model, and another seed's first weights",
    PICTURE: "floor: a trained model, and the picture itself",
    OWN_START: "a trained model, and the first weights it started from",
    TWO_STARTS: "first weights of two seeds",
    ONE_START: "first weights of one seed, two scales: the encoders are one and the same",
    OTHER_PICTURES: "null: as nothing shared, but each model sees other pictures",
}
"""What two compared models have in common, or which control they are."""
WITH_KERNELS = (NOTHING, SEED, TUNED, ONE_SCALE, ONE_START)
HIDDEN, FIRST = "weights, hidden layers", "weights, first layer"
BASES = {"same channel": "as stored", "aligned": "aligned"}
KERNELS = {
    (basis, part): f"kernels {words}, {part} part" for part in ("varying", "mean") for basis, words in BASES.items()
}
MEASURES = (f"CKA, {INPUT}", f"CKA, {BLOCKS}", HIDDEN, FIRST, *KERNELS.values())
RECORD = "ancestry"
SIGNIFICANT = 0.05
"""Largest p of `seed_p` that counts; three seeds allow 0.028."""


PROTOCOL = Protocol(data="demo", scale=4, pictures=10, side=72, resamples=19)
"""Every photograph counts alike; few resamples of them, since intervals here are over seeds."""


class Pair(NamedTuple):
    """Two models to compare."""

    condition: str
    scales: str
    """the question it belongs to, "x2-x4"; a pair of one scale stands beside each question of that scale"""
    grid: int
    """sub-pixels a side that kernels are compared on: of the coarser scale in question"""
    a: str
    b: str


def names() -> list[str]:
    """The fifteen models; those that others were fine-tuned from first."""
    apart = [f"x{scale}-seed{seed}" for seed in SEEDS for scale in SCALES]
    return [*apart, *(_tuned(scale, seed) for seed in SEEDS for scale in SCALES[1:])]


def load(name: str) -> SRModel:
    """One of `names`, or "x2-start0": the first weights of that scale and seed, untrained; in evaluation mode."""
    if "-start" in name:
        scale, seed = name.split("-start")
        return controls.untrained(load(f"{scale}-seed0"), int(seed))
    return weights.load_checkpoint(_file(name))


def plan() -> Iterator[Pair]:
    """What is compared. Two seeds are never the same one, and every pair of different seeds comes equally often."""
    for a, b in itertools.combinations(SCALES, 2):
        for seed, other in itertools.product(SEEDS, SEEDS):
            if seed == other:
                found = [(SEED, f"x{a}-seed{seed}", f"x{b}-seed{seed}")]
                found += [(TUNED, _tuned(a, seed), _tuned(b, seed))]
                found += [(ONE_START, f"x{a}-start{seed}", f"x{b}-start{seed}")]
                found += [(OWN_START, f"x{scale}-seed{seed}", f"x{scale}-start{seed}") for scale in (a, b)]
                found += [(PICTURE, f"x{scale}-seed{seed}", PICTURE) for scale in (a, b)]
            else:
                found = [(what, f"x{a}-seed{seed}", f"x{b}-seed{other}") for what in (NOTHING, OTHER_PICTURES)]
                found += [(UNTRAINED, f"x{scale}-seed{seed}", f"x{scale}-start{other}") for scale in (a, b)]
                found += [(TWO_STARTS, f"x{a}-start{seed}", f"x{b}-start{other}")]
                found += [(ONE_SCALE, f"x{s}-seed{seed}", f"x{s}-seed{other}") for s in (a, b) if seed < other]
            yield from (Pair(what, f"x{a}-x{b}", a, first, second) for what, first, second in found)


def measure(
    pairs: Sequence[Pair], models: Mapping[str, SRModel], pictures: Sequence[Tensor], sizes: Protocol = PROTOCOL
) -> pd.DataFrame:
    """Compare models in every way there is.

    Args:
        pairs: what to compare.
        models: name -> model, of one architecture with a plain SPConv; for the first weights of a seed as well.
        pictures: LR pictures, float (1, 3, h, w) in [0, 1], of one size.
        sizes: draws from the nulls of kernels, resamples, untrained kernels.

    Returns:
        A row per pair and measure: condition, scales, a, b, measure (of `MEASURES`), value, null (largest value that
        the nulls explain, for weights and kernels) and p (of kernels, against the nearest null).
    """
    rows = []
    similarity = _ckas(pairs, models, pictures)
    members = {
        name: kernel_study.read(model, model.scales[0], pictures, sizes.untrained, seed=len(SEEDS))
        for name, model in models.items()
    }
    for pair in pairs:
        found = [{"measure": name, "value": value} for name, value in similarity[pair].items()]
        if pair.condition not in (PICTURE, OTHER_PICTURES):
            cosines = controls.weight_cosines(models[pair.a], models[pair.b])
            found += [{"measure": HIDDEN, "value": cosines.hidden, "null": cosines.hidden_null}]
            found += [{"measure": FIRST, "value": cosines.first, "null": cosines.first_null}]
        if pair.condition in WITH_KERNELS:
            a, b = (kernel_study.at_grid(members[name], pair.grid) for name in (pair.a, pair.b))
            table = kernel_study.compare_members(a, b, sizes).set_index(["basis", "part"])
            for key, name in KERNELS.items():
                row = table.loc[key]
                limits = {"null": kernel_study.largest_null(row), "p": kernel_study.largest_p(row)}
                found += [{"measure": name, "value": row.value, **limits}]
        about = {"condition": pair.condition, "scales": pair.scales, "a": pair.a, "b": pair.b}
        rows += [about | row for row in found]
    return pd.DataFrame(rows).round(4)


def _ckas(
    pairs: Sequence[Pair], models: Mapping[str, SRModel], pictures: Sequence[Tensor]
) -> dict[Pair, dict[str, float]]:
    """Debiased CKA, pixels as examples: pair -> measure -> value."""
    readers: dict[str, controls.Read] = {name: compare.Reader(model) for name, model in models.items()}
    layers = next(iter(readers.values())).names
    readers[PICTURE] = controls.raw_picture
    asked = {}
    for pair in pairs:
        if pair.b == PICTURE:
            asked[pair] = every_layer(pair.a, PICTURE, layers, (controls.PICTURE,))
        else:
            both = same_layers(pair.a, pair.b, layers, layers)
            asked[pair] = both._replace(shuffled=pair.condition == OTHER_PICTURES)
    found = compare.compare_all(readers, list(dict.fromkeys(asked.values())), pictures, PIXELS, n_resamples=0)
    results = {pair: found["pixels", each] for pair, each in asked.items()}
    where = {MEASURES[0]: compare.last_cell, MEASURES[1]: compare.block_cells}
    return {pair: {name: r.mean(over(r)).mean for name, over in where.items()} for pair, r in results.items()}


def recorded_ancestry() -> pd.DataFrame:
    """The table of `measure` for all of `plan`, as it ships with the project.

    All it takes is on every machine: where the weights or the photographs in the installed packages are others than
    those of the record, it is made anew, in a few minutes. `SRLAB_RECORD=1` does so in any case, for shipping.
    """
    photos = datasets.load(PROTOCOL.data)
    settings = {
        "weights": {name: fetch.file_sha256(_file(name)) for name in names()},
        "pictures": {name: fetch.file_sha256(photos.path(i)) for i, name in enumerate(photos.names)},
        "protocol": list(PROTOCOL),
        "conditions": list(CONDITIONS),
    }

    def compute() -> pd.DataFrame:
        pairs = list(plan())
        wanted = dict.fromkeys(name for pair in pairs for name in (pair.a, pair.b) if name != PICTURE)
        return measure(pairs, {name: load(name) for name in wanted}, kernel_study.pictures_of(PROTOCOL))

    return runtime.recorded(RECORD, compute, settings=settings)


def _tuned(scale: int, seed: int) -> str:
    """The family of one ancestor: x2 itself, and what was fine-tuned from it."""
    return f"x{scale}-seed{seed}" if scale == SCALES[0] else f"x{scale}-from-x2-seed{seed}"


def _file(name: str) -> Path:
    return runtime.repo_data("weights", "provenance", f"{name}.safetensors")


# reading the table


QUESTIONS = (
    (NOTHING, UNTRAINED),
    (NOTHING, PICTURE),
    (NOTHING, ONE_SCALE),
    (SEED, NOTHING),
    (SEED, ONE_START),
    (TUNED, NOTHING),
    (TUNED, SEED),
)
"""What is held against what."""


def over_seeds(table: pd.DataFrame, measure: str, condition: str, minus: str = "") -> Interval:
    """Mean over pairs of models, with a 95 % interval for other seeds.

    Pairs that share a model are not independent; seeds are. So the interval comes from leaving out one seed at a time,
    with every pair it takes part in (jackknife), and Student's t: three seeds count as three, however many pairs.

    Args:
        table: as `recorded_ancestry` gives.
        measure: of `MEASURES`; condition: of `CONDITIONS`.
        minus: another condition; then it is the difference to it, both without the same seed at a time.
    """
    parts = [table[(table.measure == measure) & (table.condition == which)] for which in (condition, minus) if which]
    seeds = [pd.DataFrame({side: part[side].str[-1] for side in ("a", "b")}) for part in parts]

    def difference(left_out: str = "") -> float:
        kept = [part.value[~seed.isin([left_out]).any(axis=1)] for part, seed in zip(parts, seeds, strict=True)]
        return kept[0].mean() - sum(rows.mean() for rows in kept[1:])

    n = len(SEEDS)
    return statistics.bootstrap_mean([n * difference() - (n - 1) * difference(str(seed)) for seed in SEEDS])


def chart(table: pd.DataFrame, measures: Sequence[str], conditions: Sequence[str] = tuple(CONDITIONS)) -> pd.DataFrame:
    """What `figures.draw_intervals` draws: name (condition), group (measure), mean, low, high (95 % over seeds).

    Kernels have a group of nulls: the mean of what the pairs' nulls reach. What was not measured is left out.
    """
    lines = []
    for measure, condition in itertools.product(measures, conditions):
        rows = table[(table.measure == measure) & (table.condition == condition)]
        if len(rows):
            lines.append({"name": condition, "group": measure, **vars(over_seeds(table, measure, condition))})
        if len(rows) and measure in KERNELS.values():
            point = dict.fromkeys(("mean", "low", "high"), rows.null.mean())
            lines.append({"name": condition, "group": f"null of {measure}", **point})
    return pd.DataFrame(lines)


def summary_table(table: pd.DataFrame, measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """A line per condition, a column per measure: mean [95 % over seeds]."""
    rows = chart(table, measures)
    text = rows.assign(text=[f"{r.mean:z.2f} [{r.low:z.2f}, {r.high:z.2f}]" for r in rows.itertuples(index=False)])
    wide = text.pivot(index="name", columns="group", values="text").reindex(index=CONDITIONS, columns=measures)
    return wide.dropna(how="all").fillna("").rename_axis(index="in common", columns=None)


def seed_p(table: pd.DataFrame, measure: str) -> float:
    """Does a shared seed make models of two scales more alike? Exact permutation test: were the seeds of x3 and of x4
    handed out at random, how often would pairs "of one seed" be as alike as the real ones? With three seeds there are
    36 ways, so 1 / 36 = 0.028 is the smallest answer there is."""
    rows = table[(table.measure == measure) & table.condition.isin((NOTHING, SEED))]
    value = rows.set_index(["a", "b"]).value.to_dict()
    orders, sums = list(itertools.permutations(SEEDS)), []
    for order_3, order_4 in itertools.product(orders, orders):  # the first is as it was
        trios = [
            [f"x{scale}-seed{seed}" for scale, seed in zip(SCALES, seeds, strict=True)]
            for seeds in zip(SEEDS, order_3, order_4, strict=True)
        ]
        sums.append(sum(value[pair] for trio in trios for pair in itertools.combinations(trio, 2)))
    return sum(each >= sums[0] - 1e-9 for each in sums) / len(sums)


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """Every one of `QUESTIONS` for every measure; verdicts are not corrected for being many.

    Returns:
        Columns measure, condition, against, difference, low, high (95 % over seeds), p (`seed_p`, for one seed against
        nothing shared, one-sided: only "more alike" is asked), verdict: "more alike", "less alike" or "not told
        apart", by p where there is one, else by whether the interval holds 0.
    """
    there = set(zip(table.measure, table.condition, strict=True))
    lines = []
    for name, (condition, against) in itertools.product(MEASURES, QUESTIONS):
        if (name, condition) in there and (name, against) in there:
            found = over_seeds(table, name, condition, against)
            p = seed_p(table, name) if (condition, against) == (SEED, NOTHING) else math.nan
            proven = p <= SIGNIFICANT if p == p else found.excludes(0)
            verdict = "not told apart" if not proven else "more alike" if found.mean > 0 else "less alike"
            line = {"measure": name, "condition": condition, "against": against, "difference": found.mean}
            lines.append(line | {"low": found.low, "high": found.high, "p": p, "verdict": verdict})
    return pd.DataFrame(lines)


def above_nulls(table: pd.DataFrame, measure: str, condition: str) -> str:
    """How many pairs of a condition lie above every null, "18 of 18"; of kernels also with a small enough p."""
    return "{} of {}".format(*_above_nulls(table, measure, condition))


def _above_nulls(table: pd.DataFrame, measure: str, condition: str) -> tuple[int, int]:
    rows = table[(table.measure == measure) & (table.condition == condition)]
    above = (rows.value > rows.null) & ~(rows.p > kernel_study.SIGNIFICANT)
    return int(above.sum()), len(rows)


def verdicts(table: pd.DataFrame, measures: Sequence[str] = MEASURES) -> Iterator[str]:
    """A sentence per measure, computed: what models are that share nothing, and what a seed or an ancestor adds."""
    found = effects(table)
    for name in measures:
        steps = [f"{name}: {NOTHING} {over_seeds(table, name, NOTHING):z.2f}"]
        for row in found[(found.measure == name) & (found.against != ONE_START)].itertuples():
            chance = f", p {row.p:.2f}" if row.p == row.p else ""
            gap = f"{row.difference:+z.3f} [{row.low:+z.3f}, {row.high:+z.3f}]{chance}"
            steps.append(f"{row.condition} against {row.against} {gap}: {row.verdict}")
        yield "; ".join(steps)


def control_of_encoders() -> str:
    """A phrase for the scorecard: CKA of encoders that share nothing, beside one seed, one scale and the picture."""
    return _beside(recorded_ancestry(), MEASURES[0], (NOTHING, SEED, ONE_SCALE, PICTURE))


def control_of_kernels() -> str:
    """A phrase for the scorecard: kernels of models that share nothing, as stored and aligned, beside one scale."""
    table = recorded_ancestry()
    stored, aligned = (KERNELS[basis, "varying"] for basis in BASES)
    return f"{_beside(table, stored, (NOTHING, SEED))}; {_beside(table, aligned, (NOTHING, SEED, ONE_SCALE))}"


def nothing_shared(measure: str, against: str) -> Interval:
    """Models of two scales that share nothing, minus a condition of `CONDITIONS`, on record; 95 % over seeds."""
    return over_seeds(recorded_ancestry(), measure, NOTHING, against)


def kernels_that_share_nothing() -> tuple[int, int]:
    """Of how many pairs of kernels as stored, of models that share nothing, lie above every null; and of how many."""
    return _above_nulls(recorded_ancestry(), KERNELS["same channel", "varying"], NOTHING)


def _beside(table: pd.DataFrame, measure: str, conditions: Sequence[str]) -> str:
    values = ", ".join(f"{which} {over_seeds(table, measure, which).mean:z.2f}" for which in conditions)
    return f"{measure}: {values}"
