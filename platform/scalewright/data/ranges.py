"""Clips as ranges of bytes: which to read in one go, and how a range becomes clips again."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from crc32c import crc32c
from torch import Tensor

from scalewright.data.sample import Entry, Sample
from scalewright.data.shards import SHARD_FOLDER
from scalewright.data.storage import CorruptError
from scalewright.errors import DataError

RANGE_BYTES = 8 * 2**20  # of one request; larger ones are no faster and wait longer to be used
GAP_BYTES = 256 * 2**10  # unwanted bytes between two clips that are cheaper than a request

Owner = TypeVar("Owner")

WAY_OUT = "copy the data folder again from where it was prepared, or run jobs/prepare.py again"


@dataclass(frozen=True, slots=True)
class Want(Generic[Owner]):
    """A clip that is wanted, and by whom."""

    entry: Entry
    owner: Owner


@dataclass(frozen=True, slots=True)
class Range(Generic[Owner]):
    """Bytes to read at once, with the clips that are wanted of them."""

    key: str
    offset: int
    bytes: int
    wants: tuple[Want[Owner], ...]


def coalesce(wants: Iterable[Want[Owner]], gap_bytes: int = GAP_BYTES) -> Iterator[Range[Owner]]:
    """Ranges that hold all wanted clips: neighbours together, while they stay small.

    Neighbours have at most `gap_bytes` between them; -1 keeps every clip apart.
    """
    group: list[Want[Owner]] = []
    for want in sorted(wants, key=lambda want: (want.entry.shard, want.entry.offset)):
        if group and not _belongs(group, want.entry, gap_bytes):
            yield _range(group)
            group = []
        group.append(want)
    if group:
        yield _range(group)


def _belongs(group: Sequence[Want[Any]], entry: Entry, gap_bytes: int) -> bool:
    first, last = group[0].entry, group[-1].entry
    end = last.offset + last.bytes
    return (
        entry.shard == first.shard
        and entry.offset - end <= gap_bytes
        and entry.offset + entry.bytes - first.offset <= RANGE_BYTES
    )


def _range(group: Sequence[Want[Owner]]) -> Range[Owner]:
    offset = group[0].entry.offset
    end = max(want.entry.offset + want.entry.bytes for want in group)
    return Range(f"{SHARD_FOLDER}/{group[0].entry.shard}", offset, end - offset, tuple(group))


def clip_of(entry: Entry, data: memoryview, key: str) -> Sample:
    """The clip of its bytes, in float16 and without a copy; checked against the catalogue.

    `CorruptError` if the bytes are not those catalogued, `DataError` if they are, and no clip.
    """
    where = f"{key} at offset {entry.offset} (clip {entry.id})"
    if (checksum := crc32c(data)) != entry.crc32c:
        raise CorruptError(
            f"{where}: checksum {checksum:08x}, but the catalogue says {entry.crc32c:08x}: the "
            f"bytes changed after they were prepared; {WAY_OUT}"
        )
    try:
        tensors = _tensors(data)
        latent, text = tensors["latent"], tensors["text"]
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{where}: not a clip in safetensors ({error!r}); {WAY_OUT}") from None
    wanted = (entry.latent_frames, entry.height, entry.width)
    if latent.ndim != 4 or (latent.shape[0], *latent.shape[2:]) != wanted:
        raise DataError(
            f"{where}: latent {tuple(latent.shape)}, but the catalogue says (T, C, H, W) with "
            f"T, H, W = {wanted}; {WAY_OUT}"
        )
    if text.ndim != 2 or text.shape[0] != entry.text_tokens:
        raise DataError(
            f"{where}: text {tuple(text.shape)}, but the catalogue says {entry.text_tokens} "
            f"tokens; {WAY_OUT}"
        )
    return Sample(entry.id, latent, text, entry.scores)


def _tensors(data: memoryview) -> dict[str, Tensor]:
    """Views of the tensors of a safetensors file: its length, a JSON header, the bytes."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8 : 8 + size]))
    found = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        if about["dtype"] != "F16":
            raise ValueError(f"{name} is {about['dtype']}, not F16")
        begin, end = (8 + size + at for at in about["data_offsets"])
        found[name] = torch.frombuffer(data[begin:end], dtype=torch.float16).view(about["shape"])
    return found
