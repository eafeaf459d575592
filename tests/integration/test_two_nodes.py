"""Two nodes: weights sharded within each and replicated over both, under Ray Train."""

from pathlib import Path

import pytest
from clusters import ray_head, ray_node
from commands import SMALL
from ranks import small, train_on

from scalewright.events import EVENTS_FILE, Metrics, read_events

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def series(folder: Path, name: str) -> list[float]:
    events, _ = read_events(folder / EVENTS_FILE, 0, max_bytes=1 << 24)
    return [e.values[name] for e in events if isinstance(e, Metrics) and name in e.values]


def test_two_by_two_over_two_raylets_is_one_worker(data_folder: Path, tmp_path: Path) -> None:
    alone = train_on(0, small(), tmp_path / "alone", data_folder)
    home = tmp_path / "home"
    home.mkdir()
    with ray_head(num_cpus=2) as head, ray_node(head, num_cpus=2):
        done = head.pretrain(
            home, *SMALL, "name=hybrid", "log.sample_clips=0", f"data.path={data_folder}",
            "parallel.workers=4", "parallel.min_workers=4", "parallel.shard_size=2",
            "parallel.environment=['SCALEWRIGHT_SEEN=yes']",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    run = home / "runs" / "hybrid"
    assert set(series(run, "elastic/world_size")) == {4.0}
    for name in ("loss/train", "grad/norm", "eval/loss_all"):
        assert series(run, name) == pytest.approx(series(alone, name), abs=1e-5), name
