"""Named starting points: each recipe is a function that returns a whole run config."""

from collections.abc import Callable
from dataclasses import replace

from scalewright.data.query import ClipQuery
from scalewright.data.settings import DataConfig
from scalewright.errors import ConfigError
from scalewright.model.shape import ModelConfig
from scalewright.objective.flow import FlowConfig
from scalewright.train.optimizer import OptimizerConfig
from scalewright.train.run import LogConfig, ParallelConfig, RunConfig
from scalewright.train.stages import StageConfig
from scalewright.train.vault import CheckpointConfig

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


# Sizes of 8 fps latents at 512 px and, in the last two, at 720 x 1280 (Kandinsky 4.0's buckets);
# 224 text tokens of T5.
_VIDEO_512 = ("1x64x64+224", "1x44x92+224", "13x64x64+224", "25x64x64+224", "25x48x84+224")
_VIDEO_HD = ("25x88x160+224", "25x160x88+224")

# Two rails of InfiniBand or more, GPUs reading and writing the cards' memory themselves.
_RDMA = (
    "NCCL_IB_HCA=mlx5",
    "NCCL_IB_GID_INDEX=3",
    "NCCL_IB_TIMEOUT=22",
    "NCCL_IB_RETRY_CNT=7",
    "NCCL_NET_GDR_LEVEL=SYS",
    "NCCL_CROSS_NIC=1",
    "NCCL_SOCKET_IFNAME=^lo,docker",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING=1",
)


def _latent_video(name: str, width: int, depth: int, pack_tokens: int) -> RunConfig:
    """A muP model on CogVideoX latents and T5 text, its learning rate that of width 512."""
    return RunConfig(
        name=name,
        steps=100_000,
        model=ModelConfig(
            width=width,
            depth=depth,
            head_dim=64,
            rope_axes=(16, 24, 24),
            time_dim=512,
            text_dim=4096,
            latent_channels=16,
            mup_base_width=512,
        ),
        data=DataConfig(
            path="data/clips",
            pack_tokens=pack_tokens,
            packs_per_step=64,
            assumed_clips=_VIDEO_512,
        ),
        flow=FlowConfig(shift_tokens=1024, image_to_video=0.2),
        optimizer=OptimizerConfig(lr_peak=1e-3, warmup_steps=1000, average_decay=0.9999),
        parallel=ParallelConfig(
            workers=8,
            gpus_per_worker=1,
            compute="bfloat16",
            compile=True,
            activation_checkpointing="selective",
        ),
        checkpoint=CheckpointConfig(every_steps=500, keep=3),
        log=LogConfig(every_steps=10, validate_every_steps=1000, sample_every_steps=5000),
    )


def mmdit_20m() -> RunConfig:
    """20 million parameters, most of them in embeddings and modulation: the proxy of sweeps."""
    return _latent_video("mmdit_20m", width=256, depth=8, pack_tokens=26_112)


def mmdit_200m() -> RunConfig:
    """0.2 billion parameters."""
    return _latent_video("mmdit_200m", width=768, depth=16, pack_tokens=26_112)


def mmdit_1b() -> RunConfig:
    """1.2 billion parameters."""
    return _latent_video("mmdit_1b", width=1792, depth=26, pack_tokens=26_112)


def kandinsky4_5b() -> RunConfig:
    """Kandinsky 4.0's transformer of 5,570,276,928 parameters, on 8 to 4,096 H100 in nodes of 8.

    480p under full attention, then HD in local and global groups with positions drawn together and
    noise levels shifted. Weights are sharded within a node and replicated over nodes.
    """
    base = _latent_video("kandinsky4_5b", width=3072, depth=42, pack_tokens=26_112)
    return replace(
        base,
        model=replace(base.model, qk_norm="layer", time_freq_dim=3072),
        data=replace(base.data, packs_per_step=4096, assumed_clips=(*_VIDEO_512, *_VIDEO_HD)),
        stages=(
            StageConfig(clips=ClipQuery(max_latent_area=4096)),
            StageConfig(
                begin=70_000,
                clips=ClipQuery(min_latent_area=4097),
                pack_tokens=90_624,
                attention="local_global",
                groups=(1, 2, 2),
                rope_scale=(1.0, 2.0, 2.0),
            ),
        ),
        parallel=replace(
            base.parallel,
            workers=4096,
            min_workers=8,
            shard_size=8,
            activation_checkpointing="full",
            environment=_RDMA,
            memory_gib=80.0,
        ),
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    each.__name__: each for each in (demo, mmdit_20m, mmdit_200m, mmdit_1b, kandinsky4_5b)
}


def recipe(name: str) -> RunConfig:
    """The config of a recipe by its name; `ConfigError` lists the known ones."""
    if name not in RECIPES:
        raise ConfigError(f"--recipe {name!r}: unknown; known recipes: {', '.join(RECIPES)}")
    return RECIPES[name]()
