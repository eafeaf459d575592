"""The MMDiT: sizes, packing, rotary positions, attention."""

import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import awake
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scalewright.errors import ConfigError
from scalewright.model.memory import MemoryEstimate, Recompute, memory_estimate
from scalewright.model.mmdit import MMDiT
from scalewright.model.mup import meta_model
from scalewright.model.packed import PackItem, pack, patchify, unpatchify
from scalewright.model.rope import rotate, rotation
from scalewright.model.shape import (
    ClipTokens,
    ModelConfig,
    forward_flops,
    parameter_table,
    parameters,
    visual_tokens,
    width_ladder,
)
from scalewright.train.run import ParallelConfig
from scalewright.train.runners import choose_runner

TINY = ModelConfig(
    width=32, depth=2, head_dim=16, rope_axes=(4, 6, 6), time_dim=16, text_dim=8,
    latent_channels=4, time_freq_dim=32, mup_base_width=16,
)  # fmt: skip
GROUPED = replace(TINY, attention="local_global", groups=(1, 2, 2))
KANDINSKY = ModelConfig(
    width=3072, depth=42, head_dim=64, rope_axes=(16, 24, 24), time_freq_dim=3072, time_dim=512,
    text_dim=4096, latent_channels=16, qk_norm="layer",
)  # fmt: skip


def item(index: int, config: ModelConfig = TINY) -> PackItem:
    generator = torch.Generator().manual_seed(100 + index)
    T, H, W = ((1, 4, 4), (2, 4, 8), (3, 8, 4))[index % 3]
    latent = torch.randn(T, config.latent_channels, H, W, generator=generator, dtype=torch.float64)
    text = torch.randn(1 + index % 4, config.text_dim, generator=generator, dtype=torch.float64)
    return PackItem(latent, text, 0.1 + 0.2 * (index % 4))


def run(model: MMDiT, items: Sequence[PackItem]) -> Tensor:
    velocity: Tensor = model(pack(items, model.config)).velocity
    return velocity


def test_kandinsky_has_exactly_its_parameters() -> None:
    begin_s = time.perf_counter()
    model = meta_model(KANDINSKY)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert time.perf_counter() - begin_s < 5
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sum(sizes.values()) == parameters(KANDINSKY) == 5_570_276_928
    block = {n.removeprefix("blocks.0."): s for n, s in sizes.items() if n.startswith("blocks.0.")}
    parts = {
        18_911_232: ("visual_modulation", "text_modulation"),
        12_288: ("attention_norm", "ff_norm"),
        28_320_768: ("qkv",),
        256: ("query_norm", "key_norm"),
        9_440_256: ("attention_out",),
        75_512_832: ("ff_in", "ff_out"),
    }
    for expected, modules in parts.items():
        found = sum(size for name, size in block.items() if name.split(".")[0] in modules)
        assert found == expected, modules
    assert sum(block.values()) == sum(parts) == 132_197_632


@pytest.mark.parametrize(
    "config",
    [TINY, replace(TINY, qk_norm="layer"), replace(TINY, norm_affine=False, ff_mult=3)],
)
def test_parameter_table_is_the_module(config: ModelConfig) -> None:
    module = {name: tuple(p.shape) for name, p in meta_model(config).named_parameters()}
    assert module == parameter_table(config)


@pytest.mark.parametrize("clips", [(0,), (1, 2), (0, 1, 2, 3)])
@pytest.mark.parametrize(
    "config",
    [
        TINY,
        GROUPED,
        replace(GROUPED, groups=(1, 1, 2), depth=4),
        replace(TINY, qk_norm="layer", ff_mult=3, width=48),
        replace(TINY, scores=("motion", "clarity"), time_freq_dim=64, patch=(1, 1, 2)),
    ],
)
@pytest.mark.parametrize("first_frame_level", [None, 0.0])
def test_flops_are_those_that_torch_counts(
    config: ModelConfig, clips: tuple[int, ...], first_frame_level: float | None
) -> None:
    model = awake(config)
    items = [replace(item(i), first_frame_level=first_frame_level) for i in clips]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run(model, items)
    rows = 1 if first_frame_level is None else 2
    expected = sum(
        forward_flops(config, ClipTokens(len(patchify(i.latent, config.patch)), len(i.text), rows))
        for i in items
    )
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize("first_frame_level", [None, 0.3])
@pytest.mark.parametrize("config", [TINY, GROUPED, replace(TINY, scores=("motion",))])
def test_packed_equals_one_by_one(config: ModelConfig, first_frame_level: float | None) -> None:
    model = awake(config)
    items = [replace(item(i), first_frame_level=first_frame_level) for i in range(5)]
    items[2] = replace(items[2], scores={"motion": 0.7})
    together = run(model, items)
    alone = torch.cat([run(model, [single]) for single in items])
    assert (together - alone).abs().max() <= 1e-12
    together.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    for single in items:
        run(model, [single]).square().sum().backward()
    for packed, (name, parameter) in zip(gradients, model.named_parameters(), strict=True):
        assert parameter.grad is not None
        scale = packed.abs().max().clamp(min=1)
        assert (packed - parameter.grad).abs().max() / scale <= 1e-12, name


@pytest.mark.parametrize("config", [TINY, GROUPED])
def test_packed_equals_one_by_one_in_fp32(config: ModelConfig) -> None:
    model = awake(config, torch.float32)
    items = [replace(i, latent=i.latent.float(), text=i.text.float()) for i in map(item, range(5))]
    alone = torch.cat([run(model, [single]) for single in items])
    assert (run(model, items) - alone).abs().max() <= 5e-6 * alone.abs().max().clamp(min=1)


def test_the_order_of_clips_does_not_matter() -> None:
    model, items = awake(GROUPED), [item(index) for index in range(3)]
    forward, backward = run(model, items), run(model, items[::-1])
    sizes = [len(patchify(i.latent, TINY.patch)) for i in items]
    parts = backward.split(sizes[::-1])
    assert (forward - torch.cat(parts[::-1])).abs().max() <= 1e-12


def test_a_first_frame_with_the_noise_level_of_the_rest_is_no_other_clip() -> None:
    model, one = awake(TINY), item(1)
    base = run(model, [one])
    same = run(model, [replace(one, first_frame_level=one.noise_level)])
    clean = run(model, [replace(one, first_frame_level=0.0)])
    assert (base - same).abs().max() <= 1e-12
    assert ((base - clean).abs().max(1).values > 1e-6).all()


def test_scores_matter_where_they_are_known() -> None:
    model, one = awake(replace(TINY, scores=("motion", "clarity"))), item(1)
    unknown = run(model, [one])
    known = [run(model, [replace(one, scores={"motion": value})]) for value in (0.0, 0.5)]
    assert (unknown - known[0]).abs().max() > 1e-4  # zero is a value, not "unknown"
    assert (known[0] - known[1]).abs().max() > 1e-4


def test_a_clip_does_not_see_its_neighbours() -> None:
    model, items = awake(TINY), [item(index) for index in range(3)]
    before = run(model, items)
    changed = [replace(items[0], latent=items[0].latent + 1, text=items[0].text * 2), *items[1:]]
    after = run(model, changed)
    first = len(patchify(items[0].latent, TINY.patch))
    assert torch.equal(before[first:], after[first:])
    assert not torch.equal(before[:first], after[:first])


def test_text_and_noise_level_and_place_matter() -> None:
    model, one = awake(TINY), item(1)
    base = run(model, [one])
    flipped = replace(one, latent=one.latent.flip(-1))
    mirrored = unpatchify(run(model, [flipped]), (2, 4, 4, 8), TINY.patch).flip(-1)
    others = [
        run(model, [replace(one, text=one.text * 2)]),
        run(model, [replace(one, noise_level=0.9)]),
        patchify(mirrored, TINY.patch),
    ]
    assert all((base - other).abs().max() > 1e-4 for other in others)


@pytest.mark.parametrize("recompute", ["full", "selective"])
@pytest.mark.parametrize("config", [TINY, GROUPED])
def test_recomputation_changes_nothing(config: ModelConfig, recompute: Recompute) -> None:
    plain, saving = awake(config), awake(config)
    for block in saving.blocks:
        choose_runner(block, ParallelConfig(activation_checkpointing=recompute))  # type: ignore[arg-type]
    for model in (plain, saving):
        run(model, [item(0), item(3)]).square().sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]


@given(
    st.tuples(*(st.integers(1, 3) for _ in range(4))),
    st.tuples(*(st.integers(1, 2) for _ in range(3))),
)
@settings(max_examples=30, deadline=None)
def test_unpatchify_inverts_patchify(
    counts: tuple[int, int, int, int], patch: tuple[int, int, int]
) -> None:
    t, h, w, C = counts
    latent = torch.randn(t * patch[0], C, h * patch[1], w * patch[2])
    tokens = patchify(latent, patch)
    assert torch.equal(unpatchify(tokens, tuple(latent.shape), patch), latent)


def test_rotation_depends_on_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 16, dtype=torch.float64)
    scores = []
    for shift in (0, 5):
        places = torch.tensor([[1, 2, 3], [4, 1, 2]]) + shift
        cosine, sine = rotation(places, TINY)
        turned_q, turned_k = (
            rotate(x, cosine[i : i + 1], sine[i : i + 1]) for i, x in enumerate((q, k))
        )
        scores.append((turned_q * turned_k).sum().item())
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert torch.equal(rotate(q, torch.ones(1, 8), torch.zeros(1, 8)), q)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 40}, "not a multiple of model.head_dim = 16; use 32 or 48"),
        ({"rope_axes": (4, 6, 8)}, "sum to model.head_dim = 16"),
        ({"rope_axes": (3, 7, 6)}, "must be even"),
        ({"rope_axes": (-4, 14, 6)}, "positive"),
        ({"patch": (1, 0, 2)}, "every side at least 1"),
        ({"mup_base_width": 24}, "the base model must exist too"),
        ({"attention": "local_global", "depth": 3}, "takes blocks in pairs; use 4"),
        ({"groups": (0, 1, 1)}, "every axis at least 1"),
        ({"scores": ("motion", "motion")}, "each of them once"),
        ({"rope_scale": (1.0, 0.0, 1.0)}, "must be positive"),
        ({"depth": 0}, r"model.depth = 0; it must be at least 1"),
    ],
)
def test_impossible_sizes_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


def test_latent_must_share_out_over_the_groups() -> None:
    assert visual_tokens(GROUPED, 3, 4, 8) == 24
    with pytest.raises(ConfigError, match="latent width = 6 does not share out over 2 groups"):
        visual_tokens(GROUPED, 1, 4, 6)


def test_latent_must_divide_by_the_patch() -> None:
    assert visual_tokens(TINY, 3, 4, 6) == 18
    with pytest.raises(ConfigError, match="latent width = 5 does not divide by the patch size 2"):
        visual_tokens(TINY, 1, 4, 5)


def test_memory_shrinks_with_workers_and_recomputation() -> None:
    def total(workers: int, recompute: Recompute) -> int:
        return memory_estimate(
            KANDINSKY, workers=workers, packs_per_worker=1, pack_tokens=40_000, compute_bytes=2,
            activation_checkpointing=recompute,
        ).total_bytes  # fmt: skip

    assert total(8, "full") < total(8, "selective") < total(8, "none")
    assert total(64, "full") < total(8, "full")
    # 5.57B parameters, fp32 weights, gradients and two moments.
    assert total(1, "full") > 16 * 5_570_276_928


def test_memory_counts_averages_and_what_is_frozen() -> None:
    def estimate(**changes: object) -> MemoryEstimate:
        return memory_estimate(
            KANDINSKY, workers=8, packs_per_worker=2, pack_tokens=40_000, compute_bytes=2,
            activation_checkpointing="full", **changes,
        )  # fmt: skip

    plain, averaged = estimate(), estimate(averaged=True)
    shard = 5_570_276_928 // 8
    assert averaged.total_bytes - plain.total_bytes == 4 * shard
    frozen = [name for name in parameter_table(KANDINSKY) if name.startswith("blocks.")]
    less = estimate(averaged=True, frozen=frozen)
    assert less.weights_bytes == plain.weights_bytes
    assert less.gradients_bytes == 4 * 17_976_384
    assert less.optimizer_bytes == 2 * less.average_bytes == 8 * 17_976_384 // 8


def test_ladder_goes_by_heads() -> None:
    assert [size.width for size in width_ladder(TINY, 70)] == [16, 32, 48, 64]
