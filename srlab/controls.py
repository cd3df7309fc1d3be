"""Controls room: what a similarity of two models has to be held against, and where their weights come from.

Takes models and LR pictures; gives an untrained twin, the picture itself as if it were a model, features with the
picture taken out, and the cosines between the weights of two models with the class of provenance they speak for.
`compare` reads all of these as it reads a model.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlab import features, models
from srlab.models import SRModel

PICTURE = "picture"
"""The one layer that `raw_picture` reads."""

PATCH = 5  # side of the neighbourhood that stands for "the picture" in `TakenOut`
MADE_FROM = 0.5  # cosine from which on weights share more than what sets them apart, see `weight_cosines`

KINDS = {
    "A": "one was made from the other, or neither went far from a common start",
    "B": "a shared start, trained apart",
    "C": "nothing shared",
}

Read = Callable[[Tensor], dict[str, Tensor]]
"""LR picture (1, 3, h, w) in [0, 1] -> layer -> features (1, C, h, w)"""


def raw_picture(lr: Tensor) -> dict[str, Tensor]:
    """Reader of a model that does nothing: the three colours of each pixel, (1, 3, h, w)."""
    return {PICTURE: lr}


class TakenOut:
    """A reader without what the picture itself explains: residuals of a linear fit from 5 x 5 pixels to the features.

    Two models that see the same picture are alike wherever their features copy it. What is left after the best linear
    filters of the picture are taken out is what the layers have made of it. One fit per layer, over all pictures.

    Args:
        read: the reader; `layers`: those of its layers to keep.
        pictures: LR pictures (1, 3, h, w) to fit on, the ones that will be compared.
    """

    def __init__(self, read: Read, layers: Sequence[str], pictures: Iterable[Tensor]):
        self.read, self.layers = read, tuple(layers)
        within: Tensor | float = 0.0
        across: dict[str, Tensor | float] = dict.fromkeys(self.layers, 0.0)
        for lr in pictures:
            patches = _patches(lr).double()
            within = within + patches.mT @ patches
            for layer, maps in self._maps(lr).items():
                across[layer] = across[layer] + patches.mT @ features.pixels_as_examples(maps).double()
        ridge = 1e-9 * within.diagonal().mean() * torch.eye(len(within)).to(within)
        self.filters = {layer: torch.linalg.solve(within + ridge, across[layer]) for layer in self.layers}

    def _maps(self, lr: Tensor) -> dict[str, Tensor]:
        read = self.read(lr)
        return {layer: read[layer] for layer in self.layers}

    def __call__(self, lr: Tensor) -> dict[str, Tensor]:
        left = {}
        for layer, maps in self._maps(lr).items():
            explained = _patches(lr) @ self.filters[layer].float()  # (pixels, C)
            left[layer] = maps - explained.T.view_as(maps)
        return left


def _patches(lr: Tensor) -> Tensor:
    """5 x 5 pixels around each pixel and a one, (h * w, 76)."""
    padded = F.pad(lr, [PATCH // 2] * 4, mode="replicate")
    rows = F.unfold(padded, PATCH)[0].T
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def untrained(model: nn.Module, seed: int = 0) -> nn.Module:
    """A twin of the model with fresh random weights, in evaluation mode: what architecture and picture alone give.

    Modules of other people are started anew by their `reset_parameters`; parameters that no such method reaches stay
    as they were trained, with a warning that names them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(model, SRModel) and model.config:
            twin = models.build(**model.config)
        else:
            twin = copy.deepcopy(model)
            fresh = [module for module in twin.modules() if hasattr(module, "reset_parameters")]
            for module in fresh:
                module.reset_parameters()
            reached = {id(parameter) for module in fresh for parameter in module.parameters(recurse=False)}
            left = [name for name, parameter in twin.named_parameters() if id(parameter) not in reached]
            if left:
                warnings.warn(
                    f"the untrained twin keeps {len(left)} trained parameters ({', '.join(left[:3])}, ...): their "
                    f"modules have no reset_parameters()",
                    stacklevel=2,
                )
    return twin.eval()


# provenance


@dataclass(frozen=True)
class WeightCosines:
    """How alike the same-named weights of two models are, beside what chance gives."""

    hidden: float
    """Median cosine over the hidden layers."""
    first: float
    """Cosine of the first layer, which sees the picture."""
    hidden_null: float
    """Largest median in all the draws with the output channels of one model in random order."""
    first_null: float
    """The same of the first layer."""
    expected: float
    """Median size of a cosine between independent weights of these sizes: 0.67 / sqrt(number of weights)."""
    layers: int
    """Hidden layers compared."""

    @property
    def kind(self) -> str:
        """A, B or C, as in `KINDS` and `weights.PROVENANCE`.

        A: the hidden layers share more than what sets them apart (median from `MADE_FROM` on): one was made from the
        other, or both were trained so shortly that they have hardly left a common start. C: neither the hidden layers
        nor the first one are more alike than in random order. B: in between, a shared start that training has moved
        away from.
        """
        if self.hidden >= MADE_FROM:
            return "A"
        return "B" if self.hidden > self.hidden_null or self.first > self.first_null else "C"


def weight_cosines(model_a: nn.Module, model_b: nn.Module, shuffles: int = 200, seed: int = 0) -> WeightCosines:
    """Compare two models' weights name by name: was one made from the other, do they share a start, or nothing?

    Weights are tensors of two or more axes with at least two output channels and one shape in both models, of an
    `SRModel` those of the encoder. If a and b each are a shared part s plus something of their own, d and d', all at
    right angles, the cosine is s^2 / (s^2 + d^2): 0.5 says that they share as much as they differ, and is the line
    between "made from" and "started alike" (`MADE_FROM`). Chance is measured, not assumed, as weights of trained
    networks do not have mean zero: the output channels of `model_b` are put into random order, `shuffles` times, and
    the largest value counts (p < 1 / shuffles).

    Raises:
        ValueError: fewer than three such weights: not the same architecture.
    """
    state_a, state_b = (_weights(model) for model in (model_a, model_b))
    names = [name for name in state_a if name in state_b and state_a[name].shape == state_b[name].shape]
    if len(names) < 3:
        raise ValueError(
            f"{len(names)} weights have the same name and shape in both models, expected three or more of the same "
            f"architecture: {list(state_a)[:3]} and {list(state_b)[:3]}"
        )
    generator = torch.Generator().manual_seed(seed)
    cosines, nulls = [], []
    for name in names:
        a, b = (F.normalize(state[name].flatten(1).double().flatten(), dim=0) for state in (state_a, state_b))
        cosines.append(float(a @ b))
        rows_a, rows_b = (values.view(len(state_a[name]), -1) for values in (a, b))
        products = rows_a @ rows_b.T  # (out, out): every output channel with every other
        orders = torch.rand(shuffles, len(products), generator=generator).argsort(dim=1)
        nulls.append(products.expand(shuffles, -1, -1).gather(2, orders[..., None]).sum(dim=(1, 2)))
    hidden, hidden_nulls = torch.tensor(cosines[1:]), torch.stack(nulls[1:])
    sizes = torch.tensor([state_a[name].numel() for name in names[1:]]).double()
    return WeightCosines(
        hidden=float(hidden.quantile(0.5)),
        first=cosines[0],
        hidden_null=float(hidden_nulls.quantile(0.5, dim=0).max()),
        first_null=float(nulls[0].max()),
        expected=float((0.6745 / sizes.sqrt()).quantile(0.5)),
        layers=len(hidden),
    )


def _weights(model: nn.Module) -> dict[str, Tensor]:
    root = model.encoder if isinstance(model, SRModel) else model
    return {
        name: parameter.detach()
        for name, parameter in root.named_parameters()
        if parameter.ndim >= 2 and len(parameter) >= 2
    }
