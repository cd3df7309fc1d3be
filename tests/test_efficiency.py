"""Counted costs against hand formulas and published sizes. No test looks at how long anything takes."""

import os
import platform
import subprocess
import sys

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from srlab import efficiency, models
from srlab.igconv import IGConv

FREE_PEAK = platform.system() == "Linux" and efficiency._restart_peak()  # some containers do not allow it


# A kernel of C channels takes 9 C r^2 rows through four layers of 256 and one to 3, forward and twice backward, since
# the features have gradients too; from these come those of 128 frequencies along x and along y, another product.
ROW_FLOPS = 3 * 2 * (4 * 256**2 + 3 * 256) + 2 * 2 * 128


def conv_flops(channels_in, channels_out, k, h, w):
    """A multiplication and an addition for each tap, channel and output value."""
    return 2 * channels_in * channels_out * k**2 * h * w


def edsr_flops(c, blocks, h, w):
    return conv_flops(3, c, 3, h, w) + (2 * blocks + 1) * conv_flops(c, c, 3, h, w)


def test_flops_of_convolutions_are_the_hand_formula():
    conv = nn.Conv2d(5, 7, 3, padding=1)
    strided = nn.Conv2d(6, 6, 3, stride=2, groups=3)
    x, y = torch.randn(2, 5, 10, 11), torch.randn(1, 6, 9, 9)
    assert efficiency.count_flops(lambda: conv(x)) == 2 * conv_flops(5, 7, 3, 10, 11)
    assert efficiency.count_flops(lambda: strided(y)) == conv_flops(6, 2, 3, 4, 4)
    # backward: once more for the weight, and once more for the input if anything asks for it
    assert efficiency.count_flops(lambda: conv(x).sum().backward()) == 2 * 2 * conv_flops(5, 7, 3, 10, 11)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_flops_of_whole_models_are_the_hand_formula(scale):
    h, w = 20, 30
    encoder = edsr_flops(8, 2, h, w)
    sizes = {"channels": 8, "blocks": 2}
    fixed = models.build("edsr-tiny", "spconv", (scale,), **sizes)
    assert efficiency.model_flops(fixed, scale, (h, w)) == encoder + conv_flops(8, 3 * scale**2, 3, h, w)

    live = models.build("edsr-tiny", "igconv", (2, 3, 4), **sizes)
    # 2 C k^2 r^2 (L D^2 + 3 D): the hyper-network is evaluated for every kernel element and sub-pixel
    hyper = 2 * 8 * 9 * scale**2 * (4 * 256**2 + 3 * 256)
    with_kernel = encoder + conv_flops(8, 3 * scale**2, 3, h, w)
    assert efficiency.model_flops(live, scale, (h, w)) == with_kernel + hyper
    assert efficiency.model_flops(live.instantiate(scale), scale, (h, w)) == with_kernel

    plus = models.build("edsr-tiny", "igconv+", (2, 3, 4), **sizes).instantiate(scale)
    assert efficiency.model_flops(plus, scale, (h, w)) == encoder + conv_flops(8, 15 * scale**2, 3, h, w)

    heavy = models.build("edsr-tiny", "spconv+", (scale,), **sizes)
    stages = {2: [2], 3: [3], 4: [2, 2]}[scale]
    expected, side = encoder, 1
    for factor in stages:
        expected += conv_flops(8, 8 * factor**2, 3, h * side, w * side)
        side *= factor
    assert efficiency.model_flops(heavy, scale, (h, w)) == expected + conv_flops(8, 3, 3, h * side, w * side)


def test_counting_changes_nothing_and_needs_no_arithmetic():
    model = models.build("edsr-baseline", "igconv+")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert efficiency.model_flops(model, 4, (10_000, 10_000)) > 10**14
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert next(model.parameters()).device.type == "cpu"


def test_the_teaser_sizes_are_the_papers():
    table = efficiency.upsamplers_compared(2, size=(8, 8), repeats=1)
    assert table.parameters.to_dict() == {"SPConv": 6924, "IGConv": 6912, "SPConv+": 149443, "IGConv+": 34560}
    rounded = (table.parameters / 1000).round().astype(int).astype(str) + " K"
    assert rounded.equals(efficiency.paper_figure().paper_parameters.rename("parameters"))
    assert (table.gflops * 1e9).round().astype(int).to_dict() == {
        "SPConv": conv_flops(64, 12, 3, 8, 8),
        "IGConv": conv_flops(64, 12, 3, 8, 8),
        "SPConv+": conv_flops(64, 256, 3, 8, 8) + conv_flops(64, 3, 3, 16, 16),
        "IGConv+": conv_flops(64, 60, 3, 8, 8),
    }
    assert (table[["ms", "ratio", "ratio_plus"]] > 0).all(axis=None)
    assert "paper_ms" not in table


def test_the_papers_figure_is_read_as_printed():
    assert efficiency.paper_figure().loc["SPConv+"].to_dict() == {
        "paper_parameters": "149 K",
        "paper_ms": 4.14,
        "paper_mb": 509,
    }
    assert list(efficiency.paper_figure().index) == ["SPConv", "IGConv", "SPConv+", "IGConv+"]


def test_stored_parameters_are_those_of_the_official_configurations():
    table = efficiency.stored_parameters(["edsr", "smfanet+"]).set_index("encoder")
    edsr, smfanet = table.loc["edsr"], table.loc["smfanet+"]
    assert [edsr.alone, edsr.fixed, edsr.igconv, edsr["igconv+"]] == [38_362_368, 127_499_529, 39_806_211, 41_053_699]
    assert [smfanet.alone, smfanet.fixed, smfanet.igconv, smfanet["igconv+"]] == [
        475_104,
        1_462_983,
        960_483,
        1_249_507,
    ]
    assert (edsr.fixed_upsampler, smfanet.fixed_upsampler) == ("spconv+", "spconv")
    assert edsr["saving_igconv"] == pytest.approx(3.2, abs=0.05)
    assert smfanet["saving_igconv+"] == pytest.approx(1.2, abs=0.05)


@pytest.mark.parametrize(
    ("encoder", "published"),
    [
        ("smfanet", (185_628, 190_503, 197_328)),
        ("bsrn", (331_628, 340_283, 352_400)),
        ("imdn", (694_404, 703_059, 715_176)),
    ],
)
def test_fixed_models_have_the_sizes_of_the_public_files(encoder, published):
    for scale, size in zip((2, 3, 4), published, strict=True):
        assert efficiency.stored_parameters([encoder], (scale,)).fixed.item() == size
    assert efficiency.stored_parameters([encoder]).fixed.item() == sum(published)


def test_training_costs_three_times_the_forward_pass():
    """Forward, gradient of the weights, gradient of the inputs; the first layer needs no gradient of the picture."""
    row = efficiency.training_flops(
        ["smfanet"], ["igconv"], (2,), patch=16, micro_batch=1, micro_batches=1, steps=1
    ).loc[0]
    assert row.fixed_upsampler == "spconv"
    model = models.build("smfanet", "spconv", (2,))
    pooled = ("coarse", "gate")  # see the picture at an eighth of its sides
    pixels = {name: (2 if name.endswith(pooled) else 16) ** 2 for name, _ in model.named_modules()}
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    flops = [2 * layer.weight.numel() * pixels[name] for name, layer in layers]
    assert row.each_pflop * 1e15 == pytest.approx(3 * sum(flops) - flops[0])
    hyper = 36 * 9 * 4 * ROW_FLOPS
    assert row.one_pflop * 1e15 == pytest.approx(3 * sum(flops) - flops[0] + hyper, rel=1e-6)


def test_micro_batches_share_the_kernel_of_their_scale():
    sizes = {"patch": 16, "micro_batch": 2, "steps": 1}
    one = efficiency.training_flops(["edsr-tiny"], ["igconv"], (2, 3), micro_batches=1, **sizes).one_pflop.item()
    two = efficiency.training_flops(["edsr-tiny"], ["igconv"], (2, 3), micro_batches=2, **sizes).one_pflop.item()
    # of two micro-batches both draw the same scale half of the time: 1.5 kernels a step, not 2
    hyper = 32 * 9 * (4 + 9) / 2 * ROW_FLOPS
    assert 2 * one - two == pytest.approx(0.5 * hyper / 1e15, rel=1e-6)


def test_calls_take_turns_and_the_first_is_the_measure():
    order = []
    table = efficiency.compare({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"  # one round unmeasured
    rounds = table.attrs["rounds"]
    assert rounds.shape == (3, 2)
    assert table.ratio["a"] == 1
    assert table.ratio["b"] == pytest.approx((rounds.b / rounds.a).median())
    assert table.seconds["b"] == rounds.b.median()
    with pytest.raises(ValueError, match="expected at least one of each"):
        efficiency.compare({})


@pytest.mark.skipif(not FREE_PEAK, reason="this system does not let a process restart its memory peak")
def test_peak_memory_sees_what_a_call_holds_at_once():
    # a process of its own: one whose allocator was tuned keeps freed blocks, and their holes count as memory
    probe = """
import torch
from srlab import efficiency
mib = 2**20
print(efficiency.peak_memory(lambda: [torch.ones(16 * mib), torch.ones(8 * mib)], "cpu") / mib)  # 64 + 32 MiB
print(efficiency.peak_memory(lambda: [torch.ones(16 * mib).sum() for _ in range(3)], "cpu") / mib)
table = efficiency.upsamplers_compared(2, channels=16, size=(240, 320), repeats=1)
print(table.peak_mib["IGConv+"], table.peak_mib["SPConv+"])
"""
    fresh = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    printed = subprocess.run(
        [sys.executable, "-c", probe], env=fresh, capture_output=True, text=True, check=True
    ).stdout
    at_once, in_turn, strips, whole = map(float, printed.split())
    assert 90 < at_once < 112
    assert 60 < in_turn < 80
    # strips: an instantiated IGConv+ holds little more than its picture, SPConv+ two maps of full width
    assert strips < 0.7 * whole


def test_report_tells_stored_and_instantiated_apart():
    model = models.build("edsr-tiny", "igconv", (2, 4))
    found = efficiency.report(model, 2, (12, 16), repeats=1)
    encoder = sum(p.numel() for p in model.encoder.parameters())
    assert found.parameters_instantiated == encoder + 12 * 32 * 9
    assert found.parameters_stored == sum(p.numel() for p in model.parameters())
    assert found.flops == edsr_flops(32, 8, 12, 16) + conv_flops(32, 12, 3, 12, 16)
    assert found.flops_live > found.flops
    assert (found.model, found.height, found.width, found.device) == ("edsr-tiny + igconv", 12, 16, "cpu")
    table = pd.DataFrame([found, efficiency.report(model, 4, (12, 16), repeats=1)])
    assert table.scale.tolist() == [2, 4]
    assert table.seconds.gt(0).all()


def test_an_instantiated_igconv_costs_what_spconv_does():
    stored = IGConv(16).instantiate(3)
    feats = torch.randn(1, 16, 9, 9)
    plain = nn.Conv2d(16, 27, 3, padding=1)
    assert efficiency.count_flops(lambda: stored(feats)) == efficiency.count_flops(
        lambda: F.pixel_shuffle(plain(feats), 3)
    )
