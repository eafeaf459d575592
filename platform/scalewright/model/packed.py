"""A pack: several clips end to end, no padding. What one forward pass eats."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackItem:
    """One clip of a pack: a noised latent (T, C, H, W), its text (S, text_dim), its noise level."""

    latent: Tensor
    text: Tensor
    noise_level: float


@dataclass(frozen=True)
class PackedBatch:
    """Clips as one sequence of N = Nv + Nt tokens, ordered [visual_i, text_i] clip by clip.

    visual (Nv, patch_dim); text (Nt, text_dim); noise_level (R,), one row a clip;
    joint_order (N,): where token n of the sequence lies in cat(visual, text);
    visual_places (Nv,): where the visual tokens lie in the sequence;
    positions (N, 3): (t, h, w) of each token, zero for text;
    modulation_rows (N,): row of the modulation table, r for visual and R + r for text of clip r;
    cu_seqlens (R + 1,) int32 with `max_seqlen` and `lengths` on the host.
    """

    visual: Tensor
    text: Tensor
    noise_level: Tensor
    joint_order: Tensor
    visual_places: Tensor
    positions: Tensor
    modulation_rows: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    lengths: tuple[int, ...]

    def to(self, device: torch.device) -> "PackedBatch":
        moved: dict[str, Any] = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)


def patchify(latent: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """(T, C, H, W) -> (tokens, C·pt·ph·pw), tokens in order of (t, h, w)."""
    T, C, H, W = latent.shape
    t, h, w = patch
    split = latent.reshape(T // t, t, C, H // h, h, W // w, w)
    return split.permute(0, 3, 5, 2, 1, 4, 6).reshape(-1, C * t * h * w)


def unpatchify(
    tokens: Tensor, shape: tuple[int, int, int, int], patch: tuple[int, int, int]
) -> Tensor:
    """The inverse of `patchify` for a latent of `shape` (T, C, H, W)."""
    T, C, H, W = shape
    t, h, w = patch
    split = tokens.reshape(T // t, H // h, W // w, C, t, h, w)
    return split.permute(0, 4, 3, 1, 5, 2, 6).reshape(T, C, H, W)


def pack(items: Sequence[PackItem], patch: tuple[int, int, int]) -> PackedBatch:
    """Lay clips end to end; what each clip sees does not depend on its neighbours."""
    visual = [patchify(item.latent, patch) for item in items]
    text = [item.text for item in items]
    visual_total = sum(len(tokens) for tokens in visual)
    order, rows, positions, lengths = [], [], [], []
    visual_start, text_start = 0, visual_total
    for row, (item, v, s) in enumerate(zip(items, visual, text, strict=True)):
        order += [
            torch.arange(visual_start, visual_start + len(v)),
            torch.arange(text_start, text_start + len(s)),
        ]
        rows += [torch.full((len(v),), row), torch.full((len(s),), len(items) + row)]
        positions += [_grid(item.latent.shape, patch), torch.zeros(len(s), 3, dtype=torch.long)]
        lengths.append(len(v) + len(s))
        visual_start += len(v)
        text_start += len(s)
    joint_order = torch.cat(order)
    return PackedBatch(
        visual=torch.cat(visual),
        text=torch.cat(text),
        noise_level=torch.tensor([item.noise_level for item in items], dtype=torch.float64),
        joint_order=joint_order,
        visual_places=(joint_order < visual_total).nonzero()[:, 0],
        positions=torch.cat(positions),
        modulation_rows=torch.cat(rows),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        max_seqlen=max(lengths),
        lengths=tuple(lengths),
    )


def _grid(shape: torch.Size, patch: tuple[int, int, int]) -> Tensor:
    T, _, H, W = shape
    sizes = (T // patch[0], H // patch[1], W // patch[2])
    return torch.cartesian_prod(*(torch.arange(size) for size in sizes)).reshape(-1, 3)
