"""The bench: textbook forms by definition, intervals, goals and records. No test looks at how long anything takes."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from srlab import (
    alignment,
    bench,
    bench_cases,
    bench_models,
    cka,
    hypernetwork,
    igconv,
    kernels,
    losses,
    runtime,
    spectra,
    textbook,
    upsamplers,
)
from srlab.bench_work import Case, Companion, Floor, Goal, Program, Work

TINY = {"pixels": 1_300, "examples": 300, "pictures": 5, "channels": 3, "scale": 2}
COSTLY = ("import", "first figure", "CKA of 16", "kernel alignment", "4 micro", "training step", "picture to")
NO_COMMON_ANSWER = ("srlab --help", "instantiated", "training crops")  # a program; other weights; other random crops


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


# textbook forms and ours, two roads to one number


QUICK = [case for case in bench_cases.CASES if not case.name.startswith(COSTLY)]


def measured_once(case):
    size = TINY.get(case.unit, 1)
    small = dataclasses.replace(case, sizes=(size,), compared_at=None, rounds=1)
    row = bench.measure(small, bench.cpu_clock(), bench.Rates(1e10, 1e11))
    assert row["size"] == row["compared_at"] == size
    assert math.isnan(row["slope"])
    return row


@pytest.mark.parametrize(
    "case", [case for case in QUICK if not case.name.startswith(NO_COMMON_ANSWER)], ids=lambda case: case.name
)
def test_both_ways_of_a_case_give_the_same(case):
    assert measured_once(case)["apart"] <= case.within < math.inf


@pytest.mark.parametrize(
    "case", [case for case in QUICK if case.name.startswith(NO_COMMON_ANSWER)], ids=lambda case: case.name
)
def test_a_case_without_a_common_answer_is_measured_and_says_that_nothing_was_compared(case):
    assert math.isnan(measured_once(case)["apart"])


def test_an_instantiated_igconv_is_timed_beside_a_convolution_that_gives_the_same_with_its_kernel():
    """The case itself takes an `SPConv` with weights of its own, so `measure` has nothing to compare."""
    torch.manual_seed(0)
    module, plain = igconv.IGConv(64).eval(), upsamplers.SPConv(64, 2)
    with torch.no_grad():
        plain.weight.copy_(module.kernel(2))
        plain.bias.zero_()
    work = bench_models.upsampling(lambda: module.instantiate(2), lambda: plain)(TINY["pixels"])
    assert work.ours().std() > 1e-4
    torch.testing.assert_close(work.ours(), work.other())


def test_textbook_similarities_are_those_of_the_lab():
    x = torch.randn(200, 5, generator=chance())
    y = x @ torch.randn(5, 7, generator=chance(1)) + 3 * torch.randn(200, 7, generator=chance(2))
    assert textbook.cka_of_copies(x, y) == pytest.approx(cka.linear_cka(x, y), abs=1e-9)
    assert textbook.debiased_cka_of_grams(x, y) == pytest.approx(cka.linear_cka(x, y, debiased=True), abs=1e-9)


def test_textbook_kernels_are_those_of_the_lab():
    torch.manual_seed(0)
    hyper = hypernetwork.ImplicitKernel(3, 3, implicit_dim=8)
    torch.testing.assert_close(textbook.kernel(hyper, 3), hyper(3))
    phases = [kernels.phase_images(torch.randn(3 * r**2, 2, 3, 3, generator=chance(r)), r) for r in (4, 3)]
    assert textbook.correlation(*phases) == pytest.approx(kernels.correlate(*phases).whole, abs=1e-12)


def test_textbook_upsampling_and_its_loss_are_those_of_the_lab():
    torch.manual_seed(0)
    module = igconv.IGConvPlus(4, implicit_dim=16).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # after the official initialisation there is little to tell apart
    feats, lr = torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.rand(2, 3, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        sr, plain = module(feats, 3, lr), textbook.igconv_plus(module, feats, 3, lr)
    torch.testing.assert_close(plain, sr)
    hr = torch.rand_like(sr)
    torch.testing.assert_close(textbook.frequency_loss(sr, hr, 0.05), losses.fft_loss(sr, hr, 0.05))


def test_textbook_rings_are_those_of_the_lab():
    picture = torch.rand(2, 40, 51, generator=chance())
    np.testing.assert_allclose(textbook.ring_means(picture), spectra.radial_power_spectrum(picture)[1], rtol=1e-4)


def test_scikit_learn_finds_the_map_and_the_penalty_of_the_lab():
    feats_from = [torch.randn(4, 6, 6, generator=chance(i)) for i in range(6)]
    feats_to = [feats[:3] + torch.randn(3, 6, 6, generator=chance(9 + i)) for i, feats in enumerate(feats_from)]
    found = alignment.fit_channel_map(feats_from, feats_to)
    matrix, alpha = textbook.ridge(feats_from, feats_to, alignment.ALPHAS, alignment.FOLDS)
    assert alpha == found.alpha
    np.testing.assert_allclose(matrix, found.matrix, atol=1e-12)


# measuring


def test_the_interval_holds_the_median_as_often_as_it_says():
    drawn = np.random.default_rng(0).lognormal(size=(2000, 15))  # lopsided, median 1
    ends = np.array([bench.middle(row)[1:] for row in drawn])
    assert 0.94 < ((ends[:, 0] <= 1) & (ends[:, 1] >= 1)).mean() < 0.985
    assert bench.middle(np.array([3.0, 1.0, 2.0])) == (2.0, 1.0, 3.0)


def test_both_intervals_over_processes_hold_what_they_say():
    drawn = 0.5 * np.random.default_rng(0).lognormal(sigma=0.2, size=(2000, 6))
    ends = np.array([bench.over_processes(row[:5]) for row in drawn])
    assert 0.93 < ((ends[:, 1] <= 0.5) & (ends[:, 2] >= 0.5)).mean() < 0.97
    assert 0.93 < ((ends[:, 3] <= drawn[:, 5]) & (ends[:, 4] >= drawn[:, 5])).mean() < 0.97
    inverse = bench.over_processes(1 / drawn[0])
    assert bench.over_processes(drawn[0])[:3] == pytest.approx([1 / inverse[place] for place in (0, 2, 1)])


def test_fresh_processes_time_a_case_by_its_name_and_clock():
    case = next(case for case in bench_cases.CASES if case.name == "imresize 1/2, 8 bits")
    small = dataclasses.replace(case, sizes=case.sizes[-1:])
    row = bench.measure(small, bench.cpu_clock(), bench.Rates(1e10, 1e11), processes=2)
    assert row["processes"] == 2
    assert row["again_low"] < row["low"] < row["ratio"] < row["high"] < row["again_high"]


def test_wall_time_is_not_recorded_beside_other_work(records, monkeypatch):
    monkeypatch.setattr(bench, "others_running", lambda: 2.0)
    with pytest.raises(RuntimeError, match=r"2\.0 other threads run on this one.*--cpu-time"):
        bench.record(bench.chosen(["a"]), bench.wall_clock(), 0)
    assert not bench.too_busy(bench.cpu_clock())
    assert not records.exists()


def test_a_clock_is_found_by_the_name_that_a_row_gives_it():
    for clock in (bench.cpu_clock(), bench.wall_clock(), bench.wall_clock()._replace(threads=7)):
        found = bench.clock_called(str(clock))
        assert (found.name, found.threads) == (clock.name, clock.threads)
    with pytest.raises(ValueError, match="expected a name such as"):
        bench.clock_called("sundial, 1 thread")


def test_the_slope_is_the_exponent():
    assert bench.slope([(10, 3e-3), (100, 0.3), (1000, 30.0)]) == pytest.approx(2.0)


def counting(calls, name):
    return lambda: calls.append(name)


def test_ways_take_turns_and_the_first_round_does_not_count():
    calls = []
    taken = bench.in_turns(Work(counting(calls, "a"), counting(calls, "b"), Floor("")), 3, bench.cpu_clock())
    assert taken.shape == (3, 2)
    assert calls == ["b", "a", "a", "b", "b", "a", "a", "b"]


def row_of(**values):
    numbers = {"ratio": 0.5, "low": 0.4, "high": 0.6, "seconds": 1.0, "other_seconds": 2.0}
    return {**numbers, "memory_mib": 10.0, "memory_ratio": 1.0, **values}


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (Goal(), ""),
        (Goal(ratio=0.55), "yes"),
        (Goal(ratio=0.45), "within noise"),
        (Goal(ratio=0.35), "no"),
        (Goal(ratio=0.55, memory_ratio=0.9), "no"),
        (Goal(seconds=1.0, memory_mib=10), "yes"),
        (Goal(beyond=0.0), "yes"),
        (Goal(beyond=-1.5), "no"),
    ],
)
def test_goals_are_judged_with_their_interval(goal, expected):
    case = Case("a", "b", "pixels", (1,), None, goal)
    assert bench.met(case, row_of()) == expected


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (Goal(ratio=0.55, memory_ratio=0.9), "not measured"),
        (Goal(ratio=0.45, memory_mib=10), "not measured"),
        (Goal(ratio=0.35, memory_mib=10), "no"),
        (Goal(ratio=0.55), "yes"),
        (Goal(ratio=0.45), "within noise"),
    ],
)
def test_a_goal_for_memory_is_not_missed_where_memory_cannot_be_measured(goal, expected):
    case = Case("a", "b", "pixels", (1,), None, goal)
    assert bench.met(case, row_of(memory_mib=math.nan, memory_ratio=math.nan)) == expected


def test_unequal_answers_are_not_timed():
    case = Case("ours", "theirs", "pixels", (1,), lambda size: Work(list, list, Floor(""), lambda: 0.5), within=0.1)
    with pytest.raises(ArithmeticError, match=r"ours and theirs are 0\.5 apart"):
        bench.measure(case, bench.cpu_clock(), bench.Rates(1.0, 1.0))


def test_a_program_that_fails_says_why():
    with pytest.raises(RuntimeError, match="no such thing"):
        Program("raise SystemExit('no such thing')")()
    assert Program("pass").peak() > 1e6 or math.isnan(Program("pass").peak())


def test_a_companion_stays_and_is_started_without_settings_of_the_allocator(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    body = "import os; calls = []; from srlab import bench_work\n"
    body += "def call(): calls.append(1); assert len(calls) < 3 and not any('MALLOC' in name for name in os.environ)\n"
    companion = Companion(body + "bench_work.serve(call, 1)")
    assert companion.seconds("wall time") >= 0
    assert companion.seconds("CPU time") >= 0
    with pytest.raises(RuntimeError, match="has ended; its last words are above"):
        companion()


def test_a_companion_tells_how_much_memory_a_call_takes():
    code = "from srlab import bench_work; bench_work.serve(lambda: bytearray(64 << 20), 1)"
    assert 60 * 2**20 < Companion(code).peak() < 80 * 2**20 or math.isnan(Companion(code).peak())


def test_cases_are_found_by_the_beginning_of_their_name():
    assert [case.name for case in bench.chosen(["PSNR", "instantiated IGConv+"])] == ["PSNR-Y", "instantiated IGConv+"]
    assert bench.chosen([]) == list(bench_cases.CASES)
    with pytest.raises(ValueError, match="no case begins with 'soup': expected 'import srlab'"):
        bench.chosen(["soup"])


# record


def quick_case(name, size):
    return Case(name, "list", "pixels", (size,), lambda pixels: Work(list, list, Floor("", bytes=8.0)), rounds=2)


@pytest.fixture
def records(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "repo_data", lambda *parts: tmp_path.joinpath(*parts))
    monkeypatch.setattr(bench_cases, "CASES", (quick_case("a", 1), quick_case("b", 1)))
    monkeypatch.setattr(runtime, "commit", lambda: "this commit")
    monkeypatch.setattr(bench, "machine_rates", lambda clock: bench.Rates(1e9, 1e9))
    return tmp_path / "results" / "bench.csv"


def test_without_a_record_it_is_said_how_to_make_one(records):
    with pytest.raises(runtime.RecordError, match="srlab bench --record"):
        bench.recorded_costs()


def test_a_record_keeps_the_rows_that_still_hold(records, monkeypatch):
    bench.record(bench.chosen(["b"]), bench.cpu_clock(), 0)
    bench.record(bench.chosen(["a"]), bench.cpu_clock(), 0)
    text = records.read_text().replace("this commit", "an older commit")
    about = json.loads(records.with_suffix(".json").read_text()) | {"data_sha256": runtime.text_sha256(text)}
    records.write_text(text)
    records.with_suffix(".json").write_text(json.dumps(about))
    table = bench.recorded_costs()
    assert list(table.columns) == list(bench.COLUMNS)
    assert list(table["case"]) == ["a", "b"]

    monkeypatch.setattr(bench_cases, "CASES", (quick_case("a", 1), quick_case("b", 2), quick_case("c", 1)))
    with pytest.raises(runtime.RecordError):
        bench.recorded_costs()
    monkeypatch.setenv("SRLAB_RECORD", "1")
    bench.record(bench.chosen(["c"]), bench.cpu_clock(), 0)
    table = bench.recorded_costs().set_index("case")  # b is now something else
    assert table["commit"].to_dict() == {"a": "an older commit", "c": "this commit"}


def test_a_recording_that_is_ended_loses_no_row(records, monkeypatch):
    bench.record(bench.chosen([]), bench.cpu_clock(), 0)
    before = bench.recorded_costs().set_index("case")
    measure = bench.measure

    def interrupted(case, *about):
        if case.name == "b":
            raise KeyboardInterrupt
        return measure(case, *about)

    monkeypatch.setattr(bench, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.record(bench.chosen([]), bench.cpu_clock(), 0)
    after = bench.recorded_costs().set_index("case")
    assert list(after.index) == ["a", "b"]
    assert after.loc["b", "seconds"] == before.loc["b", "seconds"]
