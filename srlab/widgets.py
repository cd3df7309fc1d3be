"""Widgets room: sliders around a drawing, two pictures under one handle, a training curve that moves.

Takes `draw_` functions and pictures; gives things a notebook or a dashboard shows. The only room that imports
ipywidgets and IPython. What a widget shows is a function of its controls and nothing else, so the `draw_` function is
what tests test; next to every widget a notebook shows the same drawing as a plain figure, for readers without a kernel.
"""

from __future__ import annotations

import base64
import contextvars
import gc
import html
import io
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from string import Template
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
from IPython.display import HTML, DisplayHandle, display
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from srlab import figures, panels

DOTS_PER_INCH = 110
PAGES_KEPT = 64  # drawings of one widget that are remembered: going back to a value costs nothing
ERROR_RANGE = 32  # grey levels at the bright end of an error map; fixed, so that two maps can be compared


def explore(draw: Callable[..., Figure], **controls: ipywidgets.Widget) -> ipywidgets.VBox:
    """Put `controls` above the figure that `draw` makes of their values; drawn anew when a control is let go.

    An error in the first drawing is the cell's error; later ones are shown in place of the figure (`errors_shown_in`).
    The last drawings are kept, so `draw` must depend on nothing but the controls.

    Args:
        draw: called with one keyword argument per control; returns a figure, which is closed after use.
        controls: name of an argument -> the widget that has its value. One without description gets the name.

    Returns:
        The whole as one widget, with its `draw` and `controls`.
    """
    picture = ipywidgets.Output()
    pages: dict[str, str] = {}

    def redraw(_: object = None) -> None:
        values = {name: control.value for name, control in controls.items()}
        key, words = repr(values), _words(values, controls)
        with errors_shown_in(picture, words), collector_waiting():
            if key not in pages:
                pages[key] = figure_page(draw(**values), words)
            show_page(picture, pages[key])
            if len(pages) > PAGES_KEPT:
                del pages[next(iter(pages))]

    for name, control in controls.items():
        if hasattr(control, "continuous_update"):
            control.continuous_update = False  # one drawing per release, not dozens while the handle moves
        control.description = control.description or name.replace("_", " ")
        if hasattr(control.style, "description_width"):
            control.style.description_width = "initial"  # else long names are cut off
        control.layout.width = control.layout.width or f"calc(18em + {len(control.description)}ch)"
    values = {name: control.value for name, control in controls.items()}
    pages[repr(values)] = figure_page(draw(**values), _words(values, controls))
    show_page(picture, pages[repr(values)])
    for control in controls.values():
        control.observe(redraw, "value")
    row = ipywidgets.HBox(list(controls.values()), layout=ipywidgets.Layout(flex_flow="row wrap"))
    box = ipywidgets.VBox([row, picture]).add_class("srlab-explore")
    box.draw, box.controls = draw, controls
    return box


@contextmanager
def errors_shown_in(output: ipywidgets.Output, words: str) -> Iterator[None]:
    """Show an exception in place of the picture, and raise it when a test is running.

    An error in a callback stops nothing and is printed nowhere a user would look; so it is put where the picture would
    be. Under pytest it is raised as well, so that a test that moves a control fails.

    Args:
        output: where the picture would be.
        words: what was to be shown, such as the values of the controls.
    """
    try:
        yield
    except Exception as error:
        show_page(output, _error_html(error, f"No figure for {words}."))
        if "PYTEST_CURRENT_TEST" in os.environ:
            raise


@contextmanager
def collector_waiting() -> Iterator[None]:
    """Put off Python's garbage collector until a drawing is through.

    A full pass over the objects of a notebook takes longer than a drawing, and came in the middle of every eighth one:
    566 instead of 260 ms of CPU time. The collector comes back to it once the drawing is shown.
    """
    waits = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if waits:
            gc.enable()


def show_page(output: ipywidgets.Output, page: str) -> None:
    """Replace what an Output shows by HTML, in one message: it does not flicker, and it works from any thread."""
    data = {"text/html": page, "text/plain": "interactive figure"}
    output.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)


def _words(values: Mapping[str, object], controls: Mapping[str, ipywidgets.Widget]) -> str:
    """The values of the controls, for readers who cannot see them."""
    shown = {name: f"{value:g}" if isinstance(value, float) else f"{value!s:.40}" for name, value in values.items()}
    return ", ".join(f"{controls[name].description.strip(' :')} {text}" for name, text in shown.items())


def figure_page(fig: Figure, words: str) -> str:
    """A figure as an image with a text alternative: the values it was drawn for and the titles in it.

    Raises:
        TypeError: not a figure.
    """
    if not isinstance(fig, Figure):
        raise TypeError(f"draw returned {type(fig).__name__}, expected a matplotlib Figure: is its `return` missing?")
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight", pil_kwargs={"compress_level": 1})
    plt.close(fig)
    titles = "; ".join(" ".join(title.split()) for ax in fig.axes if (title := ax.get_title()))
    alt = f"Figure for {words}. {titles}".strip()
    return f'<img style="max-width:100%" alt="{html.escape(alt)}" src="{_data_url(buffer)}">'


def _error_html(error: BaseException, words: str) -> str:
    trace = "".join(traceback.format_exception(error)[-3:])
    return (
        f'<div class="srlab-error" role="alert" style="border-left:4px solid #b00020;padding:.2em .8em">'
        f"<strong>{html.escape(words)}</strong> {html.escape(f'{type(error).__name__}: {error}')}"
        f"<details><summary>where it happened</summary><pre>{html.escape(trace)}</pre></details></div>"
    )


def _data_url(png: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


class LivePlot:
    """A training curve that grows while `train.fit` runs, and stays as a plain figure afterwards.

        with LivePlot(total=recipe.steps) as live:
            train.fit(recipe, on_log=live)

    Args:
        draw: makes the figure of the rows so far; `earlier` goes to it as second argument.
        earlier: rows of another run, drawn behind.
        total: steps the run will have, for the title.
        every: seconds between drawings, so that drawing never takes more than a few per cent of the time.
    """

    def __init__(
        self,
        draw: Callable[..., Figure] = figures.draw_training_curve,
        *,
        earlier: pd.DataFrame | None = None,
        total: int | None = None,
        every: float = 2.0,
    ):
        self.draw, self.earlier, self.total, self.every = draw, earlier, total, every
        self.rows: list[dict[str, float]] = []
        self._handle: DisplayHandle | None = None
        self._last = -float("inf")

    def __enter__(self) -> LivePlot:
        self._handle = display(HTML("<p>waiting for the first steps ...</p>"), display_id=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self.rows:
            self._show(self.figure())

    def __call__(self, row: Mapping[str, float], model: object = None) -> None:
        """Take a row of the log: a callback for `train.fit(on_log=...)`."""
        self.rows.append(dict(row))
        if time.monotonic() - self._last >= self.every:
            self._show(self.figure())
            self._last = time.monotonic()

    @property
    def log(self) -> pd.DataFrame:
        """The rows so far."""
        return pd.DataFrame(self.rows)

    def figure(self) -> Figure:
        """The curve so far.

        Raises:
            ValueError: no rows yet.
        """
        if not self.rows:
            raise ValueError("no rows yet: pass this object to train.fit as on_log, and see that log_every <= steps")
        last = self.rows[-1]
        of = f" of {self.total}" if self.total else ""
        fig = self.draw(self.log, self.earlier)
        fig.axes[0].set_title(f"step {last['step']:.0f}{of}, loss {last['loss']:.4f}")
        return fig

    def _show(self, fig: Figure) -> None:
        plt.close(fig)
        if self._handle is None:  # used without `with`
            self._handle = display(fig, display_id=True)
        else:
            self._handle.update(fig)


class Pausable:
    """A training with a button: it runs beside the notebook, stops after a step when asked and goes on from there.

        training = Pausable(lambda on_log, should_stop: train.fit(..., on_log=on_log, should_stop=should_stop), live)
        training            # the button and the curve
        training.result()   # in another cell: waits for the end

    A kernel that is busy with a cell hears no buttons: while `result` waits, its stop button is the one that pauses.

    Args:
        work: called in a thread of its own, and again to go on; stops early once `should_stop()` is true. A second call
            must go on where the first one stopped, as `train.fit` does with its folder.
        live: takes the rows and draws them.
    """

    def __init__(self, work: Callable[[Callable[..., None], Callable[[], bool]], Any], live: LivePlot):
        self._work, self._live = work, live
        self._stop, self._thread = threading.Event(), None
        self._outcome: Any = None
        self._error: BaseException | None = None
        self._picture = ipywidgets.Output()
        live._show = lambda fig: show_page(self._picture, figure_page(fig, "the training so far"))
        self.button = ipywidgets.Button(description="pause")
        self.button.on_click(lambda _: self.pause() if self.running else self.go_on())
        self._trouble = ipywidgets.Output()
        self.widget = ipywidgets.VBox([self.button, self._trouble, self._picture])
        self.go_on()

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def pause(self) -> None:
        """Stop after the step at hand, with everything saved."""
        self._stop.set()
        self._thread.join()

    def go_on(self) -> None:
        """Start, or go on after a pause; while it runs nothing happens."""
        if self.running:
            return
        self._stop.clear()
        self._error, self._trouble.outputs = None, ()
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(self._run,), daemon=True)
        self.button.description = "pause"
        self._thread.start()

    def result(self) -> Any:
        """What `work` returned, once it is through; a pause is ended first.

        Raises:
            Whatever `work` raised.
        """
        if self._stop.is_set() and not self.running:
            self.go_on()
        try:
            self._thread.join()
        except KeyboardInterrupt:  # the notebook's stop button
            self.pause()
        if self._error:
            raise self._error
        return self._outcome

    def _run(self) -> None:
        try:
            try:
                self._outcome = self._work(self._live, self._stop.is_set)
            finally:
                if self._live.rows:
                    self._live._show(self._live.figure())
        except BaseException as error:  # it is the waiting cell's error, and shown here for who does not wait
            self._error = error
            show_page(self._trouble, _error_html(error, "The training failed."))
        ended = "failed" if self._error else "done"
        self.button.description = "go on" if self._stop.is_set() else ended
        self.button.disabled = not self._stop.is_set()

    def _ipython_display_(self) -> None:
        display(self.widget)


def compare(
    before: ArrayLike,
    after: ArrayLike,
    labels: tuple[str, str] = ("before", "after"),
    *,
    truth: ArrayLike | None = None,
    alt: str = "",
    width: int = 640,
) -> HTML:
    """Two pictures under one handle: left of it the first, right of it the second.

    Plain HTML with a few words of inline script: it works in JupyterLab, in a dashboard and in an exported page,
    without a kernel. The border is dragged on the picture, by mouse or finger, or moved below it; handle, zoom and box
    are reached with the Tab key and moved with the arrow keys; a zoomed picture scrolls.

    Args:
        before, after: pictures of one size, (3, H, W); uint8, or float in [0, 1].
        labels: what they are, with their scores if there are any.
        truth: the true picture: adds a box that shows each picture's error instead, as mean absolute difference of the
            three colours, black at 0 and yellow from 32 grey levels on.
        alt: what there is to see, for readers who cannot.
        width: of the whole in CSS pixels.

    Raises:
        ValueError: sizes differ.
    """
    pictures = [panels.as_pixels(picture) for picture in (before, after)]
    extra = [] if truth is None else [panels.as_pixels(truth)]
    shapes = [picture.shape for picture in [*pictures, *extra]]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"pictures of shapes {', '.join(map(str, shapes))} (H, W, channels), expected one size: an LR picture "
            f"has to be enlarged first, for example by srlab.resize.imresize"
        )
    height, wide = shapes[0][:2]
    first, second = (html.escape(label) for label in labels)
    views = [_layers(pictures, labels, "picture", alt)]
    if truth is not None:
        views.append(_layers([_error_map(p, extra[0]) for p in pictures], labels, "errors", f"error map. {alt}"))
    toggle = "" if truth is None else _TOGGLE.substitute(top=ERROR_RANGE)
    parts = {"width": width, "ratio": f"{wide} / {height}", "first": first, "second": second}
    return HTML(_COMPARE.substitute(parts, views="".join(views), toggle=toggle))


def _layers(pictures: list[np.ndarray], labels: tuple[str, str], kind: str, alt: str) -> str:
    """Two images on top of each other; the second is cut at the handle, so the first shows left of it."""
    images = []
    for side, pixels, label in zip(("first", "second"), pictures, labels, strict=True):
        buffer = io.BytesIO()
        Image.fromarray((pixels * 255 + 0.5).clip(0, 255).astype(np.uint8)).save(
            buffer, "PNG", compress_level=1
        )  # a third of the time of the default for 8 % more bytes
        text = html.escape(f"{label}. {alt}".strip())
        images.append(f'<img draggable="false" class="{side} {kind}" alt="{text}" src="{_data_url(buffer)}">')
    return "".join(images)


def _error_map(pixels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean absolute difference over colours, (H, W, 3) in [0, 1], in cividis."""
    difference = np.abs(pixels - truth)
    if difference.ndim == 3:
        difference = difference.mean(axis=2)
    return colormaps[panels.SEQUENTIAL](difference * 255 / ERROR_RANGE)[..., :3]


# data-lm-suppress-shortcuts on each thing that takes keys: else JupyterLab uses its arrow keys to fold headings
_COMPARE = Template("""<div class="srlab-compare" style="--cut:50%;--zoom:1;--ratio:$ratio;max-width:${width}px">
<style>
.srlab-compare .frame { overflow: auto; aspect-ratio: var(--ratio); outline: 1px solid #888; }
.srlab-compare .stack { position: relative; width: calc(var(--zoom) * 100%); aspect-ratio: var(--ratio);
  cursor: ew-resize; user-select: none; touch-action: pan-y; }
.srlab-compare.zoomed .stack { touch-action: auto; }
.srlab-compare .stack img { position: absolute; inset: 0; width: 100%; height: 100%; max-width: none; margin: 0;
  image-rendering: pixelated; }
.srlab-compare .second { clip-path: inset(0 0 0 var(--cut)); }
.srlab-compare .errors, .srlab-compare.show-errors .picture { display: none; }
.srlab-compare.show-errors .errors { display: block; }
.srlab-compare .line { position: absolute; top: 0; bottom: 0; left: var(--cut); border-left: 2px solid #fff;
  box-shadow: 0 0 2px #000; }
.srlab-compare .names { display: flex; justify-content: space-between; gap: 1em; }
.srlab-compare label { display: block; }
.srlab-compare input[type=range] { width: 100%; margin: .2em 0; }
</style>
<div class="names"><span>&#9664; $first</span><span>$second &#9654;</span></div>
<div class="frame" tabindex="0" data-lm-suppress-shortcuts="true" role="group"
 aria-label="two pictures; scrolls when zoomed"><div class="stack" onpointerdown="this.onpointermove(event)"
 onpointermove="if (event.buttons % 2) { const box = this.getBoundingClientRect(),
 handle = this.closest('.srlab-compare').querySelector('input[type=range]');
 handle.value = 100 * (event.clientX - box.left) / box.width; handle.oninput(); }">$views
<div class="line"></div></div></div>
<label>border between the two (per cent of the width)
<input type="range" min="0" max="100" value="50" step="1" data-lm-suppress-shortcuts="true"
 oninput="this.closest('.srlab-compare').style.setProperty('--cut', this.value + '%')"></label>
<label>zoom (times)
<input type="range" min="1" max="8" value="1" step="0.5" data-lm-suppress-shortcuts="true"
 oninput="const all = this.closest('.srlab-compare'); all.style.setProperty('--zoom', this.value);
 all.classList.toggle('zoomed', this.value > 1)"></label>
$toggle</div>""")

_TOGGLE = Template("""<label><input type="checkbox" data-lm-suppress-shortcuts="true"
 onchange="this.closest('.srlab-compare').classList.toggle('show-errors', this.checked)">
show the errors: dark blue is right, yellow is wrong by $top grey levels or more</label>""")
