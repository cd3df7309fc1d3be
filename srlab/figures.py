"""Drawings room: arrays in, one matplotlib `Figure` out.

Every `draw_` function takes arrays (NumPy, lists, torch tensors) that the maths rooms computed and returns a figure that
nobody has shown yet. It knows no model, loads no file and computes no score. Figures go to `runtime.Run.save`, which
writes them beside their numbers, to the last line of a notebook cell, or to `widgets.explore`.

House rules, so that two figures can be compared by eye:
* 3.5 or 7 inches wide, text of 8 points or more, every axis labelled with its unit, nothing clipped;
* colours a colour-blind reader can tell apart, and always a marker, a dash or a name beside the colour;
* cividis for what starts at zero, vlag (centred on zero) for what has a sign; fixed limits where the quantity has them.

Pictures are (3, H, W), (1, 3, H, W) or, grey, (H, W); uint8, or float in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

WIDTH, HALF_WIDTH = 7.0, 3.5  # inches: a page, a column
SMALLEST = 8  # points
COLOURS = sns.color_palette("colorblind")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1)))
INK, FAINT = "0.15", "0.75"
SEQUENTIAL, DIVERGING = "cividis", "vlag"

HOUSE = {
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.grid": False,
    "grid.color": "0.9",
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "image.interpolation": "nearest",
    "mathtext.default": "regular",
}
house_style = mpl.rc_context(HOUSE)  # a decorator; the caller's own settings are back when the figure is made

Box = tuple[float, float, float, float]
"""top, left, height, width as fractions of a picture, so that it means the same place in LR and HR"""


# ---------------------------------------------------------------------------------------------------- pictures


@house_style
def draw_pictures(
    pictures: Mapping[str, ArrayLike],
    *,
    columns: int | None = None,
    zoom: Box | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
    width: float = WIDTH,
) -> Figure:
    """Pictures under their titles, every pixel a square.

    Args:
        pictures: title -> picture.
        columns: panels per row; default at most four.
        zoom: place marked in each picture and shown enlarged below it.
        limits: black and white of grey pictures.
    """
    titles, shown = list(pictures), [_pixels(picture) for picture in pictures.values()]
    columns = columns or min(len(shown), 4)
    rows: list[list[np.ndarray | None]] = []
    names: list[list[str]] = []
    for first in range(0, len(shown), columns):
        row, title = shown[first : first + columns], titles[first : first + columns]
        empty = columns - len(row)
        rows.append(row + [None] * empty)
        names.append(title + [""] * empty)
        if zoom:
            rows.append([_cut(picture, zoom) for picture in row] + [None] * empty)
            names.append([""] * columns)
    fig, axes = _tiles(rows, titles=names, limits=limits, cmap="gray", width=width)
    if zoom:
        for ax, picture in zip(axes[::2].flat, shown, strict=False):
            _mark(ax, picture, zoom)
        for ax in axes[1::2].flat:
            ax.spines[:].set(visible=True, color=COLOURS[1], linewidth=1.6)
    return fig


@house_style
def draw_comparison(
    hr: ArrayLike, results: Mapping[str, ArrayLike], box: Box, scores: Mapping[str, float], *, unit: str = "dB"
) -> Figure:
    """One place of a picture as several methods see it, beside the whole picture.

    Args:
        hr: the true picture, shown whole with `box` marked; its crop comes last.
        results: name -> picture of any size (an LR picture shows its own coarse pixels).
        box: the place.
        scores: name -> score of the whole result, put under its crop; names without one have none.
    """
    crops = {name: _cut(_pixels(picture), box) for name, picture in results.items()}
    crops["true picture"] = _cut(_pixels(hr), box)
    columns = -(-len(crops) // 2)
    whole = _pixels(hr)
    cell = WIDTH * 0.6 / columns
    aspect = crops["true picture"].shape[0] / crops["true picture"].shape[1]
    layout = [["whole", *(f"{row}{column}" for column in range(columns))] for row in range(2)]
    fig, axes = plt.subplot_mosaic(
        layout,
        figsize=(WIDTH, 2 * (cell * aspect + 0.42)),
        width_ratios=[0.4 * WIDTH / cell, *[1] * columns],
        layout="constrained",
    )
    plt.close(fig)
    _show(axes["whole"], whole, "whole picture")
    _mark(axes["whole"], whole, box)
    for index in range(2 * columns):
        ax = axes[f"{index // columns}{index % columns}"]
        if index >= len(crops):
            ax.set_axis_off()
            continue
        name, crop = list(crops.items())[index]
        score = f"\n{scores[name]:.2f} {unit}" if name in scores else "\n"
        _show(ax, crop, name + score)
    return fig


@house_style
def draw_degradation(examples: Mapping[str, Mapping[str, ArrayLike]], *, width: float = WIDTH) -> Figure:
    """A table of pictures: a row per example, a column per way of shrinking it.

    Args:
        examples: row name -> column title -> picture; all rows have the same columns. Sizes may differ: each picture
            fills its cell, so that coarse pixels look coarse.
    """
    rows = [[_pixels(picture) for picture in row.values()] for row in examples.values()]
    titles = [list(next(iter(examples.values())))] + [[""] * len(rows[0])] * (len(rows) - 1)
    fig, _ = _tiles(rows, titles=titles, row_names=list(examples), cmap="gray", width=width)
    return fig


@house_style
def draw_checkerboard(pictures: Mapping[str, ArrayLike], *, row: int = 0, levels: float = 255.0) -> Figure:
    """Grey pictures that ought to be even, each with the values along one of its rows.

    Args:
        pictures: title -> grey picture (H, W) in [0, 1]. All share one grey scale and one vertical axis.
        row: row of pixels drawn below.
        levels: what a value of 1 counts in the profiles (255: grey levels).
    """
    shown = {title: _array(picture) for title, picture in pictures.items()}
    low, high = min(p.min() for p in shown.values()), max(p.max() for p in shown.values())
    margin = max((high - low) * 0.08, 0.01)
    fig, axes = _panels(2, len(shown), height=WIDTH / len(shown) + 1.7, height_ratios=[1.5, 1], sharey="row")
    for index, (title, picture) in enumerate(shown.items()):
        above, below = axes[:, index]
        above.imshow(picture, cmap="gray", vmin=low - margin, vmax=high + margin)
        _bare(above, title)
        below.plot(levels * picture[row], color=COLOURS[0], marker="o", markersize=3, linewidth=1)
        below.set(xlabel="column (pixels)", ylim=(levels * (low - margin), levels * (high + margin)))
        below.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes[1, 0].set_ylabel("grey level" if levels == 255 else "value")
    return fig


# ---------------------------------------------------------------------------------------------------- kernels


@house_style
def draw_pixel_shuffle(maps: ArrayLike, picture: ArrayLike) -> Figure:
    """Where pixel shuffle puts each value: the maps a convolution computed, and the picture laid out of them.

    Args:
        maps: (scale**2, h, w) small whole numbers, best all different.
        picture: (h * scale, w * scale), the same numbers after the shuffle.
    """
    maps, picture = _array(maps), _array(picture)
    scale = picture.shape[0] // maps.shape[1]
    tints = sns.color_palette("blend:#f6d9a8,#7fb8da,#e5b8d3,#a9d8b8", len(maps))
    tall = picture.shape[0] + 1.0
    fig, axes = _panels(1, 2, height=WIDTH / 2 * (tall + 1.2) / (picture.shape[1] + 1.5) * 0.95)
    left, right = axes[0]
    for channel, values in enumerate(maps):
        h, w = values.shape
        top, start = channel // scale * (h + 0.9), channel % scale * (w + 0.5)
        left.text(start + w / 2, top - 0.12, f"map {channel}", ha="center", va="bottom", fontsize=9)
        _numbered_cells(left, values, top, start, lambda row, column, c=channel: tints[c])
    _numbered_cells(right, picture, 0, 0, lambda row, column: tints[row % scale * scale + column % scale])
    _cells_frame(left, scale * (maps.shape[1] + 0.9) - 0.9, scale * (maps.shape[2] + 0.5) - 0.5)
    _cells_frame(right, *picture.shape)
    right.set_title(f"after the shuffle: 1 x {picture.shape[0]} x {picture.shape[1]}")
    left.set_title(f"{len(maps)} maps of {maps.shape[1]} x {maps.shape[2]}")
    return fig


@house_style
def draw_phase_images(
    phases: ArrayLike,
    *,
    limit: float | None = None,
    titles: Sequence[str] | None = None,
    row_names: Sequence[str] | None = None,
    label: str = "weight",
    width: float = WIDTH,
) -> Figure:
    """Grid of tiny images of a sub-pixel convolution's kernel, all on one colour scale centred on zero.

    Args:
        phases: (rows, columns, scale, scale), as `kernels.phase_images` gives for chosen axes.
        limit: colour scale from -limit to limit; default the largest size of a value. Give it to compare figures.
        titles, row_names: names of the columns and rows.
        label: what the colours mean, with its unit.
    """
    phases = _array(phases)
    rows = [list(row) for row in phases]
    names = [list(titles or [""] * phases.shape[1])] + [[""] * phases.shape[1]] * (len(rows) - 1)
    limit = limit or float(np.abs(phases).max()) or 1.0
    fig, _ = _tiles(
        rows, titles=names, row_names=row_names, limits=(-limit, limit), cmap=DIVERGING, label=label, width=width
    )
    return fig


@house_style
def draw_kernel_field(
    fields: Mapping[str, ArrayLike],
    *,
    each: bool = True,
    titles: Sequence[str] | None = None,
    label: str = "weight, each column scaled to [-1, 1]",
) -> Figure:
    """The same kernels at several scales, one row per scale: do they draw one picture at several resolutions?

    Args:
        fields: row name -> (n, scale, scale), the same n kernels in each row.
        each: divide every column by its largest size in any row, so that faint kernels can be seen too.
        titles: names of the n columns.
    """
    rows = [_array(field) for field in fields.values()]
    largest = np.max([np.abs(row).max(axis=(1, 2)) for row in rows], axis=0)  # (n,)
    divisor = np.where(largest == 0, 1, largest) if each else np.ones_like(largest)
    limit = 1.0 if each else float(largest.max()) or 1.0
    tiles = [list(row / divisor[:, None, None]) for row in rows]
    names = [list(titles or [""] * len(largest))] + [[""] * len(largest)] * (len(rows) - 1)
    fig, _ = _tiles(
        tiles, titles=names, row_names=list(fields), limits=(-limit, limit), cmap=DIVERGING, label=label, width=WIDTH
    )
    return fig


# ---------------------------------------------------------------------------------------------------- curves


@house_style
def draw_resize_kernel(
    distance: ArrayLike, curves: Mapping[str, ArrayLike], taps: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None
) -> Figure:
    """Weight of an input pixel against its distance from the output pixel's centre, a curve per scale.

    Args:
        distance: (n,) in input pixels.
        curves: name -> (n,) weights.
        taps: name of a curve -> (distances, weights) of the pixels one output pixel really sums, drawn as dots.
    """
    fig, axes = _panels(height=2.9)
    ax = axes[0, 0]
    _lines(ax, {name: (distance, values) for name, values in curves.items()}, markers=False)
    for name, (x, y) in (taps or {}).items():
        number = list(curves).index(name)
        ax.plot(_array(x), _array(y), MARKERS[number], color=COLOURS[number], label=f"{name}: pixels summed")
    ax.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    ax.set(xlabel="distance from the output pixel's centre (input pixels)", ylabel="weight")
    ax.legend(loc="upper right")
    return fig


@house_style
def draw_spectrum(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    marks: Mapping[str, float] | None = None,
    ylabel: str = "power (a.u.)",
    log: bool = True,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Radial spectra: a quantity per spatial frequency.

    Args:
        curves: name -> (frequency in cycles per pixel, values).
        bands: name of a curve -> (low, high), an interval around it.
        marks: text -> frequency of a vertical line, such as the finest frequency an LR picture holds.
        log: vertical axis in powers of ten.
        limits: of the vertical axis, to compare figures.
    """
    fig, axes = _panels(height=3.1)
    ax = axes[0, 0]
    _lines(ax, curves, markers=False)
    for name, (low, high) in (bands or {}).items():
        colour = COLOURS[list(curves).index(name) % len(COLOURS)]
        ax.fill_between(_array(curves[name][0]), _array(low), _array(high), color=colour, alpha=0.2, linewidth=0)
    if log:
        ax.set_yscale("log")
    for text, frequency in (marks or {}).items():
        ax.axvline(frequency, color=INK, linewidth=0.8, linestyle=":")
        ax.annotate(text, (frequency, 1), (3, -3), xycoords=("data", "axes fraction"), textcoords="offset points",
                    va="top", rotation=90, fontsize=SMALLEST)  # fmt: skip
    ax.set(xlabel="spatial frequency (cycles per pixel)", ylabel=ylabel, ylim=limits)
    ax.set_xlim(left=0)
    ax.legend(loc="best")
    return fig


@house_style
def draw_training_curve(log: pd.DataFrame, earlier: pd.DataFrame | None = None, *, title: str = "") -> Figure:
    """Loss and learning rate against steps, with an earlier run behind it.

    Args:
        log: columns step, loss, learning_rate: the rows of a run's log.
        earlier: the same of another run, drawn grey.
    """
    fig, axes = _panels(2, 1, height=3.6, height_ratios=[2.4, 1], sharex=True)
    above, below = axes[:, 0]
    runs = [(earlier, FAINT, "--", "earlier run")] if earlier is not None and len(earlier) else []
    for rows, colour, dash, name in [*runs, (log, COLOURS[0], "-", "this run")]:
        above.plot(rows["step"], rows["loss"], color=colour, linestyle=dash, label=name)
        below.plot(rows["step"], rows["learning_rate"], color=colour, linestyle=dash)
    above.set(yscale="log", ylabel="loss", title=title)
    above.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    below.set(xlabel="optimiser step", ylabel="learning rate", ylim=(0, None))
    below.ticklabel_format(axis="y", style="sci", scilimits=(-3, -3), useMathText=True)
    if runs:
        above.legend(loc="upper right")
    return fig


# ---------------------------------------------------------------------------------------------------- scores


@house_style
def draw_protocol_bars(table: pd.DataFrame, standard: str) -> Figure:
    """How far each way of scoring moves the number from the standard one.

    Args:
        table: index: names of protocols, `standard` among them; columns psnr (dB) and ssim.
        standard: the row the others are compared with.
    """
    fig, axes = _panels(1, 2, height=0.9 + 0.34 * len(table), sharey=True)
    for ax, column, unit, digits in zip(axes[0], ("psnr", "ssim"), ("dB", ""), (2, 4), strict=True):
        base = table.loc[standard, column]
        change = table[column] - base
        ax.barh(range(len(table)), change, color=[COLOURS[1] if v < 0 else COLOURS[0] for v in change], height=0.6)
        for y, (name, value) in enumerate(change.items()):
            text = f"{base:.{digits}f} {unit}".strip() if name == standard else f"{value:+.{digits}f}"
            side = -1 if value < 0 else 1
            ax.annotate(text, (value, y), (4 * side, 0), textcoords="offset points", va="center",
                        ha="left" if side > 0 else "right", fontsize=9)  # fmt: skip
        reach = max(change.abs().max(), 10.0**-digits)
        ax.set_xlim(min(change.min(), 0) - 0.45 * reach, max(change.max(), 0) + 0.45 * reach)
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_xlabel(f"change of {column.upper()}" + (f" ({unit})" if unit else " (no unit)"))
    axes[0, 0].set_yticks(range(len(table)), table.index)
    axes[0, 0].invert_yaxis()
    return fig


@house_style
def draw_intervals(
    table: pd.DataFrame, *, xlabel: str, reference: float | None = 0.0, limits: tuple[float, float] | None = None
) -> Figure:
    """Points with their intervals, one line of text each, read from top to bottom.

    Args:
        table: columns name, mean, low, high and, to tell series apart on one line, group.
        xlabel: what is measured, with its unit.
        reference: vertical line that means "nothing"; None draws none.
        limits: of the horizontal axis, to compare figures.
    """
    names = list(dict.fromkeys(table["name"]))
    groups = list(dict.fromkeys(table["group"])) if "group" in table else [""]
    fig, axes = _panels(height=0.9 + len(names) * max(0.3, 0.17 * len(groups)) + (0.3 if len(groups) > 1 else 0))
    ax = axes[0, 0]
    if reference is not None:
        ax.axvline(reference, color=INK, linewidth=0.8)
    for number, group in enumerate(groups):
        rows = table[table["group"] == group] if "group" in table else table
        y = [names.index(name) + 0.7 * ((number + 0.5) / len(groups) - 0.5) for name in rows["name"]]
        reach = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
        ax.errorbar(rows["mean"], y, xerr=reach, fmt=MARKERS[number % len(MARKERS)], capsize=3, label=group,
                    color=COLOURS[number % len(COLOURS)])  # fmt: skip
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel=xlabel, ylim=(len(names) - 0.4, -0.6), xlim=limits)
    ax.grid(axis="x")
    if len(groups) > 1:
        fig.legend(loc="outside upper center", ncols=min(len(groups), 5))
    return fig


@house_style
def draw_bars_with_intervals(
    table: pd.DataFrame, *, ylabel: str, limits: tuple[float, float] | None = None, digits: int = 2
) -> Figure:
    """Bars from zero with their intervals and values.

    Args:
        table: columns name, mean, low, high and, for bars side by side, group.
        ylabel: what is measured, with its unit.
        limits: of the vertical axis, to compare figures.
        digits: decimals written above the bars.
    """
    names = list(dict.fromkeys(table["name"]))
    groups = list(dict.fromkeys(table["group"])) if "group" in table else [""]
    fig, axes = _panels(height=3.2)
    ax, bar = axes[0, 0], 0.8 / len(groups)
    for number, group in enumerate(groups):
        rows = table[table["group"] == group] if "group" in table else table
        x = np.array([names.index(name) for name in rows["name"]]) + bar * (number + 0.5) - 0.4
        reach = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
        ax.bar(x, rows["mean"], 0.92 * bar, yerr=reach, capsize=3, label=group, color=COLOURS[number % len(COLOURS)],
               hatch=("", "//", "..", "xx", "\\\\")[number % 5], edgecolor="white", ecolor=INK)  # fmt: skip
        for place, row in zip(x, rows.itertuples(), strict=True):
            top = row.high if row.mean >= 0 else row.low
            ax.annotate(f"{row.mean:.{digits}f}", (place, top), (0, 3 if row.mean >= 0 else -3), ha="center",
                        va="bottom" if row.mean >= 0 else "top", textcoords="offset points", fontsize=SMALLEST)  # fmt: skip
    ax.axhline(0, color=INK, linewidth=0.8)
    ax.set_xticks(range(len(names)), names)
    ax.margins(y=0.12)
    ax.set(ylabel=ylabel, ylim=limits)
    if len(groups) > 1:
        fig.legend(loc="outside upper center", ncols=min(len(groups), 5))
    return fig


@house_style
def draw_matrix(
    matrices: Mapping[str, ArrayLike],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    xlabel: str,
    ylabel: str,
    label: str = "linear CKA",
    limits: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Similarity of every row with every column, one panel per matrix, on one fixed colour scale.

    Args:
        matrices: title -> (rows, columns); NaN leaves a hatched hole.
        rows, columns: names of what is compared, such as layers.
        xlabel, ylabel: what the columns and rows are.
        label: what is measured.
        limits: of the colours.
    """
    fig, axes = _panels(1, len(matrices), height=0.9 + 0.8 * WIDTH / max(len(matrices), 2), sharey=True)
    cmap = mpl.colormaps[SEQUENTIAL].with_extremes(bad="none")
    for ax, (title, matrix) in zip(axes[0], matrices.items(), strict=True):
        values = _array(matrix)
        ax.patch.set(hatch="////", edgecolor=FAINT)
        image = ax.imshow(values, cmap=cmap, vmin=limits[0], vmax=limits[1])
        ax.set_xticks(range(len(columns)), columns, rotation=90)
        ax.set_yticks(range(len(rows)), rows)
        ax.set(title=title, xlabel=xlabel)
        if max(values.shape) <= 6:
            for (y, x), value in np.ndenumerate(values):
                dark = (value - limits[0]) / (limits[1] - limits[0]) < 0.6
                ax.text(x, y, f"{value:.2f}", ha="center", va="center", color="white" if dark else INK, fontsize=9)
    axes[0, 0].set_ylabel(ylabel)
    fig.colorbar(image, ax=axes, label=label, shrink=0.8)
    return fig


# ---------------------------------------------------------------------------------------------------- helpers


def _array(values: ArrayLike) -> np.ndarray:
    """Any array as NumPy; a torch tensor may need gradients or lie on a GPU."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return np.asarray(values)


def _pixels(picture: ArrayLike) -> np.ndarray:
    """A picture as matplotlib wants it: (H, W, 3) in [0, 1], or (H, W) as it is."""
    pixels = _array(picture)
    if pixels.ndim == 4 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.ndim == 3 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and len(pixels) != 3):
        raise ValueError(f"a picture has shape {pixels.shape}, expected (3, H, W), (1, 3, H, W) or, grey, (H, W)")
    pixels = pixels / 255.0 if pixels.dtype == np.uint8 else pixels
    return pixels if pixels.ndim == 2 else np.clip(np.moveaxis(pixels, 0, -1), 0, 1)


def _place(picture: np.ndarray, box: Box) -> tuple[int, int, int, int]:
    """`box` in whole pixels of this picture: top, left, height, width."""
    rows, columns = picture.shape[:2]
    top, left = round(box[0] * rows), round(box[1] * columns)
    return top, left, max(1, round(box[2] * rows)), max(1, round(box[3] * columns))


def _cut(picture: np.ndarray, box: Box) -> np.ndarray:
    top, left, height, width = _place(picture, box)
    return picture[top : top + height, left : left + width]


def _mark(ax: Axes, picture: np.ndarray, box: Box) -> None:
    top, left, height, width = _place(picture, box)
    ax.add_patch(
        Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=COLOURS[1], linewidth=1.6)
    )  # imshow's pixels reach half a unit around their centre


def _panels(
    rows: int = 1, columns: int = 1, *, height: float, width: float = WIDTH, sharex: bool | str = False,
    sharey: bool | str = False, height_ratios: Sequence[float] | None = None,
) -> tuple[Figure, np.ndarray]:  # fmt: skip
    """A figure and its (rows, columns) axes, out of pyplot's hands: a notebook shows it once, and none pile up."""
    fig, axes = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained", sharex=sharex, sharey=sharey,
        height_ratios=height_ratios,
    )  # fmt: skip
    plt.close(fig)
    return fig, axes


def _bare(ax: Axes, title: str) -> None:
    ax.set(xticks=[], yticks=[], title=title)
    ax.spines[:].set_visible(False)


def _show(ax: Axes, picture: np.ndarray, title: str) -> None:
    ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
    _bare(ax, title)


def _tiles(
    rows: Sequence[Sequence[np.ndarray | None]], *, titles: Sequence[Sequence[str]], cmap: str, width: float,
    row_names: Sequence[str] | None = None, limits: tuple[float, float] = (0.0, 1.0), label: str = "",
) -> tuple[Figure, np.ndarray]:  # fmt: skip
    """Table of images on one colour scale; `label` adds its colour bar, None leaves a cell empty."""
    beside = (0.9 if label else 0.0) + (0.25 * width / WIDTH if row_names else 0.0)
    cell = (width - beside) / len(rows[0])
    heights = [cell * max(t.shape[0] / t.shape[1] for t in row if t is not None) for row in rows]
    lines = [max(title.count("\n") + bool(title) for title in row) for row in titles]
    fig, axes = _panels(len(rows), len(rows[0]), width=width, height=sum(heights) + 0.19 * sum(lines) + 0.1,
                        height_ratios=[h + 0.19 * n for h, n in zip(heights, lines, strict=True)])  # fmt: skip
    for index, ax in np.ndenumerate(axes):
        tile = rows[index[0]][index[1]]
        if tile is None:
            ax.set_axis_off()
            continue
        image = ax.imshow(tile, cmap=cmap, vmin=limits[0], vmax=limits[1])
        _bare(ax, titles[index[0]][index[1]])
    for ax, name in zip(axes[:, 0], row_names or [], strict=bool(row_names)):
        ax.set_ylabel(name)
    if label:
        fig.colorbar(image, ax=axes, label=label, shrink=0.9 if len(rows) > 1 else 1.0)
    return fig, axes


def _lines(ax: Axes, curves: Mapping[str, tuple[ArrayLike, ArrayLike]], *, markers: bool) -> None:
    """One line per curve, told apart by colour and by dash (and marker)."""
    for number, (name, (x, y)) in enumerate(curves.items()):
        ax.plot(_array(x), _array(y), color=COLOURS[number % len(COLOURS)], linestyle=DASHES[number % len(DASHES)],
                marker=MARKERS[number % len(MARKERS)] if markers else None, label=name)  # fmt: skip


def _numbered_cells(ax: Axes, values: np.ndarray, top: float, left: float, tint) -> None:
    """Squares with their numbers, the first one's corner at (left, top)."""
    for (row, column), value in np.ndenumerate(values):
        ax.add_patch(Rectangle((left + column, top + row), 1, 1, facecolor=tint(row, column), edgecolor="white"))
        ax.text(left + column + 0.5, top + row + 0.5, f"{value:g}", ha="center", va="center", fontsize=9)


def _cells_frame(ax: Axes, height: float, width: float) -> None:
    ax.set(xlim=(-0.1, width + 0.1), ylim=(height + 0.1, -0.7), aspect="equal")
    ax.set_axis_off()
