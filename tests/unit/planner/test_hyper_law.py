import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from unit.planner.hyper_sweeps import (
    BATCHES,
    RATES,
    Law,
    bowl,
    demo,
    diverged,
    kling,
    misfitting,
    run,
    steplaw,
    sweep_of,
)

from planner.fitting.grid import BATCH, LR
from planner.fitting.group_law import GroupLaw, fit_group_law
from planner.fitting.hyper import Group, groups
from planner.fitting.hyper_law import HyperLaw, HyperLaws, fit_hyper_laws
from planner.fitting.laws import NotFitted
from planner.reading.records import Sweep


def laws_of(sweep: Sweep, resamples: int = 200) -> HyperLaws:
    return fit_hyper_laws(groups(sweep), resamples=resamples)


def lr_law(sweep: Sweep, resamples: int = 200) -> HyperLaw:
    law = laws_of(sweep, resamples).lr
    assert isinstance(law, HyperLaw)
    return law


def batch_law(sweep: Sweep) -> HyperLaw:
    law = laws_of(sweep).batch_tokens
    assert isinstance(law, HyperLaw)
    return law


def refused(law: HyperLaw | NotFitted) -> str:
    assert isinstance(law, NotFitted)
    return law.reason


def test_the_laws_find_the_exponents_that_made_the_sweep() -> None:
    truth = Law()
    found = laws_of(truth.sweep(batches=BATCHES))
    assert isinstance(found.lr, HyperLaw)
    assert isinstance(found.batch_tokens, HyperLaw)
    seen = [
        (law.params_exponent.value, law.tokens_exponent.value, law.value(2e9, 1e11))
        for law in (found.lr, found.batch_tokens)
    ]
    assert seen[0] == pytest.approx((truth.p, truth.q, truth.lr(2e9, 1e11)), rel=1e-4)
    assert seen[1] == pytest.approx((truth.r, truth.s, truth.batch(2e9, 1e11)), rel=1e-4)
    coefficient = found.lr.coefficient.value
    assert coefficient * 2e9**truth.p * 1e11**truth.q == pytest.approx(truth.lr(2e9, 1e11), 1e-3)


@pytest.mark.parametrize(("noise", "tokens"), [(5e-4, (1e9, 4e9, 1.6e10)), (2e-3, (1e9, 8e9))])
def test_intervals_hold_the_truth_as_often_as_they_say(
    noise: float, tokens: Sequence[float]
) -> None:
    truth, sweeps = Law(), 100
    hits = np.zeros(4)
    for seed in range(sweeps):
        law = lr_law(truth.sweep(noise=noise, tokens=tokens, seed=seed), resamples=300)
        ahead = law.predict(1e9, 6.4e10)
        wanted = (truth.p, truth.q, truth.lr(1e9, 6.4e10), law.coefficient.value)
        estimates = (law.params_exponent, law.tokens_exponent, ahead, law.coefficient)
        for index, (estimate, value) in enumerate(zip(estimates, wanted, strict=True)):
            assert estimate.low is not None
            assert estimate.high is not None
            hits[index] += estimate.low <= value <= estimate.high
    assert 80 <= hits[0] <= 98
    assert 80 <= hits[1] <= 98
    assert hits[2] >= 85
    assert hits[3] == sweeps


def test_a_prediction_holds_the_scatter_of_one_more_optimum() -> None:
    rng = np.random.default_rng(4)
    n = np.geomspace(1e7, 1e9, 12)
    d = np.geomspace(1e9, 1e11, 12)[rng.permutation(12)]
    scatter = 0.1
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        ln_y = -0.3 * np.log(n) + scatter * rng.standard_normal(12)
        law = fit_group_law(np.exp(ln_y), {"params": n, "tokens": d}, [None] * 12, resamples=200)
        ahead = law.predict(params=4e9, tokens=4e11)
        truth = math.exp(-0.3 * math.log(4e9) + scatter * rng.standard_normal())
        assert ahead.low is not None
        assert ahead.high is not None
        hits += ahead.low <= truth <= ahead.high
    assert 168 <= hits <= 195


def test_both_laws_are_resampled_alike() -> None:
    found = groups(Law(r=-0.3, s=0.1).sweep(batches=BATCHES, noise=1e-3))
    same = [replace(g, batch_tokens=g.lr) for g in found]
    twins = [
        fit_group_law(
            [group.optimum[axis] or math.nan for group in same],
            {"params": [g.params for g in same], "tokens": [g.tokens for g in same]},
            [None] * len(same),
        )
        for axis in (LR, BATCH)
    ]
    assert np.array_equal(samples(twins[0]), samples(twins[1]))


def samples(law: GroupLaw) -> np.ndarray:
    assert law.samples is not None
    return law.samples


def test_the_samples_are_the_interval() -> None:
    law = lr_law(Law().sweep(noise=1e-3), resamples=1000)
    assert samples(law.law).shape == (1000, 3)
    low, high = np.percentile(samples(law.law)[:, 2], [5, 95])
    assert (law.tokens_exponent.low, law.tokens_exponent.high) == pytest.approx((low, high))
    ahead = law.resampled(1e9, 1e11)
    assert ahead is not None
    spread = law.predict(1e9, 1e11)
    assert spread.low is not None
    assert spread.low < np.percentile(ahead, 5)


def test_optima_of_flat_groups_count_for_less() -> None:
    truth = Law()
    sweep = truth.sweep(noise=3e-4)
    off = [
        replace(h, loss=2.4 * (1 + 2e-4 * math.log((h.lr or 0) / 8e-3) ** 2))
        if (h.params, h.tokens) == (3e8, 1.6e10)
        else h
        for h in sweep.runs
    ]
    found = groups(sweep_of(off))
    optima = [group for group in found if group.lr is not None]
    columns = {"params": [g.params for g in optima], "tokens": [g.tokens for g in optima]}
    plain = fit_group_law([g.lr or 0 for g in optima], columns, [None] * len(optima))
    weighted = lr_law(sweep_of(off)).value(1e8, 4e9)
    error = abs(math.log(weighted / truth.lr(1e8, 4e9)))
    assert error < 0.5 * abs(math.log(plain.value(params=1e8, tokens=4e9) / truth.lr(1e8, 4e9)))


@pytest.mark.parametrize(
    ("sizes", "tokens", "variables", "reason"),
    [
        ((1e8,), (1e9,), (), "1 interior optimum: a constant"),
        ((1e8,), (1e9, 4e9), (), "2 interior optima: a constant"),
        ((1e8,), (1e9, 2e9, 4e9), ("tokens",), "3 interior optima, only tokens varies"),
        ((5e7, 1e8, 2e8), (1e9,), ("params",), "3 interior optima, only params varies"),
        ((1e8, 2e8), (1e9, 4e9), ("tokens",), "4 interior optima: tokens only"),
        ((1e8, 1.01e8, 1.02e8), (1e9, 1.01e9), (), "all at nearly the same params and tokens"),
        ((1e8, 2e8), (1e9, 2e9, 4e9), ("params", "tokens"), "6 interior optima: params and tokens"),
    ],
)
def test_a_law_has_no_more_constants_than_the_optima_carry(
    sizes: Sequence[float], tokens: Sequence[float], variables: tuple[str, ...], reason: str
) -> None:
    law = lr_law(Law().sweep(sizes, tokens))
    assert law.law.variables == variables
    assert reason in law.reason
    left_out = {"params": law.params_exponent, "tokens": law.tokens_exponent}
    for name in set(left_out) - set(variables):
        assert left_out[name].value == 0
        if law.other is None:
            assert f"{name} is left out of the law" in (left_out[name].unknown or "")


def test_where_size_and_tokens_cannot_be_told_apart_intervals_span_both_laws() -> None:
    """On one budget D falls as N rises: beyond it, nobody knows which of the two lr* follows."""
    truth = Law(p=-0.3, q=0.0)
    sizes = np.geomspace(1e8, 1.6e9, 7)
    runs = [h for n in sizes for h in truth.sweep([n], [1e18 / n], noise=2e-4).runs]
    law = lr_law(sweep_of(runs))
    assert law.law.variables == ("tokens",)
    assert law.tokens_exponent.value == pytest.approx(0.3, abs=0.05)
    assert "intervals also hold the law in params alone" in law.reason
    for exponent in (law.params_exponent, law.tokens_exponent):
        assert exponent.low is not None
        assert exponent.high is not None
        assert exponent.low <= 0 <= exponent.high
    n, d = 4e9, 2.5e10
    ahead = law.predict(n, d)
    assert ahead.low is not None
    assert ahead.high is not None
    assert ahead.low < truth.lr(n, d) < ahead.value < ahead.high
    # On the budget itself both say the same.
    inside = law.predict(4e8, 2.5e9)
    assert inside.low is not None
    assert inside.high is not None
    assert inside.high / inside.low < 1.3


def test_beyond_the_only_size_that_was_tried_no_interval_is_known() -> None:
    law = lr_law(Law().sweep([1e8], [1e9, 2e9, 4e9], noise=1e-3))
    assert law.predict(1e8, 1e10).low is not None
    ahead = law.predict(1e9, 1e10)
    assert ahead.low is None
    assert "the optima are at 1e+08 to 1e+08 params and tell of no other" in (ahead.unknown or "")


def test_tokens_in_step_with_size_leave_one_exponent() -> None:
    runs = [h for n in np.geomspace(1e7, 1e9, 8) for h in Law().sweep([n], [20 * n]).runs]
    law = lr_law(sweep_of(runs))
    assert law.law.variables == ("tokens",)
    assert "correlate by 1.000: tokens only" in law.reason


def test_an_interval_without_a_degree_of_freedom_is_unknown() -> None:
    law = lr_law(Law().sweep([1e8], [1e9]))
    assert law.law.samples is None
    assert law.coefficient.low is None
    assert "no degree of freedom" in (law.predict(1e8, 1e9).unknown or "")
    assert "no resamples" in (lr_law(Law().sweep(), resamples=0).tokens_exponent.unknown or "")


def test_censored_groups_are_not_fitted_but_judge_the_law() -> None:
    truth = Law()
    sweep = truth.sweep(sizes=(3e7, 1e8, 3e8, 1e9), tokens=(1e9, 4e9, 1.6e10))
    cut = [h for h in sweep.runs if h.params < 1e9 or (h.lr or 0) > 1.5e-3]
    law = lr_law(sweep_of(cut))
    assert law.law.optima == 9
    assert law.params_exponent.value == pytest.approx(truth.p, rel=1e-3)
    assert (law.bounds, law.violated) == (3, 0)
    wrong = [
        *(h for h in cut if h.params < 1e9),
        *(h for d in (1e9, 4e9, 1.6e10) for h in bowl(1.0, params=1e9, tokens=d)),
    ]
    judged = lr_law(sweep_of(wrong))
    assert (judged.bounds, judged.violated) == (3, 3)
    assert judged.document()["bounds"] == {"checked": 3, "violated": 3}


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        (bowl(1.0), "extend the grid to a larger learning rate than 0.016"),
        (bowl(1e-6), "(1 lower): extend the grid to a smaller learning rate than 0.0005"),
        ([run(2.0)], "no learning rate: add the column lr"),
        (bowl(1.0, RATES[:1]), "every group ran with one learning rate"),
        (bowl(1.0, RATES[:2]), "(1 degenerate): run at least 3"),
    ],
)
def test_without_an_optimum_the_refusal_says_where_to_go(runs: list, reason: str) -> None:
    assert reason in refused(laws_of(sweep_of(runs)).lr)


def test_next_to_a_divergence_the_advice_is_a_finer_grid() -> None:
    sweep = sweep_of(bowl(1.0), [diverged(lr=0.032)])
    reason = refused(laws_of(sweep).lr)
    assert "finer rates below those that diverged" in reason
    assert "larger" not in reason


def test_regret_is_the_loss_of_the_nearest_tried_setting() -> None:
    rates = [1e-3, 2e-3, 4e-3]
    runs = [run(y, lr=lr) for lr, y in zip(rates, (2.2, 2.0, 2.1), strict=True)]
    runs += [run(y, lr=lr, tokens=2e9) for lr, y in zip(rates, (2.0, 2.1, 2.6), strict=True)]
    found = laws_of(sweep_of(runs)).regret
    assert found is not None
    assert (found.mean, found.max) == pytest.approx((0.025, 0.05))
    assert (found.worst.tokens, found.groups, found.diverged) == (2e9, 2, 0)


def test_regret_counts_the_groups_whose_nearest_setting_diverged() -> None:
    rates = [1e-3, 2e-3, 4e-3]
    runs = [run(y, lr=lr) for lr, y in zip(rates, (2.2, 2.0, 2.1), strict=True)]
    runs += [run(2.0, lr=5e-4, tokens=2e9), run(2.1, lr=1e-3, tokens=2e9)]
    found = laws_of(sweep_of(runs, [diverged(lr=2e-3, tokens=2e9)])).regret
    assert found is not None
    assert (found.mean, found.groups, found.diverged) == (0, 1, 1)


def test_an_axis_without_a_law_is_left_at_its_best() -> None:
    runs = [
        # The rates of the worse batch are written down a little nearer to the law.
        run(y + shift, lr=lr * jitter, batch_tokens=batch)
        for lr, y in zip([1e-3, 2e-3, 4e-3], (2.2, 2.0, 2.1), strict=True)
        for batch, shift, jitter in ((1e5, 0.5, 1.003), (2e5, 0, 1))
    ]
    found = laws_of(sweep_of(runs))
    assert isinstance(found.batch_tokens, NotFitted)
    assert found.regret is not None
    assert found.regret.max == 0


def test_regret_needs_a_choice() -> None:
    assert laws_of(sweep_of([run(2.0, lr=1e-3)])).regret is None
    beside = laws_of(sweep_of([*bowl(2e-3), run(2.0, lr=1e-3, tokens=2e9)])).regret
    assert beside is not None
    assert beside.groups == 1


def test_the_document_is_plain_and_finite() -> None:
    found = laws_of(Law().sweep(batches=BATCHES, noise=1e-3))
    assert isinstance(found.lr, HyperLaw)
    assert found.regret is not None
    text = json.dumps([found.lr.document(), found.regret.document()], allow_nan=False)
    law, regret = json.loads(text)
    low, high = law["interval"]["params_exponent"]
    assert low < law["params_exponent"] < high
    assert regret["mean"] <= regret["max"]
    constant = lr_law(Law().sweep([1e8], [1e9])).document()
    assert constant["interval"]["coefficient"] is None
    assert constant["params_exponent"] == 0


def regret_of(found: Sequence[Group]) -> tuple[float, float]:
    regret = fit_hyper_laws(found, resamples=100).regret
    assert regret is not None
    return regret.mean, regret.max


def test_the_laws_of_step_law_cost_little(shared_data: Path) -> None:
    mean, worst = regret_of(groups(steplaw(shared_data)))
    assert mean <= 0.0013
    assert worst <= 0.0035


def test_the_interval_of_step_laws_exponent_is_that_of_its_groups(shared_data: Path) -> None:
    law = lr_law(steplaw(shared_data), resamples=1000)
    assert law.law.optima == 17
    low, high = law.tokens_exponent.low, law.tokens_exponent.high
    assert low is not None
    assert high is not None
    # Published from rows: a standard error of 0.019; the groups tell about twice as much.
    assert 1.5 * 0.019 < (high - low) / (2 * 1.645) < 3 * 0.019


def test_misfittings_censored_groups_agree_with_the_law(shared_data: Path) -> None:
    law = lr_law(misfitting(shared_data))
    assert (law.law.optima, law.bounds) == (36, 42)
    assert law.violated <= 4
    assert "no batch" in refused(laws_of(misfitting(shared_data)).batch_tokens)


def test_kling_has_one_optimum_hence_a_constant(shared_data: Path) -> None:
    law = batch_law(kling(shared_data))
    assert law.value(1.07e9, 1e10) == pytest.approx(1.37e5, rel=0.01)
    assert "1 interior optimum: a constant" in law.reason
    assert (law.bounds, law.violated) == (1, 0)


def test_the_demo_sweep_ran_with_one_batch() -> None:
    assert "every group ran with one batch" in refused(laws_of(demo()).batch_tokens)
