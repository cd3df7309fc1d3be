"""Which run made a file: told by the file beside it, by the picture itself, and refused where neither knows."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from srlab import models, provenance, runtime, weights


@pytest.fixture
def figure(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLAB_RESULTS", str(tmp_path))
    monkeypatch.setattr(runtime, "_current", None)
    fig = Figure()
    fig.subplots().plot([1, 2], label='a <quoted> & "named" line')
    runtime.start(seed=7).save(fig, "two", {"value": [1, 2]}, caption="Two points & a line.")
    return tmp_path / "figures" / "two.png"


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".csv", ".json"])
def test_a_figure_names_its_run(figure, suffix):
    told = "\n".join(provenance.verify(figure.with_suffix(suffix)))
    assert "Two points & a line." in told
    assert runtime.commit() in told
    assert "seed      7" in told
    assert "two.csv is what the run wrote" in told


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_on_its_own_still_knows(figure, suffix, tmp_path):
    alone = tmp_path / f"sent{suffix}"
    shutil.copy(figure.with_suffix(suffix), alone)
    told = "\n".join(provenance.verify(alone))
    assert "the picture's own metadata" in told
    assert runtime.commit() in told
    assert "sent.csv is not here" in told


def test_an_edited_table_is_refused(figure):
    table = figure.with_suffix(".csv")
    table.write_text(table.read_text().replace("2", "3"))
    with pytest.raises(provenance.UnknownOriginError, match="changed after the run"):
        list(provenance.verify(figure))


def test_weights_name_the_run_that_trained_them(tmp_path):
    card = {"commit": "abc123", "data_sha256": "of the pictures", "recipe": {"steps": 3, "data": "bsd400"}}
    weights.save(models.build("edsr-nano", "spconv", (2,)), tmp_path / "m.safetensors", card)
    told = list(provenance.verify(tmp_path / "m.safetensors"))
    assert told[0] == "m.safetensors: weights of edsr-nano with spconv"
    assert {"  commit    abc123", "  recipe    steps 3, data bsd400"} < set(told)
    assert told[-1].startswith("  unchecked m.safetensors")


def test_only_the_table_is_said_to_be_as_it_was(figure):
    assert not any("unchecked" in line for line in provenance.verify(figure.with_suffix(".csv")))
    for suffix in (".png", ".svg", ".pdf", ".json"):
        assert list(provenance.verify(figure.with_suffix(suffix)))[-1].startswith(f"  unchecked two{suffix}")


@pytest.mark.parametrize("comment", ["Created with GIMP", "5", '{"commit": "somebody else\'s"}'])
def test_words_of_other_programs_in_a_picture_are_no_origin(tmp_path, comment):
    words = PngInfo()
    words.add_text("Comment", comment)
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png", pnginfo=words)
    with pytest.raises(provenance.UnknownOriginError, match="does not say which run"):
        list(provenance.verify(tmp_path / "photo.png"))


@pytest.mark.parametrize("header", [{"format": "pt"}, {"srlab": "[1]"}, {"srlab": '{"card": 1, "config": {}}'}])
def test_weights_of_other_programs_have_no_origin(tmp_path, header):
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "m.safetensors", header)
    with pytest.raises(provenance.UnknownOriginError, match="does not say which run"):
        list(provenance.verify(tmp_path / "m.safetensors"))


@pytest.mark.parametrize("name", ["m.safetensors", "photo.png", "table.csv"])
def test_a_damaged_file_is_refused_in_words(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    (tmp_path / "table.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(provenance.UnknownOriginError, match="cannot be read"):
        list(provenance.verify(tmp_path / name))


@pytest.mark.parametrize("name", ["unseen_scales.csv", "benchmarks.csv", "07_kernel_field.png"])
def test_what_ships_with_the_project_is_as_it_was_made(name):
    assert any("commit" in line for line in provenance.verify(runtime.repo_data("results", name)))


def test_what_says_nothing_is_refused(tmp_path):
    (tmp_path / "photo.svg").write_text("<svg/>")
    (tmp_path / "list.csv").write_text("a\n1\n")
    (tmp_path / "list.json").write_text(json.dumps([1]))
    for name in ("photo.svg", "list.csv"):
        with pytest.raises(provenance.UnknownOriginError, match="does not say which run"):
            list(provenance.verify(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="is not there"):
        list(provenance.verify(tmp_path / "absent.png"))
