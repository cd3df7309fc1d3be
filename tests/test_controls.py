"""Controls: an untrained twin, the picture taken out, and where weights come from."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from srlab import controls, models, weights


def tiny(seed=0, **sizes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.build("edsr-tiny", "spconv", (2,), channels=6, blocks=3, **sizes).eval()


def test_an_untrained_twin_has_the_shape_and_none_of_the_weights():
    model = tiny()
    twin = controls.untrained(model, seed=7)
    before, after = model.state_dict(), twin.state_dict()
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before if before[name].ndim)
    again = controls.untrained(model, seed=7).state_dict()
    assert all(torch.equal(after[name], again[name]) for name in after)


def test_the_untrained_twin_of_somebodys_model_names_what_stays_trained():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gain = nn.Conv2d(3, 4, 3), nn.Parameter(torch.full((4,), 2.0))

    model = Own()
    with pytest.warns(UserWarning, match="gain"):
        twin = controls.untrained(model)
    assert not torch.equal(twin.conv.weight, model.conv.weight)
    assert torch.equal(twin.gain, model.gain)


def test_what_linear_filters_of_the_picture_explain_is_taken_out(pictures):
    """Features made of 5 x 5 filters leave nothing; an added square of the picture is what remains."""
    generator = torch.Generator().manual_seed(3)
    filters = torch.randn(4, 3, 5, 5, generator=generator)

    def read(lr):
        filtered = F.conv2d(F.pad(lr, [2] * 4, mode="replicate"), filters)
        return {"linear": filtered, "squared": filtered + 5 * lr.square().sum(1, keepdim=True)}

    without = controls.TakenOut(read, ["linear", "squared"], pictures)
    left = without(pictures[0])
    assert left["linear"].abs().max() < 1e-3
    assert left["squared"].std() > 0.05
    assert left["squared"].std() < 0.5 * read(pictures[0])["squared"].std()


def test_classes_of_provenance_on_weights_of_known_origin():
    start = tiny(0)
    moved, fine_tuned = tiny(0), tiny(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for model, far in ((moved, 4.0), (fine_tuned, 0.3)):
            for weight in model.encoder.parameters():
                weight += far * weight.std() * torch.randn(weight.shape, generator=generator)
    a, b, c = (controls.weight_cosines(start, model) for model in (fine_tuned, moved, tiny(9)))
    assert [a.kind, b.kind, c.kind] == ["A", "B", "C"]
    assert a.hidden == pytest.approx(1 / math.sqrt(1 + 0.3**2), abs=0.02)
    assert b.hidden == pytest.approx(1 / math.sqrt(1 + 4.0**2), abs=0.1)
    assert controls.weight_cosines(start, start).hidden == pytest.approx(1)
    assert a.layers == 7  # two convolutions in each of three blocks, one after them


def test_chance_is_as_large_as_independent_weights_are_alike():
    found = [controls.weight_cosines(tiny(i), tiny(i + 1)) for i in range(0, 40, 2)]
    beyond = sum(pair.hidden > pair.hidden_null for pair in found)
    assert beyond <= 2, "at p < 1 / 200 hardly any of 20 independent pairs lies beyond chance"
    assert found[0].expected == pytest.approx(0.6745 / math.sqrt(6 * 6 * 9))
    with pytest.raises(ValueError, match="same architecture"):
        controls.weight_cosines(tiny(), models.build("smfanet", "spconv", (2,), channels=8, blocks=1))


@pytest.mark.benchmark_data(
    "smfanet-df2k-x2", "smfanet-df2k-x3", "smfanet-div2k-x2", "imdn-x2", "imdn-x4", "bsrn-x3", "bsrn-x4"
)
def test_provenance_of_published_weights_is_what_their_cards_say():
    pairs = [
        ("smfanet-df2k-x2", "smfanet-df2k-x3"),
        ("imdn-x2", "imdn-x4"),
        ("bsrn-x3", "bsrn-x4"),
        ("smfanet-df2k-x2", "smfanet-div2k-x2"),
    ]
    found = {pair: controls.weight_cosines(*map(weights.load, pair)) for pair in pairs}
    for pair in pairs[:3]:
        assert found[pair].kind == weights.card(pair[0]).provenance
    assert found[pairs[3]].kind == "B", "the ceiling shares its start, too"
    assert 0.8 < found[pairs[1]].hidden < 0.95
    assert found[pairs[0]].hidden < 0.15 < 0.8 < found[pairs[0]].first
