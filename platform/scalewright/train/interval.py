"""When a run saves: by steps, or by time from what a save costs and how often the fleet fails.

Pure: the time is an argument everywhere. `Saves` is what one attempt remembers of its saves.
"""

import math
from dataclasses import dataclass, replace
from statistics import median

DAY_S = 86_400.0
STALLS = 8  # so many of the last saves tell what one costs
ALARM_MISSED = 2
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 300.0


def mtbf_s(nodes: int, faults_per_1000_node_days: float) -> float:
    """Mean time between faults of a job on so many nodes: 1 / (N r)."""
    return DAY_S * 1000 / (nodes * faults_per_1000_node_days)


def young_s(stall_s: float, mtbf_s: float) -> float:
    """The interval that loses least to saves and to steps done again: sqrt(2 C M).

    Young, A first order approximation to the optimum checkpoint interval, CACM 17(9), 1974. C is
    the time that training stands still for a save, not the time until the save lies on a disk.
    """
    return math.sqrt(2 * stall_s * mtbf_s)


def pause_s(missed: int) -> float:
    """How long to wait after so many saves in a row were missed; the first is tried again at once.

    It doubles up to five minutes, so that storage that fails under load gets a rest.
    """
    return 0.0 if missed < 2 else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(missed - 2, 30))


@dataclass(frozen=True)
class Saves:
    """How the saves of an attempt went: all times by one monotonic clock.

    `begun_s`: when the last one began, or the attempt; `kept_s`: the same of the last that was
    committed. `missed` since then in a row, the last of them at `missed_s`.
    """

    begun_s: float
    kept_s: float
    kept_step: int | None = None
    missed: int = 0
    missed_s: float = 0.0
    stalls_s: tuple[float, ...] = ()

    def begun(self, now_s: float, stall_s: float) -> "Saves":
        return replace(self, begun_s=now_s, stalls_s=(*self.stalls_s, stall_s)[-STALLS:])

    def kept(self, step: int, begun_s: float) -> "Saves":
        return replace(self, kept_step=step, kept_s=begun_s, missed=0)

    def lost_one(self, now_s: float) -> "Saves":
        return replace(self, missed=self.missed + 1, missed_s=now_s)

    @property
    def alarm(self) -> bool:
        return self.missed >= ALARM_MISSED

    def may_try(self, now_s: float) -> bool:
        """Whether the pause after the last one missed is over."""
        return self.missed == 0 or now_s - self.missed_s >= pause_s(self.missed)

    def too_long(self, now_s: float, max_missed_s: float) -> bool:
        """Whether so much work hangs on storage that fails that the run had better stop."""
        return self.alarm and now_s - self.kept_s >= max_missed_s

    def due(self, now_s: float, interval_s: float) -> bool:
        """Whether it is time for a save; a missed one is made up for after its pause."""
        if self.missed:
            return self.may_try(now_s)
        return now_s - self.begun_s >= interval_s

    def interval_s(self, least_s: float, mtbf_s: float) -> float:
        """Young's interval for the stall as measured, the first of an attempt left out.

        The first takes the memory that the others use again. Before there is a second: `least_s`.
        """
        measured = self.stalls_s[1:] if len(self.stalls_s) < STALLS else self.stalls_s
        return max(least_s, young_s(median(measured), mtbf_s)) if measured else least_s
