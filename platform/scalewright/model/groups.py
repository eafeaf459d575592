"""Local and global attention: which tokens of a clip attend to each other in a block.

A clip's grid of (t, h, w) tokens is shared out over G groups, contiguous ones in local blocks and
strided ones in global blocks, by turns (Kandinsky 4.0). The text of the clip is in every group; of
its G results the mean is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from scalewright.model.attention import Attention, Segments

Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Grouping:
    """One way to regroup a pack of N tokens, of which Nt are text, into N' = Nv + G·Nt.

    gather (N',): where each token of the regrouped sequence lies in the pack;
    first (N,): where the first copy of each token of the pack lies in the regrouped sequence;
    text_places (Nt,) in the pack; text_copies (Nt, G): where all of its copies lie.
    """

    gather: Tensor
    first: Tensor
    text_places: Tensor
    text_copies: Tensor
    segments: Segments

    def to(self, device: torch.device) -> "Grouping":
        moved: dict[str, Any] = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in fields(self)
            if field.name != "segments"
        }
        return replace(self, **moved, segments=self.segments.to(device))


def attend_in_groups(
    attention: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grouping: Grouping,
    *,
    want_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention within the groups; `lse` is of the regrouped sequence, (N', heads)."""
    gather = grouping.gather
    grouped, lse = attention(q[gather], k[gather], v[gather], grouping.segments, want_lse=want_lse)
    text = grouped[grouping.text_copies].mean(1)
    return grouped[grouping.first].index_copy(0, grouping.text_places, text), lse


def grouping(grids: Sequence[Sizes], texts: Sequence[int], groups: Sizes, local: bool) -> Grouping:
    """The local or the global grouping of clips with grids (t, h, w) and `texts` text tokens each.

    Clips lie in the pack as [visual_i, text_i]; every axis of a grid divides by its `groups`.
    """
    gather, copies, places, lengths = [], [], [], []
    begin, regrouped = 0, 0
    for grid, text in zip(grids, texts, strict=True):
        members = _members(grid, groups, local)  # (G, visual tokens of a group)
        count, size = members.shape
        visual = members.numel()
        words = torch.arange(visual, visual + text).expand(count, text)
        gather.append(torch.cat((members, words), dim=1).reshape(-1) + begin)
        starts = regrouped + torch.arange(count) * (size + text) + size
        copies.append(torch.arange(text)[:, None] + starts)
        places.append(torch.arange(text) + begin + visual)
        lengths += [size + text] * count
        begin += visual + text
        regrouped += count * (size + text)
    order = torch.cat(gather)
    # The smallest place of each token: copies of a text token come in rising order.
    first = torch.full((begin,), len(order)).scatter_reduce(
        0, order, torch.arange(len(order)), "amin"
    )
    return Grouping(order, first, torch.cat(places), torch.cat(copies), Segments.of(lengths))


def _members(grid: Sizes, groups: Sizes, local: bool) -> Tensor:
    """Visual tokens of each group, (G, tokens of a group), as places in the clip."""
    index = torch.arange(grid[0] * grid[1] * grid[2])
    sizes = [size // count for size, count in zip(grid, groups, strict=True)]
    split = []
    for size, count in zip(sizes, groups, strict=True):
        split += [count, size] if local else [size, count]
    axes = (0, 2, 4, 1, 3, 5) if local else (1, 3, 5, 0, 2, 4)
    return index.reshape(split).permute(axes).reshape(groups[0] * groups[1] * groups[2], -1)
