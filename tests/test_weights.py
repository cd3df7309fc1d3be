"""Weights: our files come back whole, public checkpoints fit to the last tensor, bad files are refused in words."""

import io
import itertools
import json
import os
import pickle
import random
import re

import pandas as pd
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from srlab import datasets, images, metrics, models, runtime, weights
from srlab.weights import CheckpointError

LR = torch.rand(1, 3, 16, 17, generator=torch.Generator().manual_seed(0))
TINY = {
    "edsr": {"channels": 8, "blocks": 2},
    "smfanet": {"channels": 8, "blocks": 2},
    "imdn": {"channels": 16, "blocks": 2},
    "bsrn": {"channels": 16, "blocks": 2},
    "rdn": {"channels": 8, "blocks": 2, "layers": 3, "growth": 4},
    "rcan": {"channels": 16, "groups": 2, "blocks": 2},
}


def tiny(encoder="edsr", upsampler="igconv+", scales=(2, 3), **options):
    torch.manual_seed(0)
    hyper = {"implicit_dim": 16} if upsampler.startswith("igconv") else {}
    return models.build(encoder, upsampler, scales, **TINY[encoder], **hyper, **options).eval()


# The names and shapes below are written from the layout of the released state dicts, not from our tables.


def conv(name, out, into, k=3):
    return {f"{name}.weight": (out, into, k, k), f"{name}.bias": (out,)}


def edsr_layout(width=8, blocks=32):
    layout = conv("conv_first", width, 3) | conv("conv_after_body", width, width)
    for i in range(blocks):
        layout |= conv(f"body.{i}.conv1", width, width) | conv(f"body.{i}.conv2", width, width)
    return layout, "upsample", width


def smfanet_layout(width=8, blocks=12):
    layout = conv("to_feat", width, 3)
    for i in range(blocks):
        mix, mlp = f"feats.{i}.smfa", f"feats.{i}.pcfn"
        layout |= {f"{mix}.alpha": (1, width, 1, 1), f"{mix}.belt": (1, width, 1, 1)}
        layout |= conv(f"{mix}.linear_0", 2 * width, width, 1) | conv(f"{mix}.linear_1", width, width, 1)
        layout |= conv(f"{mix}.linear_2", width, width, 1) | conv(f"{mix}.dw_conv", width, 1)
        layout |= conv(f"{mix}.lde.conv_0.0", 2 * width, 1) | conv(f"{mix}.lde.conv_0.1", 2 * width, 2 * width, 1)
        layout |= conv(f"{mix}.lde.conv_1", width, 2 * width, 1) | conv(f"{mlp}.conv_0", 2 * width, width, 1)
        layout |= conv(f"{mlp}.conv_1", width // 2, width // 2) | conv(f"{mlp}.conv_2", width, 2 * width, 1)
    return layout, "to_img", width


def rcan_layout(width=16, groups=10, blocks=20):
    layout = conv("sub_mean", 3, 3, 1) | conv("add_mean", 3, 3, 1) | conv("head.0", width, 3)
    for g in range(groups):
        for b in range(blocks):
            block = f"body.{g}.body.{b}.body"
            layout |= conv(f"{block}.0", width, width) | conv(f"{block}.2", width, width)
            layout |= conv(f"{block}.3.conv_du.0", width // 16, width, 1)
            layout |= conv(f"{block}.3.conv_du.2", width, width // 16, 1)
        layout |= conv(f"body.{g}.body.{blocks}", width, width)
    return layout | conv(f"body.{groups}", width, width), "tail", width


def rdn_layout(width=4, blocks=16, layers=8):
    layout = conv("SFENet1", width, 3) | conv("SFENet2", width, width)
    for b in range(blocks):
        for c in range(layers):
            layout |= conv(f"RDBs.{b}.convs.{c}.conv.0", width, (c + 1) * width)
        layout |= conv(f"RDBs.{b}.LFF", width, (layers + 1) * width, 1)
    return layout | conv("GFF.0", width, blocks * width, 1) | conv("GFF.1", width, width), "UPNet", width


def igconv_layout(prefix, width, dim=256, layers=4):
    layout = {f"{prefix}.{name}": (9 * width, dim, 1, 1) for name in ("freq", "amplitude")}
    layout |= {f"{prefix}.phase.weight": (dim // 2, 1, 1, 1), f"{prefix}.phase.bias": (dim // 2,)}
    for i in range(layers):
        layout |= conv(f"{prefix}.query_kernel.{2 * i}", dim, dim, 1)
    return layout | conv(f"{prefix}.query_kernel.{2 * layers}", 3, dim, 1)


def igsample_layout(width, dim=256, layers=2):
    prefix = "skip.convs"
    layout = {f"{prefix}.{name}": (9 * width, dim, 1, 1) for name in ("freq", "amplitude")}
    layout |= {f"{prefix}.phase.weight": (dim // 2, 1, 1, 1), f"{prefix}.phase.bias": (dim // 2,)}
    for i in range(layers):
        layout |= conv(f"{prefix}.query_kernel.{2 * i}", dim, dim // 2, 1)
    return layout | {f"{prefix}.query_kernel.{2 * layers}.weight": (12, dim // 2, 1, 1)}


def official(layout, plus=True, dim=256):
    """Random tensors in the layout of an official IGConv release."""
    body, prefix, width = layout
    shapes = body | igconv_layout(prefix, width, dim) | (igsample_layout(width, dim) if plus else {})
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if "add_mean.weight" in state:
        state["add_mean.weight"], state["add_mean.bias"] = torch.eye(3)[..., None, None], torch.zeros(3)
    return state


def fingerprints(state):
    """One number per tensor that hardly any two tensors share; independent of names, shapes and order."""
    return sorted(float(tensor.double().square().sum()) for tensor in state.values())


@pytest.mark.parametrize("encoder", TINY)
@pytest.mark.parametrize(("upsampler", "scales"), [("spconv", (3,)), ("igconv+", (2, 3))])
def test_a_saved_model_comes_back_the_same(tmp_path, encoder, upsampler, scales):
    model = tiny(encoder, upsampler, scales, mean=(0.1, 0.2, 0.3), img_range=2.0)
    path = weights.save(model, tmp_path / "model.safetensors", {"trained_on": "nothing"})
    again = weights.load_checkpoint(path)
    assert (again.config, again.scales, again.training) == (model.config, model.scales, False)
    with torch.no_grad():
        for scale in scales:
            torch.testing.assert_close(again(LR, scale), model(LR, scale), rtol=0, atol=0)


def test_saving_needs_a_configuration_finite_weights_and_the_right_suffix(tmp_path):
    model = tiny()
    with pytest.raises(ValueError, match=r"\.safetensors"):
        weights.save(model, tmp_path / "model.pth", {})
    with pytest.raises(ValueError, match="instantiate"):
        weights.save(model.instantiate(2), tmp_path / "model.safetensors", {})
    with torch.no_grad():
        model.encoder.conv_first.bias[1] = float("nan")
    with pytest.raises(CheckpointError, match=r"NaN.*1 of 8 values in 'encoder\.conv_first\.bias'"):
        weights.save(model, tmp_path / "model.safetensors", {})
    assert not list(tmp_path.iterdir())


def test_a_bundled_file_is_found_by_its_name_and_its_header_becomes_the_card(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "repo_data", lambda *parts: tmp_path.joinpath(*parts))
    model = tiny()
    weights.save(model, tmp_path / "weights" / "my-model.safetensors", {"data": "demo", "licence": "MIT", "step": 7})
    assert weights.names()[-1] == "my-model"
    card = weights.card("my-model")
    assert (card.trained_on, card.scales, card.is_here, dict(card.notes)) == ("demo", (2, 3), True, {"step": 7})
    assert card.parameters == sum(p.numel() for p in model.parameters())
    assert card.family == "edsr with igconv+"
    with torch.no_grad():
        torch.testing.assert_close(weights.load("my-model")(LR, 2), model(LR, 2), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("layout", "plus", "tensors"),
    [
        (edsr_layout, False, 146), (edsr_layout, True, 155), (smfanet_layout, False, 280), (smfanet_layout, True, 289),
        (rcan_layout, True, 1651), (rdn_layout, True, 319),
    ],
)  # fmt: skip
def test_an_official_igconv_release_is_read_to_the_last_tensor(layout, plus, tensors):
    state = official(layout(), plus)
    assert len(state) == tensors
    model = weights.load_checkpoint({"params": state})
    used = dict(model.state_dict())
    for name in ("add_mean.weight", "add_mean.bias"):  # folded into other tensors; tested on its own below
        state.pop(name, None)
    assert fingerprints(used) == pytest.approx(fingerprints(state), rel=1e-6)
    assert model.config["fgrep"] is plus
    assert model.config["max_scale"] == (8 if layout is rcan_layout else 4)
    assert model.scales == ((2, 3, 4, 8) if layout is rcan_layout else (2, 3, 4))
    assert isinstance(model.upsampler, models.IGConvPlus if plus else models.IGConv)


def test_the_full_size_of_edsr_is_recognised_by_its_width_and_gets_the_paper_s_residual_scale():
    wide = edsr_layout(width=256, blocks=1)
    assert weights.load_checkpoint(official(wide, plus=False, dim=8)).config["res_scale"] == 0.1
    assert weights.load_checkpoint(official(edsr_layout(8, 1), plus=False, dim=8)).config["res_scale"] == 1.0
    options = {"res_scale": 0.3, "img_range": 255.0, "max_scale": 6, "fgrep": True, "scales": (2, 5)}
    model = weights.load_checkpoint(official(edsr_layout(8, 1), plus=False, dim=8), **options)
    assert {name: model.config[name] for name in options} == {**options, "scales": [2, 5]}


def test_rcan_s_learnt_output_colours_act_on_the_main_branch_only():
    state = official(rcan_layout(groups=1, blocks=1), dim=16)
    plain = weights.load_checkpoint(state)  # output colours: identity, no shift
    matrix, shift = torch.eye(3) + 0.2 * torch.randn(3, 3), torch.tensor([0.3, -0.1, 0.2])
    coloured = weights.load_checkpoint(state | {"add_mean.weight": matrix[..., None, None], "add_mean.bias": shift})
    with torch.no_grad():
        for scale in (2, 3):
            feats = plain.encode(LR)
            main, skip = plain.upsampler.main(feats, scale), plain.upsampler.skip(feats, scale, LR)
            expected = F.conv2d(main, matrix[..., None, None], shift) + skip
            torch.testing.assert_close(coloured(LR, scale), expected, rtol=1e-4, atol=1e-5)


def test_an_instantiated_official_kernel_is_a_plain_convolution_without_bias():
    body, prefix, width = smfanet_layout()
    state = official((body, prefix, width), plus=False)
    state = {name: state[name] for name in body} | {"to_img.weight": torch.randn(27, width, 3, 3)}
    model = weights.load_checkpoint(state)
    assert model.scales == (3,)
    assert model.upsampler.bias is None
    assert model(LR).shape == (1, 3, 48, 51)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_fixed_scale_edsr_is_read_with_its_range_of_255(scale):
    body, _, width = edsr_layout(blocks=2)
    factors = [2, 2] if scale == 4 else [scale]
    for i, factor in enumerate(factors):
        body |= conv(f"upsample.{2 * i}", width * factor**2, width)
    state = {name: 0.1 * torch.randn(shape) for name, shape in (body | conv("conv_last", 3, width)).items()}
    model = weights.load_checkpoint({"params": state})
    assert (model.scales, model.img_range) == ((scale,), 255.0)
    assert fingerprints(model.state_dict()) == pytest.approx(fingerprints(state), rel=1e-6)


def test_the_average_is_preferred_and_the_prefix_of_parallel_training_is_taken_off():
    state = official(smfanet_layout(blocks=1), plus=False, dim=8)
    other = {name: tensor + 1 for name, tensor in state.items()}
    for wrapped in ({"params": other, "params_ema": state}, {"module." + k: v for k, v in state.items()}):
        model = weights.load_checkpoint(wrapped)
        torch.testing.assert_close(model.encoder.shallow.weight, state["to_feat.weight"])


@pytest.mark.parametrize("name", ["feats.0.smfa.dw_conv.bias", "to_feat.weight", "to_img.freq", "skip.convs.amplitude"])
def test_a_renamed_tensor_is_reported_by_its_name(name):
    state = official(smfanet_layout(blocks=1), dim=8)
    state[name + "_2"] = state.pop(name)
    with pytest.raises(CheckpointError, match=re.escape(f"1 of {len(state)} tensors do not fit SMFANet")) as caught:
        weights.load_checkpoint(state)
    assert repr(name + "_2") in str(caught.value)


def test_missing_doubled_and_wrongly_shaped_tensors_are_named():
    state = official(smfanet_layout(blocks=2), dim=8)
    less = {name: tensor for name, tensor in state.items() if name != "feats.1.smfa.belt"}
    with pytest.raises(CheckpointError, match=r"1 are missing.*blocks\.1\.modulation\.variance_weight"):
        weights.load_checkpoint(less)
    less = {name: tensor for name, tensor in state.items() if name != "feats.0.pcfn.conv_0.weight"}
    with pytest.raises(CheckpointError, match=r"blocks\.0\.feed_forward\.widen\.weight.*missing"):
        weights.load_checkpoint(less)
    with pytest.raises(CheckpointError, match=r"\(7,\), expected \(8,\)"):
        weights.load_checkpoint(state | {"to_feat.bias": torch.zeros(7)})
    with pytest.raises(CheckpointError, match=r"'to_img\.query_kernel\.1\.weight'"):
        weights.load_checkpoint(state | {"to_img.query_kernel.1.weight": torch.zeros(8, 8, 1, 1)})


def test_nan_weights_and_unknown_architectures_are_refused():
    state = official(smfanet_layout(blocks=1), dim=8)
    state["to_feat.bias"][3] = float("inf")
    with pytest.raises(CheckpointError, match=r"infinite weights: 1 of 8 values in 'to_feat\.bias'"):
        weights.load_checkpoint(state)
    with pytest.raises(CheckpointError, match=r"unknown architecture.*'conv1\.weight'.*SMFANet"):
        weights.load_checkpoint({"conv1.weight": torch.zeros(3, 3)})
    with pytest.raises(CheckpointError, match="no state dict: 'epoch' is a int"):
        weights.load_checkpoint({"epoch": 3, "net": {}})
    with pytest.raises(CheckpointError, match="no tensors"):
        weights.load_checkpoint({})


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    sprung = tmp_path / "sprung"
    state = official(smfanet_layout(blocks=1), dim=8)
    for legacy in (False, True):
        torch.save(
            {"params": state, "extra": Trap(sprung)}, tmp_path / "trap.pth", _use_new_zipfile_serialization=not legacy
        )
        with pytest.raises(CheckpointError, match=r"refused.*\((posix|nt)\.mkdir\).*nothing of it was") as caught:
            weights.load_checkpoint(tmp_path / "trap.pth")
        assert not sprung.exists()
        assert "weights_only" not in str(caught.value)  # no advice to run it after all
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(CheckpointError, match="plain pickle"):
        weights.load_checkpoint(tmp_path / "plain.pth")
    assert not sprung.exists()


def test_damaged_and_wrong_files_are_refused_in_words(tmp_path):
    buffer = io.BytesIO()
    torch.save({"params": official(smfanet_layout(blocks=1), dim=8)}, buffer)
    whole = buffer.getvalue()
    ours = weights.save(tiny(), tmp_path / "ours.safetensors", {}).read_bytes()
    bad = {
        "cut.pth": whole[: len(whole) // 2], "empty.pth": b"", "page.pth": b"<!DOCTYPE html><html>404</html>",
        "text.pth": b"weights\n" * 10, "noise.pth": bytes(range(256)) * 9, "cut.safetensors": ours[: len(ours) // 2],
        "header.safetensors": ours[:100], "empty.safetensors": b"", "text.safetensors": b"hello, this is text",
    }  # fmt: skip
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{re.escape(name)} cannot be read") as caught:
            weights.load_checkpoint(tmp_path / name)
        assert "code" not in str(caught.value)
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        weights.load_checkpoint(tmp_path / "list.pth")
    for name in ("absent.pth", "absent.safetensors"):
        with pytest.raises(FileNotFoundError, match=name):
            weights.load_checkpoint(tmp_path / name)


WHOLE = {"encoder": "edsr", "upsampler": "igconv", "scales": [2]}
HEADERS = {
    "text": "not json", "list": "[1]", "number": "3", "bare": {"card": {}}, "hollow": {"config": {}, "card": {}},
    "cardless": {"config": WHOLE}, "unknown": {"config": WHOLE | {"encoder": "zzz"}, "card": {}},
    "size": {"config": WHOLE | {"foo": 1}, "card": {}}, "negative": {"config": WHOLE | {"channels": -4}, "card": {}},
    "scale": {"config": WHOLE | {"scales": 2}, "card": {}}, "other": {"config": WHOLE, "card": {}},
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_in_our_name_with_anything_in_it_is_refused_with_the_name_of_the_file(name, tmp_path):
    path, header = tmp_path / f"{name}.safetensors", HEADERS[name]
    text = header if isinstance(header, str) else json.dumps(header)
    safetensors.torch.save_file({"a": torch.zeros(2)}, path, {weights.HEADER: text})
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        weights.load_checkpoint(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_with_changed_bytes_is_read_or_refused(legacy, tmp_path):
    buffer, chance, path = io.BytesIO(), random.Random(0), tmp_path / "changed.pth"
    torch.save({"params": {"a": torch.zeros(2)}}, buffer, _use_new_zipfile_serialization=not legacy)
    for _ in range(400):
        content = bytearray(buffer.getvalue())
        for _ in range(chance.choice([1, 2, 4])):
            content[chance.randrange(min(300, len(content)))] = chance.randrange(256)
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"changed\.pth"):
            weights.load_checkpoint(path)  # nothing in it is a model


def test_an_argument_that_a_checkpoint_has_no_use_for_is_refused(tmp_path):
    ours = weights.save(tiny(), tmp_path / "ours.safetensors", {})
    with pytest.raises(CheckpointError, match=r"ours\.safetensors: res_scale, scales cannot be chosen: the file says"):
        weights.load_checkpoint(ours, scales=(7,), res_scale=5.0)
    body, _, width = edsr_layout(blocks=1)
    fixed = body | conv("upsample.0", 4 * width, width) | conv("conv_last", 3, width)
    fixed = {name: torch.zeros(shape) for name, shape in fixed.items()}
    assert weights.load_checkpoint(fixed, res_scale=0.5, img_range=1.0).config["res_scale"] == 0.5
    with pytest.raises(CheckpointError, match="fgrep, scales cannot be chosen: this EDSR is for x2 alone"):
        weights.load_checkpoint(fixed, fgrep=True, scales=(2,))
    with pytest.raises(CheckpointError, match="res_scale cannot be chosen: SMFANet has none"):
        weights.load_checkpoint(official(smfanet_layout(blocks=1), dim=8), res_scale=0.1)


def test_a_disk_that_is_full_is_an_error_of_the_system(tmp_path, monkeypatch):
    def full(*_):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match=r"model\.safetensors cannot be written: .*No space left"):
        weights.save(tiny(), tmp_path / "model.safetensors", {})


def test_public_tensors_in_a_safetensors_file_of_others_are_read_too(tmp_path):
    state = official(smfanet_layout(blocks=1), dim=8)
    safetensors.torch.save_file(state, tmp_path / "public.safetensors")
    model = weights.load_checkpoint(tmp_path / "public.safetensors")
    torch.testing.assert_close(model.encoder.shallow.weight, state["to_feat.weight"])


def test_a_wrong_name_gets_near_ones():
    with pytest.raises(ValueError, match=r"imdn-x2.*\? All names"):
        weights.load("imdn_x2")
    with pytest.raises(ValueError, match=r"called 'zzz'\. All names"):
        weights.load("zzz")


def test_every_published_card_is_complete():
    published = [card for card in weights.cards() if card.url]
    assert len(published) == 15
    for card in published:
        assert card.provenance in weights.PROVENANCE
        assert card.name.endswith(f"-x{card.scales[0]}")
        assert len(card.sha256) == 64
        assert all([card.family, card.trained_on, card.licence, card.inferred_from, card.citation, card.size])


PUBLISHED = ["smfanet-div2k", "smfanet-df2k", "smfanet+-df2k", "imdn", "bsrn"]
ALL_SCALES = [f"{series}-x{scale}" for series in PUBLISHED for scale in (2, 3, 4)]


@pytest.mark.benchmark_data(*ALL_SCALES)
@pytest.mark.parametrize("name", ALL_SCALES)
def test_published_models_have_the_stated_parameters_and_upscale(name):
    model, card = weights.load(name), weights.card(name)
    assert sum(p.numel() for p in model.parameters()) == card.parameters
    assert (model.scales, model.training) == (card.scales, False)
    scale = card.scales[0]
    with torch.no_grad():
        sr = model(LR.mean().expand(1, 3, 24, 24))
    assert sr.shape == (1, 3, 24 * scale, 24 * scale)
    inside = sr[..., 4 * scale : -4 * scale, 4 * scale : -4 * scale]
    assert (inside - LR.mean()).abs().max() < 0.05  # a flat grey picture stays flat and grey


@pytest.mark.benchmark_data(*ALL_SCALES)
@pytest.mark.parametrize("series", PUBLISHED)
def test_the_provenance_class_follows_from_the_weights(series):
    states = {scale: weights.load(f"{series}-x{scale}").encoder.state_dict() for scale in (2, 3, 4)}
    for a, b in itertools.combinations(states, 2):
        cosines = [
            F.cosine_similarity(states[a][name].flatten(), states[b][name].flatten(), dim=0).item()
            for name, tensor in states[a].items()
            if tensor.ndim == 4 and tensor.shape[1] > 1
        ]
        hidden = torch.tensor(cosines[1:]).median().item()
        inferred = "A" if hidden > 0.5 else "B" if cosines[0] > 0.5 else "C"
        assert inferred == weights.card(f"{series}-x{a}").provenance


@pytest.mark.benchmark_data("set5", *[f"{series}-x4" for series in PUBLISHED])
@pytest.mark.parametrize("series", PUBLISHED)
def test_set5_at_x4_scores_what_the_authors_printed(series):
    card, pictures = weights.card(f"{series}-x4"), datasets.load("set5")
    printed = pd.read_csv(runtime.repo_data("paper", "published_models.csv"))
    printed = printed.query("dataset == 'Set5' and scale == 4 and family == @card.family")
    printed = printed[printed.trained_on == card.trained_on].squeeze()
    model, scores = weights.load(card.name), []
    for i in range(len(pictures)):
        lr, hr = pictures.pair(i, 4)
        with torch.no_grad():
            sr = images.to_uint8(model(images.to_float(lr)[None])[0])
        scores.append((metrics.psnr_y(sr, hr, 4), metrics.ssim_y(sr, hr, 4)))
    psnr, ssim = pd.DataFrame(scores).mean()
    assert psnr == pytest.approx(printed.psnr, abs=0.01)
    assert ssim == pytest.approx(printed.ssim, abs=0.0002)
