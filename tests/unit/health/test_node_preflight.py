"""A node's own side of the preflight: asked once, and what gives no answer is not known."""

import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from scalewright.health import node_preflight
from scalewright.health.child import Answer, Failed, Reply, Silent
from scalewright.health.node_preflight import NodePreflight, free_port
from scalewright.health.pair import PairResult


class Children:
    """In place of children: answers by reading, and what was asked."""

    def __init__(self, **answers: Answer) -> None:
        self.answers, self.asked = answers, list[str]()

    def ask_once(self, reading: str, question: Mapping[str, Any], deadline_s: float) -> Answer:
        self.asked.append(question.get("budget", reading))
        time.sleep(0.05)
        return self.answers[reading]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    made = Children(
        fingerprint=Reply({"torch": "2.13"}, 0.1),
        gpus=Reply({"gpus": [], "events": [], "absent": "no NVML", "broken": None,
                    "driver": None}, 0.1),
        measure=Reply([{"device": "cpu"}], 0.1),
    )  # fmt: skip
    monkeypatch.setattr(node_preflight, "ask_once", made.ask_once)
    return made


def test_a_fingerprint_is_found_once_however_many_ask(children: Children) -> None:
    node = NodePreflight()
    told: list[Any] = []
    threads = [threading.Thread(target=lambda: told.append(node.fingerprint(30))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert children.asked == ["fingerprint", "gpus"]
    assert [one["torch"] for one in told] == ["2.13"] * 4
    assert told[0]["gpus"] is None  # a node without GPUs, which is known


@pytest.mark.parametrize(
    "answer",
    [
        Silent(15, stuck=False),
        Reply({"gpus": [], "events": [], "absent": None, "broken": "version", "driver": None}, 0.1),
    ],
)
def test_what_nvml_does_not_tell_is_left_out(children: Children, answer: Answer) -> None:
    children.answers["gpus"] = answer
    assert NodePreflight().fingerprint(30) == {"torch": "2.13"}


def test_a_fingerprint_that_cannot_be_read_is_none(children: Children) -> None:
    children.answers["fingerprint"] = Failed("it ended")
    node = NodePreflight()
    assert node.fingerprint(30) is None
    assert node.fingerprint(30) is None
    assert children.asked == ["fingerprint"]


def test_what_was_measured_is_known_unless_asked_again(children: Children) -> None:
    node = NodePreflight()
    both = [threading.Thread(target=node.measure, args=("light",)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert children.asked == ["light"]
    assert set(node.measure("full")) == {"light", "full"}
    assert children.asked == ["light", "full"]
    children.answers["measure"] = Silent(60, stuck=False)
    assert node.measure("light", again=True)["light"] == []
    assert children.asked == ["light", "full", "light"]


def test_two_nodes_meet_at_a_port_that_is_free() -> None:
    place, results = f"127.0.0.1:{free_port()}", list[PairResult]()

    def take_part(rank: int) -> None:
        results.append(NodePreflight().meet(rank, place, "cpu", 120.0, {"OMP_NUM_THREADS": "1"}))

    sides = [threading.Thread(target=take_part, args=(rank,)) for rank in range(2)]
    for side in sides:
        side.start()
    for side in sides:
        side.join()
    assert [one.error for one in results] == [None, None]


def test_a_real_child_tells_the_software_of_this_node() -> None:
    told = NodePreflight().fingerprint(60)
    assert told is not None
    assert told["torch"]
