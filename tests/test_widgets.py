"""Widgets: what is shown follows the controls, errors are seen, and a page without a kernel keeps the pictures."""

import base64
import gc
import io
import re

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from srlab import figures, widgets

PICTURE = torch.rand(3, 24, 36, generator=torch.Generator().manual_seed(0))


def draw_level(level):
    if level < 0:
        raise ValueError(f"level is {level}, expected 0 or more")
    return figures.draw_pictures({f"level {level:g}": torch.full((3, 8, 8), level)}, width=3.5)


def page_of(widget):
    return widget.children[1].outputs[0]["data"]["text/html"]


def pictures_in(page):
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB")) / 255 for source in sources]


def level_shown(widget):
    """Brightness in the middle of the picture that is shown."""
    picture = pictures_in(page_of(widget))[0]
    return picture[picture.shape[0] * 2 // 3, picture.shape[1] // 2].mean()


@pytest.fixture
def level():
    return ipywidgets.FloatSlider(0.25, min=-1, max=1, step=0.25, description="grey level")


def as_for_a_user(monkeypatch):
    """Take away what says that a test is running; pytest sets it anew when the test begins."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")


def test_the_figure_follows_the_control(level):
    widget = widgets.explore(draw_level, level=level)
    assert level_shown(widget) == pytest.approx(0.25, abs=0.01)
    level.value = 0.75
    assert level_shown(widget) == pytest.approx(0.75, abs=0.01)


def test_one_drawing_per_release(level):
    assert level.continuous_update
    widgets.explore(draw_level, level=level)
    assert not level.continuous_update


def test_no_full_garbage_collection_falls_into_a_drawing():
    collecting = []
    knob = ipywidgets.IntSlider()
    widgets.explore(lambda level: collecting.append(gc.isenabled()) or draw_level(level), level=knob)
    knob.value = 3
    assert collecting[-1] is False
    assert gc.isenabled()


def test_no_figure_is_left_open(level):
    widgets.explore(draw_level, level=level)
    for value in (0.0, 0.5, 1.0):
        level.value = value
    assert not plt.get_fignums()


def test_the_picture_is_described_in_words(level):
    widget = widgets.explore(draw_level, level=level)
    level.value = 0.5
    assert re.search(r'alt="Figure for grey level 0.5. level 0.5"', page_of(widget))


def test_controls_without_a_name_get_that_of_their_argument():
    slider = ipywidgets.FloatSlider(0.5, min=0, max=1)
    widgets.explore(draw_level, level=slider)
    assert slider.description == "level"


def test_an_error_in_the_first_drawing_is_the_error_of_the_cell(level, monkeypatch):
    as_for_a_user(monkeypatch)
    level.value = -1
    with pytest.raises(ValueError, match="expected 0 or more"):
        widgets.explore(draw_level, level=level)


def test_a_later_error_is_shown_in_the_widget_and_goes_away(level, monkeypatch):
    as_for_a_user(monkeypatch)
    widget = widgets.explore(draw_level, level=level)
    level.value = -1
    assert 'class="srlab-error"' in page_of(widget)
    assert "grey level -1." in page_of(widget)
    assert "expected 0 or more" in page_of(widget)
    level.value = 0.5
    assert level_shown(widget) == pytest.approx(0.5, abs=0.01)


def test_a_later_error_fails_a_test(level):
    widget = widgets.explore(draw_level, level=level)
    with pytest.raises(ValueError, match="expected 0 or more"):
        level.value = -1
    assert "srlab-error" in page_of(widget)


def test_errors_cannot_smuggle_html_into_the_page(level, monkeypatch):
    as_for_a_user(monkeypatch)

    def draw(level):
        if level == 1:
            raise ValueError("<script>alert(1)</script>")
        return draw_level(level)

    widget = widgets.explore(draw, level=level)
    level.value = 1
    assert "<script>" not in page_of(widget)


def test_a_drawing_without_return_is_named(level):
    with pytest.raises(TypeError, match="return"):
        widgets.explore(lambda level: None, level=level)


# compare


def test_both_pictures_are_in_the_page_as_they_are():
    after = 1 - PICTURE
    shown = pictures_in(widgets.compare(PICTURE, after).data)
    assert len(shown) == 2
    np.testing.assert_allclose(shown[0], PICTURE.permute(1, 2, 0), atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(shown[1], after.permute(1, 2, 0), atol=0.5 / 255 + 1e-6)


def test_the_page_needs_nothing_from_outside():
    page = widgets.compare(PICTURE, PICTURE, truth=PICTURE).data
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page, "exported pages and cautious browsers drop scripts"


def test_pictures_have_words_and_controls_have_names():
    page = widgets.compare(PICTURE, PICTURE, ("bicubic", "model <1>"), truth=PICTURE, alt="a cat").data
    assert re.findall(r'alt="([^"]+)"', page) == [
        "bicubic. a cat",
        "model &lt;1&gt;. a cat",
        "bicubic. error map. a cat",
        "model &lt;1&gt;. error map. a cat",
    ]
    for tag in re.findall(r"<input[^>]*>", page):
        before = page[: page.index(tag)]
        assert before.rfind("<label") > before.rfind("</label>"), f"no label around {tag}"
        assert "data-lm-suppress-shortcuts" in tag, "JupyterLab would take its keys away"


def test_error_maps_are_dark_where_right_and_bright_where_wrong():
    wrong = PICTURE.clone()
    wrong[:, :, :18] = (wrong[:, :, :18] + 0.5) % 1
    before, _ = pictures_in(widgets.compare(wrong, PICTURE, truth=PICTURE).data)[2:]
    assert before[:, 20:].mean() < 0.2
    assert before[:, :16, :2].mean() > 0.8  # yellow: red and green


def test_pictures_of_two_sizes_are_refused_with_a_way_out():
    with pytest.raises(ValueError, match=r"\(24, 36, 3\), \(12, 18, 3\).*imresize"):
        widgets.compare(PICTURE, PICTURE[:, ::2, ::2])


# training


def row(step):
    return {"step": step, "loss": 1 / step, "learning_rate": 1e-3}


def test_a_live_plot_keeps_the_rows_and_ends_with_all_of_them(capsys):
    with widgets.LivePlot(total=30, every=1e9) as live:
        for step in (10, 20, 30):
            live(row(step))
    pd.testing.assert_frame_equal(live.log, pd.DataFrame([row(10), row(20), row(30)]))
    line = live.figure().axes[0].get_lines()[0]
    assert line.get_xdata().tolist() == [10, 20, 30]
    assert live.figure().axes[0].get_title() == "step 30 of 30, loss 0.0333"
    assert not plt.get_fignums()


def test_a_live_plot_draws_now_and_then_only(monkeypatch):
    drawn = []
    monkeypatch.setattr(widgets, "display", lambda *args, **kwargs: None)
    live = widgets.LivePlot(lambda log, earlier: drawn.append(len(log)) or draw_level(0.5), every=1e9)
    for step in (1, 2, 3):
        live(row(step))
    assert drawn == [1]


def count_to(end, state):
    """A training that counts, one number per row, and goes on where it stopped."""

    def work(on_log, should_stop):
        while state["step"] < end and not should_stop():
            state["step"] += 1
            on_log(row(state["step"]))
            state["steps_to_pause"].release()
            state["allowed"].acquire(timeout=10)
        return state["step"]

    return work


def test_a_pausable_training_stops_after_a_step_and_goes_on_from_there():
    import threading

    state = {"step": 0, "steps_to_pause": threading.Semaphore(0), "allowed": threading.Semaphore(0)}
    live = widgets.LivePlot(lambda log, earlier: draw_level(0.5))
    training = widgets.Pausable(count_to(5, state), live)
    state["steps_to_pause"].acquire(timeout=10)
    training._stop.set()
    state["allowed"].release()
    training.pause()
    assert not training.running
    assert (state["step"], training.button.description) == (1, "go on")
    for _ in range(9):
        state["allowed"].release()
    assert training.result() == 5
    assert [r["step"] for r in live.rows] == [1, 2, 3, 4, 5]
    assert training.button.disabled


def test_an_error_in_a_pausable_training_is_the_waiting_cells_error():
    def work(on_log, should_stop):
        raise ValueError("no pictures")

    with pytest.raises(ValueError, match="no pictures"):
        widgets.Pausable(work, widgets.LivePlot()).result()


def test_a_failed_training_says_so_below_its_button_and_keeps_its_curve():
    def work(on_log, should_stop):
        on_log(row(1))
        raise ValueError("no <pictures>")

    training = widgets.Pausable(work, widgets.LivePlot(lambda log, earlier: draw_level(0.5)))
    training._thread.join()
    assert (training.button.description, training.button.disabled) == ("failed", True)
    _, trouble, picture = training.widget.children
    assert "The training failed.</strong> ValueError: no &lt;pictures&gt;" in trouble.outputs[0]["data"]["text/html"]
    assert "<img" in picture.outputs[0]["data"]["text/html"]


def test_an_error_is_forgotten_once_the_training_went_on():
    starts = []

    def work(on_log, should_stop):
        starts.append(1)
        while len(starts) == 1 and not should_stop():
            pass
        if len(starts) == 1:
            raise OSError("disk full")
        return "trained"

    training = widgets.Pausable(work, widgets.LivePlot())
    training.pause()
    assert training.button.description == "go on"
    assert "disk full" in training._trouble.outputs[0]["data"]["text/html"]
    training.button.click()
    assert training.result() == "trained"
    assert training.button.description == "done"
    assert not training._trouble.outputs


def test_a_curve_that_cannot_be_drawn_is_an_error_of_the_training():
    def draw(log, earlier):
        raise ValueError("nothing to draw")

    training = widgets.Pausable(lambda on_log, should_stop: on_log(row(1)), widgets.LivePlot(draw))
    with pytest.raises(ValueError, match="nothing to draw"):
        training.result()
    assert training.button.description == "failed"


def test_an_empty_live_plot_says_what_is_missing():
    with pytest.raises(ValueError, match="on_log"):
        widgets.LivePlot().figure()
