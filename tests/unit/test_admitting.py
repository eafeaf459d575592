"""A run's admissions over attempts, before a process that answers as it is told to."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pytest
from ranks import small

from scalewright.cluster.admitting import PREFLIGHT, Admission, read_passed
from scalewright.cluster.ledger import Ledger
from scalewright.cluster.notes import Notes
from scalewright.cluster.placement import Node, choose_workers
from scalewright.cluster.process import AttemptProcess
from scalewright.errors import ConfigError
from scalewright.events import EVENTS_FILE, EventLog, Notice, read_events
from scalewright.health.preflight import Measurement

CPU = asdict(Measurement("cpu", "cpu", 1e11, 1e10, None, None, "cccc"))
SLOW = CPU | {"matmul_flops_per_s": 1e9}
Answer = Callable[[dict[str, Any]], dict[str, Any]]


class Told:
    """In place of an attempt's process: `measured` says what nodes measure the first time, then."""

    def __init__(self, images: dict[str, str], *measured: dict[str, Any]) -> None:
        self.images, self.measured = images, list(measured)
        self.orders: list[dict[str, Any]] = []
        self.joined = True
        self._words: list[dict[str, Any]] = []

    def said(self, word: str) -> bool:
        return word == "joined" and self.joined

    def tell(self, do: str, **order: Any) -> None:
        self.orders.append({"do": do, **order})
        if do == "identify":
            told: dict[str, Any] = {
                node: {"clock_offset_s": 0.0, "fingerprint": {"image": self.images[node]}}
                for node in order["nodes"]
            }
            self._words.append({"is": "identified", "nodes": told})
        else:
            now = self.measured.pop(0) if self.measured else {}
            told = {node: {"light": [now.get(node, CPU)]} for node in order["nodes"]}
            word = {"tag": order["tag"], "measured": told, "rounds": []}
            # One of another order, that nobody waits for any more, comes first.
            self._words += [{"is": "measured", **word, "tag": -1}, {"is": "measured", **word}]

    def wait_for(self, word: str, within_s: float) -> dict[str, Any]:
        heard = self._words.pop(0)
        return heard if heard["is"] == word else self.wait_for(word, within_s)

    def hear(self, within_s: float) -> dict[str, Any] | None:
        return self._words.pop(0) if self._words else None

    @property
    def process(self) -> AttemptProcess:
        return cast(AttemptProcess, self)

    def did(self) -> list[str]:
        return [order["do"] for order in self.orders]


class Run:
    """A run's admission, with its event log and ledger."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder, self.config = folder, small("parallel.workers=2", *settings)
        self.ledger = Ledger(folder / "ledger.db")
        self.notes = Notes(self.ledger, "run")
        self.log = EventLog(folder / EVENTS_FILE, 1)
        self.admission = Admission(self.config, folder, self.notes)

    def nodes(self, count: int) -> list[Node]:
        refused = [self.admission.refused(f"m{index}", "boot") for index in range(count)]
        return [
            Node(f"m{i}", f"n{i}", 1, None if why else 0, boot_id="boot", refused=why)
            for i, why in enumerate(refused)
        ]

    def place(self, told: Told, count: int, *, restart: bool = False) -> dict[str, int]:
        """As `Placing` does: until a placement is admitted."""
        while True:
            nodes = self.nodes(count)
            placed = choose_workers(self.config, nodes)
            if self.admission.admit(told.process, nodes, placed, self.log, 1, restart=restart):
                return placed

    def ends(self) -> list[dict[str, Any]]:
        events, _ = read_events(self.folder / EVENTS_FILE, 0, max_bytes=1 << 20)
        found = [e for e in events if isinstance(e, Notice) and "took_s" in e.fields]
        return [dict(event.fields) for event in found]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    one = Run(tmp_path)
    yield one
    one.log.close()


def images(*told: str) -> dict[str, str]:
    return {f"n{index}": image for index, image in enumerate(told)}


def test_all_nodes_are_measured_at_first_and_none_in_a_restart(run: Run) -> None:
    told = Told(images("a", "a", "a"))
    assert run.place(told, 3) == {"n0": 1, "n1": 1}
    assert told.did() == ["identify", "measure", "identify"]
    assert told.orders[1]["nodes"] == {"n0": "light", "n1": "light", "n2": "light"}
    told.orders.clear()
    assert run.place(told, 3, restart=True)
    assert told.did() == ["identify"]
    # A supervisor to come knows it, too.
    again = Told(images("a", "a", "a"))
    assert Run(run.folder).place(again, 3)
    assert again.did() == ["identify"]


def test_a_node_alone_is_not_compared(run: Run) -> None:
    run.config = small("parallel.workers=1")
    told = Told(images("a"))
    assert run.place(told, 1) == {"n0": 1}
    assert not told.orders


def test_a_node_that_differs_is_left_out_and_is_no_evidence(run: Run) -> None:
    assert run.place(Told(images("b", "a", "a")), 3) == {"n1": 1, "n2": 1}
    assert "image is 'b'" in run.ends()[0]["refused"]["m0"]
    assert run.ends()[0]["measured"] == []
    assert not run.ledger.history("m0")


def test_two_that_differ_stop_the_run_and_are_named(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"m0 is refused: fingerprint.*\n.*m1 is refused") as told:
        run.place(Told(images("b", "a")), 2)
    assert "the cluster has 0 CPUs" in str(told.value)


def test_a_node_that_is_slow_twice_is_refused_and_noted(run: Run) -> None:
    told = Told(images("a", "a", "a", "a"), {"n1": SLOW}, {"n1": SLOW})
    assert run.place(told, 4) == {"n0": 1, "n2": 1}
    measured = [order for order in told.orders if order["do"] == "measure"]
    assert [order["again"] for order in measured] == [False, True]
    assert measured[1]["nodes"] == {"n1": "light"}
    assert [one.kind for one in run.ledger.history("m1")] == ["preflight_failed"]  # type: ignore[union-attr]
    assert run.ends()[0]["refused"]["m1"].startswith("preflight.speed: matrix products at 1%")
    assert set(read_passed(run.folder / PREFLIGHT)) == {"m0", "m2", "m3"}


def test_noise_is_measured_away(run: Run) -> None:
    told = Told(images("a", "a", "a"), {"n1": SLOW})
    assert run.place(told, 3) == {"n0": 1, "n1": 1}
    assert not run.ledger.history("m1")
    known = read_passed(run.folder / PREFLIGHT)["m1"]
    assert known.devices["light"][0].matmul_flops_per_s == CPU["matmul_flops_per_s"]


def test_a_check_in_shadow_refuses_nobody(tmp_path: Path) -> None:
    run = Run(tmp_path, "health.shadow=['fingerprint','preflight']")
    told = Told(images("b", "a", "a"), {"n0": SLOW}, {"n0": SLOW})
    assert run.place(told, 3) == {"n0": 1, "n1": 1}
    assert not run.ledger.history("m0")


def test_without_preflight_nobody_is_asked(tmp_path: Path) -> None:
    run, told = Run(tmp_path, "health.preflight=false"), Told(images("b", "a"))
    assert run.place(told, 2)
    assert not told.orders


def test_idle_nodes_are_measured_by_the_process_that_stands_by(run: Run) -> None:
    assert run.place(Told(images("a", "a", "a")), 3)
    standby = Told(images(*"aaaaa"), {"n3": SLOW}, {"n3": SLOW})

    def ahead() -> None:
        nodes = [replace(n, used=n.node_id in ("n0", "n1")) for n in run.nodes(5)]
        run.admission.ahead(standby.process, nodes, run.log, 1)

    standby.joined = False
    ahead()
    assert not standby.orders
    standby.joined = True
    for _ in range(4):
        ahead()
    assert [order["nodes"] for order in standby.orders] == [
        {"n3": "light", "n4": "light"}, {"n3": "light"},
    ]  # fmt: skip
    assert run.admission.refused("m3", "boot")
    assert not run.admission.refused("m4", "boot")
    assert not run.admission.refused("m3", "another boot")


def test_clones_are_refused(run: Run) -> None:
    state = {"node_id": "n0", "machine": "m0", "boot_id": "boot", "source": "x", "answers": True}
    other = state | {"node_id": "n1", "boot_id": "boot2"}
    run.admission.tell_apart([state, other | {"answers": False}])
    assert not run.admission.refused("m0", "boot2")
    run.admission.tell_apart([state, other])
    assert "share one history" in run.admission.refused("m0", "boot2")


@pytest.mark.parametrize("text", ['{"m0": {"time', "[]", '{"m0": 5}', '{"m0": {"time_s": "x"}}'])
def test_a_damaged_file_is_measured_anew(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / PREFLIGHT
    assert read_passed(path) == {}
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert read_passed(path) == {}
    assert "is damaged" in caplog.text
    path.write_text(json.dumps({}))
    assert read_passed(path) == {}
