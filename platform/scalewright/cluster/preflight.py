"""Asks the agents what admits their nodes: clock, fingerprint, speed, bits, tests of pairs.

Runs in the attempt's process. What the answers mean is decided by the supervisor (`admission.py`).
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from scalewright.cluster.agents import Agents
from scalewright.cluster.survey import ANSWER_S, Surveyor
from scalewright.health.host_judge import clock_offset_s
from scalewright.health.node_preflight import FINGERPRINT_S
from scalewright.health.pair import DEADLINE_S
from scalewright.health.pairs import PairTest, next_pairs
from scalewright.health.preflight import BUDGETS_S

# Children start, and answers travel, on machines that may be busy.
SLACK_S = 45.0


def identify(agents: Agents, nodes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each of these nodes how far its clock is ahead of ours, and its fingerprint.

    None without an answer.

    Within the time that the answers took a clock may be off without being noticed.
    """
    sent_s = time.time()
    clocks = agents.ask_each("wall_clock_s", dict.fromkeys(nodes, ()), within_s=ANSWER_S)
    received_s = time.time()
    # The software, then what NVML tells.
    asked = dict.fromkeys(nodes, (2 * FINGERPRINT_S,))
    prints = agents.ask_each("fingerprint", asked, within_s=2 * FINGERPRINT_S + ANSWER_S)
    return {
        node: {
            "clock_offset_s": clock_offset_s(sent_s, clocks[node], received_s)
            if node in clocks
            else None,
            "fingerprint": prints.get(node),
        }
        for node in nodes
    }


def measure(
    surveyor: Surveyor, budgets: Mapping[str, str], variables: Mapping[str, str], *, again: bool
) -> dict[str, Any]:
    """Measure nodes side by side, each with its budget, then test them in pairs.

    `variables` are what workers get set. `again`: what was measured before does not count, and
    pairs are not tested. The answer has the devices by node and budget, and the rounds of tests.
    """
    surveyor.refresh()
    limit_s = sum(BUDGETS_S.values()) if "full" in budgets.values() else BUDGETS_S["light"]
    asked = {node: (budget, again) for node, budget in budgets.items()}
    told = surveyor.agents.ask_each("measure", asked, within_s=limit_s + SLACK_S)
    rounds = [] if again else _tested(surveyor, sorted(budgets), variables)
    return {
        "measured": {node: told.get(node, {}) for node in budgets},
        "rounds": [[[one.first, one.second, one.seconds] for one in each] for each in rounds],
    }


def _tested(
    surveyor: Surveyor, nodes: Sequence[str], variables: Mapping[str, str]
) -> list[list[PairTest]]:
    rounds: list[list[PairTest]] = []
    while len(nodes) > 1 and (pairs := next_pairs(nodes, rounds)):
        rounds.append(_round(surveyor, pairs, variables))
    return rounds


def _round(
    surveyor: Surveyor, pairs: Sequence[tuple[str, str]], variables: Mapping[str, str]
) -> list[PairTest]:
    agents, nodes = surveyor.agents, surveyor.nodes
    ports = agents.ask_each("free_port", {first: () for first, _ in pairs}, within_s=ANSWER_S)
    asked: dict[str, tuple[Any, ...]] = {}
    for first, second in pairs:
        if first not in ports or not {first, second} <= nodes.keys():
            continue  # it is gone: they failed
        place = f"{nodes[first]['NodeManagerAddress']}:{ports[first]}"
        gpus = all(nodes[node]["Resources"].get("GPU") for node in (first, second))
        for rank, node in enumerate((first, second)):
            asked[node] = (rank, place, "cuda" if gpus else "cpu", DEADLINE_S, dict(variables))
    results = agents.ask_each("meet", asked, within_s=DEADLINE_S + SLACK_S)
    tests = []
    for first, second in pairs:
        both = [results.get(first), results.get(second)]
        took_s = [one.seconds for one in both if one is not None and one.error is None]
        well = len(took_s) == 2
        tests.append(PairTest(first, second, max(s or 0.0 for s in took_s) if well else None))
    return tests
