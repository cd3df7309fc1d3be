"""Panels room: what drawings are made of, the house style, its colours, axes and tables of pictures.

Below `figures.py`, which holds the `draw_` functions. Arrays and matplotlib axes in, axes out; knows no subject.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

WIDTH, HALF_WIDTH = 7.0, 3.5  # inches: a page, a column
SMALLEST = 8  # points
COLOURS = sns.color_palette("colorblind")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1)))
HATCHES = ("", "//", "..", "xx", "\\\\")
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
}
house_style = mpl.rc_context(HOUSE)
"""Decorator of every `draw_` function: the house style inside, the caller's own settings afterwards."""

Box = tuple[float, float, float, float]
"""top, left, height, width as fractions of a picture, so that it means the same place in LR and HR"""

LINE = 0.19  # inches that a line of a title takes


def as_array(values: ArrayLike) -> np.ndarray:
    """Any array as NumPy; a torch tensor may carry gradients or lie on a GPU."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return np.asarray(values)


def as_pixels(picture: ArrayLike) -> np.ndarray:
    """A picture as matplotlib wants it.

    Args:
        picture: (3, H, W), (1, 3, H, W) or, grey, (H, W) or (1, H, W); uint8, or float in [0, 1].

    Returns:
        (H, W, 3) clipped to [0, 1], or grey (H, W) as it is.

    Raises:
        ValueError: another shape.
    """
    pixels = as_array(picture)
    while pixels.ndim > 2 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and len(pixels) != 3):
        raise ValueError(
            f"a picture has shape {as_array(picture).shape}, expected (3, H, W), (1, 3, H, W) or, grey, (H, W): "
            "are the channels last, or is it a batch?"
        )
    pixels = pixels / 255.0 if pixels.dtype == np.uint8 else pixels
    return pixels if pixels.ndim == 2 else np.clip(np.moveaxis(pixels, 0, -1), 0, 1)


def place(pixels: np.ndarray, box: Box) -> tuple[int, int, int, int]:
    """`box` in whole pixels of this picture: top, left, height, width."""
    rows, columns = pixels.shape[:2]
    return (
        round(box[0] * rows),
        round(box[1] * columns),
        max(1, round(box[2] * rows)),
        max(1, round(box[3] * columns)),
    )


def cut(pixels: np.ndarray, box: Box) -> np.ndarray:
    """The part of a picture inside `box`."""
    top, left, height, width = place(pixels, box)
    return pixels[top : top + height, left : left + width]


def mark(ax: Axes, pixels: np.ndarray, box: Box) -> None:
    """Draw the frame of `box` on a picture, rimmed so that it shows on any colour."""
    top, left, height, width = place(pixels, box)
    corner = (left - 0.5, top - 0.5)  # pixels reach half a unit around their centres
    for colour, linewidth in (("white", 3.0), (COLOURS[1], 1.6)):
        ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=linewidth))


def panels(
    rows: int = 1,
    columns: int = 1,
    *,
    height: float,
    width: float = WIDTH,
    sharex: bool | str = False,
    sharey: bool | str = False,
    height_ratios: Sequence[float] | None = None,
) -> tuple[Figure, np.ndarray]:
    """A figure and its (rows, columns) axes, out of pyplot's hands: a notebook shows it once, and none pile up."""
    shape = {"nrows": rows, "ncols": columns, "squeeze": False, "sharex": sharex, "sharey": sharey}
    fig, axes = plt.subplots(**shape, figsize=(width, height), height_ratios=height_ratios, layout="constrained")
    plt.close(fig)
    return fig, axes


def show(ax: Axes, pixels: np.ndarray, title: str = "", *, cmap: str = "gray", limits: tuple = (0.0, 1.0)):
    """An image without ticks under its title; returns what a colour bar needs."""
    image = ax.imshow(pixels, cmap=cmap, vmin=limits[0], vmax=limits[1])
    ax.set(xticks=[], yticks=[], title=title, anchor="N")
    ax.spines[:].set_visible(False)
    return image


def tiles(
    rows: Sequence[Sequence[np.ndarray | None]],
    *,
    titles: Sequence[Sequence[str]],
    cmap: str = "gray",
    width: float = WIDTH,
    row_names: Sequence[str] | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
    label: str = "",
) -> tuple[Figure, np.ndarray]:
    """Table of images on one colour scale.

    Args:
        rows: images by row, all rows equally long; None leaves a cell empty.
        titles: one above each image; "" for none.
        row_names: one to the left of each row.
        label: what the colours mean, with its unit; gives a colour bar.
    """
    beside = (0.9 if label else 0.0) + (0.3 if row_names else 0.0)
    cell = (width - beside) / len(rows[0])
    heights = [cell * max(t.shape[0] / t.shape[1] for t in row if t is not None) for row in rows]
    above = [LINE * max(title.count("\n") + bool(title) for title in row) + 0.05 for row in titles]
    ratios = [a + b for a, b in zip(heights, above, strict=True)]
    fig, axes = panels(len(rows), len(rows[0]), width=width, height=max(sum(ratios) + 0.1, 1.6), height_ratios=ratios)
    for (row, column), ax in np.ndenumerate(axes):
        if rows[row][column] is None:
            ax.set_axis_off()
        else:
            image = show(ax, rows[row][column], titles[row][column], cmap=cmap, limits=limits)
    for ax, name in zip(axes[:, 0], row_names or [], strict=bool(row_names)):
        ax.set_ylabel(name)
    if label:
        fig.colorbar(image, ax=axes, label=label)
    return fig, axes


def top_titles(titles: Sequence[str] | None, rows: int, columns: int) -> list[list[str]]:
    """Titles for `tiles` above the first row only."""
    return [list(titles or [""] * columns), *([[""] * columns] * (rows - 1))]


def curve(number: int) -> dict:
    """Look of curve `number`: told apart by colour and by dash."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}


def draw_curves(ax: Axes, curves: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> None:
    """One line per name -> (x, y)."""
    for number, (name, (x, y)) in enumerate(curves.items()):
        ax.plot(as_array(x), as_array(y), label=name, **curve(number))


def by_group(table: pd.DataFrame) -> tuple[list[str], dict[str, pd.DataFrame]]:
    """Names in order of appearance, and the rows of each group (one group called "" without such a column)."""
    names = list(dict.fromkeys(table["name"]))
    if "group" not in table:
        return names, {"": table}
    return names, {str(group): rows for group, rows in table.groupby("group", sort=False)}


def whiskers(rows: pd.DataFrame) -> list[pd.Series]:
    """Lengths of the interval below and above each mean."""
    return [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]


def numbered_cells(
    ax: Axes, values: np.ndarray, top: float, left: float, tint: Callable[[int, int], tuple[float, float, float]]
) -> None:
    """Squares with their numbers, the first one's corner at (left, top), each in the colour of its row and column."""
    for (row, column), value in np.ndenumerate(values):
        ax.add_patch(Rectangle((left + column, top + row), 1, 1, facecolor=tint(row, column), edgecolor="white"))
        ax.text(left + column + 0.5, top + row + 0.5, f"{value:g}", ha="center", va="center", fontsize=9)


def cells_frame(ax: Axes, height: float, width: float) -> None:
    """Axes of a diagram made of unit squares, row 0 on top."""
    ax.set(xlim=(-0.1, width + 0.1), ylim=(height + 0.1, -0.8), aspect="equal", anchor="N")
    ax.set_axis_off()


def ink_on(value: float, limits: tuple[float, float], cmap: str | Colormap = SEQUENTIAL) -> str:
    """Colour of a text that can be read on the colour of `value`."""
    share = (value - limits[0]) / (limits[1] - limits[0])
    red, green, blue, _ = mpl.colormaps.get_cmap(cmap)(min(max(share, 0.0), 1.0))
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else INK
