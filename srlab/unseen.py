"""Unseen scales room: is there one continuous kernel behind all scales? A model in, its scores at untrained scales out.

An IGConv answers for any whole scale, trained or not. `through_trained` is the sceptic's control: enlarge by the
largest trained scale, then bicubically the rest of the way. `recorded_unseen` holds both and plain bicubic for the
bundled model; it ships as `data/results/unseen_scales.csv`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction

import pandas as pd
from torch import Tensor, nn

from srlab import evaluate, fetch, metrics, runtime, statistics, weights
from srlab.imagesets import ImageSet
from srlab.models import SRModel
from srlab.resize import imresize

MODEL, DATA, SCALES = "edsr-tiny-igconv", "b100", (2, 3, 4, 5, 6, 8)
"""What is recorded: trained for x2, x3, x4; asked for three scales more."""
DIRECT, DETOUR, BICUBIC = "asked directly", "through the largest trained scale", "bicubic"
RECORD = "unseen_scales"


class ThroughTrained(nn.Module):
    """A model that enlarges by its largest trained scale and resizes bicubically from there to the scale asked for."""

    scales = None

    def __init__(self, model: SRModel):
        super().__init__()
        self.model, self.largest = model, max(model.scales)
        self.receptive_radius = model.receptive_radius

    def forward(self, lr: Tensor, scale: int) -> Tensor:
        """(B, 3, h, w) to (B, 3, h * scale, w * scale)."""
        return imresize(self.model(lr, self.largest), Fraction(scale, self.largest))


def score(model: SRModel, pictures: ImageSet | str, scales: Sequence[int]) -> pd.DataFrame:
    """PSNR of three ways to each scale, picture by picture.

    Args:
        model: serves any scale, trained for some.
        pictures: a set, or its name.
        scales: to ask for.

    Returns:
        A row per scale, way and picture: scale, trained (whether the model was trained for it), way, image, psnr_y.
    """
    ways = {DIRECT: model, DETOUR: ThroughTrained(model), BICUBIC: evaluate.Bicubic()}
    tables = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was never trained.*")  # that is the question
        for scale in scales:
            for way, upscaler in ways.items():
                table = evaluate.benchmark(upscaler, pictures, scale, progress=False)[["image", "psnr_y"]]
                tables.append(table.assign(scale=scale, trained=scale in model.scales, way=way))
    return pd.concat(tables, ignore_index=True)[["scale", "trained", "way", "image", "psnr_y"]]


def differences(rows: pd.DataFrame, against: str = DETOUR) -> Iterator[tuple[int, statistics.PairedResult]]:
    """For each scale, how much better it is to ask directly, paired by picture.

    Args:
        rows: as `score` gives.
        against: `DETOUR` or `BICUBIC`.
    """
    for scale, group in rows.groupby("scale"):
        ways = {way: part.set_index("image")["psnr_y"] for way, part in group.groupby("way")}
        yield int(scale), statistics.paired_difference(ways[DIRECT], ways[against], names=(DIRECT, against))


def recorded_unseen() -> pd.DataFrame:
    """`score` of the bundled model on B100, as it ships with the project: needs no pictures.

    With `SRLAB_RECORD=1` it is made anew (minutes), which needs B100.

    Raises:
        RecordError: the record is of other weights or pictures than this project now has.
    """
    settings = {
        "model": {MODEL: fetch.file_sha256(runtime.repo_data("weights", f"{MODEL}.safetensors"))},
        "pictures": {DATA: fetch.pinned(DATA)},
        "scales": list(SCALES),
        "protocol": metrics.STANDARD.line(),
    }

    def compute() -> pd.DataFrame:
        return score(weights.load(MODEL), DATA, SCALES).round(4)

    return runtime.recorded(RECORD, compute, settings=settings, made_by="SRLAB_RECORD=1 and `unseen.recorded_unseen()`")
