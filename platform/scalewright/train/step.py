"""One optimizer step: packs in, updated weights out. Nothing of it waits for the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scalewright.data.loader import StepData
from scalewright.model.mmdit import Prediction, Seen
from scalewright.model.statistics import Watch
from scalewright.objective.flow import NoisedPack, squared_error, training_pack
from scalewright.train.inputs import Inputs
from scalewright.train.optimizer import lr_at, set_lr, set_skip
from scalewright.train.parallel import local, set_gradient_sync
from scalewright.train.run import RunConfig
from scalewright.train.statistics import (
    Statistics,
    activity_of,
    adam_updates,
    kinds_of,
    reduce,
    squares_by_kind,
    squares_of,
)
from scalewright.train.training import Training


@dataclass(frozen=True)
class StepResult:
    """Of one step, still on the device and equal on all ranks.

    `loss` over all ranks; `gradient_norm` before clipping; `skipped` 1 where the guard kept the
    weights as they were, and the `limits` (2,) on loss and norm that it held.
    """

    loss: Tensor
    gradient_norm: Tensor
    skipped: Tensor
    limits: Tensor
    statistics: Statistics | None


@dataclass(frozen=True)
class Counts:
    """Of a whole step over all ranks, known before it: `elements` of velocities, all `tokens`.

    Elements of frames that are given clean are among them; they are taken out once it is known how
    many they are.
    """

    elements: int
    tokens: int


@dataclass(frozen=True)
class Objective:
    """What a step differentiates of each of its packs.

    Losses are divided by `elements` of the whole step, so that a clip weighs the same whichever
    rank and pack it is in. `counted`: elements of this rank that count. `penalty`: weight of the
    power of a pass, None where it has none.
    """

    elements: int
    ranks: int
    counted: Tensor
    penalty: Tensor | None

    def __call__(self, prediction: Prediction, pack: NoisedPack) -> tuple[Tensor, Tensor]:
        """A pack's share of the loss, and what to differentiate."""
        share = squared_error(prediction.velocity, pack) / self.elements
        whole = share
        if self.penalty is not None:
            whole = share + self.penalty * _power(prediction.seen)
        # FSDP takes the mean over ranks; the loss is a sum over ranks.
        return share.detach(), whole * self.ranks


def objective_of(
    training: Training, packs: Sequence[NoisedPack], counts: Counts, watch: Watch
) -> Objective:
    """The objective of a step of which these are this rank's packs; every rank must call it."""
    world = training.world
    counted = torch.tensor(sum(pack.elements for pack in packs), dtype=torch.float64).to(
        world.device, non_blocking=True
    )
    penalty = _penalty_weight(training, counts, counted) if watch.penalty else None
    return Objective(counts.elements, world.size, counted, penalty)


def counts_of(inputs: Inputs, step: int) -> Counts:
    return Counts(inputs.work.elements(step), inputs.work.tokens(step))


def noised_packs(config: RunConfig, inputs: Inputs, data: StepData) -> list[NoisedPack]:
    """This rank's packs of a step, noised as the config says; on the CPU."""
    settings = inputs.work.at(data.step).settings
    return [
        training_pack(
            samples,
            inputs.null_text,
            settings.flow,
            settings.model,
            seed=config.seed,
            step=data.step,
        )
        for samples in data.packs
    ]


def take_step(
    training: Training, inputs: Inputs, packs: Sequence[NoisedPack], *, step: int, watch: Watch
) -> StepResult:
    """Train on this rank's packs of a step, which are on the device."""
    return train_step(training, packs, step=step, counts=counts_of(inputs, step), watch=watch)


def train_step(
    training: Training, packs: Sequence[NoisedPack], *, step: int, counts: Counts, watch: Watch
) -> StepResult:
    """Forward and backward over this rank's packs, judge, clip, update."""
    model, optimizer, world, config = (
        training.model,
        training.optimizer,
        training.world,
        training.config,
    )
    objective = objective_of(training, packs, counts, watch)
    share, passes = _backward(training, packs, objective, watch)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    squares = squares_of(gradients)
    # Every group of `shard_size` ranks holds all gradients, each rank a part of the loss.
    groups = world.size // world.shard_size
    totals = world.sum(torch.stack((share, squares.sum() / groups, objective.counted)))
    scale = counts.elements / totals[2]
    loss, norm = scale * totals[0], scale * totals[1].sqrt()
    skipped, limits = training.memory.judge(loss, norm)
    _scale(gradients, scale * (config.optimizer.clip_norm / (norm + 1e-6)).clamp(max=1.0))
    set_lr(optimizer, lr_at(step, config.steps, config.optimizer))
    set_skip(optimizer, skipped)
    optimizer.step()
    statistics = (
        _statistics(training, passes, squares * scale**2, skipped) if watch.statistics else None
    )
    optimizer.zero_grad(set_to_none=True)
    if training.average is not None:
        training.average.update(step, skipped)
    return StepResult(loss, norm, skipped, limits, statistics)


def _backward(
    training: Training,
    packs: Sequence[NoisedPack],
    objective: Objective,
    watch: Watch,
) -> tuple[Tensor, list[tuple[Seen, ...]]]:
    """Gradients of all packs added up; this rank's share of the loss, and what the passes tell."""
    share = torch.zeros((), device=training.world.device, dtype=torch.float64)
    passes = []
    for index, pack in enumerate(packs):
        set_gradient_sync(training.model, enabled=index == len(packs) - 1)
        with training.autocast:
            prediction = training.model(pack.batch, watch)
        loss, whole = objective(prediction, pack)
        share += loss
        whole.backward()
        passes.append(prediction.seen)
    return share, passes


def _penalty_weight(training: Training, counts: Counts, counted: Tensor) -> Tensor:
    """What makes of the power of all passes its mean over tokens and width, times its weight.

    (YandexART Vi: the mean square of every block's output, added up.) Gradients are scaled up in
    the end for what does not count of the velocity; here that is taken back beforehand.
    """
    config = training.config
    weight = config.activation_penalty.weight / (counts.tokens * config.model.width)
    return weight * training.world.sum(counted.clone()) / counts.elements


def _power(seen: tuple[Seen, ...]) -> Tensor:
    return torch.stack([block.power for block in seen if block.power is not None]).sum()


def _scale(gradients: Sequence[Tensor], factor: Tensor) -> None:
    torch._foreach_mul_([local(gradient) for gradient in gradients], factor.to(gradients[0].dtype))


def _statistics(
    training: Training,
    passes: list[tuple[Seen, ...]],
    gradient_squares: Tensor,
    skipped: Tensor,
) -> Statistics:
    kinds, index = kinds_of(training.model)
    trained = [p for p in training.model.parameters() if p.requires_grad]
    of_parameters = torch.stack(
        [
            squares_by_kind(squares, index, len(kinds))
            for squares in (
                squares_of([p.detach() for p in trained]),
                gradient_squares,
                squares_of(adam_updates(training.model, training.optimizer)) * (1 - skipped),
            )
        ],
        dim=1,
    )
    activity, norms = reduce(activity_of(passes), of_parameters, training.world)
    return Statistics(activity, norms, kinds)
