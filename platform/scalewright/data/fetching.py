"""Reads ranges from a store that fails now and then: tries again, asks twice, gives up in time.

A failed try is repeated after a random pause that grows; one that takes far longer than others is
asked for a second time while the first still runs, and whichever answers first counts. Past its
deadline a range has failed for good. So a caller hears of every range, once, and in bounded time.
"""

import heapq
import logging
import math
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from scalewright.data.storage import CorruptError, Storage, StoreError
from scalewright.errors import DataError

THREADS = 32
DEADLINE_S = 120.0
TICK_S = 0.1
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
CORRUPT_TRIES = 3
SHORTER = 8  # times, the deadline of an object of which a range has failed before
HEDGE_AT_LEAST_S, HEDGE_AT_FIRST_S = 1.0, 4.0

logger = logging.getLogger(__name__)


@dataclass
class Gauges:
    """What a fetcher did so far."""

    requests: int = 0
    bytes: int = 0
    retries: int = 0
    hedges: int = 0
    corrupt: int = 0
    failed: int = 0


@dataclass(eq=False)
class _Flight:
    key: str
    offset: int
    size: int
    accept: Callable[[memoryview], None]
    fail: Callable[[DataError], None]
    began_s: float = math.inf
    asked_s: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: bool = False
    pending: int = 1  # tries that are queued, running or paused; at most two
    running: int = 0
    tries: int = 0
    corrupt: int = 0
    tried_s: float = 0.0
    error: DataError | None = None


class Fetcher:
    """Threads that read ranges of a store; `accept` and `fail` are called from them."""

    def __init__(
        self, storage: Storage, *, threads: int = THREADS, deadline_s: float = DEADLINE_S
    ) -> None:
        self.gauges = Gauges()
        self._storage = storage
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[_Flight | None] = queue.SimpleQueue()
        self._flights: set[_Flight] = set()
        self._later: list[tuple[float, int, _Flight]] = []
        self._durations: deque[float] = deque(maxlen=256)
        self._given_up: set[str] = set()  # objects of which a range has run out of time
        self._closed = threading.Event()
        self._most_threads = threads
        self._tries = 0  # that are queued or running
        self._returned_s = 0.0  # when a try last did
        self._threads: list[threading.Thread] = []

    def fetch(
        self,
        key: str,
        offset: int,
        size: int,
        accept: Callable[[memoryview], None],
        fail: Callable[[DataError], None],
    ) -> None:
        """Read a range; `accept` gets its bytes, and may refuse them with `CorruptError`.

        `fail` gets the error where that is final: the object missing, refused, or past its
        deadline.
        """
        flight = _Flight(key, offset, size, accept, fail)
        with self._lock:
            if self._closed.is_set():
                raise RuntimeError(f"{key}: asked for after its fetcher was closed")
            self._flights.add(flight)
            if not self._threads:
                self._start("fetch-watch", self._watch_over)
            self._put(flight)

    def close(self, timeout_s: float = 2.0) -> None:
        """Let no more be called; a read that hangs is left to its thread, which ends with it."""
        self._closed.set()
        with self._lock:
            for flight in self._flights:
                flight.over = True
            self._flights.clear()
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if hanging := sum(thread.is_alive() for thread in self._threads):
            logger.warning("%d reads have not returned for %g s", hanging, timeout_s)

    def _put(self, flight: _Flight) -> None:
        """Queue a try, with one more thread where all are at work; under the lock."""
        self._queue.put(flight)
        self._tries += 1
        workers = len(self._threads) - 1  # the first one watches
        if workers < min(self._most_threads, self._tries):
            self._start(f"fetch-{workers}", self._work)

    def _start(self, name: str, life: Callable[[], None]) -> None:
        thread = threading.Thread(target=life, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (flight := self._queue.get()) is not None and not self._closed.is_set():
            if self._begins(flight):
                self._try(flight)
            with self._lock:
                self._tries -= 1
                self._returned_s = time.monotonic()

    def _begins(self, flight: _Flight) -> bool:
        with self._lock:
            if flight.over:
                return False
            self.gauges.requests += 1
            flight.running += 1
            flight.tries += 1
            flight.tried_s = time.monotonic()
            flight.began_s = min(flight.began_s, flight.tried_s)
            return True

    def _try(self, flight: _Flight) -> None:
        begin_s = time.monotonic()
        try:
            data = self._storage.read(flight.key, flight.offset, flight.size)
            with flight.lock:
                if flight.over:
                    return
                flight.accept(data)
                flight.over = True
            with self._lock:
                self.gauges.bytes += len(data)
                self._durations.append(time.monotonic() - begin_s)
                self._flights.discard(flight)
                self._given_up.discard(flight.key)
        except StoreError as error:
            self._again(flight, error)
        except DataError as error:
            self._end(flight, error)
        except Exception as error:  # a bug here must reach the caller, not kill a thread unseen
            logger.exception("%s at %d", flight.key, flight.offset)
            self._end(flight, DataError(f"{flight.key} at {flight.offset}: {error!r}"))
        finally:
            with self._lock:
                flight.running -= 1

    def _again(self, flight: _Flight, error: StoreError) -> None:
        """Let a failed try be repeated, unless the flight's other try is still on its way."""
        now = time.monotonic()
        with self._lock:
            flight.error = error
            flight.pending -= 1
            flight.corrupt += isinstance(error, CorruptError)
            self.gauges.corrupt += isinstance(error, CorruptError)
            pause_s = random.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**flight.tries))
            late = now + pause_s - flight.began_s > self._time_for(flight)
            if late:
                self._given_up.add(flight.key)
            final = late or flight.corrupt >= CORRUPT_TRIES
            if not final and not flight.pending:
                flight.pending = 1
                self.gauges.retries += 1
                heapq.heappush(self._later, (now + pause_s, id(flight), flight))
        if final:
            self._end(flight, error)

    def _end(self, flight: _Flight, error: DataError, *, wait: bool = True) -> None:
        """Tell that a flight has failed, unless it is over or, if told not to wait, being taken."""
        if not flight.lock.acquire(blocking=wait):
            return
        over, flight.over = flight.over, True
        flight.lock.release()
        if over:
            return
        with self._lock:
            self._flights.discard(flight)
            self.gauges.failed += 1
        try:
            flight.fail(error)
        except Exception:  # the caller's bug must not end a thread that others wait for
            logger.exception("%s at %d", flight.key, flight.offset)

    def _watch_over(self) -> None:
        """Puts flights back whose pause is over, doubles slow ones, ends those past deadline."""
        while not self._closed.wait(TICK_S):
            now = time.monotonic()
            with self._lock:
                while self._later and self._later[0][0] <= now:
                    self._put(heapq.heappop(self._later)[2])
                late = [f for f in self._flights if now - self._since_s(f) > self._time_for(f)]
                self._given_up.update(flight.key for flight in late)
                self._ask_twice(now)
            for flight in late:
                self._end(flight, flight.error or _too_late(flight, self._deadline_s), wait=False)

    def _ask_twice(self, now: float) -> None:
        """Begin a second try of each flight whose only one takes long; under the lock."""
        hedge_s = self._hedge_s()
        for flight in self._flights:
            if flight.running == flight.pending == 1 and now - flight.tried_s > hedge_s:
                flight.pending = 2
                self.gauges.hedges += 1
                self._put(flight)

    def _since_s(self, flight: _Flight) -> float:
        """When its time began: with its first try, or, where no thread returns, with the last."""
        return min(flight.began_s, max(flight.asked_s, self._returned_s))

    def _time_for(self, flight: _Flight) -> float:
        """Seconds that a range may take: a dead object must not be waited for again and again."""
        return self._deadline_s / (SHORTER if flight.key in self._given_up else 1)

    def _hedge_s(self) -> float:
        """Longer than 99 of 100 of the last reads took."""
        if len(self._durations) < 32:
            return HEDGE_AT_FIRST_S
        return max(
            HEDGE_AT_LEAST_S, 1.5 * sorted(self._durations)[int(len(self._durations) * 0.99)]
        )


def read_whole(storage: Storage, key: str, deadline_s: float = DEADLINE_S) -> memoryview:
    """A whole object, waited for; a failure that may pass is tried again until the deadline."""
    begin_s, longest_s = time.monotonic(), FIRST_PAUSE_S
    while True:
        try:
            return storage.read(key)
        except StoreError as error:
            longest_s = min(2 * longest_s, LONGEST_PAUSE_S)
            pause_s = random.uniform(0, longest_s)
            if time.monotonic() + pause_s - begin_s > deadline_s:
                raise
            logger.warning("%s; tried again", error)
            time.sleep(pause_s)


def _too_late(flight: _Flight, deadline_s: float) -> DataError:
    return StoreError(
        f"{flight.key} at {flight.offset}: no answer of {flight.size} bytes in {deadline_s:g} s"
    )
