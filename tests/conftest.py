"""What all tests share: few threads, results in a temporary folder, and the marker for tests that need fetched files.

`@pytest.mark.benchmark_data("set5", "imdn-x2")` skips a test when a named set of pictures or published weight is
neither in the cache nor in the folder named by SRLAB_MIRROR. Nothing is downloaded to find that out, and the end of the
test run says what was left out and why.
"""

import os

# Before torch is loaded: tests multiply small matrices, for which many threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", str(min(4, os.cpu_count() or 1)))

from functools import cache

import browsing
import matplotlib
import pytest

LEFT_OUT: dict[str, list[str]] = {}  # reason -> tests


def pytest_configure(config):
    matplotlib.use("agg")  # not by MPLBACKEND: the kernels of notebooks would inherit it and show no figure
    config.addinivalue_line(
        "markers",
        "benchmark_data(*names): needs these sets of pictures or published weights from the cache or SRLAB_MIRROR",
    )
    config.addinivalue_line("markers", "browser: drives a real Chromium; left out where there is none")


@pytest.fixture(scope="session", autouse=True)
def _results_in_a_temporary_folder(tmp_path_factory):
    """Figures that tests draw must not replace anybody's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRLAB_RESULTS", str(tmp_path_factory.mktemp("results")))
        yield


@pytest.fixture(scope="session")
def pictures():
    """Ten smooth random pictures (1, 3, h, w) of different sizes."""
    import torch

    from srlab.resize import imresize

    generator = torch.Generator().manual_seed(0)
    sizes = [(20 + 2 * i, 34 - i) for i in range(10)]
    return [imresize(torch.rand(1, 3, h // 4, w // 4, generator=generator), 4).clamp(0, 1) for h, w in sizes]


def pytest_runtest_setup(item):
    names = [name for marker in item.iter_markers("benchmark_data") for name in marker.args]
    absent = [f"{name} ({state})" for name in names if (state := what_is_absent(name))]
    if item.get_closest_marker("browser") and (missing := browsing.what_is_missing()):
        absent.append(missing)
    if absent:
        reason = f"not on this machine: {', '.join(absent)}"
        LEFT_OUT.setdefault(reason, []).append(item.nodeid)
        pytest.skip(reason)


def pytest_terminal_summary(terminalreporter):
    if not LEFT_OUT:
        return
    terminalreporter.section("tests left out")
    for reason, tests in LEFT_OUT.items():
        terminalreporter.line(f"{len(tests)} tests, {reason}")
        for test in tests:
            terminalreporter.line(f"    {test}")
    terminalreporter.line(
        "Files: set SRLAB_MIRROR to a folder that holds them, or `srlab fetch all`. Programs: see .ci/run."
    )


@cache
def what_is_absent(name: str) -> str:
    """Say what a set of pictures or a weight lacks on this machine; "" when it is here. No network."""
    from srlab import datasets, weights

    for row in datasets.status():
        if row.name == name:
            return "" if row.present == row.total else f"{row.present} of {row.total} files"
    if name not in weights.names():
        raise pytest.UsageError(f"benchmark_data names {name!r}, which is neither a set of pictures nor a weight")
    return "" if weights.card(name).is_here else "no file"
