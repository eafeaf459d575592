"""Tensor parallelism on real ranks: the same numbers as one rank."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import CPU, run_ranks
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from scalewright.errors import ConfigError
from scalewright.model.mmdit import MMDiT
from scalewright.model.mup import materialise, meta_model, param_rules
from scalewright.model.packed import PackItem, pack
from scalewright.model.shape import ModelConfig
from scalewright.model.tensor_parallel import check_ranks, parallelise

TINY = ModelConfig(
    width=64, depth=2, head_dim=16, rope_axes=(4, 6, 6), time_dim=16, text_dim=8,
    latent_channels=4, time_freq_dim=32, mup_base_width=16,
)  # fmt: skip
CONFIGS = (
    TINY,
    replace(TINY, qk_norm="layer", norm_affine=False),
    replace(TINY, attention="local_global", groups=(1, 2, 2), scores=("motion",)),
)


def awake(config: ModelConfig, dtype: torch.dtype) -> MMDiT:
    """A model in which every weight, and so every bias, acts."""
    model = meta_model(config)
    materialise(model, param_rules(config), seed=0, device=CPU)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype)


def items(config: ModelConfig, dtype: torch.dtype) -> Sequence[PackItem]:
    generator = torch.Generator().manual_seed(2)
    made = []
    for index, (T, H, W) in enumerate(((1, 4, 4), (2, 4, 8), (3, 8, 4))):
        latent = torch.randn(T, config.latent_channels, H, W, generator=generator).to(dtype)
        text = torch.randn(1 + index, config.text_dim, generator=generator).to(dtype)
        first = 0.0 if T > 1 else None
        made.append(PackItem(latent, text, 0.2 + 0.3 * index, first, {"motion": 0.4}))
    return made


def velocity(model: MMDiT, dtype: torch.dtype) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(pack(items(model.config, dtype), model.config)).velocity
    return found


def compare_with_whole(rank: int, folder: Path) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        for config in CONFIGS:
            model = awake(config, dtype)
            expected = velocity(model, dtype)
            parallelise(model, mesh)
            found = velocity(model, dtype)
            assert expected.abs().max() > 0.1
            assert (found - expected).abs().max() <= limit, config
            qkv = model.blocks[0].qkv.weight
            assert isinstance(qkv, DTensor)
            assert qkv.to_local().shape == (3 * config.width // mesh.size(), config.width)
    torch.save(found, folder / f"{rank}.pt")


def test_ranks_compute_what_one_computes(tmp_path: Path) -> None:
    run_ranks(2, compare_with_whole, tmp_path)
    first, *others = (torch.load(path) for path in sorted(tmp_path.iterdir()))
    assert all(torch.equal(first, other) for other in others)


def test_heads_must_share_out() -> None:
    check_ranks(TINY, 4)
    with pytest.raises(ConfigError, match=r"3 ranks.*4 heads.*\[1, 2, 4\]"):
        check_ranks(TINY, 3)
