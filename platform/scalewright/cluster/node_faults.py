"""When the nodes of a fleet fail and are back: histories from a trace, or from rates.

A trace is a JSON list of `fault_start` and `fault_end` events with `node_id` and `event_time` in
days, as in the StepFun InfiniteHBD trace (github.com/stepfun-ai/InfiniteHBD-Trace): a node cannot
be used in between.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scalewright.errors import ConfigError, DataError

DAY_S = 86_400.0
_HARDWARE = "Hardware Failure"
# Repair times of the trace: median 0.85 days, mean 5.5 days; a log-normal with both.
REPAIR_MEDIAN_S = 0.85 * DAY_S
REPAIR_SIGMA = math.sqrt(2 * math.log(5.5 / 0.85))
# Of nodes that get the same history the later ones fail on the same day, as in a burst, but not in
# the same second.
_APART_S = DAY_S / 2


@dataclass(frozen=True, slots=True)
class Fault:
    """A node is down from `start_s` to `end_s`; `hardware`: what broke is known to be a part."""

    start_s: float
    end_s: float
    hardware: bool


History = tuple[Fault, ...]


@dataclass(frozen=True)
class Trace:
    """The histories of the nodes that failed at all, of `nodes` nodes watched for `length_s`."""

    histories: tuple[History, ...]
    nodes: int
    length_s: float

    @property
    def faults_per_node_s(self) -> float:
        return sum(map(len, self.histories)) / (self.nodes * self.length_s)

    def draw(self, count: int, seed: int, duration_s: float) -> list[History]:
        """`count` histories with replacement; the first of more are those of fewer.

        As many as the trace has nodes are those of its nodes, each once and unchanged.
        """
        if duration_s > self.length_s:
            raise ConfigError(
                f"--days {duration_s / DAY_S:g}: the trace has {self.length_s / DAY_S:g} days; "
                "simulate fewer, or give --faults-per-1000-node-days instead"
            )
        if count == self.nodes:
            order = np.random.default_rng(seed).permutation(count)
            return [self._moved(int(index), 0.0, duration_s) for index in order]
        drawn: list[History] = []
        seen: set[int] = set()
        for node in range(count):
            random = np.random.default_rng((seed, node))
            index = int(random.integers(self.nodes))
            apart_s = random.uniform(-_APART_S, _APART_S) if index in seen else 0.0
            seen.add(index)
            drawn.append(self._moved(index, apart_s, duration_s))
        return drawn

    def _moved(self, node: int, by_s: float, duration_s: float) -> History:
        """A node's history by so much later; those of nodes without a fault come last."""
        history = self.histories[node] if node < len(self.histories) else ()
        moved = (
            Fault(max(fault.start_s + by_s, 0.0), fault.end_s + by_s, fault.hardware)
            for fault in history
        )
        return tuple(fault for fault in moved if fault.end_s > 0 and fault.start_s < duration_s)


@dataclass(frozen=True)
class Rates:
    """Faults at random: so many per 1,000 node-days that a node is up.

    `shape` of the Gamma distribution of times between faults of a node: 1 is Poisson; less makes
    bursts. At 0.3 a repaired node fails again within a week in every fourth case (31 % in the
    trace). `hardware_share` of the faults are known to be of a part.
    """

    faults_per_1000_node_days: float = 4.2
    shape: float = 1.0
    hardware_share: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} = {value}; more than 0, and finite")
        if self.hardware_share > 1:
            raise ConfigError(f"hardware_share = {self.hardware_share}; at most 1")

    @property
    def faults_per_node_s(self) -> float:
        return self.faults_per_1000_node_days / 1000 / DAY_S

    def draw(self, count: int, seed: int, duration_s: float) -> list[History]:
        """`count` histories; the first of more are those of fewer."""
        return [self._history((seed, node), duration_s) for node in range(count)]

    def _history(self, key: tuple[int, int], duration_s: float) -> History:
        random = np.random.default_rng(key)
        scale_s = 1 / (self.faults_per_node_s * self.shape)
        # A node is watched from the midst of a time between faults on: the rest of it.
        time_s = random.gamma(self.shape + 1, scale_s) * random.random()
        faults = []
        while time_s < duration_s:
            end_s = time_s + random.lognormal(math.log(REPAIR_MEDIAN_S), REPAIR_SIGMA)
            faults.append(Fault(time_s, end_s, bool(random.random() < self.hardware_share)))
            time_s = end_s + random.gamma(self.shape, scale_s)
        return tuple(faults)


def read_trace(path: Path, nodes: int) -> Trace:
    """The trace in the file `path` of `nodes` nodes; those that never failed are not in it."""
    try:
        events = json.loads(path.read_text(encoding="utf-8"))
        length_s = max(float(event["event_time"]) for event in events) * DAY_S
        by_node: dict[str, list[dict[str, object]]] = {}
        for event in sorted(events, key=lambda event: float(event["event_time"])):
            by_node.setdefault(event["node_id"], []).append(event)
        histories = tuple(_history(node) for node in by_node.values())
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a fault trace: {error!r}") from None
    if len(histories) > nodes:
        raise DataError(f"{path}: {len(histories)} nodes failed, of {nodes}; see --trace-nodes")
    return Trace(histories, nodes, length_s)


def _history(events: Sequence[dict[str, object]]) -> History:
    """Faults from the starts and ends of one node; what has not ended is down for ever."""
    faults: list[Fault] = []
    start: dict[str, object] | None = None
    for event in events:
        if event["event_type"] == "fault_start":
            start = start or event
        elif start is not None:
            faults.append(_fault(start, float(str(event["event_time"]))))
            start = None
    if start is not None:
        faults.append(_fault(start, math.inf))
    return tuple(faults)


def _fault(start: dict[str, object], end_days: float) -> Fault:
    kind = start["fault_type"]
    assert isinstance(kind, dict)
    begin_s = float(str(start["event_time"])) * DAY_S
    return Fault(begin_s, end_days * DAY_S, kind["Level"] == _HARDWARE)
