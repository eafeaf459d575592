"""One step against what autograd and Adam say by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from ranks import CPU, small
from torch import Tensor

from scalewright.data.sample import Sample
from scalewright.model.statistics import Watch
from scalewright.objective.flow import FlowConfig, NoisedPack, training_pack
from scalewright.train.optimizer import set_lr
from scalewright.train.parallel import current_world
from scalewright.train.run import RunConfig
from scalewright.train.step import Counts, StepResult, train_step
from scalewright.train.training import Training, begin_training

NO_CLIP = "optimizer.clip_norm=1e9"


def training_of(*assignments: str, **model: Any) -> Training:
    """A training state in which everything acts."""
    config = small("optimizer.warmup_steps=1", *assignments)
    config = replace(config, model=replace(config.model, **model))
    training = begin_training(config, current_world(CPU))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in training.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return training


def pack_of(config: RunConfig, flow: FlowConfig | None = None, scale: float = 1.0) -> NoisedPack:
    generator = torch.Generator().manual_seed(0)
    samples = [
        Sample(
            index,
            scale * torch.randn(2, 32, 4, 4, generator=generator),
            torch.randn(3, 64, generator=generator),
        )
        for index in range(3)
    ]
    null = torch.zeros(1, 64)
    return training_pack(samples, null, flow or FlowConfig(), config.model, seed=0, step=0)


def step_on(
    training: Training, pack: NoisedPack, step: int = 0, watch: Watch | None = None
) -> StepResult:
    counts = Counts(pack.target.numel(), len(pack.batch.joint_order))
    return train_step(training, [pack], step=step, counts=counts, watch=watch or Watch())


def gradients(training: Training) -> dict[str, Tensor]:
    """Of the first step, out of Adam's first moment."""
    beta1 = training.config.optimizer.beta1
    return {
        name: training.optimizer.state[parameter]["exp_avg"] / (1 - beta1)
        for name, parameter in training.model.named_parameters()
    }


def norm_of(tensors: dict[str, Tensor]) -> float:
    return torch.stack([tensor.norm() for tensor in tensors.values()]).norm().item()


def test_gradients_are_clipped_to_their_limit() -> None:
    free, clipped = training_of(NO_CLIP), training_of("optimizer.clip_norm=0.01")
    pack = pack_of(free.config)
    result = step_on(free, pack)
    step_on(clipped, pack)
    assert norm_of(gradients(free)) == pytest.approx(result.gradient_norm.item(), rel=1e-5)
    assert result.gradient_norm > 0.1
    assert norm_of(gradients(clipped)) == pytest.approx(0.01, rel=1e-3)


def test_the_schedule_scales_every_group_by_its_own_factor() -> None:
    training = training_of(width=128)  # twice the base width
    set_lr(training.optimizer, 0.3)
    for group in training.optimizer.param_groups:
        assert group["lr"] == 0.3 * group["lr_mult"]
    factors = {group["lr_mult"] for group in training.optimizer.param_groups}
    assert {0.5, 1.0} <= factors, "hidden matrices of twice the width learn half as fast"


def test_the_average_is_the_weighted_mean_of_all_weights_so_far() -> None:
    training = training_of("optimizer.average_decay=0.15")
    pack = pack_of(training.config)
    average = {name: p.detach().clone() for name, p in training.average.weights.items()}  # type: ignore[union-attr]
    for step in range(4):
        step_on(training, pack, step)
        decay = min(0.15, (1 + step) / (10 + step))
        for name, parameter in training.model.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * parameter.detach()
    assert training.average is not None
    for name, expected in average.items():
        torch.testing.assert_close(training.average.weights[name], expected, atol=1e-6, rtol=1e-5)


def test_a_skipped_step_moves_no_average() -> None:
    training = training_of("optimizer.average_decay=0.9")
    step_on(training, pack_of(training.config))
    assert training.average is not None
    before = {name: w.clone() for name, w in training.average.weights.items()}
    assert step_on(training, pack_of(training.config, scale=float("nan")), 1).skipped == 1
    for name, weight in training.average.weights.items():
        assert torch.equal(weight, before[name]), name


def test_told_norms_are_those_of_weights_gradients_and_updates() -> None:
    training = training_of(NO_CLIP)
    pack = pack_of(training.config)
    step_on(training, pack)
    before = {n: p.detach().clone() for n, p in training.model.named_parameters()}
    result = step_on(training, pack, 1, Watch(statistics=True))
    assert result.statistics is not None
    for kind, (weight, gradient, update) in zip(
        result.statistics.kinds, result.statistics.parameters.sqrt().tolist(), strict=True
    ):
        after = {
            name: p.detach()
            for name, p in training.model.named_parameters()
            if kind in (name, ".".join(part for part in name.split(".") if not part.isdigit()))
        }
        assert after, kind
        moved = {name: p - before[name] for name, p in after.items()}
        assert update == pytest.approx(norm_of(moved), rel=2e-3), kind
        assert weight == pytest.approx(norm_of(after), rel=1e-5), kind
        assert gradient > 0


@pytest.mark.parametrize("clean_frames", [False, True])
def test_a_penalty_adds_the_gradient_of_the_mean_square_of_every_block(
    clean_frames: bool,
) -> None:
    """Also where frames are given clean, so that fewer elements count."""
    weight = 0.3
    flow = FlowConfig(image_to_video=float(clean_frames), clean_first_frame=1.0)
    plain, pressed = (
        training_of(NO_CLIP),
        training_of(NO_CLIP, f"activation_penalty.weight={weight}"),
    )
    pack = pack_of(plain.config, flow)
    assert (pack.elements < pack.target.numel()) is clean_frames
    step_on(plain, pack)
    step_on(pressed, pack, watch=Watch(penalty=True))
    by_hand = training_of(NO_CLIP)
    outputs: list[Tensor] = []
    for block in by_hand.model.blocks:
        block.register_forward_hook(lambda *a: outputs.append(a[2][0]))
    by_hand.model(pack.batch)
    (weight * sum(x.square().mean() for x in outputs)).backward()
    expected = {n: p.grad for n, p in by_hand.model.named_parameters()}
    one, other = gradients(plain), gradients(pressed)
    for name in one:
        added = expected[name] if expected[name] is not None else torch.zeros_like(one[name])
        torch.testing.assert_close(other[name] - one[name], added, atol=2e-5, rtol=1e-3)
    assert norm_of({n: g for n, g in expected.items() if g is not None}) > 0.01
