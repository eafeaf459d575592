"""Watches one attempt from its own process, and says how it ended.

Asks the agents of the nodes every second; whatever ends the attempt is told once. Ray Train tells
of a dead worker after seconds and of a frozen one after minutes, and waits for the others to end:
here the first sure sign is enough, and the supervisor ends the rest with this process.
"""

import functools
import logging
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from scalewright.cluster.agents import MEASURE_S, Report
from scalewright.cluster.classify import Failure, RankError, classify, is_fatal
from scalewright.cluster.inquiry import dump, inquire
from scalewright.cluster.order import Order
from scalewright.cluster.stopping import stop_after
from scalewright.cluster.survey import ANSWER_S, NodeState, Surveyor, reachable
from scalewright.cluster.words import LastWords
from scalewright.health import xid_history
from scalewright.health.finding import Finding
from scalewright.health.stacks import Stack, same_place
from scalewright.health.straggler import Slow, StragglerMonitor, decide
from scalewright.health.watchdog import DataStall, Hang, Watchdog
from scalewright.heartbeat import Beat, Phase
from scalewright.train.place import SUMMARY

logger = logging.getLogger(__name__)

POLL_S = 1.0
STATUS_S = 2.0
# Ranks fall one after the other, and each says what it saw: the first may speak last.
SETTLE_S = 1.0
# A node that answers neither its agent's call nor anything else is given up.
SILENT_S = 15.0
BETWEEN_DUMPS_S = 5.0
# Nodes that are measured beside a slow one.
PEERS = 4


class Monitor:
    """The eyes on one attempt; `say` takes word to the supervisor."""

    def __init__(self, order: Order, surveyor: Surveyor, say: Callable[..., None]) -> None:
        self._order, self._surveyor, self._say = order, surveyor, say
        self._of = (str(order.folder), order.attempt)
        self._ended, self._once = threading.Event(), threading.Lock()
        self._pausing: tuple[str, float] | None = None
        self._stop_step: int | None = None
        self._stop_told: set[str] = set()  # nodes that have the order
        self._measuring = threading.Lock()
        self._words = LastWords(order.folder, order.attempt)
        self._gone: dict[int, float] = {}  # ranks that were gone at the first look that found any
        self._heard = dict.fromkeys(order.nodes, time.monotonic())
        self._reports: dict[str, Report] = {}
        self._states: list[NodeState] = []
        self._progress_s = time.time()
        self._moved: dict[int, float] = {}
        self._began_s = time.monotonic()
        self._stacks: dict[int, Stack] = {}
        self._dumped_s = 0.0
        self._machines: dict[int, str] = {}  # by rank, of all that beat so far
        self._stalled = 0.0
        self._slowness = StragglerMonitor(order.run_config.health)
        self._watchdog = Watchdog(order.run_config.health, order.s_per_flop)
        self._s_per_flop = order.s_per_flop

    def __enter__(self) -> "Monitor":
        for look in (self._watch, self._tell_status):
            threading.Thread(target=self._guarded, args=(look,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def pause(self, reason: str, within_s: float) -> None:
        """Have the ranks save after a step that all of them reach, and end."""
        self._pausing = self._pausing or (reason, time.monotonic() + within_s)

    def told(self, errors: list[RankError]) -> None:
        """The worker group came to its end, with these errors of its ranks as Ray tells them."""
        if not errors:
            if (self._order.folder / SUMMARY).exists():
                self._end("done")
            elif self._stop_step is not None and self._pausing is not None:
                self._end("paused", reason=self._pausing[0])
            else:
                self._fail(Failure("controller", "the worker group ended before its last step"))
            return
        self._judge(errors)

    def _guarded(self, look: Callable[[], None]) -> None:
        """A watcher that fails ends the attempt: it must not go on unwatched."""
        try:
            look()
        except Exception as error:
            logger.exception("the monitor failed")
            self._fail(Failure("controller", f"the monitor failed: {error!r}"))

    def _watch(self) -> None:
        self._surveyor.agents.watch(xid_history.from_record(self._order.xids), within_s=ANSWER_S)
        while not self._ended.wait(POLL_S):
            self._look()
            beats = self._beats()
            self._note_progress(beats)
            self._tell_late()
            if self._is_over(beats):
                self._detect()
                self._ended.wait(SETTLE_S)
                self._judge([])
                return
            match self._watchdog.look(list(beats.values()), time.monotonic()):
                case Hang() as hang if hang.sure or self._stands_still(hang):
                    self._detect()
                    self._fail(self._blame(hang))
                    return
                case DataStall() as stall:
                    self._tell_stall(stall)
            slow = self._slowness.look(list(beats.values()), time.monotonic())
            if slow and self._measuring.acquire(blocking=False):
                look = functools.partial(self._tell_slow, slow)
                threading.Thread(target=self._guarded, args=(look,), daemon=True).start()
            self._advance_pause(beats)
            self._s_per_flop = self._watchdog.rate.s_per_flop

    def _look(self) -> None:
        self._reports = self._surveyor.agents.ask("report", self._of, within_s=ANSWER_S)
        for report in self._reports.values():
            self._machines |= {beat.rank: report.machine for beat in report.beats}

    def _is_over(self, beats: dict[int, Beat]) -> bool:
        """Whether a rank has ended, or what it runs on."""
        self._note_gone(beats)
        return (
            bool(self._gone)
            or any(is_fatal(finding) for found in self._findings().values() for finding in found)
            or bool(self._lost())
            or bool(self._words.look(ANSWER_S))
        )

    def _note_gone(self, beats: dict[int, Beat]) -> None:
        if not self._gone:
            now = time.time()
            self._gone = {beat.rank: now for beat in beats.values() if _is_gone(beat)}

    def _findings(self) -> dict[str, tuple[Finding, ...]]:
        """What the machines of this attempt found on themselves."""
        here = [self._reports[node] for node in self._order.nodes if node in self._reports]
        return {report.machine: report.findings for report in here}

    def _stands_still(self, hang: Hang) -> bool:
        """Whether suspects that take CPU stand where they stood some seconds ago, by two dumps."""
        now = time.monotonic()
        if now - self._dumped_s < BETWEEN_DUMPS_S:
            return False
        before, self._stacks = self._stacks, dump(self._surveyor.agents, self._of)
        self._dumped_s = now
        suspects = hang.ranks or tuple(self._stacks)
        return bool(suspects) and all(
            rank in before and rank in self._stacks and same_place(before[rank], self._stacks[rank])
            for rank in suspects
        )

    def _tell_late(self) -> None:
        """Not all ranks ever began: Ray waits for their places for as long as it takes."""
        ranks, limit_s = sum(self._order.nodes.values()), self._order.run_config.health.start_s
        if len(self._machines) < ranks and time.monotonic() - self._began_s > limit_s:
            text = f"{len(self._machines)} of {ranks} ranks began within health.start_s"
            self._fail(Failure("controller", f"{text} = {limit_s:g}"))

    def _blame(self, hang: Hang) -> Failure:
        return inquire(self._surveyor.agents, self._of, hang, self._machines)

    def _tell_slow(self, ranks: Sequence[Slow]) -> None:
        """Tell of slow ranks once their nodes have been measured beside the others.

        In a thread of its own: it takes seconds, and faults do not wait.
        """
        try:
            nodes = {b.rank: node for node, report in self._reports.items() for b in report.beats}
            spare = any(
                s.answers and s.slots and s.leaves_s is None and s.node_id not in self._order.nodes
                for s in self._states
            )
            suspects = {nodes[slow.rank] for slow in ranks if slow.rank in nodes}
            speeds = self._speeds(suspects) if spare else {}
            for slow in ranks:
                self._tell_measured(slow, relative_speed(nodes.get(slow.rank), speeds), spare)
        finally:
            self._measuring.release()

    def _speeds(self, suspects: set[str]) -> dict[str, float | None]:
        """How fast these nodes are, and a few that have the same to do."""
        peers = [node for node in self._order.nodes if node not in suspects][:PEERS]
        asked: dict[str, tuple[Any, ...]] = dict.fromkeys([*suspects, *peers], ())
        return self._surveyor.agents.ask_each("speed", asked, MEASURE_S)

    def _tell_measured(self, slow: Slow, measured: float | None, spare: bool) -> None:
        action = decide(slow, self._order.run_config.health, spare=spare, measured=measured)
        machine = self._machines.get(slow.rank)
        self._say(
            "slow", rank=slow.rank, machine=machine, speed=slow.speed, measured=measured,
            action=str(action),
        )  # fmt: skip

    def _tell_stall(self, stall: DataStall) -> None:
        if self._stalled != stall.since_s:
            self._stalled = stall.since_s
            self._say("data_stall", ranks=list(stall.ranks))

    def _beats(self) -> dict[int, Beat]:
        """The newest sign of life of each rank."""
        return {beat.rank: beat for report in self._reports.values() for beat in report.beats}

    def _note_progress(self, beats: dict[int, Beat]) -> None:
        moved = {rank: beat.loop_at for rank, beat in beats.items()}
        if moved != self._moved:
            self._moved, self._progress_s = moved, time.time()

    def _lost(self) -> frozenset[str]:
        """Nodes of this attempt that are gone: their agent is silent, and so is their raylet."""
        now = time.monotonic()
        for node in self._reports:
            self._heard[node] = now
        silent = [n for n in self._order.nodes if n not in self._reports]
        known = {n: self._surveyor.nodes[n] for n in silent if n in self._surveyor.nodes}
        there = set(reachable(known))
        return frozenset(
            node for node in silent if node not in there or now - self._heard[node] > SILENT_S
        )

    def _judge(self, of_ray: list[RankError]) -> None:
        """Blame, from the ranks' own words first, then from what is gone, then from Ray."""
        self._look()
        beats, machines = self._beats(), self._machines
        if not of_ray:
            self._note_gone(beats)
        words = self._words.look(ANSWER_S)
        named = [
            replace(error, machine=error.machine or machines.get(error.rank))
            for error in ends_of_ranks(of_ray, self._gone, beats, words)
        ]
        lost = frozenset(self._surveyor.machine(node) for node in self._lost())
        failure = classify(named, self._findings(), lost)
        if failure.cause == "corruption" and failure.rank is not None:
            failure = replace(failure, machine=machines.get(failure.rank))
        step = max((beat.step for beat in beats.values()), default=None)
        self._fail(replace(failure, step=step))

    def _advance_pause(self, beats: dict[int, Beat]) -> None:
        if self._pausing is None:
            return
        if (step := stop_after(list(beats.values()), self._stop_step)) is not None:
            self._stop_step, self._stop_told = step, set()
        if untold := self._order.nodes.keys() - self._stop_told:
            arguments = dict.fromkeys(untold, (self._of, self._stop_step))
            if self._stop_step is not None:
                self._stop_told |= self._surveyor.agents.ask_each(
                    "stop_after", arguments, ANSWER_S
                ).keys()
        if time.monotonic() > self._pausing[1]:
            reason = self._pausing[0]
            self._fail(Failure("preempted", f"{reason}; the ranks did not save in time"))

    def _tell_status(self) -> None:
        """Apart from the watch: Ray's own lists wait for its head, which may be away."""
        while not self._ended.wait(STATUS_S):
            try:
                self._surveyor.refresh()
                states = self._surveyor.states(self._reports)
            except Exception as error:  # whatever Ray raises while its head is away
                logger.warning("Ray does not tell of its nodes: %s", error)
                continue
            leaving = [s for s in states if s.node_id in self._order.nodes and s.leaves_s]
            if leaving:
                soonest = min(state.leaves_s or 0.0 for state in leaving)
                names = ", ".join(state.machine for state in leaving)
                self.pause(f"preempted: {names} is to leave", max(1.0, soonest - time.time()))
            self._states = states
            beats = self._beats().values()
            self._say(
                "status",
                nodes=[state.record() for state in states],
                step=min((beat.step for beat in beats), default=0),
                step_s=max((beat.last_s for beat in beats), default=0.0),
                s_per_flop=self._s_per_flop,
            )

    def _detect(self) -> None:
        self._say("detected", began_s=self._progress_s)

    def _fail(self, failure: Failure) -> None:
        self._end("failed", failure=asdict(failure), began_s=self._progress_s)

    def _end(self, how: str, **fields: Any) -> None:
        with self._once:
            if self._ended.is_set():
                return
            # A rank that is stopped, or waits for one that is gone, holds its place for long.
            last = "kill_ranks" if how == "failed" else "forget_ranks"
            self._surveyor.agents.ask(last, self._of, within_s=ANSWER_S)
            self._say("ended", how=how, **fields)
            self._ended.set()


def ends_of_ranks(
    of_ray: Sequence[RankError],
    gone: Mapping[int, float],
    beats: Mapping[int, Beat],
    words: Sequence[RankError],
) -> list[RankError]:
    """How each rank ended, as Ray tells it, by its process, and above all by its own last word.

    `gone`: ranks whose processes were the first to be gone, and when (wall time). Ray ends the
    others soon after: those are gone by now as well, and nothing happened to them.
    """
    errors = {error.rank: error for error in of_ray}
    for rank, time_s in gone.items():
        if (beat := beats.get(rank)) is not None:
            text = f"process {beat.pid} is gone, in {beat.phase.name.lower()} {beat.step}"
            errors.setdefault(rank, RankError(rank, ("ProcessGone",), text, time_s))
    return list((errors | {word.rank: word for word in words}).values())


def relative_speed(node: str | None, speeds: Mapping[str, float | None]) -> float | None:
    """A node's speed, where 1 is the median of the others; None if one of the two is not known."""
    others = [speed for other, speed in speeds.items() if speed and other != node]
    mine = speeds.get(node) if node else None
    return mine / statistics.median(others) if mine and others else None


def _is_gone(beat: Beat) -> bool:
    return beat.process is None and beat.phase is not Phase.DONE
