"""Drawings room: arrays in, one matplotlib `Figure` out.

Every `draw_` function takes arrays (NumPy, lists, torch tensors) that the maths rooms computed and returns a figure
that nobody has shown yet. It knows no model, loads no file and computes no score. Figures go to `runtime.Run.save`,
which writes them beside their numbers, to the last line of a notebook cell, or to `widgets.explore`.

House rules, so that two figures can be compared by eye:
* 3.5 or 7 inches wide, text of 8 points or more, every axis labelled with its unit, nothing clipped;
* colours a colour-blind reader can tell apart, and always a marker, a dash, a hatch or a name beside the colour;
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
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from srlab import panels
from srlab.panels import (
    COLOURS,
    DIVERGING,
    FAINT,
    HATCHES,
    INK,
    MARKERS,
    SEQUENTIAL,
    SMALLEST,
    WIDTH,
    Box,
    as_array,
    as_pixels,
    house_style,
)


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
    names, shown = list(pictures), [as_pixels(picture) for picture in pictures.values()]
    columns = columns or min(len(shown), 4)
    rows, titles = [], []
    for first in range(0, len(shown), columns):
        empty = [None] * (first + columns - len(shown))
        row, title = shown[first : first + columns], names[first : first + columns]
        rows.append([*row, *empty])
        titles.append(title)
        if zoom:
            rows.append([*(panels.cut(picture, zoom) for picture in row), *empty])
            titles.append([""] * columns)
    titles = [title + [""] * (columns - len(title)) for title in titles]
    fig, axes = panels.tiles(rows, titles=titles, limits=limits, width=width)
    if zoom:
        for whole, part, picture in zip(axes[::2].flat, axes[1::2].flat, shown, strict=False):
            panels.mark(whole, picture, zoom)
            part.spines[:].set(visible=True, color=COLOURS[1], linewidth=1.6)
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
        scores: name -> score of the whole result, put above its crop; names without one have none.
    """
    whole = as_pixels(hr)
    crops = {name: panels.cut(as_pixels(picture), box) for name, picture in results.items()}
    crops["true picture"] = panels.cut(whole, box)
    columns = -(-len(crops) // 2)
    aspect = crops["true picture"].shape[0] / crops["true picture"].shape[1]
    cell = 0.62 * WIDTH / columns
    layout = [["whole", *range(row * columns, (row + 1) * columns)] for row in range(2)]
    fig, axes = plt.subplot_mosaic(
        layout,
        figsize=(WIDTH, 2 * (cell * aspect + 2.2 * panels.LINE)),
        width_ratios=[0.38 * WIDTH / cell, *[1] * columns],
        layout="constrained",
    )
    plt.close(fig)
    panels.show(axes["whole"], whole, "true picture, whole")
    panels.mark(axes["whole"], whole, box)
    for index in range(2 * columns):
        ax = axes[index]
        if index >= len(crops):
            ax.set_axis_off()
            continue
        name, crop = list(crops.items())[index]
        panels.show(ax, crop, f"{name}\n{scores[name]:.2f} {unit}" if name in scores else f"{name}\n")
    return fig


@house_style
def draw_degradation(examples: Mapping[str, Mapping[str, ArrayLike]], *, width: float = WIDTH) -> Figure:
    """A table of pictures: a row per example, a column per way of shrinking it.

    Args:
        examples: row name -> column title -> picture; all rows have the same columns. Sizes may differ: each picture
            fills its cell, so that coarse pixels look coarse.
    """
    rows = [[as_pixels(picture) for picture in row.values()] for row in examples.values()]
    titles = panels.top_titles(list(next(iter(examples.values()))), len(rows), len(rows[0]))
    return panels.tiles(rows, titles=titles, row_names=list(examples), width=width)[0]


@house_style
def draw_checkerboard(
    pictures: Mapping[str, ArrayLike], *, row: int = 0, limits: tuple[float, float] | None = None
) -> Figure:
    """Grey pictures that ought to be even, each with the grey levels along one of its rows.

    Args:
        pictures: title -> grey picture (H, W) in [0, 1]. All share one grey scale and one vertical axis.
        row: row of pixels drawn below.
        limits: black and white, and the ends of the vertical axis (as 255 times that, in grey levels).
    """
    shown = {title: as_array(picture) for title, picture in pictures.items()}
    if limits is None:
        low, high = min(p.min() for p in shown.values()), max(p.max() for p in shown.values())
        margin = max(0.08 * (high - low), 0.01)
        limits = (low - margin, high + margin)
    side = min(WIDTH / len(shown), 2.6)  # inches
    fig, axes = panels.panels(2, len(shown), height=side + 1.6, height_ratios=[1.6, 1], sharey="row")
    for (above, below), (title, picture) in zip(axes.T, shown.items(), strict=True):
        panels.show(above, picture, title, limits=limits)
        below.plot(255 * picture[row], color=COLOURS[0], marker="o", markersize=3, linewidth=1)
        below.set(xlabel="column (pixels)", ylim=(255 * limits[0], 255 * limits[1]))
        below.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes[1, 0].set_ylabel("grey level")
    return fig


@house_style
def draw_pixel_shuffle(maps: ArrayLike, picture: ArrayLike) -> Figure:
    """Where pixel shuffle puts each value: the maps a convolution computed, and the picture laid out of them.

    Args:
        maps: (scale**2, h, w) small whole numbers, best all different.
        picture: (h * scale, w * scale), the same numbers after the shuffle.
    """
    maps, picture = as_array(maps), as_array(picture)
    count, h, w = maps.shape
    scale = picture.shape[0] // h
    tints = sns.color_palette("pastel", count) if count <= 10 else sns.husl_palette(count, s=0.7, l=0.8)
    down, right_by = h + 0.9, w + 0.5  # from one map to the next
    fig, [[left, right]] = panels.panels(1, 2, height=0.5 + WIDTH / 2 * down / right_by)
    for channel, values in enumerate(maps):
        top, start = channel // scale * down, channel % scale * right_by
        left.text(start + w / 2, top - 0.1, f"map {channel}", ha="center", va="bottom", fontsize=9)
        panels.numbered_cells(left, values, top, start, lambda row, column, tint=tints[channel]: tint)
    panels.numbered_cells(right, picture, 0, 0, lambda row, column: tints[row % scale * scale + column % scale])
    panels.cells_frame(left, scale * down - 0.9, scale * right_by - 0.5)
    panels.cells_frame(right, *picture.shape)
    left.set_title(f"before: {count} maps of {h} x {w}")
    right.set_title(f"after: 1 picture of {picture.shape[0]} x {picture.shape[1]}")
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
    phases = as_array(phases)
    limit = limit or float(np.abs(phases).max()) or 1.0
    rows, titles = [list(row) for row in phases], panels.top_titles(titles, *phases.shape[:2])
    look = {"limits": (-limit, limit), "cmap": DIVERGING, "label": label, "width": width}
    return panels.tiles(rows, titles=titles, row_names=row_names, **look)[0]


@house_style
def draw_kernel_field(
    fields: Mapping[str, ArrayLike],
    *,
    scaled: bool = True,
    titles: Sequence[str] | None = None,
    label: str = "weight / column's largest",
    width: float = WIDTH,
) -> Figure:
    """The same kernels at several scales, one row per scale: do they draw one picture at several resolutions?

    Args:
        fields: row name -> (n, side, side), the same n kernels in each row.
        scaled: divide every column by its largest size in any row, so that faint kernels can be seen too.
        titles: names of the n columns.
        label: what the colours mean, with its unit.
    """
    arrays = [as_array(field) for field in fields.values()]
    largest = np.max([np.abs(array).max(axis=(1, 2)) for array in arrays], axis=0)  # (n,)
    divisor = np.where(scaled & (largest > 0), largest, 1.0)
    limit = 1.0 if scaled else float(largest.max()) or 1.0
    rows = [list(array / divisor[:, None, None]) for array in arrays]
    look = {"limits": (-limit, limit), "cmap": DIVERGING, "label": label, "width": width}
    titles = panels.top_titles(titles, len(rows), len(divisor))
    return panels.tiles(rows, titles=titles, row_names=list(fields), **look)[0]


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
    fig, [[ax]] = panels.panels(height=2.9)
    ax.axhline(0, color=FAINT, linewidth=0.8)
    panels.draw_curves(ax, {name: (distance, values) for name, values in curves.items()})
    for name, (x, y) in (taps or {}).items():
        number = list(curves).index(name)
        ax.plot(as_array(x), as_array(y), MARKERS[number], color=COLOURS[number], label=f"{name}: pixels summed")
    ax.set(xlabel="distance from the output pixel's centre (input pixels)", ylabel="weight (no unit)")
    ax.legend(loc="upper right")
    return fig


@house_style
def draw_spectrum(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    marks: Mapping[str, float] | None = None,
    ylabel: str = "power (arbitrary unit)",
    log: bool = True,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Radial spectra: a quantity per spatial frequency.

    Args:
        curves: name -> (frequency in cycles per pixel, values).
        bands: name of a curve -> (low, high), an interval around it.
        marks: text -> frequency of a vertical line, such as the finest frequency an LR picture holds.
        ylabel: what is measured, with its unit.
        log: vertical axis in powers of ten.
        limits: of the vertical axis, to compare figures.
    """
    fig, [[ax]] = panels.panels(height=3.1)
    panels.draw_curves(ax, curves)
    for name, (low, high) in (bands or {}).items():
        colour = panels.curve(list(curves).index(name))["color"]
        frequency = as_array(curves[name][0])
        ax.fill_between(frequency, as_array(low), as_array(high), color=colour, alpha=0.2, linewidth=0)
    for text, frequency in (marks or {}).items():
        ax.axvline(frequency, color=INK, linewidth=0.8, linestyle=":")
        ax.text(frequency, 1.01, text, transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=SMALLEST)
    ax.set(xlabel="spatial frequency (cycles per pixel)", ylabel=ylabel, yscale="log" if log else "linear", ylim=limits)
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
    fig, [[above], [below]] = panels.panels(2, 1, height=3.6, height_ratios=[2.4, 1], sharex=True)
    runs = [("this run", log, {"color": COLOURS[0]})]
    if earlier is not None and len(earlier):
        runs.insert(0, ("earlier run", earlier, {"color": FAINT, "linestyle": "--"}))
    for name, rows, look in runs:
        above.plot(rows["step"], rows["loss"], label=name, **look)
        below.plot(rows["step"], rows["learning_rate"], **look)
    above.set(yscale="log", ylabel="loss (0 to 1 scale)", title=title)
    above.minorticks_off()
    above.yaxis.set_major_locator(MaxNLocator(6))
    below.set(xlabel="optimiser step", ylabel="learning rate", ylim=(0, None))
    below.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    for axis in (above.yaxis, below.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    if len(runs) > 1:
        above.legend(loc="upper right")
    fig.align_ylabels()
    return fig


@house_style
def draw_protocol_bars(table: pd.DataFrame, standard: str) -> Figure:
    """How far each way of scoring moves the number from the standard one.

    Args:
        table: index: names of protocols, `standard` among them; columns psnr (dB) and ssim.
        standard: the row the others are compared with.
    """
    fig, axes = panels.panels(1, 2, height=0.8 + 0.32 * len(table), sharey=True)
    for ax, column, unit, digits in zip(axes[0], ("psnr", "ssim"), (" dB", ""), (2, 4), strict=True):
        base = table.loc[standard, column]
        change = table[column] - base
        ax.barh(range(len(table)), change, color=[COLOURS[int(value < 0)] for value in change], height=0.6)
        for y, (name, value) in enumerate(change.items()):
            text = f"{base:.{digits}f}{unit}" if name == standard else f"{round(value, digits) + 0.0:+.{digits}f}"
            side, anchor = (-4, "right") if value < 0 else (4, "left")
            ax.annotate(text, (value, y), (side, 0), textcoords="offset points", va="center", ha=anchor, fontsize=9)
        reach = max(change.abs().max(), 10.0**-digits)
        ax.set_xlim(min(change.min(), 0) - 0.7 * reach, max(change.max(), 0) + 0.7 * reach)
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_xlabel(f"change of {column.upper()} ({unit.strip() or 'no unit'})")
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
    names, groups = panels.by_group(table)
    line = max(0.3, 0.17 * len(groups))  # inches
    fig, [[ax]] = panels.panels(height=0.8 + line * len(names) + 0.3 * (len(groups) > 1))
    if reference is not None:
        ax.axvline(reference, color=INK, linewidth=0.8)
    for number, (group, rows) in enumerate(groups.items()):
        y = [names.index(name) + 0.7 * ((number + 0.5) / len(groups) - 0.5) for name in rows["name"]]
        look = {"fmt": MARKERS[number % len(MARKERS)], "color": COLOURS[number % len(COLOURS)], "capsize": 3}
        ax.errorbar(rows["mean"], y, xerr=panels.whiskers(rows), label=group, **look)
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
    names, groups = panels.by_group(table)
    fig, [[ax]] = panels.panels(height=3.2)
    bar = 0.8 / len(groups)
    turn = 90 if len(names) * len(groups) > 16 else 0  # narrow bars: values stand upright, so as not to touch
    for number, (group, rows) in enumerate(groups.items()):
        x = np.array([names.index(name) for name in rows["name"]]) + bar * (number + 0.5) - 0.4
        look = {"color": COLOURS[number % len(COLOURS)], "hatch": HATCHES[number % len(HATCHES)], "edgecolor": "white"}
        ax.bar(x, rows["mean"], 0.92 * bar, yerr=panels.whiskers(rows), capsize=3, ecolor=INK, label=group, **look)
        for at, row in zip(x, rows.itertuples(), strict=True):
            end, side, anchor = (row.low, -3, "top") if row.high < 0 else (row.high, 3, "bottom")
            text = {"textcoords": "offset points", "ha": "center", "va": anchor, "fontsize": SMALLEST, "rotation": turn}
            ax.annotate(f"{round(row.mean, digits) + 0.0:.{digits}f}", (at, end), (0, side), **text)  # no "-0.00"
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
    label: str = "linear CKA (no unit)",
    limits: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Similarity of every row with every column, one panel per matrix, on one fixed colour scale.

    Args:
        matrices: title -> (rows, columns); NaN leaves a hatched hole. Up to 6 x 6, the values are written in.
        rows, columns: names of what is compared, such as layers.
        xlabel, ylabel: what the columns and the rows are.
        label: what is measured, with its unit.
        limits: of the colours.
    """
    fig, axes = panels.panels(1, len(matrices), height=1.2 + 0.8 * WIDTH / max(len(matrices), 2), sharey=True)
    holes = mpl.colormaps[SEQUENTIAL].with_extremes(bad="none")
    for ax, (title, matrix) in zip(axes[0], matrices.items(), strict=True):
        values = as_array(matrix)
        ax.patch.set(hatch="////", edgecolor=FAINT)
        image = ax.imshow(values, cmap=holes, vmin=limits[0], vmax=limits[1])
        ax.set_xticks(range(len(columns)), columns, rotation=90)
        ax.set_yticks(range(len(rows)), rows)
        ax.set(title=title, xlabel=xlabel)
        for (y, x), value in np.ndenumerate(values if max(values.shape) <= 6 else np.empty((0, 0))):
            text = "" if np.isnan(value) else f"{value:.2f}"
            ax.text(x, y, text, ha="center", va="center", fontsize=9, color=panels.ink_on(value, limits))
    axes[0, 0].set_ylabel(ylabel)
    fig.colorbar(image, ax=axes, label=label, shrink=0.8)
    return fig
