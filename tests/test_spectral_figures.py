"""Figures of notebook 06: what is drawn is what was given."""

import numpy as np
import pandas as pd
import pytest

from srlab import spectral_figures


def test_error_courses_have_a_panel_per_network_and_a_line_per_frequency():
    steps = np.array([1, 10, 100])
    lines = {str(k): (steps, np.array([1.0, 0.5, 0.1]) / k) for k in (1, 2, 3)}
    fig = spectral_figures.draw_error_courses({"a": lines, "b": lines}, ylabel="error", legend="cycles", level=0.1)
    assert [ax.get_title() for ax in fig.axes] == ["a", "b"]
    for ax in fig.axes:
        drawn = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
        np.testing.assert_allclose(drawn["2"].get_ydata(), [0.5, 0.25, 0.05])
        assert ax.get_xscale() == ax.get_yscale() == "log"
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["1", "2", "3"]


def test_times_that_never_came_are_drawn_above_the_line_that_says_so():
    times = np.array([[10.0, 100.0], [20.0, np.inf], [30.0, np.inf]])
    fig = spectral_figures.draw_times_to_learn(
        np.array([1.0, 2.0]), {"bare": times}, never=1000, xlabel="frequency", words={"bare": "rho 1"}
    )
    (ax,) = fig.axes
    assert ax.get_ylabel() == "steps to 10 % error"
    median = next(line for line in ax.lines if line.get_label() == "bare: rho 1")
    assert median.get_ydata().tolist() == [20.0, 1000.0]
    dots = np.concatenate([line.get_ydata() for line in ax.lines if line.get_linestyle() == "None"])
    assert sorted(dots) == [10, 20, 30, 100, 1000, 1000]


def test_the_axis_of_times_says_to_which_error_they_go():
    fig = spectral_figures.draw_times_to_learn(
        [1.0, 2.0], {"bare": np.ones((3, 2))}, never=10, xlabel="frequency", words={"bare": ""}, level=0.05
    )
    assert fig.axes[0].get_ylabel() == "steps to 5 % error"


def test_painted_pictures_keep_their_places():
    cells = [np.full((4, 4), value) for value in (0.1, 0.5)]
    fig = spectral_figures.draw_painted({"one": [*cells, cells[0]], "two": [None, *cells]}, ["10", "20", "true"])
    images = [ax.images[0].get_array().mean() if ax.images else None for ax in fig.axes]
    assert images == pytest.approx([0.1, 0.5, 0.1, None, 0.1, 0.5])


def test_through_shows_each_picture_above_its_octave_on_one_scale():
    names = ("true", "bicubic", "model")
    pictures = {name: np.full((20, 20), 0.2 * (n + 1)) for n, name in enumerate(names)}
    octaves = {name: np.full((20, 20), 0.1 * n - 0.1) for n, name in enumerate(names)}
    fig = spectral_figures.draw_through(pictures, octaves, {name: f"{name} said" for name in names}, frequency=0.1)
    above, below = (ax.images[0] for ax in fig.axes)
    strip = np.asarray(above.get_array())
    assert strip[:, :20].mean() == pytest.approx(0.2)
    assert strip[:, -20:].mean() == pytest.approx(0.6)
    assert below.get_clim() == pytest.approx((-0.1, 0.1))  # the true one's largest
    written = [text.get_text() for ax in fig.axes for text in ax.texts]
    assert written == ["true", "bicubic", "model", "true said", "bicubic said", "model said"]


def test_octave_effects_have_a_panel_per_part():
    rows = [
        {"part": part, "octave": n, "group": group, "mean": n / 10, "low": n / 10 - 0.1, "high": n / 10 + 0.2}
        for part in ("loss", "rep")
        for group in ("seeds", "pictures")
        for n in range(3)
    ]
    fig = spectral_figures.draw_octave_effects(pd.DataFrame(rows), ylabel="dB", octaves=["a", "b", "c"])
    assert [ax.get_title() for ax in fig.axes] == ["loss", "rep"]
    assert [label.get_text() for label in fig.axes[0].get_xticklabels()] == ["a", "b", "c"]
    assert len(fig.axes[0].containers) == 2
