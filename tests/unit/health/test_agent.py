"""The agent always has the newest findings, whatever its children do."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from scalewright.errors import ConfigError
from scalewright.health.agent import Agent, judge_unanswered
from scalewright.health.checks import Check, Look, Silence, light_checks
from scalewright.health.child import Failed, Silent
from scalewright.health.finding import Finding, Remedy, Verdict, failures, from_record, shadowed

SILENCE = Silence(reason="the driver hangs the checker", remedy=Remedy.REBOOT)


def count(past: int | None, look: Look) -> tuple[int, tuple[Finding, ...]]:
    """A judge that counts its looks, and warns at the first."""
    number = (past or 0) + 1
    verdict = Verdict.WARN if number == 1 else Verdict.PASS
    return number, (
        Finding(check="echo.count", verdict=verdict, reason=str(number), time_s=look.time_s),
    )


def echo(**settings: Any) -> Check:
    return Check(name="echo", judge=count, **settings)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited for 30 s"
        time.sleep(0.02)


@pytest.fixture
def agents() -> Iterator[list[Agent]]:
    """Those that a test started; they must leave no process behind."""
    before = set(psutil.Process().children(recursive=True))
    started: list[Agent] = []
    yield started
    for agent in started:
        assert agent.close() == ()
    assert set(psutil.Process().children(recursive=True)) <= before


def test_it_looks_again_and_keeps_the_newest(agents: list[Agent]) -> None:
    agents.append(Agent([echo()], period_s=0.05))
    assert agents[0].wait(30)
    until(lambda: int(agents[0].look()[0].reason) >= 3)
    assert len(agents[0].look()) == 1
    assert agents[0].look()[0].verdict is Verdict.PASS


def test_a_hang_is_unknown_and_gone_with_the_next_answer(agents: list[Agent]) -> None:
    agents.append(Agent([echo(deadline_s=0.5, silence=SILENCE)], period_s=0.05))
    agents[0].wait(30)
    os.kill(agents[0].children()[0], signal.SIGSTOP)
    until(lambda: any(one.check == "echo" for one in agents[0].look()))
    hung = [one for one in agents[0].look() if one.check == "echo"]
    assert [one.verdict for one in hung] in ([Verdict.UNKNOWN], [])  # or answered since
    assert not failures(agents[0].look())
    until(lambda: [one.check for one in agents[0].look()] == ["echo.count"])


def test_one_that_hangs_delays_neither_the_others_nor_who_asks(agents: list[Agent]) -> None:
    agents.append(Agent([echo(), echo()], period_s=0.02))
    agents[0].wait(30)
    stopped, _ = agents[0].children()
    os.kill(stopped, signal.SIGSTOP)
    before = int(agents[0].look()[1].reason)
    begin = time.monotonic()
    until(lambda: int(agents[0].look()[1].reason) > before + 2)
    assert time.monotonic() - begin < 15  # the deadline of the one that hangs
    begin = time.monotonic()
    agents[0].close()
    assert time.monotonic() - begin < 10
    assert not psutil.pid_exists(stopped)


def test_what_was_wrong_stays_said_while_nothing_is_known() -> None:
    check = echo(silence=SILENCE)
    unknown = judge_unanswered(check, Silent(15, stuck=False), 1, False, 5.0)
    assert (unknown.verdict, unknown.reason) == (Verdict.UNKNOWN, "did not answer in 15 s")
    failed = judge_unanswered(check, Silent(15, stuck=True), 3, True, 5.0)
    assert failed.verdict is Verdict.FAIL
    assert "cannot be killed" in failed.reason
    # Another child hung, too: the machine is at fault or busy, and nothing is proven.
    busy = judge_unanswered(check, Silent(15, stuck=False), 9, False, 5.0)
    assert busy.verdict is Verdict.UNKNOWN
    # A checker that breaks is not a node that breaks, however often.
    broken = judge_unanswered(check, Failed("ImportError: pynvml"), 0, True, 5.0)
    assert broken.verdict is Verdict.UNKNOWN
    # A reading of which silence means nothing stays unknown.
    plain = judge_unanswered(echo(), Silent(15, stuck=False), 9, True, 5.0)
    assert plain.verdict is Verdict.UNKNOWN


def test_shadow_marks_one_check_or_a_whole_child() -> None:
    bad = [
        Finding(check=name, verdict=Verdict.FAIL, reason="", time_s=0.0)
        for name in ("gpus.ecc", "gpus.xid", "host.shm")
    ]
    marked = shadowed(bad, frozenset({"gpus.ecc", "host"}))
    assert [one.shadow for one in marked] == [True, False, True]
    assert [one.check for one in failures(marked)] == ["gpus.xid"]
    assert [from_record(one.record()) for one in marked] == list(marked)


def test_the_agent_marks_shadowed_checks(agents: list[Agent]) -> None:
    agents.append(Agent([echo()], period_s=5, shadow=frozenset({"echo"})))
    agents[0].wait(30)
    assert all(one.shadow for one in agents[0].look())


def test_the_light_checks_pass_here(agents: list[Agent], tmp_path: Any) -> None:
    agents.append(Agent(light_checks(folders=[tmp_path])))
    assert agents[0].wait(60)
    found = {one.check for one in agents[0].look()}
    assert {"host.memory", "host.blocked", "storage.write"} <= found


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: Agent([], period_s=0), "period_s = 0"),
        (lambda: echo(deadline_s=0), "deadline_s = 0"),
        (lambda: echo(period_s=-1), "period_s = -1"),
        (lambda: Silence(reason="", remedy=Remedy.NONE, times=1), "times = 1"),
    ],
)
def test_what_cannot_be_is_refused(build: Callable[[], Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build()
