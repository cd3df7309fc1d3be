"""Dashboard room: the playground with its controls, as one widget for JupyterLab and for voila.

Takes pictures by name; people add their own by dropping a file. What is shown is made by `playground.py` and drawn by
`figures.py` and `widgets.py`. All state lives in the object, which lives in one kernel: every visitor has another.
"""

from __future__ import annotations

import html
from collections import OrderedDict
from collections.abc import Mapping
from string import Template
from typing import NamedTuple

import ipywidgets
from torch import Tensor

from srlab import figures, metrics, playground, widgets
from srlab.images import PictureError
from srlab.playground import Enlarged, Photo
from srlab.upsamplers import ScaleError

VIEWS_KEPT = 42  # some megabytes each: all scales of six choices
WITH_TRUTH = {"shrink it first (truth known)": True, "enlarge it as it is": False}


class _View(NamedTuple):
    """What one choice of picture, model, scale and task looks like."""

    result: Enlarged
    pictures: str
    spectrum: str


class Playground(ipywidgets.VBox):
    """Choose or drop a picture, choose a model and a scale, see before and after, their scores and spectra.

    All scales of a choice are computed as soon as the first is shown, so that the slider answers at once.

    Args:
        pictures: name -> uint8 (3, H, W), to begin with.
        scale: where the slider stands at first.
        ahead: compute the other scales as well.

    Attributes:
        picture, model, scale, task: the controls.
        upload: takes files; the drop zone in front of it hands them on.
        message: what is wrong with the last file or choice; empty if nothing is.
        result: the `Enlarged` that is shown; None if the choice cannot be served.
    """

    def __init__(self, pictures: Mapping[str, Tensor], *, scale: int = 3, ahead: bool = True):
        self._photos = {name: Photo(name, pixels) for name, pixels in pictures.items()}
        self._views: OrderedDict[tuple, _View] = OrderedDict()
        self._ahead, self._files = ahead, 0
        self.result: Enlarged | None = None
        wide = {"style": {"description_width": "initial"}, "layout": {"width": "min(27em, 98%)"}}
        self.picture = ipywidgets.Dropdown(options=list(self._photos), description="picture", **wide)
        self.model = ipywidgets.Dropdown(options=list(playground.models_here()), description="model", **wide)
        low, high = playground.SCALES
        self.scale = ipywidgets.IntSlider(
            scale, min=low, max=high, description="scale (times)", continuous_update=False, **wide
        )
        self.task = ipywidgets.Dropdown(options=WITH_TRUTH, description="task", **wide)
        self.upload = ipywidgets.FileUpload(multiple=False, layout={"display": "none"})
        self._zone = ipywidgets.HTML(_drop_zone(0), layout={"width": "min(55em, 98%)"})
        self._notice = ipywidgets.HTML()
        self._pictures, self._spectrum = ipywidgets.Output(), ipywidgets.Output()
        controls = ipywidgets.HBox(
            [self.picture, self.model, self.scale, self.task], layout=ipywidgets.Layout(flex_flow="row wrap")
        )
        dropping = ipywidgets.VBox([self._zone, self.upload]).add_class("srlab-upload")
        super().__init__([dropping, controls, self._notice, self._pictures, self._spectrum])
        self.add_class("srlab-dashboard")
        self._refresh()
        for control in (self.picture, self.model, self.scale, self.task):
            control.observe(self._refresh, "value")
        self.upload.observe(self._take, "value")

    @property
    def message(self) -> str:
        """What the person is told, as HTML; empty if all is well."""
        return self._notice.value

    def _take(self, change: Mapping) -> None:
        """A file has come: read it, add it to the pictures and choose it."""
        if not change["new"]:
            return  # emptied below
        file = change["new"][0]
        self.upload.value = ()  # so that the same file may come again
        self._files += 1
        self._zone.value = _drop_zone(self._files, f"{file['name']} has come")
        with widgets.errors_shown_in(self._pictures, f"the file {file['name']}"):
            try:
                photo = playground.read_upload(file["name"], file["content"])
            except PictureError as problem:
                self._say(str(problem))
                return
            name = _free_name(photo.name, self._photos)
            self._photos[name] = photo
            self.picture.options = [*self._photos]  # keeps the value
            self.picture.value = name

    def _say(self, text: str) -> None:
        self._notice.value = (
            f'<div class="srlab-message" role="alert" style="border-left:4px solid #b06000;padding:.2em .8em">'
            f"{html.escape(text)}</div>"
            if text
            else ""
        )

    def _refresh(self, _: object = None) -> None:
        """Show what the controls say, then make the other scales ready."""
        chosen = self.picture.value, self.model.value, self.task.value
        words = f"{chosen[0]} at x{self.scale.value} by {chosen[1]}"
        self.result = None
        with widgets.errors_shown_in(self._pictures, words):
            try:
                view = self._view(*chosen, self.scale.value)
            except (ScaleError, PictureError) as problem:
                self._say(str(problem))
                for output in (self._pictures, self._spectrum):
                    widgets.show_page(output, "")
                return
            self.result = view.result
            self._say("")
            widgets.show_page(self._pictures, view.pictures)
            widgets.show_page(self._spectrum, view.spectrum)
            if self._ahead:
                self._make_ready(*chosen)

    def _make_ready(self, picture: str, model: str, with_truth: bool) -> None:
        low, high = playground.SCALES
        for scale in range(low, high + 1):
            try:
                self._view(picture, model, with_truth, scale)
            except (ScaleError, PictureError):  # said when the slider comes to this scale
                continue

    def _view(self, picture: str, model: str, with_truth: bool, scale: int) -> _View:
        key = (picture, model, with_truth, scale)
        if key not in self._views:
            result = playground.enlarge(self._photos[picture], model, scale, with_truth=with_truth)
            self._views[key] = _View(result, _pictures_page(result, picture, model), _spectrum_page(result, picture))
            if len(self._views) > VIEWS_KEPT:
                self._views.popitem(last=False)
        return self._views[key]


def _free_name(name: str, taken: Mapping[str, object]) -> str:
    """`name`, or `name (2)`, ...: a second photo.jpg does not replace the first."""
    number, free = 2, name
    while free in taken:
        number, free = number + 1, f"{name} ({number})"
    return free


def _pictures_page(result: Enlarged, picture: str, model: str) -> str:
    """Compare slider, what was measured, notes and the button that saves the result."""
    scores = result.psnr_y
    told = (
        [f"bicubic {scores['bicubic']:.2f} dB", f"{model} {scores['model']:.2f} dB"] if scores else ["bicubic", model]
    )
    alt = f"{picture}, enlarged {result.scale} times"
    slider = widgets.compare(result.bicubic, result.sr, tuple(told), truth=result.truth, alt=alt).data
    h, w = result.lr.shape[1:]
    lines = [f"{w} x {h} pixels enlarged to {w * result.scale} x {h * result.scale} in {result.seconds:.2f} s."]
    if scores:
        lines[0] += f" Gain over bicubic {scores['model'] - scores['bicubic']:+.2f} dB on this one picture."
        lines.append(metrics.STANDARD.line(result.scale).replace("; mean over pictures", ""))
    else:
        lines.append("Nobody knows the true picture here, so there is nothing to score: look at edges and texture.")
    lines += result.notes
    return _RESULT.substitute(
        slider=slider,
        lines="".join(f"<li>{html.escape(line)}</li>" for line in lines),
        file=html.escape(f"{picture.rsplit('.', 1)[0]}_x{result.scale}_{model}.png", quote=True),
    )


def _spectrum_page(result: Enlarged, picture: str) -> str:
    limit = 0.5 / result.scale
    fig = figures.draw_spectrum(playground.spectra_of(result), marks={"finest detail in the small picture": limit})
    return widgets.figure_page(fig, f"the spectrum of {picture} enlarged {result.scale} times")


_RESULT = Template("""<div class="srlab-playground">$slider
<p><button type="button" style="padding:.5em 1em" data-file="$file" onclick="const link = document.createElement('a');
 link.href = this.closest('.srlab-playground').querySelector('img.second.picture').src;
 link.download = this.dataset.file; link.click()">Save the enlarged picture (PNG)</button></p>
<ul style="padding-left:1.2em">$lines</ul></div>""")

# The size is checked in the browser, before anything is sent: a message above 10 MiB would cut the connection to the
# kernel without a word. FileUpload keeps its <input> to itself, so its click is caught for a moment to get hold of it.
_ZONE = Template("""<div class="srlab-drop" data-number="$number" style="border:2px dashed #888;padding:.6em 1em"
 ondragover="event.preventDefault(); this.style.borderStyle = 'solid'" ondragleave="this.style.borderStyle = 'dashed'"
 ondrop="event.preventDefault(); event.stopPropagation(); this.style.borderStyle = 'dashed';
 const input = this.querySelector('input'); input.files = event.dataTransfer.files; input.onchange()">
<label>Drop a picture of your own here, or choose a file (at most $limit MB; it stays on this computer's kernel):
<input type="file" accept="image/*" data-lm-suppress-shortcuts="true" onchange="
 const file = this.files[0], zone = this.closest('.srlab-drop'), note = zone.querySelector('.srlab-drop-note');
 if (!file) return;
 if (file.size > $bytes) {
   note.textContent = file.name + ' has ' + (file.size / 1e6).toFixed(0) + ' MB, at most $limit MB can be sent through '
     + 'a browser: save it as a JPEG or cut it; srlab upscale on the command line takes any size';
   this.value = ''; return; }
 note.textContent = 'reading ' + file.name + ' ...';
 const click = HTMLInputElement.prototype.click; let inner = null;
 HTMLInputElement.prototype.click = function () { inner = this; };
 zone.closest('.srlab-upload').querySelector('.widget-upload').click();
 HTMLInputElement.prototype.click = click;
 inner.files = this.files; inner.dispatchEvent(new Event('change')); this.value = ''"></label>
<div class="srlab-drop-note" role="status">$note</div></div>""")


def _drop_zone(number: int, note: str = "") -> str:
    """The place to drop a file on; another number makes a new one, which forgets what stood in the old."""
    limit = playground.LARGEST_FILE
    return _ZONE.substitute(number=number, note=html.escape(note), bytes=limit, limit=limit // 1_000_000)
