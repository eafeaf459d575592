"""The loader: the planned steps at any world size, faults told, and no thread left behind."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalewright.data.clips import Clips
from scalewright.data.fetching import Fetcher
from scalewright.data.loader import Loader, Skip
from scalewright.data.measure import Weights
from scalewright.data.order import PackOrder
from scalewright.data.sample import Entry, Missing, Sample
from scalewright.data.settings import DataConfig
from scalewright.data.shards import ShardWriter
from scalewright.data.storage import AccessError, CorruptError, Folder, MissingError
from scalewright.errors import ConfigError, DataError

FRAMES = [1, 3, 2, 5, 1, 4, 2, 2, 1, 3, 5]
CLIPS = 60


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


def latent_of(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    frames = FRAMES[number % len(FRAMES)]
    return torch.randn(frames, 3, 4, 4, generator=generator).half()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Entry]]:
    """Real shards of `CLIPS` clips, ids from 1."""
    path, entries = tmp_path_factory.mktemp("shards"), []
    with ShardWriter(path, max_bytes=20_000) as writer:
        for number in range(CLIPS):
            latent = latent_of(number)
            at = writer.add(f"{number:06d}", latent, torch.full((2, 5), float(number)))
            where = (at.shard, at.offset, at.bytes, at.crc32c)
            entries.append(Entry(number + 1, *where, len(latent), 4, 4, 2))
    return path, entries


def weigh(clips: Clips) -> Weights:
    visual, text = 4 * clips.latent_frames.astype(np.int64), clips.text_tokens.astype(np.int64)
    return Weights(visual, text, (visual + text).astype(np.float64))


def order_of(entries: list[Entry], seed: int = 0, **config: Any) -> PackOrder:
    settings = DataConfig(**{"pack_tokens": 44, "packs_per_step": 4, **config})
    return PackOrder(Clips.of(entries), np.arange(len(entries)), weigh, settings, seed)


class Faulty(Folder):
    """A folder some of whose reads fail: `fault(key, offset, size)` raises, or waits."""

    def __init__(self, root: Path, fault: Any) -> None:
        super().__init__(root)
        self._fault = fault
        self.reads = 0

    def read(self, key: str, offset: int = 0, size: int | None = None) -> bytearray:
        self.reads += 1
        self._fault(key, offset, size)
        return super().read(key, offset, size)


class Loading:
    """A loader on its own fetcher, closed together."""

    def __init__(self, storage: Folder, order: PackOrder, **options: Any) -> None:
        self._fetcher = Fetcher(storage, deadline_s=options.pop("deadline_s", 20.0))
        span = {"rank": 0, "world": 1, "start_step": 0, "stop_step": 20}
        self.loader = Loader(self._fetcher, order, **(span | options))

    def __enter__(self) -> Loader:
        return self.loader

    def __exit__(self, *_: object) -> None:
        self.loader.close()
        self._fetcher.close(timeout_s=1)


def ids(packs: list[list[Sample | Missing]]) -> list[list[int]]:
    return [[s.entry.id if isinstance(s, Missing) else s.id for s in pack] for pack in packs]


@settings(max_examples=10, deadline=None)
@given(st.integers(1, CLIPS), st.sampled_from([4, 8]), st.integers(0, 2**31), st.integers(0, 9))
def test_any_world_size_and_any_resume_give_the_planned_steps(
    folder: tuple[Path, list[Entry]], count: int, packs_per_step: int, seed: int, start: int
) -> None:
    path, entries = folder[0], folder[1][:count]
    order = order_of(entries, seed, packs_per_step=packs_per_step)
    for world in (1, 2, 4):
        for step_packs in zip(
            *(
                list(loaded(path, order_of(entries, seed, packs_per_step=packs_per_step),
                            rank=rank, world=world, start_step=start, stop_step=10))
                for rank in range(world)
            ),
            strict=True,
        ):  # fmt: skip
            (step,) = {step for step, _ in step_packs}
            together = [pack for _, packs in step_packs for pack in packs]
            planned = [[each.entry.id for each in pack] for pack in order.packs(step)]
            assert sorted(together) == sorted(planned)


def loaded(path: Path, order: PackOrder, **options: Any) -> list[tuple[int, list[list[int]]]]:
    with Loading(Folder(path), order, **options) as loader:
        return [(data.step, ids(data.packs)) for data in loader]


def test_clips_arrive_whole_in_half_precision(folder: tuple[Path, list[Entry]]) -> None:
    seen = set()
    with Loading(Folder(folder[0]), order_of(folder[1])) as loader:
        for data in loader:
            for sample in (sample for pack in data.packs for sample in pack):
                assert isinstance(sample, Sample)
                assert torch.equal(sample.latent, latent_of(sample.id - 1))
                assert torch.equal(sample.text, torch.full((2, 5), sample.id - 1.0).half())
                seen.add(sample.id)
        assert data.step == 19
    assert seen == set(range(1, CLIPS + 1))


def test_a_cut_tail_is_left_out(folder: tuple[Path, list[Entry]]) -> None:
    order = order_of(folder[1], pack_frames=6, trim_frames=1, buffers="one")
    cut = 0
    with Loading(Folder(folder[0]), order) as loader:
        for data in loader:
            by_pack = zip(data.packs, order.share(data.step, 0, 1), strict=True)
            for sample, planned in (pair for packs in by_pack for pair in zip(*packs, strict=True)):
                assert isinstance(sample, Sample)
                whole = latent_of(sample.id - 1)
                assert torch.equal(sample.latent, whole[: len(whole) - planned.frames_cut])
                cut += planned.frames_cut
    assert cut > 0


def test_neighbours_are_read_at_once(folder: tuple[Path, list[Entry]]) -> None:
    storage = Faulty(folder[0], lambda *_: None)
    with Loading(storage, order_of(folder[1])) as loader:
        clips = sum(len(pack) for data in loader for pack in data.packs)
    assert storage.reads < clips / 3


def test_a_clip_that_stays_corrupt_is_skipped_and_told(
    folder: tuple[Path, list[Entry]], tmp_path: Path
) -> None:
    path, entries = folder
    for shard in {entry.shard for entry in entries}:
        (tmp_path / "shards").mkdir(exist_ok=True)
        (tmp_path / "shards" / shard).write_bytes((path / "shards" / shard).read_bytes())
    bad = entries[7]
    with (tmp_path / "shards" / bad.shard).open("r+b") as file:
        file.seek(bad.offset + bad.bytes - 1)
        file.write(b"\x55")
    order, skips = order_of(entries), list[Skip]()
    with Loading(Folder(tmp_path), order, on_skip=skips.append) as loader:
        got = [(data.step, data.packs) for data in loader]
    missing = [
        (step, sample) for step, packs in got for pack in packs for sample in pack
        if isinstance(sample, Missing)
    ]  # fmt: skip
    assert {sample.entry for _, sample in missing} == {bad}
    assert sorted(skip.step for skip in skips) == sorted(step for step, _ in missing)
    assert all("checksum" in skip.reason for skip in skips)
    for step, packs in got:  # the order of the others is that of the plan
        planned = [[p.entry.id for p in pack] for pack in order.share(step, 0, 1)]
        assert ids(packs) == planned


def test_without_a_budget_the_first_damage_ends_it(folder: tuple[Path, list[Entry]]) -> None:
    def gone(key: str, offset: int, size: int | None) -> None:
        raise MissingError(f"{key}: no such file")

    with (
        Loading(Faulty(folder[0], gone), order_of(folder[1])) as loader,
        pytest.raises(MissingError, match="no such file"),
    ):
        next(loader)


def test_refused_access_ends_it_whatever_the_budget(folder: tuple[Path, list[Entry]]) -> None:
    def refused(key: str, offset: int, size: int | None) -> None:
        raise AccessError("expired")

    skips: list[Skip] = []
    with (
        Loading(Faulty(folder[0], refused), order_of(folder[1]), on_skip=skips.append) as loader,
        pytest.raises(AccessError, match="expired"),
    ):
        next(loader)
    assert skips == []


def test_a_budget_that_is_spent_ends_it(folder: tuple[Path, list[Entry]]) -> None:
    def gone(key: str, offset: int, size: int | None) -> None:
        raise MissingError(key)

    def spent(skip: Skip) -> None:
        raise DataError(f"too many: {skip.entry.id}")

    with (
        Loading(Faulty(folder[0], gone), order_of(folder[1]), on_skip=spent) as loader,
        pytest.raises(DataError, match="too many"),
    ):
        next(loader)


def test_what_is_no_clip_takes_no_neighbour_with_it(folder: tuple[Path, list[Entry]]) -> None:
    path, entries = folder
    bad = replace(entries[7], height=8)  # its bytes are those catalogued, its size is not
    order, skips = order_of([bad if e.id == bad.id else e for e in entries]), list[Skip]()
    with Loading(Folder(path), order, on_skip=skips.append) as loader:
        missing = [s for data in loader for p in data.packs for s in p if isinstance(s, Missing)]
    assert {sample.entry.id for sample in missing} == {skip.entry.id for skip in skips} == {bad.id}
    assert all("but the catalogue says" in skip.reason for skip in skips)


def test_a_list_of_skips_that_cannot_be_written_ends_it(folder: tuple[Path, list[Entry]]) -> None:
    def gone(key: str, offset: int, size: int | None) -> None:
        raise MissingError(key)

    def unwritable(skip: Skip) -> None:
        raise OSError("no space left")

    with (
        Loading(Faulty(folder[0], gone), order_of(folder[1]), on_skip=unwritable) as loader,
        pytest.raises(OSError, match="no space left"),
    ):
        next(loader)


def test_once_closed_nothing_is_skipped(folder: tuple[Path, list[Entry]]) -> None:
    closed, skips = threading.Event(), list[Skip]()

    def gone_late(key: str, offset: int, size: int | None) -> None:
        closed.wait(10)
        raise MissingError(key)

    loading = Loading(Faulty(folder[0], gone_late), order_of(folder[1]), on_skip=skips.append)
    loading.loader.close()
    closed.set()
    time.sleep(0.1)
    loading.__exit__()
    assert skips == []


def test_a_flipped_wire_is_read_again(folder: tuple[Path, list[Entry]]) -> None:
    hurt = set[tuple[str, int]]()

    def short_once(key: str, offset: int, size: int | None) -> None:
        if (key, offset) not in hurt:
            hurt.add((key, offset))
            raise CorruptError("short")

    with Loading(Faulty(folder[0], short_once), order_of(folder[1]), stop_step=3) as loader:
        assert [data.step for data in loader] == [0, 1, 2]


def test_a_plan_that_fails_reaches_the_consumer(folder: tuple[Path, list[Entry]]) -> None:
    order = order_of(folder[1])
    order.share = lambda *_: (_ for _ in ()).throw(MemoryError("no room"))  # type: ignore[method-assign]
    with (
        Loading(Folder(folder[0]), order) as loader,
        pytest.raises(MemoryError, match="no room"),
    ):
        next(loader)


def test_ram_is_bounded_but_the_next_step_always_fits(folder: tuple[Path, list[Entry]]) -> None:
    step_bytes = max(
        sum(each.entry.bytes for pack in order_of(folder[1]).packs(step) for each in pack)
        for step in range(20)
    )
    for ram_bytes in (1, 3 * step_bytes):
        with Loading(Folder(folder[0]), order_of(folder[1]), ram_bytes=ram_bytes) as loader:
            for _ in range(20):
                time.sleep(0.01)
                assert loader.gauges.ram_bytes <= ram_bytes + step_bytes
                next(loader)
            assert loader.gauges.ram_bytes == 0


def test_no_more_steps_are_read_ahead_than_told(folder: tuple[Path, list[Entry]]) -> None:
    with Loading(Folder(folder[0]), order_of(folder[1]), ahead_steps=3) as loader:
        for _ in range(5):
            deadline_s = time.monotonic() + 10
            while loader.depth < 3 and time.monotonic() < deadline_s:
                time.sleep(0.001)
            time.sleep(0.02)  # to read more, if it would
            assert loader.depth == 3
            next(loader)


def test_gauges(folder: tuple[Path, list[Entry]]) -> None:
    release = threading.Event()

    def slow(key: str, offset: int, size: int | None) -> None:
        release.wait(10)

    with Loading(Faulty(folder[0], slow), order_of(folder[1]), stop_step=2) as loader:
        assert loader.depth == 0
        threading.Timer(0.1, release.set).start()
        next(loader)
        assert loader.gauges.wait_s >= 0.05
        deadline = time.monotonic() + 5
        while loader.depth < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert loader.depth == 1
        next(loader)
        with pytest.raises(StopIteration):
            next(loader)


def test_a_consumer_may_stop_early(folder: tuple[Path, list[Entry]]) -> None:
    loading = Loading(Folder(folder[0]), order_of(folder[1]))
    assert next(loading.loader).step == 0
    loading.__exit__()
    loading.__exit__()
    with pytest.raises(RuntimeError, match="closed"):
        next(loading.loader)


def test_close_wakes_a_waiting_consumer(folder: tuple[Path, list[Entry]]) -> None:
    release = threading.Event()
    loading = Loading(Faulty(folder[0], lambda *_: release.wait(10)), order_of(folder[1]))
    raised: list[BaseException] = []

    def consume() -> None:
        try:
            next(loading.loader)
        except BaseException as error:
            raised.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    time.sleep(0.05)
    loading.loader.close()
    consumer.join(10)
    assert [type(error) for error in raised] == [RuntimeError]
    release.set()
    loading.__exit__()


def test_an_empty_span_is_empty(folder: tuple[Path, list[Entry]]) -> None:
    span = {"start_step": 5, "stop_step": 5}
    with Loading(Folder(folder[0]), order_of(folder[1]), **span) as loader:
        assert list(loader) == []


@pytest.mark.parametrize("world", [3, 8, 0])
def test_a_world_that_does_not_divide_is_refused_with_the_legal_numbers(
    folder: tuple[Path, list[Entry]], world: int
) -> None:
    with pytest.raises(ConfigError, match=f"{world} workers .* = 4 evenly; use 1, 2, 4 workers"):
        Loading(Folder(folder[0]), order_of(folder[1]), world=world)
