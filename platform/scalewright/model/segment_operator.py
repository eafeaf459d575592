"""Attention segment by segment as one operator, for the compiler.

The compiler unrolls a loop over segments and compiles again for every count of them. Behind an
operator it sees shapes alone. Its backward pass is written out, as operators record no gradients of
what they call; it holds one segment's matrix of probabilities at a time.
"""

import itertools
import math

import torch
from torch import Tensor, library
from torch.nn.functional import scaled_dot_product_attention


@library.custom_op("scalewright::segment_attention", mutates_args=())
def attend(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, want_lse: bool
) -> tuple[Tensor, Tensor]:
    """q, k, v, out (N, heads, head_dim), lse (N, heads), or (0, heads) where it is not wanted."""
    out, lse = torch.empty_like(q), _empty_lse(q, want_lse)
    for begin, end in _ranges(cu_seqlens):
        query, key, value = (x[begin:end].transpose(0, 1) for x in (q, k, v))
        found = scaled_dot_product_attention(query[None], key[None], value[None])[0]
        out[begin:end] = found.transpose(0, 1)
        if want_lse:
            lse[begin:end] = log_sum_exp(query, key).transpose(0, 1)
    return out, lse


@library.custom_op("scalewright::segment_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, out: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v (arXiv 2205.14135, appendix B.2), in fp32 or wider."""
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = 1 / math.sqrt(q.shape[-1])
    for begin, end in _ranges(cu_seqlens):
        upper, result, query, key, value = (
            x[begin:end].transpose(0, 1).to(wide) for x in (grad, out, q, k, v)
        )
        probability = (scale * query @ key.mT).softmax(-1)
        of_probability = upper @ value.mT
        of_logit = probability * (of_probability - (upper * result).sum(-1, keepdim=True))
        parts = scale * of_logit @ key, scale * of_logit.mT @ query, probability.mT @ upper
        for whole, part in zip(grads, parts, strict=True):
            whole[begin:end] = part.transpose(0, 1)
    return grads


@torch.no_grad()
def log_sum_exp(query: Tensor, key: Tensor) -> Tensor:
    """(heads, n, head_dim) each -> (heads, n), by way of the whole matrix of logits."""
    wide = torch.promote_types(query.dtype, torch.float32)
    logits = query.to(wide) @ key.to(wide).transpose(1, 2) / math.sqrt(query.shape[-1])
    return logits.logsumexp(-1)


def _ranges(cu_seqlens: Tensor) -> list[tuple[int, int]]:
    ends = cu_seqlens.tolist()
    return list(itertools.pairwise(ends))


def _empty_lse(q: Tensor, wanted: bool) -> Tensor:
    dtype = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape[0] if wanted else 0, q.shape[1], dtype=dtype)


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, want_lse: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), _empty_lse(q, want_lse)


@_backward.register_fake
def _(
    grad: Tensor, out: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _remember(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, cu_seqlens, _ = inputs
    ctx.save_for_backward(output[0], q, k, v, cu_seqlens)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad, _) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    return (*_backward(grad, *ctx.saved_tensors), None, None)


attend.register_autograd(_differentiate, setup_context=_remember)
