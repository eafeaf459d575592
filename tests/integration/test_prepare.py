"""`jobs/prepare.py` as it is run: on rendered files, on broken ones, interrupted, on real media."""

import csv
import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from folders import read_clips
from PIL import Image

from scalewright import command
from scalewright.data.catalogue import Catalogue
from scalewright.prepare.shapes import render_shapes

JOB = Path(__file__).parents[2] / "jobs" / "prepare.py"


class Ended(NamedTuple):
    code: int | str | None
    out: str
    err: str


RunJob = Callable[..., Ended]


@pytest.fixture
def run_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunJob]:
    """Runs the job in this process, as `__main__` does: starting Python anew takes seconds."""
    spec = importlib.util.spec_from_file_location("prepare_job", JOB)
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", [str(JOB), *map(str, arguments)])
        code: int | str | None = 0
        try:
            command.run(module.main)
        except SystemExit as exit:
            code = exit.code
        return Ended(code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_shapes(tmp_path_factory.mktemp("shapes"), videos=10, pictures=6, seed=0)


def test_shapes_become_data(captions: Path, tmp_path: Path, run_job: RunJob) -> None:
    arguments = (captions.parent, "--captions", captions, "--out", tmp_path / "data")
    done = run_job(*arguments, "--json")
    assert done.code == 0, done.err
    summary: dict[str, Any] = json.loads(done.out)
    assert (summary["pictures"], summary["videos"]) == (6, 10)
    assert summary["rejected"] == summary["uncaptioned"] == []
    catalogue = Catalogue.open(tmp_path / "data")
    entry = catalogue.entries("train")[0]
    assert (
        read_clips(tmp_path / "data", [entry])[0].latent.shape[1]
        == catalogue.info.latent_channels
        == 32
    )
    again = run_job(*arguments)
    assert again.code == 0
    assert "16 clips, 0 of them new" in again.out


def test_scores_and_static_clips(captions: Path, tmp_path: Path, run_job: RunJob) -> None:
    head, first, *rest = captions.read_text().splitlines()
    scored = tmp_path / "scored.csv"
    scored.write_text("\n".join([f"{head},motion", f"{first},15", *(f"{row}," for row in rest)]))
    arguments = (captions.parent, "--captions", scored, "--out", tmp_path / "data")
    done = run_job(*arguments, "--scores", "motion")
    assert done.code == 1
    assert "scored.csv:2: motion = 15 is outside 0 to 1" in done.err
    done = run_job(*arguments, "--scores", "motion=a:b")
    assert done.code == 2
    assert "NAME=LOW:HIGH" in done.err
    assert run_job(*arguments, "--static-share", 2).code == 2
    assert not (tmp_path / "data").exists()

    options = ("--scores", "motion=0:20", "--static-share", 1, "--static-frames", 5)
    done = run_job(*arguments, *options, "--static-prefix", "nothing moves")
    assert done.code == 0, done.err
    catalogue = Catalogue.open(tmp_path / "data")
    train = catalogue.entries("train")
    assert f"{len(train) // 2} of them static" in done.out
    shown = catalogue.captions([entry.id for entry in train]).values()
    assert sum(caption.startswith("nothing moves, a") for caption in shown) == len(train) // 2
    everything = train + catalogue.entries("validation")
    assert [entry.scores for entry in everything if entry.scores] == [{"motion": 0.75}]


def test_too_many_broken_files_fail_with_a_way_out(
    captions: Path, tmp_path: Path, run_job: RunJob
) -> None:
    rows = tmp_path / "captions.csv"
    rows.write_text(captions.read_text() + "gone.png,a picture that is not there\n")
    arguments = (captions.parent, "--captions", rows, "--out", tmp_path / "data")
    done = run_job(*arguments)
    assert done.code == 1
    assert "1 of 17 files (5.9%)" in done.err
    assert "gone.png: no such file" in done.err
    assert "raise --max-broken-share" in done.err
    done = run_job(*arguments, "--max-broken-share", "0.1")
    assert done.code == 0
    assert "1 files left out:\n    gone.png: no such file" in done.out


def test_wrong_usage_exits_with_2(captions: Path, tmp_path: Path, run_job: RunJob) -> None:
    arguments = (captions.parent, "--captions", captions, "--out", tmp_path / "data")
    done = run_job(*arguments, "--max-frames", 16)
    assert done.code == 2
    assert "use 13 or 17" in done.err
    assert run_job(*arguments, "--clips-per-file", 0).code == 2
    assert run_job(*arguments, "--codec-weights", tmp_path).code == 2
    assert not (tmp_path / "data").exists()
    assert "Examples:" in run_job("-h").out


def test_ctrl_c_leaves_work_that_is_gone_on_with(tmp_path: Path, run_job: RunJob) -> None:
    names = [f"{index:03d}.png" for index in range(300)]
    Image.new("RGB", (64, 64), "red").save(tmp_path / names[0])
    for name in names[1:]:
        (tmp_path / name).hardlink_to(tmp_path / names[0])
    rows = tmp_path / "captions.csv"
    rows.write_text("path,caption\n" + "".join(f"{name},a red picture\n" for name in names))
    arguments = (tmp_path, "--captions", rows, "--out", tmp_path / "data")
    as_program = [sys.executable, "-W", "ignore", str(JOB), *map(str, arguments)]
    with subprocess.Popen(as_program, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert running.stderr.readline() == "300 files to encode, 0 done before\n"
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read()
    assert running.returncode == 130, rest
    assert "run the same command again" in rest
    assert "Traceback" not in rest
    held = len(Catalogue.open(tmp_path / "data").sources())
    assert held < 300
    done = run_job(*arguments, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["clips"] == 300
    assert json.loads(done.out)["new_clips"] == 300 - held


@pytest.mark.slow
def test_real_media_become_data(shared_data: Path, tmp_path: Path, run_job: RunJob) -> None:
    clips = shared_data / "clips"
    with (clips / "captions.csv").open(newline="") as file:
        rows = [row for row in csv.reader(file) if not row[0].startswith("noto-emoji/")]
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    arguments = (clips, "--captions", tmp_path / "captions.csv", "--out", tmp_path / "data")
    done = run_job(*arguments, "--json")
    assert done.code == 0, done.err
    summary: dict[str, Any] = json.loads(done.out)
    assert summary["rejected"] == []
    assert summary["pictures"] == 9
    assert len(summary["uncaptioned"]) == 1405
    assert summary["videos"] == 44
