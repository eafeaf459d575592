"""Stated 90% intervals hold the truth about nine times of ten, over simulated sweeps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_intervals_cover_what_they_state() -> None:
    """The benchmark itself, with 100 sweeps of each surface: 90% may come out as 82 to 98."""
    script = ROOT / "benchmarks" / "planner_coverage.py"
    arguments = ["--sweeps", "100", "--resamples", "200", "--json"]
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    found = json.loads(done.stdout)
    assert set(found) == {"kling", "asymmetric"}
    for case, rows in found.items():
        for what in ("surface exponent", "isoFLOP exponent", "N* at 1e22"):
            assert 0.82 <= rows[what]["covers"] <= 0.98, (case, what, rows[what])
    biased = found["asymmetric"]["parabola over all sizes, relative error"]
    assert biased["error"] < -0.1
