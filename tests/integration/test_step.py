"""What a step does beside lowering the loss: statistics, skips, averages, at any world size."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import write_data_folder
from ranks import CPU, notices, run_ranks, series, small, train_on
from torch import Tensor

from scalewright.data.sample import Sample
from scalewright.errors import ConfigError, DataError
from scalewright.events import EVENTS_FILE, Metrics, read_events
from scalewright.model.mup import meta_model
from scalewright.model.statistics import Watch, noise_bins
from scalewright.objective.flow import FlowConfig, training_pack
from scalewright.train.checkpoint import load_weights, train_state
from scalewright.train.inputs import open_inputs
from scalewright.train.manifest import CHECKPOINTS, committed
from scalewright.train.parallel import current_world, local
from scalewright.train.run import RunConfig
from scalewright.train.statistics import activity_of
from scalewright.train.step import Counts, train_step
from scalewright.train.training import begin_training

TOLD = ("activation/", "attention/", "parameters/")


def told(folder: Path) -> dict[str, float]:
    """The statistics of the run's only statistics step."""
    events, _ = read_events(folder / EVENTS_FILE, 0, max_bytes=1 << 24)
    rows = [e.values for e in events if isinstance(e, Metrics)]
    (values,) = [row for row in rows if any(name.startswith("parameters/") for name in row)]
    return {name: value for name, value in values.items() if name.startswith(TOLD)}


def watched(*assignments: str) -> RunConfig:
    return small("log.statistics_every_steps=8", *assignments)


@pytest.fixture(scope="module")
def alone(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on(0, watched(), tmp_path_factory.mktemp("alone"), data_folder)


@pytest.mark.parametrize(
    ("world", "assignments"),
    [
        (0, ["parallel.activation_checkpointing=full"]),
        (0, ["parallel.activation_checkpointing=selective"]),
        (2, ["parallel.activation_checkpointing=selective", "parallel.compile=true"]),
        (4, ["parallel.workers=4", "parallel.shard_size=2"]),
    ],
    ids=["full", "selective", "compiled on two ranks", "two by two"],
)
def test_a_step_and_its_statistics_are_the_same_everywhere(
    alone: Path, world: int, assignments: list[str], data_folder: Path, tmp_path: Path
) -> None:
    folder = train_on(world, watched(*assignments), tmp_path, data_folder)
    for name in ("loss/train", "grad/norm", "eval/loss_all", "optim/weight_norm"):
        assert series(folder, name) == pytest.approx(series(alone, name), abs=1e-5), name
    before = _weights(alone)
    for name, weight in _weights(folder).items():
        assert (weight - before[name]).abs().max() <= 1e-5, name
    expected, found = told(alone), told(folder)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name


def test_statistics_speak_of_every_block_site_noise_level_and_kind(alone: Path) -> None:
    values = told(alone)
    assert {"attention/block_01/logit_max_above", "attention/gain_bound"} <= values.keys()
    for site in ("residual", "attention", "feed_forward", "attention_gate", "feed_forward_gate"):
        for place in ("block_00", "block_01", "noise_1"):
            for measure in ("min", "max", "norm", "rms"):
                assert f"activation/{site}/{place}/{measure}" in values
    for norm in ("weight_norm", "gradient_norm", "update_norm", "update_ratio"):
        assert values[f"parameters/blocks.qkv.weight/{norm}"] > 0
    above = values["attention/block_00/logit_max_above"]
    assert values["attention/block_00/logit_max_below"] <= above
    assert values["attention/block_00/logit_max_below"] <= values["attention/gain_bound"]


def pack_of(config: RunConfig, *, scale: float = 1.0, clips: int = 3) -> Any:
    generator = torch.Generator().manual_seed(0)
    samples = [
        Sample(i, scale * torch.randn(1 + i % 2, 32, 4, 4, generator=generator), torch.randn(3, 64))
        for i in range(clips)
    ]
    null = torch.zeros(1, 64)
    return training_pack(samples, null, FlowConfig(), config.model, seed=0, step=0)


def test_statistics_are_those_of_the_very_activations() -> None:
    """Against values that hooks saw in the same pass."""
    training = begin_training(small(), current_world(CPU))
    with torch.no_grad():
        for parameter in training.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    seen: dict[str, list[Tensor]] = {"attention": [], "feed_forward": [], "residual": []}
    for block in training.model.blocks:
        block.attention_out.register_forward_hook(lambda *a: seen["attention"].append(a[2]))
        block.ff_out.register_forward_hook(lambda *a: seen["feed_forward"].append(a[2]))
        block.register_forward_hook(lambda *a: seen["residual"].append(a[2][0]))
    batch = pack_of(training.config).batch
    activity = activity_of([training.model(batch, Watch(statistics=True)).seen])
    bins = noise_bins(batch.noise_level).repeat(2)[batch.modulation_rows]
    for site, name in enumerate(("residual", "attention", "feed_forward")):
        for index, values in enumerate(seen[name]):
            for noise in bins.unique().tolist():
                part = values[bins == noise]
                assert activity.low[index, site, noise] == part.min()
                assert activity.high[index, site, noise] == part.max()
                assert activity.squares[index, site, noise].item() == pytest.approx(
                    part.double().square().sum().item(), rel=1e-6
                )
                assert activity.count[index, site, noise] == part.numel()


def one_bad_step(rank: int, folder: Path) -> None:
    """A step in which only the last rank meets a number that is not finite."""
    config = small("optimizer.average_decay=0.9")
    training = begin_training(config, current_world(CPU))
    counts = Counts(elements=10_000, tokens=1000)
    good, bad = pack_of(config), pack_of(config, scale=float("nan"))
    train_step(training, [good], step=0, counts=counts, watch=Watch())
    before = {n: local(p).detach().clone() for n, p in training.model.named_parameters()}
    moments = [m["exp_avg"].to_local().clone() for m in training.optimizer.state.values()]
    pack = bad if rank == training.world.size - 1 else good
    result = train_step(training, [pack], step=1, counts=counts, watch=Watch(statistics=True))
    assert result.skipped == 1
    assert result.statistics is not None
    assert (result.statistics.parameters[:, 2] == 0).all()  # nothing was updated
    for name, parameter in training.model.named_parameters():
        assert torch.equal(local(parameter), before[name]), name
    for state, moment in zip(training.optimizer.state.values(), moments, strict=True):
        assert torch.equal(state["exp_avg"].to_local(), moment)
        assert state["step"] == 1
    after = train_step(training, [good], step=2, counts=counts, watch=Watch())
    assert after.skipped == 0
    assert train_state(training)["updates"] == 2
    (folder / f"{rank}").write_text("done")


def test_a_step_that_one_rank_cannot_take_is_skipped_by_all(tmp_path: Path) -> None:
    run_ranks(2, one_bad_step, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_skips_that_pile_up_rewind_the_run_and_leave_out_the_data(tmp_path: Path) -> None:
    """A run that met a broken clip ends like one that never had it in its order."""
    config = small(
        "steps=18", "checkpoint.every_steps=2", "checkpoint.keep=9", "guard.after_steps=4",
        "guard.window_steps=8", "guard.rewind_skips=1", "guard.rewind_window_steps=2",
        "guard.margin_steps=1", "guard.leave_out_steps=2", "log.every_steps=1",
        "guard.sigmas=12",
    )  # fmt: skip
    clean = write_data_folder(tmp_path / "clean", clips=600)
    order = open_inputs(config, clean).work.stages[0].order
    ids = sorted(
        planned.entry.id for step in range(60) for pack in order.packs(step) for planned in pack
    )
    broken = ids.index(order.packs(10)[0][0].entry.id)
    index = sorted(set(ids)).index(ids[broken])
    data = write_data_folder(tmp_path / "data", clips=600, scales={index: 1e4})
    met = train_on(2, config, tmp_path / "met", data)
    (skip,) = notices(met, "skip")
    assert skip["step"] == 11
    assert skip["loss"] > skip["loss_limit"]
    (rewind,) = notices(met, "rewind")
    assert rewind["left_out"] == {"begin": 9, "steps": 2}
    assert json.loads((met / "left_out.json").read_text()) == [rewind["left_out"]]
    spared = tmp_path / "spared"
    spared.mkdir()
    (spared / "left_out.json").write_text(json.dumps([rewind["left_out"]]))
    train_on(2, config, spared, data)
    assert not notices(spared, "skip")
    assert _weights(met).keys() == _weights(spared).keys()
    for name, weight in _weights(met).items():
        assert torch.equal(weight, _weights(spared)[name]), name


def _weights(folder: Path, *, averaged: bool = False, **changes: Any) -> dict[str, Tensor]:
    model = meta_model(replace(small().model, **changes)).to_empty(device=CPU)
    load_weights(committed(folder / CHECKPOINTS)[0], model, averaged=averaged)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_the_average_survives_sharding_resuming_and_resizing(
    data_folder: Path, tmp_path: Path
) -> None:
    config = small("optimizer.average_decay=0.8")
    whole = train_on(0, config, tmp_path / "whole", data_folder)
    part = tmp_path / "part"
    train_on(2, replace(config, steps=12), part, data_folder)
    for later in committed(part / CHECKPOINTS)[:-1]:  # back to step 4, then on alone
        later.rename(later.with_name(f"{later.name}.gone"))
    (part / "summary.json").unlink()
    train_on(0, config, part, data_folder, attempt=2)
    one, other = _weights(whole, averaged=True), _weights(part, averaged=True)
    for name in one:
        assert (one[name] - other[name]).abs().max() <= 1e-4, name
    last = _weights(whole)
    assert max((one[name] - last[name]).abs().max().item() for name in one) > 1e-3


@pytest.mark.parametrize("world", [1, 2])
def test_validating_with_the_average_leaves_the_training_as_it_was(
    world: int, data_folder: Path, tmp_path: Path
) -> None:
    config = small("optimizer.average_decay=0.9", "log.validate_every_steps=3", "log.every_steps=1")
    alone = train_on(0, config, tmp_path / "alone", data_folder)
    ranks = train_on(world, config, tmp_path / "ranks", data_folder)
    for name in ("loss/train", "eval/loss_all"):
        assert series(ranks, name) == pytest.approx(series(alone, name), abs=1e-5), name
    expected = _weights(alone)
    for name, weight in _weights(ranks).items():
        assert (weight - expected[name]).abs().max() <= 1e-5, name


def test_frozen_weights_stay_and_have_no_optimizer_state(data_folder: Path, tmp_path: Path) -> None:
    config = small("optimizer.freeze=['blocks.0.*', 'text_in.*']")
    training = begin_training(config, current_world(CPU))
    initial = {n: p.detach().clone() for n, p in training.model.named_parameters()}
    moving = {n for n, p in training.model.named_parameters() if p.requires_grad}
    assert len(train_state(training)["exp_avg"]) == len(moving) < len(initial)
    after = _weights(train_on(2, config, tmp_path, data_folder))
    for name in initial:
        same = torch.equal(after[name], initial[name])
        assert same is (name not in moving), name


def test_a_penalty_lowers_the_activations(data_folder: Path, tmp_path: Path) -> None:
    plain = told(train_on(0, watched(), tmp_path / "plain", data_folder))
    config = watched("activation_penalty.weight=1.0", "activation_penalty.every_steps=2")
    pressed = told(train_on(0, config, tmp_path / "pressed", data_folder))
    for block in ("block_00", "block_01"):
        name = f"activation/residual/{block}/rms"
        assert pressed[name] < plain[name]


def test_stages_train_alike_on_one_and_two_ranks(data_folder: Path, tmp_path: Path) -> None:
    """Pictures, then videos in groups, given or noised first frames, other positions."""
    config = small(
        'stages=[{clips = {kind = "picture"}}, {begin = 5, clips = {kind = "video"}, '
        'attention = "local_global", groups = [1, 1, 2], rope_scale = [1.0, 2.0, 2.0], '
        "image_to_video = 0.7, shift_tokens = 8}]",
        "activation_penalty.weight=0.1", "activation_penalty.every_steps=2",
    )  # fmt: skip
    one = train_on(0, config, tmp_path / "one", data_folder)
    two = train_on(2, config, tmp_path / "two", data_folder)
    for name in ("loss/train", "grad/norm", "eval/loss_all"):
        assert series(two, name) == pytest.approx(series(one, name), abs=1e-5), name
    expected = _weights(one)
    for name, weight in _weights(two).items():
        assert (weight - expected[name]).abs().max() <= 1e-4, name  # Adam blows rounding up
    inputs = open_inputs(config, data_folder)
    assert all(len(pack) for step in (4, 5) for pack in inputs.work.at(step).order.packs(step))
    kinds = [
        {x.entry.is_video for p in inputs.work.at(s).order.packs(s) for x in p}
        for s in (0, 4, 5, 11)
    ]
    assert kinds == [{False}, {False}, {True}, {True}]


def test_a_stage_without_clips_is_named(data_folder: Path) -> None:
    config = small("stages=[{clips = {min_latent_area = 10000}}]")
    with pytest.raises(DataError, match="no training clip for the stage from step 0"):
        open_inputs(config, data_folder)


def test_scores_that_no_clip_has_are_named(data_folder: Path) -> None:
    config = small("model.scores=['motion']")
    with pytest.raises(ConfigError, match=r"model\.scores names motion, which no clip has"):
        open_inputs(config, data_folder)
