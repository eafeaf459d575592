"""jobs/pretrain.py as users run it: dry runs, refusals, and a real run under Ray Train."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
import ray
from commands import ROOT, SMALL, last_json, run
from mlflow.tracking import MlflowClient

from scalewright.train.manifest import newest_verified


def test_dry_run_tells_what_it_would_cost_and_starts_nothing(
    data_folder: Path, tmp_path: Path
) -> None:
    code, out, _ = run(
        tmp_path, "pretrain", *SMALL, f"data.path={data_folder}", "--dry-run", "--json"
    )
    plan = json.loads(out)
    assert code == 0
    assert plan["config"]["model"]["width"] == 32
    assert plan["run_flops"] == pytest.approx(12 * plan["flops_per_step"])
    assert [split["workers"] for split in plan["batch_split"]] == [1, 2]
    assert [split["packs_per_worker"] for split in plan["batch_split"]] == [4, 2]
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("checkpoints", [0, 1])
def test_other_settings_are_refused_once_there_is_a_checkpoint(
    checkpoints: int, data_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "small"
    for number in range(checkpoints):
        (folder / "checkpoints" / f"step-{number:08d}").mkdir(parents=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "identity.json").write_text('{"seed": 99}')
    (folder / "summary.json").write_text('{"steps": 12}')  # so that nothing is trained
    code, _, err = run(tmp_path, "pretrain", *SMALL, f"data.path={data_folder}", "name=small")
    assert code == (2 if checkpoints else 0), err
    assert ("begun with other settings" in err) is bool(checkpoints)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimiser.lr_peak=1"], "unknown key 'optimiser'; did you mean 'optimizer'?"),
        (["optimizer.lr=1"], "unknown key 'optimizer.lr'"),
        (["steps=many"], "steps = 'many'; expected int"),
        (["parallel.compute=float8"], "allowed: 'float32', 'bfloat16'"),
        (["parallel.memory_gib=0.001"], "a worker needs about"),
        (["model.text_dim=32"], "has 64; set model.text_dim=64 or prepare"),
        (["data.codec=haar(octaves=1)"], "was prepared with 'haar(octaves=2)'"),
        (["data.pack_tokens=8"], "data.pack_tokens"),
        (["parallel.workers=3", "parallel.min_workers=3"], "data.packs_per_step = 4 divides among"),
        (["data.path=/nowhere"], "run jobs/prepare.py"),
        (["--plan", "missing.toml"], "missing.toml: no such file"),
        (["--recipe", "demmo"], "known recipes: demo"),
        (["--wrokers", "2"], "No such option"),
        (["--inception-weights", "none.pt"], "'none.pt' does not exist"),
        (["--inception-weights", __file__, "log.sample_clips=1"], "FID takes at least 2 samples"),
    ],
)
def test_bad_input_is_refused_before_ray_starts(
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("SCALEWRIGHT_HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["pretrain.py", *SMALL, f"data.path={data_folder}", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / "pretrain.py"), run_name="__main__")
    assert message in capsys.readouterr().err
    assert ended.value.code in (1, 2)
    assert not ray.is_initialized()
    assert not (tmp_path / "runs").exists()


@pytest.mark.ray
def test_a_run_is_trained_tracked_and_resumed_on_fewer_workers(
    data_folder: Path, tmp_path: Path
) -> None:
    settings = (*SMALL, f"data.path={data_folder}", "name=small")
    code, out, err = run(tmp_path, "pretrain", *settings, "--workers", "2")
    assert code == 0, err
    summary = last_json(out)
    assert (summary["status"], summary["world_size"]) == ("done", 2)
    assert "step 12/12" in err
    assert f"mlflow ui --backend-store-uri 'sqlite:///{tmp_path}/mlflow.db'" in err
    folder = tmp_path / "runs" / "small"
    assert {p.suffix for p in (folder / "samples").iterdir()} == {".mp4", ".png"}

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "scalewright")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["model.width"] == "32"
    for name in ("loss/train", "optim/lr", "grad/norm", "optim/weight_norm", "perf/clips_per_s",
                 "perf/flop_utilisation", "eval/loss_picture", "eval/loss_video"):  # fmt: skip
        assert name in tracked.data.metrics, name
    kept = {item.path for item in client.list_artifacts(tracked.info.run_id)}
    assert {"config.toml", "samples"} <= kept

    code, again, err = run(tmp_path, "pretrain", *settings)
    assert code == 0, err
    assert "all steps are done already" in err
    assert last_json(again) == summary

    # As after a crash in the last steps: one worker goes on where two stopped.
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "step-00000012")
    code, out, err = run(tmp_path, "pretrain", *settings, "--workers", "1")
    assert code == 0, err
    assert "start_step 8" in err
    assert last_json(out)["world_size"] == 1
    assert last_json(out)["loss/train"] == pytest.approx(summary["loss/train"], abs=1e-5)
    assert len(client.search_runs([experiment.experiment_id])) == 1
    assert newest_verified(folder / "checkpoints")[1].step == 12  # type: ignore[index]

    code, _, err = run(tmp_path, "pretrain", *settings, "optimizer.lr_peak=1e-3")
    assert code == 2
    assert "optimizer.lr_peak: 0.008 then, 0.001 now" in err

    sample = tmp_path / "out.mp4"
    code, out, err = run(
        tmp_path, "sample", "a red picture", "--run", str(folder), "--size", "32x48",
        "--frames", "5", "--steps", "2", "--out", str(sample),
    )  # fmt: skip
    assert code == 0, err
    assert sample.stat().st_size > 0
    assert "after step 12" in out
