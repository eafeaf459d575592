import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import wording
from planner.fitting.laws import Estimate

SIZES = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
numbers = st.floats(1e-12, 1e15)


def read(text: str) -> float:
    number, _, suffix = text.replace(",", "").partition(" ")
    return float(number) * SIZES.get(suffix, 1.0)


@given(numbers)
def test_a_number_in_words_is_the_number_to_three_digits(value: float) -> None:
    for words in (wording.count, wording.scientific, wording.plain):
        assert math.isclose(read(words(value)), value, rel_tol=0.0051), words(value)


@given(st.floats(1, 1e14), st.floats(1, 1e14))
def test_larger_counts_never_read_smaller(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert read(wording.count(low)) <= read(wording.count(high))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (wording.count(2.43e9), "2.43 B"),
        (wording.count(999_600), "1 M"),
        (wording.count(402), "402"),
        (wording.scientific(1e22), "1e22"),
        (wording.scientific(5.85e20), "5.85e20"),
        (wording.scientific(2.05e-4), "2.05e-4"),
        (wording.scientific_enough(1.00499e18), "1.01e18"),
        (wording.scientific_enough(1e18), "1e18"),
        (wording.scientific_enough(9.994e17), "1e18"),
        (wording.scientific_enough(math.inf), "inf"),
        (wording.whole(12_300.4), "12,300"),
        (wording.percent(0.00094), "0.09%"),
        (wording.percent(0.204, signed=True), "+20%"),
        (wording.percent(-1e-7, signed=True), "0%"),
        (wording.loss(2.0217), "2.0217"),
        (wording.loss(0.0123456), "0.01235"),
        (wording.factor(1.1899), "×1.19"),
        (wording.many(1, "group"), "1 group"),
        (wording.many(1200, "group"), "1,200 groups"),
        (wording.sentence("no law: why"), "No law: why."),
        (wording.interval(Estimate(2, 1, 3), wording.plain), "1 to 3"),
        (wording.interval(Estimate(2, unknown="few"), wording.plain), "not known"),
    ],
)
def test_numbers_read_as_people_write_them(text: str, said: str) -> None:
    assert text == said


@given(numbers)
def test_a_least_cost_in_words_is_enough(value: float) -> None:
    assert value <= float(wording.scientific_enough(value)) <= 1.02 * value
