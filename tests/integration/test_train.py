"""Training in real processes: the same numbers at every world size and after every resume."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import CPU, run_ranks, small, train_on
from torch.distributed.tensor import DTensor

from scalewright.errors import ConfigError, DivergedError
from scalewright.events import EVENTS_FILE, Metrics, read_events
from scalewright.model.mup import meta_model, param_rules
from scalewright.model.packed import PackItem, pack
from scalewright.train.checkpoint import load_weights
from scalewright.train.manifest import CHECKPOINTS, committed, newest_verified
from scalewright.train.parallel import build_model, current_world
from scalewright.train.place import SUMMARY

Run = Callable[[int], Path]


@pytest.fixture(scope="module")
def run_on(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The whole run of `small()` on so many ranks (0: no process group), made once each."""
    made: dict[int, Path] = {}

    def run(world: int) -> Path:
        if world not in made:
            folder = tmp_path_factory.mktemp(f"world{world}")
            made[world] = train_on(world, small(), folder, data_folder)
        return made[world]

    return run


def series(folder: Path, name: str) -> list[float]:
    events, _ = read_events(folder / EVENTS_FILE, 0, max_bytes=1 << 24)
    return [e.values[name] for e in events if isinstance(e, Metrics) and name in e.values]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    model = meta_model(small().model).to_empty(device=CPU)
    load_weights(checkpoint, model)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return weights(committed(folder / CHECKPOINTS)[0])


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("world", [1, 2])
def test_every_world_size_gives_the_same_losses(run_on: Run, world: int) -> None:
    alone, shared = run_on(0), run_on(world)
    for name in ("loss/train", "grad/norm", "eval/loss_picture", "eval/loss_video"):
        limit = 1e-5 if name == "grad/norm" else 1e-6
        assert series(shared, name) == pytest.approx(series(alone, name), abs=limit), name
    assert difference(last_weights(alone), last_weights(shared)) <= 1e-5


def save_initial_weights(rank: int, folder: Path) -> None:
    config = small()
    model = build_model(config, param_rules(config.model), current_world(CPU))
    whole = {}
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        whole[name] = parameter.full_tensor().detach()
    if rank == 0:
        torch.save(whole, folder / f"{current_world(CPU).size}.pt")


def test_initial_weights_are_bitwise_equal_at_every_world_size(tmp_path: Path) -> None:
    for world in (1, 2, 3):
        run_ranks(world, save_initial_weights, tmp_path)
    one, two, three = (torch.load(tmp_path / f"{world}.pt") for world in (1, 2, 3))
    assert difference(one, two) == difference(one, three) == 0
    assert any(value.std() > 0 for value in one.values())


@pytest.mark.parametrize(("world", "limit"), [(2, 0.0), (1, 1e-5), (4, 1e-5)])
def test_resume_equals_the_uninterrupted_run(
    run_on: Run, data_folder: Path, tmp_path: Path, world: int, limit: float
) -> None:
    whole = run_on(2)
    shutil.copytree(whole / CHECKPOINTS / "step-00000004", tmp_path / CHECKPOINTS / "step-00000004")
    resumed = train_on(world, small(), tmp_path, data_folder, attempt=2)
    assert difference(last_weights(whole), last_weights(resumed)) <= limit
    assert series(resumed, "loss/train") == pytest.approx(
        series(whole, "loss/train")[2:], abs=limit
    )


def test_a_damaged_checkpoint_is_passed_over(
    run_on: Run, data_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run_on(0)
    shutil.copytree(whole / CHECKPOINTS, tmp_path / CHECKPOINTS)
    newest, older = committed(tmp_path / CHECKPOINTS)[:2]
    shard = newest / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    found = newest_verified(tmp_path / CHECKPOINTS)
    assert found is not None
    assert found[0] == older
    assert "damaged" in caplog.text
    (older / "manifest.json").unlink()
    train_on(0, small(), tmp_path, data_folder, attempt=2)
    assert difference(last_weights(whole), last_weights(tmp_path)) == 0
    assert newest_verified(tmp_path / CHECKPOINTS)[0] == newest  # type: ignore[index]
    # The damaged ones are out of the way: they neither count as kept nor come back.
    names = sorted(path.name for path in (tmp_path / CHECKPOINTS).glob("step-*"))
    assert names == [
        "step-00000004", "step-00000008", "step-00000008.damaged-2",
        "step-00000012", "step-00000012.damaged-2",
    ]  # fmt: skip


def test_only_the_newest_checkpoints_are_kept(run_on: Run) -> None:
    names = [path.name for path in committed(run_on(0) / CHECKPOINTS)]
    assert names == ["step-00000012", "step-00000008", "step-00000004"]
    assert not list((run_on(0) / CHECKPOINTS).glob("*.part"))


def test_a_run_of_other_settings_is_not_gone_on_with(run_on: Run, data_folder: Path) -> None:
    before = (run_on(0) / SUMMARY).read_bytes()
    with pytest.raises(ConfigError, match=r"optimizer\.lr_peak: 0\.008 then, 0\.001 now"):
        train_on(0, small("optimizer.lr_peak=1e-3"), run_on(0), data_folder)
    assert (run_on(0) / SUMMARY).read_bytes() == before


@pytest.mark.parametrize(
    ("skip", "message"),
    [("true", "were skipped, the first of them step 2"), ("false", "no longer finite")],
)
def test_divergence_stops_the_run_before_it_is_saved(
    skip: str, message: str, data_folder: Path, tmp_path: Path
) -> None:
    config = small("optimizer.lr_peak=1e30", "log.every_steps=100", f"guard.skip={skip}")
    with pytest.raises(DivergedError, match=message):
        train_on(0, config, tmp_path, data_folder)
    assert committed(tmp_path / CHECKPOINTS) == []
    assert not (tmp_path / SUMMARY).exists()


def save_dtypes_seen(rank: int, folder: Path) -> None:
    config = small("parallel.compute=bfloat16")
    model = build_model(config, param_rules(config.model), current_world(CPU))
    seen = {}

    def look(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        tokens, context, _ = inputs
        read = (tokens, context.time, context.cosine, context.sine)
        seen[type(module).__name__] = [str(x.dtype) for x in read]

    model.blocks[0].register_forward_pre_hook(look)
    items = [PackItem(torch.randn(1, 32, 4, 4), torch.randn(2, 64), 0.9973)]
    assert model(pack(items, config.model)).velocity.dtype == torch.bfloat16
    (folder / "dtypes.json").write_text(json.dumps(seen))


def test_half_precision_spares_noise_levels_and_rotary_tables(tmp_path: Path) -> None:
    run_ranks(1, save_dtypes_seen, tmp_path)
    seen = json.loads((tmp_path / "dtypes.json").read_text())
    (dtypes,) = (found for name, found in seen.items() if name.endswith("Block"))
    # The stream and the time embedding are half; cosine and sine are not.
    assert dtypes == ["torch.bfloat16", "torch.bfloat16", "torch.float32", "torch.float32"]


def test_recomputation_and_half_precision_stay_close(
    run_on: Run, data_folder: Path, tmp_path: Path
) -> None:
    saving = train_on(
        0, small("parallel.activation_checkpointing=full"), tmp_path / "ac", data_folder
    )
    assert difference(last_weights(run_on(0)), last_weights(saving)) == 0
    half = train_on(1, small("parallel.compute=bfloat16"), tmp_path / "half", data_folder)
    assert series(half, "loss/train") == pytest.approx(series(run_on(0), "loss/train"), rel=0.03)
    assert series(half, "loss/train") != series(run_on(0), "loss/train")
