"""Copies of committed checkpoints in another place: a bucket, or a folder on other disks.

    MIRROR/NAME/step-00000400/    the files, and manifest.json after all of them

A thread of its own copies, so that neither training nor saving waits for it: always the newest,
again and again until it is there. A copy counts from its manifest on.
"""

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from scalewright.data.storage import MissingError, StoreError, open_storage
from scalewright.errors import CheckpointError, DataError, FencedError
from scalewright.train.fence import Fence
from scalewright.train.interval import pause_s
from scalewright.train.manifest import MANIFEST, Manifest, name_of, parse_manifest, read_manifest
from scalewright.train.readback import (
    BLOCK_BYTES,
    CHUNK_BYTES,
    Written,
    pieces,
    sample,
    write_synced,
)
from scalewright.train.retention import Held, Policy, superseded
from scalewright.train.vault import Vault

logger = logging.getLogger(__name__)

PART_BYTES, PARTS = 64 * 2**20, 9000
FILES_AT_ONCE = 8
TRIES, FIRST_PAUSE_S = 6, 0.5  # of one request; the last pause is 8 s
Answer = TypeVar("Answer")
Tell = Callable[..., None]


class Mirror:
    """The copies of one run's checkpoints at `place`, as one attempt makes and reads them.

    Told are `mirrored` (step, seconds, bytes) and `mirror_failed` (step, reason, missed).
    """

    def __init__(
        self,
        place: str,
        vault: Vault,
        fence: Fence,
        policy: Policy,
        read_back_bytes: int,
        tell: Tell,
    ) -> None:
        self._place, self._storage = place, open_storage(place)
        self._vault, self._fence, self._policy, self._tell = vault, fence, policy, tell
        self._read_back_bytes = read_back_bytes
        self._wanted: Path | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def offer(self, path: Path) -> None:
        """Copy a committed checkpoint soon, unless a newer one is offered before."""
        with self._changed:
            if self._closed:
                return
            self._wanted = path
            if self._thread.ident is None:
                self._thread.start()
            self._changed.notify_all()

    def settle(self, timeout_s: float) -> bool:
        """Wait until what was offered is there; False when it is not in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._wanted is None, timeout_s)
            return self._wanted is None

    def close(self) -> None:
        """Begin no other copy; the one under way is left to itself."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def manifests(self) -> list[Manifest]:
        """Of the copies that count, newest first; `DataError` when the place cannot be read."""
        keys = patiently(lambda: self._storage.keys("step-"))
        found = []
        for key in keys:
            if key.endswith(f"/{MANIFEST}"):
                try:
                    manifest = parse_manifest(bytes(self._read(key)))
                except (ValueError, TypeError, MissingError) as error:
                    logger.warning("%s/%s is passed over: %s", self._place, key, error)
                    continue
                if not self._vault.was_left(manifest):
                    found.append(manifest)
        return sorted(found, key=lambda one: one.step, reverse=True)

    def fetch(self, manifest: Manifest) -> Path:
        """Bring a copy into the run's folder, verified on the way.

        `CheckpointError` where the copy is damaged, `DataError` where it cannot be read.
        """
        part = self._vault.part(manifest.step)
        part.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(FILES_AT_ONCE, "mirror") as threads:
            list(threads.map(lambda name: self._fetch_file(manifest, name, part), manifest.files))
        text = json.dumps(asdict(manifest), indent=1).encode()
        write_synced(part / MANIFEST, [memoryview(text)])
        return self._vault.install(part, manifest.step)

    def _fetch_file(self, manifest: Manifest, name: str, part: Path) -> None:
        key, expected = f"{name_of(manifest.step)}/{name}", manifest.files[name]
        spans = range(0, expected["bytes"], CHUNK_BYTES)
        data = (self._read(key, at, min(CHUNK_BYTES, expected["bytes"] - at)) for at in spans)
        found = write_synced(part / name, data).fingerprint()
        if found != expected:
            raise CheckpointError(
                f"{self._place}/{key}: damaged: expected {expected}, found {found}"
            )

    def _work(self) -> None:
        missed = 0
        while (path := self._next(pause_s(missed + 1) if missed else 0.0)) is not None:
            begin_s = time.monotonic()
            try:
                size = self._copy(path)
            except FencedError as error:
                logger.warning("%s: no more copies are made: %s", self._place, error)
                self.close()
                return
            except (DataError, CheckpointError, OSError) as error:
                missed += 1
                self._tell("mirror_failed", step=_step(path), reason=str(error), missed=missed)
            else:
                missed = 0
                seconds = time.monotonic() - begin_s
                self._tell("mirrored", step=_step(path), seconds=seconds, bytes=size)
                self._done(path)

    def _next(self, pause_s: float) -> Path | None:
        """What to copy, after a pause that something newer ends; None at the end."""
        with self._changed:
            before = self._wanted
            self._changed.wait_for(lambda: self._closed or self._wanted is not before, pause_s)
            self._changed.wait_for(lambda: self._closed or self._wanted is not None)
            return None if self._closed else self._wanted

    def _done(self, path: Path) -> None:
        with self._changed:
            if self._wanted is path:
                self._wanted = None
            self._changed.notify_all()

    def _copy(self, path: Path) -> int:
        """Copy all files, read some back, then let the manifest follow; returns the bytes."""
        manifest = read_manifest(path)
        # An earlier save of this step must not count while its files are replaced.
        patiently(lambda: self._storage.delete(f"{path.name}/{MANIFEST}"))
        with ThreadPoolExecutor(FILES_AT_ONCE, "mirror") as threads:
            copies = threads.map(lambda name: self._copy_file(path, name, manifest), manifest.files)
            written = dict(zip(manifest.files, copies, strict=True))
        self._read_back(path.name, written, manifest.step)
        text = (path / MANIFEST).read_bytes()
        self._fence.check()
        patiently(lambda: self._storage.write(f"{path.name}/{MANIFEST}", text))
        self._retain()
        return manifest.size_bytes

    def _copy_file(self, path: Path, name: str, manifest: Manifest) -> Written:
        written, expected = Written(), manifest.files[name]
        part_bytes = max(PART_BYTES, -(-expected["bytes"] // PARTS))
        data = _counted(pieces(path / name, part_bytes), written)
        self._storage.write_large(f"{path.name}/{name}", data, patiently)
        if written.fingerprint() != expected:
            raise CheckpointError(
                f"{path / name}: damaged since it was written: expected {expected}, found "
                f"{written.fingerprint()}"
            )
        return written

    def _read_back(self, folder: str, written: Mapping[str, Written], seed: int) -> None:
        files = {Path(name): each for name, each in written.items()}
        for name, blocks in sample(files, self._read_back_bytes, seed).items():
            for block in blocks:
                at, key = block * BLOCK_BYTES, f"{folder}/{name}"
                found = Written()
                found.add(self._read(key, at, min(BLOCK_BYTES, files[name].size - at)))
                if found.crc32c != files[name].blocks[block]:
                    raise CheckpointError(
                        f"{self._place}/{key}: bytes {at} to {at + found.size} do not read back as "
                        "they were written"
                    )

    def _retain(self) -> None:
        """Delete what is not needed there any more, each from its manifest on."""
        kept = {manifest.step: manifest for manifest in self.manifests()}
        held = [Held(one.step, one.time_s) for one in kept.values()]
        trusted = self._vault.trusted_until
        gone = superseded(held, self._policy, now_s=time.time(), trusted=trusted)
        needed = {name_of(step) for step in kept.keys() - {one.step for one in gone}}
        keys = patiently(lambda: self._storage.keys("step-"))
        for key in sorted(keys, key=lambda key: not key.endswith(MANIFEST)):
            if key.partition("/")[0] not in needed:
                patiently(lambda key=key: self._storage.delete(key))  # type: ignore[misc]

    def _read(self, key: str, offset: int = 0, size: int | None = None) -> memoryview:
        return patiently(lambda: self._storage.read(key, offset, size))


def patiently(request: Callable[[], Answer]) -> Answer:
    """Make a request of a store again as long as it fails for now; at most `TRIES` times."""
    for attempt in range(TRIES - 1):
        try:
            return request()
        except StoreError as error:
            pause = FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.0)
            logger.info("%s; again in %.1f s", error, pause)
            time.sleep(pause)
    return request()


def _counted(data: Iterator[memoryview], written: Written) -> Iterator[memoryview]:
    for piece in data:
        written.add(piece)
        yield piece


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
