"""Bench cases room: what `srlab bench` times. Each case is one thing the lab does and another way to do the same.

The other way is a package where one is well known (Pillow, scikit-image, scikit-learn, PyTorch as it comes), else the
form of `textbook`. A case makes its `Work` for a size. Where both ways compute one answer, it is compared before either
is timed. It is not for programs, which answer nothing; for CKA of 16 x 16 layers, beside the forward passes alone; for
upsamplers and micro-batches, beside models with weights of their own; for training crops, which both draw at random.
"""

from __future__ import annotations

from pathlib import Path

from srlab import bench_maths, bench_models, features, igconv, metrics, runtime, textbook, upsamplers
from srlab.bench_work import Case, Floor, Goal, Program, Work


def importing(size: int) -> Work:
    """The rooms that the example in README imports, on top of torch."""
    readme = "from srlab import datasets, evaluate, models, weights"
    floor = Floor("nothing")
    return Work(Program(f"import torch, srlab; {readme}"), Program("import torch"), floor)


def asking_for_help(size: int) -> Work:
    """`srlab --help`."""
    asking = "import sys; sys.argv = ['srlab', '--help']; from srlab.cli import main; main()"
    return Work(Program(asking), Program("pass"), Floor("nothing"))


def first_figure(size: int) -> Work:
    """Notebook 00 from its first cell to its first figure, written to disk."""
    root = runtime.project_root()
    if root is None:
        raise ValueError("the notebooks are not here: run srlab bench from a clone of the project")
    code = "import torch, matplotlib.pyplot, pandas, scipy.stats, skimage.data"
    return Work(Program(_until_first_figure(root / "notebooks")), Program(code), Floor("nothing"))


def _until_first_figure(notebooks: Path) -> str:
    """The cells of notebook 00 up to the first that saves a figure, as one program."""
    import nbformat

    book = nbformat.read(notebooks / "00_start_here.ipynb", as_version=4)
    cells = [cell.source for cell in book.cells if cell.cell_type == "code"]
    last = next(number for number, source in enumerate(cells) if "run.save(" in source)
    return "\n".join(cells[: last + 1])


CASES: tuple[Case, ...] = (
    Case("import srlab", "import torch", "programs", (1,), importing, Goal(beyond=1.5), rounds=5),
    Case("srlab --help", "an empty Python", "programs", (1,), asking_for_help, Goal(seconds=1.0), rounds=5),
    Case("first figure of notebook 00", "import of its packages", "programs", (1,), first_figure, rounds=5),
    *(
        Case(
            f"imresize 1/{scale}, 8 bits",
            "Pillow",
            "pixels",
            (172_800, 691_200, 2_766_240),
            bench_maths.shrinking(scale),
            Goal(ratio=0.40),
            within=1.5,
        )
        for scale in (2, 3, 4)
    ),
    Case(
        "PSNR-Y",
        "scikit-image on a float64 luma",
        "pixels",
        (172_800, 691_200, 2_766_240),
        bench_maths.scoring(metrics.psnr_y, "psnr"),
        Goal(ratio=0.60),
        within=1e-6,
    ),
    Case(
        "SSIM-Y",
        "scikit-image on a float64 luma",
        "pixels",
        (172_800, 691_200, 2_766_240),
        bench_maths.scoring(metrics.ssim_y, "ssim"),
        Goal(ratio=0.54),
        within=1e-7,
    ),
    Case(
        "CKA, 64 features",
        "centred float64 copies",
        "examples",
        (10_000, 100_000, 1_000_000),
        bench_maths.similarity(False, textbook.cka_of_copies),
        Goal(ratio=0.38, seconds=0.5, memory_mib=100),
        within=1e-6,
        rounds=9,
    ),
    Case(
        "debiased CKA, 64 features",
        "two Gram matrices",
        "examples",
        (10_000, 100_000, 1_000_000),
        bench_maths.similarity(True, textbook.debiased_cka_of_grams),
        Goal(seconds=0.5, memory_mib=100),
        within=1e-6,
        compared_at=4_000,
        rounds=9,
    ),
    *(
        Case(
            f"CKA of 16 x 16 layers, {examples} as examples",
            "the two forward passes alone",
            "pictures",
            (4, 8, 16),
            bench_models.layer_matrix(features.REDUCTIONS[examples]),
            goal,
            rounds=5,
        )
        for examples, goal in (("pictures", Goal(ratio=1.25)), ("pixels", Goal()))
    ),
    Case(
        "kernel alignment", "scikit-learn's Ridge", "pictures", (5, 8, 12), bench_maths.aligning, within=1e-4, rounds=5
    ),
    Case(
        "kernel correlation",
        "loops over tiny images",
        "channels",
        (16, 32, 64),
        bench_maths.correlating,
        within=1e-6,
        rounds=9,
    ),
    Case(
        "radial power spectrum",
        "NumPy and scipy.ndimage.mean",
        "pixels",
        (172_800, 691_200, 2_766_240),
        bench_maths.spectrum,
        within=1e-2,  # coefficients on the edge of two rings may fall on either side
        rounds=7,
    ),
    Case("hyper-network, trained", "its official form", "scale", (2, 3, 4), bench_models.hyper_network, within=1e-5),
    Case(
        "instantiated IGConv",
        "SPConv",
        "pixels",
        (14_400, 57_600, 230_400),
        bench_models.upsampling(
            lambda: igconv.IGConv(64).eval().instantiate(2),
            lambda: upsamplers.SPConv(64, 2),
        ),
        Goal(ratio=1.02, memory_ratio=1.02),
        rounds=81,  # two ways that should be one: it takes many to tell 2 %
    ),
    Case(
        "instantiated IGConv+",
        "SPConv+",
        "pixels",
        (14_400, 57_600, 230_400),
        bench_models.upsampling(
            lambda: igconv.IGConvPlus(64).eval().instantiate(2),
            lambda: upsamplers.SPConvPlus(64, 2),
        ),
        Goal(ratio=0.32, memory_ratio=0.20),
        rounds=9,
    ),
    *(
        Case(
            f"training step, {encoder}, IGConv+",
            "the released code's form",
            "scale",
            (2, 3, 4),
            bench_models.training_step(encoder),
            Goal(ratio=limit),
            within=1e-4,
            rounds=6,
        )
        for encoder, limit in (("edsr-baseline", 0.82), ("smfanet", 0.60))
    ),
    *(
        Case(
            f"4 micro-batches, {encoder}, {name}",
            "SPConv heads",
            "crops",
            (1, 4),
            bench_models.one_for_all(encoder, name.lower()),
            Goal(ratio=limit),
            rounds=8,  # a round is five steps; four rounds left processes 3 % apart
        )
        for encoder, name, limit in (
            ("edsr-baseline", "IGConv", 1.10),
            ("edsr-baseline", "IGConv+", 1.30),
            ("smfanet", "IGConv+", 1.25),
        )
    ),
    *(
        Case(
            f"training crops, x{scale}",
            "the released loader's form",
            "crops",
            (4, 16, 64),
            bench_models.crops(scale),
            Goal(ratio=limit),
            rounds=9,
        )
        for scale, limit in ((2, 1 / 9), (3, 1 / 6), (4, 1 / 6))
    ),
    *(
        Case(
            f"picture 640 x 360 to x2, {encoder}, IGConv",
            "PyTorch as it comes",
            "pixels",
            (57_600, 230_400),
            bench_models.whole_picture(encoder),
            Goal(ratio=limit),
            within=1e-4,
            rounds=4,
        )
        for encoder, limit in (("edsr-baseline", 0.40), ("smfanet", 0.20))
    ),
    Case(
        "picture to 12 megapixels, in tiles",
        "the picture as a whole",
        "pixels",
        (187_500, 750_000, 3_000_000),
        bench_models.tiled,
        within=1.0,
        compared_at=750_000,
        rounds=4,
    ),
)
