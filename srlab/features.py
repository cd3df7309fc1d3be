"""Features: read what any layer of any network computes, without touching the network.

In: an `nn.Module` (this project's or a user's own) and the names of layers in it. Out: a dict from layer name to the
tensor that layer gave in its latest call, detached and copied. Hooks live here and nowhere else, inside a `with`
that takes them off again. What the features mean is not said here: `cka` compares them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

_SHOWN = 6  # names printed in an error message


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
    that a later pass skips keeps the value of the pass before). Its keys keep the asked-for order (a pattern stands for its matches in the model's order), whatever order the layers run
    in. Tensors are detached, so no graph is kept, and copied, so that an in-place ReLU behind a layer cannot rewrite
    what was read. A layer called several times in one pass (shared weights, recursion) leaves its **last** output in
    the dict; `on_call` sees every call in the order they happen.

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
