"""The scorecard: every number comes from a record or a count, and the verdict from its interval."""

import math

import pandas as pd
import pytest

from srlab import claims, judges, runtime


@pytest.fixture(scope="module")
def table():
    return claims.scorecard()


def test_every_claim_has_a_verdict_a_source_and_a_notebook(table):
    verdicts = (judges.HOLDS, judges.FAILS, judges.NOISE, judges.OPEN, judges.ONLY)
    for row in table.itertuples():
        assert row.verdict.startswith(verdicts), row.claim
        assert row.statement.endswith(".")
        assert row.source
        assert row.ours
    assert table["claim"].is_unique
    numbered = table[table["verdict"] != judges.OPEN]
    assert numbered["control"].str.len().gt(10).all(), "a number without its control"
    assert (numbered["low"] <= numbered["value"]).all()
    assert (numbered["value"] <= numbered["high"]).all()
    assert numbered["rests_on"].str.len().gt(0).all()


def test_records_that_claims_rest_on_are_there(table):
    for row in table[table["verdict"] != judges.OPEN].itertuples():
        for name in row.rests_on.split(":")[0].split(", "):
            assert runtime.repo_data("results", f"{name}.csv").is_file(), f"{row.claim} rests on {name}"


def test_shipped_scorecard_and_readme_say_what_the_records_say(table):
    shipped = pd.read_csv(runtime.repo_data("results", f"{claims.SCORECARD}.csv"), keep_default_na=False)
    assert shipped["claim"].tolist() == table["claim"].tolist()
    assert shipped["verdict"].tolist() == table["verdict"].tolist(), "srlab claims --update brings it up to date"
    assert shipped["ours"].tolist() == table["ours"].tolist(), "srlab claims --update brings it up to date"
    if (root := runtime.project_root()) is not None:
        assert claims.as_markdown(table) in (root / "README.md").read_text(encoding="utf-8")


def test_a_third_of_the_storage_by_hand(table):
    encoder, hyper = 38_362_368, 1_443_843  # EDSR, and its IGConv: 256 * 9 elements of 512 numbers, phase and layers
    fixed = 127_499_529
    row = table.set_index("claim").loc["stored-parameters"]
    assert row["high"] == pytest.approx(fixed / (encoder + hyper), rel=1e-6)
    assert "edsr" in row["verdict"]


def test_printed_gains_are_the_papers():
    assert claims._printed_gain("IGConv+", ("Table 4",)).startswith("+0.07 dB over 30 cells")
    assert claims._printed_latency("IGConv+", "SPConv+").endswith("ratio 0.48")


def test_lines_and_table_hold_every_claim(table):
    text = "\n".join(claims.lines(table))
    assert all(row.statement in text and row.verdict.upper() in text for row in table.itertuples())
    assert claims.as_markdown(table).count("\n") == len(table) + 2


def test_the_short_table_tells_an_interval_from_a_range(table):
    rows = {line.split(" | ")[0]: line.split(" | ")[1] for line in claims.as_markdown(table).splitlines()[2:]}
    for row in table.itertuples():
        ends = "(" if row.spread else "["
        assert ends in rows[f"| {row.statement}"], row.claim


def test_update_needs_its_marks(table, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "project_root", lambda: tmp_path)
    monkeypatch.setattr(runtime, "repo_data", lambda *parts: tmp_path.joinpath(*parts))
    readme = tmp_path / "README.md"
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the lines"):
        list(claims.update(table))
    readme.write_text(f"above\n{claims.MARKS[0]}\nold\n{claims.MARKS[1]}\nbelow\n")
    list(claims.update(table))
    assert readme.read_text().startswith("above\n")
    assert readme.read_text().endswith(f"{claims.MARKS[1]}\nbelow\n")
    assert "old\n" not in readme.read_text()
    assert math.isnan(judges.Evidence("x", judges.OPEN).value)
