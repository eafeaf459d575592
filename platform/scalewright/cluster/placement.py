"""How many workers the next attempt gets. Pure: decided from numbers, tested without Ray."""

from scalewright.data.settings import legal_worlds
from scalewright.errors import ConfigError
from scalewright.train.run import RunConfig


def choose_workers(config: RunConfig, slots: int) -> int:
    """The largest number of workers that is asked for, divides the step's packs and has a slot.

    `slots`: workers the cluster can hold now. The global batch stays the same at every number:
    fewer workers take more packs each.
    """
    parallel, packs = config.parallel, config.data.packs_per_step
    legal = [
        world
        for world in legal_worlds(packs, config.parallel.shard_size)
        if parallel.min_workers <= world <= min(parallel.workers, slots)
    ]
    if not legal:
        kind = "GPUs" if parallel.gpus_per_worker else "CPUs"
        raise ConfigError(
            f"the cluster has {slots} {kind}; the run needs parallel.min_workers = "
            f"{parallel.min_workers} to parallel.workers = {parallel.workers} that divide "
            f"data.packs_per_step = {packs}; add nodes or lower parallel.min_workers"
        )
    return max(legal)
