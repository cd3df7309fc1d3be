"""Transfer: a training begins with the weights it was given, or says why it cannot."""

import dataclasses

import pytest
import torch

from srlab import models, transfer, weights
from srlab.recipes import Recipe
from srlab.transfer import StartError

SMALL = {"channels": 8, "blocks": 1}


@pytest.fixture
def x2(tmp_path):
    model = models.build("edsr-nano", "spconv", (2,), **SMALL)
    return model, str(weights.save(model, tmp_path / "x2.safetensors", {}))


def test_the_encoder_is_copied_and_a_head_of_another_scale_stays_new(x2):
    source, path = x2
    model = models.build("edsr-nano", "spconv", (3,), **SMALL)
    head = model.upsampler.weight.clone()
    note = transfer.start_from(model, path)
    lr = torch.rand(1, 3, 8, 8)
    assert torch.equal(model.encode(lr), source.encode(lr))
    assert torch.equal(model.upsampler.weight, head)
    assert (note["upsampler_copied"], note["upsampler_new"]) == (0, 2)


def test_all_that_fits_is_copied(x2):
    source, path = x2
    model = models.build("edsr-nano", "spconv", (2,), **SMALL)
    transfer.start_from(model, path)
    lr = torch.rand(1, 3, 8, 8)
    assert torch.equal(model(lr, 2), source(lr, 2))


def test_a_name_of_the_lab_will_do_and_leaves_its_hash():
    model = models.build("edsr-tiny", "igconv", (2, 3, 4))
    note = transfer.start_from(model, "edsr-tiny-igconv")
    lr = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(model.eval()(lr, 3), weights.load("edsr-tiny-igconv")(lr, 3))
    assert len(note["sha256"]) == 64
    assert transfer.same_start("edsr-tiny-igconv", note)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"channels": 16}, r"conv_first.weight, \(8, 3, 3, 3\) there and \(16, 3, 3, 3\) here"),
     ({"blocks": 2}, "absent there"),
     ({"img_range": 255.0}, "img_range 1.0 .* this model has 255.0"),
     ({"mean": (0.0, 0.0, 0.0)}, "give img_range and mean")],
)  # fmt: skip
def test_another_encoder_is_refused_and_nothing_is_copied(x2, change, message):
    model = models.build("edsr-nano", "spconv", (2,), **{**SMALL, **change})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(StartError, match=message):
        transfer.start_from(model, x2[1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_start_that_is_nowhere_is_named():
    with pytest.raises(StartError, match=r"no weights file gone/model.safetensors"):
        transfer.sha256_of("gone/model.safetensors")
    with pytest.raises(ValueError, match="edsr-tiny-igconv"):
        transfer.sha256_of("edsr-tiny-igconw")


def test_a_run_knows_its_start_again_when_both_have_moved(x2, tmp_path):
    from srlab import images, train

    for name in "ab":
        images.save_image(tmp_path / "pictures" / f"{name}.png", torch.rand(3, 32, 32))
    recipe = Recipe("edsr-nano", "spconv", (2,), sizes=SMALL, data=str(tmp_path / "pictures"), steps=2, patch=8,
                    micro_batch=1, ema=0.0, start_from=x2[1])  # fmt: skip
    train.fit(recipe, tmp_path / "run", stop_after=1, accelerator="cpu")
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes((tmp_path / "x2.safetensors").read_bytes())
    (tmp_path / "x2.safetensors").unlink()
    train.fit(dataclasses.replace(recipe, start_from=str(moved)), tmp_path / "run", accelerator="cpu")
    other = weights.save(models.build("edsr-nano", "spconv", (2,), **SMALL), tmp_path / "other.safetensors", {})
    with pytest.raises(train.TrainingError, match="start_from"):
        train.fit(dataclasses.replace(recipe, start_from=str(other)), tmp_path / "run", accelerator="cpu")
