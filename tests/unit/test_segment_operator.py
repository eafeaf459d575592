"""Attention as one operator, for the compiler, is the loop over segments."""

import pytest
import torch
from torch import Tensor, library

from scalewright.model.attention import Segments, segment_attention
from scalewright.model.segment_operator import attend

SEGMENTS = Segments.of([3, 1, 7])


def leaves() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (sum(SEGMENTS.lengths), 2, 4)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(3)
    ]


@pytest.mark.parametrize("want_lse", [False, True])
def test_it_is_the_loop_and_so_are_its_gradients(want_lse: bool) -> None:
    expected, found = leaves(), leaves()
    out, lse = segment_attention(*expected, SEGMENTS, want_lse=want_lse)
    again, sums = attend(*found, SEGMENTS.cu_seqlens, want_lse)
    assert torch.equal(again, out)
    assert torch.equal(sums, lse) if lse is not None else sums.shape == (0, 2)
    upper = torch.randn_like(out)
    out.backward(upper)
    again.backward(upper)
    for one, other in zip(expected, found, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert (one.grad - other.grad).abs().max() < 1e-14


@pytest.mark.parametrize("want_lse", [False, True])
def test_it_keeps_the_rules_of_operators(want_lse: bool) -> None:
    library.opcheck(attend, (*leaves(), SEGMENTS.cu_seqlens, want_lse))


def test_packs_of_any_number_of_clips_are_compiled_once() -> None:
    counter = torch._dynamo.testing.CompileCounter()
    run = torch.compile(segment_attention, backend=counter, fullgraph=True, dynamic=True)
    for lengths in ([3, 4], [5, 6, 7], [2, 3, 4, 5], list(range(2, 20))):
        segments = Segments.of(lengths)
        q, k, v = (torch.randn(sum(lengths), 2, 4) for _ in range(3))
        assert torch.equal(run(q, k, v, segments)[0], segment_attention(q, k, v, segments)[0])
    assert counter.frame_count == 1
