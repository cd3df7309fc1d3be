"""Training: the same run however often it is killed, and no work before the recipe has been checked."""

import dataclasses
import json
import os

import pandas as pd
import pytest
import torch

from srlab import datasets, evaluate, images, runtime, train, weights
from srlab.train import Recipe, TrainingError

TINY = Recipe("edsr-tiny", "igconv", scales=(2, 3), steps=10, micro_batch=1, micro_batches=3, patch=8,
              learning_rate=1e-3,
              warmup=2, final_learning_rate=1e-5, ema=0.5, log_every=2, save_every=3)  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of three smooth random pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for name in "abc":
        coarse = torch.rand(1, 3, 8, 9, generator=generator)
        images.save_image(
            folder / f"{name}.png", torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")
        )
    return folder


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """Two pictures that nobody trains on."""
    folder = tmp_path_factory.mktemp("held-out")
    for name in "de":
        images.save_image(folder / f"{name}.png", torch.rand(3, 48, 48))
    return folder


@pytest.fixture(scope="module")
def recipe(pictures):
    return dataclasses.replace(TINY, data=str(pictures))


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return train.fit(recipe, folder, accelerator="cpu")


def leaves(value, path=""):
    """All tensors and numbers in nested dicts and lists, by path."""
    if isinstance(value, dict):
        return {p: leaf for key, inner in value.items() for p, leaf in leaves(inner, f"{path}/{key}").items()}
    if isinstance(value, list | tuple):
        return {p: leaf for key, inner in enumerate(value) for p, leaf in leaves(inner, f"{path}/{key}").items()}
    return {path: value}


def assert_same_state(folder, other):
    one, two = (leaves(weights.load_tensors(place / "last.ckpt")) for place in (folder, other))
    assert one.keys() == two.keys()
    for path, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, two[path]), path
        elif not path.endswith("seconds"):
            assert value == two[path], path


def test_a_run_in_parts_is_one_run(recipe, undisturbed, tmp_path):
    while train.fit(recipe, tmp_path, stop_after=4, accelerator="cpu").step < recipe.steps:
        pass
    assert_same_state(tmp_path, undisturbed.folder)


def test_a_finished_run_that_is_repeated_keeps_its_weights_and_who_made_them(recipe, tmp_path, monkeypatch):
    short = dataclasses.replace(recipe, steps=2)
    train.fit(short, tmp_path, accelerator="cpu")
    path = tmp_path / "model.safetensors"
    made, before = path.stat().st_mtime_ns, path.read_bytes()
    monkeypatch.setattr(runtime, "commit", lambda: "later")
    again = train.fit(short, tmp_path, accelerator="cpu")
    assert (path.stat().st_mtime_ns, path.read_bytes()) == (made, before)
    assert all(map(torch.equal, again.model.parameters(), weights.load_checkpoint(path).parameters()))
    path.write_bytes(before[:100])  # what is damaged or gone is written again
    train.fit(short, tmp_path, accelerator="cpu")
    assert weights.read_header(path)["card"]["commit"] == "later"
    path.unlink()
    train.fit(short, tmp_path, accelerator="cpu")
    assert train.is_finished(short, tmp_path)


def test_ctrl_c_finishes_the_step_and_saves(recipe, undisturbed, tmp_path):
    import signal

    result = train.fit(
        recipe, tmp_path, on_log=lambda row, model: os.kill(os.getpid(), signal.SIGINT), accelerator="cpu"
    )
    assert result.step == recipe.log_every
    train.fit(recipe, tmp_path, accelerator="cpu")
    assert_same_state(tmp_path, undisturbed.folder)


def test_the_finished_weights_are_the_average_and_load_again(undisturbed, recipe):
    loaded = weights.load_checkpoint(undisturbed.folder / "model.safetensors")
    state = weights.load_tensors(undisturbed.folder / "last.ckpt")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state["ema"][f"module.{name}"])
    assert not torch.equal(value, state["model"][name])
    assert loaded.scales == recipe.scales
    assert json.loads((undisturbed.folder / "recipe.json").read_text())["steps"] == recipe.steps


def test_one_step_is_the_gradient_of_all_its_micro_batches(recipe, tmp_path):
    """Micro-batches of one scale are computed together; the gradient is still the mean over all of them."""
    run = train._Run(dataclasses.replace(recipe, micro_batches=5), tmp_path, False, "cpu")
    store = datasets.CropStore(datasets.load(recipe.data), recipe.scales)
    groups = run._scales_of_step()
    assert sum(len(generators) for generators in groups.values()) == 5
    expected = [torch.zeros_like(p) for p in run.model.parameters()]
    for scale, generators in groups.items():
        for generator in generators:
            lr, hr = run._batch(store, scale, [generator])
            loss = (run.model(lr, scale) - hr).abs().mean() / 5
            for total, gradient in zip(expected, torch.autograd.grad(loss, list(run.model.parameters())), strict=True):
                total += gradient
    seen = {}
    run.optimizer.step = lambda: seen.update({name: p.grad.clone() for name, p in run.model.named_parameters()})
    run.take_step(store)
    for (name, _), gradient in zip(run.model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(seen[name], gradient, atol=1e-6, rtol=1e-3)


def test_scales_are_drawn_evenly_and_independently(recipe, tmp_path):
    run = train._Run(dataclasses.replace(recipe, scales=(2, 3, 4), micro_batches=4), tmp_path, False, "cpu")
    counts, mixed = {2: 0, 3: 0, 4: 0}, 0
    for step in range(600):
        run.step = step
        groups = run._scales_of_step()
        mixed += len(groups) > 1
        for scale, generators in groups.items():
            counts[scale] += len(generators)
    for count in counts.values():
        assert abs(count - 800) < 5 * (2400 * 2 / 9) ** 0.5  # five standard deviations
    assert abs(mixed / 600 - (1 - 1 / 27)) < 0.04


def test_a_full_disk_leaves_the_last_checkpoint(recipe, undisturbed, tmp_path, monkeypatch):
    train.fit(recipe, tmp_path, stop_after=3, accelerator="cpu")
    before = (tmp_path / "last.ckpt").read_bytes()

    def half_written(state, path):
        path.write_bytes(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half_written)
        with pytest.raises(OSError, match="No space left"):
            train.fit(recipe, tmp_path, accelerator="cpu")
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert [path.name for path in tmp_path.glob(".*")] == []
    train.fit(recipe, tmp_path, accelerator="cpu")
    assert_same_state(tmp_path, undisturbed.folder)


def test_a_disk_that_is_full_in_the_words_of_torch_is_a_full_disk(recipe, tmp_path):
    resource = pytest.importorskip("resource")
    train.fit(recipe, tmp_path, stop_after=1, accelerator="cpu")
    before = (tmp_path / "last.ckpt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=r"last\.ckpt cannot be written \(.*\): is the disk full"):
            train.fit(recipe, tmp_path, stop_after=1, accelerator="cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_another_recipe_does_not_go_on_with_this_run(recipe, undisturbed):
    with pytest.raises(TrainingError, match=r"learning_rate: 0\.001 there, 0\.002 asked"):
        train.fit(dataclasses.replace(recipe, learning_rate=0.002), undisturbed.folder)
    with pytest.raises(TrainingError, match="already holds a run"):
        train.fit(recipe, undisturbed.folder, resume=False)


@pytest.mark.parametrize("damage", ["text", "short", "code", "hollow"])
def test_a_checkpoint_that_is_none_is_refused(recipe, undisturbed, tmp_path, damage):
    whole = (undisturbed.folder / "last.ckpt").read_bytes()
    path, trap = tmp_path / "last.ckpt", tmp_path / "executed"

    class Malicious:
        def __reduce__(self):
            return (open, (str(trap), "w"))

    if damage == "code":
        torch.save({"format": Malicious()}, path)
    elif damage == "hollow":
        torch.save({"format": 1}, path)
    else:
        path.write_bytes(b"hello" if damage == "text" else whole[: len(whole) // 2])
    with pytest.raises(TrainingError if damage == "hollow" else weights.CheckpointError, match=r"last\.ckpt"):
        train.fit(recipe, tmp_path, accelerator="cpu")
    assert not trap.exists()


def test_weights_that_diverge_stop_the_run_before_they_are_lost(recipe, tmp_path):
    with pytest.raises(TrainingError, match=r"diverged.*bad-step0-process0\.pt.*there is no checkpoint yet"):
        train.fit(dataclasses.replace(recipe, fft_weight=1e38), tmp_path, accelerator="cpu")
    assert not (tmp_path / "last.ckpt").exists()


def test_the_pictures_of_a_step_that_went_wrong_are_kept(recipe, tmp_path, monkeypatch):
    train.fit(recipe, tmp_path, stop_after=4, accelerator="cpu")
    batch = train._Run._batch

    def spoilt(run, store, scale, generators):
        lr, hr = batch(run, store, scale, generators)
        if run.step == 5:
            lr[0, 0, 0, 0] = float("nan")
        return lr, hr

    monkeypatch.setattr(train._Run, "_batch", spoilt)
    with pytest.raises(
        TrainingError, match=r"nan at step 5.*bad-step5-process0\.pt holds the pictures.*last good state"
    ):
        train.fit(recipe, tmp_path, accelerator="cpu")
    kept = weights.load_tensors(tmp_path / "bad-step5-process0.pt")
    assert kept["step"] == 5
    assert kept["batches"][0]["lr"].isnan().sum() == 1
    assert all(value.isfinite().all() for value in kept["model"].values())
    assert weights.load_tensors(tmp_path / "last.ckpt")["step"] == 4


def test_validation_scores_the_weights_that_are_saved_and_keeps_the_best(recipe, held_out, tmp_path):
    watched = dataclasses.replace(recipe, validation=str(held_out), validate_every=4)
    result = train.fit(watched, tmp_path, accelerator="cpu")
    table = pd.read_csv(tmp_path / "validation.csv")
    assert table[["step", "scale"]].values.tolist() == [[s, x] for s in (4, 8, 10) for x in (2, 3)]
    assert set(table["weights"]) == {"ema"}
    for _, row in table[table["step"] == 10].iterrows():
        scores = evaluate.benchmark(result.model, str(held_out), int(row["scale"]), progress=False)
        assert row["psnr_y"] == pytest.approx(scores["psnr_y"].mean(), abs=1e-9)
        assert row["images"] == len(scores) == 2
    means = table.groupby("step")["psnr_y"].mean()
    best = weights.load_checkpoint(tmp_path / "best.safetensors")
    score = [evaluate.benchmark(best, str(held_out), scale, progress=False)["psnr_y"].mean() for scale in (2, 3)]
    assert sum(score) / 2 == pytest.approx(means.max(), abs=1e-9)


def test_validation_changes_nothing_and_survives_a_pause(recipe, undisturbed, held_out, tmp_path):
    watched = dataclasses.replace(recipe, validation=str(held_out), validate_every=4)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.fit(watched, whole, accelerator="cpu")
    train.fit(watched, parts, stop_after=5, accelerator="cpu")
    train.fit(watched, parts, accelerator="cpu")
    assert (whole / "validation.csv").read_text() == (parts / "validation.csv").read_text()
    one, two = (weights.load_tensors(place / "last.ckpt")["model"] for place in (undisturbed.folder, parts))
    assert all(torch.equal(one[name], value) for name, value in two.items())


def test_pictures_that_cannot_be_validated_on_are_found_before_the_first_step(recipe, tmp_path):
    steps = []
    watched = dataclasses.replace(recipe, validation="no/such/folder", validate_every=10)
    with pytest.raises(FileNotFoundError, match="no/such/folder"):
        train.fit(watched, tmp_path / "absent", accelerator="cpu", on_log=lambda row, model: steps.append(row))
    images.save_image(tmp_path / "small" / "large.png", torch.rand(3, 40, 40))
    images.save_image(tmp_path / "small" / "tiny.png", torch.rand(3, 40, 16))
    watched = dataclasses.replace(watched, validation=str(tmp_path / "small"))
    with pytest.raises(TrainingError, match=r"small: the picture tiny cannot be scored at x3 \(SSIM needs 11 x 11"):
        train.fit(watched, tmp_path / "run", accelerator="cpu", on_log=lambda row, model: steps.append(row))
    assert not steps


def test_a_validation_that_fails_loses_no_step_and_is_done_by_the_next_call(recipe, held_out, tmp_path, monkeypatch):
    watched = dataclasses.replace(recipe, validation=str(held_out), validate_every=4)
    train.fit(watched, tmp_path / "whole", accelerator="cpu")

    def broken(run):
        raise OSError("the disk with the pictures is gone")

    for step in (4, 8, 10):  # of every validation, also the last
        with monkeypatch.context() as patch:
            patch.setattr(train._Run, "validate", broken)
            with pytest.raises(OSError, match="gone"):
                train.fit(watched, tmp_path / "parts", accelerator="cpu")
        assert weights.load_tensors(tmp_path / "parts" / "last.ckpt")["step"] == step
        train.fit(watched, tmp_path / "parts", accelerator="cpu", stop_after=1)
    assert_same_state(tmp_path / "parts", tmp_path / "whole")
    one, two = (tmp_path / name for name in ("parts", "whole"))
    assert (one / "validation.csv").read_text() == (two / "validation.csv").read_text()
    one, two = (weights.load_checkpoint(folder / "model.safetensors") for folder in (one, two))
    assert all(map(torch.equal, one.parameters(), two.parameters()))


def test_pictures_restored_exactly_have_no_psnr_and_end_no_run(recipe, tmp_path, monkeypatch):
    for name, grey in (("black", torch.zeros(3, 48, 48)), ("other", torch.rand(3, 48, 48))):
        images.save_image(tmp_path / "both" / f"{name}.png", grey)
    images.save_image(tmp_path / "black" / "black.png", torch.zeros(3, 48, 48))
    upscale = evaluate.upscale

    def exact_in_the_dark(model, lr, scale, *options):
        return upscale(model, lr, scale, *options) if lr.any() else torch.zeros(3, *(scale * n for n in lr.shape[1:]))

    monkeypatch.setattr(evaluate, "upscale", exact_in_the_dark)
    short = dataclasses.replace(recipe, steps=2, validate_every=1)
    for name, expected in (("both", True), ("black", False)):
        watched = dataclasses.replace(short, validation=str(tmp_path / name))
        train.fit(watched, tmp_path / f"run-{name}", accelerator="cpu", stop_after=1)
        result = train.fit(watched, tmp_path / f"run-{name}", accelerator="cpu")
        assert [row["psnr_y"] is not None for row in result.validation] == [expected] * 4
        best = weights._card_of_file(tmp_path / f"run-{name}" / "best.safetensors").notes["best_validation"]
        means = pd.DataFrame(result.validation).groupby("step")["psnr_y"].mean()
        assert best == ({"step": means.idxmax(), "psnr_y": pytest.approx(means.max())} if expected
                        else {"step": 1, "psnr_y": None})  # fmt: skip


def test_a_button_stops_as_ctrl_c_does(recipe, undisturbed, tmp_path):
    asked = iter([False, False, True])
    assert train.fit(recipe, tmp_path, should_stop=lambda: next(asked), accelerator="cpu").step == 3
    train.fit(recipe, tmp_path, accelerator="cpu")
    assert_same_state(tmp_path, undisturbed.folder)


def test_bf16_computes_in_less_and_keeps_weights_in_32_bits(recipe, undisturbed, tmp_path):
    result = train.fit(dataclasses.replace(recipe, precision="bf16-mixed"), tmp_path, accelerator="cpu")
    assert {value.dtype for value in result.model.state_dict().values()} == {torch.float32}
    losses = [row["loss"] for row in result.log]
    exact = [row["loss"] for row in undisturbed.log]
    assert losses != exact
    assert losses == pytest.approx(exact, rel=0.05)


def test_no_step_leaves_anything_in_memory(recipe, tmp_path):
    """After a warm-up no step leaves a tensor behind."""
    import gc

    store = datasets.CropStore(datasets.load(recipe.data), recipe.scales)
    small = dataclasses.replace(recipe, sizes={"channels": 8, "blocks": 1, "implicit_dim": 32})
    run = train._Run(small, tmp_path, False, "cpu")
    counts = []
    for step in range(36):
        run.take_step(store)
        if step % 12 == 11:
            run.log_row()
            gc.collect()
            counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
    assert counts[1] == counts[2]


def test_a_checkpoint_from_before_a_field_was_there_is_resumed(recipe, undisturbed, tmp_path):
    train.fit(recipe, tmp_path, stop_after=4, accelerator="cpu")
    state = weights.load_tensors(tmp_path / "last.ckpt")
    del state["recipe"]["sizes"]
    torch.save(state, tmp_path / "last.ckpt")
    train.fit(recipe, tmp_path, accelerator="cpu")
    assert_same_state(tmp_path, undisturbed.folder)


def test_sizes_are_trained_resumed_and_saved_with_the_weights(recipe, tmp_path):
    small = dataclasses.replace(recipe, sizes={"channels": 8, "blocks": 1, "implicit_dim": 32}, steps=3)
    train.fit(small, tmp_path, stop_after=2, accelerator="cpu")
    result = train.fit(
        Recipe.from_dict(json.loads((tmp_path / "recipe.json").read_text())), tmp_path, accelerator="cpu"
    )
    loaded = weights.load_checkpoint(tmp_path / "model.safetensors")
    assert loaded.encoder.channels == 8
    lr = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(loaded(lr, 2), result.model(lr, 2))
