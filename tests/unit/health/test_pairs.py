"""Whatever nodes are bad, they are found and no good one is blamed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalewright.health.finding import Verdict
from scalewright.health.pairs import (
    HOPELESS_ROUNDS,
    PairTest,
    Standing,
    findings,
    next_pairs,
    standings,
)


def played(
    count: int, bad: set[int], slow: frozenset[int] = frozenset()
) -> tuple[list[str], list[list[PairTest]]]:
    """Test rounds until there is nothing left to test."""
    nodes = [f"n{index}" for index in range(count)]
    ill, lame = {nodes[index] for index in bad}, {nodes[index] for index in slow}
    rounds: list[list[PairTest]] = []
    while pairs := next_pairs(nodes, rounds):
        busy = [node for pair in pairs for node in pair]
        assert len(busy) == len(set(busy))
        assert len(rounds) < 4 * count + 10
        rounds.append(
            [
                PairTest(a, b, None if {a, b} & ill else 9.0 if {a, b} & lame else 1.0)
                for a, b in pairs
            ]
        )
    return nodes, rounds


def found(nodes: list[str], rounds: list[list[PairTest]], what: Standing) -> set[int]:
    return {index for index, node in enumerate(nodes) if standings(nodes, rounds)[node] is what}


@settings(deadline=None)
@given(st.data(), st.integers(3, 17))
def test_a_minority_of_bad_nodes_is_found_and_no_good_one(data: st.DataObject, count: int) -> None:
    bad = data.draw(st.sets(st.integers(0, count - 1), max_size=(count - 1) // 2))
    nodes, rounds = played(count, bad)
    assert found(nodes, rounds, Standing.BAD) == bad
    assert found(nodes, rounds, Standing.GOOD) == set(range(count)) - bad


@settings(deadline=None)
@given(st.integers(3, 40), st.data())
def test_one_bad_node_takes_two_rounds(count: int, data: st.DataObject) -> None:
    bad = {data.draw(st.integers(0, count - 1))}
    nodes, rounds = played(count, bad)
    assert found(nodes, rounds, Standing.BAD) == bad
    # The odd node of the first round has to fail twice in the next ones.
    assert len(rounds) <= (2 if count % 2 == 0 else 4)


@settings(deadline=None)
@given(st.data(), st.integers(4, 16))
def test_no_good_node_is_ever_blamed(data: st.DataObject, count: int) -> None:
    """Also with more than half of them bad, where not all can be told."""
    bad = data.draw(st.sets(st.integers(0, count - 1)))
    nodes, rounds = played(count, bad)
    assert found(nodes, rounds, Standing.BAD) <= bad
    assert found(nodes, rounds, Standing.GOOD) & bad == set()


@settings(deadline=None)
@given(st.data(), st.integers(6, 17))
def test_slow_nodes_are_stragglers_and_bad_ones_bad(data: st.DataObject, count: int) -> None:
    most = (count - 1) // 2
    bad = data.draw(st.sets(st.integers(0, count - 1), max_size=most // 2))
    slow = data.draw(st.sets(st.integers(0, count - 1), max_size=1)) - bad
    nodes, rounds = played(count, bad, frozenset(slow))
    assert found(nodes, rounds, Standing.BAD) == bad
    assert found(nodes, rounds, Standing.STRAGGLER) == slow


def test_all_bad_blames_nobody_and_ends() -> None:
    nodes, rounds = played(8, set(range(8)))
    assert found(nodes, rounds, Standing.UNKNOWN) == set(range(8))
    assert len(rounds) == HOPELESS_ROUNDS


@pytest.mark.parametrize("bad", [set(), {0}, {0, 1}])
def test_two_nodes_cannot_be_told_apart(bad: set[int]) -> None:
    nodes, rounds = played(2, bad)
    assert found(nodes, rounds, Standing.BAD) == set()
    assert found(nodes, rounds, Standing.GOOD) == (set() if bad else {0, 1})


def test_one_node_is_not_tested() -> None:
    nodes, rounds = played(1, set())
    assert rounds == []
    finding = findings(nodes, rounds, 1.0)["n0"]
    assert (finding.verdict, finding.reason) == (Verdict.UNKNOWN, "not tested: it takes two nodes")


def test_a_failure_by_chance_blames_nobody() -> None:
    nodes = ["a", "b", "c", "d"]
    rounds = [[PairTest("a", "b", None), PairTest("c", "d", 1.0)]]
    second = next_pairs(nodes, rounds)
    assert {frozenset(pair) & {"a", "b"} for pair in second} == {frozenset("a"), frozenset("b")}
    rounds.append([PairTest(a, b, 1.0) for a, b in second])
    assert next_pairs(nodes, rounds) == ()
    assert set(standings(nodes, rounds).values()) == {Standing.GOOD}


def test_findings_carry_the_tests() -> None:
    nodes, rounds = played(4, {2})
    told = findings(nodes, rounds, 1.0)
    assert [told[node].verdict for node in nodes].count(Verdict.FAIL) == 1
    assert told["n2"].evidence["tests"][0] == ["n3", None]
