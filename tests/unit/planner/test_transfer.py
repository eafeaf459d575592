import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from unit.planner.hyper_sweeps import Law, bowl, demo, run, sweep_of

from planner.fitting.hyper import groups
from planner.fitting.laws import NotFitted
from planner.fitting.transfer import Transfer, Verdict, transfer
from planner.reading.records import Sweep

WIDTHS = (256, 512, 1024)


def sweep(exponent: float, noise: float = 3e-4, seed: int = 0, tokens: float = 0.1) -> Sweep:
    """Three widths at four lengths, N = width² · 1000, lr* = ... width^exponent."""
    return Law(p=exponent / 2, q=tokens).sweep(
        sizes=[1000.0 * width**2 for width in WIDTHS],
        tokens=(1e9, 2e9, 4e9, 8e9),
        rates=tuple(2.5e-4 * 2.0**power for power in range(8)),
        noise=noise,
        seed=seed,
        width=lambda params: round(math.sqrt(params / 1000)),
    )


def verdict_of(made: Sweep) -> Transfer:
    found = transfer(groups(made), resamples=400)
    assert isinstance(found, Transfer)
    return found


def why_not(made: Sweep) -> str:
    found = transfer(groups(made))
    assert isinstance(found, NotFitted)
    return found.reason


def test_an_optimum_that_stays_transfers() -> None:
    found = verdict_of(sweep(0.0))
    assert found.verdict is Verdict.TRANSFERS
    assert found.widths == (256, 1024)
    assert found.text.startswith("transfers: from width 256 to 1024 lr* changes by x")
    assert "at equal tokens" in found.text


def test_an_optimum_that_falls_with_width_moves() -> None:
    found = verdict_of(sweep(-0.8))
    assert found.verdict is Verdict.MOVES
    assert found.exponent.value == pytest.approx(-0.8, abs=0.1)
    assert found.factor.value == pytest.approx(4**-0.8, rel=0.15)
    assert found.factor.low is not None
    assert found.factor.high is not None
    assert found.factor.low < found.factor.value < found.factor.high < 1


def test_a_noisy_sweep_is_undecided_and_says_what_to_run() -> None:
    found = verdict_of(sweep(-0.2, noise=1e-2))
    assert found.verdict is Verdict.UNDECIDED
    assert "would decide it: sweep the learning rate of more groups at widths 256 and 1024" in (
        found.text
    )
    assert found.noise_factor is not None
    assert found.noise_factor > 1.3


def test_the_exponents_interval_covers() -> None:
    hits = 0
    for seed in range(60):
        exponent = verdict_of(sweep(-0.3, noise=1e-3, seed=seed)).exponent
        assert exponent.low is not None
        assert exponent.high is not None
        hits += exponent.low <= -0.3 <= exponent.high
    assert 48 <= hits <= 59


def test_tokens_are_held_where_the_optima_tell_them_from_width() -> None:
    # Wider models see fewer tokens, as along a budget; lr* follows tokens alone.
    made = sweep(0.0, tokens=0.5)
    along = [h for h in made.runs if h.params * h.tokens < 1.2e18]
    found = verdict_of(sweep_of(along))
    assert found.law.variables == ("tokens", "width")
    assert found.exponent.value == pytest.approx(0, abs=0.1)


def at(width: int, tokens: float, lr_star: float) -> list:
    return bowl(lr_star, width=width, params=1e3 * width**2, tokens=tokens)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [((1e9, 1e9, 1e9), "at equal tokens"), ((1e9, 2e9, 4e9), "where tokens change too")],
)
def test_three_optima_carry_the_width_alone(tokens: Sequence[float], words: str) -> None:
    runs = [h for w, d in zip(WIDTHS, tokens, strict=True) for h in at(w, d, 3e-3)]
    found = verdict_of(sweep_of(runs))
    assert found.law.variables == ("width",)
    assert words in found.text


def test_a_move_that_costs_less_than_the_noise_is_not_called_one() -> None:
    made = sweep(-0.5, noise=1e-4)
    found = groups(made)
    loud = [replace(group, noise=0.1) for group in found]
    assert verdict_of(made).verdict is Verdict.MOVES
    judged = transfer(loud)
    assert isinstance(judged, Transfer)
    assert judged.verdict is Verdict.UNDECIDED
    assert "costs less loss than the noise between runs" in judged.text


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        (bowl(3e-3), "the table has no width"),
        (at(256, 1e9, 3e-3) + at(512, 1e9, 3e-3), "2 interior optima of the learning rate, at"),
        ([h for d in (1e9, 2e9, 4e9) for h in at(256, d, 3e-3)], "at width 256: a verdict needs 3"),
        (at(256, 1e9, 1.0) + at(512, 1e9, 1.0), "extend the grid to a larger learning rate"),
        ([run(2.0, width=256)], "no learning rate"),
    ],
)
def test_without_optima_at_several_widths_there_is_no_verdict(runs: list, reason: str) -> None:
    assert reason in why_not(sweep_of(runs))


def test_the_demo_sweep_does_not_decide() -> None:
    found = verdict_of(demo())
    assert found.verdict is Verdict.UNDECIDED
    assert found.widths == (32, 192)
    assert found.factor.low is not None
    assert found.factor.high is not None
    assert found.factor.low < 1 < found.factor.high


def test_the_document_is_plain() -> None:
    document = json.loads(json.dumps(verdict_of(sweep(-0.8)).document(), allow_nan=False))
    assert document["verdict"] == "moves"
    assert document["held"] == ["tokens"]
    assert np.isfinite(document["factor"]["high"])
