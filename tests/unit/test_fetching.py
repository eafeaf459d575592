"""The fetcher: every range answered once, in bounded time, whatever the store does."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from scalewright.data import fetching
from scalewright.data.fetching import Fetcher, read_whole
from scalewright.data.storage import AccessError, CorruptError, MissingError, StoreError
from scalewright.errors import DataError

SIZE = 1000


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(fetching, "TICK_S", 0.01)
    monkeypatch.setattr(fetching, "HEDGE_AT_FIRST_S", 0.2)
    monkeypatch.setattr(fetching, "HEDGE_AT_LEAST_S", 0.2)


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


class Store:
    """Gives zeros; `faults[key]` are raised or waited for, one a try, before it does."""

    def __init__(self, faults: dict[str, list[Any]] | None = None) -> None:
        self.faults = faults or {}
        self.tries: dict[str, int] = {}
        self._lock = threading.Lock()

    def read(self, key: str, offset: int = 0, size: int | None = None) -> bytearray:
        with self._lock:
            self.tries[key] = self.tries.get(key, 0) + 1
            faults = self.faults.get(key)
            fault = faults.pop(0) if faults else None
        if isinstance(fault, Exception):
            raise fault
        if isinstance(fault, threading.Event):
            fault.wait(30)
        return bytearray(size or SIZE)

    def write(self, key: str, data: bytes) -> None:
        raise NotImplementedError

    def keys(self, prefix: str) -> list[str]:
        raise NotImplementedError


class Heard:
    """What came of ranges, by key."""

    def __init__(self, count: int) -> None:
        self.results: dict[str, list[Any]] = {}
        self._left = threading.Semaphore(0)
        self._count = count

    def take(self, key: str, refuse: Callable[[], None] = lambda: None) -> tuple[Any, Any]:
        def accept(data: memoryview) -> None:
            refuse()
            self.results.setdefault(key, []).append(len(data))
            self._left.release()

        def fail(error: DataError) -> None:
            self.results.setdefault(key, []).append(error)
            self._left.release()

        return accept, fail

    def wait(self) -> dict[str, list[Any]]:
        for _ in range(self._count):
            assert self._left.acquire(timeout=20)
        time.sleep(0.05)  # whoever would answer twice
        return self.results


def fetch_all(store: Store, keys: list[str], **options: Any) -> tuple[dict[str, list[Any]], Any]:
    fetcher, heard = Fetcher(store, **options), Heard(len(keys))
    try:
        for key in keys:
            fetcher.fetch(key, 0, SIZE, *heard.take(key))
        return heard.wait(), fetcher.gauges
    finally:
        fetcher.close()


def test_every_range_comes_once() -> None:
    keys = [str(number) for number in range(300)]
    results, gauges = fetch_all(Store(), keys, threads=8)
    assert results == {key: [SIZE] for key in keys}
    assert (gauges.requests, gauges.bytes, gauges.retries) == (300, 300 * SIZE, 0)


def test_what_fails_for_now_is_tried_again() -> None:
    store = Store({"a": [StoreError("503"), StoreError("reset"), CorruptError("short")]})
    results, gauges = fetch_all(store, ["a", "b"])
    assert results == {"a": [SIZE], "b": [SIZE]}
    assert store.tries == {"a": 4, "b": 1}
    assert gauges.retries == 3


@pytest.mark.parametrize("error", [MissingError("gone"), AccessError("refused")])
def test_what_is_final_is_told_at_once(error: DataError) -> None:
    store = Store({"a": [error]})
    results, gauges = fetch_all(store, ["a", "b"])
    assert results == {"a": [error], "b": [SIZE]}
    assert store.tries["a"] == 1
    assert gauges.failed == 1


def test_bytes_that_are_refused_are_read_again_and_given_up_in_the_end() -> None:
    store, heard = Store(), Heard(2)
    refusals = iter([CorruptError("flipped")])

    def once() -> None:
        if (error := next(refusals, None)) is not None:
            raise error

    def always() -> None:
        raise CorruptError("flipped for ever")

    fetcher = Fetcher(store)
    fetcher.fetch("once", 0, SIZE, *heard.take("once", once))
    fetcher.fetch("always", 0, SIZE, *heard.take("always", always))
    results = heard.wait()
    fetcher.close()
    assert results["once"] == [SIZE]
    assert store.tries == {"once": 2, "always": fetching.CORRUPT_TRIES}
    assert "for ever" in str(results["always"][0])
    assert fetcher.gauges.corrupt == 1 + fetching.CORRUPT_TRIES


def test_a_stalled_read_is_asked_for_again_while_it_hangs() -> None:
    stalled = threading.Event()
    store = Store({"a": [stalled]})
    begin_s = time.monotonic()
    fetcher, heard = Fetcher(store), Heard(1)
    fetcher.fetch("a", 0, SIZE, *heard.take("a"))
    results = heard.wait()
    assert time.monotonic() - begin_s < 5
    stalled.set()  # the first answer comes late, and counts for nothing
    fetcher.close()
    assert results == {"a": [SIZE]}
    assert fetcher.gauges.hedges == 1


def test_past_its_deadline_a_range_has_failed() -> None:
    stalls = [threading.Event() for _ in range(40)]
    store = Store({"a": [StoreError("503")] * 10_000, "b": list(stalls)})
    results, _ = fetch_all_and_release(store, ["a", "b"], stalls, deadline_s=0.6)
    assert str(results["a"][0]) == "503"
    assert "b at 0: no answer of 1000 bytes in 0.6 s" in str(results["b"][0])
    assert [len(found) for found in results.values()] == [1, 1]


def fetch_all_and_release(
    store: Store, keys: list[str], stalls: list[threading.Event], **options: Any
) -> tuple[dict[str, list[Any]], Any]:
    fetcher, heard = Fetcher(store, **options), Heard(len(keys))
    for key in keys:
        fetcher.fetch(key, 0, SIZE, *heard.take(key))
    results = heard.wait()
    for stall in stalls:
        stall.set()
    fetcher.close()
    return results, fetcher.gauges


def test_a_bug_in_who_takes_the_bytes_reaches_him_as_an_error() -> None:
    def broken() -> None:
        raise ZeroDivisionError("a bug")

    fetcher, heard = Fetcher(Store()), Heard(1)
    fetcher.fetch("a", 0, SIZE, *heard.take("a", broken))
    results = heard.wait()
    fetcher.close()
    assert "a bug" in str(results["a"][0])


def test_after_closing_nothing_is_called(caplog: pytest.LogCaptureFixture) -> None:
    stalled = threading.Event()
    fetcher, heard = Fetcher(Store({"a": [stalled] * 3})), Heard(1)
    fetcher.fetch("a", 0, SIZE, *heard.take("a"))
    time.sleep(0.05)
    fetcher.close(timeout_s=0.05)
    assert "1 reads have not returned for 0.05 s" in caplog.text
    stalled.set()
    time.sleep(0.05)
    assert heard.results == {}


def test_an_outage_does_not_multiply_requests() -> None:
    """Each try hangs for longer than it takes to ask twice, and then fails."""

    class Down(Store):
        running = most = 0

        def read(self, key: str, offset: int = 0, size: int | None = None) -> bytearray:
            with self._lock:
                self.running += 1
                self.most = max(self.most, self.running)
            time.sleep(0.4)
            with self._lock:
                self.running -= 1
            raise StoreError("down")

    store = Down()
    results, _ = fetch_all(store, ["a"], deadline_s=3.0)
    assert str(results["a"][0]) == "down"
    assert store.most == 2


def test_an_error_of_who_is_told_of_failures_stops_nobody_else() -> None:
    def broken(error: DataError) -> None:
        raise ZeroDivisionError("a bug")

    fetcher, heard = Fetcher(Store({"a": [MissingError("gone")]}), threads=1), Heard(1)
    fetcher.fetch("a", 0, SIZE, lambda data: None, broken)
    fetcher.fetch("b", 0, SIZE, *heard.take("b"))
    assert heard.wait() == {"b": [SIZE]}
    fetcher.close()


def test_a_closed_fetcher_takes_nothing_in() -> None:
    fetcher, heard = Fetcher(Store()), Heard(1)
    fetcher.fetch("a", 0, SIZE, *heard.take("a"))
    heard.wait()
    fetcher.close()
    with pytest.raises(RuntimeError, match="b: asked for after its fetcher was closed"):
        fetcher.fetch("b", 0, SIZE, *heard.take("b"))


def test_a_whole_object_is_read_again_until_the_deadline() -> None:
    store = Store({"a": [StoreError("503"), StoreError("reset")], "b": [MissingError("gone")]})
    assert len(read_whole(store, "a")) == SIZE
    with pytest.raises(MissingError, match="gone"):
        read_whole(store, "b")
    with pytest.raises(StoreError, match="down"):
        read_whole(Store({"c": [StoreError("down")] * 1000}), "c", deadline_s=0.1)


def test_an_object_that_ran_out_of_time_gets_less_of_it_until_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetching, "SHORTER", 1000)
    monkeypatch.setattr(fetching, "LONGEST_PAUSE_S", 0.05)
    store = Store({"a": [StoreError("503")] * 10_000})
    fetcher, tries = Fetcher(store, deadline_s=1.0), [0]
    for fault in ("503", "503", None):
        if fault is None:
            store.faults.clear()
        heard = Heard(1)
        fetcher.fetch("a", 0, SIZE, *heard.take("a"))
        assert str(heard.wait()["a"][0]) == (fault or str(SIZE))
        tries.append(store.tries["a"])
    fetcher.close()
    assert tries[1] > 5
    assert tries[2] - tries[1] <= 2


def test_what_waits_for_threads_that_never_return_fails_in_time() -> None:
    hang = [threading.Event() for _ in range(4)]
    store = Store({"a": hang[:2], "b": hang[2:]})
    fetcher, heard = Fetcher(store, threads=2, deadline_s=1.0), Heard(6)
    for key in "abcdef":
        fetcher.fetch(key, 0, SIZE, *heard.take(key))
    found = heard.wait()
    assert all("no answer of" in str(each[0]) for each in found.values()), found
    for event in hang:
        event.set()
    fetcher.close()
