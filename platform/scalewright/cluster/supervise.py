"""A run as a row of attempts: survey, place, launch, judge, place again.

The supervisor is not part of the cluster. Each attempt is a process of its own that joins it; the
next one waits beside it, so that an attempt follows another at once. Whatever dies (a worker, a
node, Ray's head, the attempt's process), the same loop goes on from the newest verified checkpoint.
"""

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from scalewright.cluster.blame import of_failure, of_slow
from scalewright.cluster.classify import Failure
from scalewright.cluster.cluster import Cluster
from scalewright.cluster.ledger import Ledger
from scalewright.cluster.notes import Notes
from scalewright.cluster.order import Order, place_record
from scalewright.cluster.placement import choose, machines, worth_growing
from scalewright.cluster.placing import Placing
from scalewright.cluster.policy import Ended, Stop, decide
from scalewright.cluster.process import AttemptProcess, LostError, raise_error
from scalewright.cluster.run_folder import (
    RunStoppedError,
    believe,
    checkpoint_step,
    doubt,
    in_doubt,
    next_attempt,
)
from scalewright.command import REQUEUE
from scalewright.config import to_dict
from scalewright.data.settings import legal_worlds
from scalewright.errors import ScalewrightError
from scalewright.events import EVENTS_FILE, EventLog
from scalewright.health.straggler import Action
from scalewright.health.xid_history import to_record
from scalewright.train.place import SUMMARY, RunPlace
from scalewright.train.run import RunConfig

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

JOIN_S = 120.0  # to import and to join, on a machine that is busy
AGAIN_S = 5.0
# When the next attempt's process is started, after steps are taken: not beside the first of them.
STANDBY_AFTER_S = 5.0

# What an attempt costs before its first step, for the question whether another one pays.
RESTART_S = 120.0
PAUSE_S = 600.0
# Schedulers kill 30 s after they asked.
LEAVE_S = 25.0
SLOW = ("rank", "machine", "speed", "measured", "action")


@dataclass(frozen=True)
class RunFolders:
    """Where a run and its data lie, as absolute paths that every node can open."""

    run: Path
    data: str | Path
    codec_weights: Path | None = None
    inception_weights: Path | None = None

    def place(self, attempt: int) -> RunPlace:
        return RunPlace(self.run, self.data, attempt, self.codec_weights, self.inception_weights)


@dataclass(frozen=True)
class Paused:
    """An attempt that saved and ended because it was asked to."""

    reason: str


def supervise(
    config: RunConfig,
    folders: RunFolders,
    ledger: Ledger,
    *,
    cpus: int | None = None,
    worker_logs: bool = False,
) -> dict[str, Any]:
    """Train until the run is done; returns its summary.

    Raises `RunStoppedError` when restarting cannot help, `ConfigError` when the run never fitted
    the cluster, KeyboardInterrupt on Ctrl-C. Whatever ends it, the same call goes on from the
    newest verified checkpoint. Hold `only_driver` around it. `cpus` sizes a cluster that is
    started for the run.
    """
    with Cluster(cpus) as cluster:
        supervisor = _Supervisor(config, folders, ledger, cluster, worker_logs)
        try:
            return supervisor.run()
        finally:
            supervisor.close()


class _Supervisor:
    def __init__(
        self,
        config: RunConfig,
        folders: RunFolders,
        ledger: Ledger,
        cluster: Cluster,
        worker_logs: bool,
    ) -> None:
        self.config, self.folders, self.cluster = config, folders, cluster
        self.notes = Notes(ledger, f"run {config.name}")
        self._placing = Placing(config, folders.run, self.notes, joined=cluster.own)
        self._worker_logs = worker_logs
        self._next: AttemptProcess | None = None
        self._stands_by = False
        self._history: list[Ended] = []
        self._moving = self._doubtful = False
        self._workers, self._growing = 0, False
        self._first = self._attempts = 0  # attempts that this supervisor began
        self._states: list[dict[str, Any]] = []
        self._s_per_flop: dict[int, float] = {}  # by number of workers, as last learned

    def run(self) -> dict[str, Any]:
        while True:
            attempt, log = self._patiently(self._begin)
            try:
                outcome = self._attempt(attempt, log)
                if outcome is None:
                    return json.loads((self.folders.run / SUMMARY).read_text())
                if isinstance(outcome, Paused):
                    log.event("paused", reason=outcome.reason, step=self._saved_step())
                    continue
                self._judge(attempt, outcome, log)
            except RunStoppedError as error:
                log.event("stopped", reason=str(error), exit_code=error.exit_code)
                raise
            finally:
                log.close()

    def _begin(self) -> tuple[int, EventLog]:
        """Count the next attempt, which fences those before."""
        self._attempts = next_attempt(self.folders.run, after=self._attempts)
        self._first = self._first or self._attempts
        return self._attempts, EventLog(self.folders.run / EVENTS_FILE, self._attempts)

    def _saved_step(self) -> int:
        return self._patiently(lambda: checkpoint_step(self.folders.run))

    def _patiently(self, do: Callable[[], Answer]) -> Answer:
        """Try again while storage that worked before fails."""
        end = time.monotonic() + self.config.parallel.wait_for_nodes_s
        while True:
            try:
                return do()
            except OSError as error:
                if not self._attempts:
                    raise
                if time.monotonic() > end:
                    text = f"{self.folders.run} cannot be used: {error}"
                    raise RunStoppedError(text, REQUEUE) from None
                logger.warning("%s cannot be used: %s; trying again", self.folders.run, error)
                time.sleep(AGAIN_S)

    def close(self) -> None:
        if self._next is not None:
            self._next.end()

    def _judge(self, attempt: int, failure: Failure, log: EventLog) -> None:
        """Remember a failure, and wait before the next attempt or give up."""
        log.event(
            "attempt_failed", cause=failure.cause, rank=failure.rank, machine=failure.machine,
            reason=failure.signature,
        )  # fmt: skip
        # What was computed since the last check is in doubt, and in every checkpoint since.
        if failure.cause == "corruption":
            self._patiently(lambda: doubt(self.folders.run))
        self.notes.add(of_failure(failure, self.config.name, attempt, time.time()))
        self._history.append(Ended(failure, self._saved_step(), time.time()))
        decision = decide(self._history, self.config.parallel.max_restarts)
        if isinstance(decision, Stop):
            raise RunStoppedError(decision.reason, decision.exit_code)
        logger.warning("attempt %d ended (%s); restarting", attempt, failure.signature)
        time.sleep(decision.delay_s)

    def _attempt(self, attempt: int, log: EventLog) -> Failure | Paused | None:
        """One attempt to its end; None if the run is done."""
        log.event("queued")
        process = self._joined()
        try:
            placed, nodes = self._placing.place(process, attempt, log)
            self._launch(process, attempt, placed)
            self._moving = False
            self._workers, self._growing = sum(placed.values()), False
            log.event("launched", workers=sum(placed.values()), nodes=machines(placed, nodes))
            return self._watch(process, attempt, log)
        except LostError as error:
            return Failure("controller", str(error))
        finally:
            process.end()

    def _joined(self) -> AttemptProcess:
        """A process that has joined the cluster; its head may be away for a while."""
        end = time.monotonic() + self.config.parallel.wait_for_nodes_s
        while True:
            process: AttemptProcess | None = None
            try:
                process = self._standby() or self._started()
                if not process.said("joined"):
                    process.wait_for("joined", JOIN_S)
                return process
            except BaseException as error:
                if process is not None:
                    process.end()
                # Before the first attempt an address is wrong, and no head went away.
                wrong = isinstance(error, ScalewrightError) and self._attempts <= self._first
                if wrong or not isinstance(error, LostError | ScalewrightError):
                    raise
                if time.monotonic() > end:
                    text = f"the cluster cannot be joined: {error}"
                    raise RunStoppedError(text, REQUEUE) from None
                logger.warning("the cluster cannot be joined: %s; trying again", error)
                time.sleep(AGAIN_S)

    def _standby(self) -> AttemptProcess | None:
        """The process that waited for this attempt, if it is still well."""
        process, self._next = self._next, None
        if process is not None and not process.alive():
            process.end()
            return None
        return process

    def _standby_is_lost(self) -> bool:
        """Whether the process that waited is gone; another takes its place then."""
        if self._next is None or self._next.alive():
            return False
        logger.warning("the process that stood by for the next attempt is gone")
        self._next.end()
        self._next = None
        return True

    def _started(self, *, waiting: bool = False) -> AttemptProcess:
        """A process that imports and joins; one that is `waiting` has the nodes import, too."""
        process = AttemptProcess(self.cluster.environment)  # it imports meanwhile
        try:
            address = self.cluster.address()
        except BaseException:
            process.end()
            raise
        process.tell(
            "join",
            address=address,
            worker_logs=self._worker_logs,
            gpus_per_worker=self.config.parallel.gpus_per_worker,
            folder=str(self.folders.run),
            health=asdict(self.config.health),
            waiting=waiting,
            variables=self.config.parallel.environment_variables(),
        )
        return process

    def _tell_standby(self, log: EventLog) -> None:
        """Tell once that an attempt to come waits with everything imported."""
        if self._next is not None and self._next.said("ready") and not self._stands_by:
            self._stands_by = True
            log.event("standby")

    def _launch(self, process: AttemptProcess, attempt: int, placed: dict[str, int]) -> None:
        (self.folders.run / SUMMARY).unlink(missing_ok=True)
        self._doubtful = self._patiently(lambda: in_doubt(self.folders.run))
        place = replace(self.folders.place(attempt), only_trusted=self._doubtful)
        rate = self._s_per_flop.get(sum(placed.values()))
        xids = to_record(self._placing.xids)
        order = Order(to_dict(self.config), place_record(place), placed, rate, xids)
        process.tell("launch", **order.record())

    def _watch(
        self, process: AttemptProcess, attempt: int, log: EventLog
    ) -> Failure | Paused | None:
        begin = moving_since = time.monotonic()
        while True:
            if not self._moving or self._standby_is_lost():
                moving_since = time.monotonic()
            elif self._next is None and time.monotonic() - moving_since > STANDBY_AFTER_S:
                self._next, self._stands_by = self._started(waiting=True), False
            try:
                word = process.hear(within_s=1.0)
            except KeyboardInterrupt:
                if self._moving:
                    _save_and_leave(process)
                raise
            if word is None:
                continue
            raise_error(word)
            match word["is"]:
                case "status":
                    self._moving = self._moving or word["step_s"] > 0
                    if self._moving and self._doubtful:  # what it went on from was trusted
                        self._patiently(lambda: believe(self.folders.run))
                        self._doubtful = False
                    self._states = word["nodes"]
                    if word["s_per_flop"]:
                        self._s_per_flop[self._workers] = word["s_per_flop"]
                    self._placing.note(word["nodes"], attempt)
                    self._tell_standby(log)
                    self._placing.prepare(self._next, word["nodes"], log, attempt)
                    self._grow(process, word, time.monotonic() - begin)
                case "slow":
                    log.event("slow", **{name: word[name] for name in SLOW})
                    self.notes.add(of_slow(word, self.config.name, attempt, time.time()))
                    if word["action"] != Action.TELL and self._placing.has_spare(self._states):
                        reason = f"rank {word['rank']} on {word['machine']} is slow"
                        process.tell("pause", reason=reason, within_s=PAUSE_S)
                case "detected":
                    log.event("detected", began_s=word["began_s"])
                case "data_stall":
                    log.event("data_stall", ranks=word["ranks"])
                case "ended":
                    return _outcome(word)

    def _grow(self, process: AttemptProcess, status: dict[str, Any], since_s: float) -> None:
        """Have a run that is smaller than it may be save and end, if more workers pay."""
        parallel = self.config.parallel
        if self._growing or self._workers >= parallel.workers:
            return
        nodes = self._placing.nodes(status["nodes"])
        legal = legal_worlds(self.config.data.packs_per_step, parallel.shard_size)
        placed = choose(nodes, legal, parallel.min_workers, parallel.workers, parallel.shard_size)
        then = sum(placed.values()) if placed else 0
        left_s = (self.config.steps - status["step"]) * status["step_s"]
        if worth_growing(self._workers, then, left_s, RESTART_S, since_s, parallel.grow_after_s):
            self._growing = True
            reason = f"{then} workers instead of {self._workers}"
            process.tell("pause", reason=reason, within_s=PAUSE_S)


def _save_and_leave(process: AttemptProcess) -> None:
    """Have an attempt that takes steps save before it is ended; a second Ctrl-C does not wait."""
    logger.warning("saving a checkpoint; interrupt again to stop at once")
    process.tell("pause", reason="interrupted", within_s=LEAVE_S)
    end = time.monotonic() + LEAVE_S
    with suppress(LostError):
        while time.monotonic() < end:
            word = process.hear(within_s=1.0)
            if word is not None and word["is"] == "ended":
                return


def _outcome(word: dict[str, Any]) -> Failure | Paused | None:
    match word["how"]:
        case "done":
            return None
        case "paused":
            return Paused(word["reason"])
        case _:
            return Failure(**word["failure"])
