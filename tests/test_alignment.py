import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from srlab import alignment

ALPHAS = (1e-4, 1e-2, 1.0)


def features(pictures=7, seed=0, noise=0.7):
    """Features y that are a linear map of x plus noise, one channel of pure noise; pictures of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(4, 5, generator=generator)
    matrix[3] = 0
    xs, ys = [], []
    for i in range(pictures):
        x = torch.randn(5, 6 + i, 8, generator=generator) * torch.tensor([1, 2, 0.5, 1, 3])[:, None, None] + 10
        y = torch.einsum("ba,ahw->bhw", matrix, x)
        xs.append(x)
        ys.append(y + noise * torch.randn(y.shape, generator=generator) - 4)
    return matrix, xs, ys


def rows(pictures):
    return torch.cat([picture.flatten(1).T for picture in pictures]).double().numpy()


def test_the_map_and_its_r2_are_scikit_learns():
    _, xs, ys = features()
    found = alignment.fit_channel_map(xs, ys, ALPHAS)

    def ridge(chosen, alpha):
        x, y = rows([xs[i] for i in chosen]), rows([ys[i] for i in chosen])
        return Ridge(alpha=alpha * len(x) * x.var(0).mean()).fit(x, y), y.mean(0)

    scores = {}
    for alpha in ALPHAS:
        error = total = 0
        for fold in range(5):
            left_out = [i for i in range(7) if i % 5 == fold]
            model, middle = ridge([i for i in range(7) if i not in left_out], alpha)
            x, y = rows([xs[i] for i in left_out]), rows([ys[i] for i in left_out])
            error, total = error + ((y - model.predict(x)) ** 2).sum(0), total + ((y - middle) ** 2).sum(0)
        scores[alpha] = 1 - error.sum() / total.sum(), 1 - error / total
    best = max(scores, key=lambda alpha: scores[alpha][0])
    assert found.alpha == best
    assert found.r2 == pytest.approx(scores[best][0], abs=1e-9)
    assert found.r2_channels.numpy() == pytest.approx(scores[best][1], abs=1e-9)
    assert found.matrix.numpy() == pytest.approx(ridge(range(7), best)[0].coef_, abs=1e-7)


def test_a_linear_relation_is_found_and_noise_is_not():
    matrix, xs, ys = features(pictures=20)
    found = alignment.fit_channel_map(xs, ys)
    assert found.matrix.numpy() == pytest.approx(matrix.numpy(), abs=0.1)
    variance = (matrix.square() * torch.tensor([1, 4, 0.25, 1, 9])).sum(1)
    assert found.r2_channels[:3].numpy() == pytest.approx((variance / (variance + 0.49))[:3].numpy(), abs=0.03)
    assert found.r2_channels[3] < 0.01


def test_a_picture_drawn_twice_counts_twice():
    _, xs, ys = features()
    found = alignment.fit_channel_map(xs, ys)
    chosen = [0, 2, 2, 5]
    weights = torch.bincount(torch.tensor(chosen), minlength=7).double()
    again = alignment.picture_moments([xs[i] for i in chosen], [ys[i] for i in chosen])
    torch.testing.assert_close(found.refit(weights), alignment.fit_map(again, found.alpha)[0])


def test_patch_covariance_is_numpys():
    generator = torch.Generator().manual_seed(4)
    feats = [torch.randn(2, 5, 6, generator=generator) + 3, torch.randn(2, 7, 4, generator=generator) + 5]
    patches = [
        f[:, i : i + 3, j : j + 3].flatten()
        for f in feats
        for i in range(f.shape[1] - 2)
        for j in range(f.shape[2] - 2)
    ]
    expected = np.cov(torch.stack(patches).double().numpy().T, bias=True)
    assert alignment.pooled_covariance(alignment.patch_covariance(feats, 3)).numpy() == pytest.approx(
        expected, abs=1e-9
    )


def test_a_large_mean_does_not_spoil_the_fit():
    matrix, xs, ys = features(noise=0.0)
    moved = alignment.fit_channel_map([x.double() + 1000 for x in xs], [y.double() for y in ys])
    assert moved.matrix.numpy() == pytest.approx(matrix.numpy(), abs=1e-4)


def test_features_of_other_pictures_are_refused():
    _, xs, ys = features()
    with pytest.raises(ValueError, match="features of 7 and of 6 pictures"):
        alignment.fit_channel_map(xs, ys[:6])
    with pytest.raises(ValueError, match="same h and w"):
        alignment.fit_channel_map(xs, ys[::-1])
    with pytest.raises(ValueError, match="expected two or more"):
        alignment.fit_channel_map(xs[:1], ys[:1])


def test_resampled_pictures_draw_as_many_as_there_are():
    drawn = list(alignment.resampled_pictures(9, 50, torch.Generator().manual_seed(0)))
    assert len(drawn) == 50
    assert all(weights.sum() == 9 for weights in drawn)
    assert len({tuple(weights.tolist()) for weights in drawn}) > 40


@pytest.mark.parametrize("value", [0.0, 0.1, -1234.5])
@pytest.mark.parametrize("side", [0, 1])
def test_features_that_do_not_vary_are_refused(side, value):
    both = list(features()[1:])
    both[side] = [torch.full_like(picture, value) for picture in both[side]]
    with pytest.raises(ValueError, match=f"no channel of {('feats_from', 'feats_to')[side]} varies.*dead layer"):
        alignment.fit_channel_map(*both)


def test_some_dead_channels_do_no_harm():
    _, xs, ys = features()
    alive = alignment.fit_channel_map([x[1:] for x in xs], [y[1:] for y in ys])
    for picture in (*xs, *ys):
        picture[0] = 0.0
    found = alignment.fit_channel_map(xs, ys, [alive.alpha * 5 / 4])  # in units of a mean over one channel more
    assert found.r2 == pytest.approx(alive.r2, abs=1e-9)
    assert found.matrix[1:, 1:].numpy() == pytest.approx(alive.matrix.numpy(), abs=1e-9)
    assert found.r2_channels.isnan().tolist() == [True, False, False, False]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_value_is_found_and_its_picture_named(bad):
    _, xs, ys = features()
    ys[3][2, 1, 1] = bad
    with pytest.raises(ValueError, match="features of picture 3 hold 1 NaN or infinite values"):
        alignment.fit_channel_map(xs, ys)
    with pytest.raises(ValueError, match="features of picture 3 hold 1 NaN or infinite values"):
        alignment.patch_covariance(ys, 3)


def test_no_pictures_and_pictures_smaller_than_a_patch_are_refused():
    with pytest.raises(ValueError, match="features of no pictures, expected some"):
        alignment.picture_moments([], [])
    with pytest.raises(ValueError, match="features of no pictures, expected some"):
        alignment.patch_covariance([], 3)
    with pytest.raises(ValueError, match=r"picture 1 are \(2, 5, 4\), expected at least 5 x 5 pixels"):
        alignment.patch_covariance([torch.ones(2, 5, 5), torch.ones(2, 5, 4)], 5)
