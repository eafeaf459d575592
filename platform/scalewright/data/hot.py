"""A hot volume between the store and the RAM, such as a folder on NFS that all nodes share.

    FOLDER/NAME/00000012-000007    a unit of stretch 12, whole
    FOLDER/NAME/passed-00001       the first stretch that rank 1 still reads

Each rank brings its units under another name first, and notes how far it has everything in RAM;
what all have passed is deleted. A reader looks for names in the folder's listing, for NFS clients
remember for a while that a name was not there. Where a unit does not come in time, or the volume is
full or gone, the reader takes the bytes from the store: the volume saves requests, and nothing
hangs on it.
"""

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scalewright.data.fetching import Fetcher
from scalewright.data.staging import Stretch, Unit
from scalewright.data.storage import Folder, Storage
from scalewright.errors import ConfigError, DataError

KEPT_STRETCHES = 3  # that the volume has room for: one is read, others are brought
PATIENCE_S = 10.0
LOOK_S = 0.1
_NOT_BROUGHT = Unit("", "", 0, 0)

logger = logging.getLogger(__name__)


@dataclass
class HotGauges:
    """What this rank did with the volume; `bytes` and `units` of its own lie there."""

    bytes: int = 0
    units: int = 0
    from_volume: int = 0
    from_store: int = 0
    failed: int = 0


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
        # All below is guarded by `_changed`.
        self._changed = threading.Condition()
        self._stretches: dict[int, Stretch] = {}  # that are planned, and not passed by all
        self._units: dict[str, list[Unit]] = {}  # of those, by key
        self._there: set[str] = set()
        self._own: dict[str, int] = {}  # bytes of the units that this rank brought
        self._leaving: dict[str, int] = {}  # that all have passed, and that still lie there
        self._loaded: set[int] = set()
        self._begun = 0  # the first step of which nothing is brought yet
        self._passed = 0
        self._ending = self._closed = False
        self._thread: threading.Thread | None = None
        try:
            if rank == 0:
                _sweep(folder, keep=self._folder)
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"data.hot = {folder}: {error.strerror}; give a folder that all workers can write "
                "to, or leave it out"
            ) from None

    @property
    def stretch_bytes(self) -> int:
        """How large stretches should be for the volume to hold some of them."""
        return self._hot_bytes // KEPT_STRETCHES

    def bring(self, stretches: Iterator[Stretch]) -> None:
        """Bring this rank's units of these stretches, as there is room."""
        self._thread = threading.Thread(
            target=self._run, args=(stretches,), name="hot-volume", daemon=True
        )
        self._thread.start()

    def wait_for_step(self, step: int) -> None:
        """Until what a step needs is being brought; no longer than `patience_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or step < self._begun, self._patience_s)

    def passed(self, step: int) -> None:
        """A step is wholly in RAM."""
        with self._changed:
            self._loaded.add(step)
            self._changed.notify_all()

    def read(self, key: str, offset: int = 0, size: int | None = None) -> bytearray:
        unit = None if size is None else self._wait_for(key, offset, offset + size)
        if unit is not None:
            try:
                data = Folder(self._folder).read(unit.name, offset - unit.offset, size)
            except DataError:  # gone, or deleted by an attempt that came after this one
                pass
            else:
                self.gauges.from_volume += 1
                return data
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
            read = not any(number >= self._passed for number in self._stretches)
            self._changed.wait_for(
                lambda: self._closed or not self._stretches, self._patience_s if read else 0
            )
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._fetcher.close()
        with self._changed:
            for name in list(self._own):
                self._delete(name)

    def _wait_for(self, key: str, begin: int, end: int) -> Unit | None:
        """A unit that holds these bytes and is there, in time."""

        def found() -> Unit | None:
            holding = [u for u in self._units.get(key, ()) if u.offset <= begin]
            holding = [u for u in holding if end <= u.offset + u.bytes]
            there = (unit for unit in holding if unit.name in self._there)
            return next(there, None if holding and not self._closed else _NOT_BROUGHT)

        with self._changed:
            unit = self._changed.wait_for(found, self._patience_s)
        return None if unit is None or unit is _NOT_BROUGHT else unit

    def _run(self, stretches: Iterator[Stretch]) -> None:
        """The volume's life: plan a stretch as soon as there is room, look what came, tidy up."""
        try:
            ahead = next(stretches, None)
            while True:
                with self._changed:
                    if self._closed:
                        return
                    while ahead is not None and not self._ending and self._has_room(ahead):
                        self._begin(ahead)
                        ahead = next(stretches, None)
                    self._note_passed()
                    self._look()
                    self._changed.wait(LOOK_S)
        except Exception:
            logger.exception("%s: nothing is brought here any more", self._folder)
            with self._changed:  # readers go on from the store, without waiting
                self._closed = True
                self._changed.notify_all()

    def _has_room(self, stretch: Stretch) -> bool:
        held = sum(each.bytes for each in self._stretches.values()) + sum(self._leaving.values())
        return held == 0 or held + stretch.bytes <= self._hot_bytes

    def _begin(self, stretch: Stretch) -> None:
        self._stretches[stretch.number] = stretch
        self._begun = stretch.stop
        self._changed.notify_all()
        self._index()
        for unit in stretch.brought_by(self._rank, self._world):
            self._fetcher.fetch(
                unit.key, unit.offset, unit.bytes, self._writer(unit), lambda error: None
            )

    def _index(self) -> None:
        self._units = {}
        for stretch in self._stretches.values():
            for unit in stretch.units:
                self._units.setdefault(unit.key, []).append(unit)

    def _writer(self, unit: Unit) -> Callable[[memoryview], None]:
        def write(data: memoryview) -> None:
            try:
                Folder(self._folder).write(unit.name, data)
            except DataError as error:
                self.gauges.failed += 1
                logger.warning("%s; read from the store instead", error)
                return
            with self._changed:
                self._own[unit.name] = unit.bytes
                self.gauges.units += 1
                self.gauges.bytes += unit.bytes
                self._there.add(unit.name)
                self._changed.notify_all()

        return write

    def _note_passed(self) -> None:
        """Tell the others how far this rank is."""
        passed = self._passed
        while passed in self._stretches and self._loaded.issuperset(
            range(self._stretches[passed].first, self._stretches[passed].stop)
        ):
            stretch = self._stretches[passed]
            self._loaded.difference_update(range(stretch.first, stretch.stop))
            passed += 1
        if passed > self._passed:
            self._passed = passed
            _write_number(self._folder / f"passed-{self._rank:05d}", passed)

    def _look(self) -> None:
        """Take in what has come, and let go of what every rank has passed."""
        try:
            names = {entry.name for entry in os.scandir(self._folder)}
        except OSError:
            names = set()
        self._there = {name for name in names if not name.endswith(".part")}
        self._leaving = {name: size for name, size in self._leaving.items() if name in names}
        everyone = min(
            (_read_number(self._folder / f"passed-{rank:05d}") for rank in range(self._world)),
            default=0,
        )
        for number in [n for n in self._stretches if n < everyone]:
            stretch = self._stretches.pop(number)
            self._leaving |= {unit.name: unit.bytes for unit in stretch.units}
            for unit in stretch.brought_by(self._rank, self._world):
                self._delete(unit.name)
        self._index()
        self._changed.notify_all()

    def _delete(self, name: str) -> None:
        if (size := self._own.pop(name, None)) is not None:
            self.gauges.units -= 1
            self.gauges.bytes -= size
        self._there.discard(name)
        (self._folder / name).unlink(missing_ok=True)


def _write_number(path: Path, number: int) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(str(number))
    os.replace(part, path)


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
