"""Run log: what was added is in the file at once, and a table can be cut back to a checkpoint."""

import pandas as pd
import pytest

from srlab.runlog import Curves, Table


def test_rows_are_in_the_file_at_once_and_later_ones_are_dropped_on_return(tmp_path):
    table = Table(tmp_path / "log.csv", ("step", "loss"))
    for step in (1, 2, 3):
        table.add({"step": step, "loss": 1 / step})
        assert len(pd.read_csv(tmp_path / "log.csv")) == step
    again = Table(tmp_path / "log.csv", ("step", "loss"), table.rows[:2])
    again.add({"step": 3, "loss": 9.0})
    assert pd.read_csv(tmp_path / "log.csv")["loss"].tolist() == [1.0, 0.5, 9.0]


def test_a_table_without_a_file_keeps_its_rows():
    table = Table(None, ("step",))
    table.add({"step": 1})
    assert table.rows == [{"step": 1}]


def test_curves_hold_the_numbers_of_the_rows(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    curves = Curves(tmp_path / "tensorboard", 0)
    for step in (1, 2):
        curves.add("training", {"step": step, "loss": 0.5 / step, "weights": "ema"})
    curves.close()
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("training/loss")] == [(1, 0.5), (2, 0.25)]


def test_curves_without_tensorboard_do_nothing(tmp_path, monkeypatch):
    from srlab import runlog

    monkeypatch.setattr(runlog.importlib.util, "find_spec", lambda name: None)
    curves = Curves(tmp_path / "tensorboard", 0)
    curves.add("training", {"step": 1, "loss": 0.5})
    curves.close()
    assert not list(tmp_path.iterdir())
