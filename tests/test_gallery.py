"""Gallery: every notebook is run, a failing one is named, and the page shows what was saved with its caption."""

import html.parser
import json

import nbformat
import pytest

from srlab import gallery

# A Run made by hand, because runtime.start() would load torch, which a notebook of three lines does not need.
DRAW = """from matplotlib.figure import Figure

from srlab import runtime

run = runtime.Run(runtime.profile(), 2, "cpu", 1, "unknown", runtime._notebook_name(), runtime.versions())
fig = Figure(figsize=(2, 1))
fig.subplots().plot([1, 2])
run.save(fig, "{name}", {{"y": [1, 2]}}, caption="{caption}")"""


def write_notebook(folder, name, *cells):
    book = nbformat.v4.new_notebook()
    for cell in cells:
        make = nbformat.v4.new_markdown_cell if cell.startswith("#") else nbformat.v4.new_code_cell
        book.cells.append(make(cell))
    path = folder / f"{name}.ipynb"
    nbformat.write(book, path)
    return path


class Page(html.parser.HTMLParser):
    """Pictures, links, scripts and headings of a page."""

    def __init__(self, text):
        super().__init__()
        self.found = {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.setdefault(tag, []).append(dict(attributes))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Three notebooks, the second of which fails, run once."""
    folder, results = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("results")
    write_notebook(
        folder,
        "01_lines",
        "# Do lines rise?",
        DRAW.format(name="rising", caption="A line <rises> & 'falls'."),
        "import ipywidgets\nout = ipywidgets.Output()\nwith out:\n    print('first value')\nipywidgets.VBox([out])",
    )
    write_notebook(folder, "02_fails", "# Will it fail?", "## A wrong step", "x = 0", "1 / x", "print('never')")
    write_notebook(
        folder,
        "03_reads",
        "# What is told?",
        "import os\nprint(os.environ['SRLAB_PROFILE'], os.environ['SRLAB_NOTEBOOK'])",
    )
    before = {path: path.read_bytes() for path in folder.iterdir()}
    lines = []
    notebooks = gallery.find_notebooks(folder)

    def say(text, end="\n", flush=False):
        lines.append(text + end)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRLAB_PROFILE", "demo")
        outcomes = gallery.run_all(
            notebooks, results, 60, say=lambda text, end="\n", flush=False: lines.append(text + end)
        )
    assert {path: path.read_bytes() for path in folder.iterdir()} == before, "notebooks are read, never written"
    return outcomes, results, "".join(lines)


def test_all_notebooks_are_run_although_one_fails(ran):
    outcomes, results, said = ran
    assert [outcome.notebook for outcome in outcomes] == ["01_lines", "02_fails", "03_reads"]
    assert [bool(outcome.error) for outcome in outcomes] == [False, True, False]
    assert [outcome.figures for outcome in outcomes] == [1, 0, 0]
    lines = said.splitlines()
    assert len(lines) == 5, "a line at the start, one per notebook, one at the end"
    assert str(results / "index.html") in lines[-1]
    assert "1 figure" in lines[1]


def test_the_failing_cell_is_named_by_number_section_and_first_line(ran):
    outcome = ran[0][1]
    assert outcome.failed_cell == 'code cell 2 ("A wrong step": 1 / x)'
    assert outcome.error == "ZeroDivisionError: division by zero"


def test_executed_copies_hold_outputs_and_know_profile_and_notebook(ran):
    book = nbformat.read(ran[1] / "notebooks" / "03_reads.ipynb", as_version=4)
    assert book.cells[1].outputs[0].text == "demo 03_reads\n"


def test_figures_land_beside_the_page_with_the_name_of_their_notebook(ran):
    record = json.loads((ran[1] / "figures" / "rising.json").read_text(encoding="utf-8"))
    assert (record["notebook"], record["profile"], record["seed"]) == ("01_lines", "demo", 2)


def test_the_index_is_one_file_whose_links_lead_somewhere(ran):
    results = ran[1]
    page = Page((results / "index.html").read_text(encoding="utf-8"))
    assert page.found["html"] == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.found["meta"]
    assert "script" not in page.found
    assert "link" not in page.found
    for address in [link["href"] for link in page.found["a"]] + [picture["src"] for picture in page.found["img"]]:
        if address.startswith("#"):
            assert any(section.get("id") == address[1:] for section in page.found["section"])
        elif address != "https://arxiv.org/abs/2408.09674":
            assert (results / address).is_file(), address
    assert [picture["alt"] for picture in page.found["img"]] == ["A line <rises> & 'falls'."]


def test_the_index_names_titles_provenance_and_the_failure(ran):
    text = (ran[1] / "index.html").read_text(encoding="utf-8")
    for fact in (
        "Do lines rise?",
        "seed 2",
        "torch 2",
        "1 figure from 3 notebooks; 1 of them failed",
        "division by zero",
    ):
        assert fact in text


def test_pages_of_notebooks_have_captions_as_text_and_no_script_they_need(ran):
    text = (ran[1] / "notebooks" / "01_lines.html").read_text(encoding="utf-8")
    page = Page(text)
    assert [picture["alt"] for picture in page.found["img"]] == ["A line <rises> & 'falls'."]
    for script in page.found.get("script", []):
        assert "src" not in script or "defer" in script, "a script that blocks the page without network"


def test_a_page_shows_what_a_widget_showed_first(ran):
    text = (ran[1] / "notebooks" / "01_lines.html").read_text(encoding="utf-8")
    assert "first value" in text
    assert "open this notebook in JupyterLab" in text


def test_running_again_drops_figures_that_are_no_longer_made(tmp_path):
    folder, results = tmp_path / "notebooks", tmp_path / "results"
    folder.mkdir()
    save = """import json, os, pathlib
folder = pathlib.Path(os.environ["SRLAB_RESULTS"], "figures")
folder.mkdir(exist_ok=True)
(folder / "{0}.png").touch()
(folder / "{0}.json").write_text(json.dumps({{"notebook": "01", "caption": "A line."}}))"""
    for name in ("old", "new"):
        path = write_notebook(folder, "01", "# One", save.format(name))
        gallery.run_notebook(path, results)
    assert {figure["name"] for figure in gallery.read_figures(results)} == {"new"}
    assert not list((results / "figures").glob("old.*"))
    path.rename(folder / "02.ipynb")
    gallery._forget_removed([folder / "02.ipynb"], results)
    assert not gallery.read_figures(results)
    assert not list((results / "notebooks").iterdir())


def test_a_cell_that_takes_too_long_is_a_failure_not_a_wait(tmp_path):
    path = write_notebook(tmp_path, "slow", "# Slow", "import time", "time.sleep(600)")
    outcome = gallery.run_notebook(path, tmp_path / "results", timeout=1)
    assert outcome.failed_cell.startswith("code cell 2")
    assert outcome.seconds < 60


def test_notebooks_are_found_by_the_beginning_of_their_names(tmp_path):
    for name in ("01_a", "02_b", "02_c"):
        write_notebook(tmp_path, name, "# T")
    assert [path.stem for path in gallery.find_notebooks(tmp_path, ["02"])] == ["02_b", "02_c"]
    with pytest.raises(FileNotFoundError, match=r"no notebook '3'.*01_a, 02_b, 02_c"):
        gallery.find_notebooks(tmp_path, ["3"])
    with pytest.raises(FileNotFoundError, match="no notebooks in"):
        gallery.find_notebooks(tmp_path / "empty")


def test_names_of_saved_figures_are_read_from_the_source():
    source = (
        "%matplotlib inline\nrun.save(draw(1), 'a', data, caption='x'); run.save(fig, name='b', data=d, caption='y')"
    )
    assert gallery._saved_names(source) == ["a", "b"]
    assert gallery._saved_names("this is no python") == []


def test_damaged_notes_do_not_break_the_page(tmp_path):
    for folder in ("figures", "notebooks"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.json").write_text("{")
    assert "0 figures from 0 notebooks" in gallery.write_index(tmp_path).read_text(encoding="utf-8")
