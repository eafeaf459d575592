"""A run on a Ray cluster of several nodes of this machine, to be disturbed while it trains."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from clusters import RAY, Head, RayNode, ray_head, ray_node
from commands import ROOT, SMALL

from scalewright.cluster.ledger import Ledger
from scalewright.events import EVENTS_FILE, Event, Metrics, Notice, read_events
from scalewright.train.manifest import CHECKPOINTS, committed

# Steps without end, saved often, and limits that suit a test.
ENDLESS = (
    "steps=1000000", "log.validate_every_steps=1000000", "log.sample_clips=0", "log.every_steps=1",
    "checkpoint.every_steps=20", "optimizer.lr_peak=1e-4", "guard.skip=false",
    # Two cores are shared by all nodes: a step beside imports is many times slower than others.
    "health.hang_min_s=20", "health.hang_factor=1.5", "health.frozen_s=15", "health.compile_s=60",
    "parallel.workers=2", "parallel.min_workers=1", "parallel.max_restarts=3",
    # Nodes that share two cores are not equally fast.
    "health.shadow=['preflight.speed']",
)  # fmt: skip

# As docs/operations.md sets them on every node.
NODES = {
    "SCALEWRIGHT_SHIP_CODE": "0",
    "SABOTAGE_PAUSE_S": "0.25",
    "RAY_worker_niceness": "0",
    "RAY_object_manager_pull_timeout_ms": "1000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass
class Storm:
    """The run, its cluster, and what is seen of both."""

    home: Path
    head: Head
    settings: tuple[str, ...]
    kept: contextlib.ExitStack
    name: str = "storm"
    nodes: dict[str, RayNode] = field(default_factory=dict)
    driver: subprocess.Popen[str] = field(init=False)
    _events: list[Event] = field(default_factory=list)
    _read: int = 0

    @property
    def folder(self) -> Path:
        return self.home / "runs" / self.name

    def add_node(
        self, cpus: int = 1, settings: Mapping[str, str] | None = None, *, wait: bool = False
    ) -> RayNode:
        """Another machine, by the next name; `wait` until it has joined."""
        name = f"machine-{len(self.nodes)}"
        there = 2 + sum(node.alive for node in self.nodes.values()) if wait else None
        node = self.kept.enter_context(ray_node(self.head, cpus, name, there, settings))
        self.nodes[name] = node
        return node

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.home / "ledger.db")

    def start(self) -> None:
        """Start the job, or start it again."""
        with (self.home / "job.log").open("a") as log:
            self.driver = subprocess.Popen(
                [sys.executable, str(ROOT / "jobs" / "pretrain.py"), *SMALL, *self.settings,
                 f"name={self.name}"],
                cwd=self.home,
                env=self.head.environment
                | {"RAY_ADDRESS": self.head.gcs, "SCALEWRIGHT_HOME": str(self.home)},
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )  # fmt: skip

    def stop(self) -> None:
        """End the job without asking; its attempts end with it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.driver.pid, signal.SIGKILL)
        self.driver.wait()

    def events(self) -> list[Event]:
        while True:  # a piece at a time
            before = self._read
            new, self._read = read_events(self.folder / EVENTS_FILE, before)
            self._events += new
            if self._read == before:
                return self._events

    def steps(self) -> list[Metrics]:
        return [event for event in self.events() if isinstance(event, Metrics)]

    def notices(self, kind: str, since_s: float = 0.0) -> list[Notice]:
        found = [event for event in self.events() if isinstance(event, Notice)]
        return [event for event in found if event.kind == kind and event.time_s >= since_s]

    def attempt(self) -> int:
        """The attempt that takes steps now."""
        return self.steps()[-1].attempt

    def saved(self) -> int:
        """The step of the newest checkpoint, 0 without one."""
        names = [path.name for path in committed(self.folder / CHECKPOINTS)]
        return int(names[0].removeprefix("step-")) if names else 0

    def wait(self, condition: Callable[[], bool], limit_s: float = 120.0) -> float:
        """Wait until it holds while the job lives; returns how long it took."""
        begin = time.monotonic()
        while not condition():
            assert self.driver.poll() is None, f"the job ended: {self.log()}"
            assert time.monotonic() - begin < limit_s, f"not within {limit_s} s: {self.log()}"
            time.sleep(0.1)
        return time.monotonic() - begin

    def settle(self, steps: int = 25, limit_s: float = 280.0) -> None:
        """Wait until the newest attempt has taken and saved steps, and the next one stands by."""
        self.wait(lambda: len(self.steps()) > 0, limit_s)

        def settled() -> bool:
            of_now = [each for each in self.steps() if each.attempt == self.attempt()]
            saves, ready = (
                [each for each in self.notices(kind) if each.attempt == self.attempt()]
                for kind in ("saved", "standby")
            )
            return len(of_now) >= steps and bool(saves) and bool(ready)

        self.wait(settled, limit_s)
        self.wait(self._imported(), limit_s)

    def _imported(self) -> Callable[[], bool]:
        """Whether the processes that wait have imported: they take no more CPU."""
        before: dict[int, float] = {}
        looked_s = 0.0

        def still() -> bool:
            nonlocal before, looked_s
            if time.monotonic() - looked_s < 2:
                return False
            heads = (self.head.leader, *(n.leader for n in self.nodes.values() if n.alive))
            family = [p for leader in heads for p in psutil.Process(leader.pid).children(True)]
            waiting = [p for p in family if "ray::IDLE" in _title(p)]
            now = {p.pid: sum(p.cpu_times()[:2]) for p in waiting if p.is_running()}
            done = bool(now) and all(now[pid] - before.get(pid, 0.0) < 0.2 for pid in now)
            before, looked_s = now, time.monotonic()
            return done

        return still

    def attempts(self) -> list[psutil.Process]:
        """The job's attempt processes, oldest first."""
        children = psutil.Process(self.driver.pid).children()
        return sorted(
            (p for p in children if "scalewright.cluster.attempt" in " ".join(p.cmdline())),
            key=lambda process: process.create_time(),
        )

    def used(self) -> dict[str, RayNode]:
        """The nodes on which ranks are."""
        return {name: node for name, node in self.nodes.items() if node.alive and node.workers()}

    def after(self, fault: Callable[[], None], limit_s: float = 120.0) -> "Aftermath":
        """Disturb the run, and see it take a step in another attempt."""
        before, last = self.attempt(), self.steps()[-1].step
        asked_s = time.time()
        fault()
        begin_s = time.time()  # orders take their time to be given
        self.wait(lambda: self.attempt() > before, limit_s)
        first = next(each for each in self.steps() if each.attempt > before)
        failed = self.notices("attempt_failed", asked_s)
        detected = self.notices("detected", asked_s) + self.notices("paused", asked_s) + failed
        return Aftermath(
            detected_s=min((e.time_s for e in detected), default=first.time_s) - begin_s,
            first_step_s=first.time_s - begin_s,
            lost_steps=last - first.step + 1,
            failure=dict(failed[0].fields) if failed else {},
        )

    def leaves(self, node: RayNode, within_s: int) -> None:
        """Have a node asked back, as a cloud does with one that it wants for others."""
        subprocess.run(
            [*RAY, "drain-node", f"--address={self.head.gcs}", f"--node-id={node.node_id}",
             "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=wanted by others",
             f"--deadline-remaining-seconds={within_s}"],
            env=self.head.environment,
            check=True,
            capture_output=True,
        )  # fmt: skip

    def log(self) -> str:
        return (self.home / "job.log").read_text()[-4000:]

    def sabotage(self, rank: int, do: str, **more: Any) -> None:
        """Have a rank do this in its next step."""
        _plan(self.home, rank, do, **more)


@dataclass(frozen=True)
class Aftermath:
    """What a fault cost: seconds to notice and to a new step, steps to be done again, the blame."""

    detected_s: float
    first_step_s: float
    lost_steps: int
    failure: Mapping[str, Any]


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def sabotaged(home: Path, rank: int, do: str, **more: Any) -> dict[str, str]:
    """The environment of a job with a rank that does this, in each step if `always`."""
    _plan(home, rank, do, **more)
    return _environment(home)


def _plan(home: Path, rank: int, do: str, **more: Any) -> None:
    plan = home / "sabotage.json"
    part = plan.with_suffix(".part")
    part.write_text(json.dumps({"rank": rank, "do": do, **more}))
    os.replace(part, plan)


def _environment(home: Path) -> dict[str, str]:
    roots = (ROOT / "tests" / "sabotage", ROOT / "platform", ROOT)
    return {
        "PYTHONPATH": os.pathsep.join(map(str, roots)),
        "SABOTAGE": str(home / "sabotage.json"),
    }


@contextlib.contextmanager
def storm(
    home: Path,
    data: Path,
    nodes: int,
    *settings: str,
    cpus: int = 1,
    environment: Mapping[str, str] | None = None,
    node_settings: Mapping[int, Mapping[str, str]] | None = None,
) -> Iterator[Storm]:
    """A run on so many nodes beside a head that holds no rank; all is gone afterwards.

    `environment` is set on every node, `node_settings` on those of this number.
    """
    home.mkdir(parents=True, exist_ok=True)
    variables = {**_environment(home), **NODES, **(environment or {})}
    with contextlib.ExitStack() as stack:
        head = stack.enter_context(ray_head(0, variables))
        made = Storm(home, head, (*ENDLESS, f"data.path={data}", *settings), stack)
        for index in range(nodes):
            made.add_node(cpus, (node_settings or {}).get(index), wait=True)
        made.start()
        try:
            yield made
        finally:
            made.stop()
