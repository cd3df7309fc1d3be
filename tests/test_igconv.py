"""The formulas of IGConv written a second time, one kernel element after the other, and facts that follow from them."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from srlab import hypernetwork, igconv
from srlab.upsamplers import ScaleError, SPConv, count_parameters

SCALES = [2, 3, 4, 5, 8]
SIZES = {"kernel_size": 3, "implicit_dim": 8}


def shaken(module, seed=0):
    """Every weight drawn anew: after the official initialisation a kernel hardly depends on the position."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def features_and_picture(channels=4, h=5, w=6, batch=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    feats = torch.randn(batch, channels, h, w, generator=generator, dtype=dtype)
    return feats.requires_grad_(), torch.rand(batch, 3, h, w, generator=generator, dtype=dtype).requires_grad_()


def plain_kernel(hyper, scale):
    """The hyper-network as the paper writes it: for each tap of each channel and each sub-pixel, one small vector."""
    channels, k, maps = hyper.channels, hyper.kernel_size, hyper.maps
    half, groups = hyper.frequency.shape[1] // 2, hyper.groups
    elements = []
    for c, p, q, u, v in itertools.product(range(channels), range(k), range(k), range(scale), range(scale)):
        j = (c * k + p) * k + q
        x, y = -1 + (2 * v + 1) / scale, -1 + (2 * u + 1) / scale
        phase = hyper.phase.weight[:, 0, 0, 0] * (2 / min(scale, hyper.max_scale)) + hyper.phase.bias
        theta = hyper.frequency[j, :half] * x + hyper.frequency[j, half:] * y + phase
        cosines, sines = torch.cos(math.pi * theta), torch.sin(math.pi * theta)
        # group 0: cosines, then sines, of every groups-th frequency; group 1: those of the next ones
        ordered = torch.cat([torch.cat([cosines[g::groups], sines[g::groups]]) for g in range(groups)])
        values = hyper.amplitude[j] * ordered
        for i, layer in enumerate(hyper.layers):
            inputs, outputs = values.chunk(groups), layer.weight[:, :, 0, 0].chunk(groups)
            values = torch.cat([matrix @ part for matrix, part in zip(outputs, inputs, strict=True)])
            if layer.bias is not None:
                values = values + layer.bias
            if i < len(hyper.layers) - 1:
                values = values.clamp(min=0)
        elements.append(values)
    kernel = torch.stack(elements).view(channels, k, k, scale, scale, maps)
    return kernel.permute(5, 3, 4, 0, 1, 2).reshape(maps * scale * scale, channels, k, k)


def eight_kernels(kernel):
    """The kernel with its taps flipped and rotated in all eight ways."""
    turned = [torch.rot90(kernel, turns, (2, 3)) for turns in range(4)]
    return turned + [each.flip(3) for each in turned]


def plain_igconv(module, feats, scale):
    kernel = plain_kernel(module.hyper, scale)
    if module.hyper.fgrep:
        kernel = sum(eight_kernels(kernel)) / 8
    return F.pixel_shuffle(F.conv2d(feats, kernel, padding=1), scale)


def read_bilinearly(plane, x, y):
    """Value of a picture (h, w) at (x, y) in pixels, where pixel (i, j) has its centre at (j + 1/2, i + 1/2)."""
    h, w = plane.shape
    x, y = (x - 0.5).clamp(0, w - 1), (y - 0.5).clamp(0, h - 1)
    left, top = int(min(x.item(), w - 1.000001)), int(min(y.item(), h - 1.000001))
    right, below = min(left + 1, w - 1), min(top + 1, h - 1)
    a, b = x - left, y - top
    upper = plane[top, left] * (1 - a) + plane[top, right] * a
    return upper * (1 - b) + (plane[below, left] * (1 - a) + plane[below, right] * a) * b


def plain_igsample(module, feats, lr, scale):
    kernel = plain_kernel(module.hyper, scale)
    if module.hyper.fgrep:
        kernel = sum(eight_kernels(kernel)) / 8
    maps = F.conv2d(feats, kernel, padding=1)  # (B, 12 r r, h, w)
    delta, scope = maps[:, : 6 * scale**2], maps[:, 6 * scale**2 :]
    move = 0.5 * delta * torch.sigmoid(scope)
    batch, _, h, w = lr.shape
    rows = []
    for b, colour, i, u, j, v in itertools.product(*map(range, (batch, 3, h, scale, w, scale))):
        along_x, along_y = ((axis * 3 + colour) * scale**2 + u * scale + v for axis in range(2))
        x = j + 0.5 + (v - (scale - 1) / 2) / scale + move[b, along_x, i, j]
        y = i + 0.5 + (u - (scale - 1) / 2) / scale + move[b, along_y, i, j]
        rows.append(read_bilinearly(lr[b, colour], x, y))
    return torch.stack(rows).view(batch, 3, h * scale, w * scale)


def assert_same_with_gradients(found, expected, inputs):
    """Values and the gradients of a sum with unequal weights agree, in float64, to 1e-9 of the largest entry."""
    weights = torch.linspace(0.5, 1.5, found.numel(), dtype=found.dtype).view_as(found)
    for one, other in [
        (found, expected),
        *zip(*(grads(out, weights, inputs) for out in (found, expected)), strict=True),
    ]:
        assert (one - other).abs().max() <= 1e-9 * other.abs().max()


def grads(out, weights, inputs):
    return torch.autograd.grad((out * weights).sum(), inputs)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("fgrep", [False, True])
def test_igconv_is_the_formula(scale, fgrep):
    module = shaken(igconv.IGConv(2, hidden_layers=2, fgrep=fgrep, **SIZES)).double()
    feats, _ = features_and_picture(2, dtype=torch.float64)
    inputs = [feats, *module.parameters()]
    assert_same_with_gradients(module(feats, scale), plain_igconv(module, feats, scale), inputs)


@pytest.mark.parametrize("scale", SCALES)
def test_igsample_is_the_formula(scale):
    module = shaken(igconv.IGSample(2, hidden_layers=1, **SIZES)).double()
    feats, lr = features_and_picture(2, 2, 3, batch=1 if scale > 3 else 2, dtype=torch.float64)
    inputs = [feats, lr, *module.parameters()]
    assert_same_with_gradients(module(feats, scale, lr), plain_igsample(module, feats, lr, scale), inputs)


@pytest.mark.parametrize("scale", SCALES)
def test_igconv_plus_is_the_formula(scale):
    module = shaken(igconv.IGConvPlus(2, hidden_layers=2, **SIZES)).double()
    assert module.main.hyper.fgrep
    assert module.skip.hyper.fgrep
    feats, lr = features_and_picture(2, 2, 3, batch=1, dtype=torch.float64)
    expected = plain_igconv(module.main, feats, scale) + plain_igsample(module.skip, feats, lr, scale)
    assert_same_with_gradients(module(feats, scale, lr), expected, [feats, lr, *module.parameters()])


@pytest.mark.parametrize("channels", [16, 32, 64, 256])
@pytest.mark.parametrize("make", [igconv.IGConv, igconv.IGSample, igconv.IGConvPlus])
def test_without_fourier_features_as_many_numbers_are_stored(make, channels):
    with torch.device("meta"):
        ours, plain = (count_parameters(make(channels, fourier=fourier)) for fourier in (True, False))
    assert 0.996 * ours <= plain <= ours


def test_float32_is_the_formula_too():
    module = shaken(igconv.IGConvPlus(4, hidden_layers=2, **SIZES))
    feats, lr = features_and_picture(h=3, w=4, batch=1)
    expected = plain_igconv(module.main, feats, 3) + plain_igsample(module.skip, feats, lr, 3)
    assert (module(feats, 3, lr) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_fgrep_is_the_mean_of_eight_transformed_outputs():
    """The other road: the picture turned and flipped, convolved with the kernel as it is, and turned back."""
    module = shaken(igconv.IGConv(4, hidden_layers=2, fgrep=True, **SIZES))
    plain = igconv.IGConv(4, hidden_layers=2, fgrep=False, **SIZES).eval()
    plain.load_state_dict(module.state_dict())
    feats, _ = features_and_picture()
    kernel, scale = plain.kernel(3), 3
    outputs = []
    for turns, mirrored in itertools.product(range(4), (False, True)):
        there = torch.rot90(feats, turns, (2, 3))
        there = there.flip(3) if mirrored else there
        out = F.conv2d(there, kernel, padding=1)
        out = out.flip(3) if mirrored else out
        outputs.append(torch.rot90(out, -turns, (2, 3)))
    expected = F.pixel_shuffle(sum(outputs) / 8, scale)
    torch.testing.assert_close(module(feats, scale), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4, 5])
def test_zero_shifts_give_bilinear_upsampling(scale):
    feats, lr = features_and_picture()
    module = igconv.IGSample(4, **SIZES)
    with torch.no_grad():
        module.hyper.layers[-1].weight.zero_()
    expected = F.interpolate(lr, scale_factor=scale, mode="bilinear", align_corners=False)
    torch.testing.assert_close(module(feats, scale, lr), expected, rtol=0, atol=1e-6)


def test_an_untrained_igconv_plus_starts_near_bilinear_sampling():
    """Scopes start at zero; x of red, x of blue and y of green share their shifts, and so do the other three."""
    module = igconv.IGSample(4, **SIZES)
    kernel = module.kernel(2).unflatten(0, (12, 4))
    assert kernel[6:].abs().max() == 0
    torch.testing.assert_close(kernel[[0, 2, 4]], kernel[[0, 0, 0]])
    torch.testing.assert_close(kernel[[1, 3, 5]], kernel[[1, 1, 1]])


@pytest.mark.parametrize(
    ("scale", "igconv_size", "plus_size"), [(2, 6912, 34560), (3, 15552, 77760), (4, 27648, 138240)]
)
def test_instantiated_sizes_are_the_papers(scale, igconv_size, plus_size):
    assert count_parameters(igconv.IGConv(64).instantiate(scale)) == igconv_size
    assert count_parameters(igconv.IGConvPlus(64).instantiate(scale)) == plus_size


def test_stored_sizes_are_the_official_codes():
    assert count_parameters(igconv.IGConv(64)) == 559_107
    assert count_parameters(igconv.IGSample(64)) == 362_752
    assert count_parameters(igconv.IGConvPlus(64)) == 921_859


@pytest.mark.parametrize("scale", [1, 2, 3, 5])
@pytest.mark.parametrize("make", [igconv.IGConv, igconv.IGSample, igconv.IGConvPlus])
def test_an_instantiated_upsampler_gives_the_same_picture(make, scale):
    module = shaken(make(4, **SIZES))
    feats, lr = features_and_picture(h=11, w=7)
    stored = module.instantiate(scale)
    assert stored.scales == (scale,)
    assert not any(isinstance(part, hypernetwork.ImplicitKernel) for part in stored.modules())
    with torch.no_grad():
        expected = module(feats, scale, lr)
    torch.testing.assert_close(stored(feats, scale, lr), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(stored.instantiate(scale)(feats, lr=lr), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ScaleError, match=f"weights for x{scale} only"):
        stored(feats, scale + 1, lr)


@pytest.mark.parametrize("pixels", [1, 16, 21, 35, 10_000])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_strips_join_without_a_seam(monkeypatch, pixels, layout, kernel_size):
    """Strips of one row, of a few, with a shorter last one, and the whole picture: the same values and gradients."""
    monkeypatch.setattr(igconv, "CPU_STRIP", pixels)
    module = shaken(igconv.IGConvPlus(4, kernel_size=kernel_size, implicit_dim=8)).double()
    inputs = features_and_picture(dtype=torch.float64)
    feats, lr = (x.detach().contiguous(memory_format=layout).requires_grad_() for x in inputs)
    stored = module.instantiate(3)
    assert_same_with_gradients(stored(feats, 3, lr), module(feats, 3, lr), [feats, lr])


def test_strips_train_like_the_whole(monkeypatch):
    """In float64: strips add the same numbers up in another order, which float32 rounds differently."""
    monkeypatch.setattr(igconv, "CPU_STRIP", 12)
    feats, lr = features_and_picture(dtype=torch.float64)
    stored = shaken(igconv.IGConvPlus(4, **SIZES)).double().instantiate(2)
    (in_strips,) = torch.autograd.grad(stored(feats, 2, lr).square().sum(), stored.weight)
    monkeypatch.setattr(igconv, "CPU_STRIP", 10_000)
    (at_once,) = torch.autograd.grad(stored(feats, 2, lr).square().sum(), stored.weight)
    torch.testing.assert_close(in_strips, at_once)


def test_an_instantiated_igconv_is_a_sub_pixel_convolution_without_bias():
    stored = igconv.IGConv(4, **SIZES).train().instantiate(2)
    assert type(stored) is SPConv
    assert stored.bias is None
    assert stored.training
    assert not igconv.IGConvPlus(4, **SIZES).eval().instantiate(2).training


def test_instantiating_copies():
    """Training the live module further must not change what was stored, nor the other way round."""
    module = shaken(igconv.IGConvPlus(4, **SIZES))
    feats, lr = features_and_picture()
    before = module(feats, 2, lr).detach()
    for stored in (module.instantiate(2), module.instantiate(2).instantiate(2)):
        with torch.no_grad():
            stored.weight.zero_()
    torch.testing.assert_close(module(feats, 2, lr), before)
    plain = shaken(igconv.IGConv(4, **SIZES))
    kernel = plain.kernel(2).detach().clone()
    with torch.no_grad():
        plain.instantiate(2).weight.zero_()
    torch.testing.assert_close(plain.kernel(2), kernel)


def test_the_cache_notices_changed_weights():
    module = shaken(igconv.IGConv(4, **SIZES))
    with torch.no_grad():
        first = module.hyper(2)
        assert module.hyper(2) is first
        module.hyper.amplitude.mul_(1.5)  # in place, as an optimiser or load_state_dict does
        second = module.hyper(2)
        assert not torch.allclose(first, second)
        module.hyper.phase.bias = torch.nn.Parameter(module.hyper.phase.bias + 1)  # a new tensor
        assert not torch.allclose(second, module.hyper(2))
        assert module.hyper(2) is not module.hyper(3)


def test_the_cache_is_off_while_training_and_with_gradients():
    module = shaken(igconv.IGConv(4, **SIZES))
    assert module.hyper(2) is not module.hyper(2)  # gradients on
    assert module.hyper(2).requires_grad
    with torch.no_grad():
        kept = module.hyper(2)
    assert module.hyper(2).requires_grad  # a kernel kept without gradients is not handed out
    module.train()
    with torch.no_grad():
        assert module.hyper(2) is not module.hyper(2)
        module.eval()
        assert module.hyper(2) is not kept  # training in between empties the cache


def test_a_kernel_that_is_written_into_does_not_change_the_upsampler():
    for module in (shaken(igconv.IGConv(4, **SIZES)), shaken(igconv.IGConvPlus(4, **SIZES))):
        feats, lr = features_and_picture()
        with torch.no_grad():
            before = module(feats, 2, lr)
            for part in (getattr(module, "main", module), getattr(module, "skip", module)):
                part.kernel(2).zero_()
            torch.testing.assert_close(module(feats, 2, lr), before, rtol=0, atol=0)


def test_a_kernel_of_mixed_precision_is_not_handed_out_in_full_precision():
    module = shaken(igconv.IGConv(4, **SIZES))
    feats, _ = features_and_picture()
    expected = module(feats, 2).detach()  # with gradients nothing is kept
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert module(feats, 2).dtype == torch.bfloat16
        torch.testing.assert_close(module(feats, 2), expected, rtol=0, atol=0)


def test_a_model_made_in_inference_mode_runs():
    """Its weights don't count their changes, so its kernel is computed each time."""
    with torch.inference_mode():
        module = shaken(igconv.IGConv(4, **SIZES))
        feats, _ = features_and_picture()
        before = module(feats, 2).clone()
        module.hyper.amplitude.mul_(1.5)
        assert not torch.allclose(module(feats, 2), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_looks_at_the_right_place_of_a_wide_picture(dtype):
    """A ramp of 1000 columns read with shifts of zero: brightness is the place itself, here in 1000ths."""
    ramp = torch.linspace(0, 1, 1000).to(dtype).expand(1, 3, 2, -1)
    nowhere = torch.zeros(1, 48, 2, 1000, dtype=dtype)
    sampled = igconv.sample_picture(ramp, nowhere, 2)
    expected = F.interpolate(ramp.double(), scale_factor=2, mode="bilinear")
    assert sampled.dtype == dtype
    rounding = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(F.pixel_shuffle(sampled, 2).double(), expected, rtol=1.01 * rounding, atol=1e-6)


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_features_reach_as_far_once_the_kernel_is_stored(kernel_size):
    for kind in (igconv.IGConvPlus, igconv.IGSample, igconv.IGConv):
        module = kind(4, kernel_size=kernel_size, implicit_dim=8)
        assert module.instantiate(2).receptive_radius == module.receptive_radius >= kernel_size // 2


def test_above_max_scale_only_the_grid_gets_finer():
    """Beyond x4 the phase no longer knows the scale: the middle of x3 is a place of x9 as well, and differs at x2."""
    module = shaken(igconv.IGConv(4, max_scale=3, **SIZES))
    nine, three = (module.kernel(r).unflatten(0, (3, r, r)) for r in (9, 3))
    torch.testing.assert_close(nine[:, 1::3, 1::3], three, rtol=1e-4, atol=1e-4)
    free = shaken(igconv.IGConv(4, max_scale=9, **SIZES)).kernel(9).unflatten(0, (3, 9, 9))
    assert not torch.allclose(free[:, 1::3, 1::3], three, atol=1e-2)


def test_refusals_say_what_was_expected():
    module = igconv.IGConvPlus(4, **SIZES)
    feats, _ = features_and_picture()
    with pytest.raises(ValueError, match="pass it as lr"):
        module(feats, 2)
    with pytest.raises(ValueError, match="pass it as lr"):
        module.instantiate(2)(feats, 2)
    with pytest.raises(ScaleError, match=r"2\.5"):
        igconv.IGConv(4, **SIZES)(feats, 2.5)
