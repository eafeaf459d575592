"""Tar shards of latents: written whole or not at all, read by offset, checked on every read.

A shard is a WebDataset-compatible tar of `<key>.safetensors` members, each with the tensors
`latent` (T, C, H, W) and `text` (S, D) in float16; plain tarfile and safetensors read it.
"""

import fcntl
import os
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import safetensors.torch
import torch
from crc32c import crc32c
from torch import Tensor

from scalewright.errors import DataError

SHARD_FOLDER = "shards"
NULL_TEXT_FILE = "null_text.safetensors"
MAX_SHARD_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Location:
    """Where a member's safetensors bytes lie: `os.pread(shard, bytes, offset)`."""

    shard: str
    offset: int
    bytes: int
    crc32c: int


class ShardWriter:
    """Writes `shards/NNNNNN.tar`, each as `.part` until it is full, synced and renamed.

    `on_sealed(shard)` is called once a shard has its final name, from within the `add` that
    begins the next shard, or from `close`: every `Location` in that shard has then been returned,
    and its clips may enter the catalogue. Leaving the context by an exception drops the open
    shard. Numbers go on after the shards there; one process writes a folder at a time.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int = MAX_SHARD_BYTES,
        on_sealed: Callable[[str], None] | None = None,
    ) -> None:
        self._folder = folder / SHARD_FOLDER
        self._max_bytes = max_bytes
        self._on_sealed = on_sealed
        self._folder.mkdir(parents=True, exist_ok=True)
        _remove_parts(self._folder)
        numbers = [int(path.stem) for path in self._folder.glob("*.tar") if path.stem.isdigit()]
        self._number = max(numbers, default=-1) + 1
        self._file: BinaryIO | None = None
        self._keys: set[str] = set()

    def add(self, key: str, latent: Tensor, text: Tensor) -> Location:
        """Append a clip, `latent` (T, C, H, W) and `text` (S, D); both are stored as float16."""
        if not re.fullmatch(r"[\w-]{1,80}", key, re.ASCII):
            raise DataError(f"key {key!r}: 1 to 80 letters, digits, '_' or '-' (WebDataset's rule)")
        if key in self._keys:
            raise DataError(f"key {key!r} is already in shard {self._name}; keys must differ")
        data = safetensors.torch.save(
            {"latent": _half(key, "latent", latent, 4), "text": _half(key, "text", text, 2)}
        )
        member = _member(f"{key}.safetensors", data)
        if self._file and self._file.tell() + len(member) > self._max_bytes:
            self._seal()
        if self._file is None:
            self._file = _open_part(self._part)
        offset = self._file.tell() + tarfile.BLOCKSIZE
        self._file.write(member)
        self._keys.add(key)
        return Location(self._name, offset, len(data), crc32c(data))

    def close(self) -> None:
        """Seal the open shard, if there is one."""
        if self._file:
            self._seal()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        elif self._file:
            self._part.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    @property
    def _name(self) -> str:
        return f"{self._number:06d}.tar"

    @property
    def _part(self) -> Path:
        return self._folder / f"{self._name}.part"

    def _seal(self) -> None:
        assert self._file is not None
        name = self._name
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        _sync(self._file)
        os.replace(self._part, self._folder / name)
        _sync_folder(self._folder)
        self._file.close()
        self._file = None
        self._keys.clear()
        self._number += 1
        if self._on_sealed:
            self._on_sealed(name)


def write_null_text(folder: Path, text: Tensor) -> None:
    """Store the embedding of the empty prompt, (S, D), as float16."""
    path = folder / NULL_TEXT_FILE
    part = path.with_name(path.name + ".part")
    folder.mkdir(parents=True, exist_ok=True)
    with part.open("wb") as file:
        half = _half("null text", "text", text, 2)
        checksum = {"crc32c": str(crc32c(half.numpy()))}
        file.write(safetensors.torch.save({"text": half}, metadata=checksum))
        _sync(file)
    os.replace(part, path)


def _half(key: str, name: str, tensor: Tensor, axes: int) -> Tensor:
    """`tensor` in float16; what does not survive that is an error, not an inf in the shard."""
    if tensor.ndim != axes or not tensor.numel():
        raise DataError(f"{key}: {name} has shape {tuple(tensor.shape)}; expected {axes} axes")
    half = tensor.detach().to("cpu", torch.float16).contiguous()
    if not bool(torch.isfinite(half).all()):
        raise DataError(
            f"{key}: {name} is not finite in float16 (largest magnitude "
            f"{float(tensor.abs().max()):g}, limit 65504); reject the clip"
        )
    return half


def _member(name: str, data: bytes) -> bytes:
    """Header, data and padding of one tar member; equal input gives equal bytes."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    padding = bytes(-len(data) % tarfile.BLOCKSIZE)
    return header.tobuf(tarfile.USTAR_FORMAT) + data + padding


def _open_part(path: Path) -> BinaryIO:
    sealed = path.with_suffix("")
    try:
        file = path.open("xb")
    except FileExistsError:
        raise _busy(path) from None
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if sealed.exists():
        path.unlink()
        raise _busy(sealed)
    return file


def _remove_parts(folder: Path) -> None:
    """Drop what a killed writer left; a part still locked belongs to one that is alive."""
    for part in folder.glob("*.tar.part"):
        with part.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _busy(part) from None
            part.unlink()


def _busy(path: Path) -> DataError:
    return DataError(
        f"{path}: another process is writing this folder; let it end, or prepare into another "
        "folder"
    )


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
