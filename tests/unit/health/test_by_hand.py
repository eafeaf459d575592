"""`python -m scalewright.health`, as an operator runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nvml.stand_in import StandIn

ROOT = Path(__file__).parents[3]


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scalewright.health", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "platform"),
            "SCALEWRIGHT_MACHINE": "rack 3, node 7",
            **environment,
        },
    )


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    process = start(*arguments, **environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture
def node(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path / "gpus")


def test_a_table_names_the_bad_gpu_and_the_exit_code_says_so(node: StandIn) -> None:
    code, out, _ = run("--check", "gpus", "--expect-gpus", "2", **node.environment)
    assert (code, "FAIL" in out) == (0, False)
    node.set(1, uncorrected=3)
    code, out, _ = run("--check", "gpus", "--expect-gpus", "2", **node.environment)
    assert code == 1
    assert "machine rack 3, node 7 (from SCALEWRIGHT_MACHINE)" in out
    bad = next(line for line in out.splitlines() if line.startswith("FAIL"))
    assert "gpus.ecc" in bad
    assert node.uuid(1) in bad
    assert bad.endswith("[reset_gpu]")


def test_shadow_tells_and_does_not_count(node: StandIn) -> None:
    node.set(1, uncorrected=3)
    told = ("--check", "gpus", "--json", "--shadow", "gpus.ecc")
    code, out, _ = run(*told, **node.environment)
    findings = {one["check"]: one for one in json.loads(out)["findings"]}
    assert code == 0
    assert findings["gpus.ecc"]["shadow"] is True
    assert findings["gpus.ecc"]["verdict"] == "fail"


def test_a_wrong_command_tells_what_there_is() -> None:
    code, _, err = run("--check", "gpu")
    assert (code, "known: gpus, host" in err) == (2, True)


def test_watching_tells_what_changes_until_it_is_ended(node: StandIn, tmp_path: Path) -> None:
    out = tmp_path / "health.jsonl"
    told = ("--check", "gpus", "--period-s", "0.2", "--watch", "--out", str(out))
    process = start(*told, **node.environment)

    def lines() -> list[dict[str, object]]:
        return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []

    def until(count: int) -> None:
        deadline = time.monotonic() + 60
        while len(lines()) < count:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    until(9)
    node.set(0, remap_failed=1)
    until(10)
    assert lines()[-1]["gpu"] == node.uuid(0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    process.communicate()
