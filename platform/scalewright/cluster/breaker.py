"""How many machines verdicts may hold within minutes: a fault in a checker looks like one in all.

A verdict beyond the limit freezes the breaker. While it is frozen no verdict takes effect, and
each that is refused renews it; it thaws when none was called for during the window, or when a
person says so. A refused verdict is not stored: after the thaw it takes new evidence to call for
it again, so that what a broken checker said is not carried out later.
"""

from dataclasses import dataclass, replace

from scalewright.cluster.standing import RULES, Rules

_ROUNDING = 1e-9  # machines


def limit(fleet: int, rules: Rules = RULES) -> int:
    """Machines that verdicts may hold within `rules.breaker_s` in a fleet of this many."""
    return max(int(rules.breaker_machines), int(rules.breaker_share * fleet + _ROUNDING))


@dataclass(frozen=True)
class Breaker:
    """The holds of the last window, oldest first, and the freeze if there is one.

    `refused`: machines whose verdicts did not take effect during it.
    """

    holds: tuple[tuple[float, str], ...] = ()
    frozen_since_s: float | None = None
    refused_s: float = 0.0
    refused: frozenset[str] = frozenset()

    def at(self, now_s: float, rules: Rules = RULES) -> "Breaker":
        """The breaker at a later time, without what the window has passed."""
        if self.frozen_since_s is not None and now_s - self.refused_s > rules.breaker_s:
            return Breaker()
        recent = tuple(hold for hold in self.holds if now_s - hold[0] <= rules.breaker_s)
        return replace(self, holds=recent)

    def asked(
        self, machine: str, now_s: float, fleet: int, rules: Rules = RULES
    ) -> tuple["Breaker", bool]:
        """The breaker after a verdict on `machine`, and whether the verdict takes effect."""
        new = self.at(now_s, rules)
        others = {name for _, name in new.holds} - {machine}
        if new.frozen_since_s is None and len(others) < limit(fleet, rules):
            return replace(new, holds=(*new.holds, (now_s, machine))), True
        since_s = now_s if new.frozen_since_s is None else new.frozen_since_s
        refused = new.refused | {machine}
        return Breaker(new.holds, since_s, now_s, refused), False
