"""What is asked of nodes before they are used: real agents and children, called without Ray."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from scalewright.cluster.agents import Agents, Eyes, NodeAgent, _Remote
from scalewright.cluster.preflight import identify, measure
from scalewright.cluster.survey import Surveyor

EYES = Eyes(folders=(), expected_gpus=None, period_s=15.0, shadow=(), preflight=False)


class Nodes:
    """In place of a surveyor and its agents: those in `dead` never answer."""

    def __init__(self, *names: str, dead: Sequence[str] = ()) -> None:
        self.actors = {name: NodeAgent(EYES) for name in names}
        self.nodes = {
            name: {"NodeManagerAddress": "127.0.0.1", "Resources": {"CPU": 1.0}} for name in names
        }
        self.dead = set(dead)
        self.asked: list[str] = []

    def refresh(self) -> None: ...

    @property
    def agents(self) -> Agents:
        return cast(Agents, self)

    @property
    def surveyor(self) -> Surveyor:
        return cast(Surveyor, self)

    def ask_each(
        self, method: str, arguments: Mapping[str, tuple[Any, ...]], within_s: float
    ) -> dict[str, Any]:
        self.asked.append(method)
        there = [node for node in arguments if node in self.actors and node not in self.dead]
        with ThreadPoolExecutor(8) as threads:
            calls = {
                node: threads.submit(getattr(self.actors[node], method), *arguments[node])
                for node in there
            }
            return {node: call.result() for node, call in calls.items()}


def test_nodes_tell_clock_and_software_and_a_silent_one_nothing() -> None:
    told = identify(Nodes("a", "b", dead="b").agents, ["a", "b"])
    assert told["a"]["clock_offset_s"] == 0.0
    assert told["a"]["fingerprint"]["torch"]
    assert told["b"] == {"clock_offset_s": None, "fingerprint": None}


def test_two_nodes_are_measured_and_work_together() -> None:
    nodes = Nodes("a", "b")
    told = measure(
        nodes.surveyor, {"a": "light", "b": "light"}, {"OMP_NUM_THREADS": "1"}, again=False
    )
    assert {node: len(one["light"]) for node, one in told["measured"].items()} == {"a": 1, "b": 1}
    first, second, seconds = told["rounds"][0][0]
    assert (first, second) == ("a", "b")
    assert seconds > 0
    nodes.asked.clear()
    again = measure(nodes.surveyor, {"a": "light"}, {}, again=True)
    assert nodes.asked == ["measure"]
    assert again["rounds"] == []


def test_a_node_that_dies_meanwhile_has_failed_its_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalewright.cluster.preflight.DEADLINE_S", 1.0)
    nodes = Nodes("a", "b", dead="a")
    nodes.actors["b"]._preflight.measure = lambda budget, *, again=False: {"light": []}  # type: ignore[method-assign]
    told = measure(nodes.surveyor, {"a": "light", "b": "light"}, {}, again=False)
    assert told["measured"] == {"a": {}, "b": {"light": []}}
    assert [one for each in told["rounds"] for one in each] == [["a", "b", None]]


def test_long_work_does_not_wait_before_reports() -> None:
    groups = _Remote.__ray_metadata__.method_meta.concurrency_group_for_methods
    assert set(groups) == {"fingerprint", "measure", "meet", "speed"}
    agent = NodeAgent(EYES)
    begin_s = time.time()
    assert agent.report(None).machine
    assert agent.wall_clock_s() >= begin_s
