"""Placement, blame and restarts: decided from values, without Ray."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranks import small

from scalewright.cluster.classify import Failure, RankError, classify
from scalewright.cluster.placement import Node, choose, choose_workers, worth_growing
from scalewright.cluster.policy import DO_NOT_REQUEUE, REQUEUE, Ended, Restart, Stop, decide
from scalewright.data.settings import legal_worlds
from scalewright.errors import ConfigError
from scalewright.health.finding import Finding, Remedy, Verdict


def nodes(*slots: int, rank: int | None = 0) -> list[Node]:
    return [Node(f"m{index}", f"n{index}", each, rank) for index, each in enumerate(slots)]


@given(st.integers(1, 12), st.lists(st.integers(0, 4), max_size=6), st.integers(1, 24))
def test_workers_fit_the_cluster_and_divide_the_batch(
    wanted: int, slots: list[int], packs: int
) -> None:
    config = small(f"parallel.workers={wanted}", f"data.packs_per_step={packs}")
    if not sum(slots):
        with pytest.raises(ConfigError, match="the cluster has 0 CPUs"):
            choose_workers(config, nodes(*slots))
        return
    placed = choose_workers(config, nodes(*slots))
    chosen = sum(placed.values())
    assert chosen <= min(wanted, sum(slots))
    assert packs % chosen == 0
    assert all(packs % more for more in range(chosen + 1, min(wanted, sum(slots)) + 1))
    assert all(0 < placed[f"n{i}"] <= held for i, held in enumerate(slots) if f"n{i}" in placed)


def test_fewer_than_the_least_is_refused() -> None:
    config = small("parallel.workers=4", "parallel.min_workers=2")
    with pytest.raises(ConfigError, match=r"1 CPUs.*parallel\.min_workers = 2"):
        choose_workers(config, nodes(1))


def test_a_node_held_back_is_not_used_and_is_named() -> None:
    config = small("parallel.workers=4", "parallel.min_workers=4")
    with pytest.raises(ConfigError, match=r"2 CPUs \(1 nodes held back: m0\)"):
        choose_workers(config, [replace(nodes(2)[0], rank=None), replace(nodes(0, 2)[1])])


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from([0, 1, 2, None])), max_size=8))
def test_a_worse_node_is_used_only_if_the_better_ones_do_not_suffice(
    told: list[tuple[int, int | None]],
) -> None:
    there = [Node(f"m{i}", f"n{i}", slots, rank) for i, (slots, rank) in enumerate(told)]
    placed = choose(there, range(1, 9), 1, 8)
    if placed is None:
        assert not any(node.rank is not None for node in there)
        return
    worst = max(node.rank or 0 for node in there if node.node_id in placed)
    better = sum(node.slots for node in there if node.rank is not None and node.rank < worst)
    assert better < sum(placed.values())


def test_where_the_attempt_before_ran_is_taken_first() -> None:
    there = [*nodes(2, 2), Node("z", "used", 2, used=True)]
    assert choose(there, [2], 1, 2) == {"used": 2}
    assert choose([*there, Node("y", "bad", 2, rank=2, used=True)], [4], 1, 4) == {
        "used": 2, "n0": 2,
    }  # fmt: skip


def test_workers_that_share_the_weights_stay_on_one_node() -> None:
    assert choose(nodes(3, 3), [2, 4], 1, 4, shard_size=2) == {"n0": 2, "n1": 2}
    assert choose(nodes(1, 1), legal_worlds(4, 2), 1, 4, shard_size=2) == {"n0": 1, "n1": 1}


def test_growing_must_pay() -> None:
    day = 86400.0
    assert worth_growing(3, 4, left_s=day, restart_s=300, since_start_s=day, cooldown_s=1800)
    assert not worth_growing(3, 4, left_s=600, restart_s=300, since_start_s=day, cooldown_s=1800)
    assert not worth_growing(3, 4, left_s=day, restart_s=300, since_start_s=60, cooldown_s=1800)
    assert not worth_growing(4, 4, left_s=day, restart_s=0, since_start_s=day, cooldown_s=0)
    assert not worth_growing(4, 0, left_s=day, restart_s=0, since_start_s=day, cooldown_s=0)


def error(rank: int, kind: str, message: str, time_s: float = 100.0, **more: object) -> RankError:
    return RankError(rank, (kind, "Exception"), message, time_s, f"m{rank}", **more)  # type: ignore[arg-type]


def peer_gone(rank: int, time_s: float = 100.0) -> RankError:
    text = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]"
    return error(rank, "RuntimeError", text, time_s)


def test_a_death_is_blamed_and_not_the_peers_that_noticed() -> None:
    died = error(1, "ProcessGone", "process 7 is gone", 101.0)
    failure = classify([peer_gone(0), died, peer_gone(2)])
    assert (failure.cause, failure.rank, failure.machine) == ("process", 1, "m1")


def test_the_first_in_time_is_blamed_and_not_its_consequences() -> None:
    late = error(2, "KeyError", "a result of the other", 103.0)
    failure = classify([late, peer_gone(0, 99.0), error(1, "ValueError", "bad shape", 98.0)])
    assert (failure.cause, failure.rank) == ("exception", 1)
    assert failure.signature == "exception: ValueError: bad shape"
    assert failure.machine is None


def test_a_message_of_the_platform_comes_first() -> None:
    diverged = error(1, "DivergedError", "step 7: loss = nan", 101.0, exit_code=1)
    failure = classify([error(0, "ProcessGone", "gone", 99.0), diverged])
    assert (failure.cause, failure.message) == ("divergence", "step 7: loss = nan")
    assert classify([error(0, "ConfigError", "no", exit_code=2)]).exit_code == 2
    wrong_bits = error(0, "CorruptionError", "rank 2 differs", exit_code=1, culprit=2)
    assert (classify([wrong_bits]).cause, classify([wrong_bits]).rank) == ("corruption", 2)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB"),
        ("MemoryError", ""),
        ("RayActorError", "Task was killed due to the node running low on memory."),
    ],
)
def test_memory_is_the_runs_own_doing(kind: str, message: str) -> None:
    failure = classify([peer_gone(0, 99.0), error(1, kind, message)])
    assert (failure.cause, failure.machine) == ("oom", None)


def test_what_may_have_been_is_not_what_was() -> None:
    text = "The actor died. Some common causes include: (1) the OOM killer, out of memory"
    assert classify([error(1, "RayActorError", text)]).cause == "process"


LOST_GPU = Finding(
    check="gpus.count", verdict=Verdict.FAIL, reason="7 of 8 GPUs", gpu="GPU-1", time_s=95.0,
    remedy=Remedy.REBOOT,
)  # fmt: skip


def test_a_fault_that_a_machine_found_on_itself_explains_what_its_ranks_say() -> None:
    died = error(1, "RuntimeError", "CUDA error: unspecified launch failure")
    failure = classify([peer_gone(0), died], {"m1": [LOST_GPU]})
    assert (failure.cause, failure.machine, failure.gpu) == ("gpu", "m1", "GPU-1")
    assert failure.confidence == 1
    alone = classify([peer_gone(0), died], {"m1": [replace(LOST_GPU, shadow=True)]})
    assert (alone.cause, alone.machine) == ("gpu", "m1")
    assert alone.confidence < 0.7
    before_its_ranks = classify([], {"m1": [LOST_GPU]})
    assert (before_its_ranks.cause, before_its_ranks.machine) == ("gpu", "m1")
    old = classify([peer_gone(0), died], {"m1": [replace(LOST_GPU, time_s=20.0)]})
    assert old.confidence < 0.7


def test_a_lost_machine_is_named_and_not_the_peers_that_noticed() -> None:
    failure = classify([peer_gone(0), peer_gone(2)], lost=frozenset({"m1"}))
    assert (failure.cause, failure.machine) == ("node", "m1")


def test_machines_that_are_lost_at_once_are_not_to_blame() -> None:
    failure = classify([peer_gone(0)], lost=frozenset({"m1", "m2", "m3"}))
    assert (failure.cause, failure.machine) == ("node", None)
    assert "3 machines at once are gone or do not answer: m1, m2, m3" in failure.message


def test_consequences_alone_name_nobody() -> None:
    failure = classify([peer_gone(0), peer_gone(1)])
    assert (failure.cause, failure.rank, failure.machine) == ("process", None, None)
    assert failure.confidence < 0.7
    assert classify([]).cause == "controller"


DEATH = Failure("process", "RayActorError: died", 1)
BUG = Failure("exception", "ValueError: bad shape", 0)
DAY_S = 86400.0


def test_a_run_that_gets_on_restarts_for_ever() -> None:
    history = [Ended(DEATH, step, step * DAY_S) for step in range(0, 5000, 50)]
    assert decide(history, max_restarts=2) == Restart(0.0)


def test_restarts_without_progress_end_and_wait_longer_each_time() -> None:
    delays = []
    for failures in range(1, 4):
        decision = decide([Ended(DEATH, 50)] * failures, max_restarts=3)
        assert isinstance(decision, Restart)
        delays.append(decision.delay_s)
    assert delays == sorted(delays)
    assert delays[-1] > delays[0]
    stop = decide([Ended(DEATH, 50)] * 4, max_restarts=3)
    assert isinstance(stop, Stop)
    assert "parallel.max_restarts = 3" in stop.reason
    assert stop.exit_code == DO_NOT_REQUEUE
    assert isinstance(decide([Ended(DEATH, 50)], max_restarts=0), Stop)


def test_the_same_bug_twice_at_the_same_place_stops() -> None:
    assert isinstance(decide([Ended(BUG, 50)], 5), Restart)
    stop = decide([Ended(BUG, 50)] * 2, 5)
    assert isinstance(stop, Stop)
    assert stop.exit_code == DO_NOT_REQUEUE
    assert isinstance(decide([Ended(BUG, 0), Ended(BUG, 50)], 5), Restart)
    assert isinstance(decide([Ended(DEATH, 50), Ended(BUG, 50)], 5), Restart)


def test_a_cause_has_a_budget_for_a_day() -> None:
    hang = Failure("hang", "rank 1 stands still", 1)
    often = [Ended(hang, step, 100.0 * step) for step in range(4)]
    stop = decide(often, 5)
    assert isinstance(stop, Stop)
    assert stop.exit_code == REQUEUE
    assert "4 failures of the kind 'hang' within a day; 3 are allowed" in stop.reason
    seldom = [Ended(hang, step, DAY_S * step) for step in range(40)]
    assert decide(seldom, 5) == Restart(0.0)


def test_what_is_nobodys_fault_costs_nothing() -> None:
    moved = Failure("preempted", "m1 was asked back")
    assert decide([Ended(moved, 50)] * 40, 3) == Restart(0.0)
    assert decide([*[Ended(moved, 50)] * 40, Ended(DEATH, 50)], 3) == Restart(0.0)


def test_machines_may_fail_as_often_as_they_do_while_the_run_gets_on() -> None:
    gone = Failure("node", "machine m1 is gone", machine="m1")
    assert decide([Ended(gone, step, 60.0 * step) for step in range(50)], 3) == Restart(0.0)


def test_machines_that_break_one_after_the_other_are_one_failure() -> None:
    burst = [Ended(Failure("node", f"m{i} is gone", machine=f"m{i}"), 50) for i in range(9)]
    assert isinstance(decide(burst, 3), Restart)
    again = [Ended(Failure("node", "m1 is gone", machine="m1"), 50)] * 4
    assert isinstance(decide(again, 3), Stop)


def test_what_the_platform_refused_is_not_tried_again() -> None:
    refused = Failure("refused", "model.text_dim = 8, but ...", 0, exit_code=2)
    assert decide([Ended(refused, 50)], 5) == Stop("model.text_dim = 8, but ...", 2)
    diverged = Failure("divergence", "loss = nan", 0)
    assert decide([Ended(diverged, 50)], 5) == Stop("loss = nan", DO_NOT_REQUEUE)
