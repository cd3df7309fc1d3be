"""Scales a model was never trained for: the two roads to them, and what is made of their scores."""

import pytest
import torch

from srlab import datasets, models, unseen
from srlab.resize import imresize


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return models.build("edsr-nano", "igconv", (2, 3), implicit_dim=8).eval()


def test_detour_is_the_trained_picture_resized(model):
    lr = torch.rand(1, 3, 12, 9)
    with torch.no_grad():
        sr = unseen.ThroughTrained(model)(lr, 6)
        torch.testing.assert_close(sr, imresize(model(lr, 3), 2))
    assert sr.shape == (1, 3, 72, 54)


def test_at_the_largest_trained_scale_both_roads_are_one(model):
    photos = datasets.load("demo")
    rows = unseen.score(model, photos.subset(photos.names[:2]), (3, 4))
    assert len(rows) == 2 * 3 * 2
    assert rows.groupby("scale")["trained"].first().to_dict() == {3: True, 4: False}
    found = dict(unseen.differences(rows))
    assert found[3].verdict() == "no difference"
    assert found[4].verdict() != "no difference"


def test_the_record_needs_no_pictures_and_names_its_model():
    rows = unseen.recorded_unseen()
    assert set(rows["scale"]) == set(unseen.SCALES)
    assert rows.groupby(["scale", "way"]).size().eq(100).all()
    assert unseen.MODEL in rows.attrs["provenance"]["settings"]["model"]
    gains = dict(unseen.differences(rows, unseen.BICUBIC))
    assert all(gains[scale].interval.low > 0 for scale in (2, 3, 4)), "trained scales beat bicubic"
