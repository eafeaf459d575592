"""The simulator against what can be computed by hand, and against the policies it asks."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from scalewright.cluster.node_faults import DAY_S, Fault, History, Rates, Trace, read_trace
from scalewright.cluster.placement import Node, choose
from scalewright.cluster.simulate import fewest_spares, main, run_seeds
from scalewright.cluster.simulated_policy import Machines
from scalewright.cluster.simulation import FEWER_NODES, Job, Outcome, simulate
from scalewright.cluster.standing import usable
from scalewright.errors import ConfigError, DataError

HOUR_S = 3600.0


def job(**changes: float) -> Job:
    """Four nodes that may shrink to three, with costs that are easy to add up."""
    settings = {"nodes": 4, "min_nodes": 3, "interval_s": 990.0, "stall_s": 10.0, "detect_s": 50.0,
                "restart_s": 100.0, "cooldown_s": 0.0, "caught": 0.0} | changes  # fmt: skip
    return Job(**settings)  # type: ignore[arg-type]


def nodes(count: int, *faults: tuple[int, float, float]) -> list[History]:
    """Histories of `count` nodes from (node, begin, end) of faults of parts."""
    return [
        tuple(Fault(begin_s, end_s, True) for at, begin_s, end_s in faults if at == node)
        for node in range(count)
    ]


def seconds(outcome: Outcome, duration_s: float) -> dict[str, float]:
    parts = {cause: round(share * duration_s, 2) for cause, share in outcome.badput.items()}
    return {cause: s for cause, s in parts.items() if s}


def test_a_fault_with_a_spare_costs_its_recovery_and_the_work_since_the_checkpoint() -> None:
    outcome = simulate(job(), nodes(5, (0, 100 + 2500, 1e9)), 10_000)
    assert seconds(outcome, 10_000) == {
        "restart": 200,  # also the first start
        "detect": 50,
        "recompute": 500,
        "checkpoint": (2 + 7) * 10,
    }
    assert outcome.goodput == pytest.approx(1 - 0.084)
    assert outcome.effective_time == pytest.approx(outcome.goodput + 0.05)
    assert outcome.failures == 1


def test_without_a_spare_it_shrinks_and_grows_back_at_a_checkpoint_without_loss() -> None:
    # Down at 2,600 s; three nodes go on at 2,750 s; the fourth is back at 5,000 s, and the
    # checkpoint after that ends at 2,750 + 3 x 1,000 s.
    outcome = simulate(job(), nodes(4, (0, 2600, 5000)), 10_000)
    assert outcome.regrown == 1
    assert seconds(outcome, 10_000) == {
        "restart": 300,
        "detect": 50,
        "recompute": 500,
        FEWER_NODES: 3 * 990 / 4,
        "checkpoint": (2 + 3 + 4) * 10,
    }


def test_growing_that_costs_more_than_it_saves_is_left() -> None:
    outcome = simulate(job(), nodes(4, (0, 2600, 9400)), 10_000)
    assert outcome.regrown == 0


def test_too_few_nodes_wait_in_the_queue() -> None:
    outcome = simulate(job(min_nodes=4), nodes(4, (0, 2600, 5000)), 10_000)
    assert seconds(outcome, 10_000)["queue"] == 5000 - 2650


def test_a_node_that_fails_while_it_starts_fails_the_attempt_again() -> None:
    outcome = simulate(job(), nodes(6, (0, 2600, 1e9), (1, 2700, 1e9)), 10_000)
    assert outcome.failures == 2
    parts = seconds(outcome, 10_000)
    assert parts["detect"] == 100
    assert parts["restart"] == 100 + 50 + 100
    assert parts["queue"] == 10  # the back-off of the second failure without a checkpoint


def test_a_row_of_failures_without_a_checkpoint_waits_for_a_human() -> None:
    row = [(node, 2600 + 160 * node, 1e9) for node in range(6)]
    outcome = simulate(job(max_restarts=3, human_s=HOUR_S), nodes(12, *row), 10_000)
    assert seconds(outcome, 10_000)["stopped"] == HOUR_S


def test_a_repaired_node_is_not_taken_while_there_is_a_healthy_spare() -> None:
    machines = Machines(5)
    machines.failed(0, 10.0, hardware=True)
    machines.repaired(0, 20.0)
    assert machines.place({0, 4}, {1, 2}, 3, 3, 30.0) == {1, 2, 4}
    assert machines.place({0}, {1, 2}, 3, 3, 30.0) == {0, 1, 2}
    machines.failed(0, 40.0, hardware=True)  # a fault on probation
    assert machines.retired(0, 50.0)
    assert machines.place({0}, {1, 2}, 3, 3, 50.0) is None
    machines.repaired(0, 60.0)
    assert machines.place({0}, {1, 2}, 3, 3, 70.0) == {0, 1, 2}


def test_the_preflight_keeps_a_node_out_that_is_still_bad() -> None:
    twice = nodes(4, (0, 2600, 5000), (0, 9000, 9900))
    let_in = simulate(job(), twice, 20_000)
    kept_out = simulate(job(caught=1.0), twice, 20_000)
    assert (let_in.failures, let_in.caught) == (2, 0)
    assert (kept_out.failures, kept_out.caught) == (1, 1)


NOTED = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(["hardware", "death", "repaired", "refused"])),
    max_size=12,
)


@given(NOTED, st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)), st.integers(1, 10),
       st.integers(1, 10))  # fmt: skip
def test_placement_answers_as_if_it_were_asked_about_all_nodes(
    noted: Sequence[tuple[int, str]], alive: set[int], used: set[int], least: int, most: int
) -> None:
    machines, time_s = Machines(10), 0.0
    for node, what in noted:
        time_s += 1000.0
        if what == "repaired":
            machines.repaired(node, time_s)
        elif what == "refused":
            machines.refused(node, time_s)
        else:
            machines.failed(node, time_s, hardware=what == "hardware")
    least, used = min(least, most), set(sorted(used & alive)[:most])
    whole = [
        Node(f"{node:06d}", str(node), 1,
             usable(machines.fleet.standing(f"{node:06d}", time_s)), node in used)
        for node in alive
    ]  # fmt: skip
    expected = choose(whole, range(1, 11), least, most)
    placed = machines.place(alive - used, used, least, most, time_s)
    assert placed == (None if expected is None else {int(node) for node in expected})


FAULTS = st.lists(st.tuples(st.integers(0, 5), st.floats(0, 90_000), st.floats(1, 40_000)))


@settings(deadline=None)
@given(FAULTS, st.integers(1, 4), st.floats(0, 1), st.integers(0, 3))
def test_whatever_fails_the_shares_add_up(
    faults: Sequence[tuple[int, float, float]], least: int, caught: float, restarts: int
) -> None:
    histories = nodes(6, *((n, begin, begin + length) for n, begin, length in sorted(faults)))
    work = job(min_nodes=least, caught=caught, max_restarts=restarts)
    outcome = simulate(work, histories, 100_000)
    assert outcome.goodput + sum(outcome.badput.values()) == pytest.approx(1)
    assert all(share >= -1e-9 for share in outcome.badput.values())
    assert outcome.goodput <= outcome.effective_time + 1e-9
    assert outcome.effective_time <= outcome.availability + 1e-9


def test_failures_at_random_cost_what_renewal_theory_says() -> None:
    """Poisson faults and spares enough: each cycle is a run to its next fault, then a recovery.

    Work kept of a run that ends at random: T / (e^(λ(T + C)) - 1). A restart of r seconds must go
    without a fault: E = (d + (1 - e^(-λr)) / λ) / e^(-λr).
    """
    per_1000, size = 40.0, 128
    work = job(nodes=size, min_nodes=size, interval_s=1800.0, stall_s=20.0, detect_s=60.0,
               restart_s=600.0, max_restarts=100)  # fmt: skip
    seeds, duration_s = 5, 60 * DAY_S
    outcomes = run_seeds(work, size, Rates(per_1000), duration_s, seeds)
    failures = sum(outcome.failures for outcome in outcomes)
    rate = size * per_1000 / 1000 / DAY_S  # its nodes are always up
    expected = rate * seeds * duration_s
    assert abs(failures - expected) < 4 * math.sqrt(expected)
    # The rate as it fell out: how costs follow from it has far less spread.
    rate = failures / (seeds * duration_s - failures * 60)
    kept_s = 1800 / math.expm1(rate * 1820)
    recovery_s = (60 - math.expm1(-rate * 600) / rate) * math.exp(rate * 600)
    goodput = sum(outcome.goodput for outcome in outcomes) / seeds
    assert goodput == pytest.approx(kept_s / (1 / rate + recovery_s), abs=0.002)


def test_rates_make_as_many_faults_as_they_say_and_bursts_where_asked() -> None:
    def again(shape: float) -> tuple[float, float]:
        histories = Rates(4.2, shape).draw(400, 0, 3480 * DAY_S)
        gaps_s = [
            after.start_s - before.end_s
            for history in histories
            for before, after in pairwise(history)
        ]
        up_s = 400 * 3480 * DAY_S - sum(
            min(f.end_s, 3480 * DAY_S) - f.start_s for history in histories for f in history
        )
        count = sum(map(len, histories))
        return count / up_s * DAY_S * 1000, sum(gap < 7 * DAY_S for gap in gaps_s) / len(gaps_s)

    poisson, soon = again(1.0)
    assert poisson == pytest.approx(4.2, rel=0.05)
    assert soon == pytest.approx(-math.expm1(-7 * 0.0042), rel=0.15)
    bursts, soon = again(0.3)
    assert bursts == pytest.approx(4.2, rel=0.05)
    assert soon > 0.2


def write_trace(path: Path, *events: tuple[str, float, str]) -> Path:
    kind = {"Level": "Hardware Failure", "Class": "GPU", "Desc": "gone"}
    lines = [
        {"node_id": node, "event_time": day, "event_type": f"fault_{what}", "fault_type": kind}
        for node, day, what in events
    ]
    path.write_text(json.dumps(lines))
    return path


def test_a_trace_is_read_and_drawn_from(tmp_path: Path) -> None:
    path = write_trace(
        tmp_path / "trace.json",
        ("a", 1, "start"), ("b", 2, "start"), ("a", 3, "end"), ("a", 9, "start"), ("b", 10, "end"),
    )  # fmt: skip
    trace = read_trace(path, nodes=4)
    assert trace.length_s == 10 * DAY_S
    assert trace.faults_per_node_s == 3 / (40 * DAY_S)
    assert [len(history) for history in trace.histories] == [2, 1]
    assert trace.histories[0][1].end_s == math.inf
    drawn = trace.draw(1000, seed=3, duration_s=5 * DAY_S)
    whole = trace.draw(4, seed=3, duration_s=trace.length_s)
    assert set(whole) == {*trace.histories, ()}
    assert drawn[:10] == trace.draw(10, seed=3, duration_s=5 * DAY_S)
    assert sum(map(len, drawn)) == pytest.approx(1000 * 2 / 4, rel=0.15)
    starts = [fault.start_s for history in drawn for fault in history]
    assert len(set(starts)) == len(starts)  # no two copies fail in the same second
    with pytest.raises(ConfigError, match="the trace has 10 days"):
        trace.draw(1, 0, 11 * DAY_S)
    with pytest.raises(DataError, match="2 nodes failed, of 1"):
        read_trace(path, nodes=1)
    path.write_text("[1]")
    with pytest.raises(DataError, match="not a fault trace"):
        read_trace(path, nodes=1)


def test_the_fewest_spares_are_found_or_said_not_to_exist() -> None:
    def reached(spares: int) -> float:
        return 0.98 - 0.5 / (1 + spares) ** 2

    found = fewest_spares(0.97, 64, reached)
    assert found.spares == min(n for n in range(65) if reached(n) >= 0.97)
    assert reached(found.enough) >= found.ceiling - 0.001 > reached(found.enough - 1)
    assert fewest_spares(0.99, 64, reached).spares is None
    with pytest.raises(ConfigError, match="between 0 and 1"):
        fewest_spares(1.0, 64, reached)


@pytest.fixture(scope="session")
def real_trace(shared_data: Path) -> Trace:
    return read_trace(shared_data / "failures" / "fault_trace.json", 400)


def test_on_the_real_trace_64_nodes_with_4_spares_train_99_percent_of_the_time(
    real_trace: Trace,
) -> None:
    work = Job(nodes=64, min_nodes=48, interval_s=1800.0)
    for outcome in run_seeds(work, 4, real_trace, real_trace.length_s, seeds=10):
        assert outcome.effective_time > 0.99
        assert outcome.goodput > 0.97


def test_the_command_tells_the_numbers_of_a_run(tmp_path: Path) -> None:
    asked = ["--nodes", "16", "--spares", "1", "--elastic", "0.75", "--days", "50", "--seeds", "3"]
    done = CliRunner().invoke(main, [*asked, "--json"], catch_exceptions=False)
    told = json.loads(done.output)
    assert told["goodput"] + sum(told["badput"].values()) == pytest.approx(1)
    assert {"effective_time", "availability", "interval_s"} <= told.keys()
    assert told["intervals"]["goodput"][0] <= told["goodput"] <= told["intervals"]["goodput"][1]
    words = CliRunner().invoke(main, [*asked, "--find-spares", "0.9"], catch_exceptions=False)
    assert "spares         0 for a goodput of 90.000%" in words.output
    for option, value in (("--elastic", "2"), ("--days", "-1"), ("--stall-s", "-1")):
        with pytest.raises(ConfigError, match=rf"{option} {value}"):
            CliRunner().invoke(main, [*asked, option, value], catch_exceptions=False)


def test_the_command_starts_without_torch_and_ray() -> None:
    code = "import sys, scalewright.cluster.simulate, scalewright.cluster.goodput as g; " \
           "print({'torch', 'ray', 'scipy', 'jinja2'} & set(sys.modules))"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.stdout.strip() == "set()"
