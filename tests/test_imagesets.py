"""Sets of picture files and folders of pictures."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from srlab import datasets, imagesets
from srlab.imagesets import DatasetError, ImageSet


def write(path, height, width, value=None):
    """A PNG of noise, or of one grey value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise if value is None else np.full_like(noise, value)).save(path)
    return path


def test_a_folder_of_pictures_in_any_script_is_a_set_in_order(tmp_path):
    folder = tmp_path / "фото 照片"
    for name in ("été.png", "B.PNG", "京都.jpg"):
        write(folder / name, 20, 30)
    (folder / "notes.txt").write_text("not a picture, and not called one")
    (folder / ".hidden.png").write_text("left by some other program")
    pictures = datasets.load(folder)
    assert pictures.name == "фото 照片"
    assert pictures.names == ("B", "été", "京都")
    assert len(pictures) == 3
    assert pictures.size(1) == (20, 30)
    assert pictures.image(1).shape == (3, 20, 30)
    assert pictures.image(1).dtype == torch.uint8
    assert datasets.load(str(folder)).names == pictures.names


def test_lr_of_a_ramp_takes_the_values_at_the_middle_of_each_block(tmp_path):
    ramp = np.broadcast_to(np.arange(120, dtype=np.uint8)[:, None, None] * 2, (120, 48, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "ramp.png")
    for scale in (2, 3, 4):
        lr, _ = datasets.load(tmp_path).pair(0, scale)
        middle = torch.arange(120 // scale) * 2 * scale + (scale - 1)  # bicubic is exact on straight lines
        inner = slice(2, -2)  # away from the mirrored border
        assert torch.equal(lr[0, inner, 5].long(), middle[inner])


@pytest.mark.parametrize(("scale", "height", "width"), [(2, 10, 12), (3, 9, 12), (4, 8, 12), (1, 11, 13)])
def test_hr_that_is_no_multiple_is_cropped_at_the_bottom_and_on_the_right(tmp_path, scale, height, width):
    write(tmp_path / "odd.png", 11, 13)
    pictures = datasets.load(tmp_path)
    lr, hr = pictures.pair(0, scale)
    assert torch.equal(hr, pictures.image(0)[:, :height, :width])
    assert lr.shape == (3, height // scale, width // scale)
    assert lr.dtype == torch.uint8


def test_a_set_s_own_lr_files_are_used(tmp_path):
    write(tmp_path / "HR" / "cat.png", 21, 31)
    write(tmp_path / "LR_bicubic" / "X2" / "catx2.png", 10, 15, value=77)
    pictures = datasets.load(tmp_path)
    assert pictures.lr_scales == (2,)
    lr, hr = pictures.pair(0, 2)
    assert hr.shape == (3, 20, 30)
    assert torch.equal(lr, torch.full((3, 10, 15), 77, dtype=torch.uint8))
    assert pictures.pair(0, 3)[0].shape == (3, 7, 10)  # no files at x3: made


def test_folders_named_as_in_div2k_are_read(tmp_path):
    write(tmp_path / "DIV2K_train_HR" / "0001.png", 24, 24)
    write(tmp_path / "DIV2K_train_LR_bicubic" / "X4" / "0001x4.png", 6, 6, value=9)
    assert datasets.load(tmp_path).pair(0, 4)[0].max() == 9
    write(tmp_path / "DIV2K_valid_HR" / "0801.png", 24, 24)
    with pytest.raises(DatasetError, match=r"several folders.*DIV2K_train_HR, DIV2K_valid_HR"):
        datasets.load(tmp_path)


def test_everything_wrong_with_a_folder_is_in_one_message(tmp_path):
    for name in ("ant", "bee", "cow"):
        write(tmp_path / "HR" / f"{name}.png", 24, 36)
    (tmp_path / "HR" / "dog.png").write_text("I am a text")
    write(tmp_path / "LR_bicubic" / "X2" / "antx2.png", 12, 18)
    write(tmp_path / "LR_bicubic" / "X2" / "beex2.png", 13, 18)
    write(tmp_path / "LR_bicubic" / "X2" / "dogx2.png", 12, 18)
    write(tmp_path / "LR_bicubic" / "X2" / "elkx2.png", 12, 18)
    write(tmp_path / "LR_bicubic" / "X3" / "antx3.png", 8, 12)
    (tmp_path / "LR_bicubic" / "X3" / "beex3.png").write_bytes(b"")
    with pytest.raises(DatasetError) as refused:
        datasets.load(tmp_path)
    message = str(refused.value)
    for trouble in (
        "7 trouble(s)",
        "missing: LR_bicubic/X2/cowx2.png",
        "missing: LR_bicubic/X3/cowx3.png",
        "missing: LR_bicubic/X3/dogx3.png",
        "extra: LR_bicubic/X2/elkx2.png",
        "unreadable: HR/dog.png",
        "unreadable: LR_bicubic/X3/beex3.png",
        "wrong size: LR_bicubic/X2/beex2.png is 13x18, but HR 24x36 at x2 needs 12x18",
    ):
        assert trouble in message.replace("\\", "/")


def test_lr_pictures_without_a_folder_per_scale_are_said(tmp_path):
    write(tmp_path / "HR" / "ant.png", 24, 36)
    write(tmp_path / "LR_bicubic" / "antx2.png", 12, 18)
    with pytest.raises(DatasetError, match="LR_bicubic/ has no folder X2"):
        datasets.load(tmp_path)


def test_a_text_called_png_is_named_before_any_work(tmp_path):
    write(tmp_path / "good.png", 8, 8)
    (tmp_path / "bad.png").write_text("hello")
    with pytest.raises(DatasetError, match=r"unreadable: bad\.png"):
        datasets.load(tmp_path)


def test_two_pictures_of_one_name_are_refused(tmp_path):
    write(tmp_path / "cat.png", 8, 8)
    write(tmp_path / "cat.jpg", 8, 8)
    with pytest.raises(DatasetError, match=r"called cat: cat\.jpg and cat\.png"):
        datasets.load(tmp_path)


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(DatasetError, match="has no pictures"):
        datasets.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        datasets.load(tmp_path / "nowhere")
    write(tmp_path / "holiday" / "a.png", 8, 8)
    with pytest.raises(DatasetError, match="it holds folders: holiday"):
        datasets.load(tmp_path)
    (tmp_path / "HR").mkdir()
    with pytest.raises(DatasetError, match="HR/ has no pictures"):
        datasets.load(tmp_path)
    with pytest.raises(DatasetError, match="at least one picture"):
        ImageSet("nothing", {})


@pytest.mark.parametrize("orientation", range(11))
def test_the_header_and_the_picture_agree_on_every_orientation(tmp_path, orientation):
    """Eight are defined; 0, 9 and 10 are mistakes of some camera, and mean nothing."""
    exif = Image.Exif()
    exif[imagesets.ORIENTATION] = orientation
    Image.new("RGB", (40, 20)).save(tmp_path / "photo.png", exif=exif)
    pictures = datasets.load(tmp_path)
    assert pictures.size(0) == tuple(pictures.image(0).shape[-2:])


def test_the_header_gives_the_size_after_rotation(tmp_path):
    upright = Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[imagesets.ORIENTATION] = 6  # a phone held upright
    upright.save(tmp_path / "phone.jpg", exif=exif)
    pictures = datasets.load(tmp_path)
    assert pictures.size(0) == (40, 20) == tuple(pictures.image(0).shape[-2:])


def test_writing_into_a_picture_does_not_change_the_set(tmp_path):
    write(tmp_path / "a.png", 12, 12, value=50)
    pictures = datasets.load(tmp_path)
    pictures.image(0).zero_()
    for picture in pictures.pair(0, 2):
        picture.zero_()
    assert pictures.image(0).min() == 50
    assert pictures.pair(0, 2)[1].min() == 50


def test_decoded_pictures_are_kept_up_to_a_limit(tmp_path, monkeypatch):
    for name in "abc":
        write(tmp_path / f"{name}.png", 10, 10)
    decoded = []
    monkeypatch.setattr(imagesets, "load_image", lambda path: decoded.append(path.stem) or torch.zeros(3, 10, 10))
    monkeypatch.setattr(imagesets, "DECODED_BYTES", 2 * 300)
    pictures = datasets.load(tmp_path)
    for index in (0, 0, 1, 1, 0, 2, 0, 1):  # c drives out b, the one not used for longest
        pictures.image(index)
    assert decoded == ["a", "b", "c", "b"]


def test_the_hash_depends_on_the_pictures_and_not_on_their_place(tmp_path):
    write(tmp_path / "one" / "a.png", 10, 10)
    write(tmp_path / "one" / "b.png", 10, 12)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = datasets.load(tmp_path / "one"), datasets.load(tmp_path / "two")
    assert one.sha256() == two.sha256()
    write(tmp_path / "two" / "b.png", 10, 12, value=3)
    assert one.sha256() != two.sha256()


@pytest.mark.parametrize("scale", [0, -2, 2.5, "2", True, None])
def test_a_scale_that_is_no_whole_number_is_refused(tmp_path, scale):
    write(tmp_path / "a.png", 12, 12)
    with pytest.raises(ValueError, match="whole number from 1 on"):
        datasets.load(tmp_path).pair(0, scale)


def test_a_picture_smaller_than_the_scale_is_refused(tmp_path):
    write(tmp_path / "dot.png", 1, 1)
    pictures = datasets.load(tmp_path)
    assert pictures.image(0).shape == (3, 1, 1)
    with pytest.raises(DatasetError, match="dot is 1x1 pixels: too small for an LR picture at x2"):
        pictures.pair(0, 2)
