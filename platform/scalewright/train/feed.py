"""A stage's clips on their way to the step: store, hot volume, RAM, and what each of them tells."""

import itertools
from pathlib import Path
from types import TracebackType

import torch

from scalewright.data.fetching import Fetcher
from scalewright.data.hot import HotVolume
from scalewright.data.loader import Loader, collection_of, kind_of
from scalewright.data.staging import stretches
from scalewright.train.inputs import Inputs, Stage
from scalewright.train.parallel import World
from scalewright.train.run import RunConfig
from scalewright.train.skips import SkipList

_numbers = itertools.count()  # of the volumes of this process; ranks count alike


class Feed:
    """The loader of a stage from a step on, with the volume before it where there is one."""

    def __init__(
        self,
        config: RunConfig,
        inputs: Inputs,
        stage: Stage,
        world: World,
        *,
        start_step: int,
        attempt: int,
        skips: SkipList,
        begun: int = 0,
    ) -> None:
        """`begun`: a number of the run, the same on all ranks, that no other of its name has."""
        self._skips, self._world = skips, world
        self._hot: HotVolume | None = None
        self._fetcher = inputs.reader.fetcher
        stop_step = stage.settings.end
        if config.data.hot is not None:
            self._hot = HotVolume(
                inputs.reader.storage,
                Path(config.data.hot) / config.name,
                name=f"{begun:x}-attempt-{attempt:05d}-{next(_numbers)}",
                rank=world.rank,
                world=world.size,
                hot_bytes=config.data.hot_bytes,
            )
            ahead = stretches(stage.order, start_step, stop_step, self._hot.stretch_bytes)
            self._hot.bring(ahead)
            self._fetcher = Fetcher(self._hot)
        self.loader = Loader(
            self._fetcher,
            stage.order,
            rank=world.rank,
            world=world.size,
            start_step=start_step,
            stop_step=stop_step,
            ram_bytes=config.data.ram_bytes,
            ahead_steps=config.data.ahead_steps,
            on_skip=skips,
            hot=self._hot,
        )
        before = skips.clips_read()  # by the loaders of earlier stages
        skips.clips_read = lambda: before + self.loader.gauges.clips
        kinds = stage.order.kinds()
        self._seen = sorted({name(each) for each in kinds for name in (collection_of, kind_of)})

    def __enter__(self) -> Loader:
        return self.loader

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.loader.close()
        if self._hot is not None:
            self._hot.close()
            self._fetcher.close()

    def metrics(self, wait_s: float) -> dict[str, float]:
        """What all ranks together hold and read so far; every rank must call it.

        `wait_s`: how long this rank's steps have waited for data.
        """
        loader, fetcher = self.loader.gauges, self._fetcher.gauges
        told = {
            "wait_s_total": wait_s,
            "ram_bytes": loader.ram_bytes,
            "steps_ready": self.loader.depth,
            "clips": loader.clips,
            "skipped_clips": self._skips.count,
            "requests": fetcher.requests,
            "read_bytes": fetcher.bytes,
            "retries": fetcher.retries,
            "second_requests": fetcher.hedges,
            "corrupt": fetcher.corrupt,
        }
        if self._hot is not None:
            hot = self._hot.gauges
            told |= {
                "hot_bytes": hot.bytes,
                "hot_units": hot.units,
                "hot_reads": hot.from_volume,
                "hot_misses": hot.from_store,
                "hot_failed_writes": hot.failed,
            }
        told |= {f"seen/{name}": loader.seen[name] for name in self._seen}
        numbers = torch.tensor(list(told.values()), dtype=torch.float64, device=self._world.device)
        totals = self._world.sum(numbers).tolist()
        return {f"data/{name}": total for name, total in zip(told, totals, strict=True)}
