"""Upscaling in tiles, self-ensemble, and tables of scores."""

import math

import pandas as pd
import pytest
import torch
from torch import nn

from srlab import datasets, evaluate, images, models
from srlab.resize import imresize


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return models.build("edsr-tiny", "igconv", channels=8, blocks=2, implicit_dim=16, hidden_layers=1).eval()


@pytest.fixture
def folder(tmp_path):
    generator = torch.Generator().manual_seed(1)
    for name in ("a", "b", "c"):
        noise = torch.randint(0, 256, (3, 24, 36), dtype=torch.uint8, generator=generator)
        images.save_image(tmp_path / f"{name}.png", noise)
    return tmp_path


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("tile", [7, 16, 1000])
def test_tiles_give_the_whole_picture(model, scale, tile):
    lr = torch.rand(3, 33, 40)
    whole = evaluate.upscale(model, lr, scale, tile=0)
    torch.testing.assert_close(evaluate.upscale(model, lr, scale, tile=tile), whole, atol=1e-5, rtol=0)
    assert whole.shape == (3, 33 * scale, 40 * scale)


def test_eight_bits_in_eight_bits_out(model):
    lr = torch.randint(0, 256, (2, 3, 9, 8), dtype=torch.uint8)
    sr = evaluate.upscale(model, lr, 2)
    expected = images.to_uint8(evaluate.upscale(model, images.to_float(lr), 2))
    assert sr.dtype == torch.uint8
    assert torch.equal(sr, expected)


def test_self_ensemble_is_the_mean_over_eight_turned_pictures(model):
    lr = torch.rand(1, 3, 8, 10)
    turned = []
    for quarter_turns in range(4):
        for mirror in (False, True):
            one = torch.rot90(lr.flip(-1) if mirror else lr, quarter_turns, (-2, -1))
            sr = torch.rot90(evaluate.upscale(model, one, 2), -quarter_turns, (-2, -1))
            turned.append(sr.flip(-1) if mirror else sr)
    torch.testing.assert_close(evaluate.upscale(model, lr, 2, self_ensemble=True), torch.stack(turned).mean(0))


def test_a_model_that_looks_everywhere_is_warned_of():
    class Global(nn.Module):
        receptive_radius = None

        def forward(self, lr, scale):
            return imresize(lr, scale) + lr.mean()

    with pytest.warns(UserWarning, match="looks at the whole picture"):
        evaluate.upscale(Global(), torch.rand(3, 20, 20), 2, tile=10)


def test_upscaling_leaves_the_model_in_the_mode_it_was_in(model):
    model.train()
    evaluate.upscale(model, torch.rand(3, 8, 8), 2)
    assert model.training
    model.eval()


@pytest.mark.parametrize("lr", [torch.rand(8, 8), torch.rand(1, 8, 8), torch.rand(3, 0, 8)])
def test_something_that_is_no_picture_is_refused(model, lr):
    with pytest.raises(ValueError, match="expected \\(3, h, w\\)"):
        evaluate.upscale(model, lr, 2)


@pytest.mark.parametrize(
    ("broken", "message"),
    [(lambda lr, scale: lr, "expected \\(1, 3, 16, 16\\)"), (lambda lr, scale: imresize(lr, scale) * math.nan, "NaN")],
)
def test_a_broken_model_is_named(broken, message):
    with pytest.raises(ValueError, match=message):
        evaluate.upscale(broken, torch.rand(3, 8, 8), 2)


def test_benchmark_has_a_row_for_each_picture_and_names_its_protocol(folder):
    table = evaluate.benchmark(evaluate.Bicubic(), folder, 2, progress=False)
    assert list(table["image"]) == ["a", "b", "c"]
    assert table["psnr_y"].between(5, 40).all()
    assert "Y" in table.attrs["protocol"]


def test_a_killed_benchmark_goes_on_where_it_was(folder, tmp_path, model):
    partial = tmp_path / "scores.csv"
    whole = evaluate.benchmark(model, folder, 2, progress=False, partial=partial)
    lines = partial.read_text().splitlines()
    partial.write_text("\n".join(lines[:3]) + "\n")  # as if killed after the second picture

    calls = []

    def counting(lr, scale):
        calls.append(1)
        return model(lr, scale)

    again = evaluate.benchmark(model, folder, 2, progress=False, partial=partial)
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), whole.drop(columns="seconds"))
    assert len(partial.read_text().splitlines()) == len(lines)
    evaluate.benchmark(counting, folder, 2, progress=False, partial=partial)  # another model: nothing is taken over
    assert len(calls) == 3


def test_the_fingerprint_follows_the_weights(model):
    before = evaluate.fingerprint(model)
    assert before == evaluate.fingerprint(model)
    with torch.no_grad():
        parameter = next(model.parameters())
        parameter += 1e-3
    changed = evaluate.fingerprint(model)
    with torch.no_grad():
        parameter -= 1e-3
    assert changed != before


@pytest.mark.benchmark_data("set5")
@pytest.mark.parametrize(("scale", "psnr", "ssim"), [(2, 33.66, 0.9299), (3, 30.39, 0.8682), (4, 28.42, 0.8104)])
def test_bicubic_scores_what_everybody_prints_for_set5(scale, psnr, ssim):
    table = evaluate.benchmark(evaluate.Bicubic(), datasets.load("set5"), scale, progress=False)
    assert table["psnr_y"].mean() == pytest.approx(psnr, abs=0.02)
    assert table["ssim_y"].mean() == pytest.approx(ssim, abs=0.0005)
