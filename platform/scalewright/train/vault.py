"""The folder of a run's checkpoints: what counts in it, what is kept, what is set aside.

    checkpoints/step-00000400/            *.distcp  .metadata  null_text.safetensors  manifest.json
                step-00000800.attempt-3.part/   one that is being written
                step-00000600.damaged-3/        set aside: never found again, the first to go
                vault.json                      trust and rewinds

A checkpoint is written into a folder of its attempt, read back, given a manifest of every file's
size and checksum, and renamed, in this order. Loading walks back to the newest that is whole. No
torch here: supervisor and tools read the folder too.
"""

import json
import logging
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from scalewright.errors import CheckpointError, ConfigError, FencedError
from scalewright.train.fence import Fence
from scalewright.train.manifest import (
    MANIFEST,
    Manifest,
    committed,
    name_of,
    read_manifest,
)
from scalewright.train.readback import read_back, sync_folder, write_synced
from scalewright.train.retention import Held, Policy, expendable, superseded

logger = logging.getLogger(__name__)

NOTES = "vault.json"
_PART = re.compile(r"step-\d+\.attempt-(\d+)\.part")
_ASIDE = re.compile(r"step-\d+\.[a-z]+-\d+(\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, where to, how many checkpoints to keep, and how long to bear failing storage.

    `every_steps` None saves by time, decided at reports: Young's interval for the measured stall
    and `faults_per_1000_node_days` on nodes of `workers_per_node`, at least `min_s` apart.

    Kept are the newest `keep`; one per `keep_every_s` for `keep_for_s`, since silent corruption is
    found late; one per `keep_every_steps` for ever, if set; what the guard may go back to.
    `read_back_mib` of what each worker wrote are read back from the disk before a save counts.

    `local`: a folder of the node, such as on NVMe or /dev/shm, that workers write to first.
    `mirror`: a folder or `s3://bucket/prefix` that committed ones are copied to, under the run's
    name. A save waits `wait_s` for the one before it, else it is missed; the run stops after
    `max_missed_s` without a save.
    """

    every_steps: int | None = 100
    min_s: float = 300.0
    faults_per_1000_node_days: float = 4.2
    workers_per_node: int = 8
    keep: int = 2
    keep_every_s: float = 6 * 3600.0
    keep_for_s: float = 48 * 3600.0
    keep_every_steps: int | None = None
    read_back_mib: int = 256
    local: str | None = None
    mirror: str | None = None
    wait_s: float = 30.0
    max_missed_s: float = 2 * 3600.0

    def __post_init__(self) -> None:
        for name in ("every_steps", "keep_every_steps", "workers_per_node", "read_back_mib"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"checkpoint.{name} = {value}; at least 1")
        if self.keep < 2:
            raise ConfigError(
                f"checkpoint.keep = {self.keep}; at least 2, so that a damaged newest checkpoint "
                "leaves one to go back to"
            )
        for name in ("faults_per_1000_node_days", "keep_every_s", "max_missed_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"checkpoint.{name} = {getattr(self, name)}; must be positive")
        for name in ("min_s", "keep_for_s", "wait_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"checkpoint.{name} = {getattr(self, name)}; at least 0")
        if self.local is not None and not self.local.startswith("/"):
            raise ConfigError(
                f"checkpoint.local = {self.local!r} is a relative path; give the whole path of a "
                "folder that every node has for itself"
            )
        if self.mirror is not None and not self.mirror.startswith(("/", "s3://")):
            raise ConfigError(
                f"checkpoint.mirror = {self.mirror!r}; give the whole path of a folder that all "
                "nodes share, or s3://bucket/prefix"
            )

    @property
    def policy(self) -> Policy:
        return Policy(self.keep, self.keep_every_s, self.keep_for_s, self.keep_every_steps)


@dataclass(frozen=True)
class _Notes:
    """What must not be forgotten: the last step that was confirmed, and where the run went back.

    `left`: of (step, wall time): what was committed before, of a later step, does not count.
    """

    trusted: int | None = None
    left: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Listing:
    """The checkpoints of a folder, newest first: those that count, and why others do not."""

    entries: list[tuple[Path, Manifest]] = field(default_factory=list)
    damaged: list[tuple[Path, str]] = field(default_factory=list)
    fenced: list[tuple[Path, str]] = field(default_factory=list)


class Vault:
    """A run's checkpoints as one attempt may use them; one process of it, rank 0, calls this.

    Whatever changes the folder asks the fence first (`FencedError`), and raises OSError as the
    disk says.
    """

    def __init__(
        self, folder: Path, fence: Fence, config: CheckpointConfig, horizon_steps: int = 0
    ) -> None:
        self.folder, self._fence, self._config = folder, fence, config
        self._horizon_steps = horizon_steps
        self._notes = _Notes()

    def open(self) -> None:
        """Make the folder, and clear away what earlier attempts left half done."""
        self._fence.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._notes = self._read_notes()
        for old in self.folder.glob("step-*.replaced.part"):
            final = old.with_name(old.name.removesuffix(".replaced.part"))
            if not final.exists():  # it was to be replaced, and was not
                os.replace(old, final)
        for part in self.folder.glob("*.part"):
            writer = _PART.fullmatch(part.name)
            if writer is None or int(writer[1]) <= self._fence.attempt:
                remove(part)

    def part(self, step: int) -> Path:
        """The folder that this attempt writes its checkpoint of `step` into."""
        return self.folder / f"{name_of(step)}.attempt-{self._fence.attempt}.part"

    def commit(self, part: Path, manifest: Manifest) -> Path:
        """Let a complete checkpoint count: write its manifest, read that back, rename.

        `CheckpointError` when the manifest does not read back.
        """
        path = part / MANIFEST
        text = json.dumps(asdict(replace(manifest, time_s=time.time())), indent=1).encode()
        read_back({path: write_synced(path, [memoryview(text)])}, len(text), seed=0)
        return self.install(part, manifest.step)

    def install(self, part: Path, step: int) -> Path:
        """Rename a folder with a manifest to that of `step`; one already there goes."""
        final = self.folder / name_of(step)
        aside = final.with_name(f"{final.name}.replaced.part")
        sync_folder(part)
        self._fence.check()
        if final.exists():
            os.replace(final, aside)
            # Frozen since the fence was asked, this attempt may hold what a newer one committed.
            if _attempt_of(aside) > self._fence.attempt:
                os.replace(aside, final)
                raise FencedError(f"{final}: committed by a newer attempt meanwhile")
        os.replace(part, final)
        sync_folder(self.folder)
        remove(aside)
        return final

    def listing(self) -> Listing:
        """What lies in the folder; nothing is changed."""
        found = Listing()
        for path in committed(self.folder):
            try:
                manifest = read_manifest(path)
            except CheckpointError as error:
                found.damaged.append((path, str(error)))
                continue
            if self._fence.admits(manifest.attempt, path.name):
                found.entries.append((path, manifest))
            else:
                found.fenced.append((path, f"attempt {manifest.attempt} had been replaced"))
        return found

    def retain(self, step: int) -> list[Path]:
        """Remove what is not needed after a commit of `step`; returns it."""
        listing = self.listing()
        for path, reason in listing.fenced:
            self.set_aside(path, "fenced", reason)
        gone = superseded(
            _held(listing),
            self._config.policy,
            now_s=time.time(),
            horizon=step - self._horizon_steps,
            trusted=self._notes.trusted,
        )
        return [self._remove(one.step) for one in gone]

    def make_room(self, need_bytes: int, at_least: int = 0) -> list[Path]:
        """Remove what may go until so much is free: what was set aside, then the oldest.

        `at_least` so many even so, as for a quota that the disk does not tell of.
        """
        gone: list[Path] = []
        while len(gone) < at_least or self.free_bytes() < need_bytes:
            aside = sorted(p for p in self.folder.iterdir() if _ASIDE.fullmatch(p.name))
            held = _held(self.listing())
            old = expendable(
                held,
                self._config.policy,
                horizon=max((one.step for one in held), default=0) - self._horizon_steps,
                trusted=self._notes.trusted,
            )
            if not aside and not old:
                break
            self._fence.check()
            if aside:
                remove(aside[0])
            gone.append(aside[0] if aside else self._remove(old[0].step))
            if gone[-1].exists():
                break  # it resists
        return gone

    def free_bytes(self) -> int:
        """What the disk of the folder can still take."""
        stat = os.statvfs(self.folder)
        return stat.f_bavail * stat.f_frsize

    def set_aside(self, path: Path, why: str, reason: str) -> Path:
        """Rename a checkpoint to a name that none has yet, so that it is never found again."""
        self._fence.check()
        stem, number = f"{path.name.partition('.')[0]}.{why}-{self._fence.attempt}", 0
        while (aside := path.with_name(stem + f".{number}" * bool(number))).exists():
            number += 1
        os.replace(path, aside)
        logger.warning("%s was set aside as %s: %s", path, aside.name, reason)
        return aside

    def forget_after(self, step: int) -> bool:
        """Set aside the checkpoints of later steps, so that no restart goes on from them.

        False, and nothing is touched, where none would be left.
        """
        entries = self.listing().entries
        later = [path for path, manifest in entries if manifest.step > step]
        if len(later) == len(entries):
            return False
        self.leave_after(step)
        for path in later:
            self.set_aside(path, "left", f"the run goes back to step {step}")
        return True

    @property
    def trusted_until(self) -> int | None:
        """The last step that was confirmed; None where none was."""
        return self._notes.trusted

    def trust(self, step: int) -> None:
        """Record that a second computation confirmed all steps up to `step`.

        It goes back only with the run. OSError where it cannot be recorded: then it counts until
        the end of the attempt.
        """
        if self._notes.trusted is None or step > self._notes.trusted:
            self._note(replace(self._notes, trusted=step))

    def resumed(self, step: int) -> None:
        """What comes after `step` is computed anew, so trust in what was there before is void."""
        if self._notes.trusted is not None and self._notes.trusted > step:
            self._note(replace(self._notes, trusted=step))

    def leave_after(self, step: int) -> None:
        """Nothing of a later step counts that was committed until now, wherever a copy lies."""
        left = [each for each in self._notes.left if each[0] < step]
        trusted = self._notes.trusted
        trusted = trusted if trusted is None else min(trusted, step)
        self._note(_Notes(trusted, (*left, (step, time.time()))))

    def was_left(self, manifest: Manifest) -> bool:
        """Whether the run went back to before this checkpoint since it was committed."""
        return any(manifest.step > step and manifest.time_s <= at for step, at in self._notes.left)

    def _note(self, notes: _Notes) -> None:
        self._fence.check()
        self._notes = notes
        part = self.folder / f"{NOTES}.{self._fence.attempt}.part"
        write_synced(part, [memoryview(json.dumps(asdict(notes)).encode())])
        os.replace(part, self.folder / NOTES)

    def _read_notes(self) -> _Notes:
        path = self.folder / NOTES
        if not path.exists():
            return _Notes()
        try:
            record = json.loads(path.read_text())
            return _Notes(record["trusted"], tuple((s, t) for s, t in record["left"]))
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{path}: not readable ({error!r}); it tells which steps were confirmed and where "
                "the run went back. Delete it to go on without"
            ) from None

    def _remove(self, step: int) -> Path:
        """Remove a checkpoint: gone at once by name, so that a half-removed one is never found."""
        path = self.folder / name_of(step)
        os.replace(path, gone := path.with_name(f"{path.name}.gone.part"))
        remove(gone)
        return path


def remove(path: Path) -> None:
    """Remove a folder if it is there; what resists is told and left."""
    shutil.rmtree(path, onerror=_told)


def _told(_: object, path: str, error: Any) -> None:
    if not isinstance(error[1], FileNotFoundError):
        logger.warning("%s could not be removed: %s", path, error[1])


def _held(listing: Listing) -> list[Held]:
    return [Held(m.step, m.time_s, m.verified) for _, m in listing.entries]


def _attempt_of(path: Path) -> int:
    try:
        return read_manifest(path).attempt
    except CheckpointError:
        return 0
