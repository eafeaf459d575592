"""The budget of clips that cannot be read."""

from pathlib import Path

import pytest

from scalewright.data.loader import Skip
from scalewright.data.sample import Entry
from scalewright.errors import DataError
from scalewright.train.skips import ALWAYS_ALLOWED, SkipList

SKIP = Skip(3, Entry(1, "000000.tar", 512, 10, 0, 1, 4, 4, 2), "gone")


def test_few_are_borne_however_few_were_read_and_more_by_the_share(tmp_path: Path) -> None:
    skips = SkipList(tmp_path, 0, 1, 0.01)
    for _ in range(ALWAYS_ALLOWED):
        skips(SKIP)
    with pytest.raises(DataError, match=r"11 of 11 clips could not be read, more than"):
        skips(SKIP)
    skips.clips_read = lambda: 5000
    for _ in range(50 - ALWAYS_ALLOWED - 1):
        skips(SKIP)
    with pytest.raises(DataError, match=r"51 of 5051 clips"):
        skips(SKIP)


def test_a_share_of_nothing_bears_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 1 clips could not be read.*The last: gone"):
        SkipList(tmp_path, 0, 1, 0.0)(SKIP)
