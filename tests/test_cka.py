"""CKA: textbook formulas, known answers, sums against whole tensors, intervals that cover, and refusals."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from srlab import cka


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def related(n, p, q, seed=0, dtype=torch.float64):
    """Two views of the same examples: y is a rectified mixture of x, with noise and a mean of its own."""
    x = noise(n, p, seed=seed)
    y = (x @ noise(p, q, seed=seed + 1)).relu() + noise(n, q, seed=seed + 2) + 3
    return x.to(dtype), y.to(dtype)


def rotation(p, seed=9):
    return torch.linalg.qr(noise(p, p, seed=seed)).Q


def textbook(gram_x, gram_y, debiased):
    """CKA by traces of n x n matrices, with the centring matrix and the all-ones vector written out."""
    n = len(gram_x)
    ones = torch.ones(n, dtype=torch.float64)
    centring = torch.eye(n, dtype=torch.float64) - 1 / n

    def hsic(k, l):  # noqa: E741
        if not debiased:
            return torch.trace(k @ centring @ l @ centring) / (n - 1) ** 2
        k, l = k - torch.diag(k.diagonal()), l - torch.diag(l.diagonal())  # noqa: E741
        sums = torch.trace(k @ l) + (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
        return (sums - 2 / (n - 2) * (ones @ k @ l @ ones)) / (n * (n - 3))

    return float(hsic(gram_x, gram_y) / (hsic(gram_x, gram_x) * hsic(gram_y, gram_y)).sqrt())


def textbook_linear(x, y, debiased):
    return textbook(x.double() @ x.double().T, y.double() @ y.double().T, debiased)


def fed(x, y, sizes, **options):
    sums = cka.CKA(**options)
    for one, other in zip(x.split(sizes), y.split(sizes), strict=True):
        sums.update(one, other)
    return sums


both_forms = pytest.mark.parametrize("debiased", [False, True])


@both_forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "p", "q"), [(50, 7, 9), (9, 40, 30), (300, 64, 36), (64, 64, 64), (5, 20, 2), (4, 3, 3)])
def test_linear_cka_is_the_textbook_trace_formula(n, p, q, dtype, debiased):
    x, y = related(n, p, q, dtype=dtype)
    expected = textbook_linear(x, y, debiased)
    assert cka.linear_cka(x, y, debiased) == pytest.approx(expected, abs=1e-8)
    assert fed(x, y, n).compute(debiased) == pytest.approx(expected, abs=1e-8)  # sums, whatever is smaller
    grams = cka.linear_gram(x), cka.linear_gram(y)
    assert float(cka.cka_from_grams(*grams, debiased)) == pytest.approx(expected, abs=1e-8)


def test_debiased_hsic_is_an_average_over_four_different_examples():
    x, y = related(7, 3, 2)
    k, l = x @ x.T, y @ y.T  # noqa: E741

    def hsic(a, b):
        terms = [
            a[i, j] * (b[i, j] + b[q, r] - 2 * b[i, q])
            for i, j, q, r in itertools.permutations(range(7), 4)  # no example twice: that is why it has no bias
        ]
        return sum(terms) / len(terms)

    expected = float(hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt())
    assert cka.linear_cka(x, y, debiased=True) == pytest.approx(expected, abs=1e-12)


@both_forms
@pytest.mark.parametrize("shape", [(40, 6), (10, 30)])
def test_identical_features_give_one(shape, debiased):
    x = noise(*shape) + 5
    assert cka.linear_cka(x, x, debiased) == pytest.approx(1, abs=1e-12)
    assert cka.rbf_cka(x, x, debiased=debiased) == pytest.approx(1, abs=1e-12)
    assert cka.procrustes(x, x) == pytest.approx(1, abs=1e-12)
    assert fed(x, x, 3).compute(debiased) == pytest.approx(1, abs=1e-12)


@both_forms
def test_rotation_shift_and_isotropic_scaling_change_nothing_but_stretching_does(debiased):
    x, y = related(80, 6, 5)
    moved = 37 * x @ rotation(6) - 4
    for similarity in (
        lambda a, b: cka.linear_cka(a, b, debiased),
        lambda a, b: cka.rbf_cka(a, b, debiased=debiased),
        cka.procrustes,
    ):
        assert similarity(moved, y) == pytest.approx(similarity(x, y), abs=1e-10)
        assert abs(similarity(x * torch.tensor([9.0, 1, 1, 1, 1, 1]), y) - similarity(x, y)) > 1e-3


@both_forms
def test_debiased_form_tells_unrelated_features_from_a_small_sample(debiased):
    values = [cka.linear_cka(noise(64, 64, seed=s), noise(64, 64, seed=s + 100), debiased) for s in range(20)]
    expected = 0.0 if debiased else 0.5  # n = p
    assert np.mean(values) == pytest.approx(expected, abs=0.02)


@both_forms
@pytest.mark.parametrize("mean", [0, 1, 10, 100, 1000])
def test_large_means_cost_no_digits(mean, debiased):
    for n in (300, 14000):  # products in float64, in float32
        x, y = related(n, 100, 90, dtype=torch.float32)
        x, y = x + mean, y - mean
        about_mean = (features.double() - features.double().mean(0) for features in (x, y))
        route = textbook_linear if n == 300 else cka.linear_cka
        assert cka.linear_cka(x, y, debiased) == pytest.approx(route(*about_mean, debiased), abs=1e-6)


@both_forms
@pytest.mark.parametrize("factor", [1e-12, 1e8])
def test_tiny_and_huge_features_neither_vanish_nor_overflow(factor, debiased):
    x, y = related(14000, 100, 90, dtype=torch.float32)  # float32 products
    assert cka.linear_cka(x * factor, y, debiased) == pytest.approx(cka.linear_cka(x, y, debiased), abs=1e-6)


@both_forms
@pytest.mark.parametrize("sizes", [1, 7, 100, [1, 2, 250, 47], [299, 1]])
def test_any_split_into_batches_gives_the_single_batch(sizes, debiased):
    for dtype in (torch.float32, torch.float64):
        x, y = related(300, 12, 9, dtype=dtype)
        assert fed(x, y, sizes).compute(debiased) == pytest.approx(cka.linear_cka(x, y, debiased), abs=1e-8)


@both_forms
def test_splits_agree_where_products_are_taken_in_float32(debiased):
    x, y = related(30000, 100, 90, dtype=torch.float32)
    whole = fed(x, y, 30000).compute(debiased)
    assert whole == pytest.approx(fed(x.double(), y.double(), 30000).compute(debiased), abs=1e-8)
    for sizes in (1000, [25001, 4999]):
        assert fed(x, y, sizes).compute(debiased) == pytest.approx(whole, abs=1e-8)
    features_in_rows = x.T.contiguous().T, y.T.contiguous().T  # as an NCHW map gives them
    assert fed(*features_in_rows, 30000).compute(debiased) == pytest.approx(whole, abs=1e-8)


def test_first_batch_may_be_unlike_all_others():
    x, y = related(20000, 100, 90, dtype=torch.float32)
    x[:4096], y[:4096] = 0, 0  # a black border: no spread, another mean
    for factor in (1, 1e6):
        a, b = x * factor + 500, y + 500
        exact = cka.linear_cka(a.double(), b.double(), debiased=True)
        assert cka.linear_cka(a, b, debiased=True) == pytest.approx(exact, abs=1e-6)


@both_forms
@pytest.mark.parametrize("zero", [0, 2])
def test_values_that_many_examples_share_do_not_add_up_rounding_errors(zero, debiased):
    """Half of the values behind a ReLU are one constant, and so are their products once a mean is taken off."""
    base = noise(12000, 30)
    x, y = ({str(i): (base @ noise(30, 40, seed=i)).relu().float() + zero for i in range(s, s + 4)} for s in (0, 9))
    single, double = cka.CKAMatrix(list(x), list(y)), cka.CKAMatrix(list(x), list(y))
    single.update(x, y)
    double.update(*({name: rows.double() for name, rows in side.items()} for side in (x, y)))
    torch.testing.assert_close(single.compute(debiased), double.compute(debiased), rtol=0, atol=1e-7)


@both_forms
@pytest.mark.parametrize("n", [40, 5000])
def test_matrix_holds_every_pair_of_layers(n, debiased):
    widths_x, widths_y = {"a": 60, "b": 5, "c": 90}, {"u": 100, "v": 64}
    base = noise(n, 20)
    x = {k: (base @ noise(20, w, seed=i)).relu().float() for i, (k, w) in enumerate(widths_x.items())}
    y = {k: (base @ noise(20, w, seed=9 + i)).tanh().float() + 2 for i, (k, w) in enumerate(widths_y.items())}
    sums = cka.CKAMatrix(["c", "a", "b"], ["u", "v"])
    for start in range(0, n, 1234):
        batch = ({k: v[start : start + 1234] for k, v in side.items()} for side in (x, y | {"not asked for": base}))
        sums.update(*batch)
    expected = [[cka.linear_cka(x[i].double(), y[j].double(), debiased) for j in "uv"] for i in "cab"]
    matrix = sums.compute(debiased)
    assert matrix.shape == (3, 2)
    assert sums.n == n
    torch.testing.assert_close(matrix, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=2e-8)


def test_graphs_half_precision_and_inference_mode_are_welcome():
    x, y = related(50, 4, 3)
    expected = cka.linear_cka(x, y)
    sums = cka.CKA()
    with torch.inference_mode():
        sums.update(x[:20].clone(), y[:20].clone())
    sums.update(x[20:].requires_grad_(), y[20:])
    assert sums.compute() == pytest.approx(expected, abs=1e-12)
    assert cka.linear_cka(x.bfloat16(), y.half()) == pytest.approx(expected, abs=1e-2)
    assert cka.linear_cka(x[:5].requires_grad_(), noise(5, 99)) > 0


def test_refused_batch_leaves_no_trace():
    x, y = related(60, 4, 3)
    sums = fed(x[:30], y[:30], 30)
    bad = x[30:].clone()
    bad[3, 1] = math.nan
    with pytest.raises(ValueError, match="1 NaN"):
        sums.update(bad, y[30:])
    sums.update(x[30:], y[30:])
    assert sums.compute() == pytest.approx(cka.linear_cka(x, y), abs=1e-12)

    fresh = cka.CKA()
    with pytest.raises(ValueError, match="NaN"):
        fresh.update(bad, y[30:])
    fresh.update(x[:, :2], y)  # even widths are free again
    assert fresh.compute() == pytest.approx(cka.linear_cka(x[:, :2], y), abs=1e-12)


# other similarities


@both_forms
def test_rbf_cka_is_the_textbook_formula_of_a_gaussian_kernel(debiased):
    x, y = related(30, 5, 4)
    grams = []
    for features in (x, y):
        squared = torch.cdist(features, features) ** 2
        grams.append(torch.exp(-squared / (2 * 0.4**2 * np.median(squared.numpy()))))
    expected = textbook(*grams, debiased)
    assert cka.rbf_cka(x, y, bandwidth=0.4, debiased=debiased) == pytest.approx(expected, abs=1e-9)


def test_a_wide_gaussian_kernel_is_a_linear_one():
    x, y = related(50, 5, 4)
    assert cka.rbf_cka(x, y, bandwidth=300) == pytest.approx(cka.linear_cka(x, y), abs=1e-4)
    assert abs(cka.rbf_cka(x, y, bandwidth=0.4) - cka.linear_cka(x, y)) > 0.02


def test_gram_matrices_need_no_centring_and_come_in_stacks():
    xs = torch.stack([noise(20, 3, seed=s) @ noise(3, 20, seed=s + 50) for s in range(3)])
    ys = torch.stack([noise(20, 4, seed=s + 10) for s in range(2)]).repeat(1, 1, 5)
    grams_x, grams_y = xs @ xs.mT, (ys + 4) @ (ys + 4).mT
    for debiased in (False, True):
        matrix = cka.cka_from_grams(grams_x, grams_y, debiased)
        expected = [[cka.linear_cka(x, y, debiased) for y in ys] for x in xs]
        torch.testing.assert_close(matrix, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)


def test_cca_of_one_output_is_the_multiple_correlation():
    x, y = related(60, 4, 1)
    design = torch.cat([x, torch.ones(60, 1, dtype=torch.float64)], dim=1)
    fitted = design @ torch.linalg.lstsq(design, y).solution
    r_squared = 1 - float((y - fitted).square().sum() / (y - y.mean()).square().sum())
    assert cka.cca(x, y) == pytest.approx(math.sqrt(r_squared), abs=1e-10)


def test_cca_ignores_any_invertible_map_and_dead_channels():
    x, y = related(90, 5, 3)
    stretched = x @ noise(5, 5, seed=7) * torch.tensor([1e3, 1, 1, 1e-3, 1])
    assert cka.cca(stretched, x) == pytest.approx(1, abs=1e-8)
    assert cka.cca(stretched, y) == pytest.approx(cka.cca(x, y), abs=1e-8)
    assert cka.cca(torch.cat([x, torch.zeros(90, 2)], dim=1), y) == pytest.approx(cka.cca(x, y), abs=1e-8)


def test_svcca_drops_directions_that_hold_little_variance():
    signal = noise(80, 3)
    x, y = (torch.cat([signal, 1e-3 * noise(80, 6, seed=seed)], dim=1) for seed in (1, 2))
    assert cka.svcca(x, y) == pytest.approx(1, abs=1e-4)
    assert cka.cca(x, y) < 0.7
    wide = 1e-3 * noise(80, 200, seed=3)  # more features than examples
    wide[:, :3] += signal
    assert cka.svcca(wide, y, keep=0.99) == pytest.approx(1, abs=1e-4)


def test_svcca_keeps_as_many_directions_as_hold_the_asked_for_variance():
    axes = torch.linalg.qr(noise(40, 3) - noise(40, 3).mean(0)).Q
    x = axes * torch.tensor([0.6, 0.3, 0.1]).sqrt()
    for direction, keep, expected in [(1, 0.59, 0), (1, 0.61, 1), (2, 0.89, 0), (2, 0.91, 1)]:
        assert cka.svcca(x, axes[:, [direction]], keep) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("p", [4, 90])
def test_procrustes_is_the_distance_left_after_the_best_rotation(p):
    x, y = related(30, p, p)
    a, b = ((f - f.mean(0)) / (f - f.mean(0)).norm() for f in (x, y))
    best, _ = scipy.linalg.orthogonal_procrustes(a.numpy(), b.numpy())
    distance = np.linalg.norm(a.numpy() @ best - b.numpy())
    assert cka.procrustes(x, y) == pytest.approx(1 - distance**2 / 2, abs=1e-8)


# intervals and nulls


def pictures(count, seed, pixels=60):
    """Pictures with a mean and a contrast of their own, seen by two networks: pixels of one picture are alike."""
    own_mean, contrast = noise(count, 1, 6, seed=seed), 0.2 + 2 * noise(count, 1, 1, seed=seed + 1).abs()
    content = own_mean + contrast * noise(count, pixels, 6, seed=seed + 2) * torch.linspace(2, 0.2, 6)
    x = (content @ noise(6, 6, seed=100)).tanh()
    y = (content @ noise(6, 6, seed=101)).relu() + 0.5 * contrast * noise(count, pixels, 6, seed=seed + 3)
    return x, y


@both_forms
def test_half_samples_are_the_similarity_of_half_of_the_pictures(debiased):
    x, y = pictures(6, seed=0)
    sums = cka.CKAMatrix(["x", "constant mixture"], ["y"], keep_per_batch=True)
    for one, other in zip(x, y, strict=True):
        sums.update({"x": one, "constant mixture": one[:, :2]}, {"y": other})
    draws = sums.half_samples(n_resamples=40)[debiased]
    assert draws.shape == (40, 2, 1)
    halves = [list(half) for half in itertools.combinations(range(6), 3)]
    every = torch.tensor([cka.linear_cka(x[h].flatten(0, 1), y[h].flatten(0, 1), debiased) for h in halves])
    assert (draws[:, 0, 0, None] - every).abs().min(dim=1).values.max() < 1e-6
    assert len(set(draws[:, 0, 0].tolist())) > 10


@pytest.mark.parametrize("n", [5, 6, 9])
def test_interval_of_a_mean_is_students(n):
    values = 1e-4 * noise(n, seed=n)  # so small that Fisher's z changes nothing
    means = torch.stack([values[list(half)].mean() for half in itertools.combinations(range(n), n // 2)])
    low, high = cka.half_sample_interval(values.mean(), means.repeat(1000), n)
    expected = scipy.stats.t.interval(0.95, n - 1, values.mean(), scipy.stats.sem(values))
    assert (float(low), float(high)) == pytest.approx(expected, rel=1e-3)


def test_interval_repeats_with_its_seed_and_shrinks_with_more_pictures():
    widths = []
    for count in (8, 32, 128):
        x, y = pictures(count, seed=5)
        sums = fed(x.flatten(0, 1), y.flatten(0, 1), 60, keep_per_batch=True)
        low, high = sums.bootstrap(300, seed=3)
        assert sums.bootstrap(300, seed=3) == (low, high)
        assert sums.bootstrap(300, seed=4) != (low, high)
        assert -1 <= low < sums.compute() < high <= 1
        widths.append(high - low)
    assert widths[0] > 1.4 * widths[1] > 1.4**2 * widths[2]


@both_forms
def test_intervals_cover_the_truth(debiased):
    truth = cka.linear_cka(*(side.flatten(0, 1) for side in pictures(6000, seed=10**6)), debiased)
    trials, covered = 60, 0
    for trial in range(trials):
        x, y = pictures(14, seed=10 * trial)
        low, high = fed(x.flatten(0, 1), y.flatten(0, 1), 60, keep_per_batch=True).bootstrap(150, debiased=debiased)
        covered += low <= truth <= high
    assert covered / trials >= 0.85  # 0.95 asked for


def test_unrelated_features_are_within_the_interval_of_zero():
    x, y = noise(20, 100, 8, seed=1), noise(20, 100, 6, seed=2)
    sums = fed(x.flatten(0, 1), y.flatten(0, 1), 100, keep_per_batch=True)
    low, high = sums.bootstrap(debiased=True)
    assert low < 0 < high
    assert high - low < 0.02
    assert sums.bootstrap(debiased=False)[0] > 0  # the biased form never says zero


def test_a_picture_drawn_twice_lifts_even_the_debiased_form():
    x, y = noise(30, 50, seed=1), noise(30, 50, seed=2)
    drawn = torch.randint(30, (200, 30), generator=torch.Generator().manual_seed(0))
    with_replacement = np.mean([cka.linear_cka(x[i], y[i], debiased=True) for i in drawn])
    assert with_replacement > cka.linear_cka(x, y, debiased=True) + 0.2  # why intervals are made of halves
    gram = cka.linear_gram(x)
    low, high = cka.bootstrap_grams(gram, cka.linear_gram(y), 200, debiased=True)
    assert low < 0 < high < with_replacement
    torch.testing.assert_close(torch.stack(cka.bootstrap_grams(gram, gram, 20)), torch.ones(2, dtype=torch.float64))


def test_shuffled_examples_give_the_floor_that_bias_alone_makes():
    x, y = related(40, 30, 30)
    grams = cka.linear_gram(x), cka.linear_gram(y)
    for debiased in (False, True):
        null = cka.null_by_shuffling(*grams, n_shuffles=100, debiased=debiased)
        expected = [cka.linear_cka(x, y[torch.randperm(40)], debiased) for _ in range(100)]
        assert float(null.mean()) == pytest.approx(np.mean(expected), abs=0.02)
        assert cka.linear_cka(x, y, debiased) > float(null.max())
    assert float(null.mean()) == pytest.approx(0, abs=0.02)
    stacked = cka.null_by_shuffling(torch.stack([grams[0]] * 3), torch.stack([grams[1]] * 2), n_shuffles=5)
    assert stacked.shape == (5, 3, 2)


GOOD = noise(20, 4)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (GOOD[:3], GOOD[:3], "got 3 examples, expected at least 4"),
        (GOOD, GOOD[:19], "numbers of examples differ.*20.*19"),
        (GOOD.view(1, 4, 4, 5), GOOD, r"shape \(1, 4, 4, 5\), expected \(examples, features\)"),
        (GOOD[:, 0], GOOD, r"shape \(20,\)"),
        (GOOD, GOOD[:, :0], r"y has shape \(20, 0\)"),
        (GOOD.mul(50).to(torch.uint8), GOOD, "dtype torch.uint8, expected a floating one"),
        (GOOD.where(GOOD < 1.5, math.nan), GOOD, "x.* NaN or infinite"),
        (GOOD, GOOD.where(GOOD < 1.5, math.inf), "y.* NaN or infinite"),
        (torch.full((20, 4), 0.1), GOOD, "does not vary"),
        (GOOD, torch.full((20, 3), 0.1, dtype=torch.float64), "does not vary"),
        (torch.full((20, 90), 1000.1), GOOD, "does not vary"),
        (torch.zeros(20, 2), GOOD, "does not vary"),
    ],
)
def test_refusals_say_what_came_and_what_was_expected(x, y, message):
    with pytest.raises(ValueError, match=message):
        cka.linear_cka(x, y)
    if x.ndim == 2 and x.shape[0] > 3 and y.shape[1]:
        for similarity in (cka.cca, cka.svcca, cka.procrustes, cka.rbf_cka):
            with pytest.raises(ValueError):
                similarity(x, y)
        if len(x) == len(y):
            with pytest.raises(ValueError, match=message.replace("x.*", "").replace("y.*", "")):
                fed(x, y, 5).compute()


def test_sums_refuse_what_they_cannot_use():
    assert cka.linear_cka(1000 + 0.01 * GOOD, GOOD) == pytest.approx(1)  # little, but it varies
    with pytest.raises(ValueError, match="none twice"):
        cka.CKAMatrix(["a", "a"], ["b"])
    with pytest.raises(ValueError, match="one or more"):
        cka.CKAMatrix([], ["b"])
    with pytest.raises(ValueError, match="got 0 examples"):
        cka.CKA().compute()
    sums = cka.CKAMatrix(["a"], ["b"])
    with pytest.raises(ValueError, match=r"y has layers \['c'\], expected also \['b'\]"):
        sums.update({"a": GOOD}, {"c": GOOD})
    sums.update({"a": GOOD}, {"b": GOOD[:, :3]})
    with pytest.raises(ValueError, match=r"\[\[4\], \[2\]\] features, expected \[\[4\], \[3\]\]"):
        sums.update({"a": GOOD}, {"b": GOOD[:, :2]})
    with pytest.raises(ValueError, match="keep_per_batch"):
        sums.bootstrap()
    kept = fed(GOOD[:6], GOOD[:6], 1, keep_per_batch=True)
    with pytest.raises(ValueError, match=r"got 3 examples.*halves"):
        kept.bootstrap()


def test_features_that_leave_no_question_are_refused():
    with pytest.raises(ValueError, match="19 directions from 20 examples"):
        cka.cca(noise(20, 50), GOOD)
    with pytest.raises(ValueError, match="one-hot"):
        cka.linear_cka(torch.eye(6), torch.eye(6), debiased=True)  # all equally far apart: 0 / 0
    with pytest.raises(ValueError, match="median distance is 0"):
        cka.rbf_cka(torch.eye(20)[:, :3], GOOD)
    with pytest.raises(ValueError, match=r"\(20, 4\)"):
        cka.cka_from_grams(GOOD, GOOD)
    with pytest.raises(ValueError, match=r"\(4, 4\) and \(5, 5\)"):
        cka.cka_from_grams(torch.eye(4), torch.eye(5))


@pytest.mark.parametrize("mean", [0.0, 10.0, 1000.0])
def test_large_gram_matrices_of_float32_keep_six_digits(mean):
    """Against the plain float64 form, rows at once and in parts; n * n * p is beyond what is made in float64 anyway."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 40_000, generator=generator)
    y = (x + torch.randn(48, 40_000, generator=generator) + mean).float()
    exact = [rows.double() - rows.double().mean(0) for rows in (x, y)]
    grams = [rows @ rows.T for rows in exact]
    found = [cka.linear_gram(x), cka.linear_gram(y.split(5))]
    for one, other in zip(found, grams, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()
    for debiased in (False, True):
        expected = float(cka.cka_from_grams(*grams, debiased))
        assert float(cka.cka_from_grams(*found, debiased)) == pytest.approx(expected, abs=1e-6)
