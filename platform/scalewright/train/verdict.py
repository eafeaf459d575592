"""Who computes whose pack again, and who is wrong where results differ. Pure: no torch, no ranks.

An opinion is what one rank computed of one pack, a digest of its bits. A pack belongs to the rank
that trains on it. Only ranks of one kind (processor, libraries, threads) are held against each
other: others round differently without any fault.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from scalewright.errors import ConfigError

Opinions = Mapping[tuple[int, int], Sequence[Hashable]]
"""By (rank, owner of the pack): the digests, in the order in which they were computed."""

# After the first, where results differ: enough that six ranks have an opinion of every pack, and
# that of two each has three of both.
MORE_ROUNDS = 4


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """How often one pack of every rank is computed again on another: every `every_steps` steps.

    0 does not. The last step of a run is checked, too.
    """

    every_steps: int = 1000

    def __post_init__(self) -> None:
        if self.every_steps < 0:
            raise ConfigError(
                f"replay.every_steps = {self.every_steps}; at least 1, or 0 for no checks"
            )

    def is_due(self, done: int, total: int) -> bool:
        """Whether the step that makes `done` of `total` is checked."""
        return self.every_steps > 0 and (done % self.every_steps == 0 or done == total)


@dataclass(frozen=True)
class Verdict:
    """The ranks that are `wrong`, or among which the wrong one is; none where all is well.

    confidence: 1 where a single rank is wrong, by its own contradiction, by two others who agree,
    or as the only one in all that differs; 0.5 where it is one of two, or where several are named
    at once, which is more often a difference of software than of machines.
    """

    wrong: tuple[int, ...]
    confidence: float
    why: str


def owners(kinds: Sequence[Hashable], check: int, turn: int) -> list[int]:
    """Whose pack every rank computes in a turn of a check, each among the ranks of its kind.

    Turn 0 is somebody else's wherever there is somebody else, another one at every check. Further
    turns go round, so that no rank computes a pack twice before all of its kind have.
    """
    groups: dict[Hashable, list[int]] = {}
    for rank, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(rank)
    found = [0] * len(kinds)
    for group in groups.values():
        size = len(group)
        shift = turn + (1 + check % (size - 1) if size > 1 else 0)
        for place, rank in enumerate(group):
            found[rank] = group[(place + shift) % size]
    return found


def judge(opinions: Opinions) -> Verdict:
    """Name the rank whose digests are wrong.

    With three or more ranks of a kind and one of them wrong, always or at times, it is that one,
    once three have an opinion of every pack.
    """
    ranks = {rank for rank, _ in opinions}
    fickle = {rank for (rank, _), digests in opinions.items() if len(set(digests)) > 1}
    if len(fickle) > 1 and 2 * len(fickle) >= len(ranks):
        return _nobody(
            f"ranks {_listed(fickle)} of {len(ranks)} contradict themselves: what they compute is "
            "not deterministic"
        )
    disputes = _disputes(opinions, fickle)
    outvoted = {rank for holders in disputes for rank in _outvoted(holders)}
    if fickle or outvoted:
        return _named(fickle, outvoted)
    if not disputes:
        return Verdict((), 1.0, "all agree")
    if any([len(ranks) for ranks in holders] != [1, 1] for holders in disputes):
        return _nobody(
            "ranks of one kind fall into groups by what they compute, as by a difference of "
            "software or settings"
        )
    return _among(set.intersection(*(set().union(*holders) for holders in disputes)))


def _among(suspects: set[int]) -> Verdict:
    """`suspects`: the ranks that are in every pair that differs."""
    if not suspects:
        return _nobody("several pairs of ranks differ that have no rank in common")
    if len(suspects) == 1:
        why = f"rank {_listed(suspects)} is the only one in every pair that differs"
    else:
        why = f"ranks {_listed(suspects)} differ, each agrees with itself, and nobody else can tell"
    return Verdict(tuple(sorted(suspects)), 1 / len(suspects), why)


def _disputes(opinions: Opinions, leave_out: set[int]) -> list[list[set[int]]]:
    """For every pack of which digests differ, who holds each of them."""
    packs: dict[int, dict[Hashable, set[int]]] = {}
    for (rank, owner), digests in opinions.items():
        if rank not in leave_out and digests:
            packs.setdefault(owner, {}).setdefault(digests[0], set()).add(rank)
    return [list(held.values()) for _, held in sorted(packs.items()) if len(held) > 1]


def _outvoted(holders: list[set[int]]) -> set[int]:
    """Who is alone against one digest that two or more ranks hold."""
    alone = {rank for each in holders if len(each) == 1 for rank in each}
    return alone if len(holders) - len(alone) == 1 else set()


def _named(fickle: set[int], outvoted: set[int]) -> Verdict:
    told = []
    if fickle:
        told.append(f"rank {_listed(fickle)} contradicts itself")
    if outvoted:
        told.append(f"rank {_listed(outvoted)} is alone against others who agree")
    wrong = fickle | outvoted
    if len(wrong) > 1:
        told.append("several at once: look for a difference of software or settings first")
    return Verdict(tuple(sorted(wrong)), 1.0 if len(wrong) == 1 else 0.5, "; ".join(told))


def _nobody(why: str) -> Verdict:
    return Verdict((), 0.0, why)


def _listed(ranks: set[int]) -> str:
    return ", ".join(map(str, sorted(ranks)))
