"""Classroom: copies hold no solution and nothing else is lost; the first cell is for machines without the library."""

import ast
from pathlib import Path

import nbformat
import pytest

from srlab import classroom, cli, gallery

NOTEBOOKS = gallery.find_notebooks()
HOME = "https://github.com/someone/lab"


def is_solution(cell):
    return "solution" in cell.metadata.get("tags", ())


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    before = {path: path.read_bytes() for path in NOTEBOOKS}
    written = classroom.write_student_copies(NOTEBOOKS, tmp_path_factory.mktemp("student"))
    assert {path: path.read_bytes() for path in NOTEBOOKS} == before
    return {path.name: nbformat.read(path, as_version=4) for path in written}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_line_of_a_solution_is_left(path, copies):
    book, copy = nbformat.read(path, as_version=4), copies[path.name]
    nbformat.validate(copy)
    elsewhere = {line.strip() for cell in book.cells if not is_solution(cell) for line in cell.source.splitlines()}
    secret = {line.strip() for cell in book.cells if is_solution(cell) for line in cell.source.splitlines()} - elsewhere
    left = {line.strip() for cell in copy.cells for line in cell.source.splitlines()}
    assert not [line for line in secret & left if line]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_all_else_is_left_and_every_code_solution_leaves_a_cell_to_fill(path, copies):
    book, copy = nbformat.read(path, as_version=4), copies[path.name]
    kept = [cell.source for cell in book.cells if not is_solution(cell)]
    assert [cell.source for cell in copy.cells if not cell.source.endswith("your turn")] == kept
    asked = sum(is_solution(cell) and cell.cell_type == "code" for cell in book.cells)
    assert sum(cell.source.endswith("your turn") for cell in copy.cells) == asked


def test_numbers_of_exercises_stay_and_hints_go():
    solution = {"tags": ["solution"]}
    book = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("# exercise 3: R2 drops to nothing\nx = 1", metadata=solution),
            nbformat.v4.new_code_cell("x = 1", metadata=solution),
            nbformat.v4.new_markdown_cell("It is 42.", metadata=solution),
        ]
    )
    classroom.without_solutions(book)
    assert [cell.source for cell in book.cells] == ["# exercise 3: your turn", "# your turn"]


def test_with_an_address_copies_have_buttons_and_a_first_cell_that_installs(tmp_path):
    (path,) = classroom.write_student_copies(NOTEBOOKS[:1], tmp_path, home=HOME + ".git", solutions=True)
    book, original = nbformat.read(path, as_version=4), nbformat.read(NOTEBOOKS[0], as_version=4)
    title = book.cells[0].source
    assert title.startswith(original.cells[0].source.splitlines()[0] + "\n[![Open in Colab]")
    assert f"colab.research.google.com/github/someone/lab/blob/HEAD/notebooks/{path.name}" in title
    assert f"mybinder.org/v2/gh/someone/lab/HEAD?urlpath=lab/tree/notebooks/{path.name}" in title
    install = next(cell for cell in book.cells if cell.cell_type == "code")
    assert "git+https://github.com/someone/lab" in install.source
    assert len(book.cells) == len(original.cells) + 1


def test_the_first_cell_does_nothing_where_the_library_is(monkeypatch):
    import subprocess

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it installed something"))
    exec(compile(ast.parse(classroom.COLAB_CELL.format(source="x")), "cell", "exec"), {})


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ValueError, match="OWNER/NAME"):
        classroom.write_student_copies(NOTEBOOKS[:1], home="somewhere")


def test_the_command_writes_copies_and_says_where(tmp_path, capsys):
    assert cli.main(["student", "00", "01", "--folder", str(tmp_path)]) == 0
    assert [path.name[:2] for path in sorted(Path(tmp_path).iterdir())] == ["00", "01"]
    assert f"2 notebooks without solutions in {tmp_path}" in capsys.readouterr().out


def test_the_page_for_visitors_has_no_lesson_and_still_runs_in_order(tmp_path):
    playground = next(path for path in NOTEBOOKS if path.stem.startswith("10"))
    whole = nbformat.read(playground, as_version=4)
    copy = nbformat.read(classroom.write_dashboard(playground, tmp_path), as_version=4)
    assert not any(set(cell.metadata.get("tags", ())) & {"lesson", "solution"} for cell in copy.cells)
    assert [cell.source for cell in copy.cells if "Playground(" in cell.source]
    code = [cell.source for cell in copy.cells if cell.cell_type == "code"]
    assert code == [cell.source for cell in whole.cells if cell.source in code]
    text = "\n".join(cell.source for cell in copy.cells)
    assert "Exercises" not in text
    defined = {name.id for cell in code for name in ast.walk(ast.parse(cell)) if isinstance(name, ast.Name)}
    assert "coffee" not in defined, "made in a cell that visitors do not have"


def test_without_voila_it_is_said_how_to_get_it(monkeypatch, capsys):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["dashboard"]) == 1
    assert "pip install -e '.[dashboard]'" in capsys.readouterr().err
