"""Who keeps an attempt from moving on: stacks and collectives of all ranks, before any is ended."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scalewright.cluster.agents import Agents, Attempt
from scalewright.cluster.classify import Cause, Failure
from scalewright.health.guilt import Trace, guilty, parse_trace
from scalewright.health.stacks import Stack
from scalewright.health.watchdog import Hang, Kind

DUMP_S = 12.0
TRACE_S = 4.0
# A stopped or frozen process is seen from outside: sure enough to count against its machine.
_SEEN = 0.9

HANGS = "hangs"


def inquire(agents: Agents, of: Attempt, hang: Hang, machines: Mapping[int, str]) -> Failure:
    """Name the rank that made the others wait, and keep what every rank showed."""
    stacks = dump(agents, of)
    recorded = _joined(agents.ask("traces", of, TRACE_S, within_s=TRACE_S + 3))
    traces: dict[int, Trace] = {rank: parse_trace(each) for rank, each in recorded.items()}
    kept = _keep(Path(of[0]) / HANGS / f"attempt-{of[1]:05d}.txt", hang, stacks)
    blame = guilty(stacks, traces)
    ranks, confidence, why = blame.ranks, blame.confidence, blame.why
    if hang.kind is Kind.FROZEN and hang.sure:
        ranks, confidence, why = hang.ranks, max(confidence, _SEEN), hang.why
    elif not ranks and len(hang.ranks) == 1:
        ranks, confidence = hang.ranks, max(confidence, 0.6)
    rank = ranks[0] if len(ranks) == 1 else None
    message = f"{hang.why}; {why}. Stacks: {kept}" if why != hang.why else f"{why}. Stacks: {kept}"
    of_ranks = {machines.get(each) for each in ranks}
    machine = of_ranks.pop() if len(of_ranks) == 1 else None
    cause: Cause = "storage" if blame.cause in ("storage", "data") else "hang"
    return Failure(cause, message, rank, machine, confidence=confidence)


def dump(agents: Agents, of: Attempt) -> dict[int, Stack]:
    """The stacks of all ranks whose nodes answer in time."""
    return _joined(agents.ask("stacks", of, DUMP_S, within_s=DUMP_S + 3))


def _joined(answers: Mapping[str, Mapping[int, Any]]) -> dict[int, Any]:
    """The answers of all nodes by rank."""
    return {rank: one for answer in answers.values() for rank, one in answer.items()}


def _keep(path: Path, hang: Hang, stacks: Mapping[int, Stack]) -> str:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join([hang.why, *(str(stacks[rank]) for rank in sorted(stacks))]))
    except OSError as error:
        return f"not kept: {error}"
    return str(path)
