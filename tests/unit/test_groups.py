"""Local and global attention against masked attention over the whole clip."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from scalewright.model.attention import segment_attention
from scalewright.model.groups import Sizes, attend_in_groups, grouping

HEADS, SIZE = 2, 8


def group_of(place: tuple[int, int, int], grid: Sizes, groups: Sizes, local: bool) -> Sizes:
    """The group of a token by the article's words: contiguous blocks, or a strided grid."""
    if local:
        return tuple(p * g // n for p, n, g in zip(place, grid, groups, strict=True))  # type: ignore[return-value]
    return tuple(p % g for p, g in zip(place, groups, strict=True))  # type: ignore[return-value]


def oracle(q: Tensor, k: Tensor, v: Tensor, grid: Sizes, groups: Sizes, local: bool) -> Tensor:
    """One clip, group by group: attention of its visual tokens and all text; text is averaged."""
    places = [(t, h, w) for t in range(grid[0]) for h in range(grid[1]) for w in range(grid[2])]
    labels = [group_of(place, grid, groups, local) for place in places]
    out, text = torch.zeros_like(v), []
    for label in sorted(set(labels)):
        visual = [index for index, own in enumerate(labels) if own == label]
        members = visual + list(range(len(places), len(q)))
        part = scaled_dot_product_attention(
            *(x[members].transpose(0, 1) for x in (q, k, v))
        ).transpose(0, 1)
        out[visual] = part[: len(visual)]
        text.append(part[len(visual) :])
    out[len(places) :] = torch.stack(text).mean(0)
    return out


@settings(max_examples=20, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3)),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.booleans(),
)
def test_grouped_attention_is_that_of_each_group(
    sizes: Sizes, groups: Sizes, texts: list[int], local: bool
) -> None:
    grids: list[Sizes] = [
        (sizes[0] * groups[0] * (1 + i % 2), sizes[1] * groups[1], sizes[2] * groups[2])
        for i in range(len(texts))
    ]
    lengths = [g[0] * g[1] * g[2] + s for g, s in zip(grids, texts, strict=True)]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(sum(lengths), HEADS, SIZE, generator=generator, dtype=torch.float64)
        for _ in range(3)
    )
    layout = grouping(grids, texts, groups, local)
    out, lse = attend_in_groups(segment_attention, q, k, v, layout, want_lse=True)
    wanted = [
        oracle(*clip, grid, groups, local)
        for *clip, grid in zip(*(x.split(lengths) for x in (q, k, v)), grids, strict=True)
    ]
    assert (out - torch.cat(wanted)).abs().max() <= 1e-12
    assert lse is not None
    assert lse.shape == (len(layout.gather), HEADS)


def test_one_group_is_full_attention() -> None:
    q, k, v = (torch.randn(11, HEADS, SIZE, dtype=torch.float64) for _ in range(3))
    layout = grouping([(1, 2, 4)], [3], (1, 1, 1), local=True)
    out, _ = attend_in_groups(segment_attention, q, k, v, layout)
    whole, _ = segment_attention(q, k, v, layout.segments)
    assert torch.equal(out, whole)


@pytest.mark.parametrize("local", [True, False])
def test_every_token_is_in_one_group_and_text_in_all(local: bool) -> None:
    layout = grouping([(2, 4, 4), (1, 2, 2)], [3, 1], (1, 2, 2), local)
    counts = layout.gather.bincount()
    visual = torch.tensor([1] * 32 + [4] * 3 + [1] * 4 + [4])
    assert torch.equal(counts, visual)
    assert torch.equal(layout.gather[layout.first], torch.arange(40))
    assert torch.equal(layout.gather[layout.text_copies], layout.text_places[:, None].expand(-1, 4))
