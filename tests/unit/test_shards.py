"""Shards: plain tars, whole or absent, and every byte checked when it is read."""

import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from folders import read_clips
from torch import Tensor

import scalewright
from scalewright.data.catalogue import Catalogue, NewClip
from scalewright.data.reading import ClipReader
from scalewright.data.sample import DataInfo, Entry
from scalewright.data.shards import Location, ShardWriter, write_null_text
from scalewright.data.storage import Folder
from scalewright.errors import DataError

INFO = DataInfo(codec="none", latent_channels=4, text_encoder="none", text_dim=16)
SOURCES = [f"clips/{number:02d}.mp4" for number in range(12)]
MAX_BYTES = 7_000  # about three of the clips below


def tensors(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    latent = torch.randn(1 + number % 3, 4, 8, 12, generator=generator)
    return latent, torch.randn(1 + number % 4, 16, generator=generator)


def entry_of(location: Location, latent: Tensor, text: Tensor, id: int = 1) -> Entry:
    T, _, H, W = latent.shape
    return Entry(
        id=id,
        shard=location.shard,
        offset=location.offset,
        bytes=location.bytes,
        crc32c=location.crc32c,
        latent_frames=T,
        height=H,
        width=W,
        text_tokens=len(text),
    )


def write(folder: Path, count: int, max_bytes: int = MAX_BYTES) -> list[Entry]:
    with ShardWriter(folder, max_bytes=max_bytes) as writer:
        return [
            entry_of(writer.add(f"{n:06d}", *tensors(n)), *tensors(n), id=n) for n in range(count)
        ]


def prepare(folder: Path, tell: Callable[[str], None]) -> None:
    """What the prepare job does with shards and catalogue; `tell` hears how far it is."""
    catalogue = Catalogue.create(folder, INFO)
    pending: list[NewClip] = []

    def on_sealed(shard: str) -> None:
        tell("sealed")
        assert {clip.shard for clip in pending} == {shard}
        catalogue.add(pending)
        pending.clear()

    seen = catalogue.sources()
    with ShardWriter(folder, max_bytes=MAX_BYTES, on_sealed=on_sealed) as writer:
        for number, source in enumerate(SOURCES):
            if source in seen:
                continue
            latent, text = tensors(number)
            location = writer.add(f"{number:06d}", latent, text)
            T, _, H, W = latent.shape
            fields = (location.offset, location.bytes, location.crc32c, T, H, W, len(text))
            pending.append(NewClip(source, "train", source, location.shard, *fields))
            tell(f"added {number}")


def test_members_are_read_back_in_float32(tmp_path: Path) -> None:
    entries = write(tmp_path, 10)
    assert len({entry.shard for entry in entries}) > 2
    for sample, entry in zip(read_clips(tmp_path, entries[::-1]), entries[::-1], strict=True):
        latent, text = tensors(entry.id)
        assert sample.id == entry.id
        torch.testing.assert_close(sample.latent, latent.half().float(), rtol=0, atol=0)
        torch.testing.assert_close(sample.text, text.half().float(), rtol=0, atol=0)


def test_plain_tarfile_and_safetensors_read_a_shard(tmp_path: Path) -> None:
    entries = write(tmp_path, 3, max_bytes=1 << 20)
    path = tmp_path / "shards" / "000000.tar"
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["000000.tar"]
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [f"{n:06d}.safetensors" for n in range(3)]
        for member, entry in zip(members, entries, strict=True):
            file = tar.extractfile(member)
            assert file is not None
            stored = safetensors.torch.load(file.read())
            assert stored["latent"].dtype == stored["text"].dtype == torch.float16
            assert stored["latent"].shape == tensors(entry.id)[0].shape
            assert (member.offset_data, member.size) == (entry.offset, entry.bytes)


def test_equal_clips_give_equal_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a", 3)
    write(tmp_path / "b", 3)
    first, second = (tmp_path / name / "shards" / "000000.tar" for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_shards_stay_under_the_limit_and_numbers_go_on(tmp_path: Path) -> None:
    write(tmp_path, 10)
    before = sorted(path.name for path in (tmp_path / "shards").iterdir())
    entries = write(tmp_path, 4)
    after = sorted(path.name for path in (tmp_path / "shards").iterdir())

    assert entries[0].shard == f"{len(before):06d}.tar"
    assert after[: len(before)] == before
    for path in (tmp_path / "shards").iterdir():
        assert path.stat().st_size <= MAX_BYTES + 2 * tarfile.BLOCKSIZE


def test_sealed_is_told_after_the_rename_and_after_every_location(tmp_path: Path) -> None:
    returned: list[Location] = []
    sealed: list[str] = []

    def on_sealed(shard: str) -> None:
        assert (tmp_path / "shards" / shard).exists()
        assert {location.shard for location in returned} == {*sealed, shard}
        sealed.append(shard)

    with ShardWriter(tmp_path, max_bytes=MAX_BYTES, on_sealed=on_sealed) as writer:
        for number in range(10):
            returned.append(writer.add(f"{number:06d}", *tensors(number)))
        assert len(sealed) >= 2
    assert sealed == sorted(path.name for path in (tmp_path / "shards").iterdir())


def test_an_exception_drops_the_open_shard(tmp_path: Path) -> None:
    sealed: list[str] = []
    writer = ShardWriter(tmp_path, on_sealed=sealed.append)
    writer.add("one", *tensors(0))
    with pytest.raises(DataError, match="float16"), writer:
        writer.add("two", tensors(1)[0] * 1e6, tensors(1)[1])
    assert sealed == []
    assert list((tmp_path / "shards").iterdir()) == []


def test_two_writers_of_one_folder_are_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        location = writer.add("one", *tensors(0))
        with pytest.raises(DataError, match="another process"):
            ShardWriter(tmp_path)
    read_clips(tmp_path, [entry_of(location, *tensors(0))])


def test_a_second_writer_between_two_shards_overwrites_nothing(tmp_path: Path) -> None:
    first, second = ShardWriter(tmp_path), ShardWriter(tmp_path)
    with first:
        location = first.add("one", *tensors(0))
        with pytest.raises(DataError, match="another process"):
            second.add("two", *tensors(1))
    with pytest.raises(DataError, match="another process"):
        second.add("two", *tensors(1))
    read_clips(tmp_path, [entry_of(location, *tensors(0))])
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["000000.tar"]


def test_half_a_shard_left_behind_is_removed(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "000000.tar.part").write_bytes(b"half a header")
    (entry,) = write(tmp_path, 1)
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["000000.tar"]
    read_clips(tmp_path, [entry])


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "é", "a" * 81])
def test_keys_that_webdataset_would_split_are_refused(tmp_path: Path, key: str) -> None:
    with ShardWriter(tmp_path) as writer, pytest.raises(DataError, match="key"):
        writer.add(key, *tensors(0))


def test_a_key_twice_in_a_shard_is_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        writer.add("same", *tensors(0))
        with pytest.raises(DataError, match="'same'"):
            writer.add("same", *tensors(1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 7e4])
def test_what_float16_cannot_hold_is_refused(tmp_path: Path, value: float) -> None:
    latent, text = tensors(0)
    latent[0, 0, 0, 0] = value
    with ShardWriter(tmp_path) as writer, pytest.raises(DataError, match="float16"):
        writer.add("one", latent, text)


def test_wrong_axes_and_no_token_are_refused(tmp_path: Path) -> None:
    latent, text = tensors(0)
    with ShardWriter(tmp_path) as writer:
        with pytest.raises(DataError, match="latent"):
            writer.add("one", latent[0], text)
        with pytest.raises(DataError, match="text"):
            writer.add("one", latent, text[:0])


@pytest.mark.parametrize("place", [0, 40, 400, -1])
def test_one_flipped_bit_is_caught(tmp_path: Path, place: int) -> None:
    entries = write(tmp_path, 3, max_bytes=1 << 20)
    path = tmp_path / "shards" / "000000.tar"
    data = bytearray(path.read_bytes())
    data[entries[1].offset + place % entries[1].bytes] ^= 4
    path.write_bytes(data)

    read_clips(tmp_path, [entries[0], entries[2]])
    with pytest.raises(DataError, match=r"000000\.tar at offset .* checksum .* catalogue says"):
        read_clips(tmp_path, entries)


def test_a_truncated_and_a_missing_shard_are_named(tmp_path: Path) -> None:
    entries = write(tmp_path, 3, max_bytes=1 << 20)
    path = tmp_path / "shards" / "000000.tar"
    os.truncate(path, entries[2].offset + 100)
    read_clips(tmp_path, [entries[1]])
    with pytest.raises(DataError, match=rf"ends after 100 of {entries[2].bytes} bytes"):
        read_clips(tmp_path, [entries[2]])
    with pytest.raises(DataError, match=r"000009\.tar: no such file"):
        read_clips(tmp_path, [replace(entries[0], shard="000009.tar")])


@pytest.mark.parametrize("change", ["latent_frames", "height", "width", "text_tokens"])
def test_shapes_that_differ_from_the_catalogue_are_refused(tmp_path: Path, change: str) -> None:
    (entry,) = write(tmp_path, 1)
    other = replace(entry, **{change: getattr(entry, change) + 1})
    with pytest.raises(DataError, match="catalogue says"):
        read_clips(tmp_path, [other])


def test_a_closed_reader_holds_no_file_and_no_thread(tmp_path: Path) -> None:
    entries = write(tmp_path, 10)
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    read_clips(tmp_path, entries)
    assert len(os.listdir("/proc/self/fd")) == files
    assert threading.active_count() == threads


def test_null_text(tmp_path: Path) -> None:
    text = torch.randn(2, 16)
    write_null_text(tmp_path / "data", text)
    torch.testing.assert_close(
        ClipReader(Folder(tmp_path / "data")).null_text(), text.half().float()
    )
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["null_text.safetensors"]


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_a_null_text_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "null_text.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"null_text\.safetensors"):
        ClipReader(Folder(tmp_path)).null_text()


@pytest.mark.chaos
@pytest.mark.parametrize(("moment", "entered"), [("added 7", 6), ("sealed", 0)])
def test_a_killed_writer_leaves_nothing_half_written(
    tmp_path: Path, moment: str, entered: int
) -> None:
    paths = (str(Path(scalewright.__path__[0]).parent), str(Path(__file__).parents[1]))
    with subprocess.Popen(
        [sys.executable, __file__, str(tmp_path), moment],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    ) as child:
        assert child.stdout is not None
        assert any(line.strip() == moment for line in child.stdout)
        child.send_signal(signal.SIGKILL)

    assert len(_require_whole(tmp_path)) == entered
    prepare(tmp_path, tell=lambda text: None)
    assert _require_whole(tmp_path) == SOURCES
    assert not list((tmp_path / "shards").glob("*.part"))


def _require_whole(folder: Path) -> list[str]:
    """Read every clip of the catalogue and every sealed tar; return the sources in order."""
    catalogue = Catalogue.open(folder)
    entries = catalogue.entries("train")
    captions = catalogue.captions([entry.id for entry in entries])
    for entry, sample in zip(entries, read_clips(folder, entries), strict=True):
        latent, _ = tensors(SOURCES.index(captions[entry.id]))
        assert torch.equal(sample.latent, latent.half().float())
    for path in (folder / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            assert tar.getmembers()
    return [captions[entry.id] for entry in entries]


def _tell_and_wait(text: str) -> None:
    print(text, flush=True)
    if text == sys.argv[2]:
        sys.stdin.read()  # until this process is killed


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), tell=_tell_and_wait)
