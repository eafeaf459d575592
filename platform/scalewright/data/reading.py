"""The clips of a data folder, wherever it lies: the reader that a run opens once."""

import json
import threading
from collections.abc import Sequence
from dataclasses import replace

import safetensors.torch
from crc32c import crc32c
from safetensors import SafetensorError
from torch import Tensor

from scalewright.data.fetching import Fetcher, read_whole
from scalewright.data.ranges import WAY_OUT, Range, Want, clip_of, coalesce
from scalewright.data.sample import Entry, Sample
from scalewright.data.shards import NULL_TEXT_FILE
from scalewright.data.storage import Storage
from scalewright.errors import DataError


class ClipReader:
    """Reads clips of a store; `fetcher` is for who reads many, in the background."""

    def __init__(self, storage: Storage) -> None:
        self.fetcher = Fetcher(storage)
        self.storage = storage

    def read(self, entries: Sequence[Entry]) -> list[Sample]:
        """These clips in float32; any that cannot be read is an error."""
        found: dict[int, Sample] = {}
        errors: list[DataError] = []
        ranges = list(coalesce(Want(entry, place) for place, entry in enumerate(entries)))
        left = threading.Semaphore(0)

        def ask(each: Range[int]) -> None:
            def accept(data: memoryview) -> None:
                for want in each.wants:
                    begin = want.entry.offset - each.offset
                    clip = clip_of(want.entry, data[begin : begin + want.entry.bytes], each.key)
                    latent, text = clip.latent.float(), clip.text.float()
                    found[want.owner] = replace(clip, latent=latent, text=text)
                left.release()

            def fail(error: DataError) -> None:
                errors.append(error)
                left.release()

            self.fetcher.fetch(each.key, each.offset, each.bytes, accept, fail)

        for each in ranges:
            ask(each)
        for _ in ranges:
            left.acquire()
        if errors:
            raise errors[0]
        return [found[place] for place in range(len(entries))]

    def null_text(self) -> Tensor:
        """The embedding of the empty prompt, (S, D) float32.

        Checked, where the file says its checksum; those of earlier versions do not.
        """
        data = bytes(read_whole(self.storage, NULL_TEXT_FILE))
        try:
            text = safetensors.torch.load(data)["text"]
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            told = header.get("__metadata__", {}).get("crc32c")
            if told is not None and int(told) != crc32c(text.numpy()):
                raise ValueError("its checksum is another")
            return text.float()
        except (SafetensorError, KeyError, ValueError) as error:
            raise DataError(
                f"{NULL_TEXT_FILE}: not an embedding of a prompt ({error}); {WAY_OUT}"
            ) from None

    def close(self) -> None:
        """Let go of the threads."""
        self.fetcher.close()
