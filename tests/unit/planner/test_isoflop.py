from pathlib import Path

import numpy as np
import pytest
from unit.planner.surfaces import (
    ASYMMETRIC,
    BUDGETS,
    CHINCHILLA,
    KLING,
    fitted,
    isoflop_points,
    points,
    published_points,
)

from planner.fitting.frontier import Frontier, six_nd
from planner.fitting.isoflop import ComputeLaws, IsoFlop, budget_masks, fit_isoflop
from planner.fitting.laws import FloorLaw, NotFitted
from planner.fitting.minimum import pooled_noise
from planner.fitting.surface import Points, Surface

PORIAN = {  # published exponents of N*, arXiv 2406.19146
    "rw_base_long_kaplan_kaplan_train": 0.834,
    "rw_base_long_kaplan_standard_val": 0.701,
    "rw_base_short_kaplan_standard_val": 0.604,
    "rw_base_short_chinchilla_standard_val": 0.571,
    "rw_tuned_short_const_standard_val": 0.497,
}


def frontier(made: Points) -> Frontier:
    return six_nd(made.params.min() / 1e3, made.params.max() * 1e3)


def curves(made: Points, judged: bool = True) -> IsoFlop:
    return fit_isoflop(made, fitted(made).surfaces if judged else None, frontier(made))


def laws(made: Points) -> ComputeLaws:
    found = curves(made).laws
    assert isinstance(found, ComputeLaws), found
    return found


@pytest.mark.parametrize("truth", [KLING, CHINCHILLA])
def test_the_laws_of_a_known_surface_are_found(truth: Surface) -> None:
    found = laws(isoflop_points(truth, reach=2))
    assert found.size.exponent("C").value == pytest.approx(truth.a, abs=2e-3)
    assert found.tokens.exponent("C").value == pytest.approx(1 - truth.a, abs=2e-3)
    assert found.size.value(C=1e19) == pytest.approx(truth.best_params(1e19), rel=0.02)
    assert found.exponents["akima"] == pytest.approx(truth.a, abs=5e-3)
    assert isinstance(found.loss_floor, FloorLaw)
    best = truth.loss(truth.best_params(1e19), 1e19 / 6 / truth.best_params(1e19))
    assert found.loss_floor.value(C=1e19) == pytest.approx(best, rel=2e-3)


def test_noise_within_the_curves_tells_the_scatter_about_the_law() -> None:
    """Of five budgets alone the scatter has 3 degrees of freedom; the curves add theirs."""
    made = isoflop_points(KLING, noise=3e-4, seed=3)
    found = laws(made)
    parabolas = [optimum.parabola for _, optimum in curves(made).optima]
    assert found.size.df == 3 + sum(parabola.df for parabola in parabolas)
    assert found.size.df > 12
    noise = pooled_noise(parabolas)
    assert noise == pytest.approx(3e-4, rel=0.3)
    expected = noise * np.sqrt(np.mean([parabola.unit_se_ln_x**2 for parabola in parabolas]))
    assert found.size.residual_sd == pytest.approx(expected, rel=0.3)


def test_budgets_that_disagree_by_more_than_noise_keep_their_own_scatter() -> None:
    made = isoflop_points(KLING, noise=1e-5)
    shift = np.where(made.flops > 2e18, 1.25, 0.8)  # whole budgets of other sizes
    moved = points(made.params * shift, made.tokens / shift, made.loss)
    found = laws(moved)
    assert found.size.df == 3
    assert found.size.residual_sd is not None
    assert found.size.residual_sd > 0.05


@pytest.mark.parametrize("config", PORIAN)
def test_porians_exponents_within_three_hundredths(shared_data: Path, config: str) -> None:
    found = laws(published_points(shared_data, "porian")[config])
    assert found.size.exponent("C").value == pytest.approx(PORIAN[config], abs=0.03)
    assert found.exponents["akima"] == pytest.approx(PORIAN[config], abs=0.015)


def test_marins_parabola_is_biased_by_its_width(shared_data: Path) -> None:
    found = laws(published_points(shared_data, "openathena")["marin_202603__dclm__llama_2"])
    assert found.exponents["parabola"] == pytest.approx(0.376, abs=2e-3)
    assert found.exponents["full width"] == pytest.approx(0.424, abs=2e-3)


def test_the_bias_of_a_drifting_off_centre_grid_is_measured() -> None:
    """arXiv 2603.22339: an asymmetric surface, a grid that drifts to 3x, +-2x: 0.25 -> 0.232."""
    made = isoflop_points(ASYMMETRIC, reach=8, drift=3)
    found = laws(made)
    assert found.exponents["full width"] < 0.9 * ASYMMETRIC.a
    assert found.bias is not None
    assert found.exponents["parabola"] - found.bias == pytest.approx(ASYMMETRIC.a, abs=2e-3)
    off = [o.bias_ln_params for _, o in curves(made).optima]
    assert all(bias is not None and abs(bias) > 0.01 for bias in off)


def test_budgets_are_told_apart_and_stragglers_left_out() -> None:
    made = isoflop_points(KLING)
    masks = budget_masks(made)
    assert list(masks) == pytest.approx(BUDGETS)
    assert all(mask.sum() == 9 for mask in masks.values())
    lone = points(
        np.r_[made.params, 1e8, 2e8], np.r_[made.tokens, 7e9, 1e11], np.r_[made.loss, 0.6, 0.5]
    )
    assert [mask.sum() for mask in budget_masks(lone).values()] == [9] * 5


def test_runs_a_few_per_cent_off_their_budget_are_levelled() -> None:
    clean = isoflop_points(CHINCHILLA, reach=3)
    off = np.random.default_rng(0).uniform(-0.06, 0.06, len(clean))
    tokens = clean.tokens * np.exp(off)
    loss = [CHINCHILLA.loss(n, d) for n, d in zip(clean.params, tokens, strict=True)]
    straggling = points(clean.params, tokens, loss)
    raw, level = curves(straggling, judged=False), curves(straggling)
    error = {
        name: np.abs([o.params / CHINCHILLA.best_params(c) - 1 for c, o in each.optima]).max()
        for name, each in (("raw", raw), ("level", level))
    }
    assert len(level.optima) == 5
    assert error["level"] < 0.01
    assert error["raw"] > 0.03


def test_a_best_size_at_the_edge_is_no_minimum() -> None:
    low = isoflop_points(KLING, reach=4)
    cut = low.only(low.params > KLING.best_params(6e18) * 1.2)
    found = curves(cut)
    assert all(budget.optimum is None for budget in found.budgets)
    assert {budget.verdict for budget in found.budgets} == {"edge: smallest size is best"}
    assert isinstance(found.laws, NotFitted)
    assert "add sizes beyond the edge" in found.laws.reason


def test_of_two_runs_of_one_size_the_better_counts() -> None:
    made = isoflop_points(KLING)
    worse = points(
        np.r_[made.params, made.params[4]],
        np.r_[made.tokens, made.tokens[4]],
        np.r_[made.loss, made.loss[4] * 1.05],
    )
    assert curves(worse).budgets[0].loss == pytest.approx(curves(made).budgets[0].loss, rel=1e-3)
