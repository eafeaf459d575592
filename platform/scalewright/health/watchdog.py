"""Which ranks stand still for longer than what they are at can take: a pure judge of heartbeats.

All ranks of a run do the same in the same order, so a rank that waits for others is excused, and
those behind all others are judged by the limit of the phase they are in. A step's limit comes from
the FLOPs of that very step and from the slowest seconds per FLOP of the steps before it.
"""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from scalewright.health.settings import HealthConfig
from scalewright.heartbeat import Beat, Phase

# A reader that did not look for long knows nothing of that time: it may have stood still itself.
GAP_S = 5.0
IDLE_SHARE = 0.05  # of one core
PATIENCE = 3.0  # times the limit, after which standing still alone is enough
_REMEMBERED = 2000  # steps
_FEW = 20  # steps whose 99th percentile is their slowest


class Kind(StrEnum):
    """GONE: no such process. FROZEN: the whole process stands still. BEHIND: others are further.

    WAITING: all ranks stand still at the same place, so heartbeats alone name none.
    """

    GONE = "gone"
    FROZEN = "frozen"
    BEHIND = "behind"
    WAITING = "waiting"


@dataclass(frozen=True)
class Hang:
    """`ranks` are suspected; they stand still since `since_s` of the reader's clock.

    `sure`: a second signal agrees. Else compare two dumps of stacks before anything is ended.
    """

    kind: Kind
    ranks: tuple[int, ...]
    why: str
    since_s: float
    limit_s: float
    sure: bool


@dataclass(frozen=True)
class DataStall:
    """These ranks wait for data, and all others for them: told, but no reason to restart."""

    ranks: tuple[int, ...]
    since_s: float


class StepRate:
    """Seconds per FLOP of the slowest steps: the 99th percentile without the first ones.

    Until there are others the first ones count, and the slowest of them.
    """

    def __init__(self, warmup_steps: int, s_per_flop: float | None = None) -> None:
        self._warmup_steps = warmup_steps
        self._first = [] if s_per_flop is None else [s_per_flop]
        self._later: deque[float] = deque(maxlen=_REMEMBERED)
        self._s_per_flop: float | None = s_per_flop

    def add(self, done: int, seconds: float, flops: float) -> None:
        """The `done`-th step of an attempt took so long."""
        if flops <= 0 or seconds <= 0:
            return
        self._s_per_flop = None
        if done > self._warmup_steps:
            self._later.append(seconds / flops)
        else:
            self._first.append(seconds / flops)

    @property
    def s_per_flop(self) -> float | None:
        """None before the first step."""
        if self._s_per_flop is None and (self._first or self._later):
            self._s_per_flop = self._slowest()
        return self._s_per_flop

    def _slowest(self) -> float:
        if not self._later:
            return max(self._first)
        if len(self._later) < _FEW:
            return max(self._later)
        return statistics.quantiles(self._later, n=100, method="inclusive")[98]


@dataclass
class _Track:
    """One rank over time, by the reader's clock."""

    beat: Beat
    still_s: float = 0.0  # of the loop
    silent_s: float = 0.0  # of the second thread
    cpu_s: float | None = field(init=False)  # when the loop moved last

    def __post_init__(self) -> None:
        self.cpu_s = _cpu_s(self.beat)

    def see(self, beat: Beat, passed_s: float) -> None:
        before, self.beat = self.beat, beat
        if (beat.pid, beat.loop_at, beat.moves) == (before.pid, before.loop_at, before.moves):
            self.still_s += passed_s
        else:
            self.still_s = 0.0
            self.cpu_s = _cpu_s(beat)
        same_thread = (beat.pid, beat.thread_at) == (before.pid, before.thread_at)
        self.silent_s = self.silent_s + passed_s if same_thread else 0.0

    @property
    def idle(self) -> bool:
        """The loop's thread took next to no CPU since it moved."""
        now_s = _cpu_s(self.beat)
        if now_s is None or self.cpu_s is None:
            return False
        return now_s - self.cpu_s <= IDLE_SHARE * self.still_s

    def frozen_by(self, config: HealthConfig) -> bool:
        """The whole process stands still.

        One that is not stopped may get no CPU on a busy machine: the limit of steps is for that.
        One that takes CPU holds the interpreter for long: the limit of its phase is for that.
        """
        if self.beat.process is None:
            return False
        still_s = min(self.silent_s, self.still_s)
        if self.beat.process.state in "TtD":
            return still_s >= config.frozen_s
        return self.idle and still_s >= max(config.frozen_s, config.hang_min_s)


class Watchdog:
    """Looks at the beats of all ranks of one attempt, again and again.

    `s_per_flop`: as learned in an attempt before, with as many workers.
    """

    def __init__(self, config: HealthConfig, s_per_flop: float | None = None) -> None:
        self.config = config
        self.rate = StepRate(config.warmup_steps, s_per_flop)
        self._tracks: dict[int, _Track] = {}
        self._before_s: float | None = None

    def look(self, beats: Sequence[Beat], now_s: float) -> Hang | DataStall | None:
        """What is wrong at `now_s` of the reader's monotonic clock; None while nothing is.

        A rank of which there is no beat this time is not judged.
        """
        passed_s = 0.0 if self._before_s is None else min(now_s - self._before_s, GAP_S)
        self._before_s = now_s
        tracks = [self._seen(beat, passed_s) for beat in beats]
        running = [track for track in tracks if track.beat.phase is not Phase.DONE]
        return self._gone(running, now_s) or self._frozen(running, now_s) or self._hung(
            running, now_s
        )  # fmt: skip

    def limit_s(self, beat: Beat) -> float:
        """How long the loop may stand still at what it is at."""
        config = self.config
        others = {
            Phase.START: config.start_s,
            Phase.RESUME: config.resume_s,
            Phase.DATA: config.data_s,
            Phase.COMPILE: config.compile_s,
            Phase.SAVE: config.save_s,
            Phase.VALIDATE: config.validate_s,
            Phase.SAMPLE: config.sample_s,
        }
        if beat.phase in others:
            return others[beat.phase]
        rate = self.rate.s_per_flop
        if rate is None:
            return config.compile_s
        return max(config.hang_min_s, config.hang_factor * rate * beat.flops)

    def _seen(self, beat: Beat, passed_s: float) -> _Track:
        track = self._tracks.get(beat.rank)
        if track is None:
            track = self._tracks[beat.rank] = _Track(beat)
            return track
        # A step takes equally long on all ranks: those of one tell of all.
        if beat.rank == min(self._tracks) and beat.done > track.beat.done:
            self.rate.add(beat.done, beat.last_s, beat.last_flops)
        track.see(beat, passed_s)
        return track

    def _gone(self, tracks: Sequence[_Track], now_s: float) -> Hang | None:
        gone = [track for track in tracks if track.beat.process is None]
        if not gone:
            return None
        why = f"no process of {_named(gone)}, which was in {_phases(gone)}"
        return Hang(Kind.GONE, _ranks(gone), why, now_s, 0.0, sure=True)

    def _frozen(self, tracks: Sequence[_Track], now_s: float) -> Hang | None:
        frozen = [track for track in tracks if track.frozen_by(self.config)]
        if not frozen:
            return None
        states = sorted({track.beat.process.state for track in frozen if track.beat.process})
        silent_s = max(track.silent_s for track in frozen)
        limit_s = self.config.frozen_s
        why = (
            f"{_named(frozen)}: neither the loop nor the second thread of the process moved for "
            f"{silent_s:.0f} s (limit {limit_s:g} s), state {'/'.join(states)}, in "
            f"{_phases(frozen)}"
        )
        return Hang(Kind.FROZEN, _ranks(frozen), why, now_s - silent_s, limit_s, sure=True)

    def _hung(self, tracks: Sequence[_Track], now_s: float) -> Hang | DataStall | None:
        if not tracks:
            return None
        least = min(track.beat.moves for track in tracks)
        hindmost = [track for track in tracks if track.beat.moves == least]
        worst = max(hindmost, key=lambda track: track.still_s / self.limit_s(track.beat))
        limit_s, still_s = self.limit_s(worst.beat), worst.still_s
        since_s = now_s - still_s
        if still_s < limit_s:
            if worst.beat.phase is Phase.DATA and still_s >= self.config.data_alarm_s:
                return DataStall(_ranks(hindmost), since_s)
            return None
        idle = all(track.idle for track in hindmost)
        sure = idle or still_s >= PATIENCE * limit_s
        cpu = "without taking CPU" if idle else "though taking CPU"
        alike = len(hindmost) == len(tracks)
        why = (
            f"{'all ranks' if alike else _named(hindmost)} in {_phases(hindmost)} of step "
            f"{worst.beat.step} for {still_s:.0f} s (limit {limit_s:.0f} s), {cpu}"
            + ("" if alike else f"; {len(tracks) - len(hindmost)} ranks are further and wait")
        )
        if alike and len(tracks) > 1:
            return Hang(Kind.WAITING, (), why, since_s, limit_s, sure)
        return Hang(Kind.BEHIND, _ranks(hindmost), why, since_s, limit_s, sure)


def _cpu_s(beat: Beat) -> float | None:
    return None if beat.process is None else beat.process.cpu_s


def _ranks(tracks: Sequence[_Track]) -> tuple[int, ...]:
    return tuple(sorted(track.beat.rank for track in tracks))


def _named(tracks: Sequence[_Track]) -> str:
    ranks = _ranks(tracks)
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def _phases(tracks: Sequence[_Track]) -> str:
    return "/".join(sorted({track.beat.phase.name for track in tracks}))
