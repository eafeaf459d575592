"""Rotary position embedding in three dimensions (time, height, width), as in Kandinsky 4.0."""

import torch
from torch import Tensor

from scalewright.model.shape import ModelConfig


def rotation(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables (N, head_dim / 2) for `positions` (N, 3) of (t, h, w).

    Each axis turns its own share of the head's pairs; a token at (0, 0, 0), such as text, is not
    turned at all. Computed in fp64, returned in fp32: bf16 angles lose whole positions.
    """
    angles = []
    for axis, size in enumerate(config.rope_axes):
        exponent = torch.arange(0, size, 2, dtype=torch.float64, device=positions.device) / size
        angles.append(positions[:, axis, None].double() * config.rope_theta**-exponent)
    angle = torch.cat(angles, dim=1)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn interleaved pairs of `x` (N, heads, head_dim) by the tables (N, head_dim / 2)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    even, odd = wide[..., 0::2], wide[..., 1::2]
    cosine, sine = cosine[:, None], sine[:, None]
    turned = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1)
    return turned.flatten(-2).to(x.dtype)
