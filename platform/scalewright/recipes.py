"""Named starting points: each recipe is a function that returns a whole run config."""

from collections.abc import Callable

from scalewright.data.packing import DataConfig
from scalewright.errors import ConfigError
from scalewright.model.shape import ModelConfig
from scalewright.objective.flow import FlowConfig
from scalewright.train.optimizer import OptimizerConfig
from scalewright.train.run import CheckpointConfig, LogConfig, ParallelConfig, RunConfig

# Where the embedded clips (rendered moving shapes) are prepared; made when a run asks for them.
SHAPES = "data/shapes"


def demo() -> RunConfig:
    """A small model on the embedded clips: some minutes on two CPU cores."""
    return RunConfig(
        name="demo",
        steps=300,
        model=ModelConfig(
            width=128,
            depth=4,
            head_dim=16,
            rope_axes=(4, 6, 6),
            time_dim=64,
            text_dim=64,
            latent_channels=32,
            mup_base_width=64,
        ),
        data=DataConfig(path=SHAPES, pack_tokens=256, packs_per_step=2),
        flow=FlowConfig(shift_tokens=32, text_dropout=0.1),
        optimizer=OptimizerConfig(lr_peak=8e-3, warmup_steps=15),
        parallel=ParallelConfig(workers=2),
        checkpoint=CheckpointConfig(every_steps=100),
        log=LogConfig(
            every_steps=10,
            validate_every_steps=100,
            validation_clips=40,
            sample_every_steps=150,
        ),
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {"demo": demo}


def recipe(name: str) -> RunConfig:
    """The config of a recipe by its name; `ConfigError` lists the known ones."""
    if name not in RECIPES:
        raise ConfigError(f"--recipe {name!r}: unknown; known recipes: {', '.join(RECIPES)}")
    return RECIPES[name]()
