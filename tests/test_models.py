"""Models: encoder and upsampler joined, at the scales they were made for and beyond."""

import warnings

import pytest
import torch

from srlab import models
from srlab.upsamplers import ScaleError

TINY = {"channels": 8, "blocks": 2}
SMALL_HYPER = {"implicit_dim": 16, "hidden_layers": 2}
LR = torch.rand(1, 3, 9, 11, generator=torch.Generator().manual_seed(0))


def tiny(upsampler="igconv", scales=(2, 3, 4), **sizes):
    torch.manual_seed(0)
    hyper = SMALL_HYPER if upsampler.startswith("igconv") else {}
    return models.build("edsr-tiny", upsampler, scales, **TINY, **hyper, **sizes).eval()


@pytest.mark.parametrize("upsampler", models.UPSAMPLERS)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_every_upsampler_fits_every_scale_it_was_built_for(upsampler, scale):
    model = tiny(upsampler)
    assert model(LR, scale).shape == (1, 3, 9 * scale, 11 * scale)
    assert model.encode(LR).shape == (1, 8, 9, 11)


@pytest.mark.parametrize("upsampler", models.UPSAMPLERS)
def test_the_instantiated_model_says_the_same_and_holds_no_hyper_network(upsampler):
    model = tiny(upsampler)
    stored = model.instantiate(3)
    with torch.no_grad():
        live = model(LR, 3)
        assert (stored(LR) - live).abs().max() <= 1e-6 * live.abs().max()
    assert not any("hyper" in name for name, _ in stored.named_modules())
    with pytest.raises(ScaleError):
        stored(LR, 2)


@pytest.mark.parametrize("upsampler", ["spconv", "spconv+", "igconv"])
def test_an_input_pixel_reaches_as_far_as_the_model_says_and_no_farther(upsampler):
    model = tiny(upsampler, scales=(2,))
    radius = model.receptive_radius
    side = 2 * radius + 5
    lr = torch.rand(1, 3, side, side, requires_grad=True)
    model(lr, 2)[..., side, side].sum().backward()  # an output pixel of the LR pixel in the middle
    touched = lr.grad.abs().sum(1)[0].nonzero()
    reach = (touched - side // 2).abs().max().item()
    assert reach <= radius
    assert reach >= radius - 1


def test_the_mean_colour_is_taken_off_and_given_back():
    model = tiny("spconv", scales=(2,))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(model(LR)[0, :, 0, 0], torch.tensor(models.DIV2K_MEAN))


def test_a_scale_never_trained_is_warned_of_by_igconv_and_refused_by_spconv():
    with pytest.warns(UserWarning, match="x5 was never trained"):
        assert tiny("igconv")(LR, 5).shape == (1, 3, 45, 55)
    with pytest.raises(ScaleError, match="x5 was asked for"):
        tiny("spconv")(LR, 5)


@pytest.mark.parametrize("scale", [0, -1, 2.5, None])
def test_a_scale_that_makes_no_sense_is_refused(scale):
    with pytest.raises(ScaleError):
        tiny()(LR, scale)


def test_the_scale_may_be_left_out_when_there_is_only_one():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tiny("spconv", scales=(3,))(LR).shape == (1, 3, 27, 33)


@pytest.mark.parametrize("lr", [LR[0], (LR * 255).to(torch.uint8), LR[:, :1]])
def test_a_picture_of_the_wrong_kind_is_refused(lr):
    with pytest.raises(ValueError, match=r"expected float \(B, 3, h, w\)"):
        tiny()(lr, 2)


@pytest.mark.parametrize(
    ("encoder", "upsampler", "sizes", "message"),
    [
        ("edsr-tinny", "igconv", {}, "did you mean 'edsr-tiny'"),
        ("edsr-tiny", "bicubic", {}, "expected one of spconv"),
        ("edsr-tiny", "igconv", {"width": 3}, "unknown size 'width'"),
        ("edsr-tiny", "igconv", {"skip": "bicubik"}, "did you mean 'bicubic'"),
        ("edsr-tiny", "igconv+", {"skip": "bilinear"}, "adds the input picture itself"),
        (["edsr-tiny"], "igconv", {}, "unknown encoder"),
        ("edsr-tiny", "igconv", {"scales": (2, 2)}, "expected each one once"),
        ("edsr-tiny", "igconv", {"channels": -4}, "size channels is -4, expected a whole number of at least 1"),
        ("edsr-tiny", "igconv", {"channels": "abc"}, "size channels is 'abc', expected a whole number"),
        ("edsr-tiny", "igconv", {"channels": True}, "size channels is True, expected a whole number"),
        ("edsr-tiny", "igconv", {"blocks": 1.5}, "size blocks is 1.5"),
        ("edsr-tiny", "igconv", {"max_scale": 0}, "size max_scale is 0"),
        ("edsr-tiny", "igconv", {"res_scale": "a"}, "size res_scale is 'a', expected a finite number"),
        ("edsr-tiny", "igconv", {"fgrep": 1}, "size fgrep is 1, expected True or False"),
        ("edsr-tiny", "spconv", {"kernel_size": 2}, "size kernel_size is 2, expected an odd number"),
        ("smfanet", "igconv", {"expansion": 0.0}, "size expansion is 0.0"),
        ("edsr-tiny", "igconv", {"mean": 0.5}, "size mean is 0.5, expected three finite numbers"),
        ("edsr-tiny", "igconv", {"mean": (0.1,)}, "expected three finite numbers"),
        ("edsr-tiny", "igconv", {"mean": "abc"}, "expected three finite numbers"),
        ("edsr-tiny", "igconv", {"img_range": 0}, "size img_range is 0, expected a finite number above 0"),
        ("edsr-tiny", "igconv", {"img_range": float("inf")}, "size img_range is inf"),
    ],
)
def test_what_no_model_can_be_made_of_is_refused_in_words(encoder, upsampler, sizes, message):
    with pytest.raises(ValueError, match=message):
        models.build(encoder, upsampler, **sizes)


VARIANTS = [
    ("igconv+", {}),
    ("igconv+", {"fgrep": False}),  # no averaging of kernels
    ("igconv+", {"fourier": False}),  # plain coordinates
    ("igconv", {"fgrep": True}),  # no IGSample
    ("igconv", {"fgrep": True, "fourier": False, "skip": "bicubic"}),
    ("spconv", {"skip": "bilinear"}),
    ("spconv+", {"skip": "bicubic"}),
]


@pytest.mark.parametrize(("upsampler", "options"), VARIANTS)
def test_the_configuration_builds_the_same_model_again(upsampler, options):
    model = tiny(upsampler, **options)
    again = models.build(**model.config).eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(LR, 2), model(LR, 2))
    assert (again.instantiate(2)(LR) - model(LR, 2)).abs().max() <= 1e-5 * model(LR, 2).abs().max()


@pytest.mark.parametrize("options", [options for _, options in VARIANTS if options])
def test_each_option_changes_the_picture(options):
    upsampler = next(name for name, other in VARIANTS if other is options)
    assert not torch.allclose(tiny(upsampler, **options)(LR, 2), tiny(upsampler)(LR, 2))


@pytest.mark.parametrize("skip", models.SKIPS)
def test_with_a_skip_a_silent_upsampler_gives_the_enlarged_picture(skip):
    """Colours are not shifted, although the model takes the mean colour off the input and adds it to the output."""
    model = tiny("spconv", skip=skip, img_range=255.0)
    with torch.no_grad():
        for parameter in model.upsampler.parameters():
            parameter.zero_()
    ramp = torch.linspace(0.1, 0.9, 12).expand(1, 3, 10, 12)  # straight lines stay straight away from the border
    step = 0.8 / 11
    expected = 0.1 + step * (torch.arange(36) - 1) / 3  # the middle of three HR pixels is the LR pixel's
    torch.testing.assert_close(model(ramp, 3)[0, 0, 15, 9:-9], expected[9:-9], rtol=0, atol=1e-5)
    flat = torch.full((1, 3, 9, 9), 0.3)
    torch.testing.assert_close(model(flat, 2), torch.full((1, 3, 18, 18), 0.3), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters"), [("edsr-tiny", 158_112), ("edsr-baseline", 1_220_416), ("edsr", 38_362_368)]
)
def test_edsr_has_its_three_sizes(name, parameters):
    encoder_class, sizes, _ = models.ENCODERS[name]
    with torch.device("meta"):
        encoder = encoder_class(**sizes)
    assert sum(p.numel() for p in encoder.parameters()) == parameters
