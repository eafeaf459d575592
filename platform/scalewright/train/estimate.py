"""What a run will cost, before it starts: parameters, FLOPs, memory, and the batch split."""

from dataclasses import asdict
from statistics import fmean
from typing import Any

from scalewright.data.settings import legal_worlds
from scalewright.errors import ConfigError
from scalewright.model.memory import MemoryEstimate, memory_estimate
from scalewright.model.shape import block_parameters, parameter_table, parameters
from scalewright.train.hardware import worker_memory_bytes
from scalewright.train.inputs import Stage, Work
from scalewright.train.optimizer import frozen_names
from scalewright.train.run import RunConfig

# Steps differ with the clips they hold; the mean over some of each stage stands for all of it.
# Those that exchange packs are looked at together: one alone may have the costliest.
_STEPS_LOOKED_AT = 64
_PACKS_LOOKED_AT = 4096


def memory_of(config: RunConfig, workers: int) -> MemoryEstimate:
    """Peak memory of one of `workers` workers."""
    return memory_estimate(
        config.model,
        workers=min(workers, config.parallel.shard_size or workers),
        packs_per_worker=config.data.packs_per_step // workers,
        pack_tokens=max(stage.data.pack_tokens for stage in config.settings()),
        compute_bytes=config.parallel.compute_bytes,
        activation_checkpointing=config.parallel.activation_checkpointing,
        averaged=config.optimizer.average_decay is not None,
        frozen=frozen_names(parameter_table(config.model), config.optimizer.freeze),
    )


def check_memory(config: RunConfig, *, workers_run_here: bool) -> None:
    """Refuse a run whose workers cannot hold it, where the memory of a worker is known.

    That is `parallel.memory_gib` if it is set, else this machine's if the workers run on it.
    """
    parallel, workers = config.parallel, max(_worlds(config))
    limit: tuple[float, str] | None = None
    if parallel.memory_gib is not None:
        limit = (parallel.memory_gib * 2**30, "parallel.memory_gib")
    elif workers_run_here:
        limit = worker_memory_bytes(workers, parallel.gpus_per_worker)
    if limit is None:
        return
    need = memory_of(config, workers).total_bytes
    if need > limit[0]:
        raise ConfigError(
            f"a worker needs about {need / 2**30:.1f} GiB and has {limit[0] / 2**30:.1f} GiB "
            f"({limit[1]}); lower data.pack_tokens = {config.data.pack_tokens}, set "
            "parallel.activation_checkpointing=full, use more workers, or choose a smaller model"
        )


def estimate(config: RunConfig, work: Work) -> dict[str, Any]:
    """All that a dry run prints, as plain values with units in their names."""
    stages = [_stage(stage, config.data.packs_per_step, work) for stage in work.stages]
    run = {
        name: sum(stage["steps"] * stage[f"{name}_per_step"] for stage in stages)
        for name in ("clips", "visual_tokens", "flops")
    }
    blocks = block_parameters(config.model)
    return {
        "params": parameters(config.model),
        "block_params": blocks,
        "steps": config.steps,
        **{f"{name}_per_step": total / config.steps for name, total in run.items()},
        "run_visual_tokens": run["visual_tokens"],
        "run_flops": run["flops"],
        "run_flops_6nd": 6 * blocks * run["visual_tokens"],
        "stages": stages,
        "batch_split": [_split(config, world) for world in _worlds(config)],
    }


def _stage(stage: Stage, packs_per_step: int, work: Work) -> dict[str, Any]:
    begin, end = stage.settings.begin, stage.settings.end
    balanced = stage.settings.data.balance_steps
    windows = min(_STEPS_LOOKED_AT, _PACKS_LOOKED_AT // packs_per_step) // balanced
    count = min(end - begin, max(1, windows) * balanced)
    looked_at = range(begin, begin + count)
    return {
        "begin": begin,
        "steps": end - begin,
        "clips_per_step": fmean(len(work.clips(step)) for step in looked_at),
        "visual_tokens_per_step": fmean(work.visual_tokens(step) for step in looked_at),
        "flops_per_step": fmean(work.flops(step) for step in looked_at),
        "pack_fill": stage.order.fill(),
    }


def _worlds(config: RunConfig) -> list[int]:
    return [
        world
        for world in legal_worlds(config.data.packs_per_step, config.parallel.shard_size)
        if config.parallel.min_workers <= world <= config.parallel.workers
    ]


def _split(config: RunConfig, world: int) -> dict[str, Any]:
    memory = memory_of(config, world)
    return {
        "workers": world,
        "packs_per_worker": config.data.packs_per_step // world,
        "memory_gib": memory.total_bytes / 2**30,
        "memory": asdict(memory),
    }
