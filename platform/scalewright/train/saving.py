"""Saving while training goes on, and going on from what was saved.

Training waits until the state is copied to RAM. A thread of every rank then writes it, reads some
of it back, and rank 0 commits it. What fails there is told and tried again at a later step; only
when nothing could be saved for `checkpoint.max_missed_s` the run stops.
"""

import errno
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException

from scalewright.errors import CheckpointError, FencedError, StorageError
from scalewright.train.checkpoint import (
    read_state,
    reason_of,
    size_bytes,
    stager_for,
    train_state,
    write_state,
)
from scalewright.train.choosing import choose
from scalewright.train.fence import Fence
from scalewright.train.interval import Saves, mtbf_s
from scalewright.train.manifest import CHECKPOINTS, Manifest
from scalewright.train.mirror import Mirror
from scalewright.train.parallel import World
from scalewright.train.peers import Peers
from scalewright.train.readback import Written, pieces, read_back, write_synced
from scalewright.train.training import Training
from scalewright.train.vault import CheckpointConfig, Vault, remove

logger = logging.getLogger(__name__)

COPY_PAUSES_S = (1.0, 4.0, 16.0)  # between the tries to move a file from the node's folder
MIRROR_S = 600.0  # how long the machines of a run that is done wait for its last copy
_FULL = (errno.ENOSPC, errno.EDQUOT)
Tell = Callable[..., None]


@dataclass
class _Flight:
    """A save that was begun; `error` is for when its thread has ended."""

    step: int
    begun_s: float
    local: bool
    thread: threading.Thread | None = None
    error: BaseException | None = None
    waited_for: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class MisreadError(CheckpointError):
    """What was written does not read back."""


class Checkpointer:
    """Saves a run's state in the background and finds the newest state to go on from.

    Every rank has one and calls all of it in the same order. `tell(kind, **fields)` hears on rank
    0, from any thread, of `saved` (step, seconds, bytes, read_back_bytes), `save_failed` (step,
    reason, missed, alarm), `room_made` (names), `mirrored` and `mirror_failed`.
    """

    def __init__(
        self,
        run_folder: Path,
        world: World,
        attempt: int,
        config: CheckpointConfig,
        *,
        horizon_steps: int = 0,
        tell: Tell = lambda kind, **fields: None,
    ) -> None:
        self._world, self._config, self._tell = world, config, tell
        self._fence = Fence(run_folder, attempt)
        self._vault = Vault(run_folder / CHECKPOINTS, self._fence, config, horizon_steps)
        self._local = _local_folder(run_folder, config, world.rank, attempt)
        self._main = Peers(world)
        # A save may hang on its storage as long as the run bears it; it must not give up before.
        self._savers = Peers(world, timeout_s=config.max_missed_s + 600)
        self._stager = stager_for(world.device)
        self._mirror: Mirror | None = None
        if config.mirror is not None and world.rank == 0:
            self._mirror = Mirror(
                f"{config.mirror.rstrip('/')}/{run_folder.name}", self._vault, self._fence,
                config.policy, config.read_back_mib * 2**20, tell,
            )  # fmt: skip
        nodes = -(-world.size // config.workers_per_node)
        self._mtbf_s = mtbf_s(nodes, config.faults_per_1000_node_days)
        self._lock = threading.Lock()  # of what the saving thread of rank 0 notes, too
        self._saves = Saves(begun_s=time.monotonic(), kept_s=time.monotonic())
        self._flight: _Flight | None = None
        _clear_local(self._local, attempt)
        try:
            self._main.from_first(self._vault.open)
        except OSError as error:
            raise StorageError(f"{self._vault.folder}: cannot be used: {error}") from None

    def due(self) -> bool:
        """Whether it is time for a save, where that is decided by time: rank 0 does."""
        return self._main.from_first(lambda: self._saves.due(time.monotonic(), self.interval_s))

    @property
    def interval_s(self) -> float:
        """The interval that rank 0 saves at now, where that is decided by time."""
        return self._saves.interval_s(self._config.min_s, self._mtbf_s)

    def save(
        self, step: int, training: Training, run: Mapping[str, Any], extras: Mapping[str, bytes]
    ) -> float | None:
        """Begin to save the state after `step` steps; returns how long training stood still.

        None where this one is missed: the one before is still under way, or storage has a rest
        after it failed. Raises on all ranks `StorageError` when that lasts too long, and
        `FencedError`.
        """
        begin_s = time.monotonic()
        self._await(self._config.wait_s)
        busy = any(self._main.gather(self._flying()))
        begin, local = self._main.from_first(lambda: self._judge(step, busy=busy))
        if not begin:
            return None
        state = train_state(training)
        need = size_bytes(state)
        staged = self._stager.stage(state)
        flight = _Flight(step, begin_s, local)
        flight.thread = threading.Thread(
            target=self._fly,
            args=(flight, staged, need, dict(run), dict(extras)),
            name=f"save-{step}",
            daemon=True,  # one that hangs on its storage must not keep the process
        )
        self._flight = flight
        flight.thread.start()
        stall_s = time.monotonic() - begin_s
        with self._lock:
            self._saves = self._saves.begun(begin_s, stall_s)
        return stall_s

    def kept(self, step: int) -> bool:
        """Wait for the save in flight; whether `step` is the last that was committed.

        False after a pause for failing storage: save again. `StorageError` when it lasts too long.
        """
        self._await(self._config.max_missed_s, again=True)
        busy = any(self._main.gather(self._flying()))
        return self._main.from_first(lambda: self._judge_last(step, busy=busy))

    def wait(self) -> None:
        """Wait for the save in flight, as long as the run bears failing storage."""
        self._await(self._config.max_missed_s, again=True)
        if any(self._main.gather(self._flying())):
            raise StorageError(self._stuck())

    def finish(self) -> bool:
        """Wait ten minutes at most for the mirror; whether it has what was committed last."""
        return self._mirror is None or self._mirror.settle(MIRROR_S)

    def close(self) -> None:
        """Let go; a save that hangs is left to itself."""
        self._await(self._config.wait_s)
        if not self._flying():
            self._stager.close()
        if self._mirror is not None:
            self._mirror.close()

    def trust(self, step: int) -> None:
        """Record that all steps up to `step` were confirmed; rank 0 alone does.

        A record that cannot be written is made with the next: less trust only goes further back.
        """
        if self._world.rank == 0:
            try:
                self._vault.trust(step)
            except OSError as error:
                logger.warning("trust in step %d could not be recorded: %s", step, error)

    def forget_after(self, step: int) -> bool:
        """Set aside the checkpoints of later steps, so that no restart goes on from them.

        False, and nothing is touched, where none would be left.
        """
        self.wait()
        return self._main.from_first(lambda: self._vault.forget_after(step))

    def resume(self, training: Training, *, only_trusted: bool = False) -> Manifest | None:
        """Load the newest checkpoint that is whole; None where there was none yet.

        `only_trusted` takes none after the last step that was confirmed. `CheckpointError` when
        there are some and none may be taken, `StorageError` when storage fails.
        """
        try:
            chosen = choose(self._vault, self._mirror, self._main, only_trusted=only_trusted)
        except OSError as error:
            raise StorageError(f"{self._vault.folder}: cannot be read: {error}") from None
        if chosen is None:
            return None
        path, manifest = chosen
        read_state(training, path, self._main.group)
        with self._lock:
            self._saves = self._saves.kept(manifest.step, time.monotonic())
        return manifest

    # Deciding, on the main thread.

    def _judge(self, step: int, *, busy: bool) -> tuple[bool, bool]:
        """On rank 0: whether to begin a save now, and whether in the node's folder first."""
        self._raise_if_fenced()
        now_s = time.monotonic()
        if busy:
            self._miss(step, self._stuck())
        with self._lock:
            saves = self._saves
        if saves.too_long(now_s, self._config.max_missed_s):
            raise StorageError(
                f"{self._vault.folder}: no checkpoint for {now_s - saves.kept_s:.0f} s "
                f"(checkpoint.max_missed_s = {self._config.max_missed_s:g}), {saves.missed} saves "
                "missed in a row; the save_failed events tell why. Free or repair the storage"
            )
        # What may have failed is the node's folder, so the next goes straight to the run's.
        return not busy and saves.may_try(now_s), saves.missed == 0

    def _judge_last(self, step: int, *, busy: bool) -> bool:
        self._raise_if_fenced()
        with self._lock:
            saves = self._saves
        if busy:
            raise StorageError(self._stuck())
        if saves.kept_step == step:
            return True
        while not saves.may_try(time.monotonic()):
            time.sleep(0.05)
        return False

    def _raise_if_fenced(self) -> None:
        if self._flight is not None and isinstance(self._flight.error, FencedError):
            raise self._flight.error

    def _stuck(self) -> str:
        flight = self._flight
        assert flight is not None
        return (
            f"the save of step {flight.step} is under way for "
            f"{time.monotonic() - flight.begun_s:.0f} s"
        )

    def _flying(self) -> bool:
        return self._flight is not None and not self._flight.done.is_set()

    def _await(self, timeout_s: float, *, again: bool = False) -> None:
        """Wait for the save in flight; the same one not twice, or a hang would cost every time."""
        if self._flight is not None and (again or not self._flight.waited_for):
            self._flight.waited_for = not self._flight.done.wait(timeout_s)

    def _miss(self, step: int, reason: str) -> None:
        with self._lock:
            saves = self._saves = self._saves.lost_one(time.monotonic())
        logger.warning("the save of step %d failed: %s", step, reason)
        self._tell("save_failed", step=step, reason=reason, missed=saves.missed, alarm=saves.alarm)

    # Saving, on a thread of its own.

    def _fly(
        self, flight: _Flight, staged: Any, need: int, run: dict[str, Any], extras: dict[str, bytes]
    ) -> None:
        try:
            if self._world.rank == 0:
                self._make_room(need)
            self._write(flight, staged, run, extras)
        except (Exception, CheckpointException) as error:  # torch's is no Exception
            flight.error = error
            reason, number = reason_of(error)
            if self._world.rank == 0:
                self._clear(flight, error)
                if number in _FULL and self._saves.missed:
                    self._make_room(need, at_least=1)
                self._miss(flight.step, reason)
        finally:
            if self._local is not None:
                remove(self._local)
            flight.done.set()

    def _write(
        self, flight: _Flight, staged: Any, run: dict[str, Any], extras: dict[str, bytes]
    ) -> None:
        part = self._vault.part(flight.step)
        folder = self._local if self._local is not None and flight.local else part
        written = write_state(staged, folder, self._savers.group)
        parts = self._savers.everywhere(
            lambda: self._settle(folder, part, written, extras, seed=flight.step)
        )
        files = {name: each for prints, _ in parts for name, each in prints.items()}
        manifest = Manifest(
            flight.step, self._fence.attempt, self._world.size, run, dict(sorted(files.items())),
            read_back_bytes=sum(compared for _, compared in parts),
        )  # fmt: skip
        self._savers.from_first(lambda: self._commit(flight, part, manifest))

    def _settle(
        self,
        folder: Path,
        part: Path,
        written: dict[str, Written],
        extras: dict[str, bytes],
        *,
        seed: int,
    ) -> tuple[dict[str, dict[str, int]], int]:
        """Bring what this rank wrote to the run's folder, and read some of it back."""
        files = {part / name: each for name, each in written.items()}
        if folder != part:
            for name, each in written.items():
                _copied(folder / name, part / name, each)
        if self._world.rank == 0:
            for name, content in extras.items():
                files[part / name] = write_synced(part / name, [memoryview(content)])
        try:
            compared = read_back(files, self._config.read_back_mib * 2**20, seed)
        except CheckpointError as error:
            raise MisreadError(str(error)) from None
        return {path.name: each.fingerprint() for path, each in files.items()}, compared

    def _commit(self, flight: _Flight, part: Path, manifest: Manifest) -> None:
        path = self._vault.commit(part, manifest)
        now_s = time.monotonic()
        with self._lock:
            self._saves = self._saves.kept(flight.step, flight.begun_s)
        self._tell(
            "saved", step=flight.step, seconds=now_s - flight.begun_s, bytes=manifest.size_bytes,
            read_back_bytes=manifest.read_back_bytes,
        )  # fmt: skip
        try:
            self._vault.retain(flight.step)
        except (OSError, FencedError) as error:
            logger.warning("what is not needed could not be removed: %s", error)
        if self._mirror is not None:
            self._mirror.offer(path)

    def _clear(self, flight: _Flight, error: BaseException) -> None:
        """Out of the way with what a failed save left; what misreads is kept to be looked at."""
        part = self._vault.part(flight.step)
        if isinstance(error, MisreadError):
            with suppress(OSError, FencedError):
                self._vault.set_aside(part, "misread", str(error))
        remove(part)

    def _make_room(self, need_bytes: int, at_least: int = 0) -> None:
        try:
            gone = self._vault.make_room(int(1.05 * need_bytes) + 2**20, at_least)
        except (OSError, FencedError) as error:
            logger.warning("no room could be made: %s", error)
            return
        if gone:
            self._tell("room_made", names=[path.name for path in gone])


def _local_folder(
    run_folder: Path, config: CheckpointConfig, rank: int, attempt: int
) -> Path | None:
    """This rank's folder on its node: by the run's whole path, which no other run has."""
    if config.local is None:
        return None
    run = hashlib.sha256(str(run_folder.resolve()).encode()).hexdigest()[:12]
    return Path(config.local) / f"{run_folder.name}-{run}" / f"attempt-{attempt}.rank-{rank}"


def _clear_local(mine: Path | None, attempt: int) -> None:
    """Remove what this rank and earlier attempts left on the node."""
    for folder in mine.parent.glob("attempt-*.rank-*") if mine is not None else ():
        if folder == mine or int(folder.name.split(".")[0].removeprefix("attempt-")) < attempt:
            remove(folder)


def _copied(source: Path, target: Path, expected: Written) -> None:
    """Copy a file to storage that may fail for now; it must be what was written."""
    for pause_s in (*COPY_PAUSES_S, None):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            found = write_synced(target, pieces(source))
            break
        except OSError as error:
            if pause_s is None:
                raise
            logger.warning("%s: %s; again in %g s", target, error, pause_s)
            time.sleep(pause_s)
    if found.fingerprint() != expected.fingerprint():
        raise MisreadError(f"{source} does not read back as it was written")
