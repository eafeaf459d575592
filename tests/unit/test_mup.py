"""muP: what each parameter's rule is, and initial weights that do not depend on the world."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalewright.model.mup import initial_value, materialise, meta_model, param_rules
from scalewright.model.packed import PackItem, pack
from scalewright.model.shape import ModelConfig
from scalewright.train.optimizer import OptimizerConfig, build_optimizer

BASE = ModelConfig(
    width=32, depth=2, head_dim=16, rope_axes=(4, 6, 6), time_dim=16, text_dim=8,
    latent_channels=4, time_freq_dim=32, mup_base_width=32,
)  # fmt: skip


def test_roles_and_multipliers_at_four_times_the_base_width() -> None:
    rules = param_rules(replace(BASE, width=128))
    expected = {
        "visual_in.weight": ("input", 1, 1),
        "text_in.weight": ("input", 1, 1),
        "time_in.weight": ("finite", 1, 1),
        "time_out.weight": ("finite", 1, 1),
        "blocks.1.visual_modulation.weight": ("input", 1, 1),
        "blocks.1.qkv.weight": ("hidden", 1 / 4, 4),
        "blocks.1.attention_out.weight": ("hidden", 1 / 4, 4),
        "blocks.1.ff_in.weight": ("hidden", 1 / 4, 4),
        "blocks.1.ff_out.weight": ("hidden", 1 / 4, 4),
        "blocks.1.query_norm.weight": ("vector", 1, 0),
        "blocks.1.qkv.bias": ("vector", 1, 0),
        "final_modulation.weight": ("input", 1, 1),
        "visual_out.weight": ("output", 1, 1),
        "visual_out.bias": ("vector", 1, 0),
    }
    found = {name: (r.role, r.lr_mult, r.wd_mult) for name, r in rules.items()}
    assert {name: found[name] for name in expected} == expected
    assert meta_model(replace(BASE, width=128)).output_multiplier == 1 / 4


def test_everything_is_one_at_the_base_width() -> None:
    rules = param_rules(BASE)
    assert {rule.lr_mult for rule in rules.values()} == {1.0}
    assert rules["blocks.0.qkv.weight"].role == "hidden"


def test_initial_spread_is_one_over_root_fan_in() -> None:
    config = replace(BASE, width=256)
    model = meta_model(config)
    materialise(model, param_rules(config), seed=3, device=torch.device("cpu"))
    weights = dict(model.named_parameters())
    for name, fan_in in (("blocks.0.qkv.weight", 256), ("blocks.1.ff_out.weight", 1024)):
        assert abs(weights[name].std().item() * fan_in**0.5 - 1) < 0.02, name
    for name in ("visual_out.weight", "blocks.0.text_modulation.weight", "blocks.0.qkv.bias"):
        assert not weights[name].any(), name
    assert (weights["blocks.0.query_norm.weight"] == 1).all()


@given(st.integers(0, 2**40), st.sampled_from(["blocks.0.qkv.weight", "text_in.weight"]))
@settings(max_examples=20, deadline=None)
def test_initial_value_depends_on_seed_and_name(seed: int, name: str) -> None:
    rule = param_rules(BASE)[name]

    def value(name: str, seed: int) -> torch.Tensor:
        return initial_value(name, torch.Size((8, 4)), rule, seed)

    assert torch.equal(value(name, seed), value(name, seed))
    assert not torch.equal(value(name, seed), value(name, seed + 1))
    assert not torch.equal(value(name, seed), value(f"x.{name}", seed))


def growth_of_the_first_update(mup_base_width: int | None) -> float:
    """Exponent with which the output's change in some Adam steps grows with the width."""
    torch.manual_seed(0)
    sizes = []
    for width in (64, 256):
        config = replace(BASE, width=width, mup_base_width=mup_base_width or width)
        model, rules = meta_model(config), param_rules(config)
        materialise(model, rules, seed=0, device=torch.device("cpu"))
        optimizer = build_optimizer(model, rules, OptimizerConfig(lr_peak=1e-3, warmup_steps=0))
        generator = torch.Generator().manual_seed(5)
        items = [
            PackItem(
                torch.randn(2, 4, 4, 4, generator=generator),
                torch.randn(3, 8, generator=generator),
                0.5,
            )
            for _ in range(4)
        ]
        batch = pack(items, config)
        target = torch.randn(len(batch.visual), config.patch_dim, generator=generator)
        for _ in range(4):
            optimizer.zero_grad()
            (model(batch).velocity - target).square().mean().backward()
            optimizer.step()
        sizes.append(model(batch).velocity.abs().mean().item())
    return float(torch.tensor(sizes[1] / sizes[0]).log() / torch.tensor(4.0).log())


def test_updates_keep_their_size_over_width_under_mup_only() -> None:
    assert abs(growth_of_the_first_update(64)) < 0.25
    # Without the multipliers (base = width) the same learning rate moves wide models further.
    assert growth_of_the_first_update(None) > 0.4
