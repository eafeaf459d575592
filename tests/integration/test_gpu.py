"""On a CUDA device: the packed kernels against the CPU's oracle, and a whole small run."""

from pathlib import Path

import pytest
import torch
from ranks import small

from scalewright.model.attention import Segments, attention_for, segment_attention
from scalewright.train.checkpoint import newest_verified
from scalewright.train.worker import CHECKPOINTS, RunPlace, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_packed_attention_equals_clip_by_clip() -> None:
    device = torch.device("cuda")
    attention, reason = attention_for(device, torch.bfloat16)
    assert attention is not segment_attention, reason
    lengths = (7, 130, 64)
    cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    segments = Segments(cu_seqlens, max(lengths), lengths)
    shape = (sum(lengths), 4, 64)
    q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(3))
    found = attention(q, k, v, segments).float()
    oracle = segment_attention(q.float(), k.float(), v.float(), segments)
    assert (found - oracle).abs().max() < 0.03
    assert (found - oracle).abs().mean() < 0.003


@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
def test_a_run_on_the_gpu(data_folder: Path, tmp_path: Path, compute: str) -> None:
    config = small(f"parallel.compute={compute}", "model.head_dim=16", "model.width=64")
    train(config, RunPlace(tmp_path, data_folder, 1), torch.device("cuda"))
    found = newest_verified(tmp_path / CHECKPOINTS)
    assert found is not None
    assert found[1].step == config.steps
