"""Ranks that compute wrongly and say nothing, in real training: found, named, and nobody else."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import CPU, notices, run_ranks, small, train_on
from torch import Tensor

from scalewright.errors import CorruptionError
from scalewright.train import worker
from scalewright.train.manifest import CHECKPOINTS, MANIFEST, committed
from scalewright.train.place import RunPlace
from scalewright.train.run import RunConfig
from scalewright.train.saving import Checkpointer
from scalewright.train.worker import train

WRONG = 1


def checked(*assignments: str) -> RunConfig:
    return small(
        "data.packs_per_step=6", "parallel.workers=6", "replay.every_steps=1",
        "checkpoint.every_steps=6", "log.every_steps=6", "log.validate_every_steps=100",
        "optimizer.average_decay=0.9", *assignments,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the ranks have: more are slow where tests share the processor."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Flip(torch.autograd.Function):
    """Passes values on, one bit of one of them turned over, in the forward pass or backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backward: bool) -> Tensor:
        ctx.backward = backward
        return x.clone() if backward else flipped(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return flipped(gradient) if ctx.backward else gradient, None


def flipped(x: Tensor) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    x.view(torch.int32).view(-1)[x.numel() // 2] ^= 1 << 21
    return x


@contextmanager
def faulty(rank: int, *, backward: bool, from_step: int, chance: float) -> Iterator[None]:
    """The matrix products of the rank `WRONG` are wrong from a step on, each by chance."""
    linear, take_step, now = torch.nn.functional.linear, worker.take_step, [0]
    generator = random.Random(5)

    def wrong(*arguments: Any) -> Tensor:
        out = linear(*arguments)
        if now[0] >= from_step and out.requires_grad and generator.random() < chance:
            return Flip.apply(out, backward)
        return out

    def noted(*arguments: Any, step: int, **named: Any) -> Any:
        now[0] = step
        return take_step(*arguments, step=step, **named)

    with pytest.MonkeyPatch.context() as patch:
        if rank == WRONG:
            patch.setattr(torch.nn.functional, "linear", wrong)
            patch.setattr(worker, "take_step", noted)
        yield


def outcome(rank: int, config: RunConfig, folder: Path, data: Path) -> None:
    """Train, and note how it ended for this rank."""
    found: dict[str, Any] = {}
    try:
        train(config, RunPlace(folder, data, 1), CPU)
    except CorruptionError as error:
        found = {"ranks": error.ranks, "step": error.step, "confidence": error.confidence}
    (folder / f"outcome-{rank}.json").write_text(json.dumps(found))


def outcomes(folder: Path, world: int) -> dict[str, Any]:
    """How it ended, the same for all ranks."""
    found = [json.loads((folder / f"outcome-{rank}.json").read_text()) for rank in range(world)]
    assert all(each == found[0] for each in found)
    return found[0]


# One matrix product in so many is wrong at random: about every third pass.
FAULTS: dict[str, dict[str, Any]] = {
    "forward": {"backward": False, "from_step": 0, "chance": 1.0},
    "backward": {"backward": True, "from_step": 0, "chance": 1.0},
    "later": {"backward": False, "from_step": 4, "chance": 1.0},
    "rarely": {"backward": False, "from_step": 0, "chance": 0.02},
    "rarely-backward": {"backward": True, "from_step": 2, "chance": 0.02},
}


def faults_rank(rank: int, folder: Path, data: Path, names: list[str]) -> None:
    for name in names:
        with faulty(rank, **FAULTS[name]):
            outcome(rank, checked("replay.every_steps=2"), folder / name, data)
    if len(names) == len(FAULTS):
        torch.set_num_threads(2 if rank == WRONG else 1)
        with faulty(rank, **FAULTS["forward"]):
            outcome(rank, checked("steps=3"), folder / "alone", data)


def run_faults(world: int, folder: Path, data: Path, names: list[str]) -> None:
    for name in (*names, "alone"):
        (folder / name).mkdir()
    run_ranks(world, faults_rank, folder, data, names)


def test_one_of_three_is_named_whatever_is_wrong_with_it(tmp_path: Path, data_folder: Path) -> None:
    run_faults(3, tmp_path, data_folder, list(FAULTS))
    for name in FAULTS:
        found = outcomes(tmp_path / name, 3)
        assert (found["ranks"], found["confidence"]) == ([WRONG], 1.0), name
        (told,) = notices(tmp_path / name, "corruption")
        assert (told["ranks"], told["step"]) == ([WRONG], found["step"])
        if name != "rarely":  # what is hidden by a small gate still shows in gradients of weights
            seen_forward = "velocity" in told["differing"]
            assert seen_forward == ("backward" not in name), told["differing"]
        assert not notices(tmp_path / name, "replay")[-1]["passed"]
    assert outcomes(tmp_path / "later", 3)["step"] == 6, "the first check after step 4 of 0, 1, ..."
    assert [each["passed"] for each in notices(tmp_path / "later", "replay")] == [True, True, False]
    # Another number of threads is another kind: rank 1 is held against itself alone.
    assert outcomes(tmp_path / "alone", 3) == {}
    assert [each["alone"] for each in notices(tmp_path / "alone", "replay")] == [[WRONG]] * 3


def test_of_two_the_one_that_contradicts_itself_is_named_else_both(
    tmp_path: Path, data_folder: Path
) -> None:
    run_faults(2, tmp_path, data_folder, ["forward", "rarely"])
    always, rarely = (outcomes(tmp_path / name, 2) for name in ("forward", "rarely"))
    assert (always["ranks"], always["confidence"]) == ([0, 1], 0.5)
    assert (rarely["ranks"], rarely["confidence"]) == ([WRONG], 1.0)


def healthy_rank(rank: int, folder: Path, data: Path, settings: dict[str, tuple[str, ...]]) -> None:
    for name, assignments in settings.items():
        train(checked(*assignments), RunPlace(folder / name, data, 1), CPU)


def contents(folder: Path) -> dict[str, Any]:
    """Hashes of the weights, moments and averages of the last checkpoint."""
    manifest = json.loads((committed(folder / CHECKPOINTS)[0] / MANIFEST).read_text())
    return {name: each for name, each in manifest["files"].items() if name.endswith(".distcp")}


OFF = "replay.every_steps=0"
VARIED = (
    "log.statistics_every_steps=3", "activation_penalty.weight=0.1",
    "activation_penalty.every_steps=2", "parallel.activation_checkpointing=selective",
    "flow.image_to_video=1.0", "parallel.shard_size=1",
    'optimizer.freeze=["visual_in.*", "text_in.*", "blocks.0.qkv.*"]',
)  # fmt: skip


@pytest.mark.parametrize(("world", "varied"), [(0, ()), (1, VARIED), (2, ()), (3, VARIED)])
def test_training_is_bitwise_the_same_with_checks_and_nobody_is_accused(
    world: int, varied: tuple[str, ...], tmp_path: Path, data_folder: Path
) -> None:
    settings = {"off": (*varied, OFF), "on": varied}
    for name in settings:
        (tmp_path / name).mkdir()
    if world:
        run_ranks(world, healthy_rank, tmp_path, data_folder, settings)
    else:
        healthy_rank(0, tmp_path, data_folder, settings)
    off, on = tmp_path / "off", tmp_path / "on"
    assert contents(off) == contents(on)
    assert len(contents(on)) == max(1, world)
    assert notices(off, "replay") == []
    told = notices(on, "replay")
    assert [each["step"] for each in told] == list(range(1, 13))
    assert all(each["passed"] for each in told)
    assert notices(on, "corruption") == []


def test_compiled_ranks_rehearse_without_compilation(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler itself is left out: it takes a minute, and is what a rehearsal is without."""
    monkeypatch.setattr(torch, "compile", lambda run, **_: run)
    config = checked("steps=3", "parallel.compile=true")
    folder = train_on(0, config, tmp_path / "run", data_folder)
    told = notices(folder, "replay")
    assert [each["passed"] for each in told] == [True] * 3
    assert told[0]["covers"] == "a rehearsal without compilation: forward and backward"


def test_what_has_passed_is_trusted_and_what_has_not_is_not(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted: list[int] = []
    trust = Checkpointer.trust

    def noted(checkpoints: Checkpointer, step: int) -> None:
        trusted.append(step)
        trust(checkpoints, step)

    monkeypatch.setattr(Checkpointer, "trust", noted)
    config = checked("replay.every_steps=5")
    train_on(0, config, tmp_path / "run", data_folder)
    assert trusted == [5, 10, 12]
    trusted.clear()
    with (
        faulty(WRONG, backward=False, from_step=7, chance=0.02),
        pytest.raises(CorruptionError, match="rank 0 contradicts itself"),
    ):
        train_on(0, replace(config, steps=40), tmp_path / "faulty", data_folder)
    assert trusted[:1] == [5]
    (told,) = notices(tmp_path / "faulty", "corruption")
    assert told["step"] not in trusted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("workspace", [":4096:8", None])
@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
def test_a_card_agrees_with_itself(
    compute: str,
    workspace: str | None,
    tmp_path: Path,
    data_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With gradients where sums have a fixed order, else of the forward pass alone."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if workspace is not None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
    config = checked(
        f"parallel.compute={compute}", "model.head_dim=16", "model.width=64",
        "log.statistics_every_steps=3", "activation_penalty.weight=0.1",
    )  # fmt: skip
    train(config, RunPlace(tmp_path, data_folder, 1), torch.device("cuda"))
    told = notices(tmp_path, "replay")
    assert len(told) == config.steps
    assert all(each["passed"] for each in told), notices(tmp_path, "corruption")
    if workspace is None:
        assert "forward alone" in told[0]["covers"]
    assert not torch.are_deterministic_algorithms_enabled()
