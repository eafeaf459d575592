"""The loader: the planned steps at any world size, errors at once, and no thread left behind."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalewright.data.loader import Loader, Reader
from scalewright.data.order import PackOrder
from scalewright.data.sample import Entry, Sample
from scalewright.data.settings import DataConfig
from scalewright.data.shards import ShardReader, ShardWriter
from scalewright.errors import ConfigError, DataError
from scalewright.model.shape import ClipTokens

FRAMES = [1, 3, 2, 5, 1, 4, 2, 2, 1, 3, 5]


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    yield
    assert not _loader_threads()


def _loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader-")]


class FakeReader:
    """Gives empty clips; `broken` ids raise, `blocked` ids wait until `release` is set."""

    def __init__(self, broken: set[int] = frozenset(), blocked: set[int] = frozenset()) -> None:
        self.broken, self.blocked = broken, blocked
        self.release = threading.Event()
        self.reads = 0
        self.read_one = threading.Semaphore(0)
        self._lock = threading.Lock()

    def read(self, entry: Entry) -> Sample:
        with self._lock:
            self.reads += 1
        self.read_one.release()
        if entry.id in self.blocked:
            assert self.release.wait(30)
        if entry.id in self.broken:
            raise DataError(f"clip {entry.id} is broken")
        return Sample(id=entry.id, latent=torch.zeros(1, 1, 1, 1), text=torch.zeros(1, 1))


def order_of(
    count: int = 11, packs_per_step: int = 4, pack_tokens: int = 14, seed: int = 0
) -> PackOrder:
    frames = [FRAMES[number % len(FRAMES)] for number in range(count)]
    entries = [
        Entry(
            id=number,
            shard="000000.tar",
            offset=0,
            bytes=0,
            crc32c=0,
            latent_frames=T,
            height=2,
            width=2,
            text_tokens=1,
        )
        for number, T in enumerate(frames)
    ]
    config = DataConfig(pack_tokens=pack_tokens, packs_per_step=packs_per_step)
    return PackOrder(entries, [ClipTokens(2 * T, 1) for T in frames], config, seed)


def loader_of(
    reader: Reader, order: PackOrder, start_step: int = 0, stop_step: int = 100
) -> Loader:
    return Loader(reader, order, rank=0, world=1, start_step=start_step, stop_step=stop_step)


def ids_by_step(
    order: PackOrder, rank: int, world: int, start_step: int, stop_step: int
) -> dict[int, list[list[int]]]:
    span = {"start_step": start_step, "stop_step": stop_step}
    with Loader(FakeReader(), order, rank=rank, world=world, **span) as loader:
        return {
            data.step: [[sample.id for sample in pack] for pack in data.packs] for data in loader
        }


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.sampled_from([4, 8, 12]), st.integers(0, 2**31), st.integers(0, 9))
def test_any_world_size_and_any_resume_give_the_planned_steps(
    count: int, packs_per_step: int, seed: int, start_step: int
) -> None:
    planned_by = order_of(count, packs_per_step, seed=seed)
    planned = {
        step: [[entry.id for entry in pack] for pack in planned_by.packs(step)]
        for step in range(10)
    }
    for world in (1, 2, 4):
        ranks = [
            ids_by_step(order_of(count, packs_per_step, seed=seed), rank, world, start_step, 10)
            for rank in range(world)
        ]
        for step in range(start_step, 10):
            for rank in range(world):
                assert ranks[rank][step] == planned[step][rank::world]
        assert all(list(of_rank) == list(range(start_step, 10)) for of_rank in ranks)


def test_real_shards_arrive_whole_and_in_order(tmp_path: Path) -> None:
    latents = [torch.randn(T, 3, 4, 4).half().float() for T in FRAMES]
    entries = []
    with ShardWriter(tmp_path, max_bytes=4000) as writer:
        for number, latent in enumerate(latents):
            at = writer.add(f"{number:06d}", latent, torch.full((2, 5), float(number)))
            where = (at.shard, at.offset, at.bytes, at.crc32c)
            entries.append(Entry(number, *where, len(latent), 4, 4, 2))
    clips = [ClipTokens(4 * T, 2) for T in FRAMES]
    order = PackOrder(entries, clips, DataConfig(pack_tokens=24, packs_per_step=2), seed=1)
    reader = ShardReader(tmp_path)
    with loader_of(reader, order, stop_step=30) as loader:
        for data in loader:
            for pack, planned in zip(data.packs, order.packs(data.step), strict=True):
                assert [sample.id for sample in pack] == [entry.id for entry in planned]
                for sample in pack:
                    assert torch.equal(sample.latent, latents[sample.id])
                    assert torch.equal(sample.text, torch.full((2, 5), float(sample.id)))
    reader.close()
    assert data.step == 29


def test_a_damaged_clip_stops_the_loader_with_its_own_error(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        at = writer.add("one", torch.ones(1, 3, 4, 4), torch.ones(2, 5))
    with (tmp_path / "shards" / at.shard).open("r+b") as file:
        file.seek(at.offset + at.bytes - 1)
        file.write(b"\x55")
    entry = Entry(7, at.shard, at.offset, at.bytes, at.crc32c, 1, 4, 4, 2)
    order = PackOrder([entry], [ClipTokens(4, 2)], DataConfig(pack_tokens=6), seed=0)
    with (
        loader_of(ShardReader(tmp_path), order) as loader,
        pytest.raises(DataError, match=r"\(clip 7\): checksum"),
    ):
        next(loader)


def test_an_error_ahead_surfaces_while_the_consumer_still_waits() -> None:
    order = order_of(packs_per_step=1)
    now, ahead = order.packs(0)[0][0].id, order.packs(1)[0][0].id
    reader = FakeReader(broken={ahead}, blocked={now})
    with loader_of(reader, order) as loader:
        with pytest.raises(DataError, match=f"clip {ahead} is broken"):
            next(loader)
        with pytest.raises(DataError, match=f"clip {ahead} is broken"):
            next(loader)
        reader.release.set()


def test_a_plan_that_fails_reaches_the_consumer() -> None:
    class BrokenOrder(PackOrder):
        def pack(self, number: int) -> tuple[Entry, ...]:
            raise MemoryError("no room for the plan")

    planned = order_of()
    order = BrokenOrder(planned._entries, planned._clips, planned.config, seed=0)
    with loader_of(FakeReader(), order) as loader, pytest.raises(MemoryError, match="no room"):
        next(loader)


def test_steps_ahead_are_bounded() -> None:
    order = order_of(packs_per_step=4)
    reader = FakeReader()
    ahead = sum(len(pack) for step in range(2) for pack in order.packs(step))
    loader = loader_of(reader, order)
    for _ in range(ahead):
        assert reader.read_one.acquire(timeout=30)
    loader.close()
    assert reader.reads == ahead
    assert loader.depth == 0


def test_gauges() -> None:
    order = order_of(packs_per_step=1)
    reader = FakeReader(blocked={order.packs(2)[0][0].id})
    with loader_of(reader, order, stop_step=3) as loader:
        next(loader)
        next(loader)
        assert loader.depth == 0
        before = loader.wait_s
        threading.Thread(target=reader.release.set).start()
        next(loader)
        assert loader.wait_s > before > 0
        with pytest.raises(StopIteration):
            next(loader)


def test_a_consumer_may_stop_early() -> None:
    loader = loader_of(FakeReader(), order_of())
    assert next(loader).step == 0
    loader.close()
    assert not _loader_threads()
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_close_wakes_a_waiting_consumer_and_does_not_wait_for_a_stuck_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    order = order_of()
    reader = FakeReader(blocked=set(range(11)))
    loader = loader_of(reader, order)
    raised: list[BaseException] = []

    def consume() -> None:
        try:
            next(loader)
        except BaseException as error:
            raised.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert reader.read_one.acquire(timeout=30)
    loader.close(timeout_s=0.01)
    consumer.join(30)
    assert [type(error) for error in raised] == [RuntimeError]
    assert "has not returned for 0.01 s" in caplog.text
    reader.release.set()
    loader.close()


def test_an_empty_span_is_empty() -> None:
    with loader_of(FakeReader(), order_of(), start_step=5, stop_step=5) as loader:
        assert list(loader) == []


@pytest.mark.parametrize("world", [3, 8, 0])
def test_a_world_that_does_not_divide_is_refused_with_the_legal_numbers(world: int) -> None:
    span = {"start_step": 0, "stop_step": 1}
    with pytest.raises(ConfigError, match=f"{world} workers .* = 4 evenly; use 1, 2, 4 workers"):
        Loader(FakeReader(), order_of(packs_per_step=4), rank=0, world=world, **span)
