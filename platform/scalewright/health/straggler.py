"""Which rank does its own work more slowly than its peers do theirs: a pure judge of heartbeats.

Steps take equally long on all ranks, for all wait for the slowest; a rank's own work, timed where
it waits for nobody, does not. Seconds per FLOP are taken over windows, without the extremes, and
compared with the median of the other ranks. A rank is slow when it is so in several windows in a
row, and by more than the noise that all ranks show.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from scalewright.health.settings import HealthConfig
from scalewright.heartbeat import Beat

_PARTS = 10  # of a window, at least: pieces of work between two looks
_TRIMMED = 0.2  # of the pieces, at either end
_REMEMBERED = 60  # windows
_SIGMAS = 4.0  # of one window; all windows of a verdict are beyond
_WINDOWS_BEFORE = 3  # beside those of the verdict, so that there is a noise to compare with
_WORSE = 0.05  # of the speed, lost over the windows of a verdict


class Action(StrEnum):
    """What to do about a slow rank: nothing but tell, swap its node at a checkpoint, or at once."""

    TELL = "tell"
    SWAP_AT_CHECKPOINT = "swap at checkpoint"
    SWAP_NOW = "swap now"


@dataclass(frozen=True)
class Slow:
    """A slow rank: its `speeds` over the last windows, where 1 is the median of its peers.

    `alone`: there is one peer, so the slowness is against the rank's own past as well.
    """

    rank: int
    speeds: tuple[float, ...]
    since_s: float
    alone: bool

    @property
    def speed(self) -> float:
        return statistics.fmean(self.speeds)

    @property
    def worsening(self) -> bool:
        falls = all(after < before for before, after in pairwise(self.speeds))
        return falls and self.speeds[0] - self.speeds[-1] >= _WORSE


def decide(slow: Slow, config: HealthConfig, *, spare: bool, measured: float | None) -> Action:
    """What to do, once the rank's machine was `measured`: its speed, where 1 is the fleet's.

    None: it was not, or gave no answer.
    A machine that passes its test is left alone, however slow it seemed.
    """
    if not spare or measured is None or measured >= config.slow_speed:
        return Action.TELL
    if slow.speed < config.swap_speed or slow.worsening:
        return Action.SWAP_NOW
    return Action.SWAP_AT_CHECKPOINT


@dataclass
class _Rank:
    """One rank in the present window."""

    beat: Beat
    pieces: list[tuple[float, float]] = field(default_factory=list)  # seconds, FLOPs

    def see(self, beat: Beat) -> None:
        before, self.beat = self.beat, beat
        if beat.pid != before.pid:
            self.pieces.clear()
        elif beat.own_flops > before.own_flops:
            piece = (beat.own_s - before.own_s, beat.own_flops - before.own_flops)
            self.pieces.append(piece)

    def s_per_flop(self) -> float:
        """Over the pieces of the window, the fastest and slowest left out."""
        ordered = sorted(self.pieces, key=lambda piece: piece[0] / piece[1])
        cut = int(_TRIMMED * len(ordered))
        kept = ordered[cut : len(ordered) - cut]
        return sum(s for s, _ in kept) / sum(flops for _, flops in kept)


class StragglerMonitor:
    """Looks at the beats of all ranks of one attempt, again and again."""

    def __init__(self, config: HealthConfig) -> None:
        self.config = config
        self._ranks: dict[int, _Rank] = {}
        self._began_s: float | None = None
        self._windows: deque[_Window] = deque(maxlen=_REMEMBERED)

    def look(self, beats: Sequence[Beat], now_s: float) -> tuple[Slow, ...]:
        """Slow ranks, whenever a window ends; none in between."""
        for beat in beats:
            self._ranks.setdefault(beat.rank, _Rank(beat)).see(beat)
        if self._began_s is None:
            self._began_s = now_s
        if now_s - self._began_s < self.config.slow_window_s or not self._full():
            return ()
        rates = {rank: each.s_per_flop() for rank, each in self._ranks.items()}
        self._windows.append(_Window(self._began_s, rates, _speeds(rates)))
        self._began_s = now_s
        for each in self._ranks.values():
            each.pieces.clear()
        return self._slow()

    def _full(self) -> bool:
        return len(self._ranks) > 1 and all(
            len(each.pieces) >= _PARTS for each in self._ranks.values()
        )

    def _slow(self) -> tuple[Slow, ...]:
        count = self.config.slow_windows
        if len(self._windows) < count + _WINDOWS_BEFORE:
            return ()
        last = list(self._windows)[-count:]
        before = list(self._windows)[:-count]
        limit = min(self.config.slow_speed, math.exp(-_SIGMAS * self._noise()))
        alone = len(self._ranks) == 2
        found = []
        for rank in sorted(last[-1].rates):
            speeds = [window.speeds.get(rank, 1.0) for window in last]
            if alone:
                past = statistics.median(window.rates[rank] for window in before)
                now = [past / window.rates[rank] for window in last]
                speeds = [max(pair) for pair in zip(speeds, now, strict=True)]
            # Each of them: one window that is all stalls is no slow machine.
            if max(speeds) < limit:
                found.append(Slow(rank, tuple(speeds), last[0].began_s, alone))
        return tuple(found)

    def _noise(self) -> float:
        """Spread of the logarithm of a rank's speed in one window.

        By the median change from window to window, which a rank that is slow changes once.
        """
        windows = list(self._windows)
        changes = [
            abs(math.log(after.speeds[rank] / before.speeds[rank]))
            for before, after in pairwise(windows)
            for rank in after.speeds.keys() & before.speeds.keys()
        ]
        return 1.4826 * statistics.median(changes) / math.sqrt(2)


@dataclass(frozen=True)
class _Window:
    began_s: float
    rates: dict[int, float]  # seconds per FLOP
    speeds: dict[int, float]


def _speeds(rates: dict[int, float]) -> dict[int, float]:
    """Of each rank, against the median of the others."""
    return {
        rank: statistics.median(other for peer, other in rates.items() if peer != rank) / rate
        for rank, rate in rates.items()
    }
