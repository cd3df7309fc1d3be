"""Comparing room: two models side by side on the same LR pictures.

Takes models (ours, published ones, any `nn.Module`) and LR pictures; gives `Comparison`s, the CKA of pairs of layers
with intervals over pictures. Anything that reads a picture into layers is compared as a model is: the `controls` too.
The study of published models (`cka_study`) and `srlab cka` stand on it.

Many examples a picture (pixels) are summed up while pictures pass by; one example a picture goes through Gram matrices.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from srlab import cka, datasets, features, images
from srlab.controls import Read
from srlab.models import SRModel
from srlab.statistics import Interval

UPSAMPLER_INPUT = "encoder"
"""Layer of an `SRModel` whose output the upsampler takes: the encoder as a whole."""
GRAM_BYTES = 2 * 2**30  # features held at once for Gram matrices
FEWEST = 4  # pictures that CKA, or half of the pictures that its interval needs


def lr_pictures(name: str | os.PathLike, scale: int) -> list[Tensor]:
    """The LR pictures of a set or folder, float (1, 3, h, w) in [0, 1]: both models get the same ones."""
    pictures = datasets.load(name)
    return [images.to_float(pictures.pair(index, scale)[0])[None] for index in range(len(pictures))]


def crop_alike(pictures: Sequence[Tensor]) -> list[Tensor]:
    """All pictures (..., h, w) cut to the smallest height and width among them, at the top left (as the protocol of
    pictures as examples was described by an author of the paper)."""
    _check_some(pictures)
    height, width = (min(picture.shape[axis] for picture in pictures) for axis in (-2, -1))
    return [picture[..., :height, :width] for picture in pictures]


def _check_some(pictures: Sequence[Tensor]) -> None:
    if not len(pictures):
        raise ValueError("no pictures, expected at least one: an empty folder, or a choice that left none?")


# reading layers


def layers_of(model: nn.Module) -> list[str]:
    """Layers worth comparing: the blocks of the model, and for an `SRModel` the upsampler's input as the last one.

    Blocks are the parts of the container (`nn.Sequential`, `nn.ModuleList`) with the most parameters among the
    encoder's, or for other modules the model's, direct children.

    Raises:
        ValueError: a model without such a container; name its layers by patterns, see `features.capture`.
    """
    ours = isinstance(model, SRModel)
    prefix, root = ("encoder.", model.encoder) if ours else ("", model)
    weight = {
        name: sum(parameter.numel() for parameter in child.parameters())
        for name, child in root.named_children()
        if isinstance(child, nn.Sequential | nn.ModuleList) and len(child)
    }
    if not any(weight.values()):
        raise ValueError(
            f"{type(model).__name__} has no nn.Sequential or nn.ModuleList of blocks, expected one, or layers by name "
            f"or pattern; its layers: {', '.join(features.layer_names(model)[:8])}"
        )
    largest = max(weight, key=weight.get)
    blocks = [f"{prefix}{largest}.{name}" for name, _ in getattr(root, largest).named_children()]
    return [*blocks, UPSAMPLER_INPUT] if ours else blocks


class Reader:
    """Reads some layers of a model, picture by picture, without gradients; the model is put into evaluation mode.

    The model computes on its own device; features come back to the picture's, where they are compared.

    Args:
        model: any module that takes (1, 3, h, w). Of an `SRModel` only the encoder runs, unless a layer lies behind it.
        layers: names or patterns as `features.capture` takes them; default `layers_of(model)`.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str] | None = None):
        self.model, self.asked = model.eval(), list(layers or layers_of(model))

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The layers' names, in order; what patterns stand for is found out by reading a small grey picture."""
        if set(self.asked) <= set(features.layer_names(self.model)):
            return tuple(dict.fromkeys(self.asked))
        return tuple(self(torch.full((1, 3, 64, 64), 0.5)))

    def __call__(self, lr: Tensor) -> dict[str, Tensor]:
        place = next((parameter.device for parameter in self.model.parameters()), lr.device)
        encoder_only = isinstance(self.model, SRModel) and all(name.startswith("encoder") for name in self.asked)
        with torch.no_grad(), features.capture(self.model, self.asked) as captured:
            if encoder_only:
                self.model.encode(lr.to(place))
            elif isinstance(self.model, SRModel):
                self.model(lr.to(place), self.model.scales[0])
            else:
                self.model(lr.to(place))
        return {name: maps.to(lr.device) for name, maps in captured.items()}


def own_model(reference: str) -> nn.Module:
    """A user's own model from "module:function", the function called without arguments; looked for from here first.

    Raises:
        ValueError: no such module or function, or what it returns is no `nn.Module`.
    """
    module_name, _, function_name = reference.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        make = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{reference!r} cannot be had ({error}): expected module:function, such as mynet:trained for the function "
            f"trained() in ./mynet.py"
        ) from error
    model = make()
    if not isinstance(model, nn.Module):
        raise ValueError(f"{reference!r} returns a {type(model).__name__}, expected a torch.nn.Module")
    return model.eval()


# comparing


class Pair(NamedTuple):
    """Two readers and the layers to compare, in groups: every layer of a group's first part with all of its second."""

    a: str
    b: str
    groups: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    shuffled: bool = False
    """Each picture of `a` against the picture of `b` before it in the list: what is alike without any common input."""
    resampled: bool = True
    """Keep what intervals need; many layers and pictures take much memory."""


def every_layer(a: str, b: str, layers_a: Sequence[str], layers_b: Sequence[str], shuffled: bool = False) -> Pair:
    """All layers of one model with all of the other."""
    return Pair(a, b, ((tuple(layers_a), tuple(layers_b)),), shuffled)


def same_layers(a: str, b: str, layers_a: Sequence[str], layers_b: Sequence[str], shuffled: bool = False) -> Pair:
    """First with first, second with second, ...: a dozen times less work than `every_layer`."""
    return Pair(a, b, tuple(((x,), (y,)) for x, y in zip(layers_a, layers_b, strict=True)), shuffled)


@dataclass(frozen=True)
class Comparison:
    """Similarities of pairs of layers ("cells") of two models, biased and debiased, with what an interval needs."""

    cells: tuple[tuple[str, str], ...]
    estimates: Mapping[bool, Tensor]
    """debiased or not -> (cells,)"""
    draws: Mapping[bool, Tensor]
    """debiased or not -> (n_resamples, cells): the same in random halves of the pictures"""
    pictures: int
    examples: int

    def mean(self, cells: Sequence[tuple[str, str]] | None = None, debiased: bool = True) -> Interval:
        """Similarity of a cell, or mean over several, with its 95 % interval over pictures; default: the last cell.

        With too few pictures for an interval its ends are NaN.

        Raises:
            ValueError: no cells, such as the blocks of a model with one layer, or cells that were not compared.
        """
        chosen = self._columns(self.cells[-1:] if cells is None else cells)
        estimate = self.estimates[debiased][chosen].mean()
        if not self.draws:
            return Interval(math.nan, math.nan, float(estimate), self.pictures, method="none: too few pictures")
        draws = self.draws[debiased][:, chosen].mean(dim=1)
        low, high = cka.half_sample_interval(estimate, draws, self.pictures)
        return Interval(float(low), float(high), float(estimate), self.pictures, method="half-samples")

    def minus(
        self, *others: Comparison, over: Callable[[Comparison], Sequence[tuple[str, str]]], debiased: bool = True
    ) -> Interval:
        """How much larger the similarity is here than on average in `others`, on the same pictures.

        The interval is taken on Fisher's z, as those of the similarities are (`cka.half_sample_interval`), and told in
        units of CKA: this similarity stands, and the others move by what their difference is uncertain.

        Args:
            others: made with the same pictures and seed, so that their halves are the same ones.
            over: which cells of a comparison to take, such as `last_cell`.
        """
        mine, theirs = self.mean(over(self), debiased).mean, [c.mean(over(c), debiased).mean for c in others]
        gap = mine - sum(theirs) / len(theirs)
        if not self.draws:
            return Interval(math.nan, math.nan, gap, self.pictures, method="none: too few pictures")
        own, *rest = (c.draws[debiased][:, c._columns(over(c))].mean(dim=1) for c in (self, *others))
        draws = cka.fisher(own) - cka.fisher(torch.stack(rest).mean(dim=0))
        reach = float(cka.half_sample_reach(draws, self.pictures))
        other = float(cka.fisher(torch.tensor(mine - gap, dtype=torch.float64)))
        low, high = (mine - math.tanh(other - side * reach) for side in (-1, 1))
        return Interval(low, high, gap, self.pictures, method="half-samples")

    def matrix(self, debiased: bool = True) -> pd.DataFrame:
        """Layers of the first model by layers of the second; NaN where nothing was computed."""
        rows, columns = (list(dict.fromkeys(cell[side] for cell in self.cells)) for side in (0, 1))
        table = pd.DataFrame(math.nan, index=rows, columns=columns)
        for (row, column), value in zip(self.cells, self.estimates[debiased].tolist(), strict=True):
            table.loc[row, column] = value
        return table

    def _columns(self, cells: Sequence[tuple[str, str]]) -> list[int]:
        if not cells:
            raise ValueError("a mean over no cells, expected one or more: blocks of a comparison with one layer?")
        if unknown := [cell for cell in cells if cell not in self.cells]:
            raise ValueError(f"no cells {unknown} here, expected some of {self.cells}")
        return [self.cells.index(cell) for cell in cells]


def last_cell(comparison: Comparison) -> list[tuple[str, str]]:
    """The last layers of both models, for an `SRModel` the upsampler's input."""
    return [comparison.cells[-1]]


def block_cells(comparison: Comparison) -> list[tuple[str, str]]:
    """Block i with block i, the last layers left out; or every block with the one layer there is (the raw picture)."""
    rows, columns = (list(dict.fromkeys(cell[side] for cell in comparison.cells)) for side in (0, 1))
    if len(columns) > 1 and len(rows) != len(columns):
        raise ValueError(f"{len(rows)} and {len(columns)} layers, expected as many: which belongs to which?")
    return list(zip(rows, itertools.cycle(columns) if len(columns) == 1 else columns, strict=False))[:-1]


def layer_matrix(
    model_a: nn.Module,
    model_b: nn.Module,
    pictures: Sequence[Tensor],
    layers_a: Sequence[str] | None = None,
    layers_b: Sequence[str] | None = None,
    reduction: Callable[[Tensor], Tensor] | None = None,
    shuffled: bool = False,
    n_resamples: int = 500,
    seed: int = 0,
    *,
    step: int = 1,
) -> Comparison:
    """Every layer of one model with every layer of another, in one pass over the pictures.

    Args:
        model_a, model_b: any modules that take (1, 3, h, w).
        pictures: LR pictures, float (1, 3, h, w) in [0, 1], at least four.
        layers_a, layers_b: names or patterns, see `Reader`.
        reduction: what an example is, one of `features.REDUCTIONS`; default pixels. Pictures as examples need pictures
            of one size: `crop_alike`.
        shuffled: the null: pictures of `model_b` one place further.
        n_resamples, seed: of the intervals.
        step: with pixels as examples take every `step`-th row and column only. For a narrow, fast encoder the products
            cost more than its forward pass; neighbouring pixels say nearly the same, so 2 hardly changes a value.
    """
    readers = {"a": Reader(model_a, layers_a), "b": Reader(model_b, layers_b)}
    pair = every_layer("a", "b", readers["a"].names, readers["b"].names, shuffled)
    reductions = {"": reduction or features.pixels_as_examples}
    return compare_all(readers, [pair], pictures, reductions, step=step, n_resamples=n_resamples, seed=seed)["", pair]


def compare_all(
    readers: Mapping[str, Read],
    pairs: Sequence[Pair],
    pictures: Sequence[Tensor],
    reductions: Mapping[str, Callable[[Tensor], Tensor]],
    *,
    step: int = 1,
    n_resamples: int = 500,
    seed: int = 0,
    progress: bool = False,
) -> dict[tuple[str, Pair], Comparison]:
    """Compare many pairs of readers in one or two passes over the pictures.

    Args:
        readers: name -> reader.
        pairs: which to compare, one given twice is compared once; their names are those of `readers`.
        reductions: any name -> what an example is; several of one example a picture share a pass.
        pictures, n_resamples, seed: as in `layer_matrix`.
        step: with pixels as examples take every `step`-th row and column only.
        progress: show a bar.

    Returns:
        (name of the reduction, pair) -> comparison.

    Raises:
        ValueError: no pictures, or no pairs.
    """
    _check_some(pictures)
    if not (pairs := list(dict.fromkeys(pairs))):
        raise ValueError("no pairs to compare, expected one or more of `every_layer` or `same_layers`")
    found: dict[tuple[str, Pair], Comparison] = {}
    for name, reduction in reductions.items():
        if reduction is features.pixels_as_examples:
            n_resamples = n_resamples if len(pictures) >= FEWEST else 0
            sums = _sum_pixels(readers, pairs, pictures, step, progress)
            for pair in pairs:
                found[name, pair] = _summed(sums.pop(pair), len(pictures), n_resamples if pair.resampled else 0, seed)
    whole = {name: reduction for name, reduction in reductions.items() if (name, pairs[0]) not in found}
    grams = {name: picture_grams(read, pictures, whole) for name, read in readers.items()} if whole else {}
    for name, pair in itertools.product(whole, pairs):
        a, b = grams[pair.a][name], grams[pair.b][name]
        found[name, pair] = compare_grams(a, b, pair, n_resamples if pair.resampled else 0, seed)
    return found


def _sum_pixels(
    readers: Mapping[str, Read], pairs: Sequence[Pair], pictures: Sequence[Tensor], step: int, progress: bool
) -> dict[Pair, list[cka.CKAMatrix]]:
    sums = {pair: [cka.CKAMatrix(*group, keep_per_batch=pair.resampled) for group in pair.groups] for pair in pairs}
    shuffled = [pair for pair in pairs if pair.shuffled]

    def add(pair: Pair, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> None:
        for matrix in sums[pair]:
            matrix.update(_pixels(x, matrix.names_x, step), _pixels(y, matrix.names_y, step))

    def read_all() -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Compare within each picture, and hand on what is compared between pictures, under "number of pair, layer"."""
        for lr in tqdm(pictures, unit="picture", disable=not progress, leave=False):
            now = {name: read(lr) for name, read in readers.items()}
            for pair in pairs:
                if not pair.shuffled:
                    add(pair, now[pair.a], now[pair.b])
            yield tuple(
                {f"{i} {layer}": maps for i, pair in enumerate(shuffled) for layer, maps in now[pair[side]].items()}
                for side in (0, 1)
            )

    for x, y in features.shuffled_pairs(read_all()) if shuffled else read_all():
        for i, pair in enumerate(shuffled):
            add(pair, *({name.removeprefix(f"{i} "): maps for name, maps in side.items()} for side in (x, y)))
    return sums


def _pixels(maps: Mapping[str, Tensor], names: Sequence[str], step: int) -> dict[str, Tensor]:
    return {name: features.pixels_as_examples(maps[name], step) for name in names}


def _summed(matrices: list[cka.CKAMatrix], pictures: int, n_resamples: int, seed: int) -> Comparison:
    """One comparison out of the sums of a pair's groups."""
    drawn = [matrix.half_samples(n_resamples, seed) for matrix in matrices if n_resamples]
    forms = (False, True)
    return Comparison(
        cells=tuple(cell for matrix in matrices for cell in itertools.product(matrix.names_x, matrix.names_y)),
        estimates={form: torch.cat([matrix.compute(form).flatten() for matrix in matrices]) for form in forms},
        draws={form: torch.cat([draws[form].flatten(1) for draws in drawn], dim=1) for form in forms if drawn},
        pictures=pictures,
        examples=matrices[0].n,
    )


def picture_grams(
    read: Read, pictures: Sequence[Tensor], reductions: Mapping[str, Callable[[Tensor], Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """Gram matrices with pictures as examples: name of a reduction -> layer -> (n, n) float64.

    All features of a layer are needed at once. Layers are therefore taken in portions of `GRAM_BYTES`, one pass over
    the pictures for each.

    Raises:
        ValueError: a reduction that does not give one row a picture, pictures of different sizes, or none.
    """
    _check_some(pictures)
    first = read(pictures[0])
    size = max(maps.numel() * maps.element_size() for maps in first.values()) * len(pictures)
    at_once = max(1, GRAM_BYTES // size)
    names = list(first)
    grams: dict[str, dict[str, Tensor]] = {name: {} for name in reductions}
    for start in range(0, len(names), at_once):
        rows = {(name, layer): [] for name in reductions for layer in names[start : start + at_once]}
        for lr in pictures:
            maps = first if lr is pictures[0] else read(lr)
            for name, layer in rows:
                rows[name, layer].append(reductions[name](maps[layer]))
        for (name, layer), parts in rows.items():
            shapes = {tuple(part.shape) for part in parts}
            if len(shapes) > 1 or len(parts[0]) != 1:
                raise ValueError(
                    f"layer {layer!r} gives {sorted(shapes)[:3]} (examples, features), expected one row of one length "
                    f"for every picture: pictures of different sizes (`crop_alike`)?"
                )
            grams[name][layer] = cka.linear_gram(parts)
            parts.clear()
    return grams


def compare_grams(
    grams_a: Mapping[str, Tensor], grams_b: Mapping[str, Tensor], pair: Pair, n_resamples: int = 500, seed: int = 0
) -> Comparison:
    """A pair's comparison from the Gram matrices of its layers, (n, n) each."""
    n = len(next(iter(grams_a.values())))
    other = torch.arange(n).roll(1) if pair.shuffled else torch.arange(n)
    groups = [
        (torch.stack([grams_a[x] for x in xs]), torch.stack([grams_b[y][other][:, other] for y in ys]))
        for xs, ys in pair.groups
    ]
    generator = torch.Generator().manual_seed(seed)
    enough = n // 2 >= FEWEST
    halves = [torch.randperm(n, generator=generator)[: n // 2] for _ in range(n_resamples if enough else 0)]

    def similarity(chosen: Tensor, debiased: bool) -> Tensor:
        rows = chosen[:, None]
        parts = [cka.cka_from_grams(x[..., rows, chosen], y[..., rows, chosen], debiased) for x, y in groups]
        return torch.cat([part.flatten() for part in parts])

    everything = torch.arange(n)
    return Comparison(
        cells=tuple(cell for group in pair.groups for cell in itertools.product(*group)),
        estimates={form: similarity(everything, form) for form in (False, True)},
        draws={form: torch.stack([similarity(half, form) for half in halves]) for form in (False, True) if halves},
        pictures=n,
        examples=n,
    )
