"""Spectral figures room: `draw_` functions of notebook 06. Arrays and tables in, matplotlib `Figure` out.

Beside `figures.py` and in its style; knows no model and loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import ArrayLike

from srlab import panels
from srlab.panels import COLOURS, DASHES, FAINT, INK, MARKERS, SEQUENTIAL, SMALLEST, WIDTH, as_array, house_style


@house_style
def draw_error_courses(
    courses: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    *,
    ylabel: str,
    legend: str,
    level: float | None = None,
    limits: tuple[float, float] | None = None,
    xlabel: str = "training step",
) -> Figure:
    """Error against training steps, a panel per network, a line per frequency: dark and solid is slow, light is fast.

    Args:
        courses: title of a panel -> name of a line -> (steps, errors); all panels have the same lines.
        ylabel: what is measured, with its unit.
        legend: title of the legend, what the lines are.
        level: horizontal line at which a frequency counts as learnt.
        limits: of the vertical axis.
    """
    fig, axes = panels.panels(1, len(courses), height=3.4, sharey=True)
    names = list(next(iter(courses.values())))
    colours = mpl.colormaps[SEQUENTIAL](np.linspace(0.0, 0.85, len(names)))
    for ax, (title, lines) in zip(axes[0], courses.items(), strict=True):
        for number, (name, (steps, errors)) in enumerate(lines.items()):
            look = {"color": colours[number], "linestyle": DASHES[number % 4]}
            ax.plot(as_array(steps), as_array(errors), label=name, **look)
        if level is not None:
            ax.axhline(level, color=INK, linewidth=0.8, linestyle=":")
        ax.set(title=title, xlabel=xlabel, xscale="log", yscale="log", ylim=limits)
        ax.xaxis.set_minor_formatter(NullFormatter())
        if len(steps) <= 8:  # few looks: each with its number
            ax.set_xticks(as_array(steps), [f"{step:g}" for step in as_array(steps)], fontsize=SMALLEST)
            ax.tick_params(axis="x", which="minor", length=0)
    axes[0, 0].set_ylabel(ylabel)
    columns = min(len(names), 5)
    fig.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, title=legend, fontsize=8
    )
    return fig


@house_style
def draw_times_to_learn(
    frequencies: ArrayLike,
    times: Mapping[str, ArrayLike],
    *,
    never: float,
    xlabel: str,
    words: Mapping[str, str],
    level: float = 0.1,
) -> Figure:
    """Steps until each frequency is learnt, a dot per network, the median as a line.

    Args:
        frequencies: (K,).
        times: name of a series -> (networks, K) steps; inf where a frequency was never learnt.
        never: where such dots are drawn, above a line that says so.
        xlabel: what the frequencies are, with their unit.
        words: name of a series -> what its legend adds, such as a rank correlation.
        level: share of its amplitude to which a frequency's error has fallen at these times.
    """
    fig, [[ax]] = panels.panels(height=3.3)
    x = as_array(frequencies)
    for number, (name, steps) in enumerate(times.items()):
        shown = np.maximum(np.where(np.isfinite(as_array(steps)), as_array(steps), never), 1)
        colour, jitter = COLOURS[number], np.linspace(-0.18, 0.18, len(shown))
        for row, shift in zip(shown, jitter, strict=True):
            ax.plot(x + shift, row, MARKERS[number], color=colour, alpha=0.35, markersize=3.5)
        median = np.median(shown, axis=0)
        ax.plot(x, median, color=colour, linestyle=DASHES[number], label=f"{name}: {words[name]}")
    ax.axhline(0.93 * never, color=FAINT, linewidth=0.8)
    ax.text(0.01, 0.9 * never, "above: not within these steps", va="top", ha="left", fontsize=SMALLEST, color=INK,
            transform=ax.get_yaxis_transform())  # fmt: skip
    ax.set(xlabel=xlabel, ylabel=f"steps to {100 * level:g} % error", yscale="log", xticks=x)
    fig.legend(loc="outside upper center")
    return fig


@house_style
def draw_painted(rows: Mapping[str, Sequence[ArrayLike]], titles: Sequence[str]) -> Figure:
    """Grey pictures in rows with names, columns with titles, such as a network's painting at several steps.

    Args:
        rows: row name -> pictures (H, W) in [0, 1]; None leaves a cell empty.
        titles: one per column.
    """
    tables = [[None if cell is None else np.clip(as_array(cell), 0, 1) for cell in row] for row in rows.values()]
    heads = panels.top_titles(titles, len(tables), len(titles))
    return panels.tiles(tables, titles=heads, row_names=list(rows), width=WIDTH)[0]


@house_style
def draw_through(
    pictures: Mapping[str, ArrayLike],
    octaves: Mapping[str, ArrayLike],
    words: Mapping[str, str],
    *,
    frequency: float,
    limit: float | None = None,
) -> Figure:
    """A test picture through several methods, and below each what it holds in the octave round one frequency.

    Drawn as two strips rather than as many small axes, so that a slider answers quickly.

    Args:
        pictures: name -> (H, W) in [0, 1], the true one first.
        octaves: name -> (H, W), mean zero.
        words: name -> what stands below its octave.
        frequency: of the octave, cycles per pixel.
        limit: octaves are shown from -limit to limit; default the true one's largest value, at least 0.02.
    """
    shown = [as_array(picture) for picture in pictures.values()]
    parts = [as_array(octaves[name]) for name in pictures]
    limit = limit or max(float(np.abs(parts[0]).max()), 0.02)
    side, gap = shown[0].shape[1], max(2, shown[0].shape[1] // 30)
    fig, axes = panels.panels(2, 1, height=2 * WIDTH / len(shown) + 0.75)
    strips = ((shown, (0.0, 1.0), "gray"), (parts, (-limit, limit), "gray"))
    for ax, (tiles, limits, cmap) in zip(axes[:, 0], strips, strict=True):
        space = np.full((shown[0].shape[0], gap), np.nan)
        strip = np.concatenate([piece for tile in tiles for piece in (tile, space)][:-1], axis=1)
        panels.show(ax, strip, cmap=cmap, limits=limits)
    for number, name in enumerate(pictures):
        middle = number * (side + gap) + side / 2
        text = {"ha": "center", "fontsize": SMALLEST}
        axes[0, 0].text(middle, -gap, name, va="bottom", **text)
        axes[1, 0].text(middle, shown[0].shape[0] + gap, words[name], va="top", **text)
    axes[1, 0].set_title(f"the octave round {frequency:.3f} cycles per pixel", fontsize=9)
    return fig


@house_style
def draw_octave_effects(table: pd.DataFrame, *, ylabel: str, octaves: Sequence[str]) -> Figure:
    """What each part changes, octave by octave: a panel per part, an interval per octave.

    Args:
        table: columns part, octave (0, 1, ...), mean, low, high and, for several series in one panel, group.
        ylabel: what is measured, with its unit.
        octaves: their names.
    """
    parts = list(dict.fromkeys(table["part"]))
    fig, axes = panels.panels(1, len(parts), height=3.2, sharey=True)
    for ax, part in zip(axes[0], parts, strict=True):
        rows = table[table["part"] == part]
        ax.axhline(0, color=INK, linewidth=0.8)
        for number, (group, points) in enumerate(
            rows.groupby("group", sort=False) if "group" in rows else [("", rows)]
        ):
            shift = 0.16 * (number - 0.5) if "group" in rows else 0
            look = {"fmt": MARKERS[number], "color": COLOURS[number], "capsize": 3, "markersize": 4}
            ax.errorbar(points["octave"] + shift, points["mean"], yerr=panels.whiskers(points), label=group, **look)
        ax.set_xticks(range(len(octaves)), octaves, rotation=60, ha="right", rotation_mode="anchor", fontsize=SMALLEST)
        ax.set(title=part.replace(", ", ",\n"))
        ax.title.set_fontsize(9)
        ax.grid(axis="y")
    axes[0, 0].set_ylabel(ylabel)
    fig.supxlabel("octave (cycles per pixel)", fontsize=9)
    if "group" in table:
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig
