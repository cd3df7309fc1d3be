"""Command line: what is asked for is done, mistakes end in one line, and nothing heavy is loaded before its time."""

import dataclasses
import os
import re
import subprocess
import sys

import pandas as pd
import pytest
import torch

from srlab import cli, datasets, doctor, evaluate, images, metrics, models, resize, runtime, statistics, train, weights


@pytest.fixture
def photos(tmp_path):
    """A folder with three small pictures."""
    folder = tmp_path / "photos"
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b", "c"):
        coarse = torch.rand(3, 9, 8, generator=generator)
        images.save_image(folder / f"{name}.png", resize.imresize(coarse, 4).clamp(0, 1))  # (3, 36, 32)
    return folder


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A machine with an empty cache, no mirror and no network."""
    monkeypatch.setenv("SRLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SRLAB_MIRROR", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")


def run_in_new_process(*words):
    return subprocess.run([sys.executable, "-m", "srlab", *words], capture_output=True, text=True, timeout=120)


# help


def test_help_loads_neither_torch_nor_any_other_heavy_package():
    code = """
import sys
from srlab import cli
assert cli.main(["--help"]) == 0
heavy = {"torch", "numpy", "pandas", "matplotlib", "scipy", "skimage", "nbformat"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in cli.COMMANDS)


def test_the_module_runs_as_a_command():
    done = run_in_new_process("--version")
    assert done.returncode == 0
    assert done.stdout.split()[0] == "srlab"


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help_with_an_example_that_its_parser_accepts(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    example = cli.COMMANDS[command].example
    assert example in shown
    parser = cli.Parser(prog="srlab")
    cli.COMMANDS[command].add_options(parser)
    parser.parse_args(example.split()[2:])


def test_train_help_shows_every_field_with_its_docstring_and_default(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(train.Recipe):
        assert f"--{field.name.replace('_', '-')}" in shown
        first_words = " ".join(train.field_docs()[field.name].split()[:3])
        assert first_words in shown
    assert "Default: 0.9 0.99" in shown


# mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["upscal"], "did you mean upscale?"),
        (["upscale", "{picture}", "--scale", "2", "--model", "C:\\nets\\model.bin"], "is no checkpoint: expected"),
        (["upscale", "{picture}", "--scale", "2", "--model", "none.pth", "--output", "o.tif"], "can write .png"),
        (["upscale", "{picture}", "--scale", "1000000"], "for which memory does not suffice"),
        (["upscale", "none.png", "--scale", "2", "--model", "bicubic"], "none.png"),
        (["upscale", "x.png", "--scale", "2.5"], "whole number"),
        (["upscale", "x.png", "--scale", "0"], "whole number"),
        (["upscale", "x.png", "--scale", "-2"], "scale"),
        (["upscale", "x.png"], "--scale"),
        (["upscale", "{picture}", "--scale", "2", "--model", "bicubik"], "bicubik"),
        (["upscale", "{picture}", "--scale", "2", "--model", "bicubic", "--output", "{picture}"], "the picture itself"),
        (["upscale", "{picture}", "--scale", "2", "--model", "{picture}.pth"], "no checkpoint file"),
        (["evaluate"], "name a model"),
        (["evaluate", "bicubic", "--data", "set55"], "set5"),
        (["evaluate", "bicubic", "--output", "scores.txt"], ".csv"),
        (["evaluate", "bicubic", "--data", "{folder}", "{folder}"], "called alike"),
        (["cka", "nowhere:model", "edsr-tiny-igconv", "--data", "{folder}"], "expected module:function"),
        (["cka", "bicubic", "edsr-tiny-igconv", "--data", "{folder}"], "nn.Sequential"),
        (["cka", *["edsr-tiny-igconv"] * 2, "--data", "{folder}", "--layers-a", "bodi.*"], "matches nothing"),
        (["cka", "edsr-tiny-igconv"], "NAME"),
        (["fetch", "imdm-x2"], "did you mean imdn-x2"),
        (["models", "imdm-x2"], "imdn-x2"),
        (["train"], "expected one of smoke, demo"),
        (["train", "--recipe", "demmo"], "'demmo'"),
        (["train", "--recipe", "smoke", "--step", "3"], "did you mean --steps?"),
        (["train", "--recipe", "smoke", "--steps", "many"], "--steps"),
        (["train", "--recipe", "smoke", "--steps", "0"], "steps is 0"),
        (["train", "--recipe", "smoke", "--resume", "x"], "leave out"),
        (["train", "--resume", "nowhere"], "nowhere"),
        (["train", "--recipe", "smoke", "--sizes", "channels"], "expected NAME=VALUE"),
        (["train", "--recipe", "smoke", "--sizes", "chanels=8"], "unknown size 'chanels'"),
        (["train", "--recipe", "demo", "--upsampler", "spconv", "--scales", "2"], "say --sizes again"),
        (["figures", "77"], "no notebook"),
    ],
)
def test_a_mistake_ends_in_one_line_and_code_2(words, message, photos, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = [word.format(picture=photos / "a.png", folder=photos) for word in words]
    try:
        code = cli.main(words)
    except SystemExit as ended:  # argparse leaves this way
        code = ended.code
    shown = capsys.readouterr()
    assert code == 2
    assert shown.err.startswith("srlab")
    assert len(shown.err.strip().splitlines()) == 1
    assert message in shown.err
    assert "Traceback" not in shown.err


def test_debug_shows_where_an_error_came_from(capsys):
    with pytest.raises(ValueError, match=r"no command '\w+'\. Commands: figures"):
        cli.main(["--debug", "zzz"])


def test_an_error_nobody_foresaw_is_not_hidden(monkeypatch):
    def broken(options):
        raise ZeroDivisionError

    monkeypatch.setitem(cli.COMMANDS, "doctor", cli.COMMANDS["doctor"]._replace(run=broken))
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_an_absent_package_points_to_the_doctor(monkeypatch, capsys):
    def lacking(options):
        raise ModuleNotFoundError("No module named 'nbclient'", name="nbclient")

    monkeypatch.setitem(cli.COMMANDS, "figures", cli.COMMANDS["figures"]._replace(run=lacking))
    assert cli.main(["figures"]) == 1
    assert "nbclient" in (shown := capsys.readouterr().err)
    assert "srlab doctor" in shown


def test_ctrl_c_ends_with_130(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "doctor", cli.COMMANDS["doctor"]._replace(run=interrupted))
    assert cli.main(["doctor"]) == 130
    assert "interrupted" in capsys.readouterr().err


# upscale and evaluate


def test_upscale_writes_what_evaluate_upscale_returns(photos, capsys):
    assert cli.main(["upscale", str(photos / "a.png"), "--scale", "3", "--model", "bicubic"]) == 0
    written = images.load_image(photos / "a_x3.png")
    lr = images.load_image(photos / "a.png")
    assert torch.equal(written, images.to_uint8(resize.imresize(images.to_float(lr), 3)))
    assert "32 x 36 -> 96 x 108" in capsys.readouterr().out


def test_upscale_takes_a_checkpoint_file(photos, tmp_path):
    from srlab import models

    model = models.build("edsr-tiny", "igconv", (2,), channels=8, blocks=1, implicit_dim=8).eval()
    path = weights.save(model, tmp_path / "tiny.safetensors", {"trained_on": "nothing"})
    output = tmp_path / "large.png"
    words = [
        "upscale",
        str(photos / "a.png"),
        "--scale",
        "2",
        "--model",
        str(path),
        "--output",
        str(output),
        "--tile",
        "16",
    ]
    assert cli.main(words) == 0
    expected = evaluate.upscale(model, images.load_image(photos / "a.png"), 2, tile=0)
    difference = images.load_image(output).int() - expected.int()
    assert difference.abs().max() <= 1  # tiles are rounded to 8 bits after sums in another order


def test_evaluate_writes_a_row_per_picture_and_prints_means_and_protocol(photos, tmp_path, capsys):
    output = tmp_path / "scores.csv"
    assert cli.main(["evaluate", "bicubic", "--data", str(photos), "--scale", "2", "3", "--output", str(output)]) == 0
    rows = pd.read_csv(output)
    assert rows.groupby("scale")["image"].apply(list).to_dict() == {2: ["a", "b", "c"], 3: ["a", "b", "c"]}
    lr, hr = datasets.load(photos).pair(1, 2)
    sr = images.to_uint8(resize.imresize(images.to_float(lr), 2))
    by_hand = metrics.psnr_y(sr, hr, border=2)
    assert rows.query("scale == 2 and image == 'b'")["psnr_y"].item() == pytest.approx(by_hand, abs=1e-6)
    shown = capsys.readouterr().out
    assert f"{statistics.bootstrap_mean(rows.query('scale == 2')['psnr_y']).mean:.2f}"[:4] in shown
    assert metrics.STANDARD.line() in shown
    assert [path.name for path in tmp_path.glob("*.csv")] == ["scores.csv"], "no partial file is left"


def test_compare_adds_both_models_and_says_which_is_better(photos, tmp_path, capsys):
    from srlab import models

    worse = models.build("edsr-tiny", "igconv", (2,), channels=8, blocks=1, implicit_dim=8).eval()
    path = str(weights.save(worse, tmp_path / "untrained.safetensors", {"trained_on": "nothing"}))
    assert cli.main(["evaluate", "--compare", "bicubic", path, "--data", str(photos), "--scale", "2"]) == 0
    shown = capsys.readouterr().out
    assert "bicubic is better by" in shown
    assert "95%" in shown or "95 %" in shown


def test_evaluate_names_a_model_without_the_scale_before_it_scores_any(photos, monkeypatch, capsys):
    fixed = models.build("edsr-tiny", "spconv", scales=(4,), channels=8, blocks=1)
    monkeypatch.setattr(cli, "_model", lambda name, scale: fixed if name == "fixed" else evaluate.Bicubic())
    monkeypatch.setattr(evaluate, "benchmark", None)  # calling it would end in another error
    assert cli.main(["evaluate", "bicubic", "fixed", "--data", str(photos), "--scale", "4", "2"]) == 2
    assert "fixed at x2: scale x2 was asked for" in capsys.readouterr().err


def test_tiles_and_self_ensemble_reach_the_model(photos, capsys, monkeypatch):
    asked = []

    def benchmark(model, pictures, scale, **how):
        asked.append(how)
        return pd.DataFrame({"dataset": "d", "scale": scale, "image": ["a", "b"], "psnr_y": [30, 31], "ssim_y": 0.9})

    monkeypatch.setattr(evaluate, "benchmark", benchmark)
    words = ["evaluate", "bicubic", "--data", str(photos), "--scale", "2", "--tile", "16", "--self-ensemble"]
    assert cli.main(words) == 0
    assert asked == [{"tile": 16, "self_ensemble": True, "partial": None}]
    assert "eight turned pictures" in capsys.readouterr().out


def test_record_brings_the_shipped_scores_up_to_date_and_shows_them(capsys, monkeypatch):
    monkeypatch.setenv("SRLAB_RECORD", "")
    rows = pd.DataFrame(
        {"model": "bicubic", "dataset": "set5", "scale": 2, "image": list("ab"), "psnr_y": [30.0, 31.0]}
    )
    seen = []
    monkeypatch.setattr(
        evaluate, "recorded_benchmarks", lambda: seen.append(os.environ["SRLAB_RECORD"]) or rows.assign(ssim_y=0.9)
    )
    assert cli.main(["evaluate", "--record"]) == 0
    assert seen == ["1"]
    shown = capsys.readouterr().out
    assert "30.50" in shown
    assert metrics.STANDARD.line() in shown


def test_a_single_picture_has_a_score_but_no_interval(tmp_path, capsys):
    images.save_image(tmp_path / "one" / "a.png", torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(1)))
    assert cli.main(["evaluate", "bicubic", "--data", str(tmp_path / "one"), "--scale", "2"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "bicubic" in line)
    assert "[" not in line


def test_one_name_serves_a_series_of_fixed_scale_weights(monkeypatch):
    asked = []
    monkeypatch.setattr(weights, "load", lambda name: asked.append(name) or torch.nn.Identity())
    cli._loaded.cache_clear()
    for scale in (2, 3):
        cli._model("imdn", scale)
    cli._model("imdn-x4", 2)
    with pytest.raises(ValueError, match="no weights of imdn for x5, only imdn-x2, imdn-x3, imdn-x4"):
        cli._model("imdn", 5)
    cli._loaded.cache_clear()
    assert asked == ["imdn-x2", "imdn-x3", "imdn-x4"]


# cka


def test_cka_puts_two_models_side_by_side_one_of_them_a_users_own(photos, tmp_path, monkeypatch, capsys):
    code = "from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())\n"
    (tmp_path / "users_own_net.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    words = ["cka", cli.DEFAULT_MODEL, "users_own_net:net", "--data", str(photos), "--scale-of-lr", "2"]
    words += ["--layers-a", "encoder.body.*", "encoder", "--layers-b", "0", "1", "--output", str(tmp_path / "cka.csv")]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    for text in ("9 encoder", "columns: 1 0, 2 1", "A, the picture", "other pictures", "architectures differ"):
        assert text in shown
    table = pd.read_csv(tmp_path / "cka.csv")
    assert (table["what"] == "layers").sum() == 9 * 2
    assert "(too few pictures" in shown, "three pictures have no interval"


@pytest.mark.parametrize(("reduction", "data", "scale"), [("pixels", "{photos}", "2"), ("pictures", "demo", "8")])
def test_cka_of_a_model_with_itself_is_one_under_every_reduction(reduction, data, scale, photos, capsys):
    words = ["cka", *[cli.DEFAULT_MODEL] * 2, "--layers-a", "encoder", "--layers-b", "encoder"]
    where = ["--data", data.format(photos=photos), "--scale-of-lr", scale]
    assert cli.main([*words, *where, "--reduction", reduction]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"A and B +1\.000", shown)
    assert "class A" in shown


# train


def test_train_stops_resumes_and_leaves_weights_that_upscale_reads(photos, tmp_path, capsys):
    folder = tmp_path / "run"
    # fmt: off
    words = ["train", "--recipe", "smoke", "--folder", str(folder), "--data", str(photos), "--steps", "3",
             "--patch", "8",
             "--scales", "2", "--micro-batches", "1", "--sizes", "channels=8", "fgrep=True",
             "--final-learning-rate", "1e-4", "--log-every", "1"]
    # fmt: on
    assert cli.main([*words, "--stop-after", "2"]) == 0
    assert "srlab train --resume" in capsys.readouterr().out
    assert not (folder / "model.safetensors").exists()
    assert cli.main(["train", "--resume", str(folder)]) == 0
    assert pd.read_csv(folder / "log.csv")["step"].tolist() == [1, 2, 3]
    loaded = weights.load_checkpoint(folder / "model.safetensors")
    assert loaded.scales == (2,)
    assert loaded.encoder.channels == 8
    assert loaded.upsampler.hyper.fgrep


def test_train_prints_the_command_for_many_devices_and_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--recipe", "edsr-igconv+", "--data", "/DIV2K", "--sizes", "channels=64", "fgrep=false"]
    assert cli.main([*words, "--compile", "--print-launch", "--nodes", "2", "--devices", "2"]) == 0
    shown = capsys.readouterr().out.splitlines()[0]
    assert shown.startswith("torchrun --nnodes=2")
    again = shown.split("-m srlab ")[1].split()
    assert again == [*words, "--compile"]  # the words mean the same there
    assert cli.main([*words, "--print-launch", "--devices", "8"]) == 2
    assert "8 processes for 4 micro-batches" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_train_lists_recipes_with_their_sources(capsys):
    assert cli.main(["train", "--list"]) == 0
    shown = capsys.readouterr().out
    for name in train.RECIPES:
        assert re.search(rf"^{re.escape(name)} .*(official|inferred|this project)", shown, re.M)


# fetch, models, doctor


def test_fetch_says_what_to_do_without_network_and_goes_on_with_the_rest(offline, capsys, monkeypatch):
    from srlab import fetch

    monkeypatch.setattr(fetch, "PAUSE", 0)
    assert cli.main(["fetch", "bsrn-x2", "demo"]) == 2
    shown = capsys.readouterr()
    assert "SRLAB_MIRROR" in shown.err
    assert "demo: 10 pictures are here" in shown.out


@pytest.mark.benchmark_data("set5", "bsrn-x2")
def test_fetch_gets_sets_and_weights(capsys):
    assert cli.main(["fetch", "set5", "bsrn-x2"]) == 0
    shown = capsys.readouterr().out
    assert "set5: 5 pictures" in shown
    assert "MIT" in shown


def test_models_lists_every_name_with_licence_and_the_command_for_absent_ones(offline, capsys):
    assert cli.main(["models"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(lines) == {"name", *weights.names(), "class", "also:"}
    assert "srlab fetch imdn-x2" in lines["imdn-x2"]
    assert cli.main(["models", "imdn-x2"]) == 0
    assert "arXiv 1909.11856" in capsys.readouterr().out


def test_doctor_names_what_is_missing_with_the_command_that_gets_it(offline, capsys, monkeypatch):
    monkeypatch.setenv("SRLAB_PROFILE", "paper")
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for text in (
        torch.__version__,
        "SRLAB_PROFILE=paper",
        "profile paper",
        "GB free",
        "srlab fetch set5",
        "srlab fetch imdn-x2",
    ):
        assert text in shown
    assert "10/10" in shown


def test_doctor_fails_only_for_a_broken_installation(monkeypatch, capsys):
    from importlib import metadata

    real = metadata.version

    def version(name):
        if name == "safetensors":
            raise metadata.PackageNotFoundError
        return "0.1" if name == "pooch" else real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "safetensors is absent" in shown
    assert "pooch is 0.1, expected >=" in shown
    assert "pip install" in shown


def test_columns_line_up():
    assert doctor.in_columns([("a", "1"), ("long", "")]) == ["a     1", "long"]


# figures


def test_figures_passes_profile_and_folder_on_and_fails_with_a_notebook(monkeypatch, tmp_path):
    from srlab import gallery

    seen = {}

    def run_all(notebooks, results, timeout):
        seen.update(profile=runtime.profile(), results=results, timeout=timeout)
        failed = gallery.Outcome("x", "X", 1.0, 0, "smoke", "unknown", "code cell 1", "boom")
        return [failed]

    monkeypatch.setattr(gallery, "run_all", run_all)
    monkeypatch.setattr(gallery, "find_notebooks", lambda names: [])
    monkeypatch.setenv("SRLAB_PROFILE", "smoke")
    assert cli.main(["figures", "--profile", "demo", "--results", str(tmp_path), "--timeout", "5"]) == 1
    assert seen == {"profile": "demo", "results": tmp_path, "timeout": 5.0}
