"""Stages: what each of them changes, and which cannot be."""

from dataclasses import replace

import pytest

from scalewright.config import assign, merge, to_dict
from scalewright.data.query import ClipQuery
from scalewright.errors import ConfigError
from scalewright.recipes import demo
from scalewright.train.run import RunConfig

STAGES = """[
  {clips = {kind = "picture"}},
  {begin = 100, clips = {max_latent_area = 4096}, pack_tokens = 512, image_to_video = 0.3},
  {begin = 200, clips = {min_latent_area = 4097}, attention = "local_global",
   rope_scale = [1.0, 2.0, 2.0], shift_tokens = 128,
   pack_frames = 25, pack_flops = 1e12, mixture = {films = 3.0, photos = 1.0}},
]""".replace("\n", "")


def staged() -> RunConfig:
    return assign(demo(), [f"stages={STAGES}", "steps=300"])


def test_a_run_without_stages_is_one_stage() -> None:
    (whole,) = demo().settings()
    assert (whole.begin, whole.end) == (0, demo().steps)
    assert (whole.model, whole.data, whole.flow) == (demo().model, demo().data, demo().flow)
    assert whole.clips == ClipQuery()


def test_a_stage_changes_what_it_names_and_nothing_else() -> None:
    config = staged()
    pictures, small, large = config.settings()
    assert [(s.begin, s.end) for s in config.settings()] == [(0, 100), (100, 200), (200, 300)]
    assert pictures.clips.kind == "picture"
    assert pictures.model == config.model
    assert small.data == replace(config.data, pack_tokens=512)
    assert small.flow == replace(config.flow, image_to_video=0.3)
    assert large.model == replace(
        config.model, attention="local_global", rope_scale=(1.0, 2.0, 2.0)
    )
    assert large.data == replace(
        config.data, pack_frames=25, pack_flops=1e12, mixture={"films": 3.0, "photos": 1.0}
    )
    assert large.flow == replace(config.flow, shift_tokens=128)


def test_a_run_at_a_stage_is_a_run_of_that_stage_alone() -> None:
    config = staged()
    last = config.at_stage(-1)
    assert last.stages == ()
    assert last.model.attention == "local_global"
    assert last == config.at_stage(2)
    with pytest.raises(ConfigError, match="stage 3; the run has 3, counted from 0"):
        config.at_stage(3)


def test_stages_survive_the_way_through_toml() -> None:
    assert merge(demo(), to_dict(staged()), where="a file") == staged()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[{begin = 3}]", r"stages\[0\].begin = 3; the first stage begins at step 0"),
        ("[{}, {begin = 9}, {begin = 9}]", r"stages\[2\].begin = 9 is not after"),
        ("[{}, {begin = 400}]", "is not before steps = 300"),
        ("[{begn = 0}]", r"unknown key 'stages\[0\].begn'; did you mean 'stages\[0\].begin'"),
        ("[3]", r"stages\[0\] is a table with keys"),
        ('[{clips = {kind = "film"}}]', "allowed: 'all', 'picture', 'video'"),
        ("[{image_to_video = 2.0}]", "flow.image_to_video = 2.0; allowed: 0 to 1"),
        ("[{pack_tokens = 0}]", "data.pack_tokens = 0"),
    ],
)
def test_impossible_stages_are_named(stages: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        assign(demo(), [f"stages={stages}", "steps=300"])
