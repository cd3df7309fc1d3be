"""In a real browser: notebooks run without an error on the page, and controls bring the pictures that belong to them.

What a picture should be is computed in the kernel, from the value the browser shows beside the slider. A notebook with
a broken callback, and one whose picture ignores its slider, must fail the same checks. With SRLAB_SHOTS=FOLDER
screenshots and the times from release to picture are kept there.
"""

import base64
import csv
import hashlib
import io
import os
import re
import sys
from pathlib import Path

import browsing
import nbformat
import numpy as np
import pytest
from browsing import PANEL, PATIENCE, ask, check_no_errors, open_notebook, run_all
from PIL import Image

from srlab import classroom

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TOUCHABLE = [path for path in NOTEBOOKS if re.search(r"widgets\.|dashboard\.", path.read_text(encoding="utf-8"))]
SHOTS = os.environ.get("SRLAB_SHOTS", "")
BOXES = "[w for w in ipywidgets.widgets.widget._instances.values() if hasattr(w, 'draw') and hasattr(w, 'controls')]"
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}

START = """import ipywidgets, numpy as np
from matplotlib.figure import Figure
from srlab import widgets

def picture(colour):
    return np.array(colour, dtype=np.uint8)[:, None, None] * np.ones((1, 60, 120), dtype=np.uint8)

def bars(height):
    fig = Figure(figsize=(3, 2))
    fig.subplots().bar([1], [height])
    fig.axes[0].set(ylim=(0, 10), title=f"height {height}")
    return fig"""
SLIDER = "ipywidgets.IntSlider(3, min=0, max=9, description='height')"
OWN = {
    "good": [f"widgets.explore(bars, height={SLIDER})"],
    "compare": [f"widgets.compare(picture({COLOURS['red']}), picture({COLOURS['blue']}), truth=picture((255, 0, 0)))"],
    "broken_cell": ["1 / 0"],
    "broken_callback": [f"widgets.explore(lambda height: bars(height) if height == 3 else 1 / 0, height={SLIDER})"],
    "upload": [
        "import torch\nfrom srlab import dashboard\n"
        "app = dashboard.Playground({'black': torch.zeros(3, 72, 96, dtype=torch.uint8)}, ahead=False)\napp"
    ],
    "deaf": [f"widgets.explore(lambda height: bars(3), height={SLIDER})", "box = _\nbox.draw = bars"],
}


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = browsing.launch(playwright)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory):
    """JupyterLab on the notebooks as students get them and on small ones of our own; gives the address of each."""
    folder, home = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("home")
    classroom.write_student_copies(TOUCHABLE, folder)
    for name, cells in OWN.items():
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (START, *cells)])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, folder / f"{name}.ipynb")
    results = tmp_path_factory.mktemp("results")
    with browsing.jupyterlab(folder, home, SRLAB_PROFILE="smoke", SRLAB_RESULTS=str(results)) as address:
        yield address


@pytest.fixture
def page(browser):
    """A browser window of its own, as a new visitor has it."""
    context = browser.new_context(viewport={"width": 1280, "height": 1400}, accept_downloads=True)
    window = context.new_page()
    window.set_default_timeout(PATIENCE)
    yield window
    context.close()


@pytest.fixture(scope="session")
def times():
    """Times from release to picture; written down at the end if somebody wants them."""
    found = []
    yield found
    if SHOTS and found:
        with (Path(SHOTS) / "times.csv").open("a", newline="") as file:
            csv.writer(file).writerows(found)


@pytest.fixture
def end_kernel(lab):
    """Ends the kernel of the page after the test: two cores have no room for those of all notebooks."""
    pages = []
    yield pages.append
    for page in pages:
        page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")


def start(page, address, end_kernel):
    open_notebook(page, address)
    end_kernel(page)
    run_all(page)


def shot(where, name):
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        where.screenshot(path=Path(SHOTS) / f"{name}.png")


# sliders around a drawing


def watch(box):
    """Note down in the page when a control was let go and when another picture was there."""
    box.evaluate(
        """box => { const t = window.times = {shown: 0, released: 0}; let src = box.querySelector('img')?.src;
            for (const kind of ['keydown', 'pointerup', 'change', 'click'])
                document.addEventListener(kind, () => { t.released = performance.now(); }, true);
            new MutationObserver(() => { const now = box.querySelector('img')?.src;
                if (now && now !== src) { src = now; t.shown = performance.now(); } }).observe(box,
                {childList: true, subtree: true, attributes: true}); }"""
    )


def picture_of(box):
    return hashlib.sha256(
        base64.b64decode((box.locator("img").first.get_attribute("src") or "").split(",")[1])
    ).hexdigest()


def drawn_in_kernel(page, number):
    """Hash of the picture that explore number `number` should show, drawn anew from the values of its controls."""
    page_now = (
        "(lambda box: srlab.widgets.figure_page(box.draw(**{k: c.value for k, c in box.controls.items()}), ''))"
        f"({BOXES}[{number}])"
    )
    return ask(
        page,
        f"__import__('hashlib').sha256(__import__('base64').b64decode({page_now}.split('base64,')[1].split('\"')[0]))"
        ".hexdigest()",
    )


def check_picture(page, box, number, before):
    """The picture has changed, and to the one that belongs to the controls."""
    page.wait_for_function(
        "([box, old]) => box.querySelector('.srlab-error') || box.querySelector('img')?.src !== old",
        arg=[box.element_handle(), before],
        timeout=PATIENCE,
    )
    check_no_errors(page)
    assert picture_of(box) == drawn_in_kernel(page, number), "the page shows another picture than the kernel draws"


def check_slider(page, box, number, index, times, name):
    """Move a slider by key, then by mouse; compare its readout with the kernel, its picture with one drawn there."""
    slider = box.locator(".widget-slider").nth(index)
    slider.scroll_into_view_if_needed()
    handle = slider.locator(".noUi-handle")
    low, high, now = (float(handle.get_attribute(f"aria-value{part}")) for part in ("min", "max", "now"))
    shown = slider.locator(".widget-readout").inner_text()
    for how in ("key", "mouse"):
        before = box.locator("img").first.get_attribute("src")
        up = now <= (low + high) / 2
        if how == "key":
            handle.press("ArrowRight" if up else "ArrowLeft")
        else:
            grip, bar = handle.bounding_box(), slider.locator(".noUi-base").bounding_box()
            y = grip["y"] + grip["height"] / 2
            page.mouse.move(grip["x"] + grip["width"] / 2, y)
            page.mouse.down()
            page.mouse.move(bar["x"] + bar["width"] * (0.8 if up else 0.2), y, steps=5)
            page.mouse.up()
        check_picture(page, box, number, before)
        now, told = float(handle.get_attribute("aria-valuenow")), slider.locator(".widget-readout").inner_text()
        assert told != shown
        shown = told
        sliders = f"[c for c in {BOXES}[{number}].controls.values() if 'Slider' in type(c).__name__]"
        index_of, value = ask(page, f"[(getattr(c, 'index', -1), c.value) for c in {sliders}][{index}]")
        if index_of >= 0:  # a slider of words: the page knows their numbers
            assert index_of == now
        else:
            assert value == pytest.approx(float(told), abs=0.0051), "the kernel knows another value than the page"
        elapsed = page.evaluate("() => window.times.shown - window.times.released")
        times.append((name, slider.inner_text().split("\n")[0], how, round(elapsed)))


def check_widgets(page, times, name):
    """Every control of every explore on the page."""
    boxes = page.locator(f"{PANEL} .srlab-explore")
    assert boxes.count() == ask(page, f"len({BOXES})")
    for number in range(boxes.count()):
        box = boxes.nth(number)
        box.scroll_into_view_if_needed()
        assert picture_of(box) == drawn_in_kernel(page, number)
        watch(box)
        shot(box, f"{name}_{number}")
        for index in range(box.locator(".widget-slider").count()):
            check_slider(page, box, number, index, times, name)
        for choice in range(box.locator("select").count()):
            options = box.locator("select").nth(choice).locator("option").all_inner_texts()
            if len(options) > 1:
                before = box.locator("img").first.get_attribute("src")
                box.locator("select").nth(choice).select_option(options[1])
                check_picture(page, box, number, before)
        for control in box.locator("input[type=checkbox]").all():
            before = box.locator("img").first.get_attribute("src")
            control.click()
            check_picture(page, box, number, before)
        shot(box, f"{name}_{number}_moved")
    check_no_errors(page)


@pytest.mark.parametrize("path", TOUCHABLE, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_controls_bring_the_right_pictures(path, lab, page, times, end_kernel):
    start(page, lab(path.name), end_kernel)
    check_no_errors(page)
    check_widgets(page, times, path.stem[:2])
    for number, slider in enumerate(page.locator(f"{PANEL} .jp-OutputArea-output .srlab-compare").all()):
        shot(slider, f"{path.stem[:2]}_compare_{number}")
    if "dashboard." in path.read_text(encoding="utf-8"):
        check_playground(page, times)


def test_a_good_notebook_of_our_own_passes(lab, page, times, end_kernel):
    start(page, lab("good.ipynb"), end_kernel)
    check_widgets(page, times, "good")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken_cell", "ZeroDivisionError"),
        ("broken_callback", "No figure for height"),
        ("deaf", "another picture than the kernel draws|Timeout"),
    ],
)
def test_a_broken_notebook_fails_the_same_checks(name, message, lab, page, end_kernel, monkeypatch):
    from playwright.sync_api import TimeoutError as Late

    monkeypatch.setitem(globals(), "PATIENCE", 3000)
    start(page, lab(f"{name}.ipynb"), end_kernel)

    def check():
        check_no_errors(page)
        check_widgets(page, [], name)

    with pytest.raises((AssertionError, Late), match=message):
        check()


# two pictures under one handle


def colour_at(where, across, down=0.5):
    """Colour on the screen at a place of an element, given as shares of its width and height."""
    pixels = np.asarray(Image.open(io.BytesIO(where.screenshot())).convert("RGB"))
    return tuple(int(v) for v in pixels[int(down * len(pixels)), int(across * pixels.shape[1])])


def check_compare(page, widget):
    stack = widget.locator(".frame")
    stack.scroll_into_view_if_needed()
    border, zoom = widget.locator("input[type=range]").all()
    red, blue = COLOURS["red"], COLOURS["blue"]
    assert (colour_at(stack, 0.25), colour_at(stack, 0.75)) == (red, blue)
    for _ in range(40):
        border.press("ArrowRight")
    assert border.input_value() == "90"
    assert colour_at(stack, 0.75) == red, "left of the border is the first picture"
    box = stack.bounding_box()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 20, steps=4)
    page.mouse.up()
    assert 5 <= float(border.input_value()) <= 15
    assert colour_at(stack, 0.25) == blue, "dragged on the picture itself"
    zoom.press("End")
    whole = widget.locator(".stack").bounding_box()
    assert whole["width"] == pytest.approx(8 * box["width"], rel=0.02)
    zoom.press("Home")
    widget.locator("input[type=checkbox]").check()
    dark, bright = colour_at(stack, 0.05), colour_at(stack, 0.75)
    assert sum(dark) < 200 < sum(bright[:2]), "the first picture is the truth, the second wrong everywhere"


def test_the_compare_slider_moves_by_key_and_mouse_in_jupyterlab(lab, page, end_kernel):
    start(page, lab("compare.ipynb"), end_kernel)
    check_no_errors(page)
    check_compare(page, page.locator(f"{PANEL} .jp-OutputArea-output .srlab-compare"))


def test_the_compare_slider_moves_in_an_exported_page_without_a_kernel(page, browser):
    from srlab import widgets

    red, blue = (
        np.array(COLOURS[name], np.uint8)[:, None, None] + np.zeros((1, 60, 120), np.uint8) for name in COLOURS
    )
    page.set_content(widgets.compare(red, blue, truth=red).data)
    check_compare(page, page.locator(".srlab-compare"))


# the playground


def picture_file(colour, size=(96, 72)):
    """A picture nobody else has: half of it in one colour, half a ramp."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2] = colour
    pixels[:, size[0] // 2 :] = np.linspace(0, 255, size[1], dtype=np.uint8)[:, None, None]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def give(page, name, content):
    page.locator(".srlab-drop input[type=file]").set_input_files({"name": name, "mimeType": "", "buffer": content})


def drop(page, name, content):
    """Drop a file on the zone, as the mouse would."""
    data = page.evaluate_handle(
        """([name, content]) => { const data = new DataTransfer(), bytes = Uint8Array.from(atob(content),
            letter => letter.charCodeAt(0)); data.items.add(new File([bytes], name)); return data; }""",
        [name, base64.b64encode(content).decode()],
    )
    page.locator(".srlab-drop").dispatch_event("drop", {"dataTransfer": data})


def wait_for_text(page, selector, text):
    page.locator(selector).filter(has_text=text).first.wait_for()


def names_shown(page):
    return page.locator(".srlab-playground .names").inner_text()


def move_scale(page, keys):
    handle = page.locator(".srlab-dashboard .noUi-handle")
    before = page.locator(".srlab-playground img").first.get_attribute("src")
    for key in keys:
        handle.press(key)
    page.wait_for_function(
        "old => { const now = document.querySelector('.srlab-playground img'); return now && now.src !== old; }",
        arg=before,
    )


def check_playground(page, times):
    """The playground in JupyterLab, where the kernel can be asked."""
    zone = page.locator(".srlab-dashboard")
    zone.scroll_into_view_if_needed()
    shot(zone, "10_playground")
    watch(zone)
    for key, scale in (("ArrowRight", 4), ("ArrowLeft", 3)):
        move_scale(page, [key])
        expected = ask(page, "(app.result.scale, app.result.psnr_y)")
        assert expected[0] == scale
        assert f"{expected[1]['model']:.2f} dB" in names_shown(page)
        times.append(("10", "scale", "key", round(page.evaluate("() => window.times.shown - window.times.released"))))
    drop(page, "mine.png", picture_file((200, 30, 60)))
    wait_for_text(page, ".srlab-playground li", "96 x 72")
    assert ask(page, "app.picture.value") == "mine.png"
    assert ask(page, "app._photos['mine.png'].pixels[:, 0, 0].tolist()") == [200, 30, 60]
    with page.expect_download() as saving:
        page.get_by_role("button", name="Save the enlarged picture").click()
    saved = np.asarray(Image.open(saving.value.path()))
    assert saving.value.suggested_filename == "mine_x3_edsr-tiny-igconv.png"
    assert int(saved.astype(int).sum()) == ask(page, "int(app.result.sr.int().sum())")
    give(page, "note.png", b"a text that calls itself a picture")
    wait_for_text(page, ".srlab-message", "note.png can't be read as a picture: it looks like a text file")
    assert ask(page, "app.picture.value") == "mine.png"
    shot(zone, "10_playground_wrong")
    check_no_errors(page)


def test_a_file_of_a_gigabyte_is_refused_in_the_browser_and_the_kernel_stays(lab, page, end_kernel, tmp_path):
    huge = tmp_path / "huge.png"
    with huge.open("wb") as file:
        file.truncate(10**9)  # takes no place on the disk
    start(page, lab("upload.ipynb"), end_kernel)
    page.locator(".srlab-drop input[type=file]").set_input_files(huge)
    wait_for_text(page, ".srlab-drop-note", "huge.png has 1000 MB, at most 9 MB")
    assert ask(page, "len(app.picture.options)") == 1


@pytest.fixture(scope="session")
def voila(browser, tmp_path_factory):
    """The dashboard, as `make dashboard` serves it; gives its address."""
    pytest.importorskip("voila", reason="voila is not installed (make dashboard, or pip install -e '.[dashboard]')")
    port = browsing.free_port()
    home, results = tmp_path_factory.mktemp("voila"), tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "srlab", "dashboard", f"--port={port}", "--no-browser"]
    address = f"http://127.0.0.1:{port}/"
    told = {"SRLAB_PROFILE": "smoke", "SRLAB_RESULTS": str(results)}
    with browsing.server(command, address + "voila/static/favicon.ico", home, ROOT, **told):
        yield address


def test_two_visitors_of_the_dashboard_do_not_disturb_each_other(voila, browser, page):
    other = browser.new_context(viewport={"width": 400, "height": 900}).new_page()  # a phone
    other.set_default_timeout(PATIENCE)
    for window in (page, other):
        window.goto(voila, wait_until="commit")  # the page is sent while the cells run
    for window in (page, other):
        window.locator(".srlab-playground img").first.wait_for(timeout=browsing.CELL_PATIENCE)
        assert not window.locator(".srlab-error").count()
        assert "Exercises" not in window.inner_text("body")
        assert "Traceback" not in window.inner_text("body")
    first = names_shown(other)
    move_scale(page, ["ArrowRight"])
    give(page, "mine.png", picture_file((10, 200, 60)))
    wait_for_text(page, ".srlab-playground li", "96 x 72")
    give(other, "theirs.png", b"no picture")
    wait_for_text(other, ".srlab-message", "theirs.png can't be read as a picture")
    assert names_shown(other) == first
    assert "mine.png" not in other.locator("select").first.inner_text()
    assert not page.locator(".srlab-message").count()
    move_scale(other, ["ArrowLeft"])
    assert names_shown(other) != first
    assert page.locator(".widget-readout").inner_text() == "4"
    shot(page, "dashboard")
    shot(other, "dashboard_phone")
    other.context.close()
