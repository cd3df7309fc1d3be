"""Features: the right tensors in the asked-for order, hooks that always come off, and what counts as an example."""

import pytest
import torch
from torch import nn

from srlab import features


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, feats):
        return feats + self.act(self.conv(feats))


class Net(nn.Module):
    """Two blocks, one layer shared by both halves, one layer never called, one whose output is a tuple."""

    def __init__(self, channels=4):
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.ModuleList([Block(channels) for _ in range(11)])
        self.shared = nn.Conv2d(channels, channels, 1)
        self.alias = self.shared
        self.spare = nn.Linear(2, 2)
        self.memory = nn.LSTM(channels, channels, batch_first=True)

    def encode(self, lr):
        feats = self.head(lr)
        for block in self.body:
            feats = block(feats)
        return self.shared(self.shared(feats))

    def forward(self, lr):
        feats = self.encode(lr)
        self.memory(feats.flatten(2).mT)
        return feats


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def lr():
    return torch.rand(1, 3, 6, 5, generator=torch.Generator().manual_seed(1))


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


# what is read


def test_captured_features_are_what_the_layers_compute(model, lr):
    with features.capture(model, ["body.0", "head", "body.1.conv"]) as feats:
        model(lr)
    head = model.head(lr)
    first = model.body[0](head)
    assert list(feats) == ["body.0", "head", "body.1.conv"]  # not the order of running
    torch.testing.assert_close(feats["head"], head)
    torch.testing.assert_close(feats["body.0"], first)
    torch.testing.assert_close(feats["body.1.conv"], model.body[1].conv(first))  # as it was before the in-place ReLU
    assert feats["body.1.conv"].min() < 0


def test_no_graph_is_kept_and_the_model_runs_as_before(model, lr):
    expected = model(lr)
    with features.capture(model, "head") as feats:
        sr = model(lr)
        sr.sum().backward()
    torch.testing.assert_close(sr, expected, rtol=0, atol=0)
    assert model.head.weight.grad is not None
    assert not feats["head"].requires_grad
    assert feats["head"].grad_fn is None


def test_dict_is_refilled_by_every_pass_and_survives_the_block(model, lr):
    with torch.no_grad(), features.capture(model, "shared") as feats:
        model(lr)
        first = feats["shared"]
        model(1 - lr)
        second = feats["shared"]
        part = model.encode(lr)  # a method that is not forward counts too
    assert not torch.equal(first, second)
    torch.testing.assert_close(feats["shared"], part)
    torch.testing.assert_close(first, part)  # a tensor once taken is not overwritten


def test_shared_layer_leaves_its_last_call_and_reports_all(model, lr):
    calls = []
    with torch.no_grad(), features.capture(model, "shared", on_call=lambda *call: calls.append(call)) as feats:
        last = model(lr)
    assert [name for name, _ in calls] == ["shared", "shared"]
    torch.testing.assert_close(feats["shared"], last)
    torch.testing.assert_close(calls[1][1], model.shared(calls[0][1]))


def test_second_name_of_a_shared_layer_works(model, lr):
    with torch.no_grad(), features.capture(model, ["alias", "shared"]) as feats:
        model(lr)
    assert list(feats) == ["alias", "shared"]
    torch.testing.assert_close(feats["alias"], feats["shared"])


# names


def test_layer_names_lists_what_can_be_read(model):
    names = features.layer_names(model)
    assert names[:4] == ["head", "body.0", "body.0.conv", "body.0.act"]
    assert "body" not in names  # a bare list is never called
    assert "" not in names
    assert names.count("shared") == 1
    assert "alias" not in names


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("body.*", [f"body.{i}" for i in range(11)]),  # blocks, in the model's order: 10 comes after 9
        ("body.?", [f"body.{i}" for i in range(10)]),
        (["shared", "body.1?", "head"], ["shared", "body.10", "head"]),
        ("body.*.conv", [f"body.{i}.conv" for i in range(11)]),
        ("**.act", [f"body.{i}.act" for i in range(11)]),
        (r"re:body\.[02]", ["body.0", "body.2"]),
        (["body.3", "body.[23]", "re:body.[23]"], None),
        (["body.3", "re:body.[23]", "body.3"], ["body.3", "body.2"]),
    ],
)
def test_patterns_stand_for_names_in_the_models_order(model, lr, layers, expected):
    if expected is None:  # a bracket is a plain character in a glob
        with pytest.raises(ValueError, match="matches nothing"), features.capture(model, layers):
            pass
        return
    with torch.no_grad(), features.capture(model, layers) as feats:
        model(lr)
    assert list(feats) == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("boddy.0", "near names: 'body.0'"),
        ("re:heda", "near names: 'head'"),
        ("head*.conv", "matches nothing in Net, which has 37 layers"),
        ("re:body.[", "not a regular expression"),
        ("body", "ModuleList, a container that is never called.*'body.0'"),
        ([], "no layers asked for"),
        ("", "matches nothing"),
    ],
)
def test_name_that_matches_nothing_is_refused_before_anything_is_hooked(model, layers, message):
    with pytest.raises(ValueError, match=message), features.capture(model, layers):
        pytest.fail("entered")
    assert hooks(model) == 0


# hooks and refusals


def test_hooks_come_off_whatever_happens(model, lr):
    with features.capture(model, "*") as feats, torch.no_grad():
        assert hooks(model) > 0
        model.encode(lr)
        assert feats
    assert hooks(model) == 0
    with pytest.raises(ZeroDivisionError), features.capture(model, "head"):
        1 / 0  # noqa: B018
    assert hooks(model) == 0
    with pytest.raises(RuntimeError, match="channels"), features.capture(model, "body.*"):
        model(lr[:, :2])
    assert hooks(model) == 0


def test_output_that_is_no_tensor_is_refused_by_name(model, lr):
    with (
        pytest.raises(TypeError, match=r"'memory' \(LSTM\) gives a tuple of Tensor, tuple, expected one tensor"),
        features.capture(model, "memory"),
    ):
        model(lr)
    assert hooks(model) == 0


def test_layer_that_never_ran_is_named_on_leaving(model, lr):
    with (
        pytest.raises(RuntimeError, match=r"never called inside the `with`: 'spare'"),
        features.capture(model, ["head", "spare"]) as feats,
    ):
        model(lr)
    assert list(feats) == ["head"]
    with features.capture(model, "s*"), torch.no_grad():  # one of a pattern's matches is enough
        model(lr)
    with pytest.raises(RuntimeError, match="Was the model not run"), features.capture(model, "head"):
        pass


# examples


def test_reductions_say_what_an_example_is():
    feats = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    rows = {name: reduce(feats) for name, reduce in features.REDUCTIONS.items()}
    shapes = {name: tuple(examples.shape) for name, examples in rows.items()}
    assert shapes == {"pixels": (40, 3), "pictures": (2, 60), "pooled": (2, 3)}
    torch.testing.assert_close(rows["pixels"][20 + 5 * 2 + 4], feats[1, :, 2, 4])
    torch.testing.assert_close(rows["pictures"][1].view(3, 4, 5), feats[1])
    torch.testing.assert_close(rows["pooled"][1, 2], feats[1, 2].mean())
    torch.testing.assert_close(features.pixels_as_examples(feats, every=2)[6 + 3 + 1], feats[1, :, 2, 2])
    for reduce in features.REDUCTIONS.values():
        with pytest.raises(ValueError, match=r"\(3, 4, 5\), expected \(B, C, h, w\)"):
            reduce(feats[0])


def test_shuffled_pairs_never_pair_a_picture_with_itself():
    sizes = [(4, 6), (5, 3), (4, 4), (7, 7)]
    maps = [torch.full((1, 2, *size), float(i)) for i, size in enumerate(sizes)]
    pairs = list(features.shuffled_pairs((m, m + 10) for m in maps))
    assert [(int(x.max()), int(y.max()) - 10) for x, y in pairs] == [(1, 0), (2, 1), (3, 2), (0, 3)]
    assert [tuple(x.shape[-2:]) for x, _ in pairs] == [(4, 3), (4, 3), (4, 4), (4, 6)]
    assert all(x.shape == y.shape for x, y in pairs)
    with pytest.raises(ValueError, match="got 1 pictures"):
        list(features.shuffled_pairs([(maps[0], maps[0])]))


def test_shuffled_pairs_of_a_dict_that_is_refilled(model):
    lrs = [torch.rand(1, 3, 6 + i, 8 - i, generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def captured():
        with torch.no_grad(), features.capture(model, ["head", "body.1"]) as feats:
            for lr in lrs:
                model(lr)
                yield feats, feats

    (x, y), *_, (last_x, last_y) = features.shuffled_pairs(captured())
    assert list(x) == list(y) == ["head", "body.1"]
    torch.testing.assert_close(x["head"], model.head(lrs[1])[..., :6, :7].detach())
    torch.testing.assert_close(y["head"], model.head(lrs[0])[..., :6, :7].detach())
    torch.testing.assert_close(last_x["head"], model.head(lrs[0])[..., :6, :6].detach())
    torch.testing.assert_close(last_y["head"], model.head(lrs[2])[..., :6, :6].detach())
