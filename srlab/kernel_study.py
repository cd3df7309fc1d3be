"""Kernel study room: do kernels learnt for x2, x3 and x4 draw the same picture? Models in, tables and verdicts out.

The second premise of IGConv (arXiv 2408.09674) says so of sub-pixel convolutions. `kernels` compares two of them on
LR pictures; this room says which ones to compare, so that every number has its floor and its ceiling:

* "scales": one architecture, two scales: the question itself;
* "other training": the same architecture and scale, trained on other data: the ceiling, where scale is no difference;
* "other architecture": the same scale, nothing in common but the task: what any two good models agree on;
* "one function": an IGConv at two scales, one kernel by construction: what a shared kernel looks like in these numbers.

`recorded_kernels` holds the first three for the published models; it ships as `data/results/kernels_scales.csv`.
`summary_table` and `verdict` read it. `Microscope` holds phase images, as stored and in another scale's channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from srlab import controls, datasets, fetch, images, kernels, runtime, weights
from srlab.imagesets import ImageSet
from srlab.models import SRModel
from srlab.upsamplers import SPConv

SCALES = (2, 3, 4)
SERIES = ("smfanet-df2k", "smfanet-div2k", "bsrn", "imdn")
"""Published weights for x2, x3 and x4 with a plain SPConv."""
TWINS = ("smfanet-df2k", "smfanet-div2k")
"""The same architecture trained on two sets of data: gives the ceiling."""
ARCHITECTURES = ("smfanet-df2k", "bsrn", "imdn")
RECORD = "kernels_scales"
SCALES_APART, CEILING, ARCHITECTURE = "scales", "other training", "other architecture"
NULLS = ("channels", "sub-pixels", "smooth")
SIGNIFICANT = 0.01
"""Largest p-value at which a correlation counts as above its nulls; 499 draws allow 0.002."""


class Protocol(NamedTuple):
    """Which LR pictures the encoders see, and how much is drawn."""

    data: str = "b100"
    scale: int = 4
    pictures: int = 32
    side: int = 48
    """of the square cut from the middle of each LR picture"""
    draws: int = 499
    """kernels drawn from each null"""
    resamples: int = 199
    """of the pictures, for intervals"""
    untrained: int = 10
    """kernels of freshly initialised models"""
    shifts: int = 5
    """maps fitted to features of the wrong pictures"""


PROTOCOL = Protocol()


@dataclass(frozen=True)
class Member:
    """One kernel, and what its encoder makes of the LR pictures."""

    phases: Tensor
    """phase images (3, C, k, k, r, r)"""
    feats: Sequence[Tensor]
    """one (C, h, w) per picture, all of one size"""
    untrained: Sequence[Tensor] = ()
    """phase images of the same upsampler before training"""


def middles(pictures: ImageSet, scale: int, count: int, side: int) -> list[Tensor]:
    """The square in the middle of the first LR pictures of a set, float (1, 3, side, side) in [0, 1].

    Args:
        pictures: the set.
        scale: its LR pictures are those of this scale.
        count: how many to take; those smaller than the square are passed over.
        side: of the square, LR pixels.

    Raises:
        ValueError: the set has fewer pictures that are large enough.
    """
    cut: list[Tensor] = []
    for index in range(len(pictures)):
        lr = pictures.pair(index, scale)[0]
        top, left = ((length - side) // 2 for length in lr.shape[-2:])
        if min(top, left) >= 0:
            cut.append(images.to_float(lr[None, :, top : top + side, left : left + side]))
        if len(cut) == count:
            return cut
    raise ValueError(
        f"{pictures.name} has {len(cut)} LR pictures of at least {side} x {side} pixels at x{scale}, expected {count}"
    )


def kernel_of(model: SRModel, scale: int) -> Tensor:
    """Phase images (3, C, k, k, r, r) of a model whose upsampler is, or becomes, a plain sub-pixel convolution.

    Raises:
        ValueError: another upsampler, such as SPConv+ or IGConv+, whose output no single kernel on features gives.
    """
    head = model.upsampler.instantiate(scale)
    if not isinstance(head, SPConv):
        raise ValueError(
            f"the upsampler is {type(model.upsampler).__name__}, expected SPConv or IGConv: only there one kernel "
            f"leads from features to the picture. Was it trained with a skip? Then train it without"
        )
    return kernels.phase_images(head.weight.detach(), scale)


@torch.no_grad()
def read(model: SRModel, scale: int, pictures: Sequence[Tensor], untrained: int = 0, seed: int = 0) -> Member:
    """Kernel and features of a model.

    Args:
        model: with an SPConv or IGConv.
        scale: the kernel's.
        pictures: LR pictures, float (1, 3, h, w) in [0, 1].
        untrained: how many kernels of untrained twins to add, started from `seed` on.
    """
    twins = (controls.untrained(model, seed + i) for i in range(untrained))
    feats = [model.eval().encode(lr)[0] for lr in pictures]
    return Member(kernel_of(model, scale), feats, [kernel_of(twin, scale) for twin in twins])


def at_grid(member: Member, grid: int) -> Member:
    """The same with kernels brought to a coarser sub-pixel grid, as `kernels.resample` does."""
    shrunk = [kernels.resample(phases.double(), grid) for phases in member.untrained]
    return Member(kernels.resample(member.phases.double(), grid), member.feats, shrunk)


def compare_members(a: Member, b: Member, protocol: Protocol = PROTOCOL, seed: int = 0) -> pd.DataFrame:
    """`kernels.compare` of two members, B carried into A's channels, with one null more.

    Untrained kernels take B's place as a null. Column null_pictures, for "aligned": the largest |correlation| when the
    map was fitted with every picture of B one place, two, ... further in the list. Such a map knows the spread of the
    features and the borders of pictures, but nothing of what both encoders make of one picture.
    """
    table = kernels.compare(
        a.phases,
        b.phases,
        a.feats,
        b.feats,
        untrained=b.untrained,
        draws=protocol.draws,
        resamples=protocol.resamples,
        seed=seed,
    )
    largest = wrong_pictures(a, b, protocol.shifts)
    return table.assign(null_pictures=table.part.map(largest).where(table.basis == "aligned"))


def wrong_pictures(a: Member, b: Member, shifts: int) -> dict[str, float]:
    """The largest |aligned correlation| of each of `kernels.PARTS` over maps fitted to the wrong pictures."""
    largest = dict.fromkeys(kernels.PARTS, 0.0 if shifts else math.nan)
    for shift in range(1, min(shifts, len(b.feats) - 1) + 1):
        moved = [b.feats[(i + shift) % len(b.feats)] for i in range(len(b.feats))]
        carried = kernels.align(kernels.assemble(b.phases.double()), a.feats, moved).weight
        found = kernels.correlate(a.phases, kernels.phase_images(carried, b.phases.shape[-1]))
        largest = {part: max(value, abs(getattr(found, part))) for part, value in largest.items()}
    return largest


def compare_scales(family: Mapping[int, Member], protocol: Protocol = PROTOCOL, seed: int = 0) -> pd.DataFrame:
    """All pairs of scales of one family, the finer kernel carried into the coarser one's channels.

    Args:
        family: scale -> member; all encoders saw the same pictures.

    Returns:
        Rows of `kernels.compare` with scale_a, scale_b and grid in front.
    """
    tables = []
    for a, b in itertools.combinations(sorted(family), 2):
        table = compare_members(family[a], family[b], protocol, seed)
        tables.append(_labelled(table, scale_a=a, scale_b=b, grid=min(a, b)))
    return pd.concat(tables, ignore_index=True)


def compare_twins(
    family: Mapping[int, Member], other: Mapping[int, Member], protocol: Protocol = PROTOCOL, seed: int = 0
) -> pd.DataFrame:
    """The ceiling: the same scale from two trainings, on every grid that a pair of scales is compared on.

    A pair of scales meets on the coarser grid, where correlations of detail are others than on the finer one. So x4 is
    compared with x4 on the 2 x 2 grid of the pair x2, x4 and on the 3 x 3 grid of the pair x3, x4.
    """
    scales = sorted(set(family) & set(other))
    tables = []
    for scale, grid in itertools.product(scales, scales[:-1]):
        if grid <= scale:
            a, b = at_grid(family[scale], grid), at_grid(other[scale], grid)
            tables.append(_labelled(compare_members(a, b, protocol, seed), scale_a=scale, scale_b=scale, grid=grid))
    return pd.concat(tables, ignore_index=True)


def _labelled(table: pd.DataFrame, **labels: object) -> pd.DataFrame:
    return table.assign(**labels)[[*labels, *table.columns]]


# the published models


def pictures_of(protocol: Protocol = PROTOCOL) -> list[Tensor]:
    """The LR pictures of a protocol, see `middles`; fetches them."""
    return middles(datasets.load(protocol.data), protocol.scale, protocol.pictures, protocol.side)


def plan() -> list[tuple[str, str, str]]:
    """What is recorded: (control, series A, series B)."""
    rows = [(SCALES_APART, series, series) for series in SERIES]
    rows += [(CEILING, *TWINS)]
    return rows + [(ARCHITECTURE, *pair) for pair in itertools.combinations(ARCHITECTURES, 2)]


def study(control: str, series_a: str, series_b: str, pictures: Sequence[Tensor], protocol: Protocol = PROTOCOL):
    """One line of `plan` as a table; fetches weights.

    Returns:
        Columns control, a, b (series), scale_a, scale_b, grid, provenance (class of the card, or what is known),
        hidden and first (cosines of the encoders' weights, NaN between architectures), pictures, then those of
        `kernels.compare`.
    """
    models = {
        name: {scale: weights.load(f"{name}-x{scale}") for scale in SCALES}
        for name in dict.fromkeys((series_a, series_b))
    }
    families = {
        name: {scale: read(model, scale, pictures, protocol.untrained) for scale, model in by_scale.items()}
        for name, by_scale in models.items()
    }
    a, b = families[series_a], families[series_b]
    if control == SCALES_APART:
        table = compare_scales(a, protocol)
    elif control == CEILING:
        table = compare_twins(a, b, protocol)
    else:
        same = [(s, compare_members(a[s], b[s], protocol)) for s in SCALES]
        table = pd.concat([_labelled(t, scale_a=s, scale_b=s, grid=s) for s, t in same], ignore_index=True)
    about = [
        _about(control, series_b, models[series_a][row.scale_a], models[series_b][row.scale_b])
        for row in table.itertuples()
    ]
    table = table.assign(control=control, a=series_a, b=series_b, pictures=len(pictures))
    table = table.join(pd.DataFrame(about, index=table.index)).round(4)
    first = ["control", "a", "b", "scale_a", "scale_b", "grid", "provenance", "hidden", "first", "pictures"]
    return table[[*first, *table.columns.drop(first)]]


def _about(control: str, series: str, model_a: SRModel, model_b: SRModel) -> dict[str, object]:
    if control == ARCHITECTURE:
        return {"provenance": "unrelated", "hidden": math.nan, "first": math.nan}
    found = controls.weight_cosines(model_a, model_b)
    card = weights.card(f"{series}-x{model_b.scales[0]}").provenance
    kind = card if control == SCALES_APART else found.kind
    return {"provenance": kind, "hidden": found.hidden, "first": found.first}


def recorded_kernels() -> pd.DataFrame:
    """The study of the published models as it ships with the project: needs neither weights nor pictures.

    With `SRLAB_RECORD=1` it is made anew (about five minutes on a laptop), which needs B100 and all weights.

    Raises:
        RecordError: the record is of other weights, pictures or settings than this project now has.
    """
    names = [f"{series}-x{scale}" for series in SERIES for scale in SCALES]
    settings = {
        "weights": {name: weights.card(name).sha256 for name in names},
        "pictures": fetch.pinned(PROTOCOL.data),
        "protocol": list(PROTOCOL),
    }

    def compute() -> pd.DataFrame:
        pictures = pictures_of()
        return pd.concat([study(*row, pictures) for row in plan()], ignore_index=True)

    made_by = "SRLAB_RECORD=1 and `kernel_study.recorded_kernels()`, or notebook 05,"
    return runtime.recorded(RECORD, compute, settings=settings, made_by=made_by)


def families_here() -> list[str]:
    """Which of `SERIES` have all their files on this machine; nothing is fetched."""
    return [s for s in SERIES if all(weights.card(f"{s}-x{scale}").is_here for scale in SCALES)]


def read_family(series: str, pictures: Sequence[Tensor]) -> dict[int, Member]:
    """Scale -> member of one of `SERIES` (fetched if it is not here), or of one IGConv model that serves all scales."""
    published = series in SERIES
    models = {scale: weights.load(f"{series}-x{scale}" if published else series) for scale in SCALES}
    return {scale: read(model, scale, pictures) for scale, model in models.items()}


# reading the table


def largest_null(row: pd.Series) -> float:
    """Below this value lie 95 % of every null's draws, all untrained kernels and all maps fitted to wrong pictures."""
    return max(value for name in (*NULLS, "untrained", "pictures") if (value := row[f"null_{name}"]) == value)


def largest_p(row: pd.Series) -> float:
    """The p-value against the null that comes nearest; nulls that change nothing are left out."""
    return max(value for name in NULLS if (value := row[f"p_{name}"]) == value)


def above_nulls(row: pd.Series) -> bool:
    """Whether a correlation is positive and larger than all its nulls explain."""
    return bool(row.value > largest_null(row) and largest_p(row) <= SIGNIFICANT)


def ceiling(table: pd.DataFrame, scale_a: int, scale_b: int, basis: str, part: str) -> float:
    """Mean correlation of each of two scales with its own other training, on the pair's grid; NaN without one."""
    rows = table[(table.control == CEILING) & (table.basis == basis) & (table.part == part)]
    rows = rows[(rows.grid == min(scale_a, scale_b)) & rows.scale_a.isin((scale_a, scale_b))]
    return float(rows.value.mean())


def summary_table(table: pd.DataFrame, part: str = "varying", control: str = SCALES_APART) -> pd.DataFrame:
    """A line per comparison, numbers beside their nulls and ceiling.

    Args:
        table: as `recorded_kernels` gives.
        part: one of `kernels.PARTS`.
        control: which comparisons.
    """
    rows = table[(table.control == control) & (table.part == part)]
    lines = []
    for (a, b, scale_a, scale_b, grid), group in rows.groupby(["a", "b", "scale_a", "scale_b", "grid"], sort=False):
        bases = group.set_index("basis")
        same, aligned, painted = (bases.loc[basis] for basis in kernels.BASES)
        top = ceiling(table, scale_a, scale_b, "aligned", part) if a in TWINS and control == SCALES_APART else math.nan
        line = {"models": a if a == b else f"{a}, {b}", "class": aligned.provenance}
        line |= {"scales": f"x{scale_a}-x{scale_b}", "grid": grid}
        if same.value == same.value:
            line |= {"same channel": same.value, "its null": largest_null(same), "p": largest_p(same)}
        line |= {"aligned": aligned.value, "95 %": f"[{aligned.low:.2f}, {aligned.high:.2f}]"}
        line |= {"null": largest_null(aligned), "p aligned": largest_p(aligned), "ceiling": top}
        lines.append(line | {"R2": aligned.r2, "functional": painted.value, "null f.": largest_null(painted)})
    return pd.DataFrame(lines)


def verdict(table: pd.DataFrame, part: str = "varying") -> Iterator[str]:
    """The premise in plain words, computed from the table: separately trained models first, inherited ones apart."""
    for kind, words in (("B", "Trained separately"), ("A", "x3 and x4 inherited from x2")):
        rows = table[(table.control == SCALES_APART) & (table.part == part) & (table.provenance == kind)]
        if rows.empty:
            continue
        same, aligned = (rows[rows.basis == basis] for basis in ("same channel", "aligned"))
        sentence = f"{words} (class {kind}: {', '.join(dict.fromkeys(rows.a))}): as stored {_counted(same)}; "
        sentence += f"aligned {_counted(aligned)}"
        shares = [
            row.value / ceiling(table, row.scale_a, row.scale_b, "aligned", part)
            for row in aligned[aligned.a.isin(TWINS)].itertuples()
        ]
        if shares:
            sentence += f". Of the ceiling (same scale, other data) that is {min(shares):.0%} to {max(shares):.0%}"
        yield sentence + "."
    rows = table[(table.control == ARCHITECTURE) & (table.part == part) & (table.basis == "aligned")]
    if not rows.empty:
        yield f"Same scale, another architecture: aligned {_counted(rows)}."


def _counted(rows: pd.DataFrame) -> str:
    above = sum(above_nulls(row) for _, row in rows.iterrows())
    return f"{rows.value.min():.2f} to {rows.value.max():.2f}, above every null in {above} of {len(rows)} pairs"


def chart(table: pd.DataFrame, part: str = "varying") -> pd.DataFrame:
    """What `figures.draw_intervals` draws of the pairs of scales: name, group, mean, low, high.

    Same-channel numbers have no interval: no pictures are behind them. Each of the two has a null of its own, drawn as
    the point below which 95 % of its draws lie; ceilings are the mean of both scales' ceilings.
    """
    lines = []
    rows = table[(table.control == SCALES_APART) & (table.part == part)]
    for _, row in rows[rows.basis != "functional"].iterrows():
        name = f"{row.a} ({row.provenance})  x{row.scale_a}-x{row.scale_b}"
        aligned = row.basis == "aligned"
        ends = {"low": row.low, "high": row.high} if aligned else {"low": row.value, "high": row.value}
        what = "aligned" if aligned else "as stored"
        points = {what: {"mean": row.value, **ends}}
        points[f"null of {what}"] = dict.fromkeys(("mean", "low", "high"), largest_null(row))
        if aligned:
            top = ceiling(table, row.scale_a, row.scale_b, "aligned", part) if row.a in TWINS else math.nan
            if top == top:
                points["ceiling: other data"] = dict.fromkeys(("mean", "low", "high"), top)
        lines += [{"name": name, "group": group, **point} for group, point in points.items()]
    order = ("aligned", "null of aligned", "as stored", "null of as stored", "ceiling: other data")
    return pd.DataFrame(lines).sort_values("group", key=lambda column: column.map(order.index), kind="stable")


# kernels as pictures


class Microscope:
    """Phase images in luma of one family, as stored and carried into the channels of each of its encoders.

    Args:
        family: scale -> member; all encoders saw the same pictures, two or more.
    """

    def __init__(self, family: Mapping[int, Member]):
        luma = torch.tensor(kernels.LUMA)
        self.stored = {
            scale: torch.einsum("g,gc...->c...", luma, member.phases.float()) for scale, member in family.items()
        }
        self.carried: dict[int, dict[int, Tensor]] = {}
        for home, member in family.items():
            self.carried[home] = {}
            for scale, grey in self.stored.items():
                weight = kernels.assemble(grey[None])
                other = weight if scale == home else kernels.align(weight, member.feats, family[scale].feats).weight
                self.carried[home][scale] = kernels.phase_images(other, scale)[0]

    def rows(self, home: int, channel: int, tap: tuple[int, int] | None, detail: bool = False) -> dict[str, Tensor]:
        """What `figures.draw_kernel_field` draws: scale -> (2, side, side), as stored and in the channels of `home`.

        Args:
            home: scale whose encoder's channels are looked at.
            channel: number of the channel.
            tap: row and column of a tap, or None for all taps: what one bright LR pixel of the channel paints.
            detail: take off the average over the sub-pixels of each tap.
        """
        shown = {}
        for scale in self.stored:
            both = torch.stack([self.stored[scale][channel], self.carried[home][scale][channel]])
            if detail:
                both = both - both.mean((-2, -1), keepdim=True)
            shown[f"x{scale}"] = kernels.paint(both[None])[0] if tap is None else both[:, *tap]
        return shown

    def strongest(self, home: int) -> list[int]:
        """Channels by how much their own kernel varies over the sub-pixels, most first."""
        phases = self.stored[home]
        deviations = phases - phases.mean((-2, -1), keepdim=True)
        return deviations.flatten(1).square().sum(1).argsort(descending=True).tolist()
