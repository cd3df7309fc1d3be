"""Features room: read what any layer of any network computes, and say what counts as an example in it.

In: an `nn.Module` (this project's or a user's own) and the names of layers in it. Out: a dict from layer name to the
tensor that layer gave in its latest call, detached and copied. Hooks live here and nowhere else, inside a `with`
that takes them off again. The reductions turn maps (B, C, h, w) into rows (examples, features), which `cka` compares.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

_SHOWN = 6  # names printed in an error message

Feats = Tensor | Mapping[str, Tensor]


def layer_names(model: nn.Module) -> list[str]:
    """Names of the layers `capture` can read, in the order the model lists them.

    The model itself (empty name) and bare containers such as `nn.ModuleList`, which are never called, are left out.
    A module registered under several names is listed once, under its first name.
    """
    return [name for name, module in model.named_modules() if name and _is_called(module)]


@contextmanager
def capture(
    model: nn.Module,
    layers: str | Iterable[str],
    on_call: Callable[[str, Tensor], None] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Read the outputs of some layers while the model runs.

    The dict is refilled by every forward pass inside the `with`: loop over pictures, and read it after each (a layer
    that a later pass skips keeps the value of the pass before). Its keys keep the asked-for order (a pattern stands
    for its matches in the model's order), whatever order the layers run in. Tensors are detached, so no graph is
    kept, and copied, so that an in-place ReLU behind a layer cannot rewrite what was read. A layer called several
    times in one pass (shared weights, recursion) leaves its **last** output in the dict; `on_call` sees every call in
    the order they happen.

    Args:
        model: any module; neither its mode nor its gradients are changed (use `torch.no_grad()` to save memory).
        layers: one or several of: an exact name as in `layer_names`; a glob, in which `*` and `?` stay within one
            level of the name and `**` crosses levels (`"body.*"` gives the blocks, not the layers in them);
            `"re:..."`, a regular expression that has to match the whole name.
        on_call: called as `on_call(name, features)` each time an asked-for layer has run.

    Yields:
        The dict layer name -> features, shapes as the layer gives them (for an encoder (B, C, h, w)).

    Raises:
        ValueError: a name or pattern matches nothing (near names are listed), or names a container that is never
            called.
        TypeError: a layer gives something other than one tensor.
        RuntimeError: on leaving the `with`, a named layer (or everything that a pattern matched) was never called.
    """
    asked = _resolve(model, [layers] if isinstance(layers, str) else list(layers))
    order = list(dict.fromkeys(name for names in asked.values() for name in names))
    modules = dict(model.named_modules(remove_duplicate=False))
    captured: dict[str, Tensor] = {}

    def reader(name: str) -> Callable[[nn.Module, tuple, object], None]:
        def read(module: nn.Module, _inputs: tuple, output: object) -> None:
            if not isinstance(output, Tensor):
                raise TypeError(_not_a_tensor(name, module, output))
            captured[name] = output.detach().clone()
            _sort_keys(captured, order)
            if on_call is not None:
                on_call(name, captured[name])

        return read

    handles = []
    try:
        for name in order:
            handles.append(modules[name].register_forward_hook(reader(name)))
        yield captured
    finally:
        for handle in handles:
            handle.remove()
    _refuse_unreached(asked, captured)


def pixels_as_examples(feats: Tensor, every: int = 1) -> Tensor:
    """(B, C, h, w) -> (B * h * w, C): each pixel is an example, channels are its features.

    Asks: do two layers code the same local content? n is large, so bias is small; but neighbouring pixels are alike,
    so intervals are taken over pictures. `every` = 2 keeps every second row and column: a quarter of the time.
    """
    _check_maps(feats)
    return feats[..., ::every, ::every].permute(0, 2, 3, 1).flatten(0, 2)


def pictures_as_examples(feats: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C * h * w): each picture is an example, its whole map one long vector of features.

    Asks: do two layers find the same pictures alike? n is small and features are many: mind the bias. Pictures need
    one size.
    """
    _check_maps(feats)
    return feats.flatten(1)


def pooled_as_examples(feats: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C): each picture is an example, described by the mean of each channel."""
    _check_maps(feats)
    return feats.mean(dim=(2, 3))


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "pixels": pixels_as_examples,
    "pictures": pictures_as_examples,
    "pooled": pooled_as_examples,
}


def shuffled_pairs(pairs: Iterable[tuple[Feats, Feats]]) -> Iterator[tuple[Feats, Feats]]:
    """Pair x of each picture with y of the picture before it, of the last one for the first: a null for pixels.

    Feed the result to a second accumulator of `cka`. Only the content is swapped and pixels keep their place, so this
    null holds what place and picture borders alone explain. Maps of two sizes are cropped at the right and at the
    bottom. Holds the maps of two pictures.

    Args:
        pairs: per picture, the maps (B, C, h, w) of the two sides, or two dicts layer -> maps.

    Raises:
        ValueError: fewer than two pictures.
    """
    first_x = before = None
    count = 0
    for x, y in pairs:
        x, y = _held(x), _held(y)
        if before is None:
            first_x = x
        else:
            yield _crop(x, before), _crop(before, x)
        before, count = y, count + 1
    if count < 2:
        raise ValueError(f"got {count} pictures, expected 2 or more: a picture cannot be swapped with itself")
    yield _crop(first_x, before), _crop(before, first_x)


def _held(feats: Feats) -> Feats:
    """A dict of its own, as the one of `capture` is refilled."""
    return dict(feats) if isinstance(feats, Mapping) else feats


def _crop(feats: Feats, other: Feats) -> Feats:
    maps = [m for side in (feats, other) for m in (side.values() if isinstance(side, Mapping) else [side])]
    height, width = (min(m.shape[axis] for m in maps) for axis in (-2, -1))
    if isinstance(feats, Mapping):
        return {name: m[..., :height, :width] for name, m in feats.items()}
    return feats[..., :height, :width]


def _check_maps(feats: Tensor) -> None:
    if feats.ndim != 4:
        raise ValueError(f"feature maps have shape {tuple(feats.shape)}, expected (B, C, h, w): no batch axis?")


def _resolve(model: nn.Module, layers: list[str]) -> dict[str, list[str]]:
    """Exact names and patterns -> the layer names each stands for."""
    if not layers:
        raise ValueError("no layers asked for, expected at least one name or pattern: see layer_names(model)")
    everything = dict(model.named_modules(remove_duplicate=False))
    names = layer_names(model)
    asked: dict[str, list[str]] = {}
    for layer in layers:
        if layer and layer in everything:
            if not _is_called(everything[layer]):
                inside = [name for name in names if name.startswith(layer + ".")]
                raise ValueError(
                    f"layer {layer!r} is a {type(everything[layer]).__name__}, a container that is never called "
                    f"itself, expected a layer: did you mean {_quoted(inside)}, or {layer + '.*'!r}?"
                )
            asked[layer] = [layer]
        else:
            asked[layer] = [name for name in names if _pattern(layer).fullmatch(name)]
        if not asked[layer]:
            near = difflib.get_close_matches(layer.removeprefix("re:"), names, n=_SHOWN, cutoff=0.4)
            hint = f"near names: {_quoted(near)}" if near else f"its layers: {_quoted(names)}"
            raise ValueError(
                f"layer {layer!r} matches nothing in {type(model).__name__}, which has {len(names)} layers; {hint}. "
                f"Was it meant for another model, or does a wrapper add a prefix?"
            )
    return asked


def _pattern(layer: str) -> re.Pattern[str]:
    """A regular expression for "re:..." or for a glob whose stars stop at dots; an exact name matches itself."""
    if layer.startswith("re:"):
        try:
            return re.compile(layer[3:])
        except re.error as error:
            raise ValueError(
                f"{layer!r} is not a regular expression ({error}): is a bracket or a backslash missing?"
            ) from error
    glob = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    return re.compile("".join(glob.get(part, re.escape(part)) for part in re.split(r"(\*\*|\*|\?)", layer)))


def _is_called(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _sort_keys(captured: dict[str, Tensor], order: list[str]) -> None:
    """Put the keys into the asked-for order, in place: the caller holds this very dict."""
    wanted = [name for name in order if name in captured]
    if list(captured) != wanted:
        values = {name: captured[name] for name in wanted}
        captured.clear()
        captured.update(values)


def _refuse_unreached(asked: Mapping[str, list[str]], captured: Mapping[str, Tensor]) -> None:
    unreached = [layer for layer, names in asked.items() if not any(name in captured for name in names)]
    if unreached:
        raise RuntimeError(
            f"never called inside the `with`: {_quoted(unreached)}, expected at least one call. Was the model not run, "
            f"or only a part of it, or does its forward read the layer's weight without calling the layer?"
        )


def _not_a_tensor(name: str, module: nn.Module, output: object) -> str:
    what = type(output).__name__
    if isinstance(output, (tuple, list)):
        what += f" of {', '.join(type(part).__name__ for part in output)}"
    inside = [f"{name}.{child}" for child in layer_names(module)]
    hint = f"a layer inside it, such as {_quoted(inside)}" if inside else "a layer before or behind it"
    return f"layer {name!r} ({type(module).__name__}) gives a {what}, expected one tensor: capture {hint}."


def _quoted(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more if names else "none"
