"""Hangs of a real training on three ranks: found, and named from stacks and collectives."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch.multiprocessing as mp
from ranks import _join, small, train_rank

from scalewright.health import stacks
from scalewright.health.guilt import Blame, guilty, parse_trace
from scalewright.health.settings import HealthConfig
from scalewright.health.stacks import ask_traces, dump, dump_all, same_place
from scalewright.health.watchdog import Hang, Kind, Watchdog
from scalewright.heartbeat import beat_folder, read_beats, remove_beats
from scalewright.train import worker
from scalewright.train.run import RunConfig

HELD_STEP = 12
SLEEPER, FROZEN = 1, 2
CONFIG = HealthConfig(hang_min_s=8.0, frozen_s=4.0)


def held_rank(rank: int, config: RunConfig, folder: Path, data: Path) -> None:
    """Trains; the sleeper sleeps in its loop before a step, until the file `go` is there."""
    take_step = worker.take_step

    def sleep_first(*arguments: Any, **named: Any) -> Any:
        while named["step"] == HELD_STEP and not (folder / "go").exists():
            time.sleep(0.1)
        return take_step(*arguments, **named)

    if rank == SLEEPER:
        worker.take_step = sleep_first
    train_rank(rank, config, folder, data, 1)


@dataclass
class Ranks:
    """A training, and what a watchdog says that polls its heartbeats."""

    folder: Path
    pids: list[int]
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(CONFIG))

    @property
    def beats(self) -> Path:
        return beat_folder(self.folder, 1)

    def watch(self, *, until_step: int | None = None, for_s: float = 200.0) -> Hang | None:
        """The first verdict; None when all ranks have reached the step before there was one."""
        end_s = time.monotonic() + for_s
        while time.monotonic() < end_s:
            beats = read_beats(self.beats)
            verdict = self.watchdog.look(beats, time.monotonic())
            if isinstance(verdict, Hang):
                return verdict
            steps = [beat.step for beat in beats]
            if until_step is not None and len(steps) == 3 and min(steps) >= until_step:
                return None
            time.sleep(0.3)
        raise AssertionError(f"neither a verdict nor step {until_step}: {read_beats(self.beats)}")

    def go_on(self) -> None:
        """Wait until loops move again, so that what was said before is not said once more."""
        end_s, before = time.monotonic() + 60, read_beats(self.beats)
        while read_beats(self.beats)[0].moves == before[0].moves:
            assert time.monotonic() < end_s
            time.sleep(0.1)
        self.watchdog = Watchdog(CONFIG, self.watchdog.rate.s_per_flop)

    def examine(self) -> Blame:
        beats = read_beats(self.beats)
        answers = ask_traces(self.beats, [beat.rank for beat in beats], deadline_s=5)
        traces = {rank: parse_trace(answer) for rank, answer in answers.items()}
        return guilty(dump_all(self.beats, beats, deadline_s=20), traces)


@pytest.fixture
def ranks(tmp_path: Path, data_folder: Path) -> Iterator[Ranks]:
    """Three ranks that train for as long as they may."""
    config = small(
        "steps=100000", "data.packs_per_step=6", "checkpoint.every_steps=20",
        "log.validate_every_steps=50", "log.every_steps=5", "data.ram_bytes=1000000",
    )  # fmt: skip
    folder = tmp_path / "run"
    folder.mkdir()
    arguments = (3, f"file://{tmp_path}/meeting", held_rank, (config, folder, data_folder))
    context = mp.spawn(_join, arguments, nprocs=3, join=False)
    yield Ranks(folder, [process.pid for process in context.processes])
    for process in context.processes:
        process.kill()
        process.join()
    remove_beats(folder)


@pytest.mark.slow
def test_the_sleeper_and_the_frozen_are_named_and_the_healthy_are_not(ranks: Ranks) -> None:
    assert ranks.watch(until_step=HELD_STEP) is None

    hang = ranks.watch()
    assert hang is not None
    # All of them are in the same step: which of them sleeps is not in their heartbeats.
    assert (hang.kind, hang.ranks, hang.sure) == (Kind.WAITING, (), True)
    assert "all ranks in STEP of step 12" in hang.why
    blame = ranks.examine()
    assert blame.ranks == (SLEEPER,)
    assert blame.confidence >= 0.95  # stacks and collectives agree
    assert "sleep_first" in blame.why
    assert "collectives behind" in blame.why

    before, after = (dump_all(ranks.beats, read_beats(ranks.beats), 20) for _ in range(2))
    assert all(same_place(before[rank], after[rank]) for rank in (0, 2))

    (ranks.folder / "go").touch()
    ranks.go_on()
    assert ranks.watch(until_step=HELD_STEP + 15) is None

    os.kill(ranks.pids[FROZEN], signal.SIGSTOP)
    hang = ranks.watch()
    assert hang is not None
    assert (hang.kind, hang.ranks, hang.sure) == (Kind.FROZEN, (FROZEN,), True)
    blame = ranks.examine()
    assert blame.ranks == (FROZEN,)
    assert blame.confidence >= 0.95
    assert "is stopped" in blame.why
    step = max(beat.step for beat in read_beats(ranks.beats))
    os.kill(ranks.pids[FROZEN], signal.SIGCONT)
    ranks.go_on()
    assert ranks.watch(until_step=step + 5) is None
    assert all(beat.own_s > 0 and beat.own_flops > 0 for beat in read_beats(ranks.beats))


SLEEP = """
import ctypes, sys, time
from pathlib import Path
from scalewright.heartbeat import Heartbeat, Phase
beating = Heartbeat(Path(sys.argv[1]), rank=0, attempt=1)
beating.enter(Phase.STEP, 1, 1.0)
print("beats", flush=True)
def holds_the_interpreter():
    while True:  # a signal ends one sleep
        ctypes.PyDLL(None).sleep(600)
def sleeps():
    time.sleep(600)
dict(gil=holds_the_interpreter, free=sleeps)[sys.argv[2]]()
"""


@pytest.mark.parametrize(
    ("stuck", "function"), [("free", "sleeps"), ("gil", "holds_the_interpreter")]
)
@pytest.mark.parametrize("pyspy", [True, False])
def test_stacks_also_without_pyspy_and_of_one_that_holds_the_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: str, function: str, pyspy: bool
) -> None:
    if not pyspy:
        monkeypatch.setattr(stacks, "_by_pyspy", lambda *_, **__: ((), "py-spy is not allowed"))
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEP, str(tmp_path / "beats"), stuck],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.2)
        (beat,) = read_beats(tmp_path / "beats")
        stack = dump(tmp_path / "beats", beat, deadline_s=10)
        assert stack.loop is not None, stack
        assert stack.loop.frames[0].function == function
        assert (stack.state, stack.problem) == ("S", None)
        assert f"(the loop)\n    {function}" in str(stack)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    gone = dump(tmp_path / "beats", beat, deadline_s=10)
    assert (gone.state, gone.threads) == ("", ())
    assert gone.problem == ("the process is gone" if pyspy else "py-spy is not allowed")
    assert ask_traces(tmp_path / "beats", [0], deadline_s=0.2) == {}


def test_a_pyspy_that_does_not_answer_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "py-spy"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    begin_s = time.monotonic()
    threads, problem = stacks._by_pyspy(os.getpid(), "S", begin_s + 0.5, native=False)
    assert (threads, problem) == ((), "py-spy did not answer in time")
    assert time.monotonic() - begin_s < 60
