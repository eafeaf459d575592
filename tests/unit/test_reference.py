"""The model against an independent one: CogVideoX of diffusers is the same transformer.

Both are Kandinsky 4.0's block. With its weights renamed, and its exact GELU, its norms' epsilon and
its extra final norm set to the article's, outputs and gradients must agree.
"""

import pytest
import torch
from models import awake
from torch import Tensor, nn

from scalewright.model.packed import PackItem, pack, unpatchify
from scalewright.model.shape import ModelConfig

embeddings = pytest.importorskip("diffusers.models.embeddings")
cogvideox = pytest.importorskip("diffusers.models.transformers.cogvideox_transformer_3d")

CONFIG = ModelConfig(
    width=64, depth=3, head_dim=16, rope_axes=(4, 6, 6), time_freq_dim=64, time_dim=32,
    text_dim=24, latent_channels=4, qk_norm="layer", norm_affine=True, mup_base_width=64,
)  # fmt: skip
SHAPES = ((1, 4, 8, 4), (3, 4, 6, 10), (5, 4, 4, 4))
TEXT = 7


def theirs() -> nn.Module:
    model: nn.Module = cogvideox.CogVideoXTransformer3DModel(
        num_attention_heads=CONFIG.heads, attention_head_dim=CONFIG.head_dim,
        in_channels=CONFIG.latent_channels, out_channels=CONFIG.latent_channels,
        time_embed_dim=CONFIG.time_dim, text_embed_dim=CONFIG.text_dim, num_layers=CONFIG.depth,
        max_text_seq_length=TEXT, activation_fn="gelu", use_rotary_positional_embeddings=True,
    ).double()  # fmt: skip
    model.norm_final = nn.Identity()
    for name, module in model.named_modules():
        if name.endswith(("norm_q", "norm_k")):
            assert isinstance(module, nn.LayerNorm)
            module.eps = 1e-5
    return model


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights, or gradients, of our model under the names of theirs."""
    found = {}
    for kind in ("weight", "bias"):
        d, channels = CONFIG.width, CONFIG.latent_channels
        visual_in = weights[f"visual_in.{kind}"]
        if kind == "weight":
            visual_in = visual_in.view(d, channels, 2, 2)
        found[f"patch_embed.proj.{kind}"] = visual_in
        for our, their in (
            ("text_in", "patch_embed.text_proj"), ("time_in", "time_embedding.linear_1"),
            ("time_out", "time_embedding.linear_2"), ("final_norm", "norm_out.norm"),
            ("final_modulation", "norm_out.linear"), ("visual_out", "proj_out"),
        ):  # fmt: skip
            found[f"{their}.{kind}"] = weights[f"{our}.{kind}"]
        for index in range(CONFIG.depth):
            our, their = f"blocks.{index}", f"transformer_blocks.{index}"
            visual, text = (weights[f"{our}.{m}_modulation.{kind}"] for m in ("visual", "text"))
            found[f"{their}.norm1.linear.{kind}"] = torch.cat((visual[: 3 * d], text[: 3 * d]))
            found[f"{their}.norm2.linear.{kind}"] = torch.cat((visual[3 * d :], text[3 * d :]))
            qkv = weights[f"{our}.qkv.{kind}"].chunk(3)
            for name, part in zip("qkv", qkv, strict=True):
                found[f"{their}.attn1.to_{name}.{kind}"] = part
            for a, b in (
                ("attention_norm", "norm1.norm"), ("ff_norm", "norm2.norm"),
                ("query_norm", "attn1.norm_q"), ("key_norm", "attn1.norm_k"),
                ("attention_out", "attn1.to_out.0"), ("ff_in", "ff.net.0.proj"),
                ("ff_out", "ff.net.2"),
            ):  # fmt: skip
                found[f"{their}.{b}.{kind}"] = weights[f"{our}.{a}.{kind}"]
    return found


def items() -> list[PackItem]:
    generator = torch.Generator().manual_seed(2)
    return [
        PackItem(
            torch.randn(shape, generator=generator, dtype=torch.float64),
            torch.randn(TEXT, CONFIG.text_dim, generator=generator, dtype=torch.float64),
            0.25 * (1 + index),
        )
        for index, shape in enumerate(SHAPES)
    ]


def their_velocity(model: nn.Module, item: PackItem) -> Tensor:
    T, _, H, W = item.latent.shape
    rotary = embeddings.get_3d_rotary_pos_embed(
        CONFIG.head_dim, ((0, 0), (H // 2, W // 2)), (H // 2, W // 2), T
    )
    timestep = torch.tensor([1000 * item.noise_level])
    out: Tensor = model(
        item.latent[None], item.text[None], timestep, image_rotary_emb=rotary, return_dict=False
    )[0][0]
    return out


def test_outputs_and_gradients_are_those_of_cogvideox() -> None:
    our, their, clips = awake(CONFIG), theirs(), items()
    their.load_state_dict(renamed(our.state_dict()))
    velocity = our(pack(clips, CONFIG)).velocity
    sizes = [T * H * W // 4 for T, _, H, W in SHAPES]
    for item, mine in zip(clips, velocity.split(sizes), strict=True):
        T, C, H, W = item.latent.shape
        expected = their_velocity(their, item)
        expected.square().sum().backward()
        # Their tables of time and of rotation are in fp32.
        assert (unpatchify(mine, (T, C, H, W), CONFIG.patch) - expected).abs().max() < 2e-5
        assert expected.abs().max() > 0.5
    velocity.square().sum().backward()
    gradients = {name: p.grad for name, p in our.named_parameters() if p.grad is not None}
    expected_of = dict(their.named_parameters())
    for name, gradient in renamed(gradients).items():
        expected_gradient = expected_of[name].grad
        assert expected_gradient is not None, name
        scale = expected_gradient.abs().max()
        assert (gradient - expected_gradient).abs().max() <= 1e-4 * scale, name
