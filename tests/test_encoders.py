"""Encoders: shapes, how far they look, smallest pictures, and sizes that the papers print."""

import pytest
import torch
import torch.nn.functional as F

from srlab import models, textbook
from srlab.encoders import blocks, smfanet
from srlab.encoders.bsrn import BSRN, BlueprintConv
from srlab.encoders.edsr import EDSR
from srlab.encoders.imdn import IMDN
from srlab.encoders.rcan import RCAN
from srlab.encoders.rdn import RDN
from srlab.encoders.smfanet import Modulation, PartialFeedForward, SMFANet

TINY = {
    "edsr": lambda: EDSR(8, 2),
    "smfanet": lambda: SMFANet(8, 2),
    "imdn": lambda: IMDN(16, 2),
    "bsrn": lambda: BSRN(16, 2),
    "rdn": lambda: RDN(8, 2, 3, 4),
    "rcan": lambda: RCAN(16, 2, 2),
}
GLOBAL = ["smfanet", "imdn", "bsrn", "rcan"]  # pooling, variance or attention over the whole picture


def tiny(name):
    torch.manual_seed(0)
    return TINY[name]()


def random_picture(h, w, batch=1):
    return torch.rand(batch, 3, h, w, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TINY)
def test_features_have_the_picture_s_size_and_the_stated_width(name):
    encoder = tiny(name)
    assert encoder(random_picture(17, 22, batch=2)).shape == (2, encoder.channels, 17, 22)


@pytest.mark.parametrize("name", TINY)
def test_training_and_evaluation_give_the_same_features_and_leave_the_picture_alone(name):
    encoder, lr = tiny(name), random_picture(16, 19)
    before = lr.clone()
    with torch.no_grad():
        torch.testing.assert_close(encoder.train()(lr), encoder.eval()(lr), rtol=0, atol=0)
    torch.testing.assert_close(lr, before, rtol=0, atol=0)


@pytest.mark.parametrize("name", TINY)
def test_pictures_of_a_batch_do_not_see_each_other(name):
    encoder, lr = tiny(name).double(), random_picture(16, 19, batch=3).double()
    with torch.no_grad():
        torch.testing.assert_close(encoder(lr)[1:2], encoder(lr[1:2]))


@pytest.mark.parametrize("name", TINY)
def test_a_far_pixel_changes_nothing_beyond_the_radius_and_everything_in_global_encoders(name):
    encoder = tiny(name).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # a fresh SMFANet has its view of the whole at zero
    radius = encoder.receptive_radius
    width = 40 if radius is None else 2 * radius + 4
    lr = random_picture(16, width).double()
    changed = lr.clone()
    changed[..., 0] += 0.5  # the leftmost column
    with torch.no_grad():
        difference = (encoder(changed) - encoder(lr)).abs().amax(dim=(0, 1, 2))  # per column
    assert (radius is None) == (name in GLOBAL)
    if radius is None:
        assert (difference > 0).all()
    else:
        assert difference[: radius + 1].all()
        assert not difference[radius + 1 :].any()


@pytest.mark.parametrize(("name", "smallest"), [("smfanet", 8), ("bsrn", 15)])
def test_the_smallest_picture_works_and_a_smaller_one_is_refused_in_words(name, smallest):
    encoder = tiny(name)
    assert encoder(random_picture(smallest, smallest)).isfinite().all()
    with pytest.raises(ValueError, match=f"at least {smallest}.*pad"):
        encoder(random_picture(smallest - 1, 40))


@pytest.mark.parametrize("name", TINY)
def test_flat_pictures_have_finite_features_and_gradients(name):
    encoder = tiny(name)
    feats = encoder(torch.zeros(1, 3, 16, 16))
    feats.square().sum().backward()
    assert feats.isfinite().all()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("encoder", "scale", "parameters"),
    [
        ("smfanet", 2, 185_628), ("smfanet", 3, 190_503), ("smfanet", 4, 197_328),
        ("smfanet+", 2, 480_300), ("smfanet+", 3, 486_795), ("smfanet+", 4, 495_888),
        ("imdn", 2, 694_404), ("imdn", 3, 703_059), ("imdn", 4, 715_176),
        ("bsrn", 2, 331_628), ("bsrn", 3, 340_283), ("bsrn", 4, 352_400),
    ],
)  # fmt: skip
def test_published_sizes_with_a_sub_pixel_convolution_have_the_published_number_of_parameters(
    encoder, scale, parameters
):
    with torch.device("meta"):
        model = models.build(encoder, "spconv", (scale,))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(("name", "parameters"), [("rdn", 21_973_952), ("rcan", 15_295_224 - 12)])
def test_large_encoders_count_what_the_official_igconv_code_counts(name, parameters):
    # without RCAN's output colours, a 3x3 matrix and a shift, which belong to no encoder
    with torch.device("meta"):
        encoder = models.build(name, "spconv", (2,)).encoder
    assert sum(p.numel() for p in encoder.parameters()) == parameters


def test_a_blueprint_convolution_is_a_full_one_whose_taps_share_one_shape_per_output():
    torch.manual_seed(0)
    blueprint = BlueprintConv(5, 7)
    feats = torch.randn(2, 5, 9, 11)
    full = blueprint.pointwise.weight * blueprint.depthwise.weight  # (7, 5, 1, 1) * (7, 1, 3, 3)
    expected = F.conv2d(feats, full, blueprint.depthwise.bias, padding=1)
    torch.testing.assert_close(blueprint(feats), expected)


@pytest.mark.parametrize(
    ("attention", "of_channel"),
    [(blocks.ChannelAttention, lambda c: c.mean()), (blocks.ContrastAttention, lambda c: c.mean() + c.std())],
)
def test_attention_scales_each_channel_by_a_function_of_all_channels_summaries(attention, of_channel):
    torch.manual_seed(0)
    module = attention(16, reduction=4).double()
    feats = 3 * torch.randn(1, 16, 6, 5, dtype=torch.double) + 1
    summary = torch.tensor([of_channel(channel.numpy()) for channel in feats[0]])  # numpy's std divides by n
    hidden = (module.squeeze.weight.flatten(1) @ summary + module.squeeze.bias).clamp(min=0)
    factor = torch.sigmoid(module.excite.weight.flatten(1) @ hidden + module.excite.bias)
    torch.testing.assert_close(module(feats), feats * factor[:, None, None])


def test_attention_with_fewer_channels_than_its_reduction_is_refused():
    with pytest.raises(ValueError, match="at least 16 channels"):
        blocks.ChannelAttention(8)


def test_smfanet_s_gate_is_constant_on_blocks_of_the_pooled_picture():
    torch.manual_seed(0)
    module = Modulation(4)
    with torch.no_grad():
        for parameter in module.detail.parameters():
            parameter.zero_()  # what is left is merge(broad * gate)
        module.merge.weight.copy_(torch.eye(4)[..., None, None])
        module.merge.bias.zero_()
        feats = torch.rand(1, 4, 24, 16)
        broad = module.split(feats).chunk(2, dim=1)[1]
        gate = module(feats) / broad  # 3 x 2 blocks of 8 x 8
    tiles = gate.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4)  # (1, 4, 3, 2, 64)
    torch.testing.assert_close(tiles, tiles[..., :1].expand_as(tiles), rtol=1e-4, atol=1e-5)
    assert tiles[..., 0].flatten(2).std(dim=-1).min() > 0  # yet it differs from block to block


def test_smfanet_s_feed_forward_looks_at_neighbours_through_a_quarter_of_its_channels_only():
    torch.manual_seed(0)
    module = PartialFeedForward(8, 2.0)
    assert module.partial.weight.shape == (4, 4, 3, 3)
    feats = torch.rand(1, 8, 7, 7, requires_grad=True)
    module(feats)[0, :, 3, 3].sum().backward()
    assert feats.grad.abs().sum(1)[0].nonzero().sub(3).abs().max() == 1
    with torch.no_grad():
        module.partial.weight.zero_()
    feats.grad = None
    module(feats)[0, :, 3, 3].sum().backward()
    assert feats.grad.abs().sum(1)[0].nonzero().tolist() == [[3, 3]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_a_block_of_smfanet_is_what_its_authors_code_computes(layout, batch):
    block = tiny("smfanet").blocks[0].double().to(memory_format=layout)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    feats = torch.randn(batch, 8, 17, 24, dtype=torch.double).contiguous(memory_format=layout).requires_grad_()
    inputs = [feats, *block.parameters()]
    found, expected = block(feats), textbook.smfanet_block(block, feats)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), inputs), wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", [(1, 4, 7, 5), (4, 4, 12, 5), (3, 4, 1, 1), (20, 4, 3, 3)])
def test_a_pointwise_convolution_is_a_matrix_at_each_pixel(shape):
    layer = blocks.Pointwise(4, 6)
    for layout in (torch.contiguous_format, torch.channels_last):
        feats = torch.randn(shape).contiguous(memory_format=layout)
        expected = torch.einsum("dc,bchw->bdhw", layer.weight[:, :, 0, 0], feats) + layer.bias[:, None, None]
        torch.testing.assert_close(layer(feats), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_smfanet_s_sums_of_squares_do_not_overflow_in_half_precision(dtype):
    feats = 200 * torch.randn(1, 8, 64, 64)  # 4096 squares of 40,000; a float16 ends at 65,504
    found, expected = smfanet._unit_length(feats.to(dtype)), F.normalize(feats)
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["edsr", "smfanet"])
def test_encoders_give_what_the_released_code_computes(name):
    encoder = tiny(name)
    lr = torch.rand(2, 3, 17, 24)
    torch.testing.assert_close(encoder(lr), getattr(textbook, name)(encoder, lr), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_the_variance_of_a_channel_and_its_gradient_are_torch_s(mean):
    torch.manual_seed(0)
    feats = (mean + torch.randn(2, 3, 5, 7, dtype=torch.float64)).requires_grad_()
    torch.testing.assert_close(smfanet._variance(feats), feats.var(dim=(2, 3), keepdim=True))
    assert torch.autograd.gradcheck(smfanet._variance, (feats,))
    single, exact = feats.float(), feats.float().double()  # rounded once, so that only the arithmetic differs
    torch.testing.assert_close(
        smfanet._variance(single).double(), exact.var(dim=(2, 3), keepdim=True), rtol=1e-5, atol=0
    )
    half = feats.bfloat16()
    torch.testing.assert_close(smfanet._variance(half), half.var(dim=(2, 3), keepdim=True), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="first derivatives only"):  # the second would be wrong
        torch.autograd.grad((smfanet._variance(feats) + feats**3).sum(), feats, create_graph=True)
