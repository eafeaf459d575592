"""One model over several ranks, matrix by matrix: every rank has its share of heads and neurons.

In a block, qkv and the feed-forward's first matrix are cut by rows (a rank computes its own heads
and neurons), attention_out and the second by columns, so that a block adds up partial results twice
(Shoeybi et al. 2019, section 3). All else is the same on every rank, as are the tokens between.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from scalewright.errors import ConfigError
from scalewright.model.mmdit import Block, MMDiT
from scalewright.model.shape import ModelConfig


def check_ranks(config: ModelConfig, ranks: int) -> None:
    """Refuse a number of ranks that does not share out the heads evenly."""
    if ranks < 1 or config.heads % ranks:
        legal = [n for n in range(1, config.heads + 1) if config.heads % n == 0]
        raise ConfigError(
            f"tensor parallel over {ranks} ranks: the model's {config.heads} heads do not share "
            f"out evenly; use one of {legal}"
        )


def parallelise(model: MMDiT, mesh: DeviceMesh) -> None:
    """Cut every block of an unsharded model, whose weights all ranks hold, over a 1-D `mesh`.

    For inference: the qkv matrix is reordered by heads, so its weights are no longer those of a
    checkpoint, place by place.
    """
    check_ranks(model.config, mesh.size())
    for module in model.blocks:
        block = cast(Block, module)
        _gather_heads(block.qkv, mesh.size())
        # Every rank cuts its own share out of the whole it has: nothing is sent.
        parallelize_module(block, mesh, _plan(), src_data_rank=None)
        block.heads //= mesh.size()


def _plan() -> dict[str, ParallelStyle]:
    return {
        "qkv": ColwiseParallel(),
        "attention_out": RowwiseParallel(),
        "ff_in": ColwiseParallel(),
        "ff_out": RowwiseParallel(),
    }


def _gather_heads(qkv: nn.Linear, ranks: int) -> None:
    """Reorder rows [q, k, v] to [q_0, k_0, v_0, q_1, ...], so that contiguous cuts are by heads."""
    with torch.no_grad():
        for parameter in qkv.parameters():
            parameter.copy_(_by_rank(parameter, ranks))


def _by_rank(rows: Tensor, ranks: int) -> Tensor:
    """(3·D, ...) -> (3·D, ...): the `ranks` equal parts of each of the three go together."""
    return rows.unflatten(0, (3, ranks, -1)).transpose(0, 1).flatten(0, 2)
