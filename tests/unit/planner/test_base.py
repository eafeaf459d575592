import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.planner.synthetic import (
    CLIPS,
    WIDTHS,
    Truth,
    flops_per_token,
    model_config,
    platform_sweep,
    settings,
    simple_sweep,
    sweep_of,
)

from planner.errors import InputError
from planner.fitting.base import Base, check_flops, frontier_of, read_base
from planner.fitting.surface import Points
from planner.reading.runs import Accounting
from scalewright.model.shape import ClipTokens, block_parameters, train_flops

ROWS = platform_sweep(Truth(), budgets=(1e10, 1e11), lrs=(2e-3, 4e-3))


@pytest.fixture(scope="module")
def base() -> Base:
    found = read_base(sweep_of(ROWS, settings()))
    assert found is not None
    return found


def points(params: list[float], flops_per_param_token: list[float]) -> Points:
    n, d = np.array(params), np.full(len(params), 1e9)
    count = np.arange(len(n))
    return Points(
        params=n,
        tokens=d,
        flops=np.array(flops_per_param_token) * n * d,
        loss=np.ones(len(n)),
        bound=np.zeros(len(n), dtype=bool),
        cluster=count,
        names=tuple(map(str, count)),
    )


def test_a_sweep_whose_settings_have_no_base_has_none() -> None:
    rows = simple_sweep(Truth())
    assert read_base(sweep_of(rows)) is None
    assert read_base(sweep_of(rows, {"columns": {"params": "N"}})) is None


def test_the_ladder_holds_every_width_by_heads_with_its_exact_cost(base: Base) -> None:
    assert [size.model.width for size in base.ladder] == list(range(32, 16_385, 32))
    for width in WIDTHS:
        model = replace(model_config(), width=width)
        rung = base.ladder[width // 32 - 1]
        assert rung.block_params == block_parameters(model)
        assert rung.flops_per_token == flops_per_token(model)


@given(
    st.lists(
        st.tuples(st.integers(1, 10_000), st.integers(1, 512), st.integers(1, 10**6)),
        min_size=1,
        max_size=20,
    )
)
def test_the_mean_over_the_clips_is_exact(base: Base, clips: list[tuple[int, int, int]]) -> None:
    sizes = tuple((ClipTokens(visual, text), count) for visual, text, count in clips)
    model = base.model
    flops = sum(train_flops(model, [clip]) * count for clip, count in sizes)
    expected = flops / sum(clip.visual * count for clip, count in sizes)
    assert replace(base, clips=sizes).flops_per_token(model) == expected


def test_the_frontier_is_exact_on_every_rung_and_monotone_between(base: Base) -> None:
    frontier = base.frontier()
    sizes = np.array([size.block_params for size in base.ladder], dtype=float)
    costs = np.array([size.flops_per_token for size in base.ladder])
    assert frontier.flops_per_token(sizes) == pytest.approx(costs, rel=1e-12)
    between = np.sqrt(sizes[1:] * sizes[:-1])
    assert (frontier.flops_per_token(between) > costs[:-1]).all()
    assert (frontier.flops_per_token(between) < costs[1:]).all()
    assert (frontier.smallest_params, frontier.largest_params) == pytest.approx(
        (sizes[0], sizes[-1])
    )


def test_beyond_the_ladder_the_cost_goes_on_straight(base: Base) -> None:
    frontier = base.frontier()
    n = np.array([1e13, 1e14, 1e15])
    steps = np.diff(np.log(frontier.flops_per_token(n)))
    assert steps[0] == pytest.approx(steps[1])
    assert 0.9 < steps[0] / math.log(10) < 1.1


def test_without_a_base_a_token_costs_6n() -> None:
    frontier = frontier_of(None, points([1e8, 1e9], [6.0, 6.0]), Accounting("6nd"))
    assert frontier.flops(3e8, 2e9) == pytest.approx(6 * 3e8 * 2e9)
    assert frontier.source == "C = 6ND"
    assert (frontier.smallest_params, frontier.largest_params) == (1e5, 1e14)


def test_exact_flops_of_another_platform_are_what_its_runs_cost() -> None:
    found = points([1e8, 1e9, 1e10], [12.0, 12.0 * 10**-0.1, 12.0 * 10**-0.2])
    exact = frontier_of(None, found, Accounting("exact"))
    per_param = exact.flops_per_token(np.array([1e7, 1e8, 1e9, 1e10, 1e12])) / [
        1e7, 1e8, 1e9, 1e10, 1e12,
    ]  # fmt: skip
    assert per_param == pytest.approx([12, 12, 12 * 10**-0.1, 12 * 10**-0.2, 12 * 10**-0.2])
    assert frontier_of(None, found).flops(1e9, 1.0) == 6e9


@given(st.floats(0.1, 300), st.integers(1, 6), st.integers(0, 6))
def test_the_packs_of_a_step_are_the_nearest_that_workers_can_share(
    base: Base, wanted: float, least: int, more: int
) -> None:
    worlds = (least, least + more)
    legal = [
        packs
        for packs in range(1, 1000)
        if any(packs % world == 0 for world in range(least, least + more + 1))
    ]
    chosen = replace(base, worlds=worlds).packs_for(wanted)
    assert chosen in legal
    nearest = min(abs(math.log(packs / wanted)) for packs in legal)
    assert abs(math.log(chosen / wanted)) == pytest.approx(nearest)


def test_tokens_of_a_pack_come_from_the_batch_of_the_base_itself(base: Base) -> None:
    assert base.tokens_per_pack([1000.0, 1020.0]) == pytest.approx(1010 / 4)
    # Four packs of 2,048 tokens, 93% of them visual, hold about 7,600.
    assert base.tokens_per_pack([3800.0, 7500.0, 7700.0, 15200.0]) == pytest.approx(7600 / 4)


def spoiled(path: str, value: Any) -> dict[str, Any]:
    tables = copy.deepcopy(settings())
    *parents, last = path.split(".")
    table = tables
    for parent in parents:
        table = table[parent]
    if value is None:
        del table[last]
    else:
        table[last] = value
    return tables


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("clips", None, r"sweep.toml: no table \[clips\]"),
        ("base.optimizer", None, r"sweep.toml: \[base\]: no table \[optimizer\]"),
        ("base.data", None, r"no table \[data\]"),
        ("base.parallel", None, r"no table \[parallel\]"),
        ("base.steps", 0, "steps is 0; expected a whole number from 1"),
        ("base.name", None, "name is None; expected text"),
        ("base.model.width", 65, "not a multiple"),
        ("base.model.heads", 2, r"\[base.model\]: unknown keys heads"),
        ("base.model.depth", 3, "has 25152 parameters, but the model of sweep.toml"),
        ("base.optimizer.schedule", "constant", "made with 'cosine'"),
        ("base.optimizer.warmup_steps", -1, "warmup_steps is -1"),
        ("base.data.packs_per_step", 0.5, "packs_per_step is 0.5"),
        ("base.parallel.workers", 0, "workers is 0"),
        ("base.parallel.compute", "int8", "known: float32, bfloat16"),
        ("base.log.sample_steps", "24", "sample_steps is '24'"),
        ("clips.visual", [], "none empty"),
        ("clips.count", [1], "one length"),
        ("clips.text", [8, 0], "at least 1"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(path: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_base(sweep_of(ROWS, spoiled(path, value), schedule="cosine"))


@pytest.mark.parametrize("column", ["width", "batch_tokens"])
def test_a_run_that_does_not_say_its_width_or_batch_is_refused(column: str) -> None:
    with pytest.raises(InputError, match=f"row 2: no {column}"):
        read_base(sweep_of([ROWS[0], {**ROWS[1], column: None}], settings()))


def test_a_base_without_a_log_table_does_not_tell_how_often_it_samples() -> None:
    found = read_base(sweep_of(ROWS, spoiled("base.log", None)))
    assert found is not None
    assert found.evaluations is None


def test_clips_that_do_not_explain_the_flops_are_found(base: Base) -> None:
    sweep = sweep_of(ROWS, settings())
    assert check_flops(sweep, base) is None
    other = replace(base, clips=tuple((ClipTokens(10 * c.visual, c.text), n) for c, n in CLIPS))
    finding = check_flops(sweep, other)
    assert finding is not None
    assert (finding.code, finding.refuses) == ("flops_off_clips", False)
