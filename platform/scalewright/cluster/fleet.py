"""How the machines of a fleet stand: the fold over what was noted about all of them.

Events count in the order in which they were noted, which is the ledger's. Machines meet only in
the breaker: where it does not freeze, each stands as its own events alone say.
"""

from collections.abc import Iterable
from typing import assert_never

from scalewright.cluster.breaker import Breaker, limit
from scalewright.cluster.evidence import Event, Evidence, FleetSize, Order, Thaw
from scalewright.cluster.standing import (
    RULES,
    Rules,
    Standing,
    Track,
    held,
    obeyed,
    standing,
    weigh,
    withheld,
)


class Fleet:
    """The standings of all machines after the events so far; one event costs the same at any time.

    `machines` is the size last told by a `FleetSize`, 0 before.
    """

    def __init__(self, rules: Rules = RULES) -> None:
        self.rules = rules
        self.machines = 0
        self._tracks: dict[str, Track] = {}
        self._breaker = Breaker()
        self._time_s = 0.0

    def add(self, event: Event) -> None:
        """Go on by one event; one older than the last of its machine counts as of that."""
        if isinstance(event, Evidence):
            self._weigh(event)
        elif isinstance(event, Order):
            track = self._tracks.get(event.machine, Track())
            self._tracks[event.machine] = obeyed(track, event, self.rules)
        elif isinstance(event, FleetSize):
            self.machines = event.machines
        elif isinstance(event, Thaw):
            self._breaker = Breaker()
        else:
            assert_never(event)

    def known(self) -> list[str]:
        """The machines that anything was noted about, by serial."""
        return sorted(self._tracks)

    def standing(self, machine: str, now_s: float) -> Standing:
        """Where a machine stands; one never heard of is healthy."""
        return standing(self._tracks.get(machine, Track()), now_s, self.rules)

    def standings(self, now_s: float) -> dict[str, Standing]:
        return {machine: self.standing(machine, now_s) for machine in self.known()}

    def breaker(self, now_s: float) -> Breaker:
        """The breaker; it is frozen where `frozen_since_s` is not None."""
        return self._breaker.at(now_s, self.rules)

    def _weigh(self, evidence: Evidence) -> None:
        machine = evidence.machine
        track, verdict = weigh(self._tracks.get(machine, Track()), evidence, self.rules)
        if verdict is not None:
            self._time_s = max(self._time_s, track.time_s)
            asked = self._breaker.asked(machine, self._time_s, self.machines, self.rules)
            self._breaker, allowed = asked
            if allowed:
                track = held(track, verdict, self.rules)
            else:
                track = withheld(track, verdict, self._why_frozen())
        self._tracks[machine] = track

    def _why_frozen(self) -> str:
        most = limit(self.machines, self.rules)
        return f"verdicts are frozen; more than {most} machines in {self.rules.breaker_s:g} s"


def fold(history: Iterable[Event], rules: Rules = RULES) -> Fleet:
    """The fleet after a whole history."""
    fleet = Fleet(rules)
    for event in history:
        fleet.add(event)
    return fleet
