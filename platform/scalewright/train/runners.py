"""How a block is run: as it is, recomputed in the backward pass, compiled."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from scalewright.model.mmdit import Block
from scalewright.train.run import ParallelConfig

_MATRIX_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def choose_runner(block: Block, config: ParallelConfig) -> None:
    """Set the block's runner to what the config asks for.

    Recomputation is inside what is compiled, so that the compiler plans both.
    """
    run: Callable[..., Any] = block.run
    match config.activation_checkpointing:
        case "full":
            run = partial(checkpoint, run, use_reentrant=False)
        case "selective":
            run = partial(checkpoint, run, use_reentrant=False, context_fn=_save_some)
    if config.compile:
        # One code for what is watched, with and without gradients, local and global groups.
        torch._dynamo.config.recompile_limit = 64
        run = torch.compile(run, fullgraph=True, dynamic=True)
    block.runner = run


def _save_some() -> Any:
    """Contexts that keep the dearest results: attention and every second matrix product."""
    return create_selective_checkpoint_contexts(_SavePolicy())


class _SavePolicy:
    """Save attention and every second matrix product, counted apart for recomputation."""

    def __init__(self) -> None:
        self._seen = {False: 0, True: 0}

    def __call__(self, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if "attention" in str(op) or "attn" in str(op):
            return CheckpointPolicy.MUST_SAVE
        if op not in _MATRIX_PRODUCTS:
            return CheckpointPolicy.PREFER_RECOMPUTE
        self._seen[context.is_recompute] += 1
        if self._seen[context.is_recompute] % 2:
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE
