"""Which nodes fail together with others? Tests of two nodes at a time, planned and judged; pure.

Two rounds as in DLRover's node check: all nodes in pairs, then each node of a pair that failed
with one that is proven. A test passes if both nodes are well, so one pass proves two nodes and one
failure blames nobody. A node is bad if it failed twice, one time of it with a proven node, and a
straggler if it was slow so. Only if the first round proves nobody, suspects meet suspects again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median_low

from scalewright.health.finding import Finding, Remedy, Verdict

HOPELESS_ROUNDS = 5
SLOW_FACTOR = 2.0


@dataclass(frozen=True)
class PairTest:
    """Two nodes that worked together for `seconds`, or None if they failed."""

    first: str
    second: str
    seconds: float | None

    def other(self, node: str) -> str:
        return self.second if node == self.first else self.first


class Standing(StrEnum):
    """What the tests say of a node; UNKNOWN if they do not."""

    GOOD = "good"
    BAD = "bad"
    STRAGGLER = "straggler"
    UNKNOWN = "unknown"


Rounds = Sequence[Sequence[PairTest]]


def next_pairs(
    nodes: Sequence[str], rounds: Rounds, slow_factor: float = SLOW_FACTOR
) -> tuple[tuple[str, str], ...]:
    """The pairs to test next, each node in one at most; none when nothing is left to find out.

    Give nodes in the order of the network, so that neighbours meet first.
    """
    standing = standings(nodes, rounds, slow_factor)
    proven = [node for node in nodes if standing[node] is Standing.GOOD]
    suspects = [node for node in nodes if standing[node] is Standing.UNKNOWN]
    if not proven and len(rounds) >= HOPELESS_ROUNDS:
        return ()
    tried = {frozenset((one.first, one.second)) for tests in rounds for one in tests}
    # Those tested least come first, so that the odd one of a round is in the next.
    count = {node: sum(node in pair for pair in tried) for node in nodes}
    suspects.sort(key=lambda node: count[node])
    return _matched(suspects, proven or suspects, tried)


def standings(
    nodes: Sequence[str], rounds: Rounds, slow_factor: float = SLOW_FACTOR
) -> dict[str, Standing]:
    """What all tests so far say of each node."""
    tests = [one for some in rounds for one in some]
    times = [one.seconds for one in tests if one.seconds is not None]
    limit_s = slow_factor * median_low(times) if times else 0.0
    failed = [one for one in tests if one.seconds is None]
    slow = [one for one in tests if one.seconds is not None and one.seconds > limit_s]
    well = [one for one in tests if one.seconds is not None and one.seconds <= limit_s]
    proven = {node for one in well for node in (one.first, one.second)}

    def twice(node: str, wrong: Sequence[PairTest]) -> bool:
        mine = [one for one in wrong if node in (one.first, one.second)]
        return len(mine) >= 2 and any(one.other(node) in proven for one in mine)

    def standing(node: str) -> Standing:
        if node in proven:
            return Standing.GOOD
        if twice(node, failed):
            return Standing.BAD
        return Standing.STRAGGLER if twice(node, failed + slow) else Standing.UNKNOWN

    return {node: standing(node) for node in nodes}


def findings(
    nodes: Sequence[str], rounds: Rounds, time_s: float, slow_factor: float = SLOW_FACTOR
) -> dict[str, Finding]:
    """One finding for each node. A node that was not tested, as the only one, is UNKNOWN."""
    return {
        node: _finding(node, standing, rounds, time_s)
        for node, standing in standings(nodes, rounds, slow_factor).items()
    }


def _matched(
    suspects: Sequence[str], partners: Sequence[str], tried: set[frozenset[str]]
) -> tuple[tuple[str, str], ...]:
    """Each suspect with a partner that it did not meet yet, as many as there are."""
    pairs: list[tuple[str, str]] = []
    busy: set[str] = set()
    for suspect in suspects:
        free = (
            partner
            for partner in partners
            if partner != suspect
            and partner not in busy
            and frozenset((suspect, partner)) not in tried
        )
        if suspect not in busy and (partner := next(free, None)) is not None:
            pairs.append((suspect, partner))
            busy |= {suspect, partner}
    return tuple(pairs)


_MEANING: Mapping[Standing, tuple[Verdict, Remedy, str]] = {
    Standing.GOOD: (Verdict.PASS, Remedy.NONE, "worked together with another node"),
    Standing.BAD: (Verdict.FAIL, Remedy.INSPECT, "failed with several nodes, a proven one too"),
    Standing.STRAGGLER: (Verdict.WARN, Remedy.INSPECT, "slow with several nodes, a proven one too"),
    Standing.UNKNOWN: (Verdict.UNKNOWN, Remedy.NONE, "no test tells"),
}


def _finding(node: str, standing: Standing, rounds: Rounds, time_s: float) -> Finding:
    verdict, remedy, reason = _MEANING[standing]
    mine = [one for tests in rounds for one in tests if node in (one.first, one.second)]
    if not mine:
        reason = "not tested: it takes two nodes"
    return Finding(
        check="preflight.pair",
        verdict=verdict,
        reason=reason,
        remedy=remedy,
        evidence={"tests": [[one.other(node), one.seconds] for one in mine]},
        time_s=time_s,
    )
