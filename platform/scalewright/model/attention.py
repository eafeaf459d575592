"""Attention over packed clips behind one interface, and the choice of who computes it.

    (q, k, v, segments) -> out        q, k, v, out: (N, heads, head_dim)

Clips attend only to themselves. `flash-attn` where it is installed, torch's varlen attention on
CUDA otherwise, and on CPU scaled-dot-product attention clip by clip, which is the oracle too.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Segments:
    """Where clips begin and end in the packed sequence: on the device and on the host."""

    cu_seqlens: Tensor
    max_seqlen: int
    lengths: tuple[int, ...]


Attention = Callable[[Tensor, Tensor, Tensor, Segments], Tensor]


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


def segment_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """Scaled-dot-product attention, one call a clip; runs everywhere and in every precision."""
    parts = []
    for part in zip(*(x.split(segments.lengths) for x in (q, k, v)), strict=True):
        query, key, value = (x.transpose(0, 1)[None] for x in part)
        parts.append(scaled_dot_product_attention(query, key, value)[0].transpose(0, 1))
    return torch.cat(parts)


def torch_varlen_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """torch.nn.attention.varlen (CUDA, bf16 or fp16)."""
    from torch.nn.attention.varlen import varlen_attn

    cu, longest = segments.cu_seqlens, segments.max_seqlen
    out = varlen_attn(q, k, v, cu, cu, longest, longest)
    assert isinstance(out, Tensor)  # a tuple only where the log-sum-exp is asked for
    return out


def flash_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """flash-attn's varlen kernel (CUDA, bf16 or fp16)."""
    from flash_attn import flash_attn_varlen_func

    cu, longest = segments.cu_seqlens, segments.max_seqlen
    return flash_attn_varlen_func(q, k, v, cu, cu, longest, longest)
