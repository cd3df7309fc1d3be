"""Side-by-side room: any two models, their layers and controls in one report; what `srlab cka` prints.

Takes two models (ours, published ones, a user's own) and LR pictures; gives a `SideBySide`: every layer with every
layer, the last layers with floors and a null, and what the weights say about where the models come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pandas as pd
from torch import Tensor, nn

from srlab import compare, controls, features
from srlab.compare import every_layer, same_layers


class SideBySide(NamedTuple):
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


def put_side_by_side(
    model_a: nn.Module,
    model_b: nn.Module,
    pictures: Sequence[Tensor],
    layers_a: Sequence[str] | None = None,
    layers_b: Sequence[str] | None = None,
    reduction: Callable[[Tensor], Tensor] = features.pixels_as_examples,
    *,
    seed: int = 0,
    progress: bool = False,
) -> SideBySide:
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
        rows.append((what, debiased.mean, debiased.low, debiased.high, biased.mean))
    both = found["", plan["A and B"]]
    about = _about_weights(model_a, model_b)
    table = pd.DataFrame(rows, columns=["what", "estimate", "low", "high", "biased"])
    return SideBySide(both.matrix(), table, about, both.pictures, both.examples)


def _about_weights(model_a: nn.Module, model_b: nn.Module) -> str:
    try:
        found = controls.weight_cosines(model_a, model_b)
    except ValueError:
        return "weights: not comparable, the architectures differ"
    return (
        f"weights: class {found.kind}, {controls.KINDS[found.kind]}: median cosine of {found.layers} hidden layers "
        f"{found.hidden:.2f}, of the first {found.first:.2f}; in random order at most {found.hidden_null:.2f} and "
        f"{found.first_null:.2f}"
    )
