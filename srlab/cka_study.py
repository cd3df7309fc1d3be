"""CKA study room: do encoders trained for different scales see the same? Models in, tables and verdicts out.

`last_feature_table` puts the similarity of an architecture's scales beside a floor (an untrained twin, or the picture
itself, whichever is more alike), a ceiling (the same scale trained on other data) and a null (other pictures). Two
untrained twins stand apart: they are alike because neither computes much, and may lie above the ceiling.
`recorded_scales` is that table for the published models: it ships as `data/results/cka_scales.csv` and
`cka_layers.csv`. `cka_verdicts` reads it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from torch import Tensor, nn

from srlab import compare, controls, features, fetch, runtime, weights
from srlab.compare import Comparison, Pair, block_cells, every_layer, last_cell, same_layers
from srlab.statistics import Interval

FAMILIES = {
    "SMFANet": ("smfanet-df2k", "smfanet-div2k"),
    "SMFANet+": ("smfanet+-df2k",),
    "BSRN": ("bsrn",),
    "IMDN": ("imdn",),
}
"""Architecture -> its published trainings; only one was trained on two sets of pictures."""
SERIES = tuple(itertools.chain(*FAMILIES.values()))
"""Weights for x2, x3 and x4 from one training: names in `weights` are SERIES-x2, ..."""
SCALES = (2, 3, 4)
TWINS = "untrained 1", "untrained 2"
FLOORS = ("untrained", "picture")
INPUT, BLOCKS = "upsampler input", "mean over blocks"
RECORDS = "cka_scales", "cka_layers", "cka_weights"
RESAMPLES = 500
PIXELS = {"pixels": features.pixels_as_examples}


class Tables(NamedTuple):
    """What one study gives."""

    rows: pd.DataFrame
    """A row per comparison: reduction, series, control, a, b, where, estimate, low, high (debiased), biased,
    biased_low, biased_high, against, pictures, examples. `control` is "scales", "ceiling", one of `FLOORS`, "two
    untrained", "shuffled", "across", or a difference, "above the floor" or "below the ceiling": `against` says what."""
    layers: pd.DataFrame
    """A row per pair of layers of two scales: reduction, series, a, b, layer_a, layer_b, debiased, biased."""


class Recorded(NamedTuple):
    """The study of the published models: `Tables` with a column data, and where the weights come from."""

    rows: pd.DataFrame
    layers: pd.DataFrame
    weights: pd.DataFrame
    """A row per pair of scales and per ceiling: series, a, b, the fields of `controls.WeightCosines`, kind."""


class _Entry(NamedTuple):
    """A comparison and its place in the table."""

    series: str
    control: str
    a: str
    b: str
    pair: Pair


def last_feature_table(
    trainings: Mapping[str, Mapping[str, nn.Module]],
    pictures: Sequence[Tensor],
    reductions: Mapping[str, Callable[[Tensor], Tensor]] = PIXELS,
    *,
    step: int = 1,
    without_picture: bool = False,
    n_resamples: int = RESAMPLES,
    seed: int = 0,
) -> Tables:
    """Similarity of one architecture's models at the upsampler's input and over the blocks, with all controls.

    Args:
        trainings: name of a training -> label, such as "x2" -> model; all of one architecture. With several trainings
            (other data, another seed), each is the other's ceiling, label by label.
        pictures: LR pictures, float (1, 3, h, w); every model gets the same ones.
        reductions: name -> what an example is, of `features.REDUCTIONS`.
        step: with pixels as examples, every `step`-th row and column.
        without_picture: only the upsampler's input, with what linear filters of the picture explain taken out.
        n_resamples, seed: of the intervals; `seed` and `seed + 1` also start the untrained twins.
    """
    readers: dict[str, controls.Read] = {
        f"{series} {label}": compare.Reader(model)
        for series, models in trainings.items()
        for label, model in models.items()
    }
    any_model = next(iter(next(iter(trainings.values())).values()))
    readers |= {twin: compare.Reader(controls.untrained(any_model, seed + i)) for i, twin in enumerate(TWINS)}
    layers = readers[TWINS[0]].names
    if without_picture:
        layers = layers[-1:]
        readers = {name: controls.TakenOut(read, layers, pictures) for name, read in readers.items()}
    else:
        readers["picture"] = controls.raw_picture
    plan = list(_plan(trainings, layers, "picture" in readers))
    pairs = list(dict.fromkeys(entry.pair for entry in plan))
    found = compare.compare_all(readers, pairs, pictures, reductions, step=step, n_resamples=n_resamples, seed=seed)
    rows, cells = [], []
    for reduction in reductions:
        results = [(entry, found[reduction, entry.pair]) for entry in plan]
        rows += [{"reduction": reduction} | row for row in _rows(results)]
        cells += [{"reduction": reduction} | cell for cell in _cells(results)]
    return Tables(pd.DataFrame(rows), pd.DataFrame(cells))


def _plan(trainings: Mapping[str, Mapping[str, nn.Module]], layers: Sequence[str], picture: bool) -> Iterator[_Entry]:
    """What is compared; the same pair may stand in two places."""
    for series, models in trainings.items():
        yield _Entry(series, "two untrained", *TWINS, same_layers(*TWINS, layers, layers))
        for label in models:
            name = f"{series} {label}"
            yield _Entry(series, "untrained", label, TWINS[0], same_layers(name, TWINS[0], layers, layers))
            if picture:
                pair = every_layer(name, "picture", layers, (controls.PICTURE,))
                yield _Entry(series, "picture", label, "picture", pair)
            for other in trainings:
                if other != series and label in trainings[other]:
                    both = sorted((name, f"{other} {label}"))
                    yield _Entry(series, "ceiling", label, f"{label}, {other}", same_layers(*both, layers, layers))
        for a, b in itertools.combinations(models, 2):
            pair = same_layers(f"{series} {a}", f"{series} {b}", layers, layers)
            yield _Entry(series, "scales", a, b, pair)
            yield _Entry(series, "shuffled", a, b, pair._replace(shuffled=True))
            every = every_layer(pair.a, pair.b, layers, layers)._replace(resampled=False)
            yield _Entry(series, "layers", a, b, every)


def _rows(results: Sequence[tuple[_Entry, Comparison]]) -> Iterator[dict]:
    for entry, comparison in results:
        if entry.control == "layers":
            continue
        wheres = {INPUT: last_cell}
        if len(comparison.cells) > 1:
            wheres[BLOCKS] = block_cells
            blocks = len(block_cells(comparison)) if entry.control in ("scales", "ceiling") else 0
            wheres |= {f"block {i + 1}": lambda c, i=i: block_cells(c)[i : i + 1] for i in range(blocks)}
        for where, over in wheres.items():
            yield _row(entry, comparison, where, over)
        if entry.control == "scales":
            for where in [INPUT, BLOCKS][: len(wheres)]:
                yield from _gaps(entry, comparison, where, wheres[where], results)


def _row(entry: _Entry, comparison: Comparison, where: str, over: Callable) -> dict:
    debiased, biased = (comparison.mean(over(comparison), form) for form in (True, False))
    row = {"series": entry.series, "control": entry.control, "a": entry.a, "b": entry.b, "where": where}
    row |= {**_ends(debiased), "biased": biased.mean, "biased_low": biased.low, "biased_high": biased.high}
    return row | {"against": "", "pictures": comparison.pictures, "examples": comparison.examples}


def _gaps(
    entry: _Entry, comparison: Comparison, where: str, over: Callable, results: Sequence[tuple]
) -> Iterator[dict]:
    """How far a pair of scales lies above the highest floor and below the mean of the ceilings."""
    about = [(e, c) for e, c in results if e.series == entry.series and e.a in (entry.a, entry.b)]
    lower, floor = max(
        ((e, c) for e, c in about if e.control in FLOORS), key=lambda result: result[1].mean(over(result[1])).mean
    )
    row = {"series": entry.series, "a": entry.a, "b": entry.b, "where": where}
    row |= {"pictures": comparison.pictures, "examples": comparison.examples}
    above = comparison.minus(floor, over=over)
    yield row | {"control": "above the floor", **_ends(above), "against": f"{lower.control}: {lower.a}, {lower.b}"}
    if ceilings := [c for e, c in about if e.control == "ceiling"]:
        below = comparison.minus(*ceilings, over=over)
        ends = {"estimate": -below.mean, "low": -below.high, "high": -below.low}
        yield row | {"control": "below the ceiling", **ends, "against": f"ceiling: {entry.a}, {entry.b}"}


def _ends(interval: Interval) -> dict[str, float]:
    return {"estimate": interval.mean, "low": interval.low, "high": interval.high}


def _cells(results: Sequence[tuple[_Entry, Comparison]]) -> Iterator[dict]:
    for entry, comparison in results:
        if entry.control == "layers":
            names = list(dict.fromkeys(row for row, _ in comparison.cells))
            label = {name: str(i + 1) for i, name in enumerate(names)} | {names[-1]: "in"}
            both = (comparison.estimates[form].tolist() for form in (True, False))
            for (x, y), debiased, biased in zip(comparison.cells, *both, strict=True):
                place = {"series": entry.series, "a": entry.a, "b": entry.b, "layer_a": label[x], "layer_b": label[y]}
                yield place | {"debiased": debiased, "biased": biased}


def across_table(
    families: Mapping[str, nn.Module],
    pictures: Sequence[Tensor],
    reductions: Mapping[str, Callable[[Tensor], Tensor]] = PIXELS,
    *,
    series: str = "",
    n_resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Similarity of models of different architectures at the upsampler's input: every one with every other.

    Args:
        families: label -> model.
        pictures, reductions, n_resamples, seed: as in `last_feature_table`.
        series: what the rows are called.
    """
    last = (compare.UPSAMPLER_INPUT,)
    readers = {name: compare.Reader(model, last) for name, model in families.items()}
    pairs = [same_layers(a, b, last, last) for a, b in itertools.combinations(readers, 2)]
    found = compare.compare_all(readers, pairs, pictures, reductions, n_resamples=n_resamples, seed=seed)
    return pd.DataFrame(
        {"reduction": name} | _row(_Entry(series, "across", pair.a, pair.b, pair), comparison, INPUT, last_cell)
        for (name, pair), comparison in found.items()
    )


# the published models


class Protocol(NamedTuple):
    """Which pictures, and what an example is."""

    data: str
    scale: int
    crop: bool
    step: int
    reductions: tuple[str, ...]
    without_picture: bool = False


PROTOCOLS = {
    "set14 x4": Protocol("set14", 4, False, 1, ("pixels",)),
    "set14 x4, picture taken out": Protocol("set14", 4, False, 1, ("pixels",), without_picture=True),
    "set14 x2": Protocol("set14", 2, False, 2, ("pixels",)),
    "urban100 x4, crops": Protocol("urban100", 4, True, 2, tuple(features.REDUCTIONS)),
}
"""What is recorded. Crops follow the protocol that an author of the paper described for the CKA of a sister paper: the
LR pictures cut to their smallest common size, all in one batch. His examples are the pictures, and his form is biased;
the other reductions look at the same crops."""


def study_published(family: str, protocol: Protocol) -> Tables:
    """`last_feature_table` of one of `FAMILIES`; fetches weights and pictures."""
    pictures = compare.lr_pictures(protocol.data, protocol.scale)
    return last_feature_table(
        {series: {f"x{scale}": weights.load(f"{series}-x{scale}") for scale in SCALES} for series in FAMILIES[family]},
        compare.crop_alike(pictures) if protocol.crop else pictures,
        {name: features.REDUCTIONS[name] for name in protocol.reductions},
        step=protocol.step,
        without_picture=protocol.without_picture,
    )


def across_published(data: str, scale_of_lr: int) -> pd.DataFrame:
    """`across_table` of one series per family at each scale; `series` of a row is the scale."""
    pictures = compare.lr_pictures(data, scale_of_lr)
    one = [trainings[0] for trainings in FAMILIES.values()]
    at_scale = {scale: {series: weights.load(f"{series}-x{scale}") for series in one} for scale in SCALES}
    return pd.concat(across_table(models, pictures, series=f"x{scale}") for scale, models in at_scale.items())


def published_weights() -> pd.DataFrame:
    """`controls.weight_cosines` for every pair of scales of the published models, and for the pairs of the ceiling."""
    rows = []
    for series in SERIES:
        pairs = [(a, series, b) for a, b in itertools.combinations(SCALES, 2)]
        same = next(trainings for trainings in FAMILIES.values() if series in trainings)
        pairs += [(scale, other, scale) for other in same if other != series for scale in SCALES]
        for a, other, b in pairs:
            found = controls.weight_cosines(weights.load(f"{series}-x{a}"), weights.load(f"{other}-x{b}"))
            label = f"x{b}" if other == series else f"x{b}, {other}"
            rows.append({"series": series, "a": f"x{a}", "b": label, **vars(found), "kind": found.kind})
    return pd.DataFrame(rows)


def recorded_scales() -> Recorded:
    """The study of all published models as it ships with the project: needs neither weights nor pictures.

    With `SRLAB_RECORD=1` it is made anew (about an hour on a laptop), which needs Set14, Urban100 and all weights:
    `SRLAB_RECORD=1 python -c "from srlab import cka_study; cka_study.recorded_scales()"`.

    Raises:
        RecordError: the record is of other weights, pictures or protocols than this project now has.
    """
    settings = {
        "weights": {f"{name}-x{s}": weights.card(f"{name}-x{s}").sha256 for name in SERIES for s in SCALES},
        "pictures": {name: fetch.pinned(name) for name in ("set14", "urban100")},
        "protocols": {name: list(protocol) for name, protocol in PROTOCOLS.items()},
        "resamples": RESAMPLES,
    }
    made_by = "SRLAB_RECORD=1 and `cka_study.recorded_scales()`"
    study = functools.cache(_study_all)  # one run makes all tables
    tables = [
        runtime.recorded(name, lambda which=which: study()[which], settings=settings, made_by=made_by)
        for which, name in enumerate(RECORDS)
    ]
    return Recorded(*tables)


def _study_all() -> Recorded:
    rows, layers = [], []
    for name, protocol in PROTOCOLS.items():
        for family in FAMILIES:
            tables = study_published(family, protocol)
            rows.append(tables.rows.assign(data=name))
            layers.append(tables.layers.assign(data=name))
    rows.append(across_published("set14", 4).assign(data="set14 x4"))
    joined = [pd.concat(parts, ignore_index=True) for parts in (rows, layers)]
    joined = [table[["data", *table.columns.drop("data")]] for table in joined]
    return Recorded(*(table.round(4) for table in (*joined, published_weights())))
