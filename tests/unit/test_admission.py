"""What is due, and which nodes are refused: decided from values, without Ray."""

from dataclasses import asdict, replace

from hypothesis import given
from hypothesis import strategies as st

from scalewright.cluster.admission import (
    Devices,
    Identity,
    Passed,
    boot,
    clones,
    identity_findings,
    joined,
    measured_findings,
    pair_test_findings,
    passed_fully,
    passed_of_record,
    refusals,
    slow_ones,
    wanted,
)
from scalewright.cluster.blame import of_preflight
from scalewright.cluster.placement import Node
from scalewright.health.finding import Verdict
from scalewright.health.machine import Machine
from scalewright.health.pairs import PairTest
from scalewright.health.preflight import Measurement, PreflightLimits

NOW_S, DAY_S = 1e9, 86_400.0
CPU = Measurement("cpu", "cpu", 1e11, 1e10, None, None, "cccc")
H100 = Measurement("GPU-1", "H100", 700e12, 3e12, 50e9, 50e9, "aaaa")
NONE: frozenset[str] = frozenset()
LIMITS = PreflightLimits()


def node(index: int, rank: int | None = 0, boot_id: str = "boot") -> Node:
    return Node(f"m{index}", f"n{index}", 1, rank, boot_id=boot_id)


lasts = st.one_of(
    st.none(),
    st.builds(
        Passed,
        st.floats(NOW_S - 2 * DAY_S, NOW_S + 60),
        st.sampled_from(["boot", "before"]),
        st.sampled_from(["light", "full"]),
        st.just({}),
    ),
)
ranks = st.sampled_from([0, 1, 2])


@given(st.lists(st.tuples(ranks, lasts), max_size=6), st.booleans())
def test_what_was_measured_is_not_due_again(
    told: list[tuple[int, Passed | None]], restart: bool
) -> None:
    nodes = [node(index, rank) for index, (rank, _) in enumerate(told)]
    passed = {f"m{index}": last for index, (_, last) in enumerate(told) if last is not None}
    due = wanted(nodes, passed, NOW_S, DAY_S, restart=restart)
    measured = {f"m{n[1:]}": Passed(NOW_S, "boot", budget, {}) for n, budget in due.items()}
    assert not wanted(nodes, passed | measured, NOW_S, DAY_S, restart=restart)
    for each, (rank, last) in zip(nodes, told, strict=True):
        known = last is not None and last.boot_id == "boot"
        assert known or each.node_id in due
        assert due.get(each.node_id) in (None, "full" if rank else "light")
        if restart and known and rank < 2:
            assert each.node_id not in due


def test_a_node_on_probation_is_measured_fully_even_in_a_restart() -> None:
    passed = {"m0": Passed(NOW_S, "boot", "light", {})}
    assert wanted([node(0, 2)], passed, NOW_S, DAY_S, restart=True) == {"n0": "full"}
    assert wanted([node(0, 1)], passed, NOW_S, DAY_S, restart=True) == {}
    assert wanted([node(0, 1)], passed, NOW_S, DAY_S, restart=False) == {"n0": "full"}


def test_two_nodes_of_one_machine_are_measured_once() -> None:
    twin = replace(node(0), node_id="n9")
    assert list(wanted([node(0), twin], {}, NOW_S, DAY_S, restart=False)) == ["n0"]


def test_a_clone_is_refused_and_not_the_machine_that_was_there() -> None:
    old = Machine("S1", "", "boot1", "/etc/machine-id")
    there = {"n1": old, "n2": replace(old, boot_id="boot2"), "n3": replace(old, serial="S2")}
    assert set(refusals(clones(there, set(), NOW_S))) == {"n1", "n2"}
    (why,) = refusals(clones(there, {("S1", "boot1")}, NOW_S)).values()
    assert "set SCALEWRIGHT_MACHINE" in why
    assert refusals(clones({"n1": old, "n2": old}, set(), NOW_S)) == {}


offsets = st.one_of(st.floats(-0.4, 0.4), st.floats(-1e4, 1e4), st.none())


@given(st.dictionaries(st.sampled_from("abcdefg"), offsets, min_size=1))
def test_the_clock_of_the_majority_is_right(told: dict[str, float | None]) -> None:
    identities = {name: Identity(each) for name, each in told.items()}
    found = identity_findings(told, identities, NOW_S, NONE)
    refused = refusals(found)
    clocks = [0.0, *(each for each in told.values() if each is not None)]
    for name, each in told.items():
        agree = sum(abs(each - other) <= 0.8 for other in clocks) if each is not None else 0
        if each is None or agree > len(clocks) / 2:
            assert name not in refused
    far = {n for n, each in told.items() if each is not None and abs(each) > 100}
    if sum(abs(each) <= 0.4 for each in clocks) > len(clocks) / 2:
        assert far <= refused.keys()


def test_where_this_process_clock_is_off_the_nodes_are_right() -> None:
    identities = {name: Identity(60.0) for name in "ab"}
    assert refusals(identity_findings("ab", identities, NOW_S, NONE)) == {}
    assert set(refusals(identity_findings("a", {"a": Identity(60.0)}, NOW_S, NONE))) == {"a"}


def test_software_that_differs_is_refused_and_a_tie_refuses_all() -> None:
    one, other = Identity(0.0, {"image": "a"}), Identity(0.0, {"image": "b"})
    told = {"n1": one, "n2": other, "n3": other}
    assert set(refusals(identity_findings(["n1", "n2"], told, NOW_S, NONE))) == {"n1"}
    two = {"n1": one, "n2": other}
    assert set(refusals(identity_findings(["n1", "n2"], two, NOW_S, NONE))) == {"n1", "n2"}
    shadow = frozenset({"fingerprint"})
    assert not refusals(identity_findings(["n1", "n2"], two, NOW_S, shadow))
    found = identity_findings(["n1", "n4"], told, NOW_S, NONE)  # n4 gave no answer
    assert {each.verdict for each in found["n4"]} == {Verdict.UNKNOWN}
    assert not refusals(found)


def light(*devices: Measurement) -> dict[str, Devices]:
    return {"light": devices}


def test_a_slow_node_is_found_beside_those_known_and_not_refused_for_silence() -> None:
    slow = replace(CPU, matmul_flops_per_s=1e10)
    known = {"m7": light(CPU), "m8": light(CPU)}
    found = measured_findings({"n1": light(slow), "n2": {}}, known, LIMITS, NOW_S, NONE)
    assert slow_ones(found) == ["n1"]
    assert set(refusals(found)) == {"n1"}
    assert {one.verdict for one in found["n2"]} == {Verdict.UNKNOWN}
    evidence = [of_preflight("m1", one, "run", 3) for one in found["n1"]]
    assert [one.kind for one in evidence if one is not None] == ["preflight_failed"]
    shadow = frozenset({"preflight"})
    found = measured_findings({"n1": light(slow)}, known, LIMITS, NOW_S, shadow)
    assert not refusals(found)
    assert not any(of_preflight("m1", one, "run", 3) for one in found["n1"])


def test_wrong_bits_are_not_measured_away() -> None:
    wrong = replace(CPU, checksum="dddd", matmul_flops_per_s=1e9)
    told = {"n1": light(wrong), "n2": light(CPU), "n3": light(CPU)}
    found = measured_findings(told, {}, LIMITS, NOW_S, NONE)
    assert set(refusals(found)) == {"n1"}
    assert slow_ones(found) == []


def test_budgets_are_compared_apart() -> None:
    both: dict[str, Devices] = {
        "light": (CPU,),
        "full": (replace(CPU, checksum="ffff", memory_bytes_per_s=1.0),),
    }
    told: dict[str, dict[str, Devices]] = {
        "n1": both,
        "n2": light(CPU),
        "n3": light(CPU),
        "n4": light(CPU),
    }
    assert not refusals(measured_findings(told, {}, LIMITS, NOW_S, NONE))


def test_a_full_preflight_is_passed_beside_enough_others() -> None:
    node_of_8 = tuple(replace(H100, device=f"GPU-{index}") for index in range(8))
    told = {"n1": {"light": node_of_8, "full": node_of_8}}
    found = measured_findings(told, {}, LIMITS, NOW_S, NONE)["n1"]
    assert passed_fully(found, node_of_8, [node_of_8], LIMITS)
    assert not passed_fully(found, node_of_8[:1], [node_of_8[:1]], LIMITS)
    assert not passed_fully(found, (), [], LIMITS)
    weak = (replace(node_of_8[0], memory_bytes_per_s=1e12), *node_of_8[1:])
    found = measured_findings({"n1": {"full": weak}}, {}, LIMITS, NOW_S, NONE)["n1"]
    assert not passed_fully(found, weak, [weak], LIMITS)


def test_a_node_that_fails_with_a_proven_one_is_refused() -> None:
    rounds = [[PairTest("n1", "n2", None)], [PairTest("n1", "n3", None), PairTest("n2", "n4", 1.0)],
              [PairTest("n1", "n4", None), PairTest("n2", "n3", 1.0)]]  # fmt: skip
    found = pair_test_findings(["n1", "n2", "n3", "n4"], rounds, NOW_S, NONE)
    assert set(refusals(found)) == {"n1"}
    assert not refusals(pair_test_findings(["n1"], rounds, NOW_S, frozenset({"preflight.pair"})))
    assert {node: len(each) for node, each in joined(found, {"n1": found["n1"]}).items()} == {
        "n1": 2, "n2": 1, "n3": 1, "n4": 1,
    }  # fmt: skip


@given(st.dictionaries(st.text(max_size=4), lasts.filter(bool), max_size=3))
def test_what_is_kept_is_read_back(passed: dict[str, Passed]) -> None:
    kept = {name: replace(one, devices=light(CPU, H100)) for name, one in passed.items()}
    assert passed_of_record({name: asdict(one) for name, one in kept.items()}) == kept


def test_a_boot_is_a_machine_until_it_is_booted() -> None:
    assert boot(node(1)) == ("m1", "boot")
