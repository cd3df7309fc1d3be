"""Records measured anew: what counts as reproduced, and what is said when it cannot be measured."""

import math

import numpy as np
import pandas as pd
import pytest

from srlab import fetch, recheck


def check(now, low=0.4, high=0.6, tolerance=math.inf):
    return recheck.Check("record", "a number", 0.5, low, high, now, tolerance=tolerance)


@pytest.mark.parametrize(
    ("now", "inside", "words"),
    [
        (0.5, True, "reproduced"),
        (0.61, False, "NOT REPRODUCED"),
        (0.6004, True, "reproduced"),
        (None, None, "not m"),
    ],
)
def test_inside_means_in_the_interval_on_record(now, inside, words):
    assert check(now).inside is inside
    assert words in check(now).line()


def test_the_same_weights_and_pictures_have_to_give_the_same_number_not_just_one_in_the_interval():
    """An interval over pictures is wide; a score that changed by 0.01 dB on the same pictures is another score."""
    assert check(0.5009, tolerance=recheck.ROUNDING).inside
    assert check(0.51, tolerance=recheck.ROUNDING).inside is False
    assert recheck.Check("record", "a number", 0.5, 0.4, 0.6, 0.51).inside is False, "the default is strict"


def test_what_cannot_be_had_is_named_and_the_rest_goes_on(monkeypatch):
    def absent():
        raise fetch.FetchError("no network: imdn-x2 is not here")
        yield

    monkeypatch.setattr(recheck, "PARTS", {"absent": absent, "here": lambda: iter([check(0.5)])})
    lost, found = recheck.recheck()
    assert lost.inside is None
    assert math.isnan(lost.value)
    assert "imdn-x2 is not here" in lost.line()
    assert found.inside
    assert [part.record for part in recheck.recheck("smoke")] == ["absent"]


def test_times_are_taken_as_on_record_and_nothing_else_is_said(monkeypatch, capsys):
    """The record says which clock, how many threads and what interval; here it was made of other numbers."""
    asked = []
    columns = {"clock": "CPU time, 1 thread", "ratio": 0.5, "low": 0.49, "high": 0.51, "again_low": 0.4}
    rows = [{"case": name, **columns, "again_high": 0.6} for name in recheck.COSTS]

    def in_processes(case, clock, processes):
        asked.append((case.name, str(clock)))
        return np.array([[0.58, 1.0]] * processes)

    monkeypatch.setattr(recheck.bench, "recorded_costs", lambda: print("a line on the record") or pd.DataFrame(rows))
    monkeypatch.setattr(recheck.bench, "in_processes", in_processes)
    monkeypatch.setattr(recheck, "PARTS", {"bench": recheck.PARTS["bench"]})
    checks = list(recheck.recheck())
    assert asked == [(name, "CPU time, 1 thread") for name in recheck.COSTS]
    assert all(check.inside and check.now == pytest.approx(0.58) for check in checks)
    assert not capsys.readouterr().out

    monkeypatch.setattr(recheck.bench, "too_busy", lambda clock: "others run here")
    assert all(check.inside is None and "others run here" in check.line() for check in recheck.recheck())


@pytest.mark.benchmark_data("b100")
def test_scales_never_trained_come_out_again():
    assert all(part.inside for part in recheck.PARTS["unseen_scales"]())


@pytest.mark.benchmark_data("set5")
def test_scores_of_the_bundled_model_come_out_again():
    parts = list(recheck.PARTS["benchmarks"]())
    assert len(parts) == 3
    assert all(part.inside and abs(part.now - part.value) < 1e-3 for part in parts)
