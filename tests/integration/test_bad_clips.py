"""Clips that cannot be read: what a run does without them, and how many it bears."""

import json
from pathlib import Path

import pytest
from folders import data_with_broken
from ranks import series, small, train_on

from scalewright.errors import DataError


def skipped(folder: Path) -> list[tuple[int, int]]:
    """(step, clip) of all that the run's ranks listed; a step may hold a clip twice."""
    lines = [
        json.loads(line)
        for path in (folder / "skipped").glob("rank-*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert all(
        f"(clip {line['clip']}): checksum" in line["reason"] and line["shard"] for line in lines
    )
    return sorted((line["step"], line["clip"]) for line in lines)


def test_a_run_without_some_clips_is_the_same_on_any_number_of_ranks(tmp_path: Path) -> None:
    data = data_with_broken([3, 11, 20], tmp_path / "data")
    config = small("data.max_skip_share=0.5")
    alone = train_on(0, config, tmp_path / "alone", data)
    shared = train_on(2, config, tmp_path / "shared", data)
    assert {clip for _, clip in skipped(alone)} == {3, 11, 20}
    assert skipped(alone) == skipped(shared)
    for name in ("loss/train", "grad/norm", "eval/loss_all"):
        assert series(shared, name) == pytest.approx(series(alone, name), abs=1e-5), name


def test_too_many_of_them_end_the_run_and_are_listed(tmp_path: Path) -> None:
    data = data_with_broken(range(1, 41), tmp_path / "data")
    with pytest.raises(
        DataError, match=r"11 of \d+ clips could not .* data\.max_skip_share = 0\.001"
    ):
        train_on(0, small(), tmp_path / "run", data)
    assert len(skipped(tmp_path / "run")) >= 11


def test_a_run_through_a_hot_volume_is_the_same_and_leaves_it_empty(
    data_folder: Path, tmp_path: Path
) -> None:
    plain = train_on(0, small(), tmp_path / "plain", data_folder)
    config = small(f"data.hot={tmp_path / 'hot'}", "data.hot_bytes=300000", "data.ram_bytes=40000")
    staged = train_on(2, config, tmp_path / "staged", data_folder)
    for name in ("loss/train", "eval/loss_all"):
        assert series(staged, name) == pytest.approx(series(plain, name), abs=1e-5), name
    assert series(staged, "data/hot_reads")[-1] > 0
    assert series(staged, "data/hot_misses")[-1] == 0
    assert series(staged, "data/seen/collection/all")[-1] == series(staged, "data/clips")[-1] > 0
    kinds = ("picture/4x4", "picture/6x4", "video/4x4", "video/4x6")
    assert (
        sum(series(plain, f"data/seen/{kind}")[-1] for kind in kinds)
        == (series(plain, "data/clips")[-1])
    )
    assert not list((tmp_path / "hot").rglob("0*"))
