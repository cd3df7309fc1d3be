"""Classroom room: notebooks for students, for machines that have never heard of SR Lab, and as a page without code.

Takes the notebooks of the clone; gives copies in `results/student/` without their solutions, with an empty cell where
each of them was. With the address of a public copy of the project they also begin with buttons for Binder and Colab,
and with the cell that installs the library there. The playground is served by voila from a copy without the cells that
teach. Notebooks in git are read, never written.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from srlab import runtime

SOLUTION = "solution"
"""Tag of cells that hold one."""
LESSON = "lesson"
"""Tag of cells that a page for visitors leaves out."""

# Colab has torch and most of the rest and must keep its versions: a newer ipykernel would break the one that runs. So
# the library comes without its dependencies, then those that may be absent; not with -e, because what was installed so
# is not found before a restart.
COLAB_CELL = """# Colab only: brings the library with its pictures and weights. Elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("srlab") is None:
    for what in (["--no-deps", "{source}"], ["lightning-fabric", "safetensors", "pooch"]):
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *what], check=True)"""

BADGES = """[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})
[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})"""


def write_student_copies(
    notebooks: Sequence[Path], folder: Path | None = None, *, home: str = "", solutions: bool = False
) -> list[Path]:
    """Write a copy of each notebook without solutions and without outputs.

    Args:
        notebooks: paths from `gallery.find_notebooks`.
        folder: where the copies go, default `results/student`.
        home: https address of a GitHub repository with this project, for the buttons and the first cell.
        solutions: keep them, for colleagues.

    Returns:
        The copies.

    Raises:
        ValueError: `home` is no such address.
    """
    where = _repository(home) if home else None
    folder = folder or runtime.results_dir() / "student"
    written = []
    for path in notebooks:
        book = nbformat.read(path, as_version=4)
        if not solutions:
            without_solutions(book)
        if where:
            _open_elsewhere(book, where, path.name)
        text = nbformat.writes(book) + "\n"
        written.append(
            runtime.atomic_write(folder / path.name, lambda draft, text=text: draft.write_text(text, encoding="utf-8"))
        )
    return written


def without_solutions(book: NotebookNode) -> None:
    """Empty the code cells tagged "solution", take out the text cells tagged so, and all outputs; in place."""
    kept = []
    for cell in book.cells:
        is_solution = SOLUTION in cell.metadata.get("tags", ())
        if is_solution and cell.cell_type != "code":
            continue
        if is_solution:
            number = re.match(r"#\s*(?:exercise\s*)?(\d+)", cell.source, re.IGNORECASE)
            cell.source = f"# exercise {number[1]}: your turn" if number else "# your turn"
            cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        kept.append(cell)
    book.cells = kept
    book.metadata.pop("widgets", None)


def _repository(home: str) -> str:
    """OWNER/NAME of an address."""
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", home)
    if not found:
        raise ValueError(
            f"home is {home!r}, expected the address of a GitHub repository, such as https://github.com/OWNER/NAME: "
            f"Binder and Colab open notebooks from there"
        )
    return found[1]


def _open_elsewhere(book: NotebookNode, repository: str, name: str) -> None:
    """Put the buttons under the title and the installing cell before the first code cell; in place."""
    colab = f"https://colab.research.google.com/github/{repository}/blob/HEAD/notebooks/{name}"
    binder = f"https://mybinder.org/v2/gh/{repository}/HEAD?urlpath=lab/tree/notebooks/{name}"
    title, _, rest = book.cells[0].source.partition("\n")
    book.cells[0].source = f"{title}\n{BADGES.format(colab=colab, binder=binder)}\n\n{rest}"
    first = next(number for number, cell in enumerate(book.cells) if cell.cell_type == "code")
    install = COLAB_CELL.format(source=f"git+https://github.com/{repository}")
    book.cells.insert(first, nbformat.v4.new_code_cell(install, id="install-on-colab"))


def write_dashboard(notebook: Path, folder: Path | None = None) -> Path:
    """Write a copy of a notebook without the cells tagged "lesson" or "solution", for voila.

    Args:
        notebook: the playground, or any notebook with such tags.
        folder: where the copy goes, default `results/dashboard`.
    """
    book = nbformat.read(notebook, as_version=4)
    book.cells = [cell for cell in book.cells if not {LESSON, SOLUTION} & set(cell.metadata.get("tags", ()))]
    target = (folder or runtime.results_dir() / "dashboard") / notebook.name
    text = nbformat.writes(book) + "\n"
    return runtime.atomic_write(target, lambda draft: draft.write_text(text, encoding="utf-8"))


def serve_dashboard(notebook: Path, port: int, *, browser: bool = True) -> int:
    """Serve a notebook as a page by voila, a kernel for each visitor, until it is interrupted.

    Returns:
        voila's exit code.

    Raises:
        ModuleNotFoundError: voila is not installed.
    """
    if importlib.util.find_spec("voila") is None:
        raise ModuleNotFoundError("voila, which serves it, is absent: pip install -e '.[dashboard]'", name="voila")
    options = [f"--port={port}", "--theme=light", *([] if browser else ["--no-browser"])]
    command = [sys.executable, "-m", "voila", str(write_dashboard(notebook)), *options]
    if os.name == "posix":
        os.execv(sys.executable, command)  # this process becomes voila: who stops it stops the server
    return subprocess.call(command)
