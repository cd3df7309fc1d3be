"""Study room: do encoders trained for different scales see the same? Models in, tables with controls and verdicts out.

`last_feature_table` puts the similarity of an architecture's scales beside a floor (an untrained twin, or the picture
itself, whichever is more alike), a ceiling (the same scale trained on other data) and a null (other pictures). Two
untrained twins stand apart: they are alike because neither computes much, and may lie above the ceiling.
`recorded_scales` is that table for the published models: it ships as `data/results/cka_scales.csv` and
`cka_layers.csv`. `summary_table` reads verdicts off it. `report` does the same for any two models, for `srlab cka`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from torch import Tensor, nn

from srlab import compare, controls, features, fetch, runtime, weights
from srlab.compare import Comparison, Pair, block_cells, every_layer, last_cell, same_layers
from srlab.statistics import Interval

SERIES = {"smfanet-df2k": "smfanet-div2k", "smfanet-div2k": "smfanet-df2k", "smfanet+-df2k": "", "bsrn": "", "imdn": ""}
"""Published weights for x2, x3 and x4 -> the same architecture trained on other data, "" where nobody published one."""
SCALES = (2, 3, 4)
FLOORS = ("untrained", "picture")
INPUT, BLOCKS = "upsampler input", "mean over blocks"
RECORDS = "cka_scales", "cka_layers", "cka_weights"
RESAMPLES = 500
PIXELS = {"pixels": features.pixels_as_examples}
WHOLE = {name: reduction for name, reduction in features.REDUCTIONS.items() if name not in PIXELS}


class Tables(NamedTuple):
    """What one study gives."""

    rows: pd.DataFrame
    """A row per comparison: reduction, control, a, b, where, estimate, low, high (debiased), biased, biased_low,
    biased_high, against, pictures, examples. `control` is "scales", "ceiling", one of `FLOORS`, "two untrained",
    "shuffled", "across", or a difference: "above the floor", "below the ceiling", whose `against` names the control."""
    layers: pd.DataFrame
    """A row per pair of layers of two scales: reduction, a, b, layer_a, layer_b, debiased, biased."""


class Recorded(NamedTuple):
    """The study of the published models: `Tables` with the columns data and series, and where the weights come from."""

    rows: pd.DataFrame
    layers: pd.DataFrame
    weights: pd.DataFrame
    """A row per pair of scales and per ceiling: series, a, b, the fields of `controls.WeightCosines`, kind."""


def last_feature_table(
    models: Mapping[str, nn.Module],
    pictures: Sequence[Tensor],
    others: Mapping[str, nn.Module] | None = None,
    reductions: Mapping[str, Callable[[Tensor], Tensor]] = PIXELS,
    *,
    step: int = 1,
    without_picture: bool = False,
    n_resamples: int = RESAMPLES,
    seed: int = 0,
) -> Tables:
    """Similarity of one architecture's models at the upsampler's input and over the blocks, with all controls.

    Args:
        models: label, such as "x2" -> model; all of one architecture.
        pictures: LR pictures, float (1, 3, h, w); every model gets the same ones.
        others: the same labels -> the same model with another training (other data, another seed): the ceiling.
        reductions: name -> what an example is, of `features.REDUCTIONS`.
        step: with pixels as examples, every `step`-th row and column.
        without_picture: only the upsampler's input, with what linear filters of the picture explain taken out.
        n_resamples, seed: of the intervals; `seed` and `seed + 1` also start the untrained twins.
    """
    readers: dict[str, controls.Read] = {name: compare.Reader(model) for name, model in models.items()}
    first = next(iter(models.values()))
    twins = "untrained 1", "untrained 2"
    readers |= {name: compare.Reader(controls.untrained(first, seed + i)) for i, name in enumerate(twins)}
    readers |= {_other(name): compare.Reader(model) for name, model in (others or {}).items()}
    layers = readers[twins[0]].names
    plan: list[tuple[str, Pair]] = [("two untrained", same_layers(*twins, layers, layers))]
    if without_picture:
        layers = layers[-1:]
        plan = [("two untrained", same_layers(*twins, layers, layers))]
        readers = {name: controls.TakenOut(read, layers, pictures) for name, read in readers.items()}
    else:
        readers["picture"] = controls.raw_picture
        plan += [("picture", every_layer(name, "picture", layers, (controls.PICTURE,))) for name in models]
    plan += [("untrained", same_layers(name, twins[0], layers, layers)) for name in models]
    plan += [("ceiling", same_layers(name, _other(name), layers, layers)) for name in others or ()]
    for a, b in itertools.combinations(models, 2):
        plan += [("scales", same_layers(a, b, layers, layers)), ("shuffled", same_layers(a, b, layers, layers, True))]
        plan += [("layers", every_layer(a, b, layers, layers)._replace(resampled=False))]
    found = compare.compare_all(
        readers, [pair for _, pair in plan], pictures, reductions, step=step, n_resamples=n_resamples, seed=seed
    )
    rows, cells = [], []
    for reduction in reductions:
        results = [(control, pair, found[reduction, pair]) for control, pair in plan]
        rows += [{"reduction": reduction} | row for row in _rows(results)]
        cells += [{"reduction": reduction} | cell for cell in _cells(results)]
    return Tables(pd.DataFrame(rows), pd.DataFrame(cells))


def _other(name: str) -> str:
    return f"{name}, other training"


def _rows(results: Sequence[tuple[str, Pair, Comparison]]) -> Iterator[dict]:
    for control, pair, comparison in results:
        if control == "layers":
            continue
        wheres = {INPUT: last_cell}
        if len(comparison.cells) > 1:
            wheres[BLOCKS] = block_cells
            blocks = len(block_cells(comparison)) if control in ("scales", "ceiling") else 0
            wheres |= {f"block {i + 1}": lambda c, i=i: block_cells(c)[i : i + 1] for i in range(blocks)}
        for where, over in wheres.items():
            yield _row(control, pair, comparison, where, over)
        if control == "scales":
            for where in [INPUT, BLOCKS][: len(wheres)]:
                yield from _gaps(pair, comparison, where, wheres[where], results)


def _row(control: str, pair: Pair, comparison: Comparison, where: str, over: Callable) -> dict:
    debiased, biased = (comparison.mean(over(comparison), form) for form in (True, False))
    row = {"control": control, "a": pair.a, "b": pair.b, "where": where, **_ends(debiased), "biased": biased.mean}
    row |= {"biased_low": biased.low, "biased_high": biased.high, "against": ""}
    return row | {"pictures": comparison.pictures, "examples": comparison.examples}


def _gaps(pair: Pair, comparison: Comparison, where: str, over: Callable, results: Sequence[tuple]) -> Iterator[dict]:
    """How far a pair of scales lies above the highest floor and below the mean of the two ceilings."""
    about = [
        (control, p, c) for control, p, c in results if control in FLOORS and p.a in (pair.a, pair.b, "untrained 1")
    ]
    control, floor_pair, floor = max(about, key=lambda entry: entry[2].mean(over(entry[2])).mean)
    row = {"a": pair.a, "b": pair.b, "where": where, "pictures": comparison.pictures, "examples": comparison.examples}
    above = comparison.minus(floor, over=over)
    yield row | {"control": "above the floor", **_ends(above), "against": f"{control}: {floor_pair.a}, {floor_pair.b}"}
    ceilings = [c for control, p, c in results if control == "ceiling" and p.a in (pair.a, pair.b)]
    if ceilings:
        below = comparison.minus(*ceilings, over=over)
        ends = {"estimate": -below.mean, "low": -below.high, "high": -below.low}
        yield row | {"control": "below the ceiling", **ends, "against": f"ceiling of {pair.a} and {pair.b}"}


def _ends(interval: Interval) -> dict[str, float]:
    return {"estimate": interval.mean, "low": interval.low, "high": interval.high}


def _cells(results: Sequence[tuple[str, Pair, Comparison]]) -> Iterator[dict]:
    for control, pair, comparison in results:
        if control == "layers":
            names = list(dict.fromkeys(row for row, _ in comparison.cells))
            label = {name: str(i + 1) for i, name in enumerate(names)} | {names[-1]: "in"}
            both = (comparison.estimates[form].tolist() for form in (True, False))
            for (x, y), debiased, biased in zip(comparison.cells, *both, strict=True):
                place = {"a": pair.a, "b": pair.b, "layer_a": label[x], "layer_b": label[y]}
                yield place | {"debiased": debiased, "biased": biased}


def across_table(
    families: Mapping[str, nn.Module],
    pictures: Sequence[Tensor],
    reductions: Mapping[str, Callable[[Tensor], Tensor]] = PIXELS,
    *,
    step: int = 1,
    n_resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Similarity of models of different architectures at the upsampler's input: every one with every other."""
    last = (compare.UPSAMPLER_INPUT,)
    readers = {name: compare.Reader(model, last) for name, model in families.items()}
    pairs = [same_layers(a, b, last, last) for a, b in itertools.combinations(readers, 2)]
    found = compare.compare_all(readers, pairs, pictures, reductions, step=step, n_resamples=n_resamples, seed=seed)
    rows = [{"reduction": name} | _row("across", pair, c, INPUT, last_cell) for (name, pair), c in found.items()]
    return pd.DataFrame(rows)


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
    "set14 x2": Protocol("set14", 2, False, 1, ("pixels",)),
    "urban100 x4": Protocol("urban100", 4, False, 2, ("pixels",)),
    "urban100 x4, crops": Protocol("urban100", 4, True, 1, tuple(WHOLE)),
}
"""What is recorded. "crops" is the protocol that an author of the paper described for the CKA of a sister paper: the LR
pictures cut to their smallest common size, all in one batch, pictures as examples, biased."""


def study_published(series: str, protocol: Protocol) -> Tables:
    """`last_feature_table` of one of `SERIES`; fetches weights and pictures."""
    models, others = ({f"x{s}": weights.load(f"{name}-x{s}") for s in SCALES} if name else {} for name in _two(series))
    return last_feature_table(
        models,
        _pictures(protocol),
        others,
        {name: features.REDUCTIONS[name] for name in protocol.reductions},
        step=protocol.step,
        without_picture=protocol.without_picture,
    )


def _two(series: str) -> tuple[str, str]:
    return series, SERIES[series]


def _pictures(protocol: Protocol) -> list[Tensor]:
    pictures = compare.lr_pictures(protocol.data, protocol.scale)
    return compare.crop_alike(pictures) if protocol.crop else pictures


def _across_published(protocol: Protocol) -> pd.DataFrame:
    chosen = {name: features.REDUCTIONS[name] for name in protocol.reductions}
    tables = []
    for scale in SCALES:
        families = {name: weights.load(f"{name}-x{scale}") for name in SERIES if name != "smfanet-div2k"}
        tables.append(
            across_table(families, _pictures(protocol), chosen, step=protocol.step).assign(series=f"x{scale}")
        )
    return pd.concat(tables)


def published_weights() -> pd.DataFrame:
    """`controls.weight_cosines` for every pair of scales of the published models, and for the pairs of the ceiling."""
    rows = []
    for series, other in SERIES.items():
        pairs = [((series, a), (series, b)) for a, b in itertools.combinations(SCALES, 2)]
        pairs += [((series, scale), (other, scale)) for scale in SCALES if other]
        for (_, a), (name, b) in pairs:
            found = controls.weight_cosines(weights.load(f"{series}-x{a}"), weights.load(f"{name}-x{b}"))
            label = f"x{b}" if name == series else _other(f"x{b}")
            rows.append({"series": series, "a": f"x{a}", "b": label, **vars(found), "kind": found.kind})
    return pd.DataFrame(rows)


def recorded_scales() -> Recorded:
    """The study of all published models as it ships with the project: needs neither weights nor pictures.

    With `SRLAB_RECORD=1` it is made anew (about an hour on a laptop), which needs Set14, Urban100 and all weights:
    `SRLAB_RECORD=1 python -c "from srlab import study; study.recorded_scales()"`.

    Raises:
        RecordError: the record is of other weights, pictures or protocols than this project now has.
    """
    settings = {
        "weights": {f"{name}-x{s}": weights.card(f"{name}-x{s}").sha256 for name in SERIES for s in SCALES},
        "pictures": {name: _pinned(name) for name in ("set14", "urban100")},
        "protocols": {name: list(protocol) for name, protocol in PROTOCOLS.items()},
        "resamples": RESAMPLES,
    }
    made: list[Recorded] = []

    def compute(which: int) -> pd.DataFrame:
        if os.environ.get("SRLAB_RECORD", "") != "1":
            raise runtime.RecordError(
                f"{runtime.repo_data('results', f'{RECORDS[which]}.csv')} is missing, or of other weights, pictures or "
                f"protocols: with SRLAB_RECORD=1 study.recorded_scales() makes it anew"
            )
        if not made:
            made.append(_study_all())
        return made[0][which]

    tables = [
        runtime.recorded(name, lambda which=which: compute(which), settings=settings)
        for which, name in enumerate(RECORDS)
    ]
    return Recorded(*tables)


def _pinned(dataset: str) -> str:
    return runtime.text_sha256(" ".join(f"{entry.path} {entry.sha256}" for entry in fetch.read_registry(dataset)))[:12]


def _study_all() -> Recorded:
    rows, layers = [], []
    for name, protocol in PROTOCOLS.items():
        for series in SERIES:
            tables = study_published(series, protocol)
            rows.append(tables.rows.assign(data=name, series=series))
            layers.append(tables.layers.assign(data=name, series=series))
        if not protocol.without_picture:
            rows.append(_across_published(protocol).assign(data=name))
    first = ["data", "series"]
    joined = [pd.concat(parts, ignore_index=True) for parts in (rows, layers)]
    joined = [table[[*first, *table.columns.drop(first)]] for table in joined]
    return Recorded(*(table.round(4) for table in (*joined, published_weights())))


# reading the tables


def summary_table(rows: pd.DataFrame, where: str = INPUT) -> pd.DataFrame:
    """A line per pair of scales: similarity, floor, ceiling and null side by side, and what follows from them.

    Args:
        rows: `Tables.rows` of one set of pictures and one reduction; a column `series` may tell families apart.
        where: `INPUT` or `BLOCKS`.
    """
    rows = rows[rows["where"] == where]
    lines = []
    for series, group in rows.groupby("series", sort=False) if "series" in rows else [("", rows)]:
        for scales in group[group["control"] == "scales"].itertuples():
            here = group[(group["a"] == scales.a) & (group["b"] == scales.b)].set_index("control")
            ceilings = group[(group["control"] == "ceiling") & group["a"].isin((scales.a, scales.b))]
            above = here.loc["above the floor"]
            below = here.loc["below the ceiling"] if "below the ceiling" in here.index else None
            line = {"series": series, "scales": f"{scales.a}-{scales.b}", "CKA [95 %]": _shown(here.loc["scales"])}
            line |= {"floor": f"{scales.estimate - above.estimate:.3f}", "which": above.against.split(":")[0]}
            line |= {"above the floor": _shown(above, "+"), "ceiling": f"{ceilings['estimate'].mean():.3f}"}
            line |= {"below the ceiling": "" if below is None else _shown(below, "+")}
            twins = group[group["control"] == "two untrained"]
            line |= {"two untrained": f"{twins['estimate'].mean():.3f}"}
            line |= {"other pictures": f"{here.loc['shuffled'].estimate:.3f}", "verdict": verdict(above, below)}
            lines.append(line)
    return pd.DataFrame(lines).replace({"nan": "none"})


def _shown(row: pd.Series, sign: str = "") -> str:
    return f"{row.estimate:{sign}.3f} [{row.low:{sign}.3f}, {row.high:{sign}.3f}]"


def verdict(above: pd.Series, below: pd.Series | None) -> str:
    """What two differences with intervals say: about the floor, and about the ceiling if there is one.

    Args:
        above: similarity minus its highest floor; columns low and high.
        below: ceiling minus similarity; None without a ceiling.
    """
    words = "above the floor" if above.low > 0 else "below the floor" if above.high < 0 else "at the floor"
    if below is None:
        return f"{words}, ceiling unknown"
    return f"{words}, {'below the ceiling' if below.low > 0 else 'at the ceiling'}"


# any two models


class Report(NamedTuple):
    """What `srlab cka` prints and writes."""

    layers: pd.DataFrame
    """Debiased CKA, layers of A by layers of B."""
    controls: pd.DataFrame
    """The last layers' similarity and what it stands beside: what, estimate, low, high (debiased), biased."""
    weights: str
    """One sentence about the weights."""
    pictures: int
    examples: int

    def lines(self) -> Iterator[str]:
        """The report as text."""
        columns = [str(i + 1) for i in range(self.layers.shape[1])]
        rows = [f"{i + 1} {name}" for i, name in enumerate(self.layers.index)]
        yield f"debiased linear CKA, {self.examples} examples from {self.pictures} pictures; rows A, columns B:"
        yield self.layers.set_axis(rows).set_axis(columns, axis=1).to_string(float_format="{:.2f}".format)
        yield "columns: " + ", ".join(f"{i} {name}" for i, name in zip(columns, self.layers.columns, strict=True))
        yield f"last layers, {self.layers.index[-1]} and {self.layers.columns[-1]}:"
        for row in self.controls.itertuples():
            ends = f"[{row.low:.3f}, {row.high:.3f}]" if row.low == row.low else "(too few pictures for an interval)"
            yield f"  {row.what:<24}{row.estimate:6.3f} {ends}, biased {row.biased:.3f}"
        yield self.weights

    def table(self) -> pd.DataFrame:
        """All numbers: what, layer_a, layer_b, estimate, low, high, biased."""
        cells = self.layers.stack().rename_axis(["layer_a", "layer_b"]).rename("estimate").reset_index()
        return pd.concat([self.controls, cells.assign(what="layers")], ignore_index=True)


def report(
    model_a: nn.Module,
    model_b: nn.Module,
    pictures: Sequence[Tensor],
    layers_a: Sequence[str] | None = None,
    layers_b: Sequence[str] | None = None,
    reduction: Callable[[Tensor], Tensor] = features.pixels_as_examples,
    *,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Two models side by side: every layer with every layer, the last ones with floors and null, and their weights.

    Args:
        model_a, model_b, pictures, layers_a, layers_b, reduction: as in `compare.layer_matrix`; pictures are cropped
            to one size where they themselves are the examples.
        seed: of intervals and untrained twins.
        progress: show a bar.
    """
    pictures = pictures if reduction is features.pixels_as_examples else compare.crop_alike(pictures)
    given = {"A": (model_a, layers_a), "B": (model_b, layers_b)}
    readers: dict[str, controls.Read] = {name: compare.Reader(*pair) for name, pair in given.items()}
    names = {name: read.names for name, read in readers.items()}
    last = {name: layers[-1:] for name, layers in names.items()}
    for i, (name, (model, _)) in enumerate(given.items()):
        readers[f"{name} untrained"] = compare.Reader(controls.untrained(model, seed + i), last[name])
    plan = {
        "A and B": every_layer("A", "B", names["A"], names["B"]),
        "floor: A, untrained B": same_layers("A", "B untrained", last["A"], last["B"]),
        "floor: untrained A, B": same_layers("A untrained", "B", last["A"], last["B"]),
        "both untrained": same_layers("A untrained", "B untrained", last["A"], last["B"]),
        "null: other pictures": same_layers("A", "B", last["A"], last["B"], shuffled=True),
    }
    for name in given:
        maps = readers[name](pictures[0])[last[name][0]]
        if maps.shape[-2:] == pictures[0].shape[-2:]:  # else its pixels have no partner in the picture
            readers["picture"] = controls.raw_picture
            plan[f"floor: {name}, the picture"] = every_layer(name, "picture", last[name], (controls.PICTURE,))
    found = compare.compare_all(readers, [*plan.values()], pictures, {"": reduction}, seed=seed, progress=progress)
    rows = []
    for what, pair in plan.items():
        debiased, biased = (found["", pair].mean(debiased=form) for form in (True, False))
        rows.append({"what": what, **_ends(debiased), "biased": biased.mean})
    both = found["", plan["A and B"]]
    about = _about_weights(model_a, model_b)
    return Report(both.matrix(), pd.DataFrame(rows), about, both.pictures, both.examples)


def _about_weights(model_a: nn.Module, model_b: nn.Module) -> str:
    try:
        found = controls.weight_cosines(model_a, model_b)
    except ValueError:
        return "weights: not comparable, the architectures differ"
    return (
        f"weights: class {found.kind}, {weights.PROVENANCE[found.kind]}: median cosine of {found.layers} hidden layers "
        f"{found.hidden:.2f}, of the first {found.first:.2f}; in random order at most {found.hidden_null:.2f} and "
        f"{found.first_null:.2f}"
    )
