"""Verdicts of the ablation: a made-up table whose answer is known, and the shipped one."""

import numpy as np
import pandas as pd
import pytest

from srlab import ablation, ablation_verdicts, statistics

LOSS = {"without FFT loss": 0.2, "without FGRep": -0.3, "without IGSample": 0.0}  # dB that the variant lacks


def made_up(seeds=4, pictures=40, seed_noise=0.02):
    """PSNR = picture + seed + variant; errors of octave b are 10 ** -(PSNR + b) / 10."""
    rng = np.random.default_rng(0)
    of_picture, of_seed = rng.normal(30, 4, pictures), rng.normal(0, 0.5, seeds)
    rows = []
    for variant in ablation.VARIANTS:
        for seed in range(seeds):
            chance = rng.normal(0, seed_noise)  # another training of this variant
            for number in range(pictures):
                for scale in (2, 4):
                    psnr = of_picture[number] + of_seed[seed] - scale - LOSS.get(variant, 0) + chance
                    psnr += rng.normal(0, 0.05)
                    errors = {f"error{band}": 10 ** (-(psnr - 20 + band) / 10) for band in range(ablation.BANDS)}
                    shares = {f"amplitude{b}": errors[f"error{b}"] / 4 for b in range(ablation.BANDS)}
                    gains = {f"gain{b}": 0.5 for b in range(ablation.BANDS)}
                    key = {
                        "variant": variant,
                        "seed": seed,
                        "dataset": "made-up",
                        "scale": scale,
                        "image": f"p{number}",
                    }
                    rows.append({**key, "psnr_y": psnr, **errors, **shares, **gains})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def table():
    return made_up()


@pytest.fixture(scope="module")
def effects(table):
    return ablation_verdicts.effects(table, ["psnr_y", "snr4"])


def test_known_effects_get_their_size_and_verdict(effects):
    rows = effects[(effects["scale"] == "all") & (effects["measure"] == "psnr_y")].set_index("part")
    assert rows.gain["FFT loss"] == pytest.approx(0.2, abs=0.05)
    assert rows.gain["FGRep"] == pytest.approx(-0.3, abs=0.05)
    assert dict(rows.verdict) == {
        "FFT loss": "helps",
        "IGSample": "within noise",
        "IGSample, against bilinear": "within noise",
        "FGRep": "hurts",
        "all three": "within noise",
    }


def test_an_error_in_decibel_moves_as_the_psnr_that_made_it(effects):
    both = effects.pivot_table("gain", ["part", "scale"], "measure")
    np.testing.assert_allclose(both["snr4"], both["psnr_y"], atol=1e-9)


def test_many_pictures_do_not_make_up_for_trainings_that_differ():
    noisy = made_up(seeds=3, seed_noise=0.5)
    found = ablation_verdicts.effects(noisy, ["psnr_y"]).set_index(["part", "scale"])
    row = found.loc[("FFT loss", "all")]
    assert row.seeds_high - row.seeds_low > 5 * (row.pictures_high - row.pictures_low)
    assert row.verdict == "within noise"


def test_differences_are_paired_by_seed_and_picture(table):
    found = ablation_verdicts.differences(ablation_verdicts.measures(table), "without FGRep", "psnr_y", 2)
    assert found.shape == (4, 40)
    assert found.std() < 0.2  # pictures differ by 4 dB and seeds by 0.5: both cancel
    full = table[(table.variant == "IGConv+") & (table.seed == 1) & (table.scale == 2)].set_index("image").psnr_y
    without = table[(table.variant == "without FGRep") & (table.seed == 1) & (table.scale == 2)].set_index("image")
    assert found[1].mean() == pytest.approx((full - without.psnr_y).mean())
    with pytest.raises(ValueError, match="missing"):
        ablation_verdicts.differences(table.drop(table[table.variant == "IGConv"].index[0]), "IGConv", "psnr_y", 2)


def test_words_and_tables(table, effects):
    sentences = list(ablation_verdicts.verdicts(effects))
    assert len(sentences) == len(ablation_verdicts.PARTS)
    assert sentences[0].startswith("FFT loss: helps overall (+0.19")
    assert "in the highest octave" in sentences[0]
    chart = ablation_verdicts.chart(effects, "psnr_y")
    assert (chart.low <= chart["mean"]).all()
    assert (chart["mean"] <= chart.high).all()
    assert len(chart) == 2 * len(ablation_verdicts.PARTS)
    assert ablation_verdicts.octave_names()[1:] == ["1/32 to 1/16", "1/16 to 1/8", "1/8 to 1/4", "1/4 and up"]
    means = ablation_verdicts.mean_scores(table)
    assert list(means.index) == list(ablation.VARIANTS)
    split = ablation_verdicts.split_of_errors(table)
    np.testing.assert_allclose(
        split.xs("wrong place", axis=1, level=1), 3 * split.xs("wrong strength", axis=1, level=1)
    )


def test_the_shipped_table_is_whole_and_its_intervals_are_those_of_the_statistics_room():
    scores = ablation.recorded_scores()
    assert set(zip(scores.variant, scores.seed, strict=True)) == set(ablation.runs())
    assert np.isfinite(scores.select_dtypes(float).to_numpy()).all()
    assert not scores.duplicated(["variant", "seed", "dataset", "scale", "image"]).any()
    row = ablation_verdicts.effects(scores, ["psnr_y"]).iloc[0]
    full, without = (
        scores[scores.variant == name].groupby(["seed", "dataset", "image"]).psnr_y.mean().unstack("seed")
        for name in ("IGConv+", "without FFT loss")
    )
    by_seed = statistics.bootstrap_mean((full - without).mean())
    assert (row.seeds_low, row.seeds_high) == pytest.approx((by_seed.low, by_seed.high))


def test_the_shipped_course_is_whole():
    course = ablation.recorded_course()
    assert set(zip(course.variant, course.seed, strict=True)) == set(ablation.runs())
    assert set(course.step) == set(ablation.PLAN.snapshots)
    assert set(course.scale) == set(ablation.PLAN.watched_scales)
    assert not course.duplicated(["variant", "seed", "step", "scale", "image"]).any()
    coarse_first = course[course.step == course.step.max()][[f"error{band}" for band in range(5)]].mean()
    assert coarse_first.is_monotonic_increasing
