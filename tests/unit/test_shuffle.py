"""Shuffles: every place once, another order for another key, neighbours together in runs."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalewright.data.shuffle import epoch_rows, key_of, permuted, shuffled

counts = st.integers(1, 3000)
keys = st.integers(0, 2**64 - 1)


@given(counts, keys)
def test_a_permutation_has_every_place_once(count: int, key: int) -> None:
    found = permuted(np.arange(count), count, key)
    assert sorted(found) == list(range(count))


@given(counts, keys, st.data())
def test_a_place_is_found_without_the_others(count: int, key: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, count - 1))
    whole = permuted(np.arange(count), count, key)
    assert permuted(np.array([place]), count, key)[0] == whole[place]


def test_every_order_of_a_few_comes_up_equally_often() -> None:
    orders = Counter(tuple(permuted(np.arange(4), 4, key_of("k", k))) for k in range(24_000))
    assert len(orders) == 24
    # 1,000 expected of each; 5 standard deviations are 155.
    assert 845 < min(orders.values()) <= max(orders.values()) < 1155


@pytest.mark.parametrize("count", [1000, 65_536, 100_003])
def test_a_permutation_is_no_straight_line(count: int) -> None:
    found = permuted(np.arange(count), count, key_of(count))
    assert abs(np.corrcoef(found, np.arange(count))[0, 1]) < 5 / np.sqrt(count)
    steps = np.abs(np.diff(found)) / count
    assert steps.mean() == pytest.approx(1 / 3, abs=0.02)


@given(counts, st.integers(1, 50), keys, st.data())
def test_an_epoch_has_every_row_once_in_whatever_parts_it_is_asked_for(
    count: int, run: int, key: int, data: st.DataObject
) -> None:
    run = min(run, count)
    cut = data.draw(st.integers(0, count))
    parts = epoch_rows(count, run, key, 0, cut), epoch_rows(count, run, key, cut, count)
    assert sorted(np.concatenate(parts)) == list(range(count))


def test_runs_stay_together() -> None:
    rows = epoch_rows(1000, 8, key_of("runs"), 0, 1000)
    together = sum((b - a) % 1000 == 1 for a, b in pairwise(rows))
    assert together >= 125 * 7


def test_keys_depend_on_every_part() -> None:
    parts = [(0, "block", 1), (0, "block", 2), (1, "block", 1), (0, "epoch", 1), ("0/block", 1)]
    assert len({key_of(*each) for each in parts}) == 4, "joined by slashes: the last is the first"
    assert np.array_equal(shuffled(np.arange(9), key_of(1)), shuffled(np.arange(9), key_of(1)))
    assert not np.array_equal(
        shuffled(np.arange(90), key_of(1)), shuffled(np.arange(90), key_of(2))
    )
