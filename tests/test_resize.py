"""Facts about MATLAB's bicubic, reached by loops over its textbook definition and by files that MATLAB itself wrote."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from srlab import datasets, resize
from srlab.resize import imresize

SCALES = [
    2,
    3,
    Fraction(1, 2),
    Fraction(1, 3),
    Fraction(1, 4),
    Fraction(1, 5),
    Fraction(3, 2),
    Fraction(2, 3),
    0.7,
    1.37,
]
SHAPES = [(1, 1), (2, 3), (7, 5), (12, 17)]


def textbook_weights(length, scale, border):
    """One axis by the book, with fractions: for each output pixel {input pixel: weight}."""
    widen = max(1, 1 / scale)

    def cubic(t):
        t = abs(t)
        if t <= 1:
            return Fraction(3, 2) * t**3 - Fraction(5, 2) * t**2 + 1
        return -Fraction(1, 2) * t**3 + Fraction(5, 2) * t**2 - 4 * t + 2 if t < 2 else Fraction(0)

    def stand_in(position):
        if border == "replicate":
            return min(max(position, 0), length - 1)
        while not 0 <= position < length:  # reflect at the outer edge of the border pixel until inside
            position = -1 - position if position < 0 else 2 * length - 1 - position
        return position

    rows = []
    for out in range(math.ceil(length * scale)):
        centre = (out + Fraction(1, 2)) / scale - Fraction(1, 2)
        reach = range(math.floor(centre - 2 * widen), math.ceil(centre + 2 * widen) + 1)
        weights = {position: cubic((centre - position) / widen) for position in reach}
        total, row = sum(weights.values()), {}
        for position, weight in weights.items():
            row[stand_in(position)] = row.get(stand_in(position), 0) + weight / total
        rows.append(row)
    return rows


def textbook_resize(picture, scale, border, finish=lambda value: value):
    """Loops over (H, W): height first, `finish` after each axis."""
    scale = Fraction(scale).limit_denominator(1000)
    for _ in range(2):
        rows = textbook_weights(len(picture), scale, border)
        picture = [[finish(sum(row[i] * picture[i][j] for i in row)) for j in range(len(picture[0]))] for row in rows]
        picture = [list(column) for column in zip(*picture, strict=True)]  # the other axis next; back after two turns
    return picture


def to_eight_bits(value):
    return min(max(math.floor(value + Fraction(1, 2)), 0), 255)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


# --- the textbook ---


@pytest.mark.parametrize("border", resize.BORDERS)
@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_float_is_the_textbook_sum(scale, border, generator):
    for shape in SHAPES:
        x = torch.rand(shape, generator=generator, dtype=torch.float64)
        expected = torch.tensor(textbook_resize(x.tolist(), scale, border), dtype=torch.float64)
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
            out = imresize(x.to(dtype), scale, border=border)
            assert out.dtype == dtype
            torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("border", resize.BORDERS)
@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_eight_bits_are_the_textbook_sum_rounded_half_up_after_each_axis(scale, border, generator):
    for shape in SHAPES:
        x = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        x[torch.rand(shape, generator=generator) < 0.3] = 255  # overshoot beyond both ends
        out = imresize(x, scale, border=border)
        assert out.dtype == torch.uint8
        assert out.tolist() == textbook_resize(x.tolist(), scale, border, to_eight_bits)


@pytest.mark.parametrize("scale", [Fraction(1, 10), Fraction(97, 89), Fraction(13, 1), Fraction(1, 100)], ids=str)
def test_eight_bits_stay_exact_where_32_bit_floats_would_not(scale, generator):
    x = torch.randint(0, 256, (11, 7), generator=generator, dtype=torch.uint8)
    assert imresize(x, scale).tolist() == textbook_resize(x.tolist(), scale, "symmetric", to_eight_bits)


@pytest.mark.parametrize("factor", resize.FAST_FACTORS)
def test_the_fast_kernel_can_never_round_another_way(factor):
    """A proof: torch rounds weights to 16-bit integers; the worst sum of those errors can't cross a rounding edge."""
    weights = textbook_weights(64 * factor, Fraction(1, factor), "symmetric")[20].values()
    bits = 0
    while round(float(max(weights)) * 2 ** (bits + 1)) < 2**15:  # as many bits as fit the largest weight
        bits += 1
    errors = [Fraction(round(weight * 2**bits), 2**bits) - weight for weight in weights]
    worst_up = 255 * sum(error for error in errors if error > 0)
    worst_down = -255 * sum(error for error in errors if error < 0)
    steps = math.lcm(*(weight.denominator for weight in weights))  # sums are multiples of 1 / steps
    if steps % 2 == 0:  # half-way values occur: rounding them needs exact weights
        assert worst_up == worst_down == 0
    else:  # the nearest a sum can come to a half is half a step
        assert max(worst_up, worst_down) < Fraction(1, 2 * steps)


@pytest.mark.parametrize("border", resize.BORDERS)
@pytest.mark.parametrize("factor", resize.FAST_FACTORS)
def test_fast_and_whole_number_roads_agree_on_noise(factor, border, generator):
    scale = Fraction(1, factor)
    for shape in ((3, 200, 301), (2, 64, 64), (1, 5, 9)):
        noise = torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8) * 255
        noise[..., ::3] = torch.randint(0, 256, noise[..., ::3].shape, generator=generator, dtype=torch.uint8)
        exact = resize._resize_axis_8bit(noise, -2, scale, border)
        exact = resize._resize_axis_8bit(exact, -1, scale, border)
        assert imresize(noise, scale, border=border).equal(exact)


# --- MATLAB's own files ---


@pytest.mark.benchmark_data("set5", "set14")
@pytest.mark.parametrize("name", ["set5", "set14"])
@pytest.mark.parametrize(("factor", "border"), [(2, "symmetric"), (3, "symmetric"), (4, "symmetric"), (8, "replicate")])
def test_every_value_of_the_benchmark_files_is_reproduced(name, factor, border):
    benchmark = datasets.load(name)
    for index, picture in enumerate(benchmark.names):
        lr, hr = benchmark.pair(index, factor)
        assert imresize(hr, Fraction(1, factor), border=border).equal(lr), picture


@pytest.mark.benchmark_data("set5")
def test_the_two_border_rules_can_be_told_apart_on_real_files():
    lr, hr = datasets.load("set5").pair(0, 8)
    mirrored = imresize(hr, Fraction(1, 8))
    assert not mirrored.equal(lr)
    assert mirrored[:, 2:-2, 2:-2].equal(lr[:, 2:-2, 2:-2])  # only the border differs


# --- properties ---


@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_a_flat_picture_stays_flat(scale):
    for x in (torch.full((9, 8), 0.3, dtype=torch.float64), torch.full((9, 8), 77, dtype=torch.uint8)):
        out = imresize(x, scale)
        torch.testing.assert_close(out, x.flatten()[0].expand_as(out), atol=1e-12, rtol=0)


def test_upscaling_is_exact_on_a_parabola():
    """Keys chose a = -1/2 because the cubic then reproduces every quadratic."""
    position = torch.arange(20, dtype=torch.float64)
    x = (position**2 - 3 * position).expand(20, 20)
    fine = (torch.arange(60, dtype=torch.float64) + 0.5) / 3 - 0.5
    out = imresize(x, 3)
    torch.testing.assert_close(out[:, 9:-9], (fine**2 - 3 * fine).expand(60, 60)[:, 9:-9])


def test_shrinking_blurs_what_the_coarse_grid_cannot_hold():
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    checkerboard = ((rows + columns) % 2).double()
    assert (imresize(checkerboard, 0.5)[2:-2, 2:-2] - 0.5).abs().max() < 1e-12  # exactly grey
    assert (checkerboard[::2, ::2] == 0).all()  # plain subsampling would give black


@pytest.mark.parametrize("scale", [Fraction(1, 2), Fraction(1, 3), 2, Fraction(3, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_flipping_and_transposing_commute_with_resizing(scale, dtype, generator):
    x = torch.randint(0, 256, (3, 24, 30), generator=generator).to(dtype)
    out = imresize(x, scale)
    torch.testing.assert_close(imresize(x.flip(-1, -2), scale).flip(-1, -2), out)
    if dtype != torch.uint8:  # with rounding in between, height first and width first differ
        torch.testing.assert_close(imresize(x.mT, scale).mT, out)


@pytest.mark.parametrize("scale", [Fraction(1, 2), Fraction(1, 5), 2], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_leading_dimensions_and_memory_layout_do_not_matter(scale, dtype, generator):
    x = torch.randint(0, 256, (2, 3, 11, 13), generator=generator).to(dtype)
    one_by_one = torch.stack([torch.stack([imresize(plane, scale) for plane in picture]) for picture in x])
    layouts = [
        x,
        x[None],
        x.contiguous(memory_format=torch.channels_last),
        x.repeat(1, 1, 1, 2)[..., :13],
    ]
    for layout in layouts:
        out = imresize(layout, scale)
        assert out.shape[-2:] == one_by_one.shape[-2:]
        assert out.is_contiguous()
        assert out.reshape(one_by_one.shape).equal(one_by_one)


@pytest.mark.parametrize(
    ("scale", "side"), [(2.0, 20), (1 / 3, 4), (0.7, 7), (0.1, 1), (1.25, 13), (np.float32(0.5), 5)]
)
def test_sides_are_rounded_up_and_floats_mean_the_nearby_fraction(scale, side):
    x = torch.rand(10, 10)
    out = imresize(x, scale)
    assert out.shape == (side, side)
    torch.testing.assert_close(out, imresize(x, Fraction(float(scale)).limit_denominator(100)))


@pytest.mark.parametrize("device", ["meta", "cuda"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("scale", [Fraction(1, 2), Fraction(1, 10), 3], ids=str)
def test_other_devices(device, dtype, scale, generator):
    """`meta` computes shapes only, but refuses tensors from elsewhere as any accelerator would."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.randint(0, 256, (3, 12, 13), generator=generator).to(dtype)
    out, expected = imresize(x.to(device), scale), imresize(x, scale)
    assert out.device.type == device
    assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
    if device != "meta":
        torch.testing.assert_close(out.cpu(), expected)


def test_scale_one_is_a_copy():
    x = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    out = imresize(x, 1)
    assert out.equal(x)
    assert out.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("scale", [2, Fraction(1, 2), 0.7], ids=str)
@pytest.mark.parametrize("border", resize.BORDERS)
def test_gradients_are_those_of_finite_differences(scale, border, generator):
    x = torch.rand(1, 2, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: imresize(x, scale, border=border), x)


def test_half_precision_is_rounded_once_at_the_end(generator):
    x = torch.rand(16, 16, generator=generator).bfloat16()
    assert imresize(x, Fraction(1, 4)).equal(imresize(x.float(), Fraction(1, 4)).bfloat16())


def test_contributions_are_the_rule_that_imresize_uses(generator):
    line = torch.rand(9, generator=generator, dtype=torch.float64)
    for scale, border in itertools.product(SCALES, resize.BORDERS):
        indices, weights = resize.contributions(9, scale, border)
        torch.testing.assert_close(weights.sum(1), torch.ones(len(weights), dtype=torch.float64))
        expected = imresize(line.expand(9, 9), scale, border=border)[0]
        torch.testing.assert_close((line[indices] * weights).sum(1), expected)
        indices.zero_()  # the caller's own copy: the next round must not see it


def test_the_drawn_curve_is_the_weights_before_scaling():
    indices, weights = resize.contributions(12, 4)
    distances = indices[22] - (22.5 / 4 - 0.5)  # output 22 looks at input position 5.125
    torch.testing.assert_close(weights[22], resize.cubic(distances.double()))
    assert resize.cubic(torch.tensor([0.0, 1.0, 2.0, 3.0])).tolist() == [1, 0, 0, 0]


# --- bad input ---


@pytest.mark.parametrize("scale", [0, -2, -0.5, math.nan, math.inf, 1920, 1e-6])
def test_impossible_scales(scale):
    with pytest.raises(ValueError, match="scale must"):
        imresize(torch.rand(4, 4), scale)


@pytest.mark.parametrize("scale", ["2", None, True, (2, 2), torch.tensor(2.0)])
def test_what_is_no_scale(scale):
    with pytest.raises(TypeError, match="scale must be an int, a float or a Fraction"):
        imresize(torch.rand(4, 4), scale)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((4, 4), np.uint8), TypeError, "torch.from_numpy"),
        (torch.zeros(4, 4, dtype=torch.int64), TypeError, "torch.int64"),
        (torch.zeros(4, 4, dtype=torch.bool), TypeError, "torch.bool"),
        (torch.zeros(3, 0, 4), ValueError, r"\(3, 0, 4\)"),
        (torch.zeros(4), ValueError, r"\(4,\)"),
    ],
)
def test_what_is_no_picture(x, error, message):
    with pytest.raises(error, match=message):
        imresize(x, 2)


def test_unknown_border_lists_the_known():
    picture = torch.rand(4, 4)
    for use in (lambda rule: imresize(picture, 2, border=rule), lambda rule: resize.contributions(4, 2, rule)):
        with pytest.raises(ValueError, match="'symmetric', 'replicate', got 'reflect'"):
            use("reflect")


@pytest.mark.parametrize("length", [0, -3, 2.5, True])
def test_a_line_without_pixels_has_no_contributions(length):
    with pytest.raises(ValueError, match="length must be a whole number of pixels"):
        resize.contributions(length, 2)
