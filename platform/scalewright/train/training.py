"""What a run changes as it goes: weights, optimizer, their average, what the guard remembers."""

from dataclasses import dataclass

import torch

from scalewright.model.mmdit import MMDiT
from scalewright.model.mup import param_rules
from scalewright.train.average import WeightAverage
from scalewright.train.guard import Memory
from scalewright.train.optimizer import build_optimizer
from scalewright.train.parallel import World, autocast, build_model
from scalewright.train.run import RunConfig


@dataclass(frozen=True)
class Training:
    """The state of a run on this rank; `average` None where none is kept."""

    config: RunConfig
    world: World
    model: MMDiT
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    memory: Memory
    autocast: torch.autocast


def begin_training(config: RunConfig, world: World) -> Training:
    """The state before the first step: the same at any number of ranks."""
    rules = param_rules(config.model)
    model = build_model(config, rules, world)
    decay = config.optimizer.average_decay
    return Training(
        config=config,
        world=world,
        model=model,
        optimizer=build_optimizer(model, rules, config.optimizer),
        average=None if decay is None else WeightAverage(model, decay),
        memory=Memory(config.guard, world.device),
        autocast=autocast(config, world),
    )
