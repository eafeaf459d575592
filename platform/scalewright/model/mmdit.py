"""The MMDiT of Kandinsky 4.0: text and visual tokens share every weight of a block.

Time enters by adaptive layer norm with zero-initialised modulation (adaLN-Zero), one modulation
for visual and one for text tokens. Queries and keys are normalised, visual ones carry 3-D RoPE.

Shapes: N tokens, H heads, K head_dim, D width, R clips (rows of modulation).
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scalewright.model.attention import Attention, Segments, segment_attention
from scalewright.model.packed import PackedBatch
from scalewright.model.rope import rotate, rotation
from scalewright.model.shape import ModelConfig


class Block(nn.Module):
    """Attention and feed-forward, each modulated, gated and added to the residual stream."""

    def __init__(self, config: ModelConfig, attention: Attention, recompute: bool) -> None:
        super().__init__()
        d = config.width
        self.heads, self.head_dim = config.heads, config.head_dim
        self.attention, self.recompute = attention, recompute
        self.visual_modulation = nn.Linear(config.time_dim, 6 * d)
        self.text_modulation = nn.Linear(config.time_dim, 6 * d)
        self.attention_norm = nn.LayerNorm(d, elementwise_affine=config.norm_affine)
        self.qkv = nn.Linear(d, 3 * d)
        self.query_norm = _head_norm(config)
        self.key_norm = _head_norm(config)
        self.attention_out = nn.Linear(d, d)
        self.ff_norm = nn.LayerNorm(d, elementwise_affine=config.norm_affine)
        self.ff_in = nn.Linear(d, config.ff_mult * d)
        self.ff_out = nn.Linear(config.ff_mult * d, d)

    def forward(
        self,
        x_ND: Tensor,
        time_RT: Tensor,
        rows: Tensor,
        cosine: Tensor,
        sine: Tensor,
        segments: Segments,
    ) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(
                self._run, x_ND, time_RT, rows, cosine, sine, segments, use_reentrant=False
            )
        return self._run(x_ND, time_RT, rows, cosine, sine, segments)

    def _run(
        self,
        x_ND: Tensor,
        time_RT: Tensor,
        rows: Tensor,
        cosine: Tensor,
        sine: Tensor,
        segments: Segments,
    ) -> Tensor:
        table = torch.cat((self.visual_modulation(time_RT), self.text_modulation(time_RT)))
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = table[rows].chunk(6, dim=-1)
        attended = self._attend(
            _modulate(self.attention_norm(x_ND), shift_a, scale_a), cosine, sine, segments
        )
        x_ND = x_ND + gate_a * attended
        hidden = self.ff_in(_modulate(self.ff_norm(x_ND), shift_f, scale_f))
        return x_ND + gate_f * self.ff_out(nn.functional.gelu(hidden))

    def _attend(self, x_ND: Tensor, cosine: Tensor, sine: Tensor, segments: Segments) -> Tensor:
        q, k, v = self.qkv(x_ND).view(-1, 3, self.heads, self.head_dim).unbind(1)
        # Autocast may leave normalised queries wider than the values; kernels want one type.
        q = rotate(self.query_norm(q), cosine, sine).to(v.dtype)
        k = rotate(self.key_norm(k), cosine, sine).to(v.dtype)
        return self.attention_out(self.attention(q, k, v, segments).flatten(1))


class MMDiT(nn.Module):
    """Packed clips in, predicted velocity of their visual tokens out."""

    def __init__(
        self,
        config: ModelConfig,
        attention: Attention = segment_attention,
        *,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        d = config.width
        self.config = config
        # muP's output multiplier. A plain float: attributes on tensors do not survive sharding.
        self.output_multiplier = 1 / config.width_mult
        self.visual_in = nn.Linear(config.patch_dim, d)
        self.text_in = nn.Linear(config.text_dim, d)
        self.time_in = nn.Linear(config.time_freq_dim, config.time_dim)
        self.time_out = nn.Linear(config.time_dim, config.time_dim)
        self.blocks = nn.ModuleList(
            Block(config, attention, activation_checkpointing) for _ in range(config.depth)
        )
        self.final_norm = nn.LayerNorm(d, elementwise_affine=config.norm_affine)
        self.final_modulation = nn.Linear(config.time_dim, 2 * d)
        self.visual_out = nn.Linear(d, config.patch_dim)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Velocity (Nv, patch_dim) for every visual token of the pack."""
        dtype = self.visual_in.weight.dtype
        time_RT = self._time(batch.noise_level, dtype)
        tokens = torch.cat(
            (self.visual_in(batch.visual.to(dtype)), self.text_in(batch.text.to(dtype)))
        )
        x_ND = tokens[batch.joint_order]
        cosine, sine = rotation(batch.positions, self.config.rope_axes, self.config.rope_theta)
        segments = Segments(batch.cu_seqlens, batch.max_seqlen, batch.lengths)
        for block in self.blocks:
            x_ND = block(x_ND, time_RT, batch.modulation_rows, cosine, sine, segments)
        x_ND = x_ND[batch.visual_places]
        rows = batch.modulation_rows[batch.visual_places]
        shift, scale = self.final_modulation(time_RT)[rows].chunk(2, dim=-1)
        x_ND = _modulate(self.final_norm(x_ND), shift, scale)
        return self.visual_out(x_ND) * self.output_multiplier

    def _time(self, noise_level: Tensor, dtype: torch.dtype) -> Tensor:
        wave = sinusoid(1000 * noise_level, self.config.time_freq_dim).to(dtype)
        hidden = nn.functional.silu(self.time_in(wave))
        return nn.functional.silu(self.time_out(hidden))


def sinusoid(x: Tensor, size: int) -> Tensor:
    """(R,) -> (R, size): cosines, then sines, of geometrically spaced frequencies (period 1e4)."""
    half = size // 2
    frequency = torch.exp(
        -math.log(1e4) * torch.arange(half, dtype=torch.float64, device=x.device) / half
    )
    angle = x[:, None].double() * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=1)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def _head_norm(config: ModelConfig) -> nn.Module:
    if config.qk_norm == "rms":
        return nn.RMSNorm(config.head_dim, eps=1e-6)
    return nn.LayerNorm(config.head_dim)
