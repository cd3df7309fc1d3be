"""What the doctor reads off the machine; its report as a whole is in test_cli."""

from pathlib import Path

from srlab import doctor


def test_free_space_is_that_of_the_folder_that_would_hold_it(monkeypatch, tmp_path):
    assert doctor._free_space(tmp_path / "not" / "made" / "yet") > 0
    monkeypatch.setattr(Path, "exists", lambda path: False)  # a drive of Windows that is not there: no root either
    assert doctor._free_space(tmp_path) == 0
