"""Different values of a column: the same as NumPy finds, in the order in which they come."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scalewright.data.distinct import distinct


@settings(deadline=None)  # Arrow is imported on the way
@given(st.lists(st.integers(-3, 2**62) | st.integers(0, 4)))
def test_first_places_and_kinds_are_those_of_the_values(values: list[int]) -> None:
    column = np.array(values, np.int64)
    first, numbers = distinct(column)
    assert first.tolist() == sorted(np.unique(column, return_index=True)[1].tolist())
    assert column[first][numbers].tolist() == values
