"""Upsamplers: what each pixel of the output is made of, and which scales are refused."""

import pytest
import torch
import torch.nn.functional as F

from srlab import upsamplers
from srlab.upsamplers import ScaleError, SeparateHeads, SPConv, SPConvPlus

CHANNELS = 5


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_each_sub_pixel_of_spconv_is_its_own_small_convolution(scale):
    conv = SPConv(CHANNELS, scale)
    feats = torch.randn(2, CHANNELS, 6, 7)
    sr = conv(feats, scale)
    assert sr.shape == (2, 3, 6 * scale, 7 * scale)
    for colour in range(3):
        for row in range(scale):
            for column in range(scale):
                filter_number = (colour * scale + row) * scale + column
                weight, bias = conv.weight[filter_number, None], conv.bias[filter_number, None]
                alone = F.conv2d(feats, weight, bias, padding=1)[:, 0]
                torch.testing.assert_close(sr[:, colour, row::scale, column::scale], alone)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_spconv_plus_reaches_as_far_as_it_says_and_no_farther(scale, kernel_size):
    module = SPConvPlus(2, scale, kernel_size=kernel_size)
    with torch.no_grad():  # of one sign, so that nothing cancels
        for parameter in module.parameters():
            parameter.fill_(1.0)
    middle = module.receptive_radius + 2
    feats = torch.zeros(1, 2, 2 * middle + 1, 2 * middle + 1, requires_grad=True)
    block = slice(middle * scale, (middle + 1) * scale)  # all sub-pixels of the LR pixel in the middle
    module(feats)[..., block, block].sum().backward()
    touched = feats.grad.sum(1)[0].nonzero()
    assert (touched - middle).abs().max() == module.receptive_radius


@pytest.mark.parametrize(("scale", "expected"), [(2, 149_443), (3, 334_083), (4, 297_155)])
def test_spconv_plus_has_the_published_number_of_parameters(scale, expected):
    assert upsamplers.count_parameters(SPConvPlus(64, scale)) == expected


@pytest.mark.parametrize(("scale", "expected"), [(2, 6_924), (3, 15_579), (4, 27_696)])
def test_spconv_has_the_published_number_of_parameters(scale, expected):
    assert upsamplers.count_parameters(SPConv(64, scale)) == expected


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5, 6, 8])
def test_spconv_plus_serves_every_integer(scale):
    assert SPConvPlus(CHANNELS, scale)(torch.randn(1, CHANNELS, 4, 5)).shape == (1, 3, 4 * scale, 5 * scale)


def test_separate_heads_answer_as_each_head_alone():
    heads = [SPConv(CHANNELS, scale) for scale in (2, 4)]
    joined = SeparateHeads(heads)
    feats = torch.randn(1, CHANNELS, 4, 4)
    assert joined.scales == (2, 4)
    for head in heads:
        torch.testing.assert_close(joined(feats, head.scale), head(feats))
        torch.testing.assert_close(joined.instantiate(head.scale)(feats), head(feats))
    with pytest.raises(ScaleError, match=r"x3 was asked for.*x2, x4"):
        joined(feats, 3)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (0, "at least 1"),
        (-2, "at least 1"),
        (2.5, "whole number"),
        ("2", "whole number"),
        (True, "whole number"),
        (3, r"has\s+weights for x2 only"),
    ],
)
def test_a_scale_it_cannot_serve_is_refused(scale, message):
    with pytest.raises(ScaleError, match=message):
        SPConv(CHANNELS, 2)(torch.randn(1, CHANNELS, 4, 4), scale)


@pytest.mark.parametrize("skip", [upsamplers.BilinearSkip(), upsamplers.BicubicSkip()])
def test_a_skip_keeps_a_flat_picture_flat(skip):
    lr = torch.full((1, 3, 5, 6), 0.25)
    torch.testing.assert_close(skip(None, 3, lr), torch.full((1, 3, 15, 18), 0.25))


def test_an_instantiated_upsampler_is_independent_of_the_one_it_came_from():
    conv = SPConv(CHANNELS, 2)
    stored = conv.instantiate(2)
    with torch.no_grad():
        conv.weight.zero_()
    assert stored.weight.abs().sum() > 0


def test_a_sum_with_a_skip_needs_the_picture():
    both = upsamplers.WithSkip(SPConv(CHANNELS, 2), upsamplers.BilinearSkip())
    with pytest.raises(ValueError, match="pass it as lr"):
        both(torch.randn(1, CHANNELS, 4, 4), 2)
