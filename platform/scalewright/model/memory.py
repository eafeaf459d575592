"""Memory of one worker, from sizes alone. Pure Python: the planner uses it too."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from scalewright.model.shape import ModelConfig, parameter_table

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes one worker needs at its peak, by what they are for."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    average_bytes: int
    gathered_bytes: int
    activations_bytes: int

    @property
    def total_bytes(self) -> int:
        return (
            self.weights_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.average_bytes
            + self.gathered_bytes
            + self.activations_bytes
        )


def memory_estimate(
    config: ModelConfig,
    *,
    workers: int,
    packs_per_worker: int,
    pack_tokens: int,
    compute_bytes: int,
    activation_checkpointing: Recompute,
    averaged: bool = False,
    frozen: Collection[str] = (),
) -> MemoryEstimate:
    """Memory of one of `workers` fully sharded workers that eats packs of `pack_tokens`.

    Weights, gradients and Adam's two moments are fp32 and sharded, but gradients are whole while
    several packs of a step are added up; `frozen` weights have neither, and an average of those
    trained takes as much as they do; two blocks are gathered at a time in the compute type
    (`compute_bytes` a number). A block keeps about 34·d numbers a token for its backward pass (its
    inputs to norms, modulation, qkv, attention, feed-forward). Under "full" recomputation it keeps
    its input, d, and under "selective" also qkv, attention and the first feed-forward product, 9·d
    in all; one block is being recomputed then.
    """
    sizes = {name: math.prod(shape) for name, shape in parameter_table(config).items()}
    trained = sum(size for name, size in sizes.items() if name not in frozen)
    weights, shard = math.ceil(sum(sizes.values()) / workers), math.ceil(trained / workers)
    block = sum(size for name, size in sizes.items() if name.startswith("blocks.0."))
    token_bytes = config.width * pack_tokens * compute_bytes
    whole = 34 * token_bytes
    kept = {"none": 34, "selective": 9, "full": 1}[activation_checkpointing] * token_bytes
    return MemoryEstimate(
        weights_bytes=4 * weights,
        gradients_bytes=4 * (shard if packs_per_worker == 1 else trained),
        optimizer_bytes=8 * shard,
        average_bytes=4 * shard if averaged else 0,
        gathered_bytes=2 * block * compute_bytes if workers > 1 else 0,
        activations_bytes=config.depth * kept + (0 if kept == whole else whole),
    )
