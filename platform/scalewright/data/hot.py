"""A hot volume between the store and the RAM, such as a folder on NFS that all nodes share.

    FOLDER/NAME/00000012-000007    a unit of stretch 12, whole
    FOLDER/NAME/passed-00001       the first stretch that rank 1 still reads

Each rank brings its units under another name first, their clips checked, and notes how far it has
everything in RAM; what all have passed is deleted. A reader looks for names in the folder's
listing, for NFS clients remember for a while that a name was not there. Where a unit does not come
in time, or the volume is full or gone, the reader takes the bytes from the store: the volume saves
requests, and nothing hangs on it. An empty file is a unit that its rank could not bring; a rank
whose unit did not come in time is not waited for again until one does.
"""

import itertools
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scalewright.data.fetching import Fetcher
from scalewright.data.staging import Stretch, Unit
from scalewright.data.storage import Folder, Storage
from scalewright.errors import ConfigError, DataError

STRETCH_BYTES = 2**30  # at most: a stretch is planned whole before any of it is brought
KEPT_STRETCHES = 3  # that the volume has room for: one is read, others are brought
PATIENCE_S = 10.0
LOOK_S, JOIN_S = 0.1, 10.0

logger = logging.getLogger(__name__)


@dataclass
class HotGauges:
    """What this rank did with the volume."""

    bytes: int = 0  # of its own that lie there
    units: int = 0
    from_volume: int = 0
    from_store: int = 0
    failed: int = 0  # units that it could not lay there


class HotVolume:
    """A `Storage` that reads from the volume what is brought there, and all else from the store.

    `bring` starts to bring a rank's share of stretches; `passed` is told the steps that are wholly
    in RAM. `name` is of this attempt alone; what others left in the folder is deleted. For all
    ranks together at most `hot_bytes` lie there, or one stretch.
    """

    def __init__(
        self,
        store: Storage,
        folder: Path,
        *,
        name: str,
        rank: int,
        world: int,
        hot_bytes: int,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.gauges = HotGauges()
        self._store, self._rank, self._world = store, rank, world
        self._folder = folder / name
        self._hot_bytes, self._patience_s = hot_bytes, patience_s
        self._fetcher = Fetcher(store)
        self._wake = threading.Event()
        # All below is guarded by `_changed`; stretches change only in the volume's thread.
        self._changed = threading.Condition()
        self._stretches: dict[int, Stretch] = {}  # that are planned, and not passed by all
        self._units: dict[str, list[Unit]] = {}  # of those, by key
        self._bringers: dict[str, int] = {}  # the ranks that bring them, by name
        self._there: set[str] = set()
        self._distrusted: set[str] = set()
        self._late: set[int] = set()  # ranks that were waited for in vain
        self._own: dict[str, int] = {}  # bytes of the units that this rank brought
        self._came_s: dict[int, float] = {}  # when something last came of each rank
        self._deleted: list[str] = []  # whose files are to go
        self._leaving: dict[str, int] = {}  # that all have passed, and that still lie there
        self._loaded: set[int] = set()
        self._begun = 0  # the first step of which nothing is brought yet
        self._stuck = -1  # a step to begin that was waited for in vain
        self._passed = 0
        self._ending = self._closed = self._warned = False
        self._thread: threading.Thread | None = None
        try:
            if rank == 0:
                _sweep(folder, keep=self._folder)
            self._folder.mkdir(parents=True, exist_ok=True)
            _write_whole(self._path_of(rank), memoryview(b"%012d" % 0))
        except OSError as error:
            raise ConfigError(
                f"data.hot = {folder}: {error.strerror}; give a folder that all workers can write "
                "to, or leave it out"
            ) from None

    @property
    def stretch_bytes(self) -> int:
        """How large stretches should be."""
        return min(self._hot_bytes // KEPT_STRETCHES, STRETCH_BYTES)

    def bring(self, stretches: Iterator[Stretch]) -> None:
        """Bring this rank's units of these stretches, as there is room."""
        self._thread = threading.Thread(
            target=self._run, args=(stretches,), name="hot-volume", daemon=True
        )
        self._thread.start()

    def wait_for_step(self, step: int) -> None:
        """Until what a step needs is being brought; no longer than `patience_s`, once."""
        with self._changed:
            if self._begun == self._stuck:
                return
            if not self._changed.wait_for(
                lambda: self._closed or step < self._begun, self._patience_s
            ):
                self._stuck = self._begun
                logger.warning(
                    "%s: no room for what step %d needs in %g s, for other workers are behind; it "
                    "is read from the store", self._folder, step, self._patience_s,
                )  # fmt: skip

    def passed(self, step: int) -> None:
        """A step is wholly in RAM."""
        with self._changed:
            self._loaded.add(step)
        self._wake.set()

    def distrust(self, key: str, offset: int) -> None:
        """What was read there was wrong: it is read from the store from now on."""
        with self._changed:
            self._distrusted.update(u.name for u in self._units.get(key, ()) if u.holds(offset))

    def read(self, key: str, offset: int = 0, size: int | None = None) -> memoryview:
        failed: set[str] = set()
        while size is not None and (unit := self._wait_for(key, offset, offset + size, failed)):
            try:
                data = Folder(self._folder).read(unit.name, offset - unit.offset, size)
            except DataError:  # empty, deleted since, or gone with the volume; another may hold it
                failed.add(unit.name)
                continue
            with self._changed:
                self.gauges.from_volume += 1
            return data
        with self._changed:
            self.gauges.from_store += 1
        return self._store.read(key, offset, size)

    def write(self, key: str, data: bytes | memoryview) -> None:
        self._store.write(key, data)

    def keys(self, prefix: str) -> list[str]:
        return self._store.keys(prefix)

    def close(self) -> None:
        """Stop bringing, and delete what this rank brought.

        Where this rank has read all that it brings for, others are waited for, `patience_s` long.
        """
        with self._changed:
            self._ending = True
            read = all(map(self._has_read, self._stretches.values()))
            hopeful = read and not self._late and self._stuck != self._begun
            self._changed.wait_for(
                lambda: self._closed or not self._stretches, self._patience_s if hopeful else 0
            )
            self._closed = True
            self._changed.notify_all()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(JOIN_S)
            if self._thread.is_alive():
                logger.warning("%s: the volume has not answered for %g s", self._folder, JOIN_S)
        self._fetcher.close()
        with self._changed:
            for name in list(self._own):
                self._delete(name)
        if self._thread is None or not self._thread.is_alive():
            self._unlink()

    def _wait_for(self, key: str, begin: int, end: int, failed: set[str]) -> Unit | None:
        """A unit that holds these bytes and is there, in time; none of those that `failed`."""
        with self._changed:

            def holding() -> list[Unit]:
                """The newest first, for they stay longest."""
                return [
                    unit for unit in reversed(self._units.get(key, ()))
                    if unit.holds(begin) and end <= unit.offset + unit.bytes
                    and unit.name not in failed and unit.name not in self._distrusted
                ]  # fmt: skip

            def there() -> Unit | None:
                return next((unit for unit in holding() if unit.name in self._there), None)

            def hopeless() -> bool:
                return self._closed or self._late.issuperset(
                    self._bringers[u.name] for u in holding()
                )

            begin_s = time.monotonic()

            def left_s() -> float:
                """Who still brings other units is waited for longer, but not without end."""
                came_s = (self._came_s.get(self._bringers[unit.name], 0.0) for unit in holding())
                last_s = min(max((begin_s, *came_s)), begin_s + 2 * self._patience_s)
                return last_s + self._patience_s - time.monotonic()

            while not (there() or hopeless()) and left_s() > 0:
                self._changed.wait(left_s())
            if not (there() or hopeless()):
                self._late.update(self._bringers[u.name] for u in holding())
                logger.warning(
                    "%s: nothing came in %g s from workers %s; what they bring is read from the "
                    "store until something comes", self._folder, self._patience_s,
                    ", ".join(map(str, sorted(self._late))),
                )  # fmt: skip
            return there()

    def _run(self, stretches: Iterator[Stretch]) -> None:
        """The volume's life: plan a stretch as soon as there is room, look what came, tidy up."""
        try:
            while not (self._closed or self._path_of(0).exists()):  # what others left takes room
                time.sleep(LOOK_S)
            ahead = next(stretches, None)
            while not self._closed:
                while ahead is not None and not self._ending and self._has_room(ahead):
                    self._begin(ahead)
                    ahead = next(stretches, None)
                self._note_passed()
                self._look()
                self._unlink()
                self._wake.wait(LOOK_S)
                self._wake.clear()
        except OSError as error:
            logger.warning(
                "%s: %s; clips come from the store from now on", self._folder, error.strerror
            )
        except Exception:
            logger.exception("%s: nothing is brought here any more", self._folder)
        finally:
            with self._changed:  # readers go on from the store, without waiting
                self._closed = True
                self._changed.notify_all()

    def _has_room(self, stretch: Stretch) -> bool:
        held = sum(each.bytes for each in self._stretches.values()) + sum(self._leaving.values())
        return held == 0 or held + stretch.bytes <= self._hot_bytes

    def _begin(self, stretch: Stretch) -> None:
        with self._changed:
            self._stretches[stretch.number] = stretch
            self._begun = stretch.stop
            self._index()
            self._changed.notify_all()
        for unit in stretch.brought_by(self._rank, self._world):
            accept, fail = partial(self._lay, unit), partial(self._lay_nothing, unit)
            self._fetcher.fetch(unit.key, unit.offset, unit.bytes, accept, fail)

    def _index(self) -> None:
        self._units, self._bringers = {}, {}
        for stretch in self._stretches.values():
            for place, unit in enumerate(stretch.units):
                self._units.setdefault(unit.key, []).append(unit)
                self._bringers[unit.name] = place % self._world
        self._distrusted &= self._bringers.keys()

    def _lay(self, unit: Unit, data: memoryview) -> None:
        """Put a unit where all ranks find it."""
        unit.check(data)
        try:
            self._write(unit, data)
            self._warned = False
        except OSError as error:
            self._lay_nothing(unit, DataError(f"{self._folder / unit.name}: {error.strerror}"))

    def _lay_nothing(self, unit: Unit, error: DataError) -> None:
        """Tell all ranks by an empty file that a unit will not come."""
        if not self._warned:
            logger.warning("%s; it is read from the store instead", error)
        self._warned = True
        with self._changed:
            self.gauges.failed += 1
        try:
            self._write(unit, memoryview(b""))
        except OSError:  # then they wait for it, once
            with self._changed:
                self._late.add(self._rank)
                self._changed.notify_all()

    def _write(self, unit: Unit, data: memoryview) -> None:
        _write_whole(self._folder / unit.name, data)
        with self._changed:
            self._own[unit.name] = len(data)
            self.gauges.units += 1
            self.gauges.bytes += len(data)
            self._there.add(unit.name)
            self._late.discard(self._rank)
            self._came_s[self._rank] = time.monotonic()
            self._changed.notify_all()
            if unit.name not in self._bringers:  # all have passed it meanwhile
                self._delete(unit.name)

    def _has_read(self, stretch: Stretch) -> bool:
        return stretch.number < self._passed or self._loaded.issuperset(stretch.steps)

    def _note_passed(self) -> None:
        """Tell the others how far this rank is."""
        with self._changed:
            passed = self._passed
            while (stretch := self._stretches.get(passed)) and self._has_read(stretch):
                passed += 1
        if passed > self._passed:
            with suppress(OSError):  # if it is full, try again; if it is gone, `_look` says so
                _overwrite(self._path_of(self._rank), passed)
                self._passed = passed

    def _look(self) -> None:
        """Take in what has come, and let go of what every rank has passed."""
        names = {entry.name for entry in os.scandir(self._folder)}
        passed = list(itertools.takewhile(self._all_passed, sorted(self._stretches)))
        with self._changed:
            # What this rank laid while the names were read is there, too.
            there = {name for name in names if not name.endswith(".part")} | self._own.keys()
            new = (there - self._there) & self._bringers.keys()
            self._came_s |= dict.fromkeys((self._bringers[name] for name in new), time.monotonic())
            self._late.difference_update(self._bringers[name] for name in new)
            self._there = there
            self._leaving = {name: size for name, size in self._leaving.items() if name in names}
            for number in passed:
                stretch = self._stretches.pop(number)
                self._loaded.difference_update(stretch.steps)
                self._leaving |= {unit.name: unit.bytes for unit in stretch.units}
                for unit in stretch.brought_by(self._rank, self._world):
                    self._delete(unit.name)
            if passed:
                self._index()
            self._changed.notify_all()

    def _all_passed(self, number: int) -> bool:
        ranks = range(self._world) if number < self._passed else ()
        return bool(ranks) and all(_read_number(self._path_of(rank)) > number for rank in ranks)

    def _path_of(self, rank: int) -> Path:
        """Of the first stretch that a rank still reads."""
        return self._folder / f"passed-{rank:05d}"

    def _delete(self, name: str) -> None:
        if (size := self._own.pop(name, None)) is not None:
            self.gauges.units -= 1
            self.gauges.bytes -= size
        self._there.discard(name)
        self._deleted.append(name)

    def _unlink(self) -> None:
        """Delete files; not under the lock, for a volume may not answer."""
        with self._changed:
            names, self._deleted = self._deleted, []
        for name in names:
            with suppress(OSError):  # such as of a volume that is gone
                (self._folder / name).unlink()


def _write_whole(path: Path, data: memoryview) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise


def _overwrite(path: Path, number: int) -> None:
    """In place, so that it also works where no new file would."""
    with path.open("r+b") as file:
        file.write(f"{number:012d}".encode())


def _read_number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _sweep(folder: Path, keep: Path) -> None:
    """Delete what other attempts left; one that still runs reads from the store from now on."""
    for path in folder.glob("*"):
        if path.is_dir() and path != keep:
            shutil.rmtree(path, ignore_errors=True)
