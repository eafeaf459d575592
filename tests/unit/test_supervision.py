"""The small decisions of a supervised run: when to stop, whom to note, what to remember."""

import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalewright.cluster.agents import Agents
from scalewright.cluster.blame import of_failure, of_finding, of_slow
from scalewright.cluster.classify import Failure, RankError
from scalewright.cluster.evidence import WEIGHTS
from scalewright.cluster.inquiry import inquire
from scalewright.cluster.ledger import Ledger
from scalewright.cluster.monitor import ends_of_ranks, relative_speed
from scalewright.cluster.notes import Notes
from scalewright.cluster.order import Order
from scalewright.cluster.process import AttemptProcess, LostError
from scalewright.cluster.run_folder import (
    RunStoppedError,
    believe,
    doubt,
    in_doubt,
    next_attempt,
)
from scalewright.cluster.stopping import AHEAD_S, stop_after
from scalewright.cluster.words import LastWords, last_words, leave_word
from scalewright.errors import FencedError
from scalewright.events import EVENTS_FILE, EventLog
from scalewright.health.finding import Finding, Remedy, Verdict
from scalewright.health.stacks import Stack
from scalewright.health.stop_order import StopOrder, order_stop
from scalewright.health.watchdog import Hang, Kind
from scalewright.heartbeat import Beat, Phase
from scalewright.train.fence import Fence
from scalewright.train.place import RunPlace

BEAT = Beat(
    rank=0, attempt=1, pid=1, thread_id=1, phase=Phase.STEP, step=7, moves=9, done=3, loop_at=0.0,
    phase_began=0.0, flops=1.0, last_s=0.5, last_flops=1.0, own_s=0.0, own_flops=0.0, thread_at=0.0,
    read_at=0.0, process=None,
)  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(1e-3, 1e4)), min_size=1, max_size=8))
def test_the_step_to_stop_after_lies_ahead_of_every_rank(ranks: list[tuple[int, float]]) -> None:
    beats = [replace(BEAT, step=step, last_s=last_s) for step, last_s in ranks]
    stop = stop_after(beats)
    assert stop is not None
    farthest = max(step for step, _ in ranks)
    quickest_s = min(last_s for _, last_s in ranks)
    assert stop > farthest + 1
    assert (stop - farthest) * quickest_s >= AHEAD_S


def test_nothing_is_ordered_before_every_rank_has_taken_a_step() -> None:
    assert stop_after([]) is None
    assert stop_after([BEAT, replace(BEAT, rank=1, done=0)]) is None


def test_an_order_is_given_again_when_all_ranks_were_past_it() -> None:
    beats = [replace(BEAT, step=7), replace(BEAT, rank=1, step=9)]
    assert stop_after(beats, 9) is None
    assert stop_after(beats, 7) is None  # one waits there for the other
    again = stop_after(beats, 6)
    assert again is not None
    assert again > 9


def test_an_order_is_found_by_the_ranks_of_its_folder(tmp_path: Path) -> None:
    order = StopOrder(tmp_path)
    assert not order.due(5)
    order_stop(tmp_path, 6)
    assert [done for done in range(4, 9) if order.due(done)] == [6]
    order_stop(tmp_path, 11)
    assert [done for done in range(9, 14) if order.due(done)] == [11]


def test_a_node_is_measured_beside_the_median_of_the_others() -> None:
    speeds = {"a": 1.0, "b": 4.0, "c": 6.0, "d": None}
    assert relative_speed("a", speeds) == pytest.approx(1 / 5)
    assert relative_speed("d", speeds) is None
    assert relative_speed(None, speeds) is None
    assert relative_speed("a", {"a": 1.0}) is None


def test_the_first_to_be_gone_is_to_blame_and_not_those_that_are_ended_after_it() -> None:
    beats = {rank: replace(BEAT, rank=rank) for rank in range(4)}  # all gone by now
    (end,) = ends_of_ranks([], {2: 5.0}, beats, [])
    assert (end.rank, end.kinds, end.time_s) == (2, ("ProcessGone",), 5.0)
    told = [RankError(2, ("RayActorError",), "died", 6.0), RankError(0, ("Word",), "lost", 7.0)]
    assert ends_of_ranks(told[:1], {2: 5.0}, beats, []) == told[:1]
    assert ends_of_ranks([], {2: 5.0, 0: 5.0}, beats, told) == told


def test_a_driver_that_was_taken_over_ends_and_can_be_called_again(tmp_path: Path) -> None:
    mine = next_attempt(tmp_path)
    other = next_attempt(tmp_path)
    with pytest.raises(RunStoppedError, match="another driver has begun attempt 2") as stopped:
        next_attempt(tmp_path, after=mine)
    assert stopped.value.exit_code == 75
    assert next_attempt(tmp_path, after=other) == 3


def test_doubt_outlives_the_driver_until_an_attempt_takes_steps(tmp_path: Path) -> None:
    assert not in_doubt(tmp_path)
    doubt(tmp_path)
    doubt(tmp_path)
    next_attempt(tmp_path)
    assert in_doubt(tmp_path)
    believe(tmp_path)
    believe(tmp_path)
    assert not in_doubt(tmp_path)


def test_storage_that_fails_loses_last_words_and_no_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = RunPlace(tmp_path, tmp_path, attempt=3)
    leave_word(place, 1, ValueError("a bug"))
    (word,) = last_words(tmp_path, 3)
    assert (word.rank, word.kinds[0], word.message) == (1, "ValueError", "a bug")
    assert last_words(tmp_path, 2) == []

    over = threading.Event()

    def stale(*_: object) -> None:
        raise OSError(116, "Stale file handle")

    def hangs(*_: object) -> None:
        over.wait()
        stale()

    words = LastWords(tmp_path, 3)
    assert words.look(10) == [word]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", stale)
        assert last_words(tmp_path, 3) == []
    monkeypatch.setattr(Path, "read_text", hangs)
    assert words.look(0.1) == words.look(0.1) == [word]
    over.set()


class Shown:
    """In place of the agents: what ranks show."""

    def __init__(self, *stacks: Stack) -> None:
        self._answers = {"stacks": {"n": {s.rank: s for s in stacks}}, "traces": {"n": {}}}

    def ask(self, method: str, *_: object, within_s: float) -> Any:
        return self._answers[method]


def test_ranks_of_one_machine_that_hang_together_name_it(tmp_path: Path) -> None:
    frozen = [Stack(rank, 1, 1, "T" if rank < 2 else "S") for rank in range(6)]
    hang = Hang(Kind.BEHIND, (0, 1), "they stand still", 0.0, 1.0, sure=True)
    agents = cast(Agents, Shown(*frozen))
    one = inquire(agents, (str(tmp_path), 1), hang, dict.fromkeys((0, 1), "m1") | {2: "m2"})
    assert (one.cause, one.rank, one.machine) == ("hang", None, "m1")
    two = inquire(agents, (str(tmp_path), 1), hang, {0: "m1", 1: "m2"})
    assert (two.rank, two.machine) == (None, None)


OF_MACHINES = {"process", "hang", "node", "gpu", "corruption"}


@pytest.mark.parametrize(
    "cause",
    ["refused", "exception", "oom", "process", "hang", "node", "gpu", "storage", "divergence",
     "corruption", "placement", "controller", "preempted"],
)  # fmt: skip
def test_only_causes_of_machines_are_evidence(cause: str) -> None:
    failure = Failure(cause, "it ended", 1, "m1", confidence=0.5)  # type: ignore[arg-type]
    evidence = of_failure(failure, "run", 3, 9.0)
    assert (evidence is not None) == (cause in OF_MACHINES)
    if evidence is not None:
        assert evidence.kind in WEIGHTS
        assert (evidence.machine, evidence.attempt, evidence.confidence) == ("m1", 3, 0.5)
    assert of_failure(replace(failure, machine=None), "run", 3, 9.0) is None


FOUND = Finding(
    check="gpus.ecc", verdict=Verdict.FAIL, reason="a double-bit error", gpu="GPU-1", time_s=5.0,
    remedy=Remedy.RESET_GPU,
)  # fmt: skip


def test_a_finding_is_evidence_if_it_failed_and_counts() -> None:
    evidence = of_finding("m1", FOUND, "run", 1)
    assert evidence is not None
    assert (evidence.kind, evidence.gpu) == ("hardware", "GPU-1")
    for passed in (Verdict.PASS, Verdict.WARN, Verdict.UNKNOWN):
        assert of_finding("m1", replace(FOUND, verdict=passed), "run", 1) is None
    assert of_finding("m1", replace(FOUND, shadow=True), "run", 1) is None
    lesser = of_finding("m1", replace(FOUND, remedy=Remedy.INSPECT), "run", 1)
    assert lesser is not None
    assert lesser.kind == "warning"


def test_an_order_reads_what_it_records() -> None:
    order = Order({"steps": 5}, {"attempt": 3, "folder": "/runs/a"}, {"n1": 2}, 1e-12)
    assert Order.read(json.loads(json.dumps({"do": "launch", **order.record()}))) == order
    assert (order.attempt, order.folder) == (3, Path("/runs/a"))


def test_a_slow_rank_is_evidence_once_its_machine_is_slow() -> None:
    word = {"rank": 1, "machine": "m1", "speed": 0.6, "measured": 0.5, "action": "swap now"}
    evidence = of_slow(word, "run", 1, 5.0)
    assert evidence is not None
    assert evidence.kind == "straggler"
    assert of_slow(word | {"action": "tell"}, "run", 1, 5.0) is None


def test_what_is_found_again_and_again_is_noted_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    notes = Notes(ledger, "run")
    for _ in range(5):
        notes.add(of_finding("m1", FOUND, "run", 1))
    assert len(ledger.history("m1")) == 1
    notes.add(of_finding("m1", FOUND, "run", 2))
    assert len(ledger.history("m1")) == 2


def test_a_ledger_that_cannot_be_written_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    notes = Notes(Ledger(path), "run")
    notes.fleet(40)
    aside = tmp_path / "aside.db"
    os.rename(path, aside)
    found = replace(FOUND, time_s=time.time())
    notes.add(of_finding("m1", found, "run", 1))
    assert notes.rank("m1") == 0
    os.rename(aside, path)
    notes.add(of_finding("m2", found, "run", 1))
    assert [len(Ledger(path).history(machine)) for machine in ("m1", "m2")] == [1, 1]
    assert notes.rank("m1") is None


def test_an_attempts_process_ends_with_its_supervisor() -> None:
    process = AttemptProcess(dict(os.environ))
    try:
        assert process.wait_for("imported", 120) == {"is": "imported"}
        assert process.alive()
        process.tell("nothing of the kind")
        with pytest.raises(LostError, match="order 'nothing of the kind' is not known"):
            process.wait_for("joined", 30)
    finally:
        process.end()
    assert not process.alive()


def test_a_process_that_dies_is_lost() -> None:
    process = AttemptProcess(dict(os.environ))
    try:
        os.kill(process.pid, 9)
        with pytest.raises(LostError, match="ended by SIGKILL"):
            process.wait_for("imported", 60)
    finally:
        process.end()


def test_a_process_that_says_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalewright.cluster.process.SILENCE_S", 0.2)
    monkeypatch.setattr(sys, "executable", "/bin/sleep")
    process = AttemptProcess(dict(os.environ))
    try:
        time.sleep(0.3)
        with pytest.raises(LostError, match=r"said nothing for|ended with exit code"):
            process.wait_for("imported", 5)
    finally:
        process.end()


def test_attempts_are_counted_over_drivers_and_fence_what_came_before(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000040").mkdir(parents=True)
    assert [next_attempt(tmp_path) for _ in range(3)] == [1, 2, 3]
    assert Fence(tmp_path, 3).admits(2, "step-00000040")
    assert not Fence(tmp_path, 3).admits(2, "step-00000080")
    with pytest.raises(FencedError, match="attempt 2 was replaced by 3"):
        Fence(tmp_path, 2).check()


def test_a_damaged_count_goes_on_after_the_last_attempt_that_was_told_of(tmp_path: Path) -> None:
    log = EventLog(tmp_path / EVENTS_FILE, 7)
    log.event("attempt")
    log.close()
    (tmp_path / "run.json").write_text('{"attempt": 7, "ke')
    assert next_attempt(tmp_path) == 8
