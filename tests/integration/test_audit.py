"""The audit of a run: the clips of every step are those planned, also after a resume."""

import json
import shutil
from pathlib import Path

from folders import data_with_broken
from ranks import small, train_on

from scalewright.train.consumed import read_consumed
from scalewright.train.inputs import open_inputs
from scalewright.train.manifest import CHECKPOINTS, committed
from scalewright.train.place import SNAPSHOT


def test_every_step_is_told_as_it_was_planned_over_a_resume(tmp_path: Path) -> None:
    broken = {3, 11, 20}
    data = data_with_broken(sorted(broken), tmp_path / "data")
    config = small("data.audit=true", "data.max_skip_share=0.5")
    run = train_on(2, config, tmp_path / "run", data)
    for checkpoint in committed(run / CHECKPOINTS):
        if checkpoint.name != "step-00000004":
            shutil.rmtree(checkpoint)
    train_on(0, config, run, data, attempt=2)
    order = open_inputs(config, data, run / SNAPSHOT).work.stages[0].order
    told = read_consumed(run)
    assert sorted(told) == list(range(12))
    for step, consumed in told.items():
        planned = [[each.entry.id for each in pack] for pack in order.packs(step)]
        there = [[id for id in pack if id not in broken] for pack in planned]
        assert sorted(consumed.packs) == sorted(there)
        left_out = [id for pack in planned for id in pack if id in broken]
        assert sorted(consumed.left_out) == sorted(left_out)
    first, second = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((run / "consumed").iterdir())
    )
    assert [(line["attempt"], line["step"]) for line in first] == [
        *((1, step) for step in range(12)), *((2, step) for step in range(4, 12))
    ]  # fmt: skip
    assert {line["attempt"] for line in second} == {1}


def test_nothing_is_listed_unless_asked_for(data_folder: Path, tmp_path: Path) -> None:
    run = train_on(0, small("steps=2"), tmp_path, data_folder)
    assert not (run / "consumed").exists()
