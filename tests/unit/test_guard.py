"""Which steps the guard skips, when it goes back, and what data it leaves out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalewright.data.order import LeftOut, data_step
from scalewright.errors import ConfigError
from scalewright.train.guard import GuardConfig, Memory, rewind_for

CPU = torch.device("cpu")
SMALL = GuardConfig(window_steps=16, after_steps=8)


def judge(memory: Memory, loss: float, norm: float = 1.0) -> bool:
    skipped, _ = memory.judge(torch.tensor(loss, dtype=torch.float64), torch.tensor(norm))
    return bool(skipped)


def test_nothing_finite_is_skipped_before_there_is_enough_to_compare_with() -> None:
    memory = Memory(SMALL, CPU)
    assert not any(judge(memory, 10.0**index) for index in range(8))
    assert judge(memory, float("nan"))
    assert judge(memory, 1.0, float("inf"))
    assert memory.accepted == 8


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.5, 2.0), min_size=8, max_size=40), st.floats(-8, 8))
def test_the_limit_is_so_many_deviations_over_the_last_accepted_steps(
    losses: list[float], deviations: float
) -> None:
    memory = Memory(GuardConfig(window_steps=16, after_steps=8, sigmas=6.0), CPU)
    taken = [loss for loss in losses if not judge(memory, loss)]
    recent = np.log(taken[-16:])
    mean, sd = recent.mean(), max(0.01, recent.std(ddof=1))
    limits = memory.limits()
    assert limits[0].item() == pytest.approx(np.exp(mean + 6 * sd), rel=1e-9)
    loss = np.exp(mean + deviations * sd + 1e-6 * np.sign(deviations))
    assert judge(memory, loss) is bool(loss > limits[0].item())


def test_norms_of_a_heavy_tail_are_not_taken_for_broken_steps() -> None:
    norms = np.random.default_rng(0).lognormal(sigma=0.7, size=4000)
    memory = Memory(GuardConfig(), CPU)
    assert not any(judge(memory, 1.0, norm) for norm in norms)
    assert judge(memory, 1.0, 1e4)


def test_a_few_per_cent_more_than_steady_losses_is_no_spike() -> None:
    memory = Memory(SMALL, CPU)
    assert not any(judge(memory, 1 + 1e-4 * (index % 2)) for index in range(16))
    assert not judge(memory, 1.05)
    assert judge(memory, 1.5)


def test_after_forgetting_another_level_of_loss_is_taken() -> None:
    memory = Memory(SMALL, CPU)
    assert not any(judge(memory, 1 + 1e-3 * (index % 2)) for index in range(16))
    assert judge(memory, 2.0)
    memory.forget()
    assert not any(judge(memory, 2 + 1e-3 * (index % 2)) for index in range(16))
    assert judge(memory, 4.0)


def test_a_gradient_of_zero_is_a_number_like_others() -> None:
    memory = Memory(SMALL, CPU)
    assert not any(judge(memory, 1.0, 0.0) for _ in range(20))
    assert memory.limits().isfinite().all()


def test_a_skipped_step_is_not_remembered_and_either_number_is_enough() -> None:
    memory = Memory(SMALL, CPU)
    for index in range(20):
        judge(memory, 1 + 0.01 * (index % 3), 2 + 0.01 * (index % 2))
    before = memory.kept.clone()
    assert judge(memory, 5.0, 2.0)
    assert judge(memory, 1.0, 9.0)
    assert torch.equal(memory.kept, before)
    assert not judge(memory, 1.0, 2.0)


def test_a_guard_that_is_off_skips_nothing() -> None:
    memory = Memory(GuardConfig(skip=False, window_steps=16, after_steps=8), CPU)
    assert not any(judge(memory, loss) for loss in [1.0] * 20 + [1e9, float("nan")])


@pytest.mark.parametrize(
    ("skipped", "done", "to_step"),
    [
        ([], 100, None),
        (list(range(60, 69)), 100, None),  # nine in the window
        (list(range(60, 70)), 100, 40),
        (list(range(30, 40)), 100, None),  # long ago
        (list(range(2, 12)), 20, 0),
        ([199], 200, 179),  # the last step of the run
        ([198], 200, None),
    ],
)
def test_skips_that_pile_up_send_the_run_back(
    skipped: list[int], done: int, to_step: int | None
) -> None:
    found = rewind_for(skipped, done, 200, (), GuardConfig())
    if to_step is None:
        assert found is None
        return
    assert found is not None
    assert found.to_step == to_step
    assert found.left_out == LeftOut(to_step, 200)
    assert f"the first of them step {skipped[0] + 1}" in found.reason


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=4),
    st.integers(1, 80),
)
def test_data_that_are_left_out_are_never_read_and_all_others_once(
    parts: list[tuple[int, int]], steps: int
) -> None:
    left_out: list[LeftOut] = []
    for begin, count in sorted(parts):  # each as a rewind makes it, in the data of its time
        left_out.append(LeftOut(data_step(begin, left_out), count))
    read = [data_step(step, left_out) for step in range(steps)]
    gone = {step for part in left_out for step in range(part.begin, part.begin + part.steps)}
    assert not gone & set(read)
    assert read == [step for step in range(max(read) + 1) if step not in gone]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": 0.0}, "must be positive"),
        ({"after_steps": 200}, "allowed: 2 to guard.window_steps = 128"),
        ({"rewind_skips": 60}, "never happens within guard.rewind_window_steps = 50"),
        ({"rewinds": -1}, "at least 0"),
    ],
)
def test_impossible_guards_are_named(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GuardConfig(**change)  # type: ignore[arg-type]
