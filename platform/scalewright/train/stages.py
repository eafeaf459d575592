"""The stages of a run: from a step on, other clips, other attention, another shift of noise.

Such as pictures first, then videos of 480p under full attention, then HD under local and global
attention with positions drawn together. Weights and optimizer go on; nothing of a stage is in them.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from scalewright.data.query import ClipQuery
from scalewright.data.settings import DataConfig
from scalewright.errors import ConfigError
from scalewright.model.shape import ModelConfig
from scalewright.objective.flow import FlowConfig


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """From step `begin` (from 0) on: a query on the catalogue, and settings over the run's.

    What is left out stays as the run has it.
    """

    begin: int = 0
    clips: ClipQuery = field(default_factory=ClipQuery)
    pack_tokens: int | None = None
    pack_frames: int | None = None
    pack_flops: float | None = None
    mixture: Mapping[str, float] | None = field(default=None, hash=False)
    attention: Literal["full", "local_global"] | None = None
    groups: tuple[int, int, int] | None = None
    rope_scale: tuple[float, float, float] | None = None
    shift_tokens: int | None = None
    image_to_video: float | None = None


@dataclass(frozen=True)
class Settings:
    """What one stage, from step `begin` to before `end`, trains on and how."""

    begin: int
    end: int
    clips: ClipQuery
    model: ModelConfig
    data: DataConfig
    flow: FlowConfig


def check_stages(stages: Sequence[StageConfig], steps: int) -> None:
    """Refuse stages that do not follow each other from the first step of the run on."""
    begins = [stage.begin for stage in stages]
    if begins and begins[0] != 0:
        raise ConfigError(f"stages[0].begin = {begins[0]}; the first stage begins at step 0")
    for index, (one, other) in enumerate(itertools.pairwise(begins), start=1):
        if other <= one:
            raise ConfigError(
                f"stages[{index}].begin = {other} is not after stages[{index - 1}].begin = {one}; "
                "give the stages in the order of their steps"
            )
    if begins and begins[-1] >= steps:
        raise ConfigError(
            f"stages[{len(begins) - 1}].begin = {begins[-1]} is not before steps = {steps}"
        )


def settings_of(
    stages: Sequence[StageConfig], steps: int, model: ModelConfig, data: DataConfig,
    flow: FlowConfig,
) -> list[Settings]:  # fmt: skip
    """The stages with all their settings; a run without stages is one."""
    chosen = list(stages) or [StageConfig()]
    ends = [stage.begin for stage in chosen[1:]] + [steps]
    return [
        Settings(
            begin=stage.begin,
            end=end,
            clips=stage.clips,
            model=_over(model, stage, "attention", "groups", "rope_scale"),
            data=_over(data, stage, "pack_tokens", "pack_frames", "pack_flops", "mixture"),
            flow=_over(flow, stage, "shift_tokens", "image_to_video"),
        )
        for stage, end in zip(chosen, ends, strict=True)
    ]


def _over(config: Any, stage: StageConfig, *names: str) -> Any:
    given = {name: getattr(stage, name) for name in names if getattr(stage, name) is not None}
    return replace(config, **given)
