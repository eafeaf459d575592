"""Where an attempt goes while nodes come and go, before a process that answers as it is told to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from ranks import small

from scalewright.cluster import placing
from scalewright.cluster.ledger import Ledger
from scalewright.cluster.notes import Notes
from scalewright.cluster.placing import Placing
from scalewright.cluster.process import AttemptProcess
from scalewright.cluster.run_folder import RunStoppedError
from scalewright.errors import ConfigError
from scalewright.events import EVENTS_FILE, EventLog


def node(name: str, **more: Any) -> dict[str, Any]:
    return {
        "node_id": name, "machine": name, "boot_id": "1", "source": "set", "slots": 1,
        "answers": True, "leaves_s": None, "findings": (), "xids": (), **more,
    }  # fmt: skip


class Surveyed:
    """In place of an attempt's process: the nodes of each survey, then always those of the last."""

    def __init__(self, *surveys: list[dict[str, Any]]) -> None:
        self._surveys = list(surveys)

    def tell(self, do: str, **_: object) -> None:
        assert do == "survey"

    def wait_for(self, word: str, within_s: float) -> dict[str, Any]:
        return {"nodes": self._surveys.pop(0) if len(self._surveys) > 1 else self._surveys[0]}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "ASK_AGAIN_S", 0.01)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    log = EventLog(tmp_path / EVENTS_FILE, 1)
    yield log
    log.close()


def placing_in(folder: Path, *, joined: bool, wait_s: float = 0.2) -> Placing:
    config = small(
        "parallel.workers=2", "parallel.min_workers=2", "health.preflight=false",
        f"parallel.wait_for_nodes_s={wait_s}",
    )  # fmt: skip
    return Placing(config, folder, Notes(Ledger(folder / "ledger.db"), "run"), joined=joined)


def has_run(folder: Path) -> None:
    (folder / "checkpoints" / "step-00000004").mkdir(parents=True)


def asked(*surveys: list[dict[str, Any]]) -> AttemptProcess:
    return cast(AttemptProcess, Surveyed(*surveys))


def test_nodes_that_join_late_are_waited_for(tmp_path: Path, log: EventLog) -> None:
    two = [node("a"), node("b")]
    placed, _ = placing_in(tmp_path, joined=False, wait_s=30).place(
        asked([], [node("a")], two), 1, log
    )
    assert placed == {"a": 1, "b": 1}


def test_too_few_nodes_are_a_wrong_setting_only_where_the_run_never_ran(
    tmp_path: Path, log: EventLog
) -> None:
    for joined in (True, False):
        with pytest.raises(ConfigError, match=r"parallel\.min_workers = 2"):
            placing_in(tmp_path, joined=joined).place(asked([node("a")]), 1, log)
    has_run(tmp_path)
    with pytest.raises(RunStoppedError, match=r"parallel\.min_workers = 2") as stopped:
        placing_in(tmp_path, joined=True).place(asked([node("a")]), 2, log)
    assert stopped.value.exit_code == 75


def test_a_spare_is_a_node_that_could_be_used_and_is_not(tmp_path: Path, log: EventLog) -> None:
    used = [node("a"), node("b")]
    placing = placing_in(tmp_path, joined=True)
    placing.place(asked(used), 1, log)
    assert not placing.has_spare(used)
    for more in ({"slots": 0}, {"answers": False}, {"leaves_s": 9.0}):
        assert not placing.has_spare([*used, node("head", **more)])
    assert placing.has_spare([*used, node("c")])
