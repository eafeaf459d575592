"""Placement, blame and restarts: decided from values, without Ray."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranks import small

from scalewright.cluster.classify import Failure, classify
from scalewright.cluster.placement import choose_workers
from scalewright.cluster.policy import Ended, Restart, Stop, decide
from scalewright.errors import ConfigError, DivergedError


class RayActorError(Exception):
    """Named like Ray's."""


PEER_GONE = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]")


@given(st.integers(1, 12), st.integers(0, 16), st.integers(1, 24))
def test_workers_fit_the_cluster_and_divide_the_batch(wanted: int, slots: int, packs: int) -> None:
    config = small(f"parallel.workers={wanted}", f"data.packs_per_step={packs}")
    if slots == 0:
        with pytest.raises(ConfigError, match="the cluster has 0 CPUs"):
            choose_workers(config, slots)
        return
    chosen = choose_workers(config, slots)
    assert chosen <= min(wanted, slots)
    assert packs % chosen == 0
    assert all(packs % more for more in range(chosen + 1, min(wanted, slots) + 1))


def test_fewer_than_the_least_is_refused() -> None:
    config = small("parallel.workers=4", "parallel.min_workers=2")
    with pytest.raises(ConfigError, match=r"1 CPUs.*parallel\.min_workers = 2"):
        choose_workers(config, 1)


def test_a_death_is_blamed_and_not_the_peers_that_noticed() -> None:
    failure = classify({0: PEER_GONE, 1: RayActorError("the actor died"), 2: PEER_GONE})
    assert (failure.cause, failure.rank) == ("process", 1)


def test_an_exception_is_blamed_and_not_its_consequences() -> None:
    failure = classify({0: PEER_GONE, 1: ValueError("bad shape")})
    assert (failure.cause, failure.rank) == ("exception", 1)
    assert failure.signature == "exception: ValueError: bad shape"


def test_a_message_of_the_platform_comes_first() -> None:
    failure = classify({0: RayActorError("died"), 1: DivergedError("step 7: loss = nan")})
    assert (failure.cause, failure.message) == ("refused", "step 7: loss = nan")
    assert classify({0: ConfigError("no")}).exit_code == 2


def test_consequences_alone_count_as_a_lost_process() -> None:
    assert classify({0: PEER_GONE, 1: PEER_GONE}).cause == "process"
    assert classify({}).cause == "controller"


DEATH = Failure("process", "RayActorError: died", 1)
BUG = Failure("exception", "ValueError: bad shape", 0)


def test_a_run_that_gets_on_restarts_for_ever() -> None:
    history = [Ended(DEATH, step) for step in range(0, 5000, 50)]
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
    assert isinstance(decide([Ended(DEATH, 50)], max_restarts=0), Stop)


def test_the_same_bug_twice_at_the_same_place_stops() -> None:
    assert isinstance(decide([Ended(BUG, 50)], 5), Restart)
    assert isinstance(decide([Ended(BUG, 50)] * 2, 5), Stop)
    assert isinstance(decide([Ended(BUG, 0), Ended(BUG, 50)], 5), Restart)
    assert isinstance(decide([Ended(DEATH, 50), Ended(BUG, 50)], 5), Restart)


def test_what_the_platform_refused_is_not_tried_again() -> None:
    refused = Failure("refused", "model.text_dim = 8, but ...", 0, exit_code=2)
    assert decide([Ended(refused, 50)], 5) == Stop("model.text_dim = 8, but ...", 2)
