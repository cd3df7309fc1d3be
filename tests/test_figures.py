"""Drawings: what is drawn is what came in, and every figure can be read: labels, units, sizes, nothing clipped."""

import inspect
from functools import cache

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from srlab import figures, panels
from srlab.resize import cubic, imresize

RNG = np.random.default_rng(0)
HR = torch.from_numpy(RNG.integers(0, 256, (3, 48, 72), dtype=np.uint8))
LR = imresize(HR, 1 / 4)
BOX = (0.25, 0.25, 0.5, 0.5)
MAPS = torch.arange(36).view(9, 2, 2)
STEPS = np.arange(10, 400, 10)
LOG = pd.DataFrame({"step": STEPS, "loss": 0.02 + 1 / STEPS, "learning_rate": 2e-3 * np.cos(STEPS / 300) ** 2})
FREQUENCY = np.linspace(0, 0.5, 30)
POWER = {"HR": (FREQUENCY, 10 ** (4 - 8 * FREQUENCY)), "bicubic": (FREQUENCY, 10 ** (4 - 12 * FREQUENCY))}
DISTANCE = torch.linspace(-4, 4, 81)
PHASES = RNG.normal(size=(3, 3, 4, 4))
PROTOCOLS = pd.DataFrame({"psnr": [28.41, 26.9, 28.44], "ssim": [0.81, 0.79, 0.8101]}, ["standard", "RGB", "no border"])
SCORES = pd.DataFrame(
    [
        {"name": name, "group": group, "mean": mean, "low": mean - 0.1, "high": mean + 0.2}
        for name in ("Set5", "Set14", "Urban100")
        for group, mean in (("x2", 0.12), ("x3", -0.05), ("x4", 0.31))
    ]
)
LAYERS = ["first convolution", "block 1", "block 2", "last convolution"]
CKA = np.array([[1, 0.5, 0.2, 0], [0.5, 1, 0.4, 0.3], [0.2, 0.4, 1, np.nan], [0, 0.3, 0.6, 1]])


def _draw_matrix():
    matrices = {"x2 and x3": CKA, "x2 and x4": CKA}
    return figures.draw_matrix(
        matrices, LAYERS, LAYERS, xlabel="layer of the x3 encoder", ylabel="layer of the x2 encoder"
    )


def _draw_resize_kernel():
    curves = {"enlarging": cubic(DISTANCE), "shrinking to 1/2": cubic(DISTANCE / 2) / 2}
    return figures.draw_resize_kernel(DISTANCE, curves, {"shrinking to 1/2": ([-0.5, 0.5], [0.4, 0.4])})


def _draw_spectrum():
    power = POWER["HR"][1]
    return figures.draw_spectrum(POWER, bands={"HR": (power / 2, power * 2)}, marks={"LR x4": 0.125})


ROWS = {"cat": {"true": HR, "small": LR}, "dog": {"true": HR, "small": LR}}
PATTERNS = {"random": np.tile([[0.4, 0.6]], (8, 4)), "equal": np.full((8, 8), 0.5)}
FIGURES = {
    "draw_pictures": lambda: figures.draw_pictures({"HR": HR, "LR x4": LR, "grey": HR[0] / 255}, zoom=BOX),
    "draw_comparison": lambda: figures.draw_comparison(HR, {"LR": LR, "bicubic": HR, "sr": HR}, BOX, {"sr": 30.1}),
    "draw_degradation": lambda: figures.draw_degradation(ROWS),
    "draw_checkerboard": lambda: figures.draw_checkerboard(PATTERNS),
    "draw_pixel_shuffle": lambda: figures.draw_pixel_shuffle(MAPS, F.pixel_shuffle(MAPS[None], 3)[0, 0]),
    "draw_phase_images": lambda: figures.draw_phase_images(PHASES, titles=["left", "same", "right"]),
    "draw_kernel_field": lambda: figures.draw_kernel_field({f"x{r}": RNG.normal(size=(5, r, r)) for r in (2, 3, 4)}),
    "draw_resize_kernel": _draw_resize_kernel,
    "draw_spectrum": _draw_spectrum,
    "draw_training_curve": lambda: figures.draw_training_curve(LOG, LOG.assign(loss=2 * LOG["loss"]), title="step 390"),
    "draw_protocol_bars": lambda: figures.draw_protocol_bars(PROTOCOLS, "standard"),
    "draw_intervals": lambda: figures.draw_intervals(SCORES, xlabel="PSNR of A minus B (dB)"),
    "draw_bars_with_intervals": lambda: figures.draw_bars_with_intervals(SCORES, ylabel="PSNR gain (dB)"),
    "draw_matrix": _draw_matrix,
}


@cache
def drawn(name):
    """One figure of each kind, laid out as on paper."""
    fig = FIGURES[name]()
    fig.draw_without_rendering()
    return fig


def texts(fig):
    found = [text for text in fig.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [text for text in found if text.axes is None or text.axes.get_visible()]


def colours_of(ax, value):
    """Colour that the first image of an axes gives to a value."""
    image = ax.images[0]
    return image.cmap(image.norm(value))


def test_every_draw_function_is_tried_here():
    names = {name for name, member in inspect.getmembers(figures, inspect.isfunction) if name.startswith("draw_")}
    assert names == set(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_can_be_read(name):
    fig = drawn(name)
    assert fig.get_figwidth() in (3.5, 7.0)
    assert min(text.get_fontsize() for text in texts(fig)) >= 8
    marks = fig.get_tightbbox()  # in inches: everything that leaves a mark
    assert min(marks.x0, marks.y0) > -0.01, "clipped at the left or below"
    assert marks.x1 < fig.get_figwidth() + 0.01, "clipped at the right"
    assert marks.y1 < fig.get_figheight() + 0.01, "clipped above"


@pytest.mark.parametrize("name", FIGURES)
def test_axes_with_numbers_say_what_the_numbers_are(name):
    fig = drawn(name)
    for ax in fig.axes:
        if not ax.axison:
            continue
        for axis, other in ((ax.xaxis, "x"), (ax.yaxis, "y")):
            labels = [label.get_text() for label in axis.get_ticklabels() if label.get_visible()]
            numbers = [label for label in labels if label.strip() and label.replace("−", "").replace(".", "").isdigit()]
            if numbers:
                assert axis.get_label_text(), f"{other} axis of {ax.get_title()!r} has numbers without a label"


@pytest.mark.parametrize("name", FIGURES)
def test_figures_leave_nothing_behind(name):
    before = dict(mpl.rcParams)
    FIGURES[name]()
    assert not plt.get_fignums(), "an open figure would be shown twice in a notebook"
    assert dict(mpl.rcParams) == before


def test_pictures_are_shown_as_they_are():
    fig = figures.draw_pictures({"true": HR})
    np.testing.assert_allclose(fig.axes[0].images[0].get_array(), HR.permute(1, 2, 0) / 255, atol=1e-7)
    assert fig.axes[0].images[0].get_interpolation() == "nearest", "smooth pictures would hide the pixels"


def test_eight_bit_and_float_pictures_look_the_same():
    arrays = [figures.draw_pictures({"p": picture}).axes[0].images[0].get_array() for picture in (HR, HR[None] / 255)]
    np.testing.assert_allclose(arrays[0], arrays[1], atol=1e-6)


def test_zoom_shows_the_same_place_in_small_and_large_pictures():
    marked = torch.zeros(3, 48, 48)
    marked[:, 12:24, 24:36] = 1  # the box below, exactly
    fig = figures.draw_pictures({"HR": marked, "LR": imresize(marked, 1 / 4)[:, :, :]}, zoom=(0.25, 0.5, 0.25, 0.25))
    below = [ax.images[0].get_array() for ax in fig.axes[2:]]
    assert below[0].shape[:2] == (12, 12)
    assert below[1].shape[:2] == (3, 3)
    assert below[0].min() == 1
    assert below[1][1, 1].min() > 0.9


def test_channels_last_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="channels last"):
        figures.draw_pictures({"p": HR.permute(1, 2, 0)})


def test_shuffled_numbers_keep_the_colour_of_their_map():
    fig = figures.draw_pixel_shuffle(MAPS, F.pixel_shuffle(MAPS[None], 3)[0, 0])
    colours = []
    for ax in fig.axes:
        cells = {}
        for text in ax.texts:
            x, y = text.get_position()
            if text.get_text().isdigit():
                cells[text.get_text()] = next(
                    p.get_facecolor() for p in ax.patches if p.contains_point(ax.transData.transform((x, y)))
                )
        colours.append(cells)
    assert len(colours[0]) == 36
    assert colours[0] == colours[1]


def test_signed_maps_are_centred_on_zero():
    for fig in (figures.draw_phase_images(np.arange(36).reshape(3, 3, 2, 2) / 10), FIGURES["draw_kernel_field"]()):
        low, high = fig.axes[0].images[0].get_clim()
        assert low == -high
        assert np.ptp(to_rgb(colours_of(fig.axes[0], 0.0)[:3])) < 0.05, "zero is grey or white"


def test_columns_of_a_kernel_field_share_a_scale_over_the_rows():
    big, small = np.full((1, 2, 2), 4.0), np.full((1, 3, 3), 1.0)
    fig = figures.draw_kernel_field({"x2": big, "x3": small})
    assert [ax.images[0].get_array().max() for ax in fig.axes[:2]] == [1.0, 0.25]


def test_similarities_have_fixed_colours():
    for values in (CKA, CKA / 2):
        fig = figures.draw_matrix({"pair": values}, LAYERS, LAYERS, xlabel="a", ylabel="b")
        assert fig.axes[0].images[0].get_clim() == (0, 1)


def test_holes_stay_holes():
    fig = FIGURES["draw_matrix"]()
    assert colours_of(fig.axes[0], np.nan)[3] == 0, "a missing value must not look like a small one"
    assert "nan" not in " ".join(text.get_text() for text in texts(fig))


def test_intervals_reach_from_low_to_high():
    fig = figures.draw_intervals(SCORES[SCORES["group"] == "x2"].drop(columns="group"), xlabel="dB", limits=(-1, 1))
    ends = fig.axes[0].collections[0].get_segments()
    np.testing.assert_allclose([[s[0][0], s[1][0]] for s in ends], [[0.02, 0.32]] * 3)
    assert fig.axes[0].get_xlim() == (-1, 1)


def test_series_are_told_apart_without_colour():
    lines = FIGURES["draw_spectrum"]().axes[0].get_lines()[: len(POWER)]
    assert len({line.get_linestyle() for line in lines}) == len(POWER)
    bars = FIGURES["draw_bars_with_intervals"]().axes[0].patches
    assert len({bar.get_hatch() for bar in bars}) == 3
    assert len(set(panels.MARKERS)) == len(panels.MARKERS)


def test_protocols_are_changes_from_the_standard():
    fig = FIGURES["draw_protocol_bars"]()
    np.testing.assert_allclose([bar.get_width() for bar in fig.axes[0].patches], [0, 26.9 - 28.41, 0.03], atol=1e-9)


def test_text_on_a_colour_can_be_read():
    assert panels.ink_on(0.0, (0, 1)) == "white"  # dark blue
    assert panels.ink_on(1.0, (0, 1)) == panels.INK  # yellow
