"""Statistics: coverage on simulated data, bad input, words; and what the published tables say when added up."""

import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from srlab import statistics

PAPER = Path(__file__).parents[1] / "data" / "paper"


def scores(values, names=None):
    names = names or [f"picture{i}" for i in range(len(values))]
    return pd.DataFrame({"image": names, "psnr_y": values, "ssim_y": np.asarray(values) / 100})


def coverage(draw, truth, draws=1000, **settings):
    held = 0
    for seed in range(draws):
        interval = statistics.bootstrap_mean(draw(np.random.default_rng(seed)), seed=seed, **settings)
        held += interval.low <= truth <= interval.high
    return held / draws


# --- intervals ---------------------------------------------------------------------------------------------------


def test_interval_over_100_pictures_holds_the_true_mean_19_times_of_20():
    """Scores with the skew of real PSNR lists (gamma, skewness 1)."""
    found = coverage(lambda rng: 20 + rng.gamma(4, 2, size=100), 28.0, n_resamples=499)
    assert 0.93 <= found <= 0.97


def test_interval_over_5_pictures_holds_it_as_often():
    assert 0.93 <= coverage(lambda rng: rng.normal(32, 3, size=5), 32.0) <= 0.97


def test_plain_bca_on_5_pictures_would_not():
    """The reason for the small-sample rule, on scipy's own BCa."""
    data = np.random.default_rng(0).normal(size=(1000, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = stats.bootstrap((data,), np.mean, axis=1, n_resamples=499, batch=100, rng=np.random.default_rng(1))
    held = (found.confidence_interval.low <= 0) & (found.confidence_interval.high >= 0)
    assert held.mean() < 0.88


def test_an_interval_that_is_not_known_excludes_nothing_and_says_so():
    unknown = statistics.Interval(math.nan, math.nan, 0.284, 3)
    assert not unknown.excludes(0)
    assert (str(unknown), f"{unknown}", f"{unknown:+.3f}") == (
        "0.28 (no interval)",
        "0.28 (no interval)",
        "+0.284 (no interval)",
    )
    known = statistics.Interval(0.1, 0.3, 0.2, 3)
    assert [value for value in (0.05, 0.1, 0.2, 0.3, 0.35) if known.excludes(value)] == [0.05, 0.35]


def test_bca_leans_to_the_long_tail_and_agrees_with_theory_for_many_values():
    x = np.random.default_rng(3).exponential(size=60)
    interval = statistics.bootstrap_mean(x)
    assert interval.method == "BCa"
    assert interval.high - interval.mean > interval.mean - interval.low

    many = np.random.default_rng(4).normal(30, 3, size=2000)
    interval = statistics.bootstrap_mean(many, level=0.9, n_resamples=4999)
    half = 1.6449 * many.std() / 2000**0.5
    assert interval.low == pytest.approx(many.mean() - half, abs=0.05 * half)
    assert interval.high == pytest.approx(many.mean() + half, abs=0.05 * half)


def test_interval_is_repeatable_and_widens_with_its_level():
    x = np.random.default_rng(0).gamma(4, 2, size=40)
    assert statistics.bootstrap_mean(x, seed=5) == statistics.bootstrap_mean(x, seed=5)
    narrow, wide = statistics.bootstrap_mean(x, level=0.5), statistics.bootstrap_mean(x, level=0.99)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


@pytest.mark.parametrize("n", [2, 5, 100])
def test_equal_values_have_an_interval_without_width(n):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interval = statistics.bootstrap_mean([0.1 + 0.2] * n)
    assert interval.low == interval.high == interval.mean == pytest.approx(0.3)
    assert interval.method == "constant"


def test_values_that_have_no_interval_are_refused_by_name():
    named = pd.Series([30.0, np.nan, np.inf], index=["baby", "bird", "butterfly"])
    with pytest.raises(ValueError, match="fewer than two images for an interval"):
        statistics.bootstrap_mean([31.0])
    with pytest.raises(ValueError, match="NaN: bird"):
        statistics.bootstrap_mean(named)
    with pytest.raises(ValueError, match=r"infinite: butterfly\. Identical pictures"):
        statistics.bootstrap_mean(named.drop("bird"))
    with pytest.raises(ValueError, match="not 95"):
        statistics.bootstrap_mean([1.0, 2.0], level=95)


def test_identical_pictures_are_set_apart_with_their_names():
    finite, exact = statistics.split_infinite(pd.Series([30.0, np.inf, 32.0], index=["baby", "bird", "head"]))
    assert exact == ["bird"]
    assert statistics.bootstrap_mean(finite).mean == 31.0


# --- pairs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 14, 100])
def test_a_model_against_itself_makes_no_difference(n):
    table = scores(np.random.default_rng(n).normal(30, 4, size=n))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = statistics.paired_difference(table, table)
    assert result.verdict() == result.verdict(noise=0.05) == "no difference"
    assert (result.wins, result.losses, result.ties, result.p_value) == (0, 0, n, 1.0)


def test_pairing_finds_a_tenth_of_a_decibel_among_ten():
    rng = np.random.default_rng(0)
    b = rng.normal(30, 5, size=100)
    a = b + 0.12 + rng.normal(0, 0.2, size=100)
    result = statistics.paired_difference(scores(a), scores(b), names=("new", "old"))
    assert result.verdict().startswith("new is better by 0.1")
    assert result.p_value < 1e-4
    reverse = statistics.paired_difference(scores(b), scores(a), names=("old", "new"))
    assert reverse.verdict().startswith("new is better by 0.1")
    assert reverse.interval.mean == pytest.approx(-result.interval.mean)
    assert (reverse.wins, reverse.losses) == (result.losses, result.wins)

    assert result.verdict(noise=0.2).startswith("within noise")
    alone = [statistics.bootstrap_mean(x) for x in (a, b)]
    assert alone[0].low < alone[1].high  # what unpaired intervals would have said


def test_pictures_are_matched_by_name_not_by_place():
    a = scores([30.0, 31.0, 32.5, 29.0, 28.0], list("abcde"))
    b = a.sample(frac=1, random_state=1)
    assert list(b["image"]) != list("abcde")
    assert statistics.paired_difference(a, b).ties == 5
    by_series = statistics.paired_difference(a.set_index("image")["psnr_y"], b.set_index("image")["psnr_y"])
    assert by_series.ties == 5


def test_unequal_image_lists_are_refused_by_name():
    a, b = scores([30.0, 31.0, 32.0], ["baby", "bird", "head"]), scores([30.0, 31.0], ["baby", "woman"])
    with pytest.raises(ValueError, match=r"only in the first: bird, head; only in the second: woman"):
        statistics.paired_difference(a, b)
    with pytest.raises(ValueError, match="baby more than once"):
        statistics.paired_difference(pd.concat([a, a.head(1)]), a)
    with pytest.raises(ValueError, match="3 scores against 2"):
        statistics.paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="infinite: baby"):
        statistics.paired_difference(a.replace(30.0, np.inf), a)
    with pytest.raises(ValueError, match="there are: image, psnr_y, ssim_y"):
        statistics.paired_difference(a, a, column="psnr")


def test_verdict_words():
    def verdict(differences, **settings):
        b = np.linspace(25, 35, len(differences))
        return statistics.paired_difference(b + differences, b, **settings).verdict()

    spread = np.linspace(-0.04, 0.04, 9)
    assert verdict(0.12 + spread) == "A is better by 0.12 dB [0.10, 0.14]"
    assert verdict(-0.12 + spread, names=("IMDN", "EDSR")) == "EDSR is better by 0.12 dB [0.10, 0.14]"
    assert verdict(spread + 1e-3) == "within noise: A - B = 0.00 dB [-0.02, 0.02]"
    assert verdict(0.0012 + spread / 100, unit="") == "A is better by 0.0012 [0.0010, 0.0014]"
    with pytest.raises(ValueError, match="noise"):
        statistics.paired_difference([1.0, 2.0], [1.0, 2.5]).verdict(noise=-1)


def test_line_says_how_it_was_reached():
    b = np.linspace(25, 35, 6)
    line = statistics.paired_difference(b + np.array([0.1, 0.2, 0.1, 0.2, -0.05, 0.0]), b).line()
    assert "95% Student t interval over 6 pictures; 4 better, 1 worse, 1 equal; Wilcoxon p = " in line


def test_ssim_differences_carry_no_unit():
    a, b = scores([30.0, 31.0, 32.0]), scores([29.0, 30.1, 30.9])
    assert "dB" not in statistics.paired_difference(a, b, column="ssim_y").verdict()


def test_wilcoxon_p_of_five_wins_is_one_in_sixteen():
    """All five signs alike: 2 of 2**5 ways, the smallest p that Set5 can give."""
    assert statistics.paired_difference([1.1, 2.2, 3.3, 4.4, 5.5], [1, 2, 3, 4, 5]).p_value == 2 / 2**5


# --- seeds, ranks ------------------------------------------------------------------------------------------------


def test_an_effect_must_outlast_both_pictures_and_seeds():
    rng = np.random.default_rng(0)
    pictures = rng.normal(0, 0.05, size=100)
    steady = 0.1 + pictures + rng.normal(0, 0.01, size=(3, 1)) + rng.normal(0, 0.02, size=(3, 100))
    assert statistics.mean_over_seeds(steady).verdict() == "helps"
    assert statistics.mean_over_seeds(-steady).verdict() == "hurts"
    assert statistics.mean_over_seeds(steady).verdict(noise=0.2) == "within noise"

    moody = steady + np.array([[0.15], [-0.15], [0.0]])  # the same mean, but seeds disagree
    effect = statistics.mean_over_seeds(moody)
    assert effect.over_pictures.low > 0
    assert effect.verdict() == "within noise"
    with pytest.raises(ValueError, match="at least two of each"):
        statistics.mean_over_seeds(steady[:1])


@pytest.mark.parametrize(("pearson", "n"), [(0.0, 10), (0.5, 30), (0.8, 100)])
def test_rank_correlation_interval_holds_the_true_value(pearson, n):
    """For a bivariate normal, Spearman's value is 6 / pi * asin(pearson / 2)."""
    truth = 6 / np.pi * np.arcsin(pearson / 2)
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        x = rng.normal(size=n)
        interval = statistics.rank_correlation(x, pearson * x + (1 - pearson**2) ** 0.5 * rng.normal(size=n))
        held += interval.low <= truth <= interval.high
    assert 0.93 <= held / 1000 <= 0.97


def test_a_perfect_order_of_few_points_is_not_certain():
    few, many = (statistics.rank_correlation(np.arange(n), np.arange(n) ** 3) for n in (5, 30))
    assert few.mean == few.high == 1
    assert few.low < 0.5 < 0.9 < many.low
    down = statistics.rank_correlation(np.arange(5), -np.arange(5))
    assert (down.low, down.high) == (-1, pytest.approx(-few.low))
    with pytest.raises(ValueError, match="no order"):
        statistics.rank_correlation(np.arange(5), np.ones(5))
    with pytest.raises(ValueError, match="4 or more"):
        statistics.rank_correlation([1, 2, 3], [1, 2, 3])


# --- the published tables ----------------------------------------------------------------------------------------

CELL = ["table", "encoder", "dataset", "scale"]


@pytest.fixture(scope="module")
def tables():
    return pd.read_csv(PAPER / "tables.csv")


@pytest.fixture(scope="module")
def gains(tables):
    """PSNR of one model for all scales minus that of one model per scale, a row per published cell."""
    fixed = tables[tables["upsampler"].isin(["SPConv", "SPConv+"])]
    ours = tables[tables["upsampler"].isin(["IGConv", "IGConv+"])]
    pairs = ours.merge(fixed, on=CELL, suffixes=("", "_fixed"))
    return pairs.assign(gain=(pairs["psnr"] - pairs["psnr_fixed"]).round(2))


def test_tables_hold_every_published_cell_once(tables):
    assert len(tables) == 365
    assert not tables.duplicated([*CELL, "upsampler"]).any()
    assert tables["table"].value_counts().to_dict() == {
        "Table 2": 135,
        "Table 3": 135,
        "Table 4": 60,
        "MambaIR x2-x8": 35,
    }
    assert set(tables["dataset"]) == {"Set5", "Set14", "B100", "Urban100", "Manga109"}
    assert tables["psnr"].between(20, 45).all()
    assert tables["ssim"].between(0.4, 1).all()


@pytest.mark.parametrize(
    ("upsampler", "better", "equal", "worse", "mean"), [("IGConv", 39, 9, 42, 0.005), ("IGConv+", 97, 6, 17, 0.082)]
)
def test_published_gain_over_one_model_per_scale(gains, upsampler, better, equal, worse, mean):
    gain = gains.loc[gains["upsampler"] == upsampler, "gain"]
    assert ((gain > 0).sum(), (gain == 0).sum(), (gain < 0).sum()) == (better, equal, worse)
    assert gain.mean() == pytest.approx(mean, abs=5e-4)


def test_published_gain_of_igconv_plus_by_scale_and_its_extremes(gains):
    plus = gains[gains["upsampler"] == "IGConv+"]
    assert plus.groupby("scale")["gain"].mean().to_dict() == pytest.approx({2: 0.053, 3: 0.084, 4: 0.109}, abs=6e-4)
    worst, best = plus.loc[plus["gain"].idxmin()], plus.loc[plus["gain"].idxmax()]
    assert (worst["encoder"], worst["dataset"], worst["scale"], worst["gain"]) == ("HAT", "Manga109", 2, -0.32)
    assert (best["encoder"], best["dataset"], best["scale"], best["gain"]) == ("EDSR", "Manga109", 4, 0.41)


def test_headline_claims_are_cells_of_the_tables(gains):
    claims = pd.read_csv(PAPER / "claims.csv").set_index("claim")["value"]
    urban = gains[(gains["dataset"] == "Urban100") & (gains["scale"] == 4) & (gains["upsampler"] == "IGConv+")]
    urban = urban.set_index("encoder")["gain"]
    assert urban["SRFormer"] == claims["srformer-urban100-x4"] == 0.25
    assert urban["ATD"] == claims["atd-urban100-x4"] == 0.21


def test_teaser_bars_are_cells_of_the_tables(tables):
    teaser = pd.read_csv(PAPER / "teaser.csv")
    cells = teaser.merge(
        tables[tables["table"] != "MambaIR x2-x8"],
        left_on=["encoder_in_tables", "upsampler", "dataset", "scale"],
        right_on=["encoder", "upsampler", "dataset", "scale"],
    )
    assert len(cells) == len(teaser) == 22
    assert (cells["psnr_x"] == cells["psnr_y"]).all()


def test_printed_parameter_counts_are_those_of_64_channels_at_x2():
    efficiency = pd.read_csv(PAPER / "efficiency.csv").set_index("upsampler")
    taps = 64 * 9
    exact = {
        "SPConv": 12 * (taps + 1),
        "IGConv": 12 * taps,
        "SPConv+": 256 * (taps + 1) + 3 * (taps + 1),
        "IGConv+": (12 + 48) * taps,
    }
    assert efficiency["params_exact"].to_dict() == exact
    assert (efficiency["params_k"] == (efficiency["params_exact"] / 1000).round()).all()


def test_stored_parameters_are_encoder_plus_hyper_networks():
    stored = pd.read_csv(PAPER / "stored_parameters.csv")
    elements = 9 * stored["channels"]
    igconv = 2 * elements * 256 + 256 + 4 * (256**2 + 256) + 3 * 257
    igsample = 2 * elements * 256 + 256 + 2 * (256 * 128 + 256) + 12 * 128
    released = stored["igconv"].notna()
    assert (stored["igconv"] - stored["encoder_alone"])[released].equals(igconv[released].astype(float))
    assert (stored["igconv_plus"] - stored["encoder_alone"]).equals(igconv + igsample)
    saving = (stored["fixed_x2_x3_x4"] / stored["igconv"]).round(1)
    assert dict(zip(stored["encoder"], saving, strict=True))["EDSR"] == 3.2
    assert saving[stored["encoder"].isin(["HiT-SRF", "MambaIR-lt", "SMFANet+"])].max() < 2


def test_a_contrast_of_trainings_is_student_s_test_when_there_are_two_kinds():
    a, b = [31.0, 31.3, 31.1], [30.9, 30.8]
    found = statistics.contrast_of_trainings({"a": a, "b": b}, "a", "b")
    expected = stats.ttest_ind(a, b).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b))


def test_a_contrast_of_trainings_covers_the_truth_also_for_a_kind_trained_once():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        groups = {"one": rng.normal(1, 0.1, 1), "two": rng.normal(0, 0.1, 2), "other": rng.normal(5, 0.1, 2)}
        hits += not statistics.contrast_of_trainings(groups, "one", "two").excludes(1.0)
    assert 930 <= hits <= 970


def test_a_contrast_without_a_spread_is_refused():
    with pytest.raises(ValueError, match="each of 2 kinds was trained once"):
        statistics.contrast_of_trainings({"a": [1], "b": [2]}, "a", "b")
    with pytest.raises(ValueError, match="no trainings of 'c'"):
        statistics.contrast_of_trainings({"a": [1, 2], "b": [2]}, "a", "c")
    with pytest.raises(ValueError, match="are NaN: b"):
        statistics.contrast_of_trainings({"a": [1, 2], "b": [float("nan")]}, "a", "b")
