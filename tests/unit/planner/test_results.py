import json
import random
from pathlib import Path
from typing import Any

from unit.planner.synthetic import Truth, platform_sweep, settings, write_sweep

from planner.fit import fit_sweep
from planner.plan import make_plan
from planner.records import read_sweep
from planner.results import document, write_json


def laws_of(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    fitted = fit_sweep(read_sweep(write_sweep(folder, rows, settings())))
    return document(fitted, [make_plan(fitted, 1e13), make_plan(fitted, 1e17)])


def test_the_order_of_records_does_not_matter(tmp_path: Path) -> None:
    rows = platform_sweep(Truth(noise=1e-3))
    here = laws_of(tmp_path / "a", rows)
    random.Random(1).shuffle(rows)
    there = laws_of(tmp_path / "b", rows)
    for part in ("cells", "budgets", "laws", "plans", "warnings"):
        assert here[part] == there[part]
    assert sorted(here["used"]) == sorted(there["used"])


def test_every_refusal_and_rejection_is_in_the_document(tmp_path: Path) -> None:
    rows = platform_sweep(Truth())
    rows[3]["loss"] = 0
    laws = laws_of(tmp_path, rows)
    runs = tmp_path / "runs.jsonl"
    assert laws["rejected"] == [{"at": f"{runs}:4", "reason": "loss is 0; it must be above 0"}]
    assert laws["sweep"]["counts"] == {"used": 244, "diverged": 70, "failed": 0, "rejected": 1}
    assert {run["status"] for run in laws["stopped"]} == {"diverged"}
    assert laws["plans"][0]["refused"] is None
    assert "the limit is 300x" in laws["plans"][1]["refused"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "laws.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert list(tmp_path.iterdir()) == [path]
