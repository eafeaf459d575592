"""`ray job submit` to a real head that knows nothing of this tree but what is submitted."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import Head, ray_head
from commands import ROOT, SMALL

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Appended to a module of the submitted tree: every process that imports it leaves its path.
WITNESS = """
import os

with open(os.path.join(os.environ["SCALEWRIGHT_HOME"], "imported"), "a") as witness:
    witness.write(f"{os.getpid()} {__file__}\\n")
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head(num_cpus=2) as head:
        yield head


def copy_of_the_tree(folder: Path) -> Path:
    """What a user would submit, with a witness in a module that driver and workers import."""
    for name in ("platform", "planner", "jobs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, folder)
    with (folder / "platform" / "scalewright" / "train" / "worker.py").open("a") as module:
        module.write(WITNESS)
    return folder


def test_driver_and_workers_run_the_submitted_tree(
    head: Head, data_folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = head.submit(
        "--address", head.address, "--working-dir", ".",
        "--runtime-env-json", json.dumps({"env_vars": {"SCALEWRIGHT_HOME": str(home)}}),
        "--", "python", "jobs/pretrain.py", *SMALL, "steps=4", "log.sample_clips=0",
        f"data.path={data_folder}", "name=submitted", "--workers", "1",
        cwd=copy_of_the_tree(tmp_path / "tree"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout

    summary = json.loads((home / "runs" / "submitted" / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["world_size"]) == ("done", 4, 1)
    imported = [line.split() for line in (home / "imported").read_text().splitlines()]
    assert len({process for process, _ in imported}) == 2  # driver and worker
    uploaded = head.folder / "ray"
    assert [path for _, path in imported if not path.startswith(f"{uploaded}/")] == []


def test_a_job_is_submitted_by_its_path_alone_where_the_head_was_started(
    head: Head, data_folder: Path
) -> None:
    done = head.submit("--", "jobs/pretrain.py", f"data.path={data_folder}", "--dry-run", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (plan,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert plan["config"]["data"]["path"] == str(data_folder)
    assert plan["params"] > 0


def test_a_refused_job_fails_and_says_why(head: Head, data_folder: Path) -> None:
    done = head.submit("--", "jobs/pretrain.py", f"data.path={data_folder}", "optimizer.lr_pek=1")
    assert done.returncode != 0
    assert "did you mean 'optimizer.lr_peak'" in done.stdout + done.stderr
    assert "failed" in (done.stdout + done.stderr).casefold()
