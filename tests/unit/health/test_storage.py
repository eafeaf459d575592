"""A folder is tried for real; what was tried is judged apart."""

from dataclasses import replace
from pathlib import Path

import pytest

from scalewright.errors import ConfigError
from scalewright.health.finding import Remedy, Verdict
from scalewright.health.storage import StorageLimits, StorageSnapshot, judge_storage, read

GIB = 1 << 30
WELL = StorageSnapshot("/mnt", None, 100 * GIB, 200 * GIB, 10**6, 10**7, 0.01)


def test_a_real_folder_is_written_read_and_left_empty(tmp_path: Path) -> None:
    look = StorageSnapshot(**read({"folder": str(tmp_path)}))
    assert look.error is None
    assert look.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_tells_why(tmp_path: Path) -> None:
    look = StorageSnapshot(**read({"folder": str(tmp_path / "absent")}))
    finding = judge_storage(look, 1.0, StorageLimits())
    assert finding.verdict is Verdict.FAIL
    assert "No such file" in finding.reason
    assert finding.remedy is Remedy.NONE  # storage is no node's fault


def test_a_full_disk_is_an_error_of_the_try() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    look = StorageSnapshot(**read({"folder": str(full)}))
    assert look.error is not None


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, Verdict.PASS),
        ({"free_bytes": 19 * GIB}, Verdict.WARN),
        ({"free_bytes": GIB // 2}, Verdict.FAIL),
        ({"free_inodes": 10}, Verdict.FAIL),
        ({"free_inodes": 0, "total_inodes": 0}, Verdict.PASS),  # volumes that count none
        ({"took_s": 6.0}, Verdict.WARN),
        ({"error": "came back different"}, Verdict.FAIL),
    ],
)
def test_the_judge(change: dict[str, object], verdict: Verdict) -> None:
    look = replace(WELL, **change)  # type: ignore[arg-type]
    assert judge_storage(look, 1.0, StorageLimits()).verdict is verdict


def test_limits_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="fail_free_bytes"):
        StorageLimits(warn_free_bytes=1, fail_free_bytes=2)
