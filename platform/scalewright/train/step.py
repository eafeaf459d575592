"""One optimizer step: packs in, updated weights out. The loss is divided by the global count."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scalewright.data.loader import StepData
from scalewright.objective.flow import NoisedPack, squared_error, training_pack
from scalewright.train.inputs import Inputs
from scalewright.train.optimizer import lr_at, set_lr
from scalewright.train.parallel import World, local, set_gradient_sync, total_norm
from scalewright.train.run import RunConfig


@dataclass(frozen=True)
class StepResult:
    """Tensors that have not left the device: this rank's share of the loss; the global norm."""

    loss_share: Tensor
    gradient_norm: Tensor


def take_step(
    config: RunConfig,
    inputs: Inputs,
    data: StepData,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    world: World,
    autocast: torch.autocast,
) -> StepResult:
    """Noise this rank's clips of a step as the config says, and train on them."""
    packs = [
        training_pack(
            samples,
            inputs.null_text,
            config.flow,
            config.model,
            seed=config.seed,
            step=data.step,
        ).to(world.device)
        for samples in data.packs
    ]
    return train_step(
        model,
        optimizer,
        packs,
        elements=inputs.elements(data.step),
        lr=lr_at(data.step, config.steps, config.optimizer),
        clip_norm=config.optimizer.clip_norm,
        world=world,
        autocast=autocast,
    )


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    packs: Sequence[NoisedPack],
    *,
    elements: int,
    lr: float,
    clip_norm: float,
    world: World,
    autocast: torch.autocast,
) -> StepResult:
    """Forward and backward over this rank's packs, clip, update.

    `elements`: numbers in the velocities of the whole step over all ranks, so that a clip weighs
    the same whichever rank and pack it is in.
    """
    set_lr(optimizer, lr)
    loss_share = torch.zeros((), device=world.device, dtype=torch.float64)
    for index, pack in enumerate(packs):
        set_gradient_sync(model, enabled=index == len(packs) - 1)
        with autocast:
            prediction = model(pack.batch).velocity
        loss = squared_error(prediction, pack.target) / elements
        # FSDP takes the mean over ranks; the loss is a sum over ranks.
        (loss * world.size).backward()
        loss_share += loss.detach()
    gradient_norm = _clip(model, clip_norm, world)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss_share, gradient_norm)


def _clip(model: nn.Module, clip_norm: float, world: World) -> Tensor:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = total_norm(gradients, world)
    factor = (clip_norm / (norm + 1e-6)).clamp(max=1.0).to(gradients[0].dtype)
    torch._foreach_mul_([local(gradient) for gradient in gradients], factor)
    return norm
