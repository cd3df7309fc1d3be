"""Train command: words that would be ignored are refused, so that nobody waits for what was not asked for."""

import pytest

from srlab import cli, sweeps, train

SMOKE = ["train", "--recipe", "smoke"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--sweep", "library", "--print-launch"], "only --part and --folder go with it"),
        (["train", "--sweep", "library", "--devices", "4"], "are for --print-launch"),
        (["train", "--sweep", "library", "--stop-after", "3"], "only --part and --folder go with it"),
        ([*SMOKE, "--devices", "4"], "are for --print-launch"),
        ([*SMOKE, "--nodes", "2"], "are for --print-launch"),
        ([*SMOKE, "--sizes", "channels=abc"], "size channels is 'abc', expected a whole number"),
        ([*SMOKE, "--sizes", "channels=-4"], "size channels is -4"),
        ([*SMOKE, "--sizes", "mean=0.5"], "size mean is 0.5, expected three finite numbers"),
        ([*SMOKE, "--seed", "-1"], "seed is -1"),
        ([*SMOKE, "--fft-weight", "inf"], "fft_weight is inf"),
        ([*SMOKE, "--stop-after", "0"], "--stop-after is 0, expected at least one step"),
        ([*SMOKE, "--stop-after", "-3"], "--stop-after is -3, expected at least one step"),
    ],
)
def test_words_that_would_do_nothing_are_refused_in_one_line(words, message, monkeypatch, tmp_path, capsys):
    def trained(*_, **__):
        raise AssertionError("nothing was to be trained")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "fit", trained)
    monkeypatch.setattr(sweeps, "run", trained)
    assert cli.main(words) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_command_for_many_devices_stops_where_it_was_asked_to(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*SMOKE, "--stop-after", "5", "--print-launch", "--devices", "2"]) == 0
    assert capsys.readouterr().out.split("-m srlab ")[1].split() == [*SMOKE, "--stop-after", "5"]


def test_a_run_that_was_asked_to_stop_ends_well_and_one_that_was_interrupted_does_not(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "fit", lambda *_, **__: train.Result(None, [], tmp_path, step=1))
    assert cli.main([*SMOKE, "--stop-after", "1"]) == 0
    assert cli.main(SMOKE) == 130
