"""Playground: any file is either read or refused in words, and scores belong to the picture and scale asked for."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from srlab import evaluate, metrics, playground, weights
from srlab.images import PictureError
from srlab.playground import Photo
from srlab.resize import imresize
from srlab.upsamplers import ScaleError

MODEL = "edsr-tiny-igconv"
SMOOTH = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0))
PHOTO = Photo("blobs", (imresize(SMOOTH, 12).clamp(0, 1) * 255).to(torch.uint8))  # 72 x 96


def file_of(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, kind, **options)
    return buffer.getvalue()


def grey_ramp(dtype, top, size=64):
    return np.linspace(0, top, size * size).reshape(size, size).astype(dtype)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("note.png", b"dear diary, today I renamed a text file", "note.png can't be read as a picture.*text file"),
        ("page.jpg", b"<!DOCTYPE html><html></html>", "HTML page"),
        ("empty.png", b"", "empty file"),
        ("cut.png", file_of(grey_ramp(np.uint8, 255))[:120], "cut.png.*truncated or damaged"),
        ("dot.png", file_of(grey_ramp(np.uint8, 255, 4)), "dot.png is 4 x 4 pixels, expected at least 8 x 8"),
        ("archive.png", b"PK\x03\x04" + bytes(100), "ZIP archive"),
    ],
)
def test_wrong_files_are_refused_in_words_without_a_place_on_this_machine(name, content, words):
    with pytest.raises(PictureError, match=words) as caught:
        playground.read_upload(name, content)
    assert "/tmp" not in str(caught.value)


def test_a_file_of_a_gigabyte_is_refused_by_its_size_alone():
    class Gigabyte(bytes):
        def __len__(self):
            return 10**9

    with pytest.raises(PictureError, match=r"huge.png has 1,000 MB, at most 9 MB.*srlab upscale"):
        playground.read_upload("huge.png", Gigabyte())


def test_a_small_file_of_very_many_pixels_is_not_unpacked():
    content = file_of(Image.new("1", (8000, 8000)))
    assert len(content) < 100_000
    with pytest.raises(PictureError, match="8000 x 8000 pixels, at most 40 million"):
        playground.read_upload("bomb.png", content)


def test_pictures_of_any_kind_are_read_and_what_is_lost_is_said():
    sixteen = playground.read_upload("deep.png", file_of(grey_ramp(np.uint16, 65535)))
    assert "16 bits" in " ".join(sixteen.notes)
    assert "grey" in " ".join(sixteen.notes)
    assert sixteen.pixels.shape == (3, 64, 64)
    clear = playground.read_upload("clear.png", file_of(Image.new("RGBA", (20, 10), (255, 0, 0, 0))))
    assert "transparent" in clear.notes[0]
    assert clear.pixels.min() == 255, "seen through, on a white page"
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    moving = playground.read_upload("moving.gif", file_of(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert "2 frames" in moving.notes[0]
    assert moving.pixels[0].min() > 250, "the first frame is red"
    assert playground.read_upload("C:\\photos\\a b.png", file_of(grey_ramp(np.uint8, 255))).name == "a b.png"


def test_scores_are_those_of_the_protocol_on_the_shrunk_picture():
    result = playground.enlarge(PHOTO, MODEL, 3, with_truth=True)
    lr = imresize(PHOTO.pixels, 1 / 3)
    assert torch.equal(result.lr, lr)
    assert torch.equal(result.truth, PHOTO.pixels)
    sr = evaluate.upscale(weights.load(MODEL), lr, 3)
    assert (result.sr.int() - sr.int()).abs().max() <= 1, "a stored kernel is the live one, up to rounding"
    assert result.psnr_y["model"] == pytest.approx(metrics.psnr_y(sr, PHOTO.pixels, 3), abs=0.05)


def test_without_a_truth_there_is_no_score():
    result = playground.enlarge(PHOTO, MODEL, 2, with_truth=False)
    assert result.psnr_y == {}
    assert result.sr.shape == (3, 144, 192)
    assert set(playground.spectra_of(result)) == {"bicubic", "model"}


def test_large_pictures_are_cut_or_reduced_and_it_is_said():
    large = Photo("large", torch.zeros(3, 900, 1200, dtype=torch.uint8))
    cut = playground.enlarge(large, MODEL, 8, with_truth=False)
    assert 0.9 * playground.OUTPUT_PIXELS < cut.sr[0].numel() <= playground.OUTPUT_PIXELS
    assert "only the middle" in cut.notes[0]
    reduced = playground.enlarge(large, MODEL, 8, with_truth=True)
    assert max(reduced.truth.shape) == 512
    assert "reduced from 1200 x 900 to 512 x 384" in reduced.notes[0]


def test_scales_beyond_the_training_are_served_and_named():
    assert not playground.enlarge(PHOTO, MODEL, 4, with_truth=True).notes
    assert "x5 is beyond its training" in playground.enlarge(PHOTO, MODEL, 5, with_truth=True).notes[0]


def test_a_picture_too_small_to_be_shrunk_says_what_can_be_done():
    small = Photo("small", torch.zeros(3, 20, 100, dtype=torch.uint8))
    with pytest.raises(PictureError, match=r"100 x 20 pixels, expected at least 64 x 64.*as it is"):
        playground.enlarge(small, MODEL, 2, with_truth=True)
    assert playground.enlarge(small, MODEL, 2, with_truth=False).sr.shape == (3, 40, 200)


def test_models_of_one_scale_are_one_family_and_refuse_others(monkeypatch):
    def card(name, scales):
        return weights.Card(name, "X", scales, "", 1, "", "", "", "")

    cards = [card("old-x2", (2,)), card("old-x3", (3,)), card("mine-igconv-seed0", (2,)), card(MODEL, (2, 3, 4))]
    monkeypatch.setattr(weights, "cards", lambda: cards)
    assert playground.models_here() == {MODEL: None, "old": (2, 3)}
    assert next(iter(playground.models_here())) == MODEL
    with pytest.raises(ScaleError, match=f"old has weights for x2, x3 only, not for x5.*{MODEL}"):
        playground.enlarge(PHOTO, "old", 5, with_truth=True)


def test_the_file_to_save_holds_the_result():
    result = playground.enlarge(PHOTO, MODEL, 2, with_truth=False)
    saved = np.asarray(Image.open(io.BytesIO(result.png)))
    assert np.array_equal(saved, result.sr.permute(1, 2, 0).numpy())


def test_spectra_meet_where_the_small_picture_has_all_there_is():
    curves = playground.spectra_of(playground.enlarge(PHOTO, MODEL, 2, with_truth=True))
    low = slice(0, 4)  # the longest waves: no method can miss them
    for name in ("bicubic", "model"):
        ratio = curves[name][1][low] / curves["true picture"][1][low]
        assert ratio.tolist() == pytest.approx([1.0] * 4, rel=0.1)
