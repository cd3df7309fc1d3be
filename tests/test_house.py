"""The house: which room imports which, what notebooks in git may hold, and whether the root files agree."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent

# From the roof to the cellar; a room imports rooms of lower floors only, and the files of `encoders` also each other.
FLOORS = [
    ("__main__",),
    ("cli",),
    ("bench_command", "claims_command", "classroom", "doctor", "gallery", "train_command"),
    ("claims", "recheck"),
    ("judges",),
    ("bench",),
    ("bench_cases",),
    ("bench_maths", "bench_models"),
    ("bench_work",),
    ("provenance",),
    ("dashboard", "index_page"),
    ("widgets",),
    ("figures", "spectral_figures"),
    ("panels",),
    ("ablation_verdicts", "library"),
    ("ablation",),
    ("sweeps",),
    ("playground", "train", "unseen"),
    ("recipes", "runlog", "team", "transfer"),
    ("evaluate",),
    ("ancestry", "cka_verdicts"),
    ("cka_study", "kernel_study", "sidebyside", "spectral_study"),
    ("compare",),
    ("controls", "efficiency"),
    ("weights",),
    ("models",),
    ("encoders",),
    ("igconv",),
    ("hypernetwork",),
    ("upsamplers",),
    ("features", "patterns"),
    ("kernels",),
    ("alignment", "cka", "spectra"),
    ("hsic",),
    ("statistics",),
    ("losses",),
    ("datasets",),
    ("imagesets",),
    ("fetch",),
    ("metrics",),
    ("images", "resize", "textbook"),
    ("runtime",),
    ("machine",),
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MATHS = {"alignment", "cka", "hsic", "kernels", "spectra", "statistics", "metrics", "resize"}
DRAWING = {"figures", "panels", "spectral_figures"}

# Packages that only some rooms may import. `runtime` closes figures and writes their files, `widgets` closes them.
ONLY_IN = {
    "matplotlib": {*DRAWING, "widgets", "runtime"},
    "seaborn": DRAWING,
    "ipywidgets": {"dashboard", "widgets"},
    "IPython": {"widgets"},
    "lightning_fabric": {"team"},
    "pooch": {"fetch"},
}
BLOCKED = ("torchvision", "cv2", "basicsr", "timm")

SOURCES = sorted((ROOT / "srlab").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def room_of(path):
    first = path.relative_to(ROOT / "srlab").parts[0]
    return first.removesuffix(".py")


def imports_of(path):
    """Rooms of srlab and packages of others that a file imports, at its top or inside functions."""
    rooms, packages = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} line {node.lineno}: relative import, expected `from srlab import ...`"
            from_house = node.module == "srlab"
            modules = [f"srlab.{alias.name}" for alias in node.names] if from_house else [node.module]
        else:
            continue
        for module in modules:
            first, *rest = module.split(".")
            if first != "srlab":
                packages.add(first)
            elif rest:
                rooms.add(rest[0])
    return rooms, packages


def files_of_the_project():
    """Files that are or could be committed."""
    if not (ROOT / ".git").exists():  # a downloaded archive holds nothing else
        pytest.skip("not a git clone")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("git does not answer here")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


# rooms


def test_every_room_has_a_floor():
    unknown = {room_of(path) for path in SOURCES} - set(FLOOR) - {"__init__"}
    assert not unknown, f"{unknown}: say in FLOORS (and in the documentation) where this room stands"


def test_no_room_is_too_large_to_be_read_in_one_go():
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert not {name: count for name, count in lines.items() if count > 450}, "a second room, with a job of its own?"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_run_downwards(path):
    room = room_of(path)
    rooms, packages = imports_of(path)
    if room == "__init__":
        assert not rooms, "`import srlab` alone loads no room"
        return
    assert not (homeless := {room, *rooms} - set(FLOOR)), f"{homeless} have no floor in FLOORS of this file"
    upwards = {other for other in rooms if FLOOR[other] <= FLOOR[room] and not other == room == "encoders"}
    assert not upwards, f"{room} imports {upwards}, which stand on its own floor or above"
    if room == "encoders":
        assert not rooms & {"upsamplers", "igconv"}, "an encoder knows nothing about upsampling"
    if room in MATHS:
        assert rooms <= MATHS | {"images"}, "a maths room takes tensors: no model, no plot, no file"
    if room in DRAWING:
        assert rooms <= MATHS | DRAWING, "drawing takes arrays: no model, no data set"
    for package, allowed in ONLY_IN.items():
        assert package not in packages or room in allowed, f"{package} belongs in {sorted(allowed)}, not in {room}"
    assert not packages & set(BLOCKED)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_and_public_name_says_what_it_is(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "no module docstring"
    named = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    silent = [node.name for node in named if not node.name.startswith("_") and not ast.get_docstring(node)]
    assert not silent, f"no docstring: {silent}"


def test_all_rooms_import_without_torchvision_cv2_basicsr_and_timm():
    code = f"""
import importlib, importlib.abc, pkgutil, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Block())
import srlab
assert "torch" not in sys.modules and "numpy" not in sys.modules, "import srlab alone must be quick"
for module in pkgutil.walk_packages(srlab.__path__, "srlab."):
    if module.name != "srlab.__main__":
        importlib.import_module(module.name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_rooms_are_attributes_of_the_package():
    import srlab

    assert srlab.resize.imresize is __import__("srlab.resize", fromlist=["imresize"]).imresize
    assert {"resize", "models", "__version__"} <= set(dir(srlab))
    with pytest.raises(AttributeError, match="no room 'kitchen'"):
        srlab.kitchen  # noqa: B018


# notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_hold_no_traces_of_a_run(path):
    text = path.read_text(encoding="utf-8")
    book = nbformat.reads(text, as_version=4)
    nbformat.validate(book)
    assert (book.nbformat, book.nbformat_minor) == (4, 5), "saved by an old Jupyter"
    assert book.metadata.kernelspec.name == "python3", "others do not have a kernel of that name"
    assert "widgets" not in book.metadata, "widget state: clear all outputs, then save"
    assert len({cell["id"] for cell in json.loads(text)["cells"]}) == len(book.cells)
    assert book.cells[0].cell_type == "markdown"
    assert book.cells[0].source.startswith("# ")
    for number, cell in enumerate(book.cells):
        assert "execution" not in cell.metadata, f"cell {number} holds timings"
        if cell.cell_type == "code":
            assert not cell.outputs, f"cell {number} holds outputs: clear all outputs, then save"
            assert cell.execution_count is None, f"cell {number} holds an execution count"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_stop_at_errors(path):
    """nbmake must see every error: nothing is allowed to fail, nothing is skipped."""
    book = nbformat.read(path, as_version=4)
    assert not book.metadata.get("execution", {}).get("allow_errors")
    tags = {tag for cell in book.cells for tag in cell.metadata.get("tags", ())}
    assert not tags & {"raises-exception", "skip-execution"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_ask_predict_read_and_end_in_exercises_with_solutions(path):
    book = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    assert text.splitlines()[0].endswith("?"), "the title is a question"
    wanted = ["**You will see**", "**Needs**", "**Time**", "**Prediction", "**Reading", "## What we learnt"]
    missing = [part for part in [*wanted, "## Exercises", "## References"] if part not in text]
    assert not missing, f"{path.name} lacks {missing}"
    learnt, exercises = text.split("## What we learnt")[1].split("## Exercises")
    assert "paper" in learnt, "our number stands beside the paper's"
    levels = re.findall(r"^(?:\*\*Exercise \d\*\*|\d\.) \*\((easy|middle|open)\)\*", exercises, re.MULTILINE)
    assert 3 <= len(levels) <= 5, f"found exercises {levels}, expected 3 to 5 lines such as 1. *(easy)* ..."
    assert levels == sorted(levels), "easy, middle, open"  # the alphabet happens to agree
    assert (levels[0], levels[-1]) == ("easy", "open")
    solved = [cell for cell in book.cells if "solution" in cell.metadata.get("tags", ())]
    assert len(solved) >= len(levels), "every exercise has a solution"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_has_a_lesson_of_45_minutes(path):
    lessons = (ROOT / "notebooks" / "TEACHING.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {path.stem[:2]} .+?(?=^## |\Z)", lessons, re.MULTILINE | re.DOTALL)
    assert found, f"TEACHING.md has no lesson ## {path.stem[:2]} ..."
    lesson = found[0]
    minutes = [tuple(map(int, pair)) for pair in re.findall(r"^\| (\d+)-(\d+) \|", lesson, re.MULTILINE)]
    assert [begin for begin, _ in minutes] == [0, *(end for _, end in minutes[:-1])], "no gap, no overlap"
    assert minutes[-1][1] == 45
    for part in ("**Aims.**", "**Ask.**", "**On the screen.**", "**Misconceptions.**", "**Homework.**"):
        assert part in lesson


# files


def test_no_file_is_large_or_someone_elses_weights():
    files = files_of_the_project()
    large = {str(path.relative_to(ROOT)): path.stat().st_size for path in files if path.stat().st_size > 4e6}
    assert not large
    assert not [path.name for path in files if path.suffix in {".pth", ".pt", ".ckpt"}]
    pictures = {path.name: path.stat().st_size for path in (ROOT / "data" / "results").glob("*.png")}
    assert not {name: size for name, size in pictures.items() if size > 300_000}, "headline pictures are small"


def test_no_file_names_a_place_on_somebodys_machine():
    homes = "|".join(["home", "Users", "root", "work", "mnt"])
    absolute = re.compile(rf"""(?<![\w.:/)}}>])(/({homes})/[\w.-]+|[A-Z]:\\\\?Users)""")
    found = {}
    for path in files_of_the_project():
        if path.suffix in {".py", ".ipynb", ".md", ".toml", ".yml", ".txt", ".cff", ".csv", ".json", ""}:
            text = path.read_text(encoding="utf-8", errors="ignore")
            if match := absolute.search(text):
                found[str(path.relative_to(ROOT))] = match[0]
    assert not found


def test_recorded_results_are_kept_and_new_ones_ignored():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone")

    def is_ignored(name):
        return subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", name], check=False).returncode == 0

    assert not is_ignored("data/results/cka.csv")
    for name in ("results/index.html", "runs/x/last.ckpt", ".venv/bin/python", "srlab/__pycache__/a.pyc"):
        assert is_ignored(name), name


# root files


def bounds(requirements):
    return {canonicalize_name(r.name): str(r.specifier) for r in map(Requirement, requirements)}


def test_environment_yml_asks_for_what_pyproject_asks_for():
    conda_name = {"torch": "pytorch"}
    by_pip_only = {"lightning-fabric"}  # not packaged by conda-forge; `pip: -e .` brings it
    listed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    conda = bounds(entry for entry in listed if isinstance(entry, str) and entry != "pip")
    project = bounds(PROJECT["project"]["dependencies"])
    expected = {conda_name.get(name, name): bound for name, bound in project.items() if name not in by_pip_only}
    assert conda == expected | {"python": PROJECT["project"]["requires-python"]}
    assert listed[-1] == {"pip": ["-e ."]}
    assert "pip" in listed


def test_constraints_pin_every_dependency_within_its_bounds():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, version = re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups()  # no local label such as +cpu
            pins[canonicalize_name(name)] = version
    assert pins["torch"] == "2.13.0"
    extras = PROJECT["project"]["optional-dependencies"].values()
    for requirement in map(
        Requirement, [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]
    ):
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{requirement} but pinned to {pin}"


def test_make_and_ci_call_what_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert {"figures", "lab", "dashboard", "student", "test", "lint", "clean"} <= targets
    from srlab.cli import COMMANDS

    assert set(re.findall(r"-m srlab (\w+)", makefile)) <= set(COMMANDS)
    ci = ROOT / ".ci" / "run"
    assert os.name == "nt" or os.access(ci, os.X_OK)
    assert "make test" in ci.read_text(encoding="utf-8")


def test_citation_names_the_project_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"] == "MIT"
    (paper,) = citation["references"]
    assert paper["title"] == "Implicit Grid Convolution for Multi-Scale Image Super-Resolution"
    assert paper["identifiers"][0]["value"] == "arXiv:2408.09674"
