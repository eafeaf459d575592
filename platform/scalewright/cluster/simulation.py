"""One run on a fleet that fails: what its wall time went to. Driven by events, without a clock.

The run has the size that its policies give it, and takes steps at a speed in proportion: the
global batch stays, fewer nodes do more of it each. A fault of a node that it uses ends the attempt;
after the time to notice, the policies decide, and after the time to restart it goes on from the
last checkpoint. Idle nodes fail, too. A node that went down is back when it was repaired, on
probation; one that the ledger retired, when a person has looked at it.
"""

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scalewright.cluster.node_faults import DAY_S, Fault, History
from scalewright.cluster.simulated_policy import Machines, Restarts, worth_growing
from scalewright.errors import ConfigError

FEWER_NODES = "fewer_nodes"
STEP, RECOMPUTE = "step", "recompute"
# A repaired node that fails again so soon was not repaired: in the trace 31 % are not.
STILL_BAD_S = 7 * DAY_S


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run of `nodes` nodes, at least `min_nodes`, and what events cost it, in seconds.

    `interval_s`: steps between two saves, each of which stops training for `stall_s`. `detect_s`:
    from a fault to the decision; `restart_s`: from there to the first step. `caught`: how often
    the preflight finds that a node is still bad after its repair. `human_s`: until a person begins
    a run again that was stopped; `review_s`: until one has looked at a retired machine.
    """

    nodes: int
    min_nodes: int
    interval_s: float
    stall_s: float = 5.0
    detect_s: float = 60.0
    restart_s: float = 180.0
    max_restarts: int = 3
    cooldown_s: float = 1800.0
    caught: float = 0.5
    human_s: float = 4 * 3600.0
    review_s: float = DAY_S

    def __post_init__(self) -> None:
        if not 1 <= self.min_nodes <= self.nodes:
            raise ConfigError(f"min_nodes = {self.min_nodes}; 1 to nodes = {self.nodes}")
        for name in ("interval_s", "restart_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}; more than 0, and finite")
        for name in ("stall_s", "detect_s", "cooldown_s", "human_s", "review_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}; at least 0, and finite")
        if not 0 <= self.caught <= 1:
            raise ConfigError(f"caught = {self.caught}; a probability, 0 to 1")


@dataclass(frozen=True)
class Outcome:
    """Shares of wall time; goodput and all badput add up to 1.

    `effective_time`: in steps, at any size, also of those done again. `availability`: running.
    `goodput`: work that was kept over what all nodes could have done in the wall time.
    """

    effective_time: float
    availability: float
    goodput: float
    badput: dict[str, float]
    failures: int
    regrown: int
    caught: int


def simulate(job: Job, histories: Sequence[History], duration_s: float, seed: int = 0) -> Outcome:
    """Run `job` for `duration_s` on as many nodes as there are `histories`; the rest is spare."""
    if len(histories) < job.min_nodes:
        raise ConfigError(f"{len(histories)} nodes; the job needs {job.min_nodes}")
    run = _Run(job, histories, duration_s, seed)
    run.to_the_end()
    return run.outcome()


class _Run:
    """The fleet and the run between two events. `doing` is what the run's time goes to."""

    def __init__(
        self, job: Job, histories: Sequence[History], duration_s: float, seed: int
    ) -> None:
        self.job, self.duration_s = job, duration_s
        self.random = random.Random(seed)
        self.machines, self.restarts = Machines(len(histories)), Restarts(job.max_restarts)
        self.faults = [list(reversed(history)) for history in histories]
        self.idle = set(range(len(histories)))  # alive, not in the run
        self.used: set[int] = set()  # alive, in the run or in its last attempt
        self.unchecked: set[int] = set()  # back from repair, not yet through the full preflight
        self.parts = dict.fromkeys(
            (STEP, RECOMPUTE, FEWER_NODES, "checkpoint", "detect", "restart", "queue", "stopped"),
            0.0,
        )
        self.stepping_s = self.running_s = 0.0
        self.failures = self.regrown = self.caught = self.checkpoints = 0
        self.now_s = self.since_s = 0.0
        self.doing = "queue"
        self.size = 0
        self.order = 0
        self.epoch = 0  # of the run's state: what was planned in an earlier one does not happen
        self.heap: list[tuple[float, int, int | None, Callable[[], None]]] = []
        for node in range(len(histories)):
            self._await_fault(node)

    def to_the_end(self) -> None:
        self._place()
        while self.heap and self.heap[0][0] < self.duration_s:
            self.now_s, _, epoch, action = heapq.heappop(self.heap)
            if epoch is None or epoch == self.epoch:
                action()
        self.now_s = self.duration_s
        self._spent(lost=False)

    def outcome(self) -> Outcome:
        shares = {name: seconds / self.duration_s for name, seconds in self.parts.items()}
        goodput = shares.pop(STEP)
        badput = dict(sorted(shares.items(), key=lambda item: -item[1]))
        stepping, running = self.stepping_s / self.duration_s, self.running_s / self.duration_s
        return Outcome(stepping, running, goodput, badput, self.failures, self.regrown, self.caught)

    # The fleet

    def _await_fault(self, node: int) -> None:
        """The node's next fault that begins while it is up."""
        faults = self.faults[node]
        while faults and faults[-1].start_s < self.now_s:
            faults.pop()
        if faults:
            fault = faults[-1]
            self._at(fault.start_s, lambda: self._fault(node, fault))

    def _fault(self, node: int, fault: Fault) -> None:
        if not self.faults[node] or self.faults[node][-1] is not fault:
            return  # the preflight found it before
        hit = node in self.used and self.doing in ("run", "restart")
        self._down(node, fault.end_s)
        self.machines.failed(node, self.now_s, hardware=fault.hardware)
        if hit:
            self._failed(hardware=fault.hardware)

    def _down(self, node: int, end_s: float) -> None:
        self.faults[node].pop()
        self.idle.discard(node)
        self.used.discard(node)
        self._at(max(end_s, self.now_s), lambda: self._back(node))

    def _back(self, node: int) -> None:
        if self.machines.retired(node, self.now_s):
            self._at(self.now_s + self.job.review_s, lambda: self._returned(node))
        else:
            self._returned(node)

    def _returned(self, node: int) -> None:
        self.machines.repaired(node, self.now_s)
        self.idle.add(node)
        self.unchecked.add(node)
        self._await_fault(node)
        if self.doing == "queue":
            self._place()
        elif self.doing == "run":
            self._plan_growth()

    def _still_bad(self, node: int) -> bool:
        """Whether the full preflight of a node that comes from repair finds its next fault."""
        self.unchecked.discard(node)
        faults = self.faults[node]
        soon = bool(faults) and faults[-1].start_s - self.now_s < STILL_BAD_S
        return soon and self.random.random() < self.job.caught

    # The run

    def _failed(self, *, hardware: bool) -> None:
        self._spent(lost=True)
        self.failures += 1
        delay_s = self.restarts.delay_s(self.now_s, self.checkpoints, hardware=hardware)
        self._turn("detect")
        noticed_s = self.now_s + self.job.detect_s
        if delay_s is None:
            self._plan(noticed_s, self._stop)
        else:
            self._plan(noticed_s, self._wait)
            self._plan(noticed_s + delay_s, self._place)

    def _wait(self) -> None:
        """From here on it is the back-off that costs time, in the same state of the run."""
        self._spent(lost=False)
        self.doing = "back_off"

    def _stop(self) -> None:
        self._turn("stopped")
        self._plan(self.now_s + self.job.human_s, self._begun_by_hand)

    def _begun_by_hand(self) -> None:
        self.restarts.begun_by_hand()
        self._place()

    def _place(self) -> None:
        """Begin an attempt, or wait for nodes."""
        placed = self._choice()
        if placed is not None:
            self._restart(placed)
        elif self.doing != "queue":
            self._turn("queue")

    def _choice(self) -> set[int] | None:
        """The best nodes that pass the preflight; None if there are too few."""
        job = self.job
        while True:
            placed = self.machines.place(self.idle, self.used, job.min_nodes, job.nodes, self.now_s)
            refused = sorted(placed & self.unchecked) if placed else []
            refused = [node for node in refused if self._still_bad(node)]
            if not refused:
                return placed
            for node in refused:
                self.caught += 1
                self.machines.refused(node, self.now_s)
                fault = self.faults[node][-1]
                self._down(node, self.now_s + fault.end_s - fault.start_s)

    def _restart(self, placed: set[int]) -> None:
        self.used, self.idle = placed, (self.idle | self.used) - placed
        self._turn("restart")
        self._plan(self.now_s + self.job.restart_s, self._run)

    def _run(self) -> None:
        self._turn("run")
        self.size = len(self.used)
        self._plan_growth()

    def _plan_growth(self) -> None:
        """Look, at the first checkpoint after the cool-down, whether a larger attempt pays."""
        if self.size >= self.job.nodes or not self.idle:
            return
        cycle_s = self.job.interval_s + self.job.stall_s
        earliest_s = max(self.now_s - self.since_s, self.job.cooldown_s)
        cycles = max(math.ceil(earliest_s / cycle_s - 1e-9), 1)
        self._plan(self.since_s + cycles * cycle_s, self._grow)

    def _grow(self) -> None:
        placed = self._choice()
        size = 0 if placed is None else len(placed)
        if worth_growing(
            self.size, size, self.duration_s - self.now_s, self.job.restart_s,
            self.now_s - self.since_s, self.job.cooldown_s,
        ):  # fmt: skip
            assert placed is not None
            self.regrown += 1
            self._restart(placed)

    # The books

    def _turn(self, doing: str) -> None:
        self._spent(lost=False)
        self.doing = doing
        self.epoch += 1

    def _spent(self, *, lost: bool) -> None:
        """Book the time since the last turn; `lost`: steps since the last checkpoint are."""
        spent_s = self.now_s - self.since_s
        self.since_s = self.now_s
        if self.doing != "run":
            self.parts["queue" if self.doing == "back_off" else self.doing] += spent_s
            return
        interval_s, stall_s = self.job.interval_s, self.job.stall_s
        cycles, rest_s = divmod(spent_s + 1e-6, interval_s + stall_s)
        unsaved_s = max(min(rest_s - 1e-6, interval_s), 0.0)
        kept_s = cycles * interval_s + (0.0 if lost else unsaved_s)
        self.checkpoints += int(cycles)
        share = self.size / self.job.nodes
        self.parts[STEP] += kept_s * share
        self.parts[RECOMPUTE] += unsaved_s * share if lost else 0.0
        stepped_s = cycles * interval_s + unsaved_s
        self.parts[FEWER_NODES] += stepped_s * (1 - share)
        self.parts["checkpoint"] += spent_s - stepped_s
        self.stepping_s += stepped_s
        self.running_s += spent_s

    def _at(self, time_s: float, action: Callable[[], None]) -> None:
        """Do something about the fleet, whatever the run does by then."""
        self._push(time_s, None, action)

    def _plan(self, time_s: float, action: Callable[[], None]) -> None:
        """Do something about the run, if it is still in this state."""
        self._push(time_s, self.epoch, action)

    def _push(self, time_s: float, epoch: int | None, action: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.heap, (time_s, self.order, epoch, action))
