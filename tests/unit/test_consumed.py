"""The audit: which clips each step trained on, also after attempts that died."""

import json
from pathlib import Path

import torch

from scalewright.data.loader import StepData
from scalewright.data.sample import Entry, Missing, Sample
from scalewright.train.consumed import Consumed, ConsumedLog, read_consumed


def step(number: int, *packs: list[int], missing: int | None = None) -> StepData:
    """A share whose packs hold clips of these ids, and one that could not be read."""
    parts: list[list[Sample | Missing]] = [
        [Sample(id, torch.empty(1), torch.empty(1)) for id in pack] for pack in packs
    ]
    if missing is not None:
        parts[0].append(Missing(Entry(missing, "000000.tar", 0, 1, 0, 1, 1, 1, 1), 1))
    return StepData(number, parts)


def attempt(folder: Path, number: int, steps: range, world: int = 2, flushed: int = 100) -> None:
    """An attempt that trains on clip 10·step + rank, and dies after the step `flushed`."""
    for rank in range(world):
        log = ConsumedLog(folder, rank, number)
        for each in steps:
            log.add(step(each, [100 * number + 10 * each + rank]))
            if each == flushed:
                log.flush()
        if flushed > steps.stop:
            log.flush()


def test_a_line_tells_packs_and_what_was_left_out(tmp_path: Path) -> None:
    log = ConsumedLog(tmp_path, 3, 7)
    log.add(step(12, [5, 6], [7], missing=8))
    assert read_consumed(tmp_path) == {}, "held until it is flushed"
    log.flush()
    (line,) = (tmp_path / "consumed" / "rank-00003.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "attempt": 7, "step": 12, "packs": [[5, 6], [7]], "left_out": [8]
    }  # fmt: skip
    assert read_consumed(tmp_path) == {12: Consumed([[5, 6], [7]], [8])}


def test_of_steps_taken_again_the_last_attempt_counts(tmp_path: Path) -> None:
    attempt(tmp_path, 1, range(6), flushed=4)
    attempt(tmp_path, 2, range(2, 6), world=3)
    packs = {number: consumed.packs for number, consumed in read_consumed(tmp_path).items()}
    assert packs == {
        **{each: [[100 + 10 * each], [101 + 10 * each]] for each in (0, 1)},
        **{each: [[200 + 10 * each + rank] for rank in range(3)] for each in range(2, 6)},
    }


def test_of_steps_taken_again_within_an_attempt_the_last_time_counts(tmp_path: Path) -> None:
    log = ConsumedLog(tmp_path, 0, 1)
    for id in (1, 2):
        log.add(step(4, [id]))
    log.flush()
    log.flush()
    assert read_consumed(tmp_path) == {4: Consumed([[2]], [])}


def test_a_line_that_a_kill_cut_short_is_cut_off(tmp_path: Path) -> None:
    attempt(tmp_path, 1, range(3), world=1)
    path = tmp_path / "consumed" / "rank-00000.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert sorted(read_consumed(tmp_path)) == [0, 1]
    attempt(tmp_path, 2, range(2, 3), world=1)
    assert read_consumed(tmp_path)[2] == Consumed([[220]], [])
    path.write_bytes(b'{"attempt": 1, "st')
    attempt(tmp_path, 3, range(1), world=1)
    assert read_consumed(tmp_path) == {0: Consumed([[300]], [])}
