"""What a run reads: its snapshot of the catalogue in planned order, and the checks before it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scalewright.config import to_dict
from scalewright.data.assumed import assumed_clips
from scalewright.data.clips import Clips
from scalewright.data.order import LeftOut, PackOrder, deal
from scalewright.data.pinning import pinned_snapshot
from scalewright.data.reading import ClipReader
from scalewright.data.sample import DataInfo, Entry, Sample
from scalewright.data.snapshot import Snapshot, snapshot_of
from scalewright.data.storage import open_storage
from scalewright.errors import ConfigError, DataError
from scalewright.model.shape import ClipTokens, ModelConfig, train_flops
from scalewright.train.run import RunConfig
from scalewright.train.stages import Settings
from scalewright.train.weigh import weigh_in

# What of the `data` settings the order of clips depends on.
ORDERING = (
    "pack_tokens", "pack_frames", "pack_flops", "packs_per_step", "buffers", "trim_frames",
    "balance_steps", "mixture", "shuffle_clips",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One stage of a run on its data: clips in planned `order`, and what it is validated on."""

    settings: Settings
    order: PackOrder
    validation: list[Entry]


@dataclass(frozen=True)
class Work:
    """The stages of a run and what each of its steps holds, over all ranks."""

    stages: tuple[Stage, ...]

    def at(self, step: int) -> Stage:
        """The stage that a step belongs to."""
        return next(stage for stage in reversed(self.stages) if step >= stage.settings.begin)

    def clips(self, step: int) -> list[ClipTokens]:
        """Tokens of every clip of the step."""
        return self.at(step).order.tokens(step)

    def elements(self, step: int) -> int:
        """Numbers in the velocities of the whole step; its loss is divided by this."""
        return self.visual_tokens(step) * self.at(step).settings.model.patch_dim

    def visual_tokens(self, step: int) -> int:
        return sum(clip.visual for clip in self.clips(step))

    def tokens(self, step: int) -> int:
        """Visual and text tokens of the step, with the captions that dropout replaces."""
        return sum(clip.visual + clip.text for clip in self.clips(step))

    def flops(self, step: int) -> int:
        """Exact FLOPs of the step, forward and backward."""
        return train_flops(self.at(step).settings.model, self.clips(step))

    def shares(self, step: int, world: int) -> list[float]:
        """FLOPs of the step for each of so many ranks."""
        costs = self.at(step).order.costs(step)
        return [sum(costs[place] for place in hand) for hand in deal(costs, world)]

    def without(self, left_out: Sequence[LeftOut]) -> "Work":
        """The same, but for data that are left out."""
        return Work(tuple(replace(s, order=s.order.without(left_out)) for s in self.stages))


@dataclass(frozen=True)
class Inputs:
    """A data folder as one run sees it, by the snapshot that the run is pinned to."""

    snapshot: Snapshot
    work: Work
    reader: ClipReader

    @property
    def info(self) -> DataInfo:
        return self.snapshot.info

    @cached_property
    def null_text(self) -> Tensor:
        return self.reader.null_text()

    def read(self, entries: list[Entry]) -> list[Sample]:
        return self.reader.read(entries)


def open_inputs(config: RunConfig, data: str | Path, pinned: Path | None = None) -> Inputs:
    """Open the data of a run; every mismatch between data and model is an error here.

    `pinned`: the file that holds the run's snapshot, or is to hold it from now on.
    """
    storage = open_storage(str(data))
    snapshot = pinned_snapshot(str(data), config.data.catalogue, pinned, storage)
    check_match(config, snapshot.info, str(data))
    return Inputs(
        snapshot=snapshot,
        work=Work(tuple(_stage(config, each, snapshot, str(data)) for each in config.settings())),
        reader=ClipReader(storage),
    )


def assumed_work(config: RunConfig) -> Work:
    """The work of a run whose data are not there, on clips of the sizes that the config assumes."""
    clips = assumed_clips(config.data.assumed_clips, config.model.scores)
    info = DataInfo("assumed", config.model.latent_channels, "assumed", config.model.text_dim)
    snapshot = snapshot_of(info, 0, clips, np.zeros(len(clips), np.bool_))
    stages = []
    for settings in config.settings():
        rows = snapshot.rows(settings.clips)
        if not len(rows):
            raise ConfigError(
                f"data.assumed_clips = {list(config.data.assumed_clips)} holds none for the stage "
                f"from step {settings.begin}, which asks for {settings.clips}; add one"
            )
        stages.append(_planned(config, settings, clips, rows, []))
    return Work(tuple(stages))


def _stage(config: RunConfig, settings: Settings, snapshot: Snapshot, where: str) -> Stage:
    rows = _rows(snapshot, settings, where, validation=False)
    held_out = _rows(snapshot, settings, where, validation=True)
    chosen = pick_validation(snapshot.clips, held_out, config.log.validation_clips)
    return _planned(config, settings, snapshot.clips, rows, chosen)


def _planned(
    config: RunConfig,
    settings: Settings,
    clips: Clips,
    rows: NDArray[np.int64],
    validation: list[Entry],
) -> Stage:
    _check_scores(settings.model, clips, rows)
    weigh = weigh_in(settings.model)
    order = PackOrder(clips, rows, weigh, settings.data, config.seed, begin=settings.begin)
    return Stage(settings, order, validation)


def _rows(
    snapshot: Snapshot, settings: Settings, where: str, *, validation: bool
) -> NDArray[np.int64]:
    rows = snapshot.rows(settings.clips, validation=validation)
    if len(rows):
        return rows
    split = "validation" if validation else "training"
    if (snapshot.validation == validation).any():
        raise DataError(
            f"{where}: no {split} clip for the stage from step {settings.begin}, which asks for "
            f"{settings.clips}; widen stages.clips, or prepare such clips"
        )
    way_out = (
        "prepare it with a --validation-share" if validation else "run jobs/prepare.py on media"
    )
    raise DataError(f"{where}: no {split} clip in the catalogue; {way_out}")


def _check_scores(model: ModelConfig, clips: Clips, rows: NDArray[np.int64]) -> None:
    """A score that no clip has would be a condition that the model never sees."""
    there = {name for name, column in clips.scores.items() if not np.isnan(column[rows]).all()}
    unknown = [name for name in model.scores if name not in there]
    if unknown:
        raise ConfigError(
            f"model.scores names {', '.join(unknown)}, which no clip has; there are: "
            f"{', '.join(sorted(there)) or 'none'}. Prepare with --scores, or leave them out"
        )


def check_match(config: RunConfig, info: DataInfo, folder: str) -> None:
    """The run must speak of the folder's latents and text: same makers if pinned, same sizes."""
    for key, pinned, found in (
        ("codec", config.data.codec, info.codec),
        ("text_encoder", config.data.text_encoder, info.text_encoder),
    ):
        if pinned not in (None, found):
            raise ConfigError(
                f"data.{key} = {pinned!r}, but {folder} was prepared with {found!r}; give the "
                f"folder prepared with the former, or plan anew from a sweep on this one"
            )
    for key, wanted, size, maker in (
        ("latent_channels", config.model.latent_channels, info.latent_channels, info.codec),
        ("text_dim", config.model.text_dim, info.text_dim, info.text_encoder),
    ):
        if wanted != size:
            raise ConfigError(
                f"model.{key} = {wanted}, but {folder} was prepared with {maker}, which has "
                f"{size}; set model.{key}={size} or prepare the data with another codec"
            )


def pick_validation(clips: Clips, rows: NDArray[np.int64], count: int) -> list[Entry]:
    """At most `count` clips, pictures and videos in equal parts as far as there are any."""
    is_video = clips.is_video[rows]
    pictures, videos = rows[~is_video], rows[is_video]
    share = max(count // 2, count - len(videos))
    chosen = pictures[:share].tolist()
    chosen += videos[: count - len(chosen)].tolist()
    return [clips.entry(row) for row in chosen]


def identity(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    """What must stay the same for a run to be resumed: all that its numbers depend on."""
    tree = to_dict(config)
    kept = ("seed", "steps", "model", "flow", "stages", "optimizer", "guard", "activation_penalty")
    data = {key: value for key, value in tree["data"].items() if key in ORDERING}
    return {
        **{key: tree[key] for key in kept},
        "data": data,
        "compute": config.parallel.compute,
        "snapshot": inputs.snapshot.digest,
        "codec": inputs.info.codec,
        "text_encoder": inputs.info.text_encoder,
    }


def check_same_run(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Refuse to go on with a run that was begun under another config or with other data."""
    changed = [
        f"{key}: {_get(before, key)!r} then, {_get(now, key)!r} now"
        for key in sorted({*_leaves(before), *_leaves(now)})
        if _get(before, key) != _get(now, key)
    ]
    if changed:
        raise ConfigError(
            f"{folder} holds a run begun with other settings ({'; '.join(changed)}); go on with "
            "the old settings, choose another name=..., or start over with --fresh"
        )


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[str]:
    leaves = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        leaves += _leaves(value, f"{name}.") if isinstance(value, dict) else [name]
    return leaves


def _get(tree: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return None
        tree = tree[key]
    return tree
