"""Each doubt is raised by what it is about, and by nothing else."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from unit.planner.hyper_sweeps import bowl, grid, run
from unit.planner.hyper_sweeps import sweep_of as tuned
from unit.planner.surfaces import (
    ASYMMETRIC,
    CHINCHILLA,
    KLING,
    isoflop_points,
    points,
    published,
    sweep_of,
)

from planner.findings import Finding
from planner.fitting.fit import Fit, FitOptions, fit_sweep
from planner.reading.records import Sweep

QUICK = FitOptions(resamples=0)


def fit(sweep: Sweep) -> Fit:
    return fit_sweep(sweep, QUICK)


def codes(findings: Iterable[Finding]) -> set[str]:
    return {finding.code for finding in findings}


def text(found: Fit, code: str) -> str:
    (finding,) = [each for each in found.findings if each.code == code]
    return finding.text


def test_a_good_sweep_raises_no_doubt() -> None:
    assert codes(fit(sweep_of(isoflop_points(KLING, reach=3, noise=1e-4))).findings) == set()


def test_outliers_are_named_with_what_they_do_to_the_exponent(shared_data: Path) -> None:
    found = fit(published(shared_data, "chinchilla")["chinchilla"])
    said = text(found, "outliers")
    for place in ("row 3 (loss 4.665", "row 2 (loss 5.006", "row 5 (loss 3.794"):
        assert place in said
    assert "moves from 0.565 to 0.51" in said


def test_an_outlier_is_off_by_a_percentage_not_by_a_logarithm() -> None:
    made = isoflop_points(KLING, reach=3, noise=1e-4)
    losses = made.loss * np.where(np.arange(len(made)) == 20, 0.5, 1)
    said = text(fit(sweep_of(points(made.params, made.tokens, losses))), "outliers")
    assert "-50." in said or "-49." in said


def test_a_loss_that_its_neighbours_belie_is_left_out_and_named() -> None:
    runs = [
        replace(each, row=10 * index + row)
        for index, tokens in enumerate((1e9, 2e9, 4e9))
        for row, each in enumerate(bowl(2e-3, tokens=tokens))
    ]
    broken = [replace(each, loss=0.01) if each.row == 13 else each for each in runs]
    found = fit(tuned(broken))
    said = text(found, "lone_losses")
    assert "row 13 (loss 0.01, nearby 2" in said
    assert [group.lr_edge.value for group in found.groups] == ["interior"] * 3
    assert "lone_losses" not in codes(fit(tuned(runs)).findings)


def test_a_biased_parabola_is_warned_about(shared_data: Path) -> None:
    marin = published(shared_data, "openathena")["marin_202603__dclm__llama_2"]
    said = text(fit(marin), "parabola_biased")
    assert "within 4x of the best size is 0.376; over the full width it would be 0.424" in said
    drifting = sweep_of(isoflop_points(ASYMMETRIC, reach=8, drift=3))
    assert "parabola_biased" in codes(fit(drifting).findings)
    assert "parabola_biased" not in codes(fit(sweep_of(isoflop_points(KLING, reach=2))).findings)


def test_sizes_that_move_with_tokens_are_ill_conditioned() -> None:
    N = np.geomspace(1e8, 1e10, 24)
    D = 20 * N * np.tile([0.99, 1.0, 1.01], 8)
    made = points(N, D, [CHINCHILLA.loss(n, d) for n, d in zip(N, D, strict=True)])
    assert "ill_conditioned" in codes(fit(sweep_of(made)).findings)


def test_edges_are_counted() -> None:
    made = isoflop_points(KLING, reach=4)
    cut = made.only(made.params > 0.9 * KLING.best_params(3e18))
    said = text(fit(sweep_of(cut)), "budgets_at_edge")
    assert "smallest size is best" in said


def test_losses_of_another_shape_are_said_to_be() -> None:
    made = isoflop_points(KLING, reach=3)
    bent = points(
        made.params, made.tokens, made.loss * (1 - 0.2 * (made.flops == made.flops.max()))
    )
    found = codes(fit(sweep_of(bent)).findings)
    assert {"surface_misses_minima", "forecast_off"} <= found


def test_a_forecast_that_is_half_off_is_refused() -> None:
    made = isoflop_points(KLING, reach=3)
    for factor, refuses in ((0.75, False), (0.25, True)):
        losses = made.loss * np.where(made.flops == made.flops.max(), factor, 1)
        found = fit(sweep_of(points(made.params, made.tokens, losses)))
        (finding,) = [each for each in found.findings if each.code == "forecast_off"]
        assert finding.refuses == refuses
        assert ("limit 50%" in finding.text) == refuses


def test_estimators_that_disagree_are_said_to(shared_data: Path) -> None:
    short = published(shared_data, "porian")["rw_base_short_kaplan_standard_val"]
    assert "0.539 by Huber's loss and 0.332 by least squares" in text(
        fit(short), "estimators_disagree"
    )


def test_a_censored_optimum_is_reported_and_alone_it_is_refused() -> None:
    inside = fit(tuned(grid(3e-3, 2e5)))
    assert not any(finding.refuses for finding in inside.findings)
    assert "optimum_at_edge" not in codes(inside.findings)
    outside = fit(tuned(grid(3e-3, 2e3)))
    refused = [finding for finding in outside.findings if finding.refuses]
    assert [finding.code for finding in refused] == ["nothing_fitted"]
    assert "batch: the best lies at or below the smallest tried" in refused[0].text
    assert "1 at the lower edge" in text(outside, "optimum_at_edge")


def test_the_reader_of_a_report_sees_rows_not_indices() -> None:
    sweep = tuned([replace(run(2.0, params=1e8 + row), row=row) for row in range(3)])
    assert fit(sweep).points.names == ("row 0", "row 1", "row 2")


@pytest.mark.parametrize("truth", [KLING, CHINCHILLA])
def test_a_fit_without_resamples_has_estimates_and_no_intervals(truth: object) -> None:
    found = fit(sweep_of(isoflop_points(truth, noise=1e-4)))  # type: ignore[arg-type]
    a = found.constants["huber"]["a"]
    assert a.low is None
    assert a.unknown == "0 resamples; an interval needs at least 20"


def test_minima_of_noise_alone_are_refused() -> None:
    """Losses without any law: their minima lie anywhere, and no surface describes them."""
    made = isoflop_points(KLING, reach=8)
    refused = 0
    for seed in range(6):
        noise = np.random.default_rng(seed).standard_normal(len(made))
        found = fit(sweep_of(replace(made, loss=3 + 0.1 * noise)))
        refused += any(each.refuses for each in found.findings)
        if "exponent_unknown" in codes(found.findings):
            assert "nothing is known of the best size" in text(found, "exponent_unknown")
    assert refused >= 4
    assert not any(each.refuses for each in fit(sweep_of(made)).findings)
