"""The ledger's file: what is in it stays, whoever writes, whatever dies, and its command."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from machines import HOUR_S, NOON, everything, seen, told

from scalewright.cluster.evidence import Event, Evidence, FleetSize, Order
from scalewright.cluster.fleet import fold
from scalewright.cluster.ledger import Ledger, LedgerError
from scalewright.errors import DataError, ScalewrightError

MODULE = "scalewright.cluster.ledger"

# Notes evidence as fast as it can, and says after each that it is on the disk.
WRITER = """
import sys
from pathlib import Path
from scalewright.cluster.evidence import Evidence
from scalewright.cluster.ledger import Ledger
name, ledger = sys.argv[2], Ledger(Path(sys.argv[1]))
for number in range(10**6):
    ledger.note(Evidence(name, None, "warning", str(number), 1.0, detail={"long": "x" * 3000}))
    print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "ledger.db"


def at_noon(path: Path) -> Ledger:
    return Ledger(path, clock=lambda: NOON + HOUR_S)


def note_of(ledger: Ledger, event: Event) -> None:
    if isinstance(event, Evidence):
        ledger.note(event)
    elif isinstance(event, Order):
        ledger.order(event)
    elif isinstance(event, FleetSize):
        ledger.fleet(event.machines, event.who)
    else:
        ledger.thaw(event.who, event.reason)


@settings(max_examples=8, deadline=None)
@given(everything)
def test_two_ledgers_of_one_file_and_a_later_one_tell_the_same(history: list[Event]) -> None:
    now = [NOON]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        writers = [Ledger(path, clock=lambda: now[0]) for _ in range(2)]
        for number, event in enumerate(history):
            now[0] = event.time_s
            note_of(writers[number % 2], event)
            writers[number % 3 % 2].standings()
        later = Ledger(path, clock=lambda: now[0])
        expected = fold(later.history())
        for ledger in (*writers, later):
            assert ledger.standings() == expected.standings(now[0])
            assert ledger.breaker() == expected.breaker(now[0])
        sizes_left_out = [event for event in history if not isinstance(event, FleetSize)]
        assert sizes_left_out == [e for e in later.history() if not isinstance(e, FleetSize)]


def test_a_hold_outlives_the_process(path: Path) -> None:
    ledger = at_noon(path)
    ledger.note(seen("hardware", machine="SN-1", gpu="GPU-0", detail={"xid": 79, "loss": 1e-3}))
    ledger.order(told("hold", machine="SN-2", ttl_s=HOUR_S))
    again = at_noon(path)
    assert again.standing("SN-1") == ledger.standing("SN-1")
    assert again.standing("SN-1").state == "quarantined"
    assert again.standing("SN-2", NOON + 60).state == "quarantined"
    assert again.standing("SN-2", NOON + HOUR_S).state == "probation"
    assert again.standing("SN-3").state == "healthy"
    (noted,) = again.history("GPU-0")
    assert noted == seen("hardware", machine="SN-1", gpu="GPU-0", detail={"xid": 79, "loss": 1e-3})


def test_a_time_still_to_come_becomes_now_and_is_kept(path: Path) -> None:
    ledger = at_noon(path)
    ledger.note(seen("hardware", NOON + 1e6))
    (noted,) = ledger.history("A")
    assert (noted.time_s, noted.detail) == (NOON + HOUR_S, {"told_time_s": NOON + 1e6})  # type: ignore[union-attr]


def test_the_same_fleet_is_told_once(path: Path) -> None:
    ledger = at_noon(path)
    for machines in (64, 64, 32, 32):
        ledger.fleet(machines, "a run")
    assert [event.machines for event in ledger.history()] == [64, 32]  # type: ignore[union-attr]
    assert ledger.machines() == 32


def test_numbers_that_are_not_finite_become_text_and_no_json_is_refused(path: Path) -> None:
    ledger = at_noon(path)
    ledger.note(seen("warning", detail={"loss": float("nan"), "all": [float("inf")]}))
    (noted,) = ledger.history("A")
    assert noted.detail == {"loss": "nan", "all": ["inf"]}  # type: ignore[union-attr]
    with pytest.raises(DataError, match="not plain JSON values"):
        ledger.note(seen("warning", detail={"where": Path("/")}))  # type: ignore[dict-item]


def writers(path: Path, count: int) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), f"SN-{number}"],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for number in range(count)
    ]


def test_nothing_that_was_noted_is_lost_when_the_writers_are_killed(path: Path) -> None:
    for round_number in range(2):
        processes = writers(path, 3)
        for process in processes:  # begin to kill when all write
            assert process.stdout is not None
            assert process.stdout.readline()
        for process in processes:
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        said = [process.communicate()[0].splitlines() for process in processes]
        ledger = Ledger(path)
        for number, lines in enumerate(said):
            noted = [int(event.reason) for event in ledger.history(f"SN-{number}")]  # type: ignore[union-attr]
            last = max((int(line) for line in lines), default=0)
            this_round = noted[len(noted) - 1 - noted[::-1].index(0) :]
            assert this_round == list(range(len(this_round)))
            assert last <= this_round[-1] <= last + 1  # the one at whose end it was killed
            assert noted.count(0) == round_number + 1
    assert set(ledger.standings()) == {"SN-0", "SN-1", "SN-2"}


def test_threads_share_a_ledger(path: Path) -> None:
    ledger = Ledger(path)

    def work(name: str) -> None:
        for _ in range(10):
            ledger.note(seen("warning", machine=name))
            ledger.standings()

    threads = [threading.Thread(target=work, args=(name,)) for name in "ABC"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.history()) == 30
    assert ledger.standings(NOON) == fold(ledger.history()).standings(NOON)


def test_who_begins_a_ledger_at_once_with_others_overwrites_none(tmp_path: Path) -> None:
    for attempt in range(10):
        path, together = tmp_path / f"{attempt}.db", threading.Barrier(4)

        def begin(name: str, path: Path = path, together: threading.Barrier = together) -> None:
            together.wait()
            Ledger(path).note(seen("warning", machine=name))

        threads = [threading.Thread(target=begin, args=(name,)) for name in "ABCD"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(Ledger(path).standings()) == ["A", "B", "C", "D"]


def test_rows_cannot_be_changed(path: Path) -> None:
    at_noon(path).note(seen("hardware"))
    with sqlite3.connect(path) as connection:
        for change in ("DELETE FROM events", "UPDATE events SET machine = 'B'"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(change)


def overwrite_all(path: Path) -> None:
    path.write_bytes(b"not a database " * 1000)


def overwrite_a_page(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)


def cut(path: Path) -> None:
    os.truncate(path, 4096)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE runs (id INTEGER)")
    connection.close()


@pytest.mark.parametrize("damage", [overwrite_all, overwrite_a_page, cut, empty, foreign])
def test_a_damaged_file_is_named_and_not_begun_anew(
    path: Path, damage: Callable[[Path], None]
) -> None:
    ledger = at_noon(path)
    for number in range(50):
        ledger.note(seen("hardware", machine=f"SN-{number}"))
    damage(path)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(LedgerError, match=rf"{path}.*put a copy in its place.*\.recover"):
            Ledger(path)
    assert path.read_bytes() == before


def test_a_damaged_row_is_named(path: Path) -> None:
    ledger = at_noon(path)
    ledger.note(seen("hardware"))
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO events (recorded_s, type, fields) VALUES (0, 'order', '{\"machine\": 3}')"
        )
    connection.close()
    with pytest.raises(LedgerError, match="row 2 is damaged"):
        ledger.standings()


def test_a_file_that_is_gone_is_not_begun_anew(path: Path) -> None:
    ledger = at_noon(path)
    ledger.note(seen("hardware"))
    path.unlink()
    with pytest.raises(LedgerError, match="there is no ledger"):
        ledger.note(seen("hardware"))
    assert not path.exists()
    with pytest.raises(LedgerError, match="there is no ledger"):
        Ledger(path, create=False)
    path.with_name("ledger.db-wal").write_bytes(b"what the killed writer left")
    with pytest.raises(LedgerError, match=r"write-ahead log ledger\.db-wal is there"):
        Ledger(path)


def test_a_copy_put_in_its_place_is_read_from_its_first_row(path: Path, tmp_path: Path) -> None:
    ledger, copy = at_noon(path), at_noon(tmp_path / "copy.db")
    for machine in "AB":
        ledger.note(seen("hardware", machine=machine))
        copy.note(seen("hardware", machine=f"copy of {machine}"))
    assert sorted(ledger.standings()) == ["A", "B"]
    os.replace(copy.path, path)
    assert sorted(ledger.standings()) == ["copy of A", "copy of B"]


def test_a_newer_schema_is_refused(path: Path) -> None:
    at_noon(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(LedgerError, match="schema version 2; this Scalewright reads 1"):
        Ledger(path)


def test_a_writer_that_is_stuck_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalewright.cluster.ledger.BUSY_S", 0.05)
    ledger = at_noon(path)
    stuck = sqlite3.connect(path, isolation_level=None)
    stuck.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match="database is locked; another process has held it"):
        ledger.note(seen("hardware"))
    assert ledger.standings() == {}  # who only reads does not wait
    stuck.close()
    ledger.note(seen("hardware"))


@pytest.fixture
def stranger() -> Iterator[tuple[Path, Callable[[Callable[[], None]], str]]]:
    """A folder, and a way to do something in a process of a user without rights to it."""

    def attempt(action: Callable[[], None]) -> str:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            try:
                action()
                text = "done"
            except ScalewrightError as error:
                text = str(error)
            except BaseException as error:
                text = f"raised {error!r}"
            os.write(writer, text.encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as file:
            text = file.read()
        os.waitpid(child, 0)
        return text

    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder), attempt
        os.chmod(folder, 0o755)


def test_a_file_that_may_not_be_written_is_told(
    stranger: tuple[Path, Callable[[Callable[[], None]], str]],
) -> None:
    folder, attempt = stranger
    ledger = at_noon(folder / "ledger.db")
    ledger.note(seen("hardware"))
    os.chmod(folder / "ledger.db", 0o444)
    os.chmod(folder, 0o555)
    text = attempt(lambda: at_noon(folder / "ledger.db").note(seen("hardware")))
    assert re.search(r"ledger\.db: .*; make the file and its folder .*writable", text)
    text = attempt(lambda: at_noon(folder / "new.db").note(seen("hardware")))
    assert re.search(r"new\.db: .*; make the file and its folder .*writable", text)
    assert sorted(path.name for path in folder.iterdir()) == ["ledger.db"]
