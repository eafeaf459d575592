"""The hot volume: one fetch for all ranks, bounded, tidied up, and never waited for in vain."""

import errno
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c
from folders import write_data_folder

from scalewright.data import hot
from scalewright.data.catalogue import Catalogue
from scalewright.data.fetching import Fetcher
from scalewright.data.hot import HotVolume
from scalewright.data.loader import Loader
from scalewright.data.order import PackOrder
from scalewright.data.settings import DataConfig
from scalewright.data.staging import Stretch, Unit, stretches
from scalewright.data.storage import Folder
from scalewright.errors import ConfigError
from scalewright.model.shape import ModelConfig
from scalewright.train.weigh import weigh_in

STEPS, WORLD, GAP = 12, 2, 1024


class Counted(Folder):
    """A store that counts its reads."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: Counter[tuple[str, int]] = Counter()
        self._lock = threading.Lock()

    def read(self, key: str, offset: int = 0, size: int | None = None) -> bytearray:
        with self._lock:
            self.reads[key, offset] += 1
        return super().read(key, offset, size)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_folder(tmp_path_factory.mktemp("data"), clips=120)


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


def plan(data: Path) -> PackOrder:
    clips = Catalogue.open(data).snapshot().clips
    config = DataConfig(pack_tokens=96, packs_per_step=4, shuffle_clips=60)
    weigh = weigh_in(ModelConfig(text_dim=64, latent_channels=32))
    return PackOrder(clips, np.arange(len(clips)), weigh, config, 0)


class Rank:
    """A rank that reads its share of all steps through the volume, in a thread of its own."""

    def __init__(self, rank: int, data: Path, hot: Path, **options: Any) -> None:
        self.store = Counted(data)
        options = {"name": "attempt-1", "world": WORLD, "hot_bytes": 400_000} | options
        self.volume = HotVolume(self.store, hot, rank=rank, **options)
        self.most_bytes = 0
        self.got: list[list[list[int]]] = []
        self._rank, self._order = rank, plan(data)
        self._thread = threading.Thread(target=self._read)

    def start(self) -> None:
        order, volume = self._order, self.volume
        volume.bring(stretches(order, 0, STEPS, volume.stretch_bytes, GAP))
        self._thread.start()

    def _read(self) -> None:
        fetcher = Fetcher(self.volume)
        span = {"rank": self._rank, "world": WORLD, "start_step": 0, "stop_step": STEPS}
        with Loader(fetcher, self._order, hot=self.volume, ram_bytes=100_000, **span) as loader:
            for step in loader:
                self.got.append([[s.id for s in pack] for pack in step.packs])  # type: ignore[union-attr]
                time.sleep(0.02)
        fetcher.close()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        self.volume.close()


def lying(hot: Path) -> Iterator[int]:
    """Bytes of every unit in the volume."""
    for path in hot.glob("attempt-*/0*"):
        try:
            yield path.stat().st_size
        except FileNotFoundError:
            continue


def run(data: Path, hot: Path, **options: Any) -> list[Rank]:
    ranks = [Rank(rank, data, hot, **options) for rank in range(WORLD)]
    for rank in ranks:
        rank.start()
    most = 0
    while any(rank.alive for rank in ranks):
        most = max(most, sum(lying(hot)))
        time.sleep(0.002)
    ends = [threading.Thread(target=rank.end) for rank in ranks]
    for end in ends:
        end.start()
    for end in ends:
        end.join()
    order = plan(data)
    ranks[0].most_bytes = most
    for number, rank in enumerate(ranks):
        planned = [
            [[p.entry.id for p in pack] for pack in order.share(step, number, WORLD)]
            for step in range(STEPS)
        ]
        assert rank.got == planned
    return ranks


def test_units_hold_what_the_steps_need_once(data: Path) -> None:
    order = plan(data)
    found = list(stretches(order, 2, STEPS, 300_000))
    assert [s.first for s in found] == [2, *(s.stop for s in found[:-1])]
    assert found[-1].stop == STEPS
    assert len(found) > 1
    for stretch in found:
        names = [unit.name for rank in range(3) for unit in stretch.brought_by(rank, 3)]
        assert sorted(names) == sorted(unit.name for unit in stretch.units)
        for step in range(stretch.first, stretch.stop):
            for entry in (p.entry for pack in order.packs(step) for p in pack):
                holding = [
                    u for u in stretch.units
                    if u.key.endswith(entry.shard) and u.offset <= entry.offset
                    and entry.offset + entry.bytes <= u.offset + u.bytes
                ]  # fmt: skip
                assert len(holding) == 1


def test_every_unit_is_fetched_once_by_one_rank_and_deleted(data: Path, tmp_path: Path) -> None:
    ranks = run(data, tmp_path)
    fetched = Counter[tuple[str, int]]()
    for rank in ranks:
        fetched.update(rank.store.reads)
        assert rank.volume.gauges.from_store == 0
        assert rank.volume.gauges.from_volume > 50
    wanted = Counter(
        (unit.key, unit.offset)
        for stretch in stretches(plan(data), 0, STEPS, ranks[0].volume.stretch_bytes, GAP)
        for unit in stretch.units
    )
    assert fetched == wanted
    assert 100_000 < ranks[0].most_bytes <= 400_000
    left = {path.name for path in (tmp_path / "attempt-1").iterdir()}
    assert left == {"passed-00000", "passed-00001"}


def test_a_volume_smaller_than_a_step_still_works(data: Path, tmp_path: Path) -> None:
    ranks = run(data, tmp_path, hot_bytes=3)
    assert all(rank.volume.gauges.from_store == 0 for rank in ranks)


def test_what_other_attempts_left_is_deleted(data: Path, tmp_path: Path) -> None:
    old = tmp_path / "attempt-1" / "00000000-000000"
    old.parent.mkdir()
    old.write_bytes(b"x" * 1000)
    (old.parent / "00000000-000001.123.part").write_bytes(b"half")
    run(data, tmp_path, name="attempt-2")
    assert [path.name for path in tmp_path.iterdir()] == ["attempt-2"]


def test_a_volume_that_vanishes_costs_only_requests(data: Path, tmp_path: Path) -> None:
    ranks = [Rank(rank, data, tmp_path / "hot", patience_s=0.3) for rank in range(WORLD)]
    for rank in ranks:
        rank.start()
    time.sleep(0.15)
    (tmp_path / "hot").rename(tmp_path / "gone")  # at once, whatever is being written there
    for rank in ranks:
        rank.end()
        assert len(rank.got) == STEPS
    assert sum(rank.volume.gauges.from_store for rank in ranks) > 0


def test_a_rank_that_brings_nothing_is_not_waited_for(data: Path, tmp_path: Path) -> None:
    one = Rank(0, data, tmp_path, patience_s=0.2)
    one.start()
    one.end()
    assert len(one.got) == STEPS
    assert one.volume.gauges.from_store > 0
    assert one.volume.gauges.from_volume > 0


def test_nothing_is_brought_before_what_others_left_is_deleted(data: Path, tmp_path: Path) -> None:
    (tmp_path / "attempt-0").mkdir()
    (tmp_path / "attempt-0" / "0-left").write_bytes(bytes(400_000))
    early = Rank(1, data, tmp_path, patience_s=0.5)
    early.start()
    while early.alive:
        assert not list(tmp_path.glob("attempt-1/0*"))
        time.sleep(0.002)
    early.end()
    assert len(early.got) == STEPS
    ranks = run(data, tmp_path, name="attempt-2")
    assert ranks[0].most_bytes <= 400_000
    assert not list(tmp_path.glob("attempt-[01]"))


def test_a_folder_that_cannot_be_written_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"data\.hot = .*/file/hot: Not a directory; give a"):
        HotVolume(Folder(data), tmp_path / "file" / "hot", name="a", rank=0, world=1, hot_bytes=10)


def test_a_stretch_is_no_more_than_twice_what_its_steps_need(data: Path) -> None:
    order = plan(data)
    for stretch in stretches(order, 0, STEPS, 100_000):
        packs = (pack for step in range(stretch.first, stretch.stop) for pack in order.packs(step))
        wanted = {p.entry.id: p.entry.bytes for pack in packs for p in pack}
        assert sum(wanted.values()) <= stretch.bytes < 2 * sum(wanted.values())


def test_a_bit_flipped_on_the_wire_never_gets_into_the_volume(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counted, "read", flipping_first_reads(Counted.read))
    ranks = run(data, tmp_path)
    assert sum(rank.volume.gauges.from_store for rank in ranks) == 0
    assert all(min(rank.store.reads.values()) >= 2 for rank in ranks)


def flipping_first_reads(read: Any) -> Any:
    seen = set[tuple[int, str, int]]()

    def flipped(self: Counted, key: str, offset: int = 0, size: int | None = None) -> bytearray:
        found: bytearray = read(self, key, offset, size)
        if (id(self), key, offset) not in seen:
            seen.add((id(self), key, offset))
            found[0] ^= 16  # of a clip that is wanted; nobody looks at what is not
        return found

    return flipped


def test_what_a_volume_spoils_is_read_from_the_store(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = hot._write_whole
    monkeypatch.setattr(hot, "_write_whole", lambda path, data: write(path, bytes(len(data))))
    ranks = run(data, tmp_path)
    assert all(rank.volume.gauges.from_store > 50 for rank in ranks)


@pytest.mark.parametrize("empty_files_fit", [True, False])
def test_a_full_volume_is_not_waited_for(
    empty_files_fit: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = hot._write_whole

    def full(path: Path, data: memoryview) -> None:
        if path.name.startswith("0") and (data or not empty_files_fit):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(hot, "_write_whole", full)
    # Where not even empty files fit, the other rank learns of it by waiting once.
    ranks = run(data, tmp_path, patience_s=100.0 if empty_files_fit else 1.0)
    assert all(rank.volume.gauges.from_volume == 0 for rank in ranks)
    assert all(rank.volume.gauges.failed > 0 for rank in ranks)


def test_of_two_units_that_hold_a_clip_the_one_that_is_there_is_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shard").write_bytes(bytes(range(200)))
    store, clips = Counted(tmp_path / "data"), np.array([[10, 5, crc32c(bytes(range(10, 15)))]])
    units = [Unit(f"0000000{n}-000000", "shard", 0, 100 + n, clips) for n in range(2)]
    volume = HotVolume(
        store, tmp_path / "hot", name="a", rank=0, world=1, hot_bytes=1000, patience_s=60.0
    )
    volume.bring(iter([Stretch(n, n, n + 1, (unit,)) for n, unit in enumerate(units)]))
    try:
        for unit in units:
            while not (tmp_path / "hot" / "a" / unit.name).exists():
                time.sleep(0.01)
        assert volume.read("shard", 20, 5) == bytes(range(20, 25))  # in a gap: it is not checked
        assert volume.gauges.from_store == 1
        for unit in reversed(units):
            assert volume.read("shard", 10, 5) == bytes(range(10, 15))
            (tmp_path / "hot" / "a" / unit.name).unlink()
        assert volume.gauges.from_store == 1
        assert volume.read("shard", 10, 5) == bytes(range(10, 15))
        assert volume.gauges.from_store == 2
    finally:
        volume.close()


def test_who_closes_after_the_last_step_has_told_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shard").write_bytes(bytes(200))
    options = {"name": "a", "rank": 0, "world": 2, "hot_bytes": 1000, "patience_s": 1.0}
    volume = HotVolume(Counted(tmp_path / "data"), tmp_path / "hot", **options)
    unit = Unit("00000000-000000", "shard", 0, 100, np.empty((0, 3), np.int64))
    looking, scandir = threading.Event(), os.scandir

    def slow(path: Path) -> Any:
        looking.set()
        time.sleep(0.3)
        return scandir(path)

    monkeypatch.setattr(hot.os, "scandir", slow)
    volume.bring(iter([Stretch(0, 0, 1, (unit,))]))
    volume.wait_for_step(0)
    assert looking.wait(10)  # and does not learn of the step before the volume closes
    volume.passed(0)
    volume.close()
    assert int((tmp_path / "hot" / "a" / "passed-00000").read_text()) == 1


def test_a_stretch_is_bounded_by_what_is_read_not_by_what_there_is(data: Path) -> None:
    order = plan(data)
    every = sum(entry.bytes for entry in order.entries())
    found = list(stretches(order, 0, 400, 2 * every, GAP))
    assert len(found) > 2
    steps = [step for each in found for step in each.steps]
    assert steps == list(range(400))


def test_who_still_brings_is_waited_for_longer_than_patience(data: Path, tmp_path: Path) -> None:
    """A link that takes longer than the patience for all units, but not for each."""

    class Slow(Counted):
        turn = threading.Lock()

        def read(self, key: str, offset: int = 0, size: int | None = None) -> Any:
            with self.turn:
                time.sleep(0.08)
            return super().read(key, offset, size)

    store, (whole,) = Slow(data), stretches(plan(data), 0, STEPS, 2**30, -1)
    stretch = replace(whole, units=whole.units[:40])
    volume = HotVolume(store, tmp_path, name="a", rank=0, world=1, hot_bytes=2**30, patience_s=2.0)
    volume.bring(iter([stretch]))
    while not volume._units:  # until the stretch is begun
        time.sleep(0.001)
    reads = [
        threading.Thread(target=volume.read, args=(unit.key, unit.offset, unit.bytes))
        for unit in stretch.units
    ]
    for read in reads:
        read.start()
    for read in reads:
        read.join()
    assert volume.gauges.from_volume == len(stretch.units)
    assert set(store.reads.values()) == {1}
    volume.close()
