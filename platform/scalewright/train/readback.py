"""What was written to a file, and whether the disk gives the same back.

Checksums are of the bytes as they were handed over, not as they were found afterwards: hashed from
the file, a bit that the way to the disk turned would be certified. Reading back passes by the page
cache where the system lets it, or memory would be compared with itself.
"""

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import BinaryIO

import crc32c

from scalewright.errors import CheckpointError

BLOCK_BYTES = 4 * 2**20
CHUNK_BYTES = 16 * 2**20


@dataclass
class Written:
    """Size and CRC-32C of a file, and the CRC-32C of each of its blocks of `BLOCK_BYTES`."""

    size: int = 0
    crc32c: int = 0
    blocks: list[int] = field(default_factory=list)

    def add(self, data: memoryview) -> None:
        """Count bytes that follow those before."""
        self.crc32c = crc32c.crc32c(data, self.crc32c)
        while data.nbytes:
            filled = self.size % BLOCK_BYTES
            if not filled:
                self.blocks.append(0)
            part, data = data[: BLOCK_BYTES - filled], data[BLOCK_BYTES - filled :]
            self.blocks[-1] = crc32c.crc32c(part, self.blocks[-1])
            self.size += part.nbytes

    def fingerprint(self) -> dict[str, int]:
        """As a manifest has it."""
        return {"bytes": self.size, "crc32c": self.crc32c}


class HashingStream(io.RawIOBase):
    """A file that is written from its begin to its end, and tells what it was given."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.written = Written()
        self.error: OSError | None = None  # the first, as torch makes another of it

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        view = memoryview(data).cast("B")
        try:
            self._file.write(view)
        except OSError as error:
            self.error = self.error or error
            raise
        self.written.add(view)
        return view.nbytes

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.written.size

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def fileno(self) -> int:
        self.flush()  # who syncs the file means all that was written
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()


def pieces(path: Path, size: int = CHUNK_BYTES) -> Iterator[memoryview]:
    """The bytes of a file, so many at a time."""
    with path.open("rb", buffering=0) as file:
        while data := file.read(size):
            yield memoryview(data)


def fingerprint(path: Path) -> dict[str, int]:
    """Size and CRC-32C of a file as it is now."""
    size = checksum = 0
    for piece in pieces(path):
        size, checksum = size + piece.nbytes, crc32c.crc32c(piece, checksum)
    return {"bytes": size, "crc32c": checksum}


def write_synced(path: Path, data: Iterable[memoryview]) -> Written:
    """Write a file and bring it to the disk; OSError as the disk says."""
    with path.open("wb") as file, HashingStream(file) as stream:
        for piece in data:
            stream.write(piece)
        stream.flush()
        os.fsync(file.fileno())
        return stream.written


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def read_back(files: Mapping[Path, Written], budget_bytes: int, seed: int) -> int:
    """Compare what lies on the disk with what was written; returns how many bytes were compared.

    All of it up to `budget_bytes`; of more, the first and last block of every file and others
    drawn by `seed`. `CheckpointError` names what differs, OSError what cannot be read.
    """
    compared = 0
    for path, chosen in sample(files, budget_bytes, seed).items():
        written = files[path]
        file = os.open(path, os.O_RDONLY)
        try:
            if (size := os.fstat(file).st_size) != written.size:
                raise CheckpointError(f"{path}: {written.size} bytes written, {size} are there")
            os.fsync(file)  # what is not on the disk yet cannot leave the page cache
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            for block in chosen:
                data = os.pread(file, BLOCK_BYTES, block * BLOCK_BYTES)
                if crc32c.crc32c(data) != written.blocks[block]:
                    raise CheckpointError(
                        f"{path}: bytes {block * BLOCK_BYTES} to "
                        f"{block * BLOCK_BYTES + len(data)} do not read back as they were written"
                    )
                compared += len(data)
        finally:
            os.close(file)
    return compared


def sample(files: Mapping[Path, Written], budget_bytes: int, seed: int) -> dict[Path, list[int]]:
    """Which blocks of which files are read back."""
    ends = [
        (path, block)
        for path, written in files.items()
        for block in sorted({0, len(written.blocks) - 1})
        if written.blocks
    ]
    others = [
        (path, block)
        for path, written in files.items()
        for block in range(1, len(written.blocks) - 1)
    ]
    room = min(len(others), max(0, budget_bytes // BLOCK_BYTES - len(ends)))
    chosen = ends + Random(seed).sample(others, room)
    return {path: sorted(b for p, b in chosen if p == path) for path in files}
