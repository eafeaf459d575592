"""Hangs are found by the limit of the very step, and named; nothing healthy ever is."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalewright.errors import ConfigError
from scalewright.health.settings import HealthConfig
from scalewright.health.watchdog import DataStall, Hang, Kind, StepRate, Watchdog
from scalewright.heartbeat import Beat, Phase, Process

POLL_S = 1.0
FLOPS = 1e15
STEP_S = 2.0  # of a step of FLOPS
FROZEN = ("loop", "thread", "cpu")


@dataclass
class Rank:
    """A rank in simulated time. `still` are the signs of life that it no longer gives."""

    beat: Beat
    still: tuple[str, ...] = ()
    cpu_share: float = 0.5


@dataclass
class World:
    """Ranks, the clock of a reader that polls them, and the watchdog that it asks."""

    config: HealthConfig = field(default_factory=HealthConfig)
    size: int = 4
    now_s: float = 1000.0

    def __post_init__(self) -> None:
        self.watchdog = Watchdog(self.config)
        self.ranks = [Rank(start(rank)) for rank in range(self.size)]

    def tell(self, who: Sequence[int] | None = None, **changes: object) -> None:
        """These ranks' loops move on, and say so."""
        for rank in self.ranks if who is None else [self.ranks[n] for n in who]:
            beat = rank.beat
            changes_s = {"moves": beat.moves + 1, "loop_at": self.now_s}
            rank.beat = replace(beat, **(changes_s | changes))  # type: ignore[arg-type]

    def poll(self, for_s: float) -> list[Hang | DataStall]:
        """What the watchdog says, once in each poll, as long as no loop moves."""
        said = []
        end_s = self.now_s + for_s
        while self.now_s < end_s:
            passed_s = min(POLL_S, end_s - self.now_s)
            self.now_s += passed_s
            for rank in self.ranks:
                pass_time(rank, passed_s, self.now_s)
            verdict = self.watchdog.look([rank.beat for rank in self.ranks], self.now_s)
            if verdict is not None:
                said.append(verdict)
        return said

    def step(self, step: int, flops: float = FLOPS, slower: float = 1.0) -> list[Hang | DataStall]:
        """All ranks take a step that takes as long as it should, `slower` times."""
        seconds = STEP_S * slower * flops / FLOPS
        self.tell(phase=Phase.DATA)
        self.tell(phase=Phase.COMPILE if step == 0 else Phase.STEP, step=step, flops=flops)
        said = self.poll(seconds)
        last_flops = 0.0 if step == 0 else flops
        for rank in self.ranks:
            rank.beat = replace(
                rank.beat, done=rank.beat.done + 1, last_s=seconds, last_flops=last_flops,
                loop_at=self.now_s,
            )  # fmt: skip
        return said


def start(rank: int) -> Beat:
    return Beat(
        rank=rank, attempt=1, pid=100 + rank, thread_id=1, phase=Phase.START, step=0, moves=0,
        done=0, loop_at=0.0, phase_began=0.0, flops=0.0, last_s=0.0, last_flops=0.0, own_s=0.0,
        own_flops=0.0, thread_at=0.0, read_at=0.0, process=Process("S", 1.0),
    )  # fmt: skip


def pass_time(rank: Rank, passed_s: float, now_s: float) -> None:
    beat = rank.beat
    if "thread" not in rank.still:
        beat = replace(beat, thread_at=now_s)
    if "cpu" not in rank.still and beat.process is not None:
        used_s = beat.process.cpu_s + rank.cpu_share * passed_s
        beat = replace(beat, process=replace(beat.process, cpu_s=used_s))
    rank.beat = beat


@pytest.fixture
def world() -> World:
    """Ranks that have taken ten steps."""
    made = World()
    for step in range(10):
        assert made.step(step) == []
    return made


def stand(world: World, who: Sequence[int], still: Sequence[str]) -> None:
    for rank in who:
        world.ranks[rank].still = tuple(still)


def first_hang(world: World, within_s: float) -> tuple[Hang, float]:
    """What is said first, and after how long."""
    begin_s = world.now_s
    while world.now_s < begin_s + within_s:
        for verdict in world.poll(POLL_S):
            if isinstance(verdict, Hang):
                return verdict, world.now_s - begin_s
    raise AssertionError(f"nothing was said in {within_s} s")


def test_a_hung_step_is_found_after_its_limit(world: World) -> None:
    world.tell(phase=Phase.STEP, step=10, flops=FLOPS)
    stand(world, range(4), ("cpu",))
    hang, after_s = first_hang(world, 100)
    # 5 times 2 s is less than the least limit.
    assert 60 <= after_s <= 60 + 2 * POLL_S
    assert hang.limit_s == 60
    assert (hang.kind, hang.ranks, hang.sure) == (Kind.WAITING, (), True)
    assert hang.since_s == pytest.approx(world.now_s - after_s, abs=2 * POLL_S)


def test_a_long_clip_is_not_a_hang(world: World) -> None:
    assert world.step(10, flops=30 * FLOPS, slower=4.5) == []
    world.tell(phase=Phase.STEP, step=11, flops=30 * FLOPS)
    stand(world, range(4), ("cpu",))
    hang, after_s = first_hang(world, 2000)
    assert after_s >= 5 * 30 * STEP_S
    assert hang.limit_s == pytest.approx(after_s, abs=2 * POLL_S)


@settings(max_examples=30, deadline=None)
@given(
    costs=st.lists(st.floats(0.1, 60), min_size=20, max_size=60),
    noise=st.lists(st.floats(0.7, 1.6), min_size=60, max_size=60),
    size=st.integers(1, 5),
)
def test_no_mix_of_steps_is_a_hang(costs: list[float], noise: list[float], size: int) -> None:
    world = World(replace(HealthConfig(), hang_min_s=0.5), size=size)
    for step, cost in enumerate(costs):
        assert world.step(step, cost * FLOPS, noise[step]) == []


@settings(max_examples=30, deadline=None)
@given(costs=st.lists(st.floats(0.1, 60), min_size=6, max_size=30), last=st.floats(0.1, 60))
def test_every_hung_step_is_found_by_its_own_limit(costs: list[float], last: float) -> None:
    world = World(replace(HealthConfig(), hang_min_s=0.5))
    for step, cost in enumerate(costs):
        world.step(step, cost * FLOPS)
    world.tell(phase=Phase.STEP, step=len(costs), flops=last * FLOPS)
    stand(world, range(4), ("cpu",))
    limit_s = max(0.5, 5 * last * STEP_S)
    _, after_s = first_hang(world, 10 * limit_s + 10)
    assert limit_s * 0.999 <= after_s <= limit_s + 2 * POLL_S


def test_the_rank_behind_is_named_and_those_that_wait_are_not(world: World) -> None:
    world.tell(phase=Phase.STEP, step=10, flops=FLOPS)
    world.tell([0, 1, 3], phase=Phase.SAVE)
    stand(world, range(4), ("cpu",))
    hang, _ = first_hang(world, 100)
    assert (hang.kind, hang.ranks, hang.sure) == (Kind.BEHIND, (2,), True)
    assert "rank 2 in STEP of step 10" in hang.why
    assert "3 ranks are further and wait" in hang.why


def test_who_waits_for_a_slow_save_is_excused_until_its_limit(world: World) -> None:
    world.tell(phase=Phase.SAVE)
    world.tell([1, 2, 3], phase=Phase.STEP, step=11, flops=FLOPS)
    stand(world, range(4), ("cpu",))
    assert world.poll(1190) == []
    hang, _ = first_hang(world, 20)
    assert (hang.kind, hang.ranks) == (Kind.BEHIND, (0,))


def test_a_process_that_takes_cpu_is_not_surely_hung(world: World) -> None:
    world.tell(phase=Phase.STEP, step=10, flops=FLOPS)
    world.tell([0, 1, 3], phase=Phase.DATA)
    stand(world, [0, 1, 3], ("cpu",))
    hang, _ = first_hang(world, 100)
    assert (hang.ranks, hang.sure) == ((2,), False)
    assert "though taking CPU" in hang.why
    (*_, last) = world.poll(150)
    assert isinstance(last, Hang)
    assert last.sure  # three times its limit


@pytest.mark.parametrize(("state", "limit_s"), [("T", 30), ("D", 30), ("S", 60)])
def test_a_frozen_process_is_named_and_sooner_if_it_is_stopped(
    world: World, state: str, limit_s: float
) -> None:
    world.tell(phase=Phase.STEP, step=10, flops=FLOPS)
    stand(world, range(4), ("cpu",))
    stand(world, [2], FROZEN)
    world.ranks[2].beat = replace(world.ranks[2].beat, process=Process(state, 7.0))
    hang, after_s = first_hang(world, 100)
    assert limit_s <= after_s <= limit_s + 2 * POLL_S
    assert (hang.kind, hang.ranks, hang.sure) == (Kind.FROZEN, (2,), True)
    assert f"state {state}" in hang.why


def test_one_that_holds_the_interpreter_and_works_has_the_limit_of_its_phase(world: World) -> None:
    world.tell(phase=Phase.RESUME)
    stand(world, range(4), ("thread",))
    assert world.poll(1190) == []
    assert world.poll(20) != []


def test_waiting_for_data_is_told_of_and_ends_an_attempt_only_much_later(world: World) -> None:
    world.tell(phase=Phase.DATA)
    world.tell([0, 2, 3], phase=Phase.STEP, step=10, flops=FLOPS)
    stand(world, range(4), ("cpu",))
    assert world.poll(118) == []
    said = world.poll(1070)
    assert said
    assert all(isinstance(each, DataStall) and each.ranks == (1,) for each in said)
    hang, _ = first_hang(world, 20)
    assert (hang.kind, hang.ranks) == (Kind.BEHIND, (1,))


@pytest.mark.parametrize("phase", [p for p in Phase if p not in (Phase.STEP, Phase.DONE)])
def test_every_phase_ends(world: World, phase: Phase) -> None:
    world.tell(phase=phase)
    stand(world, range(4), ("cpu",))
    hang, after_s = first_hang(world, 1300)
    assert phase.name in hang.why
    assert after_s == pytest.approx(1200, abs=3 * POLL_S)


def test_what_is_done_is_not_hung_and_may_be_gone(world: World) -> None:
    world.tell(phase=Phase.DONE)
    stand(world, range(4), FROZEN)
    world.ranks[1].beat = replace(world.ranks[1].beat, process=None)
    assert world.poll(3000) == []


def test_a_process_that_is_gone_is_named_at_once(world: World) -> None:
    world.ranks[3].beat = replace(world.ranks[3].beat, process=None)
    (said,) = world.poll(POLL_S)
    assert isinstance(said, Hang)
    assert (said.kind, said.ranks, said.sure) == (Kind.GONE, (3,), True)


def test_a_reader_that_slept_accuses_nobody(world: World) -> None:
    world.tell(phase=Phase.STEP, step=10, flops=FLOPS)
    stand(world, range(4), FROZEN)
    world.now_s += 10_000
    assert world.watchdog.look([rank.beat for rank in world.ranks], world.now_s) is None


def test_ranks_without_an_answer_are_not_judged(world: World) -> None:
    world.tell(phase=Phase.STEP, step=10, flops=FLOPS)
    for _ in range(100):
        world.now_s += 1
        assert world.watchdog.look([], world.now_s) is None


def test_what_an_attempt_learned_serves_the_next() -> None:
    world = World(replace(HealthConfig(), hang_min_s=1.0))
    world.tell(phase=Phase.STEP, step=3, flops=FLOPS)
    assert world.watchdog.limit_s(world.ranks[0].beat) == 1200  # nothing known yet
    world.watchdog = Watchdog(world.config, s_per_flop=STEP_S / FLOPS)
    assert world.watchdog.limit_s(world.ranks[0].beat) == pytest.approx(5 * STEP_S)


def test_slow_first_steps_are_forgotten_once_there_are_others() -> None:
    rate = StepRate(warmup_steps=5)
    assert rate.s_per_flop is None
    for done in range(1, 6):
        rate.add(done, 40.0, 1.0)
    assert rate.s_per_flop == 40
    for done in range(6, 300):
        rate.add(done, 2.0, 1.0)
    assert rate.s_per_flop == 2
    for done in range(300, 306):
        rate.add(done, 3.0, 1.0)
    assert rate.s_per_flop == pytest.approx(3.0)
    rate.add(306, 1e9, 0.0)  # a compiled step tells of nothing
    assert rate.s_per_flop == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hang_factor": 0.5}, "health.hang_factor = 0.5; at least 1"),
        ({"hang_min_s": 0.0}, "health.hang_min_s = 0.0; it must be positive"),
        ({"preflight_cache_s": 0.0}, "health.preflight_cache_s = 0.0; it must be positive"),
        ({"save_s": float("nan")}, "health.save_s = nan; it must be positive"),
        ({"frozen_s": 1.0}, "health.frozen_s = 1.0; at least 3"),
        ({"timed_every_steps": 0}, "health.timed_every_steps = 0; at least 1"),
        ({"warmup_steps": -1}, "health.warmup_steps = -1; at least 0"),
        ({"data_s": 60.0}, "health.data_s = 60.0 is less than health.data_alarm_s = 120.0"),
        ({"slow_speed": 1.0}, "expected 0 < swap_speed <= slow_speed < 1"),
    ],
)
def test_limits_that_cannot_be_are_refused(change: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        replace(HealthConfig(), **change)  # type: ignore[arg-type]
    assert told in str(error.value)
