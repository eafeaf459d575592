"""muP: what each parameter's rule is, and initial weights that do not depend on the world."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalewright.model.mup import (
    initial_value,
    materialise,
    meta_model,
    optimizer_groups,
    param_rules,
    set_multipliers,
)
from scalewright.model.mup_command import SMALL
from scalewright.model.mup_measure import StepsConfig, noise_batch
from scalewright.model.shape import ModelConfig

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
        "visual_out.bias": ("vector", 4, 0),
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


def test_what_the_model_multiplies_by_is_in_the_table() -> None:
    config = replace(BASE, width=128, depth=8, mup_base_depth=2)
    rules, model = param_rules(config), meta_model(config)
    assert rules["visual_out.weight"].forward_mult == model.output_multiplier == 1 / 4
    for index, block in enumerate(model.blocks):
        for layer in ("attention_out", "ff_out"):
            rule = rules[f"blocks.{index}.{layer}.weight"]
            assert rule.forward_mult == block.branch_multiplier == 1 / 4
    others = [rule for name, rule in rules.items() if "_out." not in name or name[:4] == "time"]
    assert {rule.forward_mult for rule in others} == {1.0}
    set_multipliers(model, param_rules(replace(config, width=32, depth=8, mup_base_depth=None)))
    assert model.output_multiplier == model.blocks[3].branch_multiplier == 1


def test_depth_changes_epsilon_and_branches_alone() -> None:
    deep = replace(BASE, depth=8, mup_base_depth=2)
    rules, shallow = param_rules(deep), param_rules(replace(deep, mup_base_depth=None))
    for name, rule in rules.items():
        eps_mult = 1 / 4 if name.startswith("blocks.") else 1
        assert replace(rule, eps_mult=1, forward_mult=1) == replace(
            shallow[name], eps_mult=1, forward_mult=1
        )
        assert rule.eps_mult == eps_mult, name


def gradients(config: ModelConfig) -> dict[str, float]:
    """Root mean square of every gradient after three steps of Adam."""
    rules, model = param_rules(config), meta_model(config)
    materialise(model, rules, seed=0, device=torch.device("cpu"))
    groups = optimizer_groups(model.named_parameters(), rules, lr=2**-9, weight_decay=0, eps=1e-12)
    optimizer = torch.optim.AdamW(groups)
    batch, target = noise_batch(config, StepsConfig(), seed=0)
    for _ in range(4):
        optimizer.zero_grad()
        (model(batch).velocity - target).square().mean().backward()
        optimizer.step()
    return {
        name: parameter.grad.square().mean().sqrt().item()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("axis", ["width", "depth"])
def test_epsilon_follows_the_gradient(axis: str) -> None:
    """Over 8 times the size, gradients over their factor stay much as they were."""
    small = replace(SMALL, width=64, depth=2, mup_base_depth=2)
    large = replace(small, **{axis: 8 * getattr(small, axis)})
    before, after, rules = gradients(small), gradients(large), param_rules(large)
    for name, size in before.items():
        if not name.startswith("blocks.1."):  # nobody reads what text comes out of the last block
            assert 0.4 < after[name] / rules[name].eps_mult / size < 2.5, name


def test_groups_are_by_factors_and_hold_every_parameter_once() -> None:
    config = replace(BASE, width=128)
    rules = param_rules(config)
    parameters = dict(meta_model(config).named_parameters())
    groups = optimizer_groups(parameters.items(), rules, lr=1e-2, weight_decay=0.1, eps=1e-8)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in parameters.values())
    where = {id(parameter): group for group in groups for parameter in group["params"]}
    for name, parameter in parameters.items():
        group, rule = where[id(parameter)], rules[name]
        assert group["lr"] == 1e-2 * rule.lr_mult
        assert group["lr_mult"] == rule.lr_mult
        assert group["weight_decay"] == 0.1 * rule.wd_mult
        assert group["eps"] == 1e-8 * rule.eps_mult
    factors = {(rule.lr_mult, rule.wd_mult, rule.eps_mult) for rule in rules.values()}
    assert len(groups) == len(factors)
