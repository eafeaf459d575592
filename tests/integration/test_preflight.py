"""Nodes are compared before they are used: one that differs is left out, and the run goes on."""

import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from clusters import ray_head, ray_node
from commands import ROOT, SMALL

from scalewright.cluster.ledger import Ledger
from scalewright.events import EVENTS_FILE, Notice, read_events

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_node_of_another_image_is_refused(data_folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    everywhere = {
        "SCALEWRIGHT_IMAGE": "sha256:a",
        "SCALEWRIGHT_SHIP_CODE": "0",
        "PYTHONPATH": os.pathsep.join((str(ROOT / "platform"), str(ROOT))),
    }
    with ExitStack() as stack:
        head = stack.enter_context(ray_head(0, everywhere))
        for index, image in enumerate(("sha256:b", "sha256:a", "sha256:a")):
            own = {"SCALEWRIGHT_IMAGE": image}
            stack.enter_context(ray_node(head, 1, f"machine-{index}", index + 2, own))
        done = head.pretrain(
            home, *SMALL, "name=mixed", "log.sample_clips=0", f"data.path={data_folder}",
            "parallel.workers=2", "parallel.min_workers=2",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    run = home / "runs" / "mixed"
    events, _ = read_events(run / EVENTS_FILE, 0, max_bytes=1 << 24)
    notices = [event for event in events if isinstance(event, Notice)]
    (launched,) = (event for event in notices if event.kind == "launched")
    assert launched.fields["nodes"] == {"machine-1": 1, "machine-2": 1}
    ends = [e.fields for e in notices if e.kind == "preflight" and "took_s" in e.fields]
    assert "image is 'sha256:b'" in ends[0]["refused"]["machine-0"]
    assert sorted(name for one in ends for name in one["measured"]) == ["machine-1", "machine-2"]
    kept = json.loads((run / "preflight.json").read_text())
    assert {name: one["devices"]["light"][0]["device"] for name, one in kept.items()} == {
        "machine-1": "cpu", "machine-2": "cpu",
    }  # fmt: skip
    assert not Ledger(home / "ledger.db").history("machine-0")
