"""Facts about picture files: what the eye should see is what the tensor holds, and a bad file says what it is."""

import errno
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2ycbcr

from srlab import images


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def pixels(rng):
    """A picture (H, W, 3) with no symmetry at all."""
    return rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def as_hwc(picture):
    return picture.permute(1, 2, 0).numpy()


def write_png(path, samples, colour_type):
    """A 16-bit PNG by hand: Pillow can read colour at 16 bits but not write it."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


# --- what is inside a good file ---


def test_plain_rgb_comes_as_stored(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = images.load_image(tmp_path / "a.png")
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, 5, 7)
    assert picture.is_contiguous()
    np.testing.assert_array_equal(as_hwc(picture), pixels)


def test_suffix_is_not_trusted(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").rename(tmp_path / "a.png")
    np.testing.assert_array_equal(as_hwc(images.load_image(str(tmp_path / "a.png"))), pixels)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_greyscale_is_repeated_in_three_channels(tmp_path, rng, mode):
    grey = rng.integers(0, 2, (4, 6), dtype=np.uint8) * 255
    Image.fromarray(grey).convert(mode).save(tmp_path / "grey.png")
    picture = images.load_image(tmp_path / "grey.png")
    for channel in picture:
        np.testing.assert_array_equal(channel.numpy(), grey)


def test_one_pixel_loads(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "dot.png")
    assert images.load_image(tmp_path / "dot.png").flatten().tolist() == [1, 2, 3]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_is_rounded_to_eight(tmp_path, suffix):
    samples = np.array([[0, 128, 129, 257, 65535, 65407, 65406, 1000]], dtype=np.uint16)
    Image.fromarray(samples).save(tmp_path / f"deep{suffix}")
    with pytest.warns(images.PictureWarning, match="16 bits"):
        picture = images.load_image(tmp_path / f"deep{suffix}")
    np.testing.assert_array_equal(picture[0].numpy(), np.round(samples / 257))


@pytest.mark.parametrize(("channels", "colour_type"), [(3, 2), (4, 6)])
def test_sixteen_bit_colour_keeps_the_upper_byte_and_says_so(tmp_path, rng, channels, colour_type):
    samples = rng.integers(0, 65536, (3, 4, channels))
    samples[..., 3:] = 65535  # opaque
    write_png(tmp_path / "deep.png", samples, colour_type)
    with pytest.warns(images.PictureWarning, match="upper 8"):
        picture = images.load_image(tmp_path / "deep.png")
    np.testing.assert_array_equal(as_hwc(picture), samples[..., :3] >> 8)


def test_transparent_pixels_show_the_white_page_behind_them(tmp_path, rng):
    rgba = rng.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    rgba[0, 0, 3], rgba[0, 1, 3] = 0, 255
    Image.fromarray(rgba).save(tmp_path / "glass.png")
    with pytest.warns(images.PictureWarning, match=r"glass\.png .* white") as caught:
        picture = as_hwc(images.load_image(tmp_path / "glass.png"))
    assert caught[0].filename == __file__  # the warning points at the line that loaded the picture
    alpha = rgba[..., 3:] / 255
    np.testing.assert_allclose(picture, rgba[..., :3] * alpha + 255 * (1 - alpha), atol=1)
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert picture[0, 1].tolist() == rgba[0, 1, :3].tolist()


def test_grey_with_alpha_is_composited_too(tmp_path):
    Image.fromarray(np.array([[[0, 255], [0, 0], [100, 51]]], dtype=np.uint8)).save(tmp_path / "la.png")
    with pytest.warns(images.PictureWarning, match="transparent"):
        picture = images.load_image(tmp_path / "la.png")
    assert picture[:, 0].tolist() == [[0, 255, 224]] * 3  # 100 * 0.2 + 255 * 0.8


def test_opaque_alpha_is_dropped_in_silence(tmp_path, pixels):
    opaque = np.concatenate([pixels, np.full((5, 7, 1), 255, np.uint8)], axis=2)
    Image.fromarray(opaque).save(tmp_path / "opaque.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = images.load_image(tmp_path / "opaque.png")
    np.testing.assert_array_equal(as_hwc(picture), pixels)


def test_palette_is_looked_up_and_its_transparent_entry_turns_white(tmp_path):
    indexed = Image.new("P", (3, 1))
    indexed.putpalette([10, 20, 30, 200, 100, 0, 7, 7, 7])
    indexed.putdata([0, 1, 2])
    indexed.save(tmp_path / "opaque.png")
    indexed.save(tmp_path / "clear.png", transparency=2)
    assert as_hwc(images.load_image(tmp_path / "opaque.png"))[0].tolist() == [[10, 20, 30], [200, 100, 0], [7, 7, 7]]
    with pytest.warns(images.PictureWarning, match="white"):
        clear = images.load_image(tmp_path / "clear.png")
    assert as_hwc(clear)[0].tolist() == [[10, 20, 30], [200, 100, 0], [255, 255, 255]]


def test_cmyk_inks_become_light(tmp_path):
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], dtype=np.uint8)  # paper, cyan, black
    Image.frombytes("CMYK", (3, 1), inks.tobytes()).save(tmp_path / "print.tif")
    with pytest.warns(images.PictureWarning, match="CMYK"):
        picture = images.load_image(tmp_path / "print.tif")
    assert as_hwc(picture)[0].tolist() == [[255, 255, 255], [0, 255, 255], [0, 0, 0]]


UPRIGHT = {  # EXIF orientation -> how the stored pixels (3, H, W) have to be turned
    1: lambda x: x,
    2: lambda x: x.flip(2),
    3: lambda x: x.rot90(2, (1, 2)),
    4: lambda x: x.flip(1),
    5: lambda x: x.transpose(1, 2),
    6: lambda x: x.rot90(-1, (1, 2)),
    7: lambda x: x.rot90(2, (1, 2)).transpose(1, 2),
    8: lambda x: x.rot90(1, (1, 2)),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_turned_camera_gives_an_upright_picture(tmp_path, pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=exif)
    expected = UPRIGHT[orientation](torch.from_numpy(pixels).permute(2, 0, 1))
    assert images.load_image(tmp_path / "phone.png").equal(expected)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(images.PictureWarning, match="2 frames"):
        picture = images.load_image(tmp_path / "film.gif")
    assert picture[:, 0, 0].tolist() == [255, 0, 0]


def test_a_large_photograph_is_no_bomb_but_a_huge_one_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")  # 1600 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns above this and refuses above its double
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.load_image(tmp_path / "large.png").shape == (3, 40, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(images.PictureError, match="1600"):
        images.load_image(tmp_path / "large.png")


# --- what is wrong with a bad one ---


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_file_is_refused_at_every_length(tmp_path, rng, suffix):
    noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole{suffix}")
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    cut = tmp_path / f"cut{suffix}"
    for kept in (0, 1, 3, 12, 40, len(whole) // 3, len(whole) // 2, len(whole) - 100):
        cut.write_bytes(whole[:kept])
        with pytest.raises(images.PictureError, match="cut"):
            images.load_image(cut)


def test_the_message_for_half_a_picture_says_so(tmp_path, rng):
    Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(images.PictureError, match=r"half\.png says it is a PNG of 48 x 32 pixels .* truncated"):
        images.load_image(tmp_path / "half.png")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"Dear diary,\ntoday I learnt \xc3\xa4 thing.\n", "a text file that begins with 'Dear diary,'"),
        (b"\n <!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
        (b"PK\x03\x04" + bytes(30), "a ZIP archive"),
        (b"\x93NUMPY\x01\x00", "a NumPy array"),
        (b"\x00\x00\x00\x18ftypheic", "an HEIC"),
        (b"\x00\x01\x02\x03\xfe\xff" * 20, r"unknown binary format \(first bytes 00 01 02 03"),
        (b" \n\n ", "unknown binary format"),
    ],
)
def test_a_file_that_is_no_picture_says_what_it_looks_like(tmp_path, content, words):
    (tmp_path / "photo.png").write_bytes(content)
    with pytest.raises(images.PictureError, match=rf"photo\.png can't be read as a picture: it looks like .*{words}"):
        images.load_image(tmp_path / "photo.png")


def test_random_damage_never_escapes_as_another_error(tmp_path, rng):
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "whole.png")
    whole = np.frombuffer((tmp_path / "whole.png").read_bytes(), np.uint8)
    for _ in range(150):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 6)] = rng.integers(0, 256, 6)
        (tmp_path / "damaged.png").write_bytes(damaged.tobytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert images.load_image(tmp_path / "damaged.png").shape[0] == 3
            except images.PictureError as error:
                assert "damaged.png" in str(error)  # noqa: PT017 -- most damage is found, some is harmless


def test_damaged_exif_is_damage_too(tmp_path, monkeypatch, pixels):
    Image.fromarray(pixels).save(tmp_path / "photo.webp")

    def damaged(image, *, in_place):
        raise SyntaxError("not a TIFF file")  # what Pillow says of EXIF it cannot parse

    monkeypatch.setattr(images.ImageOps, "exif_transpose", damaged)
    with pytest.raises(images.PictureError, match=r"photo\.webp .* can't be decoded .*not a TIFF file"):
        images.load_image(tmp_path / "photo.webp")


def test_float_samples_have_no_known_range(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "depth.tif")
    with pytest.raises(images.PictureError, match="floating-point"):
        images.load_image(tmp_path / "depth.tif")


def test_a_missing_file_brings_names_that_are_near(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "butterfly.png")
    with pytest.raises(FileNotFoundError, match=r"did you mean butterfly\.png"):
        images.load_image(tmp_path / "buterfly.png")
    with pytest.raises(FileNotFoundError, match=r"no name in .* looks like it"):
        images.load_image(tmp_path / "zzz.jpg")
    with pytest.raises(FileNotFoundError, match="its folder does not exist either"):
        images.load_image(tmp_path / "nowhere" / "a.png")


def test_a_folder_is_not_a_picture(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        images.load_image(tmp_path)


# --- saving ---


@pytest.mark.parametrize("batched", [False, True])
def test_png_round_trip_is_exact(tmp_path, pixels, batched):
    picture = torch.from_numpy(pixels).permute(2, 0, 1)
    path = images.save_image(tmp_path / "new" / "a.PNG", picture[None] if batched else picture)
    assert images.load_image(path).equal(picture)
    images.save_image(path, images.to_float(picture))
    assert images.load_image(path).equal(picture)


def test_jpeg_keeps_full_colour_resolution(tmp_path):
    stripes = torch.zeros(3, 32, 32, dtype=torch.uint8)
    stripes[0, :, ::2], stripes[2, :, 1::2] = 255, 255  # red and blue columns: halved colour would turn them purple
    path = images.save_image(tmp_path / "a.jpg", stripes)
    error = (images.load_image(path).float() - stripes.float()).abs()
    assert error.mean() < 3


def test_a_disk_that_fills_leaves_the_old_picture(tmp_path, pixels, monkeypatch):
    picture = torch.from_numpy(pixels).permute(2, 0, 1)
    path = images.save_image(tmp_path / "a.png", picture)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        images.save_image(path, 255 - picture)
    assert images.load_image(path).equal(picture)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("name", "picture", "message"),
    [
        ("a.gif", torch.zeros(3, 2, 2), "not .gif"),
        ("a", torch.zeros(3, 2, 2), "without suffix"),
        ("a.png", torch.zeros(2, 2, 3), "expected one RGB picture"),
        ("a.png", torch.zeros(2, 3, 2, 2), "expected one RGB picture"),
        ("a.png", torch.zeros(3, 0, 2), "expected one RGB picture"),
        ("a.png", torch.full((3, 2, 2), torch.nan), "NaN"),
    ],
)
def test_what_cannot_be_saved(tmp_path, name, picture, message):
    with pytest.raises(ValueError, match=message):
        images.save_image(tmp_path / name, picture)
    assert not list(tmp_path.iterdir())


# --- conversions ---


def test_all_grey_values_survive_float_and_back():
    levels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert images.to_uint8(images.to_float(levels)).equal(levels)
    assert images.to_float(levels).max() == 1


def test_rounding_is_half_up_and_clamped():
    values = torch.tensor([-1.0, 0.0, 0.49 / 255, 0.5 / 255, 1.0, 7.0, torch.inf], dtype=torch.float64)
    assert images.to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255, 255]
    assert images.to_uint8(torch.tensor([130 / 256], dtype=torch.bfloat16)).item() == 129  # 129.49, a bfloat16 130


def test_other_integers_are_no_pictures():
    for convert in (images.to_float, images.to_uint8, images.rgb_to_y):
        with pytest.raises(TypeError, match="int64"):
            convert(torch.zeros(3, 2, 2, dtype=torch.int64))


def test_luma_is_that_of_scikit_image(pixels):
    picture = torch.from_numpy(pixels).permute(2, 0, 1)
    y = images.rgb_to_y(picture)
    assert y.shape == (1, 5, 7)
    np.testing.assert_allclose(y[0], rgb2ycbcr(pixels)[..., 0], atol=1e-10)
    torch.testing.assert_close(images.rgb_to_y(picture.double()[None] / 255), y[None])


def test_luma_spans_16_to_235():
    assert images.rgb_to_y(torch.zeros(3, 1, 1)).item() == 16
    assert images.rgb_to_y(torch.ones(3, 1, 1)).item() == pytest.approx(235)
    with pytest.raises(ValueError, match="channels last"):
        images.rgb_to_y(torch.zeros(4, 4, 3))


def test_crop_cuts_at_the_bottom_and_on_the_right():
    picture = torch.arange(7 * 9).view(1, 7, 9)
    assert images.crop_to_multiple(picture, 4).equal(picture[:, :4, :8])
    assert images.crop_to_multiple(picture, 1).equal(picture)
    with pytest.raises(ValueError, match="7 x 9"):
        images.crop_to_multiple(picture, 8)
    for scale in (2.5, 2.0, float("nan"), True, 0):
        with pytest.raises(ValueError, match="scale must be a whole number"):
            images.crop_to_multiple(picture, scale)


def test_a_place_where_no_picture_can_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder.png").mkdir()
    for name, error in (("a.tif", ValueError), ("folder.png", IsADirectoryError), ("file/a.png", NotADirectoryError)):
        with pytest.raises(error, match=name.split("/")[0]):
            images.check_target(tmp_path / name)
    images.check_target(tmp_path / "new" / "folders" / "a.png")
    assert not (tmp_path / "new").exists()
