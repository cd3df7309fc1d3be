"""Named sets and training crops."""

import io
import os
import re
import socket
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from srlab import datasets, fetch, imagesets
from srlab.datasets import CropStore, DatasetError, FetchError, ImageSet


@pytest.fixture
def empty_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SRLAB_MIRROR", raising=False)
    monkeypatch.setattr(fetch, "PAUSE", 0.0)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- named sets -------------------------------------------------------------------------------------------------------


def test_demo_needs_no_network_and_starts_with_everyday_photographs(empty_machine, no_network):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        demo = datasets.load("demo")
        pictures = [demo.image(index) for index in range(len(demo))]
    assert len(demo) == 10
    assert demo.names[:3] == ("coffee", "chelsea", "astronaut")
    assert set(demo.names[-3:]) == {"immunohistochemistry", "retina", "hubble_deep_field"}
    for index, picture in enumerate(pictures):
        assert picture.dtype == torch.uint8
        assert picture.shape == (3, *demo.size(index))
        assert min(picture.shape[-2:]) >= 300
        assert not torch.equal(picture[0], picture[2])  # colour


def test_demo_pictures_are_those_of_the_packages():
    import skimage.data
    from sklearn.datasets import load_sample_image

    demo = datasets.load("demo")
    for name, theirs in (("chelsea", skimage.data.chelsea()), ("flower", load_sample_image("flower.jpg"))):
        ours = demo.image(demo.names.index(name)).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(ours, theirs)


def test_demo_says_which_pictures_the_installed_packages_lack(monkeypatch):
    monkeypatch.setattr(datasets, "DEMO", (*datasets.DEMO[:2], ("unicorn", "skimage", "data/unicorn.png")))
    with pytest.warns(UserWarning, match="unicorn not in the installed"):
        assert datasets.load("demo").names == ("coffee", "chelsea")


@pytest.mark.parametrize(("name", "near"), [("Set5", "set5"), ("urban", "urban100"), ("bsd4000", "bsd400")])
def test_an_unknown_name_lists_the_sets_and_near_ones(name, near):
    with pytest.raises(DatasetError) as refused:
        datasets.load(name)
    assert re.search(rf"Did you mean .*'{near}'", str(refused.value))
    for known in datasets.NAMES:
        assert known in str(refused.value)


@pytest.mark.parametrize("name", ["", " "])
def test_no_name_is_not_the_folder_one_happens_to_be_in(name, tmp_path, monkeypatch):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match="name of the set is empty"):
        datasets.load(name)
    assert len(datasets.load(".")) == 1


def fill_mirror(monkeypatch, tmp_path, names, lr_scales=()):
    """A folder that repeats small pictures as the files of set5 and urban100, and tables that pin them."""

    def pinned(path, height, width):
        target = tmp_path / "stick" / "someone" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((height, width, 3), len(path), dtype=np.uint8)).save(target)
        url = f"http://127.0.0.1:1/someone/{path}"  # nothing listens there
        return fetch.PinnedFile(path, url, fetch.file_sha256(target), target.stat().st_size)

    entries = [pinned(f"HR/{name}.png", 24, 36) for name in names]
    for scale in lr_scales:
        entries += [pinned(f"LR_bicubic/X{scale}/{name}x{scale}.png", 24 // scale, 36 // scale) for name in names]
    monkeypatch.setattr(datasets, "read_registry", lambda name: tuple(entries))
    monkeypatch.setenv("SRLAB_MIRROR", str(tmp_path / "stick"))
    return tmp_path / "stick" / "someone"


def test_a_set_from_a_mirror_folder(empty_machine, tmp_path, monkeypatch):
    fill_mirror(monkeypatch, tmp_path, ["baby", "bird"], lr_scales=(2, 4))
    pictures = datasets.load("set5")
    assert pictures.name == "set5"
    assert pictures.names == ("baby", "bird")
    assert pictures.lr_scales == (2, 4)
    assert pictures.pair(1, 4)[0].unique().item() == len("LR_bicubic/X4/birdx4.png")
    assert not (tmp_path / "cache").exists()  # used in place


def test_a_set_with_files_that_cannot_be_had_names_them(empty_machine, tmp_path, monkeypatch):
    folder = fill_mirror(monkeypatch, tmp_path, [f"img_{index:03}_SRF_4_HR" for index in range(1, 5)])
    for index in (3, 4):
        (folder / f"HR/img_{index:03}_SRF_4_HR.png").unlink()
    with pytest.raises(FetchError) as refused:
        datasets.load("urban100")
    message = str(refused.value)
    assert "2 of 4 files are not on this machine" in message
    assert "img_003_SRF_4_HR.png, img_004_SRF_4_HR.png" in message
    assert "partial=True" in message
    assert str(folder / "HR" / "img_003_SRF_4_HR.png") in message  # where it may be put

    some = datasets.load("urban100", partial=True)
    assert some.name == "urban100 (2 of 4 files)"
    assert some.names == ("img_001", "img_002")
    assert [row[1:3] for row in datasets.status() if row.name == "urban100"] == [(2, 4)]


def test_a_part_of_a_set_without_any_file_is_refused(empty_machine, tmp_path, monkeypatch):
    fill_mirror(monkeypatch, tmp_path, ["baby"])
    monkeypatch.delenv("SRLAB_MIRROR")
    with pytest.raises(FetchError, match="none of its 1 files is on this machine; `srlab fetch set5`"):
        datasets.load("set5", partial=True)


def test_a_part_of_the_lr_files_of_a_scale_is_not_mixed_with_made_ones(empty_machine, tmp_path, monkeypatch):
    folder = fill_mirror(monkeypatch, tmp_path, ["baby", "bird"], lr_scales=(2, 4))
    (folder / "LR_bicubic/X2/birdx2.png").unlink()
    assert datasets.load("set5", partial=True).lr_scales == (4,)


def test_status_says_what_is_here_and_how_to_get_the_rest(empty_machine):
    rows = {row.name: row for row in datasets.status()}
    assert tuple(rows) == datasets.NAMES
    assert rows["demo"].present == rows["demo"].total == 10
    assert (rows["bsd400"].present, rows["bsd400"].total) == (0, 400)
    assert rows["set14"].command == "srlab fetch set14"


@pytest.mark.benchmark_data("set5", "set14")
@pytest.mark.parametrize(("name", "count"), [("set5", 5), ("set14", 14)])
def test_benchmark_sets_have_lr_files_of_every_scale(name, count):
    pictures = datasets.load(name)
    assert len(pictures) == count
    assert pictures.lr_scales == (2, 3, 4, 8)
    for index in range(count):
        for scale in pictures.lr_scales:
            lr, hr = pictures.pair(index, scale)
            assert hr.shape == (3, lr.shape[1] * scale, lr.shape[2] * scale)


@pytest.mark.benchmark_data("b100", "bsd400")
def test_training_and_benchmark_pictures_of_bsds_are_different_ones():
    train, test = datasets.load("bsd400"), datasets.load("b100")
    assert (len(train), len(test)) == (400, 100)
    assert not set(train.names) & set(test.names)
    hashes = [imagesets.file_sha256(pictures.path(i)) for pictures in (train, test) for i in range(len(pictures))]
    assert len(set(hashes)) == 500


# --- crops ------------------------------------------------------------------------------------------------------------


def write_png(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(picture, dtype=np.uint8)).save(path)
    return path


def map_pictures(folder, sizes, scales):
    """Pictures whose pixels say where they are: red the LR row, green the LR column, blue the picture.

    At a scale an HR pixel says the place of the LR pixel that it belongs to; each scale is a set of its own.
    """
    sets = {}
    for scale in scales:
        hr, lr = {}, {}
        for index, (height, width) in enumerate(sizes):
            rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
            place = np.stack([rows, columns, np.full_like(rows, index)], axis=-1)  # (h, w, 3)
            name = f"map{index}"
            lr[name] = write_png(folder / f"lr{scale}" / f"{name}.png", place)
            hr[name] = write_png(folder / f"hr{scale}" / f"{name}.png", place.repeat(scale, 0).repeat(scale, 1))
        sets[scale] = ImageSet("maps", hr, {scale: lr})
    return sets


def noise_set(folder, sizes, name="noise"):
    noise = np.random.default_rng(0)
    return ImageSet(
        name,
        {
            f"n{index}": write_png(folder / f"n{index}.png", noise.integers(0, 256, (*size, 3)))
            for index, size in enumerate(sizes)
        },
    )


def the_eight(picture):
    """All flips and transposes of (..., H, W), by rotation and one mirror."""
    return [torch.rot90(p, turns, (-2, -1)) for p in (picture, picture.flip(-1)) for turns in range(4)]


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_every_hr_pixel_lies_over_its_lr_pixel(tmp_path, scale):
    pictures = map_pictures(tmp_path, [(9, 14), (12, 8), (20, 20)], [scale])[scale]
    lr, hr = CropStore(pictures, (scale,)).batch(scale, 64, 6, seeded())
    assert lr.shape == (64, 3, 6, 6)
    assert hr.shape == (64, 3, 6 * scale, 6 * scale)
    assert lr.dtype == hr.dtype == torch.uint8
    # a crop of a map is right if its rows and columns count up or down by one, whichever way it lies
    assert torch.equal(lr.repeat_interleave(scale, -2).repeat_interleave(scale, -1), hr)
    for crop in lr:
        assert {int(crop[channel].unique().numel()) for channel in (0, 1)} == {6}
        assert crop[2].unique().numel() == 1  # from one picture


def test_every_picture_place_and_turn_is_equally_likely(tmp_path):
    """Chi-square of 6,000 draws over 2 pictures x 3 x 2 places x 8 turns, 62.5 expected in each cell."""
    pictures = map_pictures(tmp_path, [(5, 4), (5, 4)], [2])[2]
    store = CropStore(pictures, (2,))
    lr, _ = store.batch(2, 6000, 3, seeded(1))
    corners = lr[:, :, [0, 0, 2], [0, 2, 0]].flatten(1)  # three corners tell place and turn
    _, counts = torch.cat([corners], dim=1).unique(dim=0, return_counts=True)
    assert len(counts) == 2 * 3 * 2 * 8
    expected = 6000 / len(counts)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 142  # 95 degrees of freedom: 0.1 % lie above


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_crops_are_parts_of_the_whole_lr_and_hr_pictures(tmp_path, scale):
    pictures = noise_set(tmp_path, [(37, 50)])
    whole_lr, whole_hr = pictures.pair(0, scale)
    lr, hr = CropStore(pictures, (2, 3, 4)).batch(scale, 12, 5, seeded(2))
    windows = whole_lr.unfold(1, 5, 1).unfold(2, 5, 1)  # (3, rows, columns, 5, 5)
    for small, large in zip(lr, hr, strict=True):
        found = [
            (int(row), int(column), turned_large)
            for turned, turned_large in zip(the_eight(small), the_eight(large), strict=True)
            for row, column in (windows == turned[:, None, None]).all(-1).all(-1).all(0).nonzero()
        ]
        assert len(found) == 1
        row, column, turned_large = found[0]
        part = whole_hr[:, row * scale : (row + 5) * scale, column * scale : (column + 5) * scale]
        assert torch.equal(turned_large, part)


def test_the_generator_alone_decides_and_moves_on_by_the_same_amount(tmp_path):
    store = CropStore(noise_set(tmp_path, [(40, 44), (60, 48)]), (2, 4))
    first, again, other = (store.batch(2, 8, 6, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    generators = seeded(7), seeded(7)
    store.batch(2, 8, 6, generators[0])
    store.batch(4, 8, 9, generators[1])
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    """Pictures above the limit for memory, and the folder where they go."""
    monkeypatch.setattr(datasets, "MEMORY_BYTES", 0)
    return noise_set(tmp_path / "pictures", [(30, 41), (26, 22)]), tmp_path / "store"


def test_large_sets_live_in_files_and_give_the_same_crops(mapped, monkeypatch):
    pictures, folder = mapped
    from_files = CropStore(pictures, (2, 3), folder)
    assert len(list(folder.iterdir())) == 3  # hr, x2, x3; nothing temporary
    monkeypatch.setattr(datasets, "MEMORY_BYTES", 2**30)
    in_memory = CropStore(pictures, (2, 3), folder)
    for scale in (2, 3):
        for ours, theirs in zip(
            from_files.batch(scale, 6, 5, seeded()), in_memory.batch(scale, 6, 5, seeded()), strict=True
        ):
            assert torch.equal(ours, theirs)


def test_files_of_a_large_set_are_used_again_and_only_missing_scales_are_made(mapped, monkeypatch):
    pictures, folder = mapped
    CropStore(pictures, (2,), folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    CropStore(pictures, (2, 3), folder)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(after) == 3
    assert before.items() <= after.items()

    def refuse(path):
        raise AssertionError("decoded again")

    monkeypatch.setattr(datasets, "load_image", refuse)
    CropStore(pictures, (2, 3), folder)


def test_a_store_that_was_not_finished_is_not_taken_for_a_whole_one(mapped, monkeypatch):
    pictures, folder = mapped

    def pull_the_plug(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_image", pull_the_plug)
        with pytest.raises(KeyboardInterrupt):
            CropStore(pictures, (2,), folder)
    assert not list(folder.iterdir())
    CropStore(pictures, (2,), folder)
    cut = next(folder.glob("*-hr.bytes"))
    cut.write_bytes(cut.read_bytes()[:100])
    lr, hr = CropStore(pictures, (2,), folder).batch(2, 4, 5, seeded())
    assert hr.float().std() > 50  # noise, not the zeros of a file that was never filled
    assert lr.float().std() > 10


def test_files_of_a_large_set_are_on_the_disk_before_they_have_their_name(mapped, monkeypatch):
    pictures, folder = mapped
    done, fsync, replace = [], os.fsync, os.replace

    def synced(file):
        done.append(os.fstat(file).st_ino)
        fsync(file)

    def named(new, name):
        assert os.stat(new).st_ino in done
        replace(new, name)

    monkeypatch.setattr(datasets.os, "fsync", synced)
    monkeypatch.setattr(datasets.os, "replace", named)
    CropStore(pictures, (2,), folder)
    assert len(done) == 2


def test_a_disk_too_small_for_the_store_is_said_beforehand(mapped, monkeypatch):
    pictures, folder = mapped
    monkeypatch.setattr(datasets.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(OSError, match=r"decoded pictures, 0\.0 GB free"):
        CropStore(pictures, (2,), folder)


def test_pictures_smaller_than_the_patch_are_named(tmp_path):
    pictures = noise_set(tmp_path, [(60, 60), (60, 30), (24, 60)])
    with pytest.raises(DatasetError, match=r"2 of 3 LR pictures at x3 .* 16x16 patch: n1 \(20x10\), n2 \(8x20\)"):
        CropStore(pictures, (2, 3), patch=16)
    store = CropStore(pictures, (2, 3))
    assert store.batch(2, 2, 12, seeded())[0].shape == (2, 3, 12, 12)  # as large as the smallest side
    with pytest.raises(DatasetError, match=r"n2 \(12x30\)"):
        store.batch(2, 2, 13, seeded())
    with pytest.raises(DatasetError, match=r"n2 \(0x0\)"):
        CropStore(pictures, (61,))


def test_what_a_store_cannot_do_is_said(tmp_path):
    pictures = noise_set(tmp_path, [(30, 30)])
    with pytest.raises(ValueError, match="scales is empty"):
        CropStore(pictures, ())
    with pytest.raises(ValueError, match=r"whole number from 1 on.*2\.5"):
        CropStore(pictures, (2, 2.5))
    store = CropStore(pictures, (2, 3))
    with pytest.raises(ValueError, match=r"scale 4 is not in this store, which was made for \(2, 3\)"):
        store.batch(4, 2, 4, seeded())
    with pytest.raises(ValueError, match="at least 1"):
        store.batch(2, 0, 4, seeded())


def test_a_store_moves_as_a_whole(tmp_path):
    store = CropStore(noise_set(tmp_path, [(30, 30)]), (2,))
    assert store.to("cpu").device == torch.device("cpu")
    assert store.to("meta").batch(2, 3, 5, seeded())[1].device.type == "meta"
    assert store.device == torch.device("cpu")  # the first one stays where it is


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_crops_on_a_gpu_are_those_on_the_cpu(tmp_path):
    store = CropStore(noise_set(tmp_path, [(30, 30), (40, 33)]), (2,))
    for ours, theirs in zip(store.to("cuda").batch(2, 16, 6, seeded()), store.batch(2, 16, 6, seeded()), strict=True):
        assert torch.equal(ours.cpu(), theirs)


def decode_crop_resize(files, scale, size, patch, random):
    """What loaders that keep nothing do for every sample: decode the JPEG, crop, flip, shrink the crop with Pillow."""
    lr, hr = [], []
    side = patch * scale
    for _ in range(size):
        picture = np.asarray(Image.open(io.BytesIO(files[random.integers(len(files))])))
        row, column = (random.integers(length - side + 1) for length in picture.shape[:2])
        crop = picture[row : row + side, column : column + side]
        crop = crop[:: random.choice((-1, 1)), :: random.choice((-1, 1))]
        small = Image.fromarray(np.ascontiguousarray(crop)).resize((patch, patch), Image.Resampling.BICUBIC)
        lr.append(torch.from_numpy(np.array(small)).permute(2, 0, 1))
        hr.append(torch.from_numpy(crop.copy()).permute(2, 0, 1))
    return torch.stack(lr), torch.stack(hr)


@pytest.mark.parametrize(("scale", "goal"), [(2, 9), (3, 6), (4, 6)])
def test_batches_come_many_times_faster_than_by_decoding_each_sample(tmp_path, scale, goal):
    """Both sides in one process, turn about; the best of several rounds, so that a busy machine does not decide."""
    chelsea = Image.open(datasets.load("demo").path(0)).convert("RGB").resize((481, 321))
    for index in range(4):
        chelsea.rotate(180 * index).save(tmp_path / f"{index}.jpg", quality=90)
    files = [path.read_bytes() for path in sorted(tmp_path.glob("*.jpg"))]
    store, generator, random = CropStore(datasets.load(tmp_path), (scale,)), seeded(), np.random.default_rng(0)

    def seconds(draw):
        start = time.perf_counter()
        draw()
        return time.perf_counter() - start

    rounds = [
        (
            seconds(lambda: decode_crop_resize(files, scale, 16, 48, random)),
            seconds(lambda: store.batch(scale, 16, 48, generator)),
        )
        for _ in range(8)
    ]
    theirs, ours = (min(times) for times in zip(*rounds, strict=True))
    assert theirs / ours > goal
