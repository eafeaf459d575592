"""Which checkpoints are kept, and which may go when the disk is full. Pure.

Silent corruption is found late, so the newest alone could all hold it: beside them stay one per
`keep_every_s`, until it is `keep_for_s` old, the newest that is older than that, and for ever one
per `keep_every_steps` where that is set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Held:
    """A checkpoint that is there: wall time of its commit, and whether it was read back."""

    step: int
    time_s: float
    verified: bool = True


@dataclass(frozen=True)
class Policy:
    """How many are kept for how long; see the module."""

    keep: int = 2
    keep_every_s: float = 6 * 3600.0
    keep_for_s: float = 48 * 3600.0
    keep_every_steps: int | None = None


def superseded(
    held: Sequence[Held],
    policy: Policy,
    *,
    now_s: float,
    horizon: int | None = None,
    trusted: int | None = None,
) -> list[Held]:
    """Those not needed any more, oldest first.

    `horizon`: the step that the guard may go back to. `trusted`: the last step that was confirmed.
    """
    steps = sorted(held, key=lambda one: one.step)
    needed = {one.step for one in steps[-policy.keep :]}
    needed |= _essential(steps, horizon, trusted)
    needed |= _spread(steps, policy, now_s) | _for_ever(steps, policy)
    if horizon is not None:  # the oldest after it takes its place once it has come so far
        needed |= {one.step for one in [o for o in steps if o.step > horizon][:1]}
    return [one for one in steps if one.step not in needed]


def expendable(
    held: Sequence[Held],
    policy: Policy,
    *,
    horizon: int | None = None,
    trusted: int | None = None,
) -> list[Held]:
    """Those that may go when the disk is full, the first to go first: the oldest.

    Never the newest two that were read back, the newest trusted, the one to go back to, nor those
    kept for ever.
    """
    steps = sorted(held, key=lambda one: one.step)
    needed = _essential(steps, horizon, trusted) | _for_ever(steps, policy)
    return [one for one in steps if one.step not in needed]


def _essential(steps: Sequence[Held], horizon: int | None, trusted: int | None) -> set[int]:
    """What a run cannot do without; `steps` are in order."""
    verified = [one.step for one in steps if one.verified]
    needed = set(verified[-2:])
    for limit in (horizon, trusted):
        if limit is not None:
            # Of those not read back the newest would do, but it may be what is damaged.
            needed |= set([step for step in verified if step <= limit][-1:])
            needed |= set([one.step for one in steps if one.step <= limit][-1:])
    return needed


def _spread(steps: Sequence[Held], policy: Policy, now_s: float) -> set[int]:
    """The first of every stretch of time that is not too old, and the last before those."""
    firsts = _firsts(steps, lambda one: int(one.time_s // policy.keep_every_s))
    old = [one for one in firsts if one.time_s < now_s - policy.keep_for_s]
    return {one.step for one in (*old[-1:], *(one for one in firsts if one not in old))}


def _for_ever(steps: Sequence[Held], policy: Policy) -> set[int]:
    """The first at or after each multiple of `keep_every_steps`."""
    every = policy.keep_every_steps
    if every is None:
        return set()
    return {one.step for one in _firsts(steps, lambda one: one.step // every) if one.step >= every}


def _firsts(steps: Sequence[Held], key: Callable[[Held], int]) -> list[Held]:
    seen: dict[int, Held] = {}
    for one in steps:
        seen.setdefault(key(one), one)
    return list(seen.values())
