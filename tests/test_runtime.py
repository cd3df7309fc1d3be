"""Runtime room: runs repeat, figures carry what made them, files are whole or not there."""

import hashlib
import json
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from srlab import runtime


def draw():
    fig = Figure(figsize=(3.5, 2))
    fig.subplots().plot([0, 1], [1, 0], label="a line")
    return fig


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLAB_RESULTS", str(tmp_path))
    return tmp_path


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository of its own that runtime takes for its clone."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "srlab").mkdir()
    monkeypatch.setattr(runtime, "_HERE", tmp_path / "srlab")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "nobody")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "nobody@example.org")

    def git(*words):
        return subprocess.run(
            ["git", "-C", tmp_path, *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    return git


# profile, seed, device


def test_the_same_seed_draws_the_same_numbers_everywhere():
    def numbers():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002  (this generator is the one seeded)

    runtime.start(seed=3)
    first = numbers()
    runtime.start(seed=4)
    other = numbers()
    runtime.start(seed=3)
    assert numbers() == first
    assert all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("seed", [-1, 1.5, True, "0", 2**63, 2**70])
def test_a_seed_that_is_no_whole_number_is_refused(seed):
    with pytest.raises(ValueError, match="whole number"):
        runtime.start(seed)


@pytest.mark.parametrize(("profile", "value"), [("smoke", 1), ("demo", 2), ("paper", 3)])
def test_pick_follows_the_profile(monkeypatch, profile, value):
    monkeypatch.setenv("SRLAB_PROFILE", profile)
    assert runtime.start().pick(smoke=1, demo=2, paper=3) == value


def test_an_unknown_profile_is_named_with_the_known_ones(monkeypatch):
    monkeypatch.setenv("SRLAB_PROFILE", "papper")
    with pytest.raises(ValueError, match=r"'papper'.*smoke, demo, paper"):
        runtime.start()


def test_without_a_variable_tests_are_small_and_people_get_the_demo(monkeypatch):
    monkeypatch.delenv("SRLAB_PROFILE", raising=False)
    assert runtime.profile() == "smoke"
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    assert runtime.profile() == "demo"


def test_a_run_tells_what_it_is_in_text_and_in_a_notebook():
    run = runtime.start(seed=11)
    for shown in (repr(run), run._repr_html_()):
        for fact in ("11", "smoke", str(run.device), run.commit, torch.__version__, f"{torch.get_num_threads()} CPU"):
            assert fact in shown
    assert "<script>" not in replace(run, commit="<script>")._repr_html_()


# files


def test_an_older_file_survives_a_disk_that_fills_midway(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")

    def write(draft):
        draft.write_bytes(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        runtime.atomic_write(path, write)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path], "the draft is gone"


def test_atomic_write_makes_folders_and_keeps_the_suffix(tmp_path):
    seen = []
    path = runtime.atomic_write(tmp_path / "a" / "b.png", lambda draft: seen.append(draft) or draft.write_bytes(b"x"))
    assert path.read_bytes() == b"x"
    assert seen[0].suffix == ".png"
    assert seen[0].parent == path.parent, "on the same disk, so that the rename is one step"
    mode = path.stat().st_mode
    (tmp_path / "plain").write_bytes(b"x")
    assert mode == (tmp_path / "plain").stat().st_mode, "readable by whoever may read a plain file"


def test_shipped_data_is_found_in_a_clone_and_in_a_wheel(tmp_path, monkeypatch):
    assert runtime.repo_data("weights").parent == Path(runtime.__file__).parent.parent / "data"
    (tmp_path / "srlab" / "_data").mkdir(parents=True)
    (tmp_path / "data").mkdir()  # somebody else's, beside the package in site-packages
    monkeypatch.setattr(runtime, "_HERE", tmp_path / "srlab")
    assert runtime.repo_data("weights", "x") == tmp_path / "srlab" / "_data" / "weights" / "x"


def test_tests_never_write_to_the_results_of_the_clone(monkeypatch):
    clone = Path(runtime.__file__).parent.parent
    assert not runtime.results_dir().is_relative_to(clone)
    monkeypatch.delenv("SRLAB_RESULTS")
    assert not runtime.results_dir().is_relative_to(clone)
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    assert runtime.results_dir() == clone / "results"


# figures


def test_files_tell_the_run_as_it_was_at_its_start(results, monkeypatch):
    """Code edited or a variable set while a notebook runs did not make its figures."""
    run = runtime.start(seed=0)
    monkeypatch.setenv("SRLAB_PROFILE", "paper")
    monkeypatch.setattr(runtime, "commit", lambda: "of later")
    monkeypatch.setattr(runtime, "versions", lambda: {"torch": "of later"})
    run.save(draw(), "fig", {"a": [1, 2]}, caption="A line.")
    made = runtime.recorded("table", lambda: pd.DataFrame({"a": [1]}), settings={}).attrs["provenance"]
    for record in (made, json.loads((results / "figures" / "fig.json").read_text(encoding="utf-8"))):
        assert (record["profile"], record["commit"], record["versions"]) == ("smoke", run.commit, run.versions)


def test_a_saved_figure_has_its_pictures_numbers_and_provenance(results):
    run = runtime.start(seed=5)
    fig = draw()
    data = {"layer": ["a", "b", "c"], "cka": torch.tensor([0.1, 0.2, 1 / 3], dtype=torch.float64)}
    assert run.save(fig, "cka-by-layer", data, caption="Similarity rises with depth (×).") is fig
    folder = results / "figures"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"cka-by-layer.{s}" for s in ("csv", "json", "pdf", "png", "svg")
    ]

    back = pd.read_csv(folder / "cka-by-layer.csv", float_precision="round_trip")
    assert back["cka"].tolist() == data["cka"].tolist(), "every digit"
    record = json.loads((folder / "cka-by-layer.json").read_text(encoding="utf-8"))
    assert record["data_sha256"] == hashlib.sha256((folder / "cka-by-layer.csv").read_bytes()).hexdigest()
    assert (record["seed"], record["profile"], record["commit"]) == (5, "smoke", run.commit)
    assert record["versions"]["torch"] == torch.__version__

    with Image.open(folder / "cka-by-layer.png") as picture:
        assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert picture.info["Description"] == record["caption"]
        assert json.loads(picture.info["Comment"])["data_sha256"] == record["data_sha256"]
    pdf = (folder / "cka-by-layer.pdf").read_bytes()
    assert b"/CIDFontType2" in pdf, "TrueType fonts, which stay text"
    assert b"/Type3" not in pdf


def test_the_same_figure_made_twice_is_the_same_file(results):
    run = runtime.start()

    def files():
        run.save(draw(), "line", {"y": [1, 0]}, caption="A line falls.")
        return {s: (results / "figures" / f"line.{s}").read_bytes() for s in ("png", "pdf", "svg", "csv")}

    assert files() == files()


def test_a_saved_figure_is_shown_once_in_a_notebook(results):
    from matplotlib import pyplot as plt

    fig, _ = plt.subplots()
    runtime.start().save(fig, "once", {"y": [1]}, caption="Nothing but axes.")
    assert fig.number not in plt.get_fignums(), "else the inline backend shows it a second time"


def test_columns_of_unequal_length_single_values_and_an_index_become_a_table(results):
    run = runtime.start()
    run.save(draw(), "uneven", {"a": [1, 2, 3], "b": np.array([0.5]), "c": 7}, caption="Uneven columns.")
    table = pd.read_csv(results / "figures" / "uneven.csv")
    assert table["a"].tolist() == [1, 2, 3]
    assert table["b"].tolist()[0] == 0.5
    assert table["b"].isna().tolist() == [False, True, True]
    run.save(draw(), "named", pd.DataFrame({"psnr": [30.0]}, index=pd.Index(["baby"], name="image")), caption="Named.")
    assert pd.read_csv(results / "figures" / "named.csv")["image"].tolist() == ["baby"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../x"}, "figure name"),
        ({"name": ""}, "figure name"),
        ({"caption": "  "}, "no caption"),
        ({"data": {}}, "expected a DataFrame"),
        ({"data": [1, 2]}, "expected a DataFrame"),
        ({"data": {"map": np.zeros((2, 2))}}, r"'map'.*shape \(2, 2\).*one axis"),
    ],
)
def test_a_figure_without_name_caption_or_numbers_is_refused_and_nothing_written(results, change, message):
    arguments = {"name": "fine", "data": {"y": [1]}, "caption": "Fine."} | change
    with pytest.raises(ValueError, match=message):
        runtime.start().save(draw(), **arguments)
    assert not (results / "figures").exists()


# provenance


def test_commit_says_clean_dirty_or_unknown(clone, tmp_path):
    assert runtime.commit() == "unknown", "no commit yet"
    clone("add", ".")
    clone("commit", "-qm", "first")
    assert runtime.commit() == clone("rev-parse", "HEAD")[:12]
    (tmp_path / "pyproject.toml").write_text("# changed")
    assert runtime.commit() == clone("rev-parse", "HEAD")[:12] + "-dirty"


def test_a_package_installed_inside_somebody_elses_repository_has_no_commit(clone, tmp_path, monkeypatch):
    inside = tmp_path / "venv" / "site-packages" / "srlab"
    inside.mkdir(parents=True)
    monkeypatch.setattr(runtime, "_HERE", inside)
    assert runtime.commit() == "unknown"
    assert runtime.project_root() is None


# recorded results


def counting(values):
    calls = []

    def compute():
        calls.append(1)
        return pd.DataFrame({"value": values, "name": ["b"] * len(values)})

    return compute, calls


def test_a_slow_result_is_computed_once_for_each_settings(results, capsys):
    compute, calls = counting([0.1, 1 / 3])
    first = runtime.recorded("slow", compute, settings={"pictures": 4, "scales": (2, 3)})
    again = runtime.recorded("slow", compute, settings={"scales": [2, 3], "pictures": 4})
    assert len(calls) == 1
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert again["value"].tolist() == [0.1, 1 / 3]
    assert again.attrs["provenance"]["settings"] == {"pictures": 4, "scales": [2, 3]}
    assert "commit" in capsys.readouterr().out

    runtime.recorded("slow", compute, settings={"pictures": 5, "scales": (2, 3)})
    assert len(calls) == 2, "other settings are another result"
    runtime.recorded("slow", compute, settings={"pictures": 4, "scales": (2, 3)})
    assert len(calls) == 2, "and do not push the first one out"
    runtime.recorded("slow", compute, settings={"pictures": 4, "scales": (2, 3)}, refresh=True)
    assert len(calls) == 3


def test_shipped_results_are_read_and_written_only_on_request(results, clone, tmp_path, monkeypatch):
    compute, calls = counting([1.0])
    monkeypatch.setenv("SRLAB_RECORD", "1")
    runtime.start(seed=8)
    runtime.recorded("shipped", compute, settings={"n": 1})
    shipped = tmp_path / "data" / "results" / "shipped.csv"
    assert shipped.is_file()
    assert json.loads(shipped.with_suffix(".json").read_text())["seed"] == 8
    monkeypatch.delenv("SRLAB_RECORD")
    runtime.recorded("shipped", compute, settings={"n": 1})
    assert len(calls) == 1
    assert not (results / "recorded").exists()


def test_what_takes_hours_is_made_only_on_request_and_the_error_says_how(results, clone, monkeypatch):
    compute, calls = counting([1.0])
    about = {"made_by": "`srlab train`"}
    with pytest.raises(runtime.RecordError, match=r"slow\.csv is missing: `srlab train` makes it anew"):
        runtime.recorded("slow", compute, settings={"n": 1, "sets": ["a"]}, **about)
    assert not calls
    monkeypatch.setenv("SRLAB_RECORD", "1")
    runtime.recorded("slow", compute, settings={"n": 1, "sets": ["a"]}, **about)
    monkeypatch.delenv("SRLAB_RECORD")
    assert runtime.recorded("slow", compute, settings={"n": 1, "sets": ["a"]}, **about)["value"].tolist() == [1.0]
    with pytest.raises(runtime.RecordError, match="was made with other sets than this project now has"):
        runtime.recorded("slow", compute, settings={"n": 1, "sets": ["b"]}, **about)
    assert len(calls) == 1


def test_a_table_edited_by_hand_is_refused(results):
    compute, _ = counting([1.0])
    runtime.recorded("edited", compute, settings={})
    (path,) = (results / "recorded").glob("edited-*.csv")
    path.write_text(path.read_text().replace("1.0", "2.0"))
    with pytest.raises(runtime.RecordError, match=r"edited.*refresh=True"):
        runtime.recorded("edited", compute, settings={})
    assert runtime.recorded("edited", compute, settings={}, refresh=True)["value"].tolist() == [1.0]


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_damaged_provenance_is_refused_with_the_name_of_its_file(results, text):
    compute, _ = counting([1.0])
    runtime.recorded("cut", compute, settings={})
    (path,) = (results / "recorded").glob("cut-*.json")
    path.write_text(text)
    with pytest.raises(runtime.RecordError, match=r"cut-.*\.json .* [Dd]elete it"):
        runtime.recorded("cut", compute, settings={})
    assert runtime.recorded("cut", compute, settings={}, refresh=True)["value"].tolist() == [1.0]


def test_line_ends_of_windows_do_not_count_as_an_edit(results):
    compute, calls = counting([1.0])
    runtime.recorded("crlf", compute, settings={})
    (path,) = (results / "recorded").glob("crlf-*.csv")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    runtime.recorded("crlf", compute, settings={})
    assert len(calls) == 1


def test_settings_that_cannot_be_written_down_are_refused_before_any_work(results):
    compute, calls = counting([1.0])
    with pytest.raises(ValueError, match=r"settings of 'bad'"):
        runtime.recorded("bad", compute, settings={"model": torch.nn.Identity()})
    assert not calls
