"""On a CUDA device: the packed kernels against the CPU's oracle, and a whole small run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ranks import small

from scalewright.data.loader import StepData
from scalewright.data.sample import Sample
from scalewright.events import EVENTS_FILE, Metrics, read_events
from scalewright.model.attention import Segments, attention_for, segment_attention
from scalewright.model.statistics import Watch
from scalewright.objective.flow import NoisedPack, training_pack
from scalewright.train.ahead import Ahead
from scalewright.train.manifest import CHECKPOINTS, newest_verified
from scalewright.train.parallel import current_world
from scalewright.train.place import RunPlace
from scalewright.train.step import Counts, train_step
from scalewright.train.training import begin_training
from scalewright.train.worker import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_packed_attention_equals_clip_by_clip() -> None:
    """In bf16 within 2e-2, gradients within 3%, and the log-sum-exp that bounds the logits."""
    device = torch.device("cuda")
    attention, reason = attention_for(device, torch.bfloat16)
    assert attention is not segment_attention, reason
    segments = Segments.of([7, 130, 64]).to(device)
    inputs = [torch.randn(201, 4, 64, device=device, dtype=torch.bfloat16) for _ in range(3)]
    results = []
    for back_end, dtype in ((attention, torch.bfloat16), (segment_attention, torch.float32)):
        q, k, v = (x.to(dtype).detach().requires_grad_() for x in inputs)
        out, lse = back_end(q, k, v, segments, want_lse=True)
        out.float().square().sum().backward()
        assert lse is not None
        results.append((out.float(), lse.float(), [x.grad.float() for x in (q, k, v)]))
    (out, lse, gradients), (oracle, oracle_lse, oracle_gradients) = results
    assert (out - oracle).abs().max() <= 2e-2
    assert (lse - oracle_lse).abs().max() <= 2e-2
    for found, wanted in zip(gradients, oracle_gradients, strict=True):
        assert (found - wanted).norm() / wanted.norm() <= 0.03


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_compiled_blocks_compute_what_plain_ones_do(
    recompute: str, data_folder: Path, tmp_path: Path
) -> None:
    """Losses and statistics of a run in fp32, compiled and recomputed, against a plain one."""
    found = {}
    for name, compiled in (("plain", "false"), ("compiled", "true")):
        config = small(
            "model.head_dim=16", "model.width=64", "log.statistics_every_steps=6",
            f"parallel.compile={compiled}",
            f"parallel.activation_checkpointing={recompute if compiled == 'true' else 'none'}",
        )  # fmt: skip
        train(config, RunPlace(tmp_path / name, data_folder, 1), torch.device("cuda"))
        events, _ = read_events(tmp_path / name / EVENTS_FILE, 0, max_bytes=1 << 24)
        rows = [e.values for e in events if isinstance(e, Metrics)]
        found[name] = {k: v for row in rows for k, v in row.items() if not k.startswith("perf/")}
    assert found["plain"].keys() == found["compiled"].keys()
    for name, value in found["plain"].items():
        if name.startswith(("loss/", "activation/", "attention/", "parameters/", "grad/")):
            assert found["compiled"][name] == pytest.approx(value, rel=1e-2, abs=1e-4), name


def test_a_step_never_waits_for_the_device() -> None:
    config = small("parallel.compute=bfloat16", "model.head_dim=16", "model.width=64",
                   "optimizer.average_decay=0.9", "activation_penalty.weight=0.1")  # fmt: skip
    training = begin_training(config, current_world(torch.device("cuda")))
    clips = [Sample(i, torch.randn(2, 32, 4, 4), torch.randn(3, 64)) for i in range(4)]
    pack = training_pack(clips, torch.zeros(1, 64), config.flow, config.model, seed=0, step=0).to(
        training.world.device
    )
    counts = Counts(pack.elements, len(pack.batch.joint_order))
    for step in range(4):
        watched = Watch(statistics=step == 2, penalty=step == 3)
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
        try:
            train_step(training, [pack], step=step, counts=counts, watch=watched)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
def test_a_run_on_the_gpu(data_folder: Path, tmp_path: Path, compute: str) -> None:
    config = small(f"parallel.compute={compute}", "model.head_dim=16", "model.width=64")
    train(config, RunPlace(tmp_path, data_folder, 1), torch.device("cuda"))
    found = newest_verified(tmp_path / CHECKPOINTS)
    assert found is not None
    assert found[1].step == config.steps


def test_packs_copied_ahead_are_those_of_the_cpu() -> None:
    """Steps follow each other faster than copies, and their memory is used again."""
    device, config = torch.device("cuda"), small()
    channels, text = config.model.latent_channels, config.model.text_dim
    null = torch.zeros(1, text)

    def steps() -> Iterator[StepData]:
        for step in range(40):
            generator = torch.Generator().manual_seed(step)
            latent = torch.randn(8, channels, 64, 64, generator=generator).half()
            yield StepData(step, [[Sample(step, latent, torch.ones(3, text).half(), {})]])

    def make(data: StepData) -> list[NoisedPack]:
        return [
            training_pack(pack, null, config.flow, config.model, seed=0, step=data.step)
            for pack in data.packs
        ]

    sums = []
    with Ahead(make, device) as ahead:
        for ready in ahead.over(steps()):
            busy = torch.randn(2048, 2048, device=device)
            for _ in range(8):
                busy = busy @ busy / 2048
            (pack,) = ready.packs
            sums.append(torch.stack((pack.target.double().sum(), pack.batch.visual.double().sum())))
            del ready, pack
    for found, data in zip(sums, steps(), strict=True):
        (wanted,) = make(data)
        exact = (wanted.target.double().sum(), wanted.batch.visual.double().sum())
        assert found.cpu().tolist() == pytest.approx([each.item() for each in exact], rel=1e-9)
