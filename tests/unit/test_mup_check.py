"""The muP check: it passes the rules as they are, and none of the faults that rules can have."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from scalewright.config import assign
from scalewright.errors import ConfigError, ScalewrightError
from scalewright.model.mup import ParamRule, param_rules
from scalewright.model.mup_check import CheckConfig, Scan, check, log_slope
from scalewright.model.mup_command import SMALL, Checked, mup
from scalewright.model.shape import ModelConfig

QUICK = CheckConfig(widths=(64, 128, 256))
COMMAND = ["check.widths=[64,128,256]"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The matrices are too small to share out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def planted(
    layer: str, fault: Callable[[ParamRule, ModelConfig], ParamRule]
) -> Callable[[ModelConfig], dict[str, ParamRule]]:
    """The rules, but for the weights of `layer`, which have a fault."""

    def rules(config: ModelConfig) -> dict[str, ParamRule]:
        table = param_rules(config)
        wrong = {name: fault(rule, config) for name, rule in table.items() if layer in name}
        assert wrong
        return table | wrong

    return rules


def unscaled_lr(rule: ParamRule, config: ModelConfig) -> ParamRule:
    return replace(rule, lr_mult=1.0)


def small_lr(rule: ParamRule, config: ModelConfig) -> ParamRule:
    return replace(rule, lr_mult=1 / config.width_mult)


def root_lr(rule: ParamRule, config: ModelConfig) -> ParamRule:
    return replace(rule, lr_mult=config.width_mult**-0.5)


def no_multiplier(rule: ParamRule, config: ModelConfig) -> ParamRule:
    return replace(rule, forward_mult=1.0)


def fixed_init(rule: ParamRule, config: ModelConfig) -> ParamRule:
    return replace(rule, init_std=0.1)


def names(scan: Scan) -> set[str]:
    return {site.name for site in scan.failing}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": "layer", "norm_affine": False},
        {"attention": "local_global", "scores": ("motion", "clarity")},
    ],
    ids=["plain", "layer norms", "local and global"],
)
def test_the_rules_hold(changes: dict[str, Any]) -> None:
    # Groups take longer clips: more tokens, for which narrow models are too narrow.
    widths = (128, 256, 512) if "attention" in changes else QUICK.widths
    widths = widths if changes else (128, 256, 512, 1024)
    (scan,) = check(replace(SMALL, **changes), replace(QUICK, widths=widths))
    assert names(scan) == set()
    kinds = [site.kind for site in scan.sites]
    assert kinds.count("coordinate") >= 20
    assert kinds.count("update") >= 40


@pytest.mark.parametrize(
    ("layer", "fault", "site", "slope"),
    [
        ("attention_out.weight", unscaled_lr, "blocks.1.attention_out.weight", 1.0),
        ("ff_out.weight", unscaled_lr, "blocks.0.ff_out.weight", 1.0),
        ("qkv.weight", unscaled_lr, "blocks.1.qkv.weight", 1.0),
        ("visual_out.weight", no_multiplier, "velocity", 1.0),
        ("visual_in.weight", small_lr, "visual_in.weight", -1.0),
        ("text_in.weight", small_lr, "text_in.weight", -1.0),
        ("visual_modulation.weight", small_lr, "blocks.0.visual_modulation.weight", -1.0),
        ("visual_out.bias", unscaled_lr, "visual_out.bias", -1.0),
        ("blocks.1.ff_in.weight", root_lr, "blocks.1.ff_in.weight", 0.5),
        ("qkv.weight", fixed_init, "blocks.0.qkv", 0.5),
    ],
)
def test_a_planted_fault_shows_where_it_is(
    layer: str, fault: Callable[[ParamRule, ModelConfig], ParamRule], site: str, slope: float
) -> None:
    (scan,) = check(SMALL, replace(QUICK, seeds=1), planted(layer, fault))
    (found,) = [each for each in scan.failing if each.name == site]
    assert found.slope == pytest.approx(slope, abs=0.2)


def test_standard_parametrisation_breaks() -> None:
    """The control: without multipliers, the same learning rate moves wide models further."""
    (scan,) = check(
        SMALL, QUICK, lambda model: param_rules(replace(model, mup_base_width=model.width))
    )
    steepest = scan.steepest("coordinate")
    assert steepest.name == "velocity"
    assert steepest.slope is not None
    assert steepest.slope > 0.8


DEPTH = replace(QUICK, widths=(64, 128), depths=(2, 4, 8), seeds=1)


def test_depth_holds_with_its_factor_and_not_without() -> None:
    scaled = replace(SMALL, mup_base_depth=2)
    width, depth = check(scaled, DEPTH)
    assert (width.axis, depth.axis) == ("width", "depth")
    assert depth.sizes == (2, 4, 8)
    assert names(depth) == set()
    _, faulty = check(scaled, DEPTH, planted("_out.", no_multiplier))
    assert "blocks.* moved" in names(faulty)


def test_a_site_without_signal_is_no_pass() -> None:
    """A learning rate of zero leaves nothing to judge, and one beyond all bounds neither."""
    for lr_mult in (0.0, 1e38):
        rules = planted("ff_in.weight", lambda rule, _, x=lr_mult: replace(rule, lr_mult=x))
        (scan,) = check(SMALL, replace(QUICK, widths=(64, 128), seeds=1), rules)
        (site,) = [each for each in scan.failing if each.name == "blocks.0.ff_in.weight"]
        assert site.slope is None


@given(st.floats(-2, 2), st.floats(1e-6, 1e6), st.integers(2, 5))
def test_the_slope_of_a_power_law_is_its_exponent(p: float, scale: float, count: int) -> None:
    widths = [64 * 2**i for i in range(count)]
    assert log_slope(widths, [scale * width**p for width in widths]) == pytest.approx(p, abs=1e-9)
    assert log_slope(widths, [0.0] * count) is None
    assert log_slope(widths, [float("nan")] * count) is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("check.widths=[64]", "at least two"),
        ("check.widths=[128,64]", "rising order"),
        ("check.seeds=0", "check.seeds = 0"),
        ("check.max_slope=0.9", "below 0.5"),
        ("check.train.steps=2", "at least 3"),
        ("check.train.lr=0.0", "positive"),
        ("check.train.beta2=1.0", "below 1"),
        ("check.train.clips=0", "at least 1"),
        ("check.train.speed=1", "speed"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        assign(Checked(), [setting])


def test_the_command_prints_numbers_and_draws(tmp_path: Path) -> None:
    done = CliRunner().invoke(mup, ["check", *COMMAND, "--json", "--out", str(tmp_path / "new")])
    assert done.exit_code == 0
    content = json.loads(done.stdout)
    assert content["holds"] is True
    assert content["scans"][0]["sizes"] == [64, 128, 256]
    assert all(site["slope"] is not None for site in content["scans"][0]["sites"])
    (figure,) = content["figures"]
    assert Path(figure).read_bytes().startswith(b"\x89PNG")


def test_a_check_that_fails_ends_with_an_error_after_its_numbers() -> None:
    """At so great a learning rate nothing is as in the limit of small steps."""
    done = CliRunner().invoke(mup, ["check", *COMMAND, "--json", "check.train.lr=1e30"])
    assert isinstance(done.exception, ScalewrightError)
    assert done.exception.exit_code == 1
    assert "does not hold" in str(done.exception)
    assert json.loads(done.stdout)["holds"] is False
    done = CliRunner().invoke(mup, ["check", *COMMAND, "check.train.lr=1.0"])
    assert "BREAKS" in done.stdout


def test_as_a_module_it_exits_with_1_where_mup_does_not_hold() -> None:
    """At widths so small and steps so great, it does not."""
    settings = ["check.widths=[32,64]", "check.train.lr=1.0", "check.seeds=1"]
    done = subprocess.run(
        [sys.executable, "-m", "scalewright.model.mup", "check", *settings],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "does not hold" in done.stderr) == (1, True)


def test_the_table_as_json_has_every_factor() -> None:
    done = CliRunner().invoke(mup, ["rules", "--json", "model.width=256"])
    assert json.loads(done.stdout)["rules"]["blocks.1.qkv.weight"] == {
        "role": "hidden", "init_std": 256**-0.5, "lr_mult": 0.25, "wd_mult": 4.0,
        "eps_mult": 0.25, "forward_mult": 1.0,
    }  # fmt: skip


def test_the_table_for_people_shows_each_kind_of_tensor_once() -> None:
    done = CliRunner().invoke(mup, ["rules", "model.width=256"])
    header, *rows = done.stdout.splitlines()
    assert header.split()[:3] == ["parameter", "role", "init_std"]
    table = [row.split()[0] for row in rows]
    assert len(table) == len(set(table))
    assert "blocks.*.qkv.weight" in table
