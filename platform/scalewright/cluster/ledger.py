"""The ledger: what was noted about the machines of a site, in one SQLite file that outlives runs.

Rows are only ever added, each in a transaction of its own that is on the disk when the call
returns; several processes of one host may write at once. Standings are not stored: they are
folded from the rows (`fleet.py`), and go on from the last row read. The file must lie on a local
disk, because SQLite's write-ahead log is shared through memory: over NFS it would be damaged.

`python -m scalewright.cluster.ledger` is the operator's side of it.
"""

import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from scalewright.cluster.breaker import Breaker
from scalewright.cluster.evidence import (
    Event,
    Evidence,
    FleetSize,
    Order,
    Thaw,
    from_record,
    to_record,
)
from scalewright.cluster.fleet import Fleet
from scalewright.cluster.standing import RULES, Rules, Standing
from scalewright.errors import DataError

logger = logging.getLogger(__name__)

FILE_NAME = "ledger.db"
SCHEMA_VERSION = 1
BUSY_S = 20.0  # a writer holds the file for milliseconds; this long it is stuck
_APPLICATION_ID = 0x53574C47  # "SWLG", in the header of the file

_SCHEMA = f"""
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    recorded_s REAL NOT NULL,
    type TEXT NOT NULL CHECK (type IN ('evidence', 'order', 'fleet', 'thaw')),
    machine TEXT,
    gpu TEXT,
    fields TEXT NOT NULL
);
CREATE INDEX events_by_machine ON events (machine, id);
CREATE INDEX events_by_gpu ON events (gpu, id) WHERE gpu IS NOT NULL;
CREATE TRIGGER events_stay BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER events_stay_as_they_are BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

# What to do, by the beginning of SQLite's name of an error.
_WAYS_OUT = {
    "SQLITE_READONLY": "make the file and its folder writable for this user, or give another with "
    "--ledger",
    "SQLITE_CANTOPEN": "make the file and its folder readable and writable for this user",
    "SQLITE_BUSY": f"another process has held it for {BUSY_S:g} s; look for one that is stopped "
    "(fuser names it)",
    "SQLITE_FULL": "its disk is full; free some of it",
    "SQLITE_IOERR": "its disk fails, or is not a local one; move it to a local disk",
}
_NO_ROW: tuple[int, str, str] = (0, "", "")  # before the first one
_MISSING = "give it with --ledger; a run begins one, and so does an order with --new"
_RESTORE = (
    "put a copy in its place, or save what can be read: sqlite3 FILE .recover | sqlite3 NEW; it is "
    "not begun anew by itself, because that would free every held machine"
)


class LedgerError(DataError):
    """A ledger that cannot be read or written; the message names the file and the way out."""


class Ledger:
    """The ledger at `path`; made if there is none and `create` is true.

    Safe to use from several threads, and after a fork: no connection is kept. `clock` gives wall
    time in seconds. Every method raises `LedgerError` when the file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        create: bool = True,
        rules: Rules = RULES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path.absolute()
        self._rules = rules
        self._clock = clock
        self._lock = threading.Lock()
        self._fleet = Fleet(rules)
        self._last = _NO_ROW
        if create and not self.path.exists():
            _create(self.path)
        with self._connected() as connection:
            _check(self.path, connection)

    def note(self, evidence: Evidence) -> None:
        """Add evidence; a time that is still to come becomes now, and is kept in its detail."""
        now_s = self._clock()
        if evidence.time_s > now_s:
            detail = {**evidence.detail, "told_time_s": evidence.time_s}
            evidence = replace(evidence, time_s=now_s, detail=detail)
        self._append(evidence)

    def order(self, order: Order) -> None:
        """Add what a person decided."""
        self._append(order)

    def thaw(self, who: str, reason: str) -> None:
        """Let verdicts take effect again, from the next evidence on."""
        self._append(Thaw(who, reason, self._clock()))

    def fleet(self, machines: int, who: str) -> None:
        """Tell how many machines there are, for the breaker; the same number again adds no row."""
        with self._folded() as fleet:
            told = fleet.machines
        if told != machines:
            self._append(FleetSize(machines, who, self._clock()))

    def standing(self, machine: str, now_s: float | None = None) -> Standing:
        """Where a machine stands, now or at a later time; one never heard of is healthy."""
        with self._folded() as fleet:
            return fleet.standing(machine, self._now(now_s))

    def standings(self, now_s: float | None = None) -> dict[str, Standing]:
        """Where every known machine stands, by serial."""
        with self._folded() as fleet:
            return fleet.standings(self._now(now_s))

    def breaker(self, now_s: float | None = None) -> Breaker:
        """The breaker; verdicts are frozen where its `frozen_since_s` is not None."""
        with self._folded() as fleet:
            return fleet.breaker(self._now(now_s))

    def machines(self) -> int:
        """The size of the fleet as it was last told, 0 before."""
        with self._folded() as fleet:
            return fleet.machines

    def history(self, machine_or_gpu: str | None = None) -> list[Event]:
        """What was noted of a machine's serial or a GPU's UUID, or all that was; oldest first."""
        with self._connected() as connection:
            if machine_or_gpu is None:
                query = connection.execute("SELECT id, type, fields FROM events ORDER BY id")
            else:
                query = connection.execute(
                    "SELECT id, type, fields FROM events WHERE machine = :name OR gpu = :name "
                    "ORDER BY id",
                    {"name": machine_or_gpu},
                )
            return [self._event(*row) for row in query]

    def _now(self, now_s: float | None) -> float:
        return self._clock() if now_s is None else now_s

    def _append(self, event: Event) -> None:
        name, fields = to_record(event)
        try:
            text = json.dumps(fields, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"{name} {fields}: not plain JSON values: {error}") from None
        row = (self._clock(), name, fields.get("machine"), fields.get("gpu"), text)
        with self._connected() as connection:
            connection.execute(
                "INSERT INTO events (recorded_s, type, machine, gpu, fields) "
                "VALUES (?, ?, ?, ?, ?)",
                row,
            )

    @contextmanager
    def _folded(self) -> Iterator[Fleet]:
        """The fleet after all rows, for one thread at a time."""
        with self._lock:
            with self._connected() as connection:
                self._read_on(connection)
            yield self._fleet

    def _read_on(self, connection: sqlite3.Connection) -> None:
        newer = "SELECT id, type, fields FROM events WHERE id >= ? ORDER BY id"
        rows = connection.execute(newer, (self._last[0],))
        if self._last != _NO_ROW and rows.fetchone() != self._last:
            logger.warning("%s: another file is in its place; read from its first row", self.path)
            self._fleet, self._last = Fleet(self._rules), _NO_ROW
            rows = connection.execute(newer, (0,))
        for row in rows:
            self._fleet.add(self._event(*row))
            self._last = row

    def _event(self, number: int, name: str, text: str) -> Event:
        try:
            return from_record(name, json.loads(text))
        except (ValueError, TypeError, AttributeError, DataError) as error:
            raise LedgerError(
                f"{self.path}: row {number} is damaged ({error}); {_RESTORE}"
            ) from None

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        if not self.path.exists():
            raise LedgerError(f"{self.path}: there is no ledger; {_MISSING}")
        with _explained(self.path), closing(_connect(self.path)) as connection:
            yield connection


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_S, isolation_level=None
    )
    connection.execute("PRAGMA synchronous = FULL")  # on the disk, not only in its cache
    return connection


def _create(path: Path) -> None:
    """Make a whole empty ledger under another name, then link it: a crash leaves none or a whole.

    Another process that does the same at once is not overwritten.
    """
    if path.with_name(path.name + "-wal").exists():
        raise LedgerError(
            f"{path} is gone, but its write-ahead log {path.name}-wal is there; put the file back "
            "beside it, or move the log away to begin a new ledger, in which no machine is held"
        )
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        try:
            with closing(sqlite3.connect(part)) as connection:
                connection.executescript(_SCHEMA)
                connection.execute("PRAGMA journal_mode = WAL")
            with suppress(FileExistsError):
                os.link(part, path)
                _sync_folder(path.parent)
                logger.info("%s: a new ledger", path)
        finally:
            part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check(path: Path, connection: sqlite3.Connection) -> None:
    """Raise `LedgerError` unless the file is a whole ledger that this version reads."""
    ((application,),) = connection.execute("PRAGMA application_id")
    ((version,),) = connection.execute("PRAGMA user_version")
    if application != _APPLICATION_ID:
        what = "empty" if path.stat().st_size == 0 else "no ledger"
        raise LedgerError(f"{path}: the file is {what}; {_RESTORE}")
    if version != SCHEMA_VERSION:
        raise LedgerError(
            f"{path}: schema version {version}; this Scalewright reads {SCHEMA_VERSION}; use the "
            "version that made it, or give another file with --ledger"
        )
    ((verdict,),) = connection.execute("PRAGMA quick_check(1)")
    if verdict != "ok":
        what = " ".join(verdict.split())
        raise LedgerError(f"{path}: the file is damaged ({what}); {_RESTORE}")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Errors of SQLite and of the system, with the file and the way out."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        ways = (way for start, way in _WAYS_OUT.items() if name.startswith(start))
        raise LedgerError(f"{path}: {error}; {next(ways, _RESTORE)}") from error
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}; {_WAYS_OUT['SQLITE_CANTOPEN']}") from error


if __name__ == "__main__":
    from scalewright.cluster.ledger_command import ledger
    from scalewright.command import run

    run(ledger)
