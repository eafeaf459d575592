"""The laws a sweep is designed for."""

import json
from pathlib import Path

import pytest

from planner.designing.prior import CHINCHILLA, KLING, read_prior
from planner.errors import InputError
from planner.fitting.surface import Surface


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_a_fitted_law_is_a_prior(tmp_path: Path) -> None:
    laws = {
        "surface": {
            "huber": {"E": 0.5, "A": 10.0, "B": 20.0, "alpha": 0.3, "beta": 0.35, "a": 0.5}
        },
        "hyper": {
            "laws": {
                "lr": {"coefficient": 2.0, "params_exponent": -0.3, "tokens_exponent": 0.1},
                "batch_tokens": {"not_fitted": "one batch"},
            }
        },
    }
    prior = read_prior(str(write(tmp_path / "laws.json", laws)))
    assert prior.surface == Surface(0.5, 10.0, 20.0, 0.3, 0.35)
    assert prior.lr is not None
    assert prior.lr.value(1e6, 1e9) == pytest.approx(2 * 1e6**-0.3 * 1e9**0.1)
    assert prior.batch_tokens is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"surface": {"huber": {"not_fitted": "too few"}}}, "no fitted surface"),
        ({"surface": {}}, "no fitted surface"),
        ({"surface": {"huber": {"E": 0.5}}}, "has A = None"),
        ({"groups": {"a": {}}}, "of one group (this one holds several)"),
        ([], "no fitted surface"),
        ({"surface": {"huber": {"E": 0, "A": 1, "B": 1, "alpha": 1, "beta": 1}}}, "E = 0"),
    ],
)
def test_a_prior_that_is_none_says_what_is_missing(
    tmp_path: Path, content: object, told: str
) -> None:
    path = write(tmp_path / "laws.json", content)
    with pytest.raises(InputError) as refused:
        read_prior(str(path))
    assert told in str(refused.value)
    (tmp_path / "text").write_text("no JSON")
    with pytest.raises(InputError, match="not JSON"):
        read_prior(str(tmp_path / "text"))


def test_learning_rates_and_batches_are_those_of_klings_law() -> None:
    """Figure 4 of arXiv 2411.17470: 1.07B parameters, 10B tokens: 1.78e-4 and 1.42e5."""
    assert KLING.lr is not None
    assert KLING.batch_tokens is not None
    assert KLING.lr.value(1.07e9, 1e10) == pytest.approx(1.78e-4, rel=0.01)
    assert KLING.batch_tokens.value(1.07e9, 1e10) == pytest.approx(1.42e5, rel=0.01)
    assert KLING.surface.loss(1.07e9, 1e10) == pytest.approx(0.51268, abs=1e-5)
    assert CHINCHILLA.surface.a == pytest.approx(0.5139, abs=1e-4)
