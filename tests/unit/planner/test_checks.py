import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.planner.tables import published

from planner.findings import Finding
from planner.reading.checks import check
from planner.reading.records import Accounting, Run, Stopped, Sweep

UNSTATED = Accounting()
BUDGETS = (3e17, 6e17, 1e18, 3e18, 6e18)


def law(N: float, D: float) -> float:
    """Kling's loss (arXiv 2411.17470, Eq. 15)."""
    return 0.4856 + 0.0373 * (D / 1e9) ** -0.2917 + 0.0082 * (N / 1e9) ** -0.3188


def made(
    budgets: Sequence[float] = BUDGETS,
    ratios: Iterable[float] = (0.25, 0.5, 1, 2, 4),
    noise: float = 0.0,
    seed: int = 0,
    **changes: Any,
) -> list[Run]:
    """IsoFLOP runs by C = 6ND around N = 1.6 C^0.41."""
    rng = np.random.default_rng(seed)
    runs = []
    for C in budgets:
        for ratio in ratios:
            N = 1.6 * C**0.41 * ratio
            D = C / 6 / N
            loss = law(N, D) * (1 + noise * rng.standard_normal())
            place = len(runs) + 2
            runs.append(Run(place, f"row {place}", N, D, C, loss, **changes))
    return runs


def found(
    runs: Sequence[Run], stopped: Sequence[Stopped] = (), accounting: Accounting = UNSTATED
) -> dict[str, Finding]:
    findings = check(runs, stopped, accounting)
    assert sorted(findings, key=lambda f: not f.refuses) == findings
    assert all(str(finding.text) for finding in findings)
    return {finding.code: finding for finding in findings}


def refused(runs: Sequence[Run], sweep: Sweep) -> set[str]:
    findings = check(runs, sweep.stopped, sweep.accounting)
    return {finding.code for finding in findings if finding.refuses}


def some(
    runs: Sequence[Run], share: float, change: Callable[[Run], Run], seed: int = 1
) -> list[Run]:
    """The runs with a random share of them changed."""
    chosen = set(random.Random(seed).sample(range(len(runs)), round(share * len(runs))))
    return [change(run) if k in chosen else run for k, run in enumerate(runs)]


def in_bits(run: Run) -> Run:
    return replace(run, loss=run.loss / math.log(2))


@pytest.fixture(scope="module")
def real(shared_data: Path) -> Mapping[str, Sweep]:
    return published(shared_data)


def test_an_honest_sweep_has_no_findings() -> None:
    assert found(made(noise=1e-3)) == {}


@settings(max_examples=25)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.0, 3e-4, 5e-3]),
    st.integers(4, 7),
    st.floats(0.3, 3.0),
    st.floats(-0.2, 0.0),
)
def test_sweeps_of_a_known_law_are_never_refused(
    seed: int, noise: float, budgets: int, level: float, slope: float
) -> None:
    """Nor those whose exact FLOPs follow 6ND only up to a smooth trend over N."""
    runs = made(np.geomspace(1e17, 3e19, budgets).tolist(), noise=noise, seed=seed)
    assert not any(finding.refuses for finding in check(runs, (), UNSTATED))
    runs = [replace(r, flops=r.flops * level * (r.params / 1e8) ** slope) for r in runs]
    assert check(runs, (), Accounting("exact")) == []


def test_published_sweeps_are_not_refused(real: Mapping[str, Sweep]) -> None:
    for name, sweep in real.items():
        assert not [finding for finding in sweep.findings if finding.refuses], name


def test_published_sweeps_have_the_findings_they_deserve(real: Mapping[str, Sweep]) -> None:
    texts = {
        name: {finding.code: finding.text for finding in sweep.findings}
        for name, sweep in real.items()
    }
    assert set(texts["chinchilla"]) == {"flops_assumed_6nd"}
    assert all(not codes for name, codes in texts.items() if name.startswith("porian"))
    assert texts["steplaw"]["diverged"].startswith("181 runs diverged")
    assert set(texts["misfitting"]) == {"duplicate_rows", "repeated_runs"}
    assert "1.22 to 4.47 times 6ND" in texts["misfitting_no_emb"]["flops_contradict"]
    assert texts["demo"]["diverged"].startswith("1 run diverged")
    assert "lowest learning rate that did is 0.032" in texts["demo"]["diverged"]


@pytest.mark.parametrize("seed", range(4))
def test_parts_of_published_sweeps_are_not_refused_for_their_units(
    real: Mapping[str, Sweep], seed: int
) -> None:
    """Thirty runs of each leave every curve more room to bend than the whole does."""
    for sweep in real.values():
        part = random.Random(seed).sample(sweep.runs, min(30, len(sweep.runs)))
        assert not refused(part, sweep), sweep.source


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("chinchilla", 0.1),
        ("chinchilla", 0.5),
        ("openathena llama_3__raw_loss", 0.3),
        ("openathena marin_202603__dclm__llama_2", 0.8),
        ("porian rw_tuned_short_const_standard_val", 0.5),
        ("steplaw", 0.1),
        ("steplaw", 0.5),
        ("misfitting", 0.3),
        ("kling", 0.5),
        ("demo", 0.5),
    ],
)
def test_bits_among_nats_are_found_in_doctored_sweeps(
    real: Mapping[str, Sweep], name: str, share: float
) -> None:
    sweep = real[name]
    assert "loss_units_mixed" in refused(some(sweep.runs, share, in_bits), sweep)


def test_all_losses_in_bits_are_one_unit(real: Mapping[str, Sweep]) -> None:
    for sweep in real.values():
        assert "loss_units_mixed" not in refused([in_bits(run) for run in sweep.runs], sweep)


def test_bits_are_counted_and_the_rows_named() -> None:
    runs = made(noise=1e-3)
    runs[3:6] = map(in_bits, runs[3:6])
    text = found(runs)["loss_units_mixed"].text
    assert text.startswith("3 of 25 losses lie a factor 1.443")
    assert "rows 5, 6, 7" in text
    assert "--where" in text


def test_a_learning_rate_too_high_is_no_matter_of_units() -> None:
    runs = [r for lr in (1e-3, 2e-3, 4e-3) for r in made(noise=1e-3, lr=lr)]
    assert found(runs, accounting=Accounting("6nd")) == {}
    high = [in_bits(replace(r, lr=8e-3)) for r in made(noise=1e-3, seed=3)]
    assert "loss_units_mixed" not in found([*runs, *high])


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
def test_embeddings_counted_in_some_rows_are_found(real: Mapping[str, Sweep], share: float) -> None:
    without = {run.row: run.params for run in real["misfitting_no_emb"].runs}
    sweep = real["misfitting"]
    mixed = some(sweep.runs, share, lambda run: replace(run, params=without[run.row]))
    assert "params_mixed" in refused(mixed, sweep)


@pytest.mark.parametrize("name", ["chinchilla", "porian rw_base_long_kaplan_kaplan_train"])
def test_a_constant_share_of_embeddings_is_found_too(real: Mapping[str, Sweep], name: str) -> None:
    mixed = some(real[name].runs, 0.4, lambda run: replace(run, params=run.params * 1.25))
    findings = check(mixed, (), UNSTATED)
    assert "params_mixed" in {finding.code for finding in findings if finding.refuses}


def test_one_width_and_depth_with_two_sizes_is_named() -> None:
    runs = [replace(run, width=k, depth=4) for k, run in enumerate(made(), start=1)]
    assert "params_mixed" not in found(runs)
    runs[7] = replace(runs[7], width=runs[4].width)
    finding = found(runs, accounting=Accounting("exact"))["params_mixed"]
    assert finding.refuses
    assert "rows 9 and 6 are of one width and depth" in finding.text


def test_one_token_count_and_budget_with_two_sizes_is_named() -> None:
    runs = made()
    twin = replace(runs[3], row=99, params=runs[3].params * 1.3)
    assert "rows 5 and 99 are of one tokens and flops" in found([*runs, twin])["params_mixed"].text
    near = replace(twin, params=runs[3].params * 1.1)
    assert "params_mixed" not in found([*runs, near])


def test_another_architecture_from_one_size_on_is_not_two_ways_to_count() -> None:
    ratios = np.geomspace(0.2, 5, 9).tolist()
    runs = [replace(r, flops=r.flops * (1.5 if r.params > 2e8 else 1)) for r in made(ratios=ratios)]
    assert "params_mixed" not in found(runs)


def test_exact_flops_that_follow_two_curves_are_a_doubt_only() -> None:
    """Samples of two lengths differ in attention, and so in the FLOPs of a token."""
    ratios = np.geomspace(0.2, 5, 9).tolist()
    runs = some(made(ratios=ratios), 0.5, lambda run: replace(run, flops=run.flops * 1.5))
    assert found(runs)["params_mixed"].refuses
    assert not found(runs, accounting=Accounting("exact"))["params_mixed"].refuses


@pytest.mark.parametrize(("wrong", "refuses"), [(2, False), (4, True)])
def test_flops_off_the_stated_6nd_are_named_and_refused_from_a_tenth_of_the_rows(
    wrong: int, refuses: bool
) -> None:
    runs = made()
    for k in range(wrong):
        runs[k] = replace(runs[k], flops=runs[k].flops * (1.2 + k))
    finding = found(runs, accounting=Accounting("6nd"))["flops_contradict"]
    assert finding.refuses is refuses
    assert finding.text.startswith(f"flops of {wrong} of 25 rows")
    assert f"row {wrong + 1} x{0.2 + wrong:.3g}" in finding.text
    within = [replace(run, flops=run.flops * 1.1) for run in made()]
    assert found(within, accounting=Accounting("6nd")) == {}


def test_with_few_sizes_flops_are_compared_within_each_size() -> None:
    runs = [
        Run(k, "", N, D, 6 * N * D * (1 + 3e7 / N) ** 2, law(N, D))
        for k, (N, D) in enumerate((N, D) for N in (1e7, 1e8, 1e9) for D in (1e9, 2e9, 4e9, 9e9))
    ]
    assert "smooth trend" in found(runs)["flops_contradict"].text
    runs[5] = replace(runs[5], flops=runs[5].flops / 2)
    assert "flops of 1 of 12 rows" in found(runs)["flops_contradict"].text
    assert "row 5 x0.5" in found(runs)["flops_contradict"].text


def test_flops_off_their_own_trend_are_named() -> None:
    runs = [replace(run, flops=run.flops * (run.params / 1e8) ** -0.1) for run in made()]
    runs[10] = replace(runs[10], flops=runs[10].flops * 1.6)
    for accounting in (UNSTATED, Accounting("exact")):
        finding = found(runs, accounting=accounting)["flops_contradict"]
        assert "flops of 1 of 25 rows" in finding.text
        assert "row 12 x1.6" in finding.text
        assert not finding.refuses


@pytest.mark.parametrize(
    ("factor", "unstated", "exact"),
    [
        (1e-15, True, True),
        (1 / 3, True, None),
        (1.1, None, None),
        (2, True, None),
        (30, True, None),
    ],
)
def test_flops_in_another_unit_are_refused(
    factor: float, unstated: bool | None, exact: bool | None
) -> None:
    """Stated to be exact, only what no training takes; unstated, any constant factor from 1.5."""
    runs = [replace(run, flops=run.flops * factor) for run in made()]
    for accounting, refuses in ((UNSTATED, unstated), (Accounting("exact"), exact)):
        finding = found(runs, accounting=accounting).get("flops_contradict")
        assert (finding and finding.refuses) is refuses


def test_batches_in_samples_among_tokens_are_refused(real: Mapping[str, Sweep]) -> None:
    def in_samples(run: Run) -> Run:
        return replace(run, batch_tokens=round((run.batch_tokens or 0) / 2048) or 1)

    for name in ("steplaw", "kling", "demo"):
        for share in (0.1, 0.6):
            mixed = some(real[name].runs, share, in_samples)
            assert "batch_units_mixed" in refused(mixed, real[name]), (name, share)


def test_all_batches_in_samples_are_a_warning(real: Mapping[str, Sweep]) -> None:
    sweep = real["steplaw"]
    runs = [replace(run, batch_tokens=(run.batch_tokens or 0) / 2048) for run in sweep.runs]
    finding = found(runs)["batch_in_samples"]
    assert "batches of 16 to 2048 would take" in finding.text
    assert not finding.refuses


def test_steps_tell_samples_from_small_batches_of_tokens() -> None:
    small = [replace(r, batch_tokens=64, steps=r.tokens / 64) for r in made()]
    assert "batch_in_samples" not in found(small)
    samples = [replace(r, batch_tokens=64, steps=r.tokens / 64 / 512) for r in made()]
    assert "batch_in_samples" in found(samples)
    large = [replace(r, batch_tokens=2**20, steps=r.tokens / 2**20) for r in made()]
    assert "batch_units_mixed" in found([*samples, *large])
    assert "batch_units_mixed" not in found([*small, *large])


@pytest.mark.parametrize(("budgets", "few"), [(1, True), (2, True), (3, True), (4, False)])
def test_few_budgets(budgets: int, few: bool) -> None:
    runs = [
        replace(r, flops=r.flops * (1 + 0.002 * k)) for k, r in enumerate(made(BUDGETS[:budgets]))
    ]
    assert ("few_budgets" in found(runs)) is few
    nominal = [replace(run, budget_flops=1e18) for run in made()]
    assert found(nominal)["few_budgets"].text.startswith("1 budget (1e+18 FLOPs)")


def test_one_size_one_token_count_and_one_learning_rate() -> None:
    one_size = [replace(r, params=1e8 * (1 + 1e-6 * k)) for k, r in enumerate(made())]
    assert found(one_size, accounting=Accounting("exact"))["one_size"].text.startswith(
        "one model size (params 1e+08)"
    )
    one_count = [replace(r, tokens=1e9, flops=6e9 * r.params) for r in made()]
    codes = found(one_count)
    assert codes["one_token_count"].text.startswith("one token count (1e+09)")
    assert "collinear_tokens_per_param" not in codes
    one_rate = found(made(lr=1e-3))["one_learning_rate"]
    assert "one learning rate (0.001)" in one_rate.text
    assert not one_rate.refuses
    two = [replace(run, lr=1e-3 * (1 + k % 2)) for k, run in enumerate(made())]
    assert found(two) == {}


def test_fixed_tokens_per_parameter_cannot_tell_n_from_d() -> None:
    runs = [replace(r, tokens=20 * r.params, flops=120 * r.params**2) for r in made()]
    finding = found(runs)["collinear_tokens_per_param"]
    assert "correlation +1.0000" in finding.text
    assert "tokens per parameter 20 to 20" in finding.text
    assert not finding.refuses


def test_repeats_estimate_the_noise() -> None:
    runs = [r for seed in range(20) for r in made(noise=0.003, seed=seed, lr=1e-3)]
    finding = found(runs)["repeated_runs"]
    assert finding.text.startswith("500 runs repeat 25 settings")
    spread = float(finding.text.partition("within a setting is ")[2].partition("%")[0])
    assert spread == pytest.approx(0.3, abs=0.03)
    assert "differ in more than the seed" not in finding.text
    assert "differ in more" in found([replace(r, lr=None) for r in runs])["repeated_runs"].text


def test_the_spread_of_a_pair_is_its_sample_standard_deviation() -> None:
    runs = [replace(run, lr=1e-3, loss=loss) for run in made() for loss in (0.99, 1.01)]
    assert "within a setting is 1.41%" in found(runs)["repeated_runs"].text


def test_diverged_runs_bound_the_learning_rate_from_above() -> None:
    runs = [r for lr in (1e-3, 2e-3) for r in made(lr=lr, noise=1e-3)]
    low = replace(runs[0], lr=1e-5, loss=2 * runs[0].loss)
    high = replace(runs[0], lr=3e-2, loss=2 * runs[0].loss)
    stopped = [Stopped(90, "a", "diverged", lr=1e-2), Stopped(91, "b", "failed", lr=1e-4)]
    text = found([*runs, low, high], stopped)["diverged"].text
    assert text.startswith("3 runs diverged (1 without a loss, 2 above 1.5 times the best")
    assert "lowest learning rate that did is 0.01" in text
    assert "diverged" not in found(runs, stopped[1:])


def test_order_of_the_rows_changes_no_verdict(real: Mapping[str, Sweep]) -> None:
    for name in ("chinchilla", "kling", "demo", "misfitting_no_emb"):
        sweep = real[name]
        runs = some(sweep.runs, 0.4, in_bits)
        shuffled = random.Random(5).sample(runs, len(runs))
        assert refused(shuffled, sweep) == refused(runs, sweep)
