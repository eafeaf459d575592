"""What runs on every node beside the workers: eyes and hands of the run, an actor without a CPU.

The actor starts its node's checks, reads the signs of life of its node's ranks, dumps their stacks
and ends them when told to. A node whose agent does not answer is taken for gone.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scalewright.health.agent import Agent
from scalewright.health.checks import light_checks
from scalewright.health.child import Reply, ask_once
from scalewright.health.finding import Finding
from scalewright.health.fingerprint import Fingerprint
from scalewright.health.machine import identify
from scalewright.health.node_preflight import NodePreflight, free_port
from scalewright.health.pair import PairResult
from scalewright.health.stacks import Stack, ask_traces, dump_all
from scalewright.health.stop_order import order_stop
from scalewright.health.xid import XidEvent
from scalewright.health.xid_history import History, known_to, remembered
from scalewright.heartbeat import Beat, beat_folder, read_beats, remove_beats

MEASURE_S = 30.0

# Long work has threads of its own, so that reports are given meanwhile.
_WORK, _WORKERS = "work", 3

Attempt = tuple[str, int]  # the run's folder, and the number of the attempt


@dataclass(frozen=True)
class Report:
    """What an agent tells: which machine, what was found on it, and the beats of its ranks.

    `source`: where the machine's serial is from. `xids`: all that it heard of.
    """

    machine: str
    boot_id: str
    source: str
    findings: tuple[Finding, ...]
    beats: tuple[Beat, ...]
    xids: tuple[XidEvent, ...] = ()


@dataclass(frozen=True)
class Eyes:
    """What agents look at. `shadow`: checks that are recorded only; `folders`: storage to try.

    `preflight`: find out the node's fingerprint at once.
    """

    folders: tuple[Path, ...]
    expected_gpus: int | None
    period_s: float
    shadow: tuple[str, ...]
    preflight: bool = True


class NodeAgent:
    """The actor. Every method returns at once, or within the time that it is given.

    It waits with its checks until they are wanted: that of an attempt to come is there for long.
    """

    def __init__(self, eyes: Eyes) -> None:
        self._machine = identify()
        self._eyes = eyes
        self._health: Agent | None = None
        self._xids: History = {}
        self._preflight = NodePreflight()
        if eyes.preflight:
            self._preflight.begin()

    def report(self, of: Attempt | None) -> Report:
        """The ranks are those of an attempt, where one is named."""
        found = tuple(read_beats(_beats(of))) if of else ()
        findings = self._health.look() if self._health else ()
        one = self._machine
        xids = self._xids.get(one.serial, ())
        return Report(one.serial, one.boot_id, one.source, findings, found, xids)

    def watch(self, xids: History = MappingProxyType({})) -> None:
        """Begin with the checks; `xids` are those of attempts before."""
        if self._health is None:
            eyes = self._eyes
            checks = light_checks(
                expected_gpus=eyes.expected_gpus,
                folders=eyes.folders,
                gpu_history=known_to(self._machine.serial, xids),
                gpu_events=self._hear,
            )
            self._health = Agent(checks, eyes.period_s, frozenset(eyes.shadow))

    def _hear(self, xids: Sequence[XidEvent]) -> None:
        self._xids = remembered(self._xids, self._machine.serial, xids, time.time())

    def first_look(self, within_s: float) -> bool:
        """Begin with the checks and wait until every one was tried once."""
        self.watch()
        assert self._health is not None
        return self._health.wait(within_s)

    def stop_after(self, of: Attempt, step: int) -> None:
        """Order the ranks of this node to save after so many steps, and to end."""
        order_stop(_beats(of), step)

    def stacks(self, of: Attempt, within_s: float) -> dict[int, Stack]:
        """Where the threads of this node's ranks are."""
        folder = _beats(of)
        return dump_all(folder, read_beats(folder), within_s)

    def traces(self, of: Attempt, within_s: float) -> dict[int, bytes]:
        """The last collectives of this node's ranks, of those that answer in time."""
        folder = _beats(of)
        return ask_traces(folder, [beat.rank for beat in read_beats(folder)], within_s)

    def wall_clock_s(self) -> float:
        return time.time()

    @ray.method(concurrency_group=_WORK)
    def fingerprint(self, within_s: float) -> Fingerprint | None:
        """What the node runs, found once in the agent's life; None without an answer."""
        return self._preflight.fingerprint(within_s)

    @ray.method(concurrency_group=_WORK)
    def measure(self, budget: str, again: bool) -> dict[str, list[dict[str, Any]]]:
        """The devices by budget, as `NodePreflight.measure`."""
        return self._preflight.measure(budget, again=again)

    def free_port(self) -> int:
        return free_port()

    @ray.method(concurrency_group=_WORK)
    def meet(
        self, rank: int, place: str, device: str, within_s: float, variables: dict[str, str]
    ) -> PairResult:
        """Take part in a test of two nodes."""
        return self._preflight.meet(rank, place, device, within_s, variables)

    @ray.method(concurrency_group=_WORK)
    def speed(self) -> float | None:
        """How fast this node multiplies matrices now, in FLOP/s; None without an answer."""
        answer = ask_once("measure", {"budget": "light"}, MEASURE_S)
        if not isinstance(answer, Reply):
            return None
        return min(float(device["matmul_flops_per_s"]) for device in answer.value)

    def kill_ranks(self, of: Attempt) -> int:
        """SIGKILL the ranks of this node; how many were there.

        Their signs of life are removed with those of all attempts of the run.
        """
        alive = [beat.pid for beat in read_beats(_beats(of)) if beat.process is not None]
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.forget_ranks(of)
        return len(alive)

    def forget_ranks(self, of: Attempt) -> None:
        """Remove the signs of life of ranks that came to their end."""
        remove_beats(Path(of[0]))


def _beats(of: Attempt) -> Path:
    """Where this node's ranks beat: its own memory, so that only the node itself can tell."""
    return beat_folder(Path(of[0]), of[1])


class Agents:
    """The agents of the nodes, by Ray's node id; those that died are started again when asked."""

    def __init__(self, eyes: Eyes) -> None:
        self._eyes = eyes
        self._actors: dict[str, Any] = {}
        self._lock = threading.Lock()  # one thread watches, another looks for nodes
        self._xids: History | None = None  # none while nothing is watched

    def on(self, nodes: Collection[str]) -> None:
        """Have an agent on each of these nodes, and on no other."""
        with self._lock:
            for gone in self._actors.keys() - set(nodes):
                del self._actors[gone]
            for node in set(nodes) - self._actors.keys():
                self._actors[node] = _Remote.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
                ).remote(self._eyes)
                if self._xids is not None:
                    self._actors[node].watch.remote(self._xids)

    def watch(self, xids: History, within_s: float) -> None:
        """Have all agents begin with their checks, also those that are started from now on."""
        with self._lock:
            self._xids = xids
        self.ask("watch", xids, within_s=within_s)

    def ask(self, method: str, *arguments: Any, within_s: float) -> dict[str, Any]:
        """Call a method on every agent; answers by node, without those that gave none in time."""
        with self._lock:
            nodes = list(self._actors)
        return self.ask_each(method, dict.fromkeys(nodes, arguments), within_s)

    def ask_each(
        self, method: str, arguments: Mapping[str, tuple[Any, ...]], within_s: float
    ) -> dict[str, Any]:
        """The same, with arguments for each node that is to be asked."""
        with self._lock:
            actors = {node: self._actors[node] for node in arguments if node in self._actors}
        calls = {n: getattr(actor, method).remote(*arguments[n]) for n, actor in actors.items()}
        return self._collect(calls, actors, within_s)

    def _collect(
        self, calls: dict[str, Any], asked: Mapping[str, Any], within_s: float
    ) -> dict[str, Any]:
        ready: Sequence[Any]
        ready, _ = (
            ray.wait(list(calls.values()), num_returns=len(calls), timeout=within_s)
            if (calls)
            else ([], [])
        )
        answered = set(ready)
        answers = {}
        for node, call in calls.items():
            if call not in answered:
                continue
            try:
                answers[node] = ray.get(call)
            except ray.exceptions.RayError:
                with self._lock:
                    if self._actors.get(node) is asked[node]:
                        del self._actors[node]  # it died; the next `on` starts another
        return answers


_Remote: Any = ray.remote(  # type: ignore[call-overload]
    num_cpus=0, max_concurrency=4, concurrency_groups={_WORK: _WORKERS}
)(NodeAgent)
