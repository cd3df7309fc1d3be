"""Dashboard: what is shown is what the controls say, two of them are strangers, and wrong files are answered."""

import base64
import datetime
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from srlab import dashboard, metrics, playground
from srlab.playground import Photo
from srlab.resize import imresize

MODEL = "edsr-tiny-igconv"


def blobs(seed):
    seeds = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(seed))
    return (imresize(seeds, 12).clamp(0, 1) * 255).to(torch.uint8)  # 72 x 96


PICTURES = {"first": blobs(1), "second": blobs(2)}


@pytest.fixture
def app():
    return dashboard.Playground(PICTURES, ahead=False)


def page_of(app):
    return app._pictures.outputs[0]["data"]["text/html"]


def shown(app):
    """The pictures under the handle: bicubic, model."""
    sources = re.findall(r'class="(?:first|second) picture"[^>]*base64,([^"]+)"', page_of(app))
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB")) for source in sources]


def drop(app, name, content):
    now = datetime.datetime.now(datetime.UTC)
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content), "last_modified": now}
    app.upload.value = (file,)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_pictures_follow_the_slider(app):
    for scale in (2, 4):
        app.scale.value = scale
        expected = playground.enlarge(Photo("first", PICTURES["first"]), MODEL, scale, with_truth=True)
        for pixels, picture in zip(shown(app), (expected.bicubic, expected.sr), strict=True):
            assert np.array_equal(pixels, picture.permute(1, 2, 0).numpy())
        assert f"{expected.psnr_y['model']:.2f} dB" in page_of(app)
        assert f"first, enlarged {scale} times" in page_of(app)


def test_the_score_in_the_page_is_that_of_the_pixels_in_the_page(app):
    bicubic, model = (torch.tensor(pixels).permute(2, 0, 1) for pixels in shown(app))
    for picture in (bicubic, model):
        assert f"{metrics.psnr_y(picture, app.result.truth, 3):.2f} dB" in page_of(app)


def test_all_scales_are_ready_before_they_are_asked_for(monkeypatch):
    app = dashboard.Playground(PICTURES)
    monkeypatch.setattr(playground, "enlarge", lambda *_, **__: pytest.fail("computed after the release of the slider"))
    for scale in range(2, 9):
        app.scale.value = scale
        assert app.result.scale == scale


def test_a_file_dropped_is_chosen_and_enlarged(app):
    drop(app, "mine.png", png(blobs(3)))
    assert app.picture.value == "mine.png"
    assert torch.equal(app.result.truth, blobs(3))
    assert not app.message
    drop(app, "mine.png", png(blobs(4)))
    assert app.picture.value == "mine.png (2)"
    assert torch.equal(app.result.truth, blobs(4))
    assert app.picture.options == ("first", "second", "mine.png", "mine.png (2)")


def test_a_wrong_file_is_answered_and_changes_nothing(app):
    before = app.result
    drop(app, "note.png", b"only words")
    assert "note.png can&#x27;t be read as a picture" in app.message
    assert 'role="alert"' in app.message
    assert app.result is before
    assert app.picture.value == "first"
    app.scale.value = 2
    assert not app.message, "the message goes away with the next choice"


def test_a_picture_too_small_for_the_task_is_answered_and_enlarged_in_the_other(app):
    drop(app, "small.png", png(blobs(3)[:, :20]))
    assert "small.png is 96 x 20 pixels" in app.message
    assert app.result is None
    assert "<img" not in page_of(app), "no picture of the choice before"
    app.task.value = False
    assert app.result.sr.shape == (3, 60, 288)
    assert not app.message


def test_names_of_files_cannot_smuggle_html_into_the_page(app):
    drop(app, "<img src=x onerror=alert(1)>.png", png(blobs(3)))
    assert "<img src=x" not in page_of(app)
    drop(app, "<b>bold</b>.png", b"words")
    assert "<b>" not in app.message + app._zone.value


def test_the_zone_is_new_after_each_file_and_its_limit_is_that_of_the_reader(app):
    before = app._zone.value
    assert f"file.size > {playground.LARGEST_FILE}" in before
    drop(app, "a.png", b"words")
    assert app._zone.value != before
    assert app.upload.value == ()


def test_two_playgrounds_do_not_disturb_each_other(app):
    other = dashboard.Playground(PICTURES, ahead=False)
    drop(other, "theirs.png", png(blobs(9)))
    other.scale.value = 2
    assert app.picture.options == ("first", "second")
    assert app.result.scale == 3
    assert torch.equal(app.result.truth, PICTURES["first"])
    assert other.result.scale == 2


def test_an_error_of_ours_is_shown_and_fails_a_test(app, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("the model fell over")

    monkeypatch.setattr(playground, "enlarge", broken)
    with pytest.raises(RuntimeError, match="fell over"):
        app.scale.value = 2
    assert "srlab-error" in page_of(app)
    assert "the model fell over" in page_of(app)
