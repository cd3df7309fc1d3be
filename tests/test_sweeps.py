"""Sweeps: every run once, whatever the number of processes and however often the command is repeated."""

import dataclasses

import pytest
import torch

from srlab import images, sweeps, weights
from srlab.recipes import Recipe

TINY = Recipe("edsr-nano", "spconv", scales=(2,), sizes={"channels": 8, "blocks": 1}, steps=3, micro_batch=1,
              micro_batches=1, patch=8, ema=0.0, learning_rate=1e-3, log_every=1)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Two independent runs, and one that starts from the first."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in "ab":
        images.save_image(folder / f"{name}.png", torch.rand(3, 48, 48))
    recipe = dataclasses.replace(TINY, data=str(folder))
    x3 = dataclasses.replace(recipe, scales=(3,), seed=1)
    return [("x2", recipe), ("x3", x3), ("x3-from-x2", dataclasses.replace(x3, start_from="x2"))]


def states(outcomes):
    return {outcome.name: outcome.state for outcome in outcomes}


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("name", list(sweeps.SWEEPS))
def test_the_parts_together_are_the_sweep_and_no_run_waits_for_another_part(name, parts):
    sweep = sweeps.named(name)
    shares = [sweeps.part_of(sweep, f"{part}/{parts}") for part in range(1, parts + 1)]
    assert sorted(run for share in shares for run, _ in share) == sorted(run for run, _ in sweep)
    for share in shares:
        seen = set()
        for run, recipe in share:
            assert recipe.start_from in seen | {""}
            seen.add(run)


def test_a_sweep_is_done_once_and_the_second_command_finds_it_done(tiny, tmp_path, capsys):
    first = sweeps.run(tiny, tmp_path, part="1/2", accelerator="cpu")
    assert states(first) == {"x2": "finished", "x3-from-x2": "finished"}
    everything = sweeps.run(tiny, tmp_path, accelerator="cpu")
    assert states(everything) == {"x2": "was finished", "x3": "finished", "x3-from-x2": "was finished"}
    assert "3 of 3: x3-from-x2" in capsys.readouterr().out


def test_a_run_that_starts_from_another_has_its_encoder_and_says_so(tiny, tmp_path):
    once = [(name, dataclasses.replace(recipe, learning_rate=1e-9, steps=1)) for name, recipe in tiny]
    sweeps.run(once, tmp_path, accelerator="cpu")
    x2, alone, tuned = (weights.load_checkpoint(tmp_path / name / "model.safetensors") for name, _ in tiny)
    for name, tensor in tuned.encoder.state_dict().items():
        torch.testing.assert_close(tensor, x2.encoder.state_dict()[name], atol=1e-6, rtol=0)
        assert not torch.allclose(tensor, alone.encoder.state_dict()[name], atol=1e-6, rtol=0)
    note = weights._card_of_file(tmp_path / "x3-from-x2" / "model.safetensors").notes["start"]
    assert note["sha256"]
    assert (note["upsampler_copied"], note["upsampler_new"]) == (0, 2)


def test_a_run_that_was_begun_goes_on_and_one_that_fails_stops_no_other(tiny, tmp_path):
    from srlab import train

    train.fit(tiny[1][1], tmp_path / "x3", stop_after=1, accelerator="cpu")
    wild = dataclasses.replace(tiny[0][1], learning_rate=0.9, fft_weight=3e38)
    outcomes = sweeps.run([("wild", wild), tiny[1]], tmp_path, accelerator="cpu")
    assert states(outcomes) == {"wild": "failed", "x3": "finished"}
    assert "diverged" in outcomes[0].message
    assert [row.split(",")[0] for row in (tmp_path / "x3" / "log.csv").read_text().split()[1:]] == ["1", "2", "3"]


def test_a_finished_folder_of_another_recipe_is_not_taken_for_this_one(tiny, tmp_path):
    sweeps.run(tiny[:1], tmp_path, accelerator="cpu")
    other = [("x2", dataclasses.replace(tiny[0][1], learning_rate=2e-3))]
    (outcome,) = sweeps.run(other, tmp_path, accelerator="cpu")
    assert outcome.state == "failed"
    assert "another recipe" in outcome.message


def test_weights_that_another_recipe_left_in_a_folder_are_not_this_one_s(tiny, tmp_path):
    """Even where recipe.json is this one's, since a training with it has begun there."""
    from srlab import train

    recipe = tiny[0][1]
    other = dataclasses.replace(recipe, seed=7)
    train.fit(recipe, tmp_path / "x2", accelerator="cpu")
    (tmp_path / "x2" / "last.ckpt").unlink()
    train.fit(other, tmp_path / "x2", accelerator="cpu", stop_after=1)
    assert sweeps.is_finished(recipe, tmp_path / "x2")
    assert not sweeps.is_finished(other, tmp_path / "x2")
    assert states(sweeps.run([("x2", other)], tmp_path, accelerator="cpu")) == {"x2": "finished"}
    assert sweeps.is_finished(other, tmp_path / "x2")
    assert not sweeps.is_finished(other, tmp_path / "nowhere")


def test_whatever_a_run_dies_of_the_others_are_trained_but_a_lost_team_ends_them_all(tiny, tmp_path, monkeypatch):
    from srlab import train

    def dying(of):
        fit = train.fit

        def fit_or_die(recipe, folder, **options):
            if folder.name == "x2":
                raise of
            return fit(recipe, folder, **options)

        return fit_or_die

    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", dying(RuntimeError("not enough memory")))
        outcomes = sweeps.run(tiny[:2], tmp_path, accelerator="cpu")
        assert states(outcomes) == {"x2": "failed", "x3": "finished"}
        assert outcomes[0].message == "RuntimeError: not enough memory"
    monkeypatch.setattr(train, "fit", dying(train.TeamError("the others are gone")))
    with pytest.raises(train.TeamError):
        sweeps.run(tiny[:2], tmp_path, accelerator="cpu")


def test_a_finished_sweep_is_bundled_as_weights_with_their_logs_and_an_unfinished_one_is_not(tiny, tmp_path):
    sweeps.run(tiny[:1], tmp_path / "runs", accelerator="cpu")
    with pytest.raises(ValueError, match="lacks finished runs of these recipes: x3, x3-from-x2"):
        sweeps.bundle(tiny, tmp_path / "runs", tmp_path / "weights")
    assert not (tmp_path / "weights").exists()
    sweeps.run(tiny, tmp_path / "runs", accelerator="cpu")
    files = sweeps.bundle(tiny, tmp_path / "runs", tmp_path / "weights", prefix="my-")
    assert {file.name for file in files} == {f"my-{name}.{kind}" for name, _ in tiny for kind in ("csv", "safetensors")}
    for name, _ in tiny:
        log = (tmp_path / "weights" / f"my-{name}.csv").read_text()
        assert log == (tmp_path / "runs" / name / "log.csv").read_text()
        model = weights.load_checkpoint(tmp_path / "weights" / f"my-{name}.safetensors")
        trained = weights.load_checkpoint(tmp_path / "runs" / name / "model.safetensors")
        assert all(map(torch.equal, model.parameters(), trained.parameters()))


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "-1/2"])
def test_a_part_that_is_none_is_refused(part):
    with pytest.raises(ValueError, match="expected I/N"):
        sweeps.part_of(sweeps.SWEEPS["library"], part)


def test_an_impossible_list_is_refused_before_any_work(tiny):
    with pytest.raises(ValueError, match="stands after"):
        sweeps.part_of(list(reversed(tiny)))
    with pytest.raises(ValueError, match="two runs are called"):
        sweeps.part_of([tiny[0], tiny[0]])
    with pytest.raises(ValueError, match="did you mean 'library'"):
        sweeps.named("libary")


def test_the_library_has_equal_steps_and_each_road_twice():
    runs = dict(sweeps.SWEEPS["library"])
    assert len({(recipe.steps, recipe.precision, recipe.data) for recipe in runs.values()}) == 1
    assert len(runs) == len(set(runs.values())) == 11
    for seed in (0, 1):
        mine = [recipe for recipe in runs.values() if recipe.seed == seed]
        assert sorted(r.scales for r in mine if r.upsampler == "spconv" and len(r.scales) == 1) == [(2,), (3,), (4,)]
        assert {r.upsampler for r in mine if r.scales == (2, 3, 4)} >= {"igconv", "igconv+"}
