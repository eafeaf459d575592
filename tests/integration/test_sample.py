"""From a checkpoint to pictures and videos: the job, on one process and on several."""

import sys
from dataclasses import replace
from pathlib import Path
from subprocess import run as start

import numpy as np
import pytest
import torch
from commands import ROOT, environment, run
from PIL import Image
from ranks import CPU, run_ranks, series, small, train_on

from scalewright.config import assign
from scalewright.data.codec import HaarCodec
from scalewright.data.media import Sampling, read_media
from scalewright.data.sample import Sample
from scalewright.errors import ConfigError
from scalewright.model.mup import param_rules
from scalewright.objective.sampler import Prompt, SamplerConfig
from scalewright.train.generate import Request, check_request, generate
from scalewright.train.manifest import CHECKPOINTS, newest_verified
from scalewright.train.parallel import autocast, build_model, current_world
from scalewright.train.place import RunPlace
from scalewright.train.quality import SlicedWasserstein
from scalewright.train.samples import sample_set
from scalewright.train.validate import plan_validation
from scalewright.train.worker import train

CONFIG = small(
    "model.head_dim=16", "model.rope_axes=[4, 6, 6]", "model.mup_base_width=16", "steps=2",
    "optimizer.warmup_steps=1", "log.validation_clips=2", "log.validation_levels=1",
    "optimizer.average_decay=0.9", "flow.image_to_video=0.5",
)  # fmt: skip

MANY_HEADS = assign(CONFIG, ["model.width=512"])


@pytest.fixture(scope="module")
def trained(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model has two heads and has learnt a little."""
    return train_on(0, CONFIG, tmp_path_factory.mktemp("trained"), data_folder)


def request(folder: Path) -> Request:
    found = newest_verified(folder / CHECKPOINTS)
    assert found is not None
    generator = torch.Generator().manual_seed(0)
    text, null = torch.randn(3, 64, generator=generator), torch.zeros(1, 64)
    first = torch.randn(1, 32, 4, 6, generator=generator)
    prompts = (Prompt(text, (1, 32, 4, 4), 1), Prompt(text, (3, 32, 4, 6), 2, text + 1, first))
    return Request(found[0], CONFIG, null, prompts, SamplerConfig(steps=3), "cpu")


def test_two_processes_make_what_one_makes(trained: Path) -> None:
    wanted = request(trained)
    alone, shared = generate(wanted, 1), generate(wanted, 2)
    for one, other in zip(alone, shared, strict=True):
        assert (one - other).abs().max() <= 1e-5
    with pytest.raises(ConfigError, match=r"3 ranks.*2 heads.*\[1, 2\]"):
        generate(wanted, 3)


def test_averaged_weights_are_those_that_are_asked_for(trained: Path) -> None:
    wanted = request(trained)
    averaged, last = generate(wanted, 1), generate(replace(wanted, averaged=False), 1)
    assert not torch.equal(averaged[0], last[0])


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="no CUDA device")
@pytest.mark.parametrize("ranks", [1, 2])
def test_gpus_make_what_the_cpu_makes(trained: Path, ranks: int) -> None:
    if ranks > torch.cuda.device_count():
        pytest.skip(f"fewer than {ranks} CUDA devices")
    wanted = request(trained)
    exact = generate(wanted, 1)
    for one, other in zip(exact, generate(replace(wanted, device="cuda"), ranks), strict=True):
        assert (one - other).norm() < 0.03 * one.norm()  # bf16


def test_a_gpu_that_is_not_there_is_refused(trained: Path) -> None:
    with pytest.raises(ConfigError, match=r"ranks on this machine, which has \d+ GPUs"):
        check_request(replace(request(trained), config=MANY_HEADS, device="cuda"), 16)


def test_the_job_makes_a_video_from_its_first_frame(trained: Path, tmp_path: Path) -> None:
    ramp = np.linspace(40, 220, 128).astype(np.uint8)
    picture = np.stack([np.tile(ramp, (64, 1))] * 3, 2)
    Image.fromarray(picture).save(tmp_path / "start.png")
    code, out, err = run(
        tmp_path, "sample", "a red picture", "--run", str(trained), "--first-frame", "start.png",
        "--frames", "5", "--negative", "a blue picture", "--solver", "heun", "--steps", "2",
        "--out", "made.mp4", "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    assert "after step 2 of " in out
    (clip,) = read_media(tmp_path / "made.mp4", Sampling(area_px=128 * 128))
    assert clip.shape == (5, 48, 96, 3)  # of the picture's aspect
    columns = clip[0].mean((0, 2))
    assert np.abs(columns - np.linspace(40, 220, 96)).max() < 12


def test_a_first_frame_is_refused_by_a_run_that_never_saw_one(
    data_folder: Path, tmp_path: Path
) -> None:
    folder = train_on(0, assign(CONFIG, ["flow.image_to_video=0"]), tmp_path / "run", data_folder)
    Image.new("RGB", (64, 64)).save(tmp_path / "start.png")
    options = ["--run", str(folder), "--first-frame", "start.png"]
    code, _, err = run(tmp_path, "sample", "a red picture", *options)
    assert code == 2
    assert "was not trained to continue a picture (flow.image_to_video = 0)" in err


def test_samples_are_drawn_with_the_scores_of_their_clips() -> None:
    scored = [replace(clip, scores={"motion": 0.5, "look": 0.1}) for clip in clips()]
    model = replace(CONFIG.model, scores=("motion",))
    drawn = sample_set(scored, torch.zeros(1, 64), HaarCodec(), model, seed=0)
    assert {str(prompt.scores) for prompt in drawn.prompts} == {"{'motion': 0.5}"}


class Detector(torch.nn.Module):
    """Of the interface of the Inception file."""

    def forward(self, pixels: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return pixels.float().mean((2, 3))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # the file is TorchScript
def test_a_run_measures_fid_where_it_has_the_weights(data_folder: Path, tmp_path: Path) -> None:
    torch.jit.script(Detector()).save(tmp_path / "detector.pt")
    config = assign(
        CONFIG, ["log.sample_clips=2", "log.sample_steps=2", "log.sample_every_steps=1"]
    )
    place = RunPlace(tmp_path / "run", data_folder, 1, inception_weights=tmp_path / "detector.pt")
    train(config, place, CPU)
    found = series(tmp_path / "run", "eval/fid")
    assert len(found) == 2
    assert all(value > 0 for value in found)


def test_ranks_of_torchrun_make_one_picture(trained: Path, tmp_path: Path) -> None:
    options = ["a red picture", "--run", str(trained), "--frames", "1", "--steps", "2"]
    options += ["--aspect", "3:2", "--seed", "4", "--device", "cpu"]
    code, _, err = run(tmp_path, "sample", *options, "--out", "alone.png")
    assert code == 0, err
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    # Without the dashes torchrun takes --run for an option of its own, cut short.
    job = [str(ROOT / "jobs" / "sample.py"), *options, "--out", "shared.png"]
    done = start(
        [*torchrun, "--", *job],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("shared.png") == 1
    alone, shared = (
        np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("alone", "shared")
    )
    assert alone.shape == (48, 80, 3)
    assert np.abs(alone - shared).max() <= 1  # rounding to 8 bits may turn over


def test_the_job_refuses_before_it_loads_anything(trained: Path, tmp_path: Path) -> None:
    for options, words in (
        (("--tensor-parallel", "5"), "2 heads do not share out evenly; use one of [1, 2]"),
        (("--negative", "x", "--guidance", "1"), "has no effect with --guidance 1"),
    ):
        code, out, err = run(tmp_path, "sample", "a", "--run", str(trained), *options)
        assert (code, out) == (2, "")
        assert words in err
        assert err.count("\n") == 1
    assert not list(tmp_path.glob("sample.*"))


def clips() -> list[Sample]:
    generator = torch.Generator().manual_seed(5)
    return [
        Sample(
            index,
            torch.randn(1 + index % 2, 32, 4, 4, generator=generator),
            torch.randn(3, 64, generator=generator),
        )
        for index in range(5)
    ]


def measure(rank: int, folder: Path) -> None:
    """Validation, samples and their quality of an untrained model in which everything acts."""
    world = current_world(CPU)
    rules = param_rules(CONFIG.model)
    rules = {name: replace(rule, init_std=rule.init_std or 0.1) for name, rule in rules.items()}
    model = build_model(CONFIG, rules, world)
    cast = autocast(CONFIG, world)
    plan = plan_validation(clips(), CONFIG.flow, CONFIG.model, 40, levels=8, seed=0)
    drawn_set = sample_set(clips(), torch.zeros(1, 64), HaarCodec(), CONFIG.model, seed=0)
    few = replace(CONFIG, log=replace(CONFIG.log, sample_steps=2))
    drawn = drawn_set.draw(model, few, CPU, cast, world)
    quality = drawn_set.quality(drawn, [SlicedWasserstein()])
    found = {"loss": plan.loss(model, world, cast), "drawn": drawn, "quality": quality}
    torch.save(found, folder / f"{world.size}-{rank}.pt")


def test_ranks_validate_and_draw_what_one_does(tmp_path: Path) -> None:
    for world in (1, 2):
        run_ranks(world, measure, tmp_path)
    alone, *others = [torch.load(path) for path in sorted(tmp_path.iterdir())]
    assert len(others) == 2
    assert alone["loss"]["level_0"] != alone["loss"]["level_7"]
    assert alone["quality"]["swd"] > 0
    for other in others:
        assert other["loss"] == alone["loss"]  # to the last bit
        assert other["quality"] == alone["quality"]
        for one, two in zip(alone["drawn"], other["drawn"], strict=True):
            assert torch.equal(one, two)
