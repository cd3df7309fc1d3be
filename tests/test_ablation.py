"""The ablation: its recipes differ in one part each, its runs resume, its tables say what the models do."""

import dataclasses

import pytest
import torch

from srlab import ablation, datasets, evaluate, images, metrics, runtime, spectra, train, weights
from srlab.cli import main

TINY = ablation.PLAN._replace(
    seeds=(0,),
    sizes=(("implicit_dim", 8), ("hidden_layers", 2), ("channels", 4), ("blocks", 1)),
    data="demo",
    steps=50,
    micro_batch=1,
    micro_batches=1,
    patch=8,
    warmup=5,
    snapshots=(50,),
    watched=1,
)


@pytest.fixture(scope="module")
def store():
    photos = datasets.load("demo")
    return datasets.CropStore(photos.subset(photos.names[6:8]), TINY.scales, patch=TINY.patch)


def test_each_variant_lacks_one_part_of_the_full_model():
    full = ablation.recipe(ablation.FULL, 0)
    assert (full.upsampler, full.fft_weight) == ("igconv+", 0.05)
    differing = {}
    for variant in ablation.VARIANTS:
        other = ablation.recipe(variant, 0)
        fields = {field.name for field in dataclasses.fields(other)}
        differing[variant] = {name for name in fields if getattr(other, name) != getattr(full, name)}
    assert differing == {
        "IGConv+": set(),
        "without FFT loss": {"fft_weight"},
        "without IGSample": {"upsampler", "sizes"},
        "bilinear for IGSample": {"upsampler", "sizes"},
        "without FGRep": {"sizes"},
        "IGConv": {"upsampler", "sizes", "fft_weight"},
    }


def test_without_igsample_is_the_main_branch_of_the_full_model():
    """Same seed, same first weights: what is left out is the sampled picture and nothing else."""
    built = {}
    for variant in (ablation.FULL, "without IGSample", "without FGRep"):
        torch.manual_seed(3)
        built[variant] = ablation.recipe(variant, 3).build()
    full, alone, free = built.values()
    for name, weight in alone.encoder.named_parameters():
        torch.testing.assert_close(weight, full.encoder.get_parameter(name))
    torch.testing.assert_close(alone.upsampler.kernel(2), full.upsampler.main.kernel(2))
    kernel = free.upsampler.main.kernel(2)
    assert (kernel - kernel.flip(-1)).abs().max() > 0  # not averaged over flips
    averaged = alone.upsampler.kernel(2)
    torch.testing.assert_close(averaged, averaged.flip(-1))


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="without FGRep"):
        ablation.recipe("without encoder", 0)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two variants, two pictures of 48 pixels."""
    monkeypatch.setattr(ablation, "VARIANTS", {name: ablation.VARIANTS[name] for name in ("IGConv+", "IGConv")})
    astronaut = datasets.load("demo").image(2)
    for number in range(2):
        images.save_image(tmp_path / "pictures" / f"p{number}.png", astronaut[:, 20:68, 150 + 48 * number :][..., :48])
    ablation.sets_of.cache_clear()
    return TINY._replace(sets=((str(tmp_path / "pictures"), 1),))


def test_runs_are_trained_once_watched_and_scored(tmp_path, store, small):
    folders = list(ablation.train_all(tmp_path, small, store=store))
    assert len(folders) == 2
    before = [(folder / "model.safetensors").stat().st_mtime_ns for folder in folders]
    assert list(ablation.train_all(tmp_path, small, store=store)) == folders
    assert [(folder / "model.safetensors").stat().st_mtime_ns for folder in folders] == before

    scores, course = ablation.score_all(tmp_path, small)
    assert set(scores.variant) == {"IGConv+", "IGConv"}
    assert len(scores) == 2 * 3 * 2  # variants, scales, pictures
    assert set(course.step) == {50}
    assert len(course) == 2 * 2  # variants, scales; one photograph

    row = scores[(scores.variant == "IGConv") & (scores.scale == 2)].iloc[1]
    model = weights.load_checkpoint(folders[1] / "model.safetensors")
    lr, hr = datasets.load(tmp_path / "pictures").pair(1, 2)
    sr = evaluate.upscale(model, lr, 2)
    assert row.psnr_y == pytest.approx(metrics.psnr_y(sr, hr, 2), abs=1e-3)
    errors = spectra.band_errors(images.rgb_to_y(sr), images.rgb_to_y(hr))
    for band in range(ablation.BANDS):
        assert row[f"error{band}"] == pytest.approx(errors.relative[0, band].item(), rel=1e-3)
        assert row[f"gain{band}"] == pytest.approx(errors.gain[0, band].item(), rel=1e-3)


def test_every_run_has_a_folder_of_its_own():
    names = [ablation.run_name(*run) for run in ablation.runs()]
    assert len(set(names)) == len(names) == len(ablation.VARIANTS) * len(ablation.PLAN.seeds)


def test_an_interrupted_run_is_no_result(tmp_path, store, small):
    recipe = ablation.recipe("IGConv", 0, small)
    train.fit(recipe, tmp_path / ablation.run_name("IGConv", 0), store=store, stop_after=10)
    with pytest.raises(train.TrainingError, match="no finished run"):
        ablation.score_all(tmp_path, small)


def test_the_command_knows_the_sweep(monkeypatch, capsys, tmp_path):
    asked = {}

    def pretend(folder, part):
        asked.update(folder=folder, part=part)
        return iter([folder / "a"])

    monkeypatch.setattr(ablation, "train_all", pretend)
    assert main(["train", "--sweep", "ablation", "--folder", str(tmp_path), "--part", "1/2"]) == 0
    assert asked == {"folder": tmp_path, "part": "1/2"}
    assert "is finished" in capsys.readouterr().out


def test_middles_are_cut_at_the_same_place_in_both():
    photos = datasets.load("demo")
    photos = photos.subset(photos.names[:2])
    for scale in (2, 4):
        lr, hr = ablation.middles(photos, scale, 240)
        assert lr.shape == (2, 3, 240 // scale, 240 // scale)
        assert hr.shape == (2, 3, 240, 240)
        shrunk = torch.nn.functional.avg_pool2d(hr, scale)
        assert ((shrunk - lr).abs().mean() < 0.02).all()  # a shift by one LR pixel is three times as much
    with pytest.raises(ValueError, match="multiple"):
        ablation.middles(photos, 4, 242)


def test_a_record_of_another_plan_is_not_computed_in_passing(monkeypatch):
    monkeypatch.setattr(ablation, "PLAN", ablation.PLAN._replace(steps=7))
    with pytest.raises(runtime.RecordError, match="--sweep ablation"):
        ablation.recorded_scores()


def test_bands_of_a_picture_without_an_octave():
    """A picture with everything above 1/8 removed errs by all of the two highest octaves and by nothing below."""
    generator = torch.Generator().manual_seed(0)
    hr = 0.5 + 0.1 * torch.randn(1, 3, 96, 96, generator=generator)
    spectrum = torch.fft.rfft2(hr.double())
    f = torch.hypot(torch.fft.fftfreq(96)[:, None], torch.fft.rfftfreq(96)[None])
    sr = torch.fft.irfft2(torch.where(f <= 1 / 8, spectrum, torch.zeros_like(spectrum))).float()
    (columns,) = ablation.band_columns(sr, hr)
    assert set(columns) == {f"{m}{b}" for m in ablation.MEASURES for b in range(ablation.BANDS)}
    assert columns["error4"] == pytest.approx(1, abs=0.02)
    assert columns["gain4"] < 0.02
    assert columns["error1"] < 0.02
    assert columns["gain1"] == pytest.approx(1, abs=0.05)
