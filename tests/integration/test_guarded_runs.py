"""Runs that meet broken clips: what they skip, where they go back to, what is never lost."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from folders import write_data_folder
from ranks import notices, small, train_on

from scalewright.errors import DivergedError
from scalewright.train.inputs import open_inputs
from scalewright.train.manifest import CHECKPOINTS, committed
from scalewright.train.run import RunConfig

GUARDED = (
    "guard.after_steps=4", "guard.window_steps=8", "guard.sigmas=12", "guard.margin_steps=1",
    "guard.leave_out_steps=2", "checkpoint.every_steps=2", "log.every_steps=1",
    "log.validate_every_steps=100",
)  # fmt: skip


def guarded(*assignments: str) -> RunConfig:
    return small(*GUARDED, *assignments)


def data_broken_at(steps: Sequence[int], config: RunConfig, folder: Path, clips: int = 900) -> Path:
    """A folder of which one clip in the data of each of these steps is a thousand times too large.

    So many clips that none comes twice in the run.
    """
    order = open_inputs(config, write_data_folder(folder / "clean", clips=clips)).work.stages[0]
    broken = {order.order.packs(step)[0][0].entry.id - 1: 1e3 for step in steps}
    return write_data_folder(folder / "data", clips=clips, scales=broken)


def test_a_run_may_go_back_twice_in_one_attempt(tmp_path: Path) -> None:
    config = guarded(
        "steps=26", "guard.rewind_skips=1", "guard.rewind_window_steps=2", "checkpoint.keep=9"
    )
    folder = train_on(0, config, tmp_path / "run", data_broken_at([9, 18], config, tmp_path))
    rewinds = notices(folder, "rewind")
    assert [rewind["left_out"]["steps"] for rewind in rewinds] == [2, 2]
    assert len(json.loads((folder / "left_out.json").read_text())) == 2
    assert len(notices(folder, "skip")) == 2
    assert notices(folder, "done")


def test_a_checkpoint_to_go_back_to_outlives_the_newest(tmp_path: Path) -> None:
    config = guarded(
        "steps=30", "guard.rewind_skips=2", "guard.rewind_window_steps=9", "guard.margin_steps=3",
        "guard.leave_out_steps=12", "checkpoint.keep=2",
    )  # fmt: skip
    folder = train_on(0, config, tmp_path / "run", data_broken_at([14, 21], config, tmp_path))
    (rewind,) = notices(folder, "rewind")
    assert rewind["to_step"] == 11
    assert notices(folder, "done")


def test_a_run_that_cannot_go_back_keeps_what_it_has(tmp_path: Path) -> None:
    config = guarded(
        "steps=20", "guard.rewind_skips=1", "guard.rewind_window_steps=2", "guard.rewinds=0"
    )
    data = data_broken_at([11], config, tmp_path)
    for attempt in (1, 2):  # the same command again ends in the same way, and loses nothing
        with pytest.raises(DivergedError, match=r"went back 0 times already \(guard\.rewinds\)"):
            train_on(0, config, tmp_path / "run", data, attempt=attempt)
        assert committed(tmp_path / "run" / CHECKPOINTS)[0].name == "step-00000010"
    late = replace(config, guard=replace(config.guard, rewinds=3, margin_steps=11))
    with pytest.raises(DivergedError, match="no checkpoint of step 0 or before to go back to"):
        train_on(0, late, tmp_path / "late", data)
    assert committed(tmp_path / "late" / CHECKPOINTS)[0].name == "step-00000010"
    assert not (tmp_path / "late" / "left_out.json").exists()


def test_a_resumed_run_remembers_what_was_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = guarded(
        "steps=20", "guard.rewind_skips=2", "guard.rewind_window_steps=10", "checkpoint.keep=9"
    )
    data = data_broken_at([11, 15], config, tmp_path)
    whole = train_on(0, config, tmp_path / "whole", data)
    (expected,) = notices(whole, "rewind")
    with monkeypatch.context() as patched:  # as if stopped after step 14
        patched.setattr("scalewright.train.worker.rewind_for", lambda *_: None)
        part = train_on(0, config, tmp_path / "part", data)
    for later in committed(part / CHECKPOINTS):
        if later.name > "step-00000014":
            later.rename(later.with_name(f"{later.name}.gone"))
    train_on(0, config, part, data, attempt=2)
    assert notices(part, "rewind") == [expected]


def test_a_stage_of_other_losses_is_no_spike(tmp_path: Path) -> None:
    """Pictures, then videos of three times their size."""
    data = write_data_folder(
        tmp_path / "data", clips=200, scales={index: 3.0 for index in range(200) if index % 4 > 1}
    )
    config = guarded(
        "guard.sigmas=6", "steps=24", "guard.rewind_skips=4", "guard.rewind_window_steps=6",
        'stages=[{clips = {kind = "picture"}}, {begin = 12, clips = {kind = "video"}}]',
    )  # fmt: skip
    folder = train_on(0, config, tmp_path / "run", data)
    assert not notices(folder, "skip")
