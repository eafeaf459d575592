"""A pack: several clips end to end, no padding. What one forward pass eats."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from scalewright.model.attention import Segments
from scalewright.model.groups import Grouping, Sizes, grouping
from scalewright.model.shape import ModelConfig


@dataclass(frozen=True)
class PackItem:
    """One clip of a pack: a noised latent (T, C, H, W), its text (S, text_dim), its noise level.

    `first_frame_level`, where it is not None, is the noise level of the first latent frame alone
    (image to video). `scores` by name; one that is not there is unknown to the model.
    """

    latent: Tensor
    text: Tensor
    noise_level: float
    first_frame_level: float | None = None
    scores: dict[str, float] | None = None


@dataclass(frozen=True)
class PackedBatch:
    """Clips as one sequence of N = Nv + Nt tokens, ordered [visual_i, text_i] clip by clip.

    visual (Nv, patch_dim); text (Nt, text_dim); noise_level (R,), one row a noise level: a clip
    has one, or two if its first frame has its own;
    scores (R, 2·names): value (0 where unknown) and whether it is known, for each name;
    joint_order (N,): where token n of the sequence lies in cat(visual, text);
    visual_places (Nv,): where the visual tokens lie in the sequence;
    positions (N, 3) fp64: (t, h, w) of each token over `rope_scale`, zero for text;
    modulation_rows (N,): row of the modulation table, r for visual and R + r for text of row r;
    segments: the clips; groupings: local and global, empty under full attention.
    """

    visual: Tensor
    text: Tensor
    noise_level: Tensor
    scores: Tensor
    joint_order: Tensor
    visual_places: Tensor
    positions: Tensor
    modulation_rows: Tensor
    segments: Segments
    groupings: tuple[Grouping, ...]

    def to(self, device: torch.device) -> "PackedBatch":
        moved: dict[str, Any] = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        groupings = tuple(each.to(device) for each in self.groupings)
        return replace(self, **moved, segments=self.segments.to(device), groupings=groupings)


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


def pack(items: Sequence[PackItem], config: ModelConfig) -> PackedBatch:
    """Lay clips end to end; what each clip sees does not depend on its neighbours."""
    grids = [_grid(item.latent.shape, config.patch) for item in items]
    visual = [patchify(item.latent, config.patch) for item in items]
    text = [item.text for item in items]
    visual_total = sum(len(tokens) for tokens in visual)
    row_total = sum(len(_levels(item)) for item in items)
    order, rows, positions, lengths = [], [], [], []
    visual_start, text_start, row = 0, visual_total, 0
    for item, grid, v, s in zip(items, grids, visual, text, strict=True):
        order += [
            torch.arange(visual_start, visual_start + len(v)),
            torch.arange(text_start, text_start + len(s)),
        ]
        last = row + len(_levels(item)) - 1
        of_visual = torch.full((len(v),), last)
        of_visual[: grid[1] * grid[2]] = row  # the first frame's own, where it has one
        rows += [of_visual, torch.full((len(s),), row_total + last)]
        positions += [_places(grid, config), torch.zeros(len(s), 3, dtype=torch.float64)]
        lengths.append(len(v) + len(s))
        visual_start, text_start, row = visual_start + len(v), text_start + len(s), last + 1
    joint_order = torch.cat(order)
    return PackedBatch(
        visual=torch.cat(visual),
        text=torch.cat(text),
        noise_level=torch.tensor([x for i in items for x in _levels(i)], dtype=torch.float64),
        scores=_scores(items, config.scores),
        joint_order=joint_order,
        visual_places=(joint_order < visual_total).nonzero()[:, 0],
        positions=torch.cat(positions),
        modulation_rows=torch.cat(rows),
        segments=Segments.of(lengths),
        groupings=_groupings(grids, [len(s) for s in text], config),
    )


def _levels(item: PackItem) -> list[float]:
    """Noise levels of a clip's rows; that of the first frame comes first."""
    if item.first_frame_level is None:
        return [item.noise_level]
    return [item.first_frame_level, item.noise_level]


def _scores(items: Sequence[PackItem], names: Sequence[str]) -> Tensor:
    rows = []
    for item in items:
        known = item.scores or {}
        row = [x for name in names for x in (known.get(name, 0.0), float(name in known))]
        rows += [row] * len(_levels(item))
    return torch.tensor(rows, dtype=torch.float64)


def _groupings(
    grids: Sequence[Sizes], texts: Sequence[int], config: ModelConfig
) -> tuple[Grouping, ...]:
    if config.attention == "full":
        return ()
    return tuple(grouping(grids, texts, config.groups, local) for local in (True, False))


def _grid(shape: torch.Size, patch: tuple[int, int, int]) -> Sizes:
    T, _, H, W = shape
    return T // patch[0], H // patch[1], W // patch[2]


def _places(grid: Sizes, config: ModelConfig) -> Tensor:
    places = torch.cartesian_prod(*(torch.arange(size) for size in grid)).reshape(-1, 3)
    return places / torch.tensor(config.rope_scale, dtype=torch.float64)
