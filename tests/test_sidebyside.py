"""Side by side: any two models, one of them somebody's own, with what their similarity is held against."""

import pytest
import torch
from torch import nn

from srlab import models, sidebyside


def tiny(seed=0, **sizes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.build("edsr-tiny", "spconv", (2,), channels=6, blocks=3, **sizes).eval()


def test_report_of_two_models_of_different_kinds(pictures):
    own = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1))
    found = sidebyside.put_side_by_side(tiny(), own, pictures, layers_b=["*"])
    text = "\n".join(found.lines())
    assert found.layers.shape == (4, 3)
    assert "architectures differ" in text
    for what in ("A and B", "untrained B", "both untrained", "other pictures", "A, the picture", "B, the picture"):
        assert what in text
    table = found.table()
    assert len(table) == 7 + 12
    assert table.query("layer_a == 'encoder' and layer_b == '2'")["estimate"].item() == pytest.approx(
        found.controls["estimate"][0]
    )


def test_report_leaves_the_picture_out_where_maps_have_another_size(pictures):
    own = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU())
    found = sidebyside.put_side_by_side(own, own, pictures, ["*"], ["*"])
    assert not found.controls["what"].str.contains("the picture").any()
    assert found.controls["estimate"][0] == pytest.approx(1)
