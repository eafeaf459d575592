"""Configuration: layers, types, unknown keys, and the round trip through TOML."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalewright.config import assign, digest, merge, read_toml, to_dict, to_toml
from scalewright.errors import ConfigError
from scalewright.recipes import RECIPES, demo, recipe
from scalewright.train.run import RunConfig


@dataclass(frozen=True)
class Inner:
    rate: float = 1e-3
    shape: tuple[int, int] = (1, 2)
    mode: Literal["fast", "slow"] = "fast"
    limit: int | None = None


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    steps: int = 1
    on: bool = False
    inner: Inner = field(default_factory=Inner)


def test_assignments_reach_every_level_and_type() -> None:
    config = assign(
        Outer(),
        ["name=run-1", "steps=20", "on=true", "inner.rate=1e-4", "inner.shape=[3, 4]",
         "inner.mode=slow", "inner.limit=7"],
    )  # fmt: skip
    assert config == Outer("run-1", 20, True, Inner(1e-4, (3, 4), "slow", 7))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "step=2",
            r"unknown key 'step'; did you mean 'steps'\? Known here: name, steps, on, inner",
        ),
        ("inner.rat=2", r"unknown key 'inner\.rat'; did you mean 'inner\.rate'\?"),
        ("steps=1.5", "steps = 1.5; expected int"),
        ("steps=true", "steps = True; expected int"),
        ("on=1", "on = 1; expected bool"),
        ("inner=3", "inner is a table with keys, not 3"),
        ("inner.mode=medium", "allowed: 'fast', 'slow'"),
        ("inner.shape=[1]", "expected 2 values"),
        ("inner.shape=3", "expected a list"),
        ("steps", "expected key=value"),
    ],
)
def test_what_does_not_fit_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        assign(Outer(), [text])


def test_numbers_in_e_notation_are_numbers() -> None:
    assert assign(Outer(), ["inner.rate=2e-5"]).inner.rate == 2e-5
    assert merge(Outer(), tomllib.loads("[inner]\nrate = 1e-4"), "file").inner.rate == 1e-4


def test_settings_that_must_fit_each_other_come_in_any_order() -> None:
    for order in (["steps=5", "optimizer.warmup_steps=2"], ["optimizer.warmup_steps=2", "steps=5"]):
        assert assign(demo(), order).steps == 5


@given(
    st.integers(1, 10**6),
    st.floats(1e-6, 1.0),
    st.sampled_from(["cosine", "constant"]),
    st.none() | st.integers(1, 5000),
)
def test_toml_reads_back_to_the_same_config(
    steps: int, lr: float, schedule: str, shift: int | None
) -> None:
    changes = {
        "steps": steps,
        "optimizer": {"lr_peak": lr, "schedule": schedule, "warmup_steps": 1},
        "flow": {} if shift is None else {"shift_tokens": shift},
    }
    config = merge(RunConfig(), changes, "test")
    again = merge(RunConfig(), tomllib.loads(to_toml(config)), "toml")
    assert again == config
    assert digest(again) == digest(config)


def test_a_change_changes_the_digest() -> None:
    assert digest(Outer()) != digest(assign(Outer(), ["inner.rate=2e-3"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [("a = ", "not valid TOML"), (None, "no such file"), ("x = \x00", "not valid TOML")],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "c.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_toml(path)
    assert str(path) in str(error.value)


def test_every_recipe_builds_and_an_unknown_one_lists_them() -> None:
    for name in RECIPES:
        assert to_dict(recipe(name))["steps"] > 0
    with pytest.raises(ConfigError, match="known recipes: demo"):
        recipe("nope")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.lr_peak=0", r"optimizer\.lr_peak = 0\.0; it must be positive"),
        ("optimizer.beta2=1", r"optimizer\.beta2 = 1\.0"),
        ("optimizer.warmup_steps=10000", "is more than steps"),
        ("flow.text_dropout=2", r"flow\.text_dropout = 2\.0; allowed: 0 to 1"),
        ("checkpoint.keep=1", "at least 2"),
        ("parallel.workers=0", r"parallel\.workers = 0; at least 1"),
        ("parallel.min_workers=9", r"allowed: 1 to parallel\.workers"),
        ("name=a/b", "letters, digits"),
        ("data.packs_per_step=0", r"data\.packs_per_step = 0"),
        ("log.every_steps=0", r"log\.every_steps = 0"),
        ("optimizer.freeze=['block.0.*']", r"'block\.0\.\*' matches no parameter; names are such"),
        ("optimizer.freeze=['*']", "leaves nothing to train"),
    ],
)
def test_impossible_runs_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        assign(demo(), [text])


@pytest.mark.parametrize(
    "where", ["flow.image_to_video=0.5", "stages=[{}, {begin = 5, image_to_video = 0.5}]"]
)
def test_a_first_frame_within_a_patch_is_refused(where: str) -> None:
    with pytest.raises(ConfigError, match=r"with patches of 2 latent frames \(model\.patch\)"):
        assign(demo(), ["model.patch=[2, 2, 2]", where])


def test_what_cannot_be_read_as_it_says_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.trim_frames = 2 with patches of 2 latent frames"):
        assign(demo(), ["model.patch=[2, 2, 2]", "data.trim_frames=2"])
    with pytest.raises(ConfigError, match=r"data\.hot = 'hot' is a relative path"):
        assign(demo(), ["data.hot=hot"])
