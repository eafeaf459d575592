"""Which checkpoints are kept: the newest, and one to go back to at any time."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from scalewright.train.checkpoint import superseded


@given(st.integers(1, 30), st.integers(2, 4), st.integers(0, 100), st.integers(5, 60))
def test_a_run_can_go_back_as_far_as_it_may_have_to(
    every: int, keep: int, horizon: int, saves: int
) -> None:
    there: list[int] = []
    for step in range(every, (saves + 1) * every, every):
        there.append(step)
        paths = [Path(f"step-{s:08d}") for s in sorted(there, reverse=True)]
        gone = {int(path.name[5:]) for path in superseded(paths, keep, step - horizon)}
        there = [s for s in there if s not in gone]
        assert there[-keep:] == list(range(step, 0, -every))[: len(there[-keep:])][::-1]
        assert len(there) <= keep + 2
        # Until the next save the run may have to go back to any step of these.
        for target in range(max(every, step - horizon), step + every):
            assert min(there) <= target
            assert max(s for s in there if s <= target) >= target - 2 * horizon - 2 * every
