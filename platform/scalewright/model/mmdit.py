"""The MMDiT of Kandinsky 4.0: text and visual tokens share every weight of a block.

Time enters by adaptive layer norm with zero-initialised modulation (adaLN-Zero), one modulation
for visual and one for text tokens. Queries and keys are normalised, visual ones carry 3-D RoPE.
Noise levels belong to tokens: the first frame of a clip may have its own (image to video).

Shapes: N tokens, H heads, K head_dim, D width, R noise levels (rows of modulation).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scalewright.model.attention import Attention, Segments, segment_attention
from scalewright.model.groups import Grouping, attend_in_groups
from scalewright.model.packed import PackedBatch
from scalewright.model.rope import rotate, rotation
from scalewright.model.shape import ModelConfig
from scalewright.model.statistics import Watch, logit_bounds, noise_bins, site_statistics

NOTHING = Watch()


class Context(NamedTuple):
    """What every block of a pass reads beside the tokens; a tuple, for FSDP to find its tensors.

    time (R, time_dim); rows (N,) of the modulation table of 2R rows; cosine, sine (N, K / 2);
    bins (R,): the range of each noise level, for statistics.
    """

    time: Tensor
    rows: Tensor
    cosine: Tensor
    sine: Tensor
    bins: Tensor
    watch: Watch


class Seen(NamedTuple):
    """What a block tells of a pass: `sites` (sites, BINS, 4), `logits` (BINS, 2) and `power`.

    `power`: sum of squares of its output, with gradient, for a penalty.
    """

    sites: Tensor | None = None
    logits: Tensor | None = None
    power: Tensor | None = None


class Prediction(NamedTuple):
    """Velocity (Nv, patch_dim) of every visual token, and what each block tells of itself."""

    velocity: Tensor
    seen: tuple[Seen, ...]


class Block(nn.Module):
    """Attention and feed-forward, each modulated, gated and added to the residual stream."""

    def __init__(self, config: ModelConfig, attention: Attention) -> None:
        super().__init__()
        d = config.width
        self.heads, self.head_dim = config.heads, config.head_dim
        self.branch_multiplier = config.branch_multiplier
        self.attention = attention
        # How `run` is run: recomputed in the backward pass, compiled, or as it is.
        self.runner: Callable[..., tuple[Tensor, Seen]] = self.run
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
        self, x_ND: Tensor, context: Context, layout: Segments | Grouping
    ) -> tuple[Tensor, Seen]:
        return self.runner(x_ND, context, layout)

    def run(
        self, x_ND: Tensor, context: Context, layout: Segments | Grouping
    ) -> tuple[Tensor, Seen]:
        """One pass; `layout` says which tokens attend to each other."""
        time = context.time
        table = torch.cat((self.visual_modulation(time), self.text_modulation(time)))
        chosen = table.index_select(0, context.rows)
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = chosen.chunk(6, dim=-1)
        attended, lse = self._attend(
            _modulate(self.attention_norm(x_ND), shift_a, scale_a), context, layout
        )
        x_ND = x_ND + self.branch_multiplier * gate_a * attended
        hidden = self.ff_in(_modulate(self.ff_norm(x_ND), shift_f, scale_f))
        fed = self.ff_out(nn.functional.gelu(hidden))
        x_ND = x_ND + self.branch_multiplier * gate_f * fed
        return x_ND, _look(context, layout, (x_ND, attended, fed), table, lse)

    def _attend(
        self, x_ND: Tensor, context: Context, layout: Segments | Grouping
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = self.qkv(x_ND).view(-1, 3, self.heads, self.head_dim).unbind(1)
        # Autocast may leave normalised queries wider than the values; kernels want one type.
        q = rotate(self.query_norm(q), context.cosine, context.sine).to(v.dtype)
        k = rotate(self.key_norm(k), context.cosine, context.sine).to(v.dtype)
        want_lse = context.watch.statistics
        if isinstance(layout, Grouping):
            out, lse = attend_in_groups(self.attention, q, k, v, layout, want_lse=want_lse)
        else:
            out, lse = self.attention(q, k, v, layout, want_lse=want_lse)
        return self.attention_out(out.flatten(1)), lse


class MMDiT(nn.Module):
    """Packed clips in, predicted velocity of their visual tokens out."""

    def __init__(self, config: ModelConfig, attention: Attention = segment_attention) -> None:
        super().__init__()
        d = config.width
        self.config = config
        # muP's output multiplier. A plain float: attributes on tensors do not survive sharding.
        self.output_multiplier = 1 / config.width_mult
        self.visual_in = nn.Linear(config.patch_dim, d)
        self.text_in = nn.Linear(config.text_dim, d)
        self.time_in = nn.Linear(config.time_freq_dim, config.time_dim)
        self.time_out = nn.Linear(config.time_dim, config.time_dim)
        if config.scores:
            self.score_in = nn.Linear(2 * len(config.scores), config.time_dim)
        self.blocks = nn.ModuleList(Block(config, attention) for _ in range(config.depth))
        self.final_norm = nn.LayerNorm(d, elementwise_affine=config.norm_affine)
        self.final_modulation = nn.Linear(config.time_dim, 2 * d)
        self.visual_out = nn.Linear(d, config.patch_dim)

    def forward(self, batch: PackedBatch, watch: Watch = NOTHING) -> Prediction:
        dtype = self.visual_in.weight.dtype
        cosine, sine = rotation(batch.positions, self.config)
        time, rows = self._time(batch, dtype), batch.modulation_rows
        bins = noise_bins(batch.noise_level)
        context = Context(time, rows, cosine, sine, bins, watch)
        tokens = torch.cat(
            (self.visual_in(batch.visual.to(dtype)), self.text_in(batch.text.to(dtype)))
        )
        x_ND = tokens.index_select(0, batch.joint_order)
        layouts = batch.groupings or (batch.segments,)
        seen = []
        for index, block in enumerate(self.blocks):
            x_ND, told = block(x_ND, context, layouts[index % len(layouts)])
            seen.append(told)
        return Prediction(self._velocity(x_ND, context.time, batch), tuple(seen))

    def _velocity(self, x_ND: Tensor, time: Tensor, batch: PackedBatch) -> Tensor:
        x_ND = x_ND.index_select(0, batch.visual_places)
        rows = batch.modulation_rows[batch.visual_places]
        shift, scale = self.final_modulation(time).index_select(0, rows).chunk(2, dim=-1)
        x_ND = _modulate(self.final_norm(x_ND), shift, scale)
        return self.visual_out(x_ND) * self.output_multiplier

    def _time(self, batch: PackedBatch, dtype: torch.dtype) -> Tensor:
        wave = sinusoid(1000 * batch.noise_level, self.config.time_freq_dim).to(dtype)
        time = self.time_out(nn.functional.silu(self.time_in(wave)))
        if self.config.scores:
            time = time + self.score_in(batch.scores.to(dtype))
        return nn.functional.silu(time)


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


def _look(
    context: Context,
    layout: Segments | Grouping,
    activations: tuple[Tensor, Tensor, Tensor],
    table: Tensor,
    lse: Tensor | None,
) -> Seen:
    """What the pass was asked to tell; `activations` are those of the first three `SITES`."""
    power = activations[0].float().square().sum() if context.watch.penalty else None
    if lse is None:
        return Seen(power=power)
    row_bins = context.bins.repeat(2)  # visual and text rows of the table
    bins = row_bins[context.rows]
    gates = table.chunk(6, dim=-1)[2::3]
    sites = [site_statistics(x, bins) for x in activations]
    sites += [site_statistics(gate, row_bins) for gate in gates]
    segments = layout
    if isinstance(layout, Grouping):
        segments, bins = layout.segments, bins[layout.gather]
    assert isinstance(segments, Segments)
    lengths = segments.cu_seqlens.diff()
    keys = lengths.repeat_interleave(lengths, output_size=len(bins))
    return Seen(torch.stack(sites), logit_bounds(lse, keys, bins), power)


def _head_norm(config: ModelConfig) -> nn.Module:
    if config.qk_norm == "rms":
        return nn.RMSNorm(config.head_dim, eps=1e-6)
    return nn.LayerNorm(config.head_dim)
