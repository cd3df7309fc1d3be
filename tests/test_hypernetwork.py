"""The hyper-network: its waves, its kernels at full size, its averaging. The whole formula is in test_igconv."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from srlab import hypernetwork, textbook


def shaken(module):
    """Every weight drawn anew: after the official initialisation a kernel hardly depends on the position."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_waves_and_their_gradient_are_those_of_the_formula(scale):
    torch.manual_seed(0)
    shapes = [(3, 2, 5), (3, 10), (5,)]
    along, amplitude, phase = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    centres = torch.rand(scale, dtype=torch.float64)
    places = torch.tensor([(x, y) for y in centres for x in centres], dtype=torch.float64)
    theta = torch.einsum("pa,naw->npw", places, along) + phase
    expected = amplitude[:, None] * torch.cat([theta.cos(), theta.sin()], dim=-1)
    found = hypernetwork._Waves.apply(along, amplitude, phase, centres)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(hypernetwork._Waves.apply, (along, amplitude, phase, centres))


def test_a_second_derivative_is_refused_and_not_wrong():
    hyper = shaken(hypernetwork.ImplicitKernel(2, 3, implicit_dim=8, hidden_layers=1))
    loss = hyper(2).square().sum() + hyper.frequency.pow(3).sum()  # another way to the same weight
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(loss, hyper.frequency, create_graph=True)


@pytest.mark.parametrize(("maps", "groups"), [(3, 1), (12, 2)])
def test_kernels_of_full_size_and_their_gradients_are_those_of_the_official_form(maps, groups):
    hyper = shaken(hypernetwork.ImplicitKernel(8, maps, groups=groups, hidden_layers=2, last_bias=groups == 1)).double()
    for scale in (2, 3, 4, 8):
        weights = torch.linspace(0.5, 1.5, maps * scale**2, dtype=torch.float64)[:, None, None, None]
        sides = hyper(scale), textbook.kernel(hyper, scale)
        grads = [torch.autograd.grad((side * weights).sum(), list(hyper.parameters())) for side in sides]
        for found, expected in [sides, *zip(*grads, strict=True)]:
            assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_float32_kernels_are_as_good_as_the_official_form_s():
    """Against float64: a phase of a quarter turn costs no digits."""
    hyper = shaken(hypernetwork.ImplicitKernel(8, 3))
    exact = textbook.kernel(hyper.double(), 3)
    hyper.float()
    ours, official = ((side.double() - exact).norm() / exact.norm() for side in (hyper(3), textbook.kernel(hyper, 3)))
    assert ours < 1e-5
    assert ours < 2 * official


@pytest.mark.parametrize("groups", [1, 2])
def test_half_precision_leaves_the_waves_in_full(groups):
    """In mixed precision only the products are rounded: bfloat16 knows an angle to one part in 256."""
    hyper = shaken(hypernetwork.ImplicitKernel(8, 12, groups=groups, hidden_layers=1))
    with torch.autocast("cpu", torch.bfloat16):
        features = hyper.fourier_features(3)
        kernel = hyper(3)
    torch.testing.assert_close(features, hyper.fourier_features(3), rtol=0, atol=0)
    assert (kernel.float() - hyper(3)).norm() < 0.02 * hyper(3).norm()


@pytest.mark.parametrize("scale", [2, 3, 5])
@pytest.mark.parametrize(("maps", "groups"), [(3, 1), (12, 2)])
def test_without_fourier_features_code_and_coordinates_enter_the_mlp(scale, maps, groups):
    hyper = shaken(hypernetwork.ImplicitKernel(2, maps, groups=groups, hidden_layers=1, fourier=False, implicit_dim=8))
    kernel = hyper(scale).view(maps, scale, scale, 2, 3, 3)
    first, last = hyper.layers
    for c, p, q, u, v in itertools.product(range(2), range(3), range(3), range(scale), range(scale)):
        code = hyper.code[(c * 3 + p) * 3 + q]
        place = torch.tensor([-1 + (2 * v + 1) / scale, -1 + (2 * u + 1) / scale, 2 / min(scale, 4)])
        inputs = torch.cat([torch.cat([part, place]) for part in code.chunk(groups)])[None, :, None, None]
        hidden = F.relu(F.conv2d(inputs, first.weight, first.bias, groups=groups))
        expected = F.conv2d(hidden, last.weight, last.bias, groups=groups).flatten()
        torch.testing.assert_close(kernel[:, u, v, c, p, q], expected, rtol=1e-4, atol=1e-5)


def test_fgrep_leaves_three_numbers_of_nine():
    kernel = hypernetwork.average_over_flips_and_rotations(torch.randn(6, 5, 3, 3))
    corners, edges = kernel[..., ::2, ::2].flatten(-2), kernel.flatten(-2)[..., 1::2]
    torch.testing.assert_close(corners, corners[..., :1].expand_as(corners))
    torch.testing.assert_close(edges, edges[..., :1].expand_as(edges))


def test_one_sub_pixel_is_the_middle():
    torch.testing.assert_close(hypernetwork.grid_centres(1), torch.zeros(1))
    torch.testing.assert_close(hypernetwork.grid_centres(4), torch.tensor([-0.75, -0.25, 0.25, 0.75]))


def test_features_that_cannot_be_shared_out_are_refused():
    with pytest.raises(ValueError, match="multiples of 4 and 2"):
        hypernetwork.ImplicitKernel(4, 12, implicit_dim=10, groups=2)
