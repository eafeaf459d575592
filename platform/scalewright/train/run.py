"""Everything one training run is told: the config tree, and the checks that need no data."""

from dataclasses import dataclass, field, replace
from typing import Literal

from scalewright.data.settings import DataConfig, legal_worlds
from scalewright.errors import ConfigError
from scalewright.health.settings import HealthConfig
from scalewright.model.memory import Recompute
from scalewright.model.shape import ModelConfig, parameter_table
from scalewright.objective.flow import FlowConfig
from scalewright.train.guard import GuardConfig
from scalewright.train.optimizer import OptimizerConfig, frozen_names
from scalewright.train.stages import Settings, StageConfig, check_stages, settings_of
from scalewright.train.vault import CheckpointConfig
from scalewright.train.verdict import ReplayConfig


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How many workers share the run, and in which numbers they compute.

    Weights and the optimizer are fp32 always; `compute` is the type of gathered weights and
    activations. `shard_size`: workers that share one copy of the weights, such as those of a node;
    left out, all of them do. `environment` "NAME=value" is set in every worker, as for NCCL.
    `activation_checkpointing` "full" keeps only the input of a block for
    its backward pass, "selective" also attention and half of its matrix products. `memory_gib`:
    memory of one worker; left out, the machine is asked.

    A run stops after `max_restarts` restarts without a new checkpoint, and when for
    `wait_for_nodes_s` there are not nodes enough to go on. One with less than `workers` saves and
    goes on with more once there are nodes for them, no sooner than `grow_after_s` after it began.
    """

    workers: int = 2
    min_workers: int = 1
    gpus_per_worker: int = 0
    compute: Literal["float32", "bfloat16"] = "float32"
    shard_size: int | None = None
    environment: tuple[str, ...] = ()
    activation_checkpointing: Recompute = "none"
    compile: bool = False
    memory_gib: float | None = None
    max_restarts: int = 3
    wait_for_nodes_s: float = 600.0
    grow_after_s: float = 1800.0
    collective_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"parallel.workers = {self.workers}; at least 1")
        if not 1 <= self.min_workers <= self.workers:
            raise ConfigError(
                f"parallel.min_workers = {self.min_workers}; allowed: 1 to parallel.workers = "
                f"{self.workers}"
            )
        if self.gpus_per_worker not in (0, 1):
            raise ConfigError(
                f"parallel.gpus_per_worker = {self.gpus_per_worker}; a worker drives 0 or 1 GPU"
            )
        for setting in self.environment:
            if not setting.partition("=")[0].isidentifier() or "=" not in setting:
                raise ConfigError(
                    f"parallel.environment: {setting!r}; expected NAME=value, as in NCCL_DEBUG=WARN"
                )
        if self.shard_size is not None and self.shard_size < 1:
            raise ConfigError(f"parallel.shard_size = {self.shard_size}; at least 1")
        if self.collective_timeout_s < 1:
            raise ConfigError(
                f"parallel.collective_timeout_s = {self.collective_timeout_s}; at least 1"
            )
        for name in ("wait_for_nodes_s", "grow_after_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"parallel.{name} = {getattr(self, name)}; at least 0")
        if self.max_restarts < 0:
            raise ConfigError(f"parallel.max_restarts = {self.max_restarts}; at least 0")

    def environment_variables(self) -> dict[str, str]:
        return dict(setting.split("=", 1) for setting in self.environment)

    @property
    def compute_bytes(self) -> int:
        return {"float32": 4, "bfloat16": 2}[self.compute]


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How often a run reports, validates and samples. Zero `sample_clips` samples nothing.

    Every `statistics_every_steps` a step also tells of activations, attention and parameters.
    """

    every_steps: int = 10
    statistics_every_steps: int = 50
    validate_every_steps: int = 200
    validation_clips: int = 64
    validation_levels: int = 8
    sample_every_steps: int = 400
    sample_clips: int = 4
    sample_steps: int = 24
    guidance: float = 2.0

    def __post_init__(self) -> None:
        for name in (
            "every_steps",
            "statistics_every_steps",
            "validate_every_steps",
            "validation_clips",
            "validation_levels",
            "sample_every_steps",
            "sample_steps",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"log.{name} = {getattr(self, name)}; at least 1")
        if self.sample_clips < 0:
            raise ConfigError(f"log.sample_clips = {self.sample_clips}; at least 0")


@dataclass(frozen=True, kw_only=True)
class PenaltyConfig:
    """A loss on the mean square of every block's output, every so many steps (YandexART Vi)."""

    weight: float = 0.0
    every_steps: int = 8

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ConfigError(f"activation_penalty.weight = {self.weight}; at least 0")
        if self.every_steps < 1:
            raise ConfigError(f"activation_penalty.every_steps = {self.every_steps}; at least 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run. `steps` global steps of `data.packs_per_step` packs, whatever the world size."""

    name: str = "demo"
    seed: int = 0
    steps: int = 400
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    stages: tuple[StageConfig, ...] = ()
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    activation_penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    health: HealthConfig = field(default_factory=HealthConfig)

    def __post_init__(self) -> None:
        if not self.name.strip(".") or any(c not in _NAME_CHARACTERS for c in self.name):
            raise ConfigError(
                f"name = {self.name!r}; letters, digits, '.', '_' and '-', and not dots alone"
            )
        if self.steps < 1:
            raise ConfigError(f"steps = {self.steps}; at least 1")
        if self.optimizer.warmup_steps > self.steps:
            raise ConfigError(
                f"optimizer.warmup_steps = {self.optimizer.warmup_steps} is more than steps = "
                f"{self.steps}; warm up for a share of the run, such as {max(1, self.steps // 20)}"
            )
        check_stages(self.stages, self.steps)
        for settings in self.settings():  # of every stage, so that what cannot be is found at once
            if settings.data.trim_frames and settings.model.patch[0] > 1:
                raise ConfigError(
                    f"data.trim_frames = {settings.data.trim_frames} with patches of "
                    f"{settings.model.patch[0]} latent frames (model.patch); single frames can be "
                    "cut only where patches are one frame long"
                )
            if settings.flow.image_to_video > 0 and settings.model.patch[0] > 1:
                raise ConfigError(
                    f"flow.image_to_video = {settings.flow.image_to_video} with patches of "
                    f"{settings.model.patch[0]} latent frames (model.patch); a first frame can "
                    "have a noise level of its own only where patches are one frame long"
                )
        frozen_names(parameter_table(self.model), self.optimizer.freeze)
        legal = legal_worlds(self.data.packs_per_step, self.parallel.shard_size)
        if not any(self.parallel.min_workers <= world <= self.parallel.workers for world in legal):
            raise ConfigError(
                f"no legal batch split: data.packs_per_step = {self.data.packs_per_step} divides "
                f"among {legal} workers, not among parallel.min_workers = "
                f"{self.parallel.min_workers} to parallel.workers = {self.parallel.workers}"
            )

    def at_stage(self, index: int) -> "RunConfig":
        """The run as if it were one of its stages, counted from 0, or from the last with -1."""
        settings = self.settings()
        if not -len(settings) <= index < len(settings):
            raise ConfigError(f"stage {index}; the run has {len(settings)}, counted from 0")
        one = settings[index]
        return replace(self, stages=(), model=one.model, data=one.data, flow=one.flow)

    def settings(self) -> list[Settings]:
        """The stages of the run, in order, each with all of its settings."""
        return settings_of(self.stages, self.steps, self.model, self.data, self.flow)


_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
