"""The judges: invented records, one for each verdict a judge can give. The real ones are asked in `test_claims`."""

import numpy as np
import pandas as pd
import pytest

from srlab import ablation, ablation_verdicts, judges, library, unseen
from srlab.statistics import Interval, SeedEffect

HOLDS, FAILS, NOISE, OPEN, ONLY = judges.HOLDS, judges.FAILS, judges.NOISE, judges.OPEN, judges.ONLY


def returning(monkeypatch, room, name, value):
    monkeypatch.setattr(room, name, lambda *_, **__: value)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.1, 0.2, HOLDS), (-0.2, -0.1, FAILS), (-0.1, 0.1, NOISE), (0.0, 0.1, HOLDS)]
)
def test_a_verdict_needs_the_whole_interval_on_one_side(low, high, verdict):
    assert judges._at_least(low, high) == verdict
    assert judges._at_least(low + 7, high + 7, 7) == verdict


@pytest.mark.parametrize(
    ("low", "high", "memory", "same", "less"),
    [
        (0.97, 1.01, 0.9, HOLDS, NOISE),
        (0.97, 1.03, 0.9, NOISE, NOISE),
        (0.22, 0.24, 0.1, HOLDS, HOLDS),
        (0.22, 0.24, 3.0, HOLDS, FAILS),  # less time, but not less memory
        (1.10, 2.30, 0.9, FAILS, FAILS),
    ],
)
def test_times_and_memory(monkeypatch, low, high, memory, same, less):
    row = {"ratio": (low + high) / 2, "low": low, "high": high, "memory_ratio": memory}
    table = pd.DataFrame([{"case": f"instantiated {name}", **row} for name in ("IGConv", "IGConv+")])
    returning(monkeypatch, judges.bench, "recorded_costs", table)
    assert judges.latency().verdict == same
    assert judges.cheaper().verdict == less


def gains(monkeypatch, **ends):
    """Records in which one model is ahead of three by the given intervals; "mean" is over scales."""
    rows = []
    for kind, against in library.QUESTIONS:
        for scale in ("x2", "x3", "x4", "mean"):
            low, high = ends[scale]
            verdict = "helps" if low > 0 else "hurts" if high < 0 else "within noise"
            about = {"kind": kind, "against": against, "scale": library.ALL if scale == "mean" else scale}
            rows.append(about | {"gain": (low + high) / 2, "low": low, "high": high, "verdict": verdict})
    table = pd.DataFrame(rows)

    def effects(*_, questions, **__):
        asked = [pair in set(questions) for pair in zip(table["kind"], table["against"], strict=True)]
        return table[asked]

    monkeypatch.setattr(library, "effects", effects)
    returning(monkeypatch, library, "scores", None)


NARROW, LEVEL, BEHIND, FAR, AHEAD = (-0.05, 0.05), (-0.2, 0.2), (-0.15, -0.05), (-0.3, -0.2), (0.01, 0.1)


@pytest.mark.parametrize(
    ("x4", "mean", "verdict"),
    [
        (NARROW, NARROW, HOLDS),
        (LEVEL, NARROW, NOISE + " of 0.1 dB, the margin of a par"),
        (BEHIND, BEHIND, NOISE + " of 0.1 dB, the margin of a par, though behind beyond chance"),
        (FAR, BEHIND, FAILS),
    ],
)
def test_a_par_is_judged_by_its_margin(monkeypatch, x4, mean, verdict):
    gains(monkeypatch, x2=NARROW, x3=NARROW, x4=x4, mean=mean)
    assert judges.comparable().verdict == f"{verdict}, in small models"


@pytest.mark.parametrize(
    ("x4", "mean", "verdict"),
    [
        (AHEAD, AHEAD, HOLDS),
        (NARROW, AHEAD, ONLY + "for the mean over scales"),
        (NARROW, NARROW, NOISE),
        (FAR, FAR, FAILS),
    ],
)
def test_better_at_some_scales_is_not_better_at_picked_ones(monkeypatch, x4, mean, verdict):
    gains(monkeypatch, x2=AHEAD, x3=AHEAD, x4=x4, mean=mean)
    assert judges.better().verdict == f"{verdict}, in small models"


def part(monkeypatch, effects, elsewhere=0.0):
    """Records of the ablation: measure -> (low, high); the lowest octave gains `elsewhere` more than the highest."""

    def effect(_table, _part, measure):
        low, high = effects[measure]
        verdict = "helps" if low > 0 else "hurts" if high < 0 else "within noise"
        ends = {"pictures_low": low, "seeds_low": low, "pictures_high": high, "seeds_high": high}
        return {"gain": (low + high) / 2, "verdict": verdict, **ends}

    more = Interval(elsewhere - 0.05, elsewhere + 0.05, elsewhere, 44)
    returning(monkeypatch, ablation, "recorded_scores", None)
    returning(monkeypatch, ablation_verdicts, "measures", None)
    monkeypatch.setattr(ablation_verdicts, "effect", effect)
    returning(monkeypatch, ablation_verdicts, "difference_of", SeedEffect(more, more))


@pytest.mark.parametrize(
    ("high", "elsewhere", "verdict"),
    [
        ((0.1, 0.3), -0.1, HOLDS),
        ((0.1, 0.3), 0.0, HOLDS),
        ((0.1, 0.3), 0.7, ONLY + "for the error as a whole: low frequencies gain more than high ones"),
        ((-0.1, 0.3), 0.7, NOISE),
        ((-0.3, -0.1), 0.7, FAILS),
    ],
)
def test_a_cure_for_a_bias_has_to_help_where_the_bias_is(monkeypatch, high, elsewhere, verdict):
    part(monkeypatch, {"snr4": high, "snr0": (0.29, 1.6)}, elsewhere)
    assert judges.frequency_loss().verdict == verdict


@pytest.mark.parametrize(("ends", "verdict"), [((-0.06, 0.1), HOLDS), ((-7.6, 5.6), NOISE), ((-2.0, -1.0), FAILS)])
def test_free_of_charge_has_a_margin(monkeypatch, ends, verdict):
    part(monkeypatch, {"psnr_y": ends})
    found = judges.fgrep()
    assert found.verdict == verdict
    assert found.ours.startswith("kernels of 34560 numbers with it, of 34560 without"), "the paper prints 35K"


def scored(direct, detour, bicubic, trained=(2, 3, 4)):
    """Records of a model at x4, x5 and x6: six pictures, with some spread."""
    spread = np.array([-0.02, -0.01, 0.0, 0.0, 0.01, 0.02])
    ways = {unseen.DIRECT: direct, unseen.DETOUR: detour, unseen.BICUBIC: bicubic}
    rows = [
        {"scale": scale, "trained": scale in trained, "way": way, "image": i, "psnr_y": 25 + value + shift}
        for scale in (4, 5, 6)
        for way, value in ways.items()
        for i, shift in enumerate(spread * (way == unseen.DIRECT))
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("direct", "detour", "bicubic", "verdict"),
    [
        (1.0, 0.5, 0.0, HOLDS),
        (0.5, 1.0, 0.0, ONLY + "against bicubic, not against the detour"),
        (0.5, 0.5, 0.0, ONLY + "against bicubic, not against the detour"),
        (0.5, 0.5, 0.5, NOISE),
        (0.0, 0.5, 0.5, FAILS),
    ],
)
def test_scales_never_trained_are_held_against_the_detour(monkeypatch, direct, detour, bicubic, verdict):
    returning(monkeypatch, unseen, "recorded_unseen", scored(direct, detour, bicubic))
    assert judges.unseen_scales().verdict == verdict


def test_where_nothing_was_compared_nothing_is_said(monkeypatch):
    returning(monkeypatch, unseen, "recorded_unseen", scored(1, 0, 0, trained=(4, 5, 6)))
    assert judges.unseen_scales().verdict == OPEN
    nobody = judges._aligned_kernels()[0].iloc[:0]
    returning(monkeypatch, judges, "_aligned_kernels", (nobody, pd.Series(dtype=float)))
    assert judges.correlated_kernels().verdict == judges.one_kernel().verdict == OPEN
    pairs = judges.cka_verdicts.pairs_of_scales
    monkeypatch.setattr(judges.cka_verdicts, "pairs_of_scales", lambda *about: pairs(*about).iloc[:0])
    assert judges.similar_encoders().verdict == OPEN


def test_kernels_as_stored_decide_whether_the_correlation_holds_without_aligning(monkeypatch):
    for stored, verdict in (((18, 18), HOLDS), ((0, 18), ONLY + "for kernels whose channels are aligned")):
        returning(monkeypatch, judges.ancestry, "kernels_that_share_nothing", stored)
        assert judges.correlated_kernels().verdict == verdict


def test_encoders_that_share_nothing_decide_whether_similarity_holds_without_a_common_start(monkeypatch):
    for low, verdict in ((0.1, HOLDS), (-0.1, ONLY + "for models that share a start")):
        returning(monkeypatch, judges.ancestry, "nothing_shared", Interval(low, low + 0.15, low + 0.07, 3))
        assert judges.similar_encoders().verdict == verdict


def test_kernels_have_to_reach_the_whole_ceiling(monkeypatch):
    rows, ceilings = judges._aligned_kernels()
    returning(monkeypatch, judges, "_aligned_kernels", (rows, ceilings / 2))
    assert judges.one_kernel().verdict == HOLDS


def test_a_third_is_asked_of_every_encoder(monkeypatch):
    def judged(ratios, savings):
        names = ["edsr", "smfanet"]
        flops = pd.DataFrame({"encoder": names, "ratio": ratios, "fixed_upsampler": "spconv+"})
        stored = pd.DataFrame({"encoder": names, "saving_igconv": savings})
        tables = {"training_flops": flops, "stored_parameters": stored}
        monkeypatch.setattr(judges.runtime, "recorded", lambda name, *_, **__: tables[name])
        return judges.training().verdict, judges.storage().verdict

    assert judged([0.3, 0.4], [3.0, 2.6]) == (HOLDS, HOLDS)
    assert judged([0.3, 0.5], [3.0, 1.1]) == (ONLY + "for edsr", ONLY + "for edsr")
    assert judged([0.5, 0.5], [1.1, 1.1]) == (FAILS, FAILS)
