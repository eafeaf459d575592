"""Attention over packed clips behind one interface, and the choice of who computes it.

    (q, k, v, segments, want_lse) -> out, lse        q, k, v, out: (N, heads, head_dim)

Tokens attend only within their segment: a clip, or one group of it. `flash-attn` where it is
installed, torch's varlen attention on CUDA otherwise, and on CPU scaled-dot-product attention
segment by segment, which is the oracle too. `lse` (N, heads) is the logarithm of the sum of
exponentiated logits of each query, in fp32 or wider, where it is asked for: it bounds the largest
logit, lse - ln(keys) <= max <= lse.
"""

import importlib.util
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from scalewright.model import segment_operator
from scalewright.model.segment_operator import log_sum_exp


@dataclass(frozen=True)
class Segments:
    """Where segments begin and end in the sequence: on the device and on the host."""

    cu_seqlens: Tensor
    max_seqlen: int
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, lengths: list[int]) -> "Segments":
        cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        return cls(cu_seqlens, max(lengths), tuple(lengths))

    def to(self, device: torch.device) -> "Segments":
        return replace(self, cu_seqlens=self.cu_seqlens.to(device, non_blocking=True))


class Attention(Protocol):
    """A back end; see the head of this file."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, *, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]: ...


def attention_for(device: torch.device, compute: torch.dtype) -> tuple[Attention, str]:
    """The fastest back end that works on `device` in `compute`, and its name with the reason."""
    if device.type != "cuda":
        return segment_attention, f"SDPA clip by clip: no varlen kernel exists for {device.type}"
    if compute not in (torch.bfloat16, torch.float16):
        return segment_attention, f"SDPA clip by clip: no varlen kernel takes {compute}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return segment_attention, "SDPA clip by clip: varlen kernels need compute capability 8.0"
    if importlib.util.find_spec("flash_attn") is not None:
        return flash_attention, "flash-attn: it is installed"
    return torch_varlen_attention, "torch varlen: flash-attn is not installed"


def segment_attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, *, want_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Scaled-dot-product attention, one call a segment; runs everywhere, in every precision."""
    if torch.compiler.is_compiling():
        out, lse = segment_operator.attend(q, k, v, segments.cu_seqlens, want_lse)
        return out, lse if want_lse else None
    parts, sums = [], []
    for part in zip(*(x.split(segments.lengths) for x in (q, k, v)), strict=True):
        query, key, value = (x.transpose(0, 1)[None] for x in part)
        parts.append(scaled_dot_product_attention(query, key, value)[0].transpose(0, 1))
        if want_lse:
            sums.append(log_sum_exp(query[0], key[0]).transpose(0, 1))
    return torch.cat(parts), torch.cat(sums) if want_lse else None


def torch_varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, *, want_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """torch.nn.attention.varlen (CUDA, bf16 or fp16)."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    cu, longest = segments.cu_seqlens, segments.max_seqlen
    if not want_lse:
        out = varlen_attn(q, k, v, cu, cu, longest, longest)
        assert isinstance(out, Tensor)  # a tuple only where the log-sum-exp is asked for
        return out, None
    out, lse = varlen_attn(q, k, v, cu, cu, longest, longest, return_aux=AuxRequest(lse=True))
    return out, lse.transpose(0, 1)


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, *, want_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """flash-attn's varlen kernel (CUDA, bf16 or fp16)."""
    from flash_attn import flash_attn_varlen_func

    cu, longest = segments.cu_seqlens, segments.max_seqlen
    if not want_lse:
        return flash_attn_varlen_func(q, k, v, cu, cu, longest, longest), None
    out, lse, _ = flash_attn_varlen_func(q, k, v, cu, cu, longest, longest, return_attn_probs=True)
    return out, lse.transpose(0, 1)
