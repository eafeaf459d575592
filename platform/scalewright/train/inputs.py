"""What a run reads: the catalogue's entries in their planned order, and the checks before it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from scalewright.config import to_dict
from scalewright.data.assumed import assumed_entries, matches
from scalewright.data.catalogue import Catalogue, DataInfo, Split
from scalewright.data.packing import LeftOut, PackOrder
from scalewright.data.sample import Entry, Sample
from scalewright.data.shards import ShardReader
from scalewright.errors import ConfigError, DataError
from scalewright.model.shape import ClipTokens, ModelConfig, train_flops, visual_tokens
from scalewright.train.run import RunConfig
from scalewright.train.stages import Settings


@dataclass(frozen=True)
class Stage:
    """One stage of a run on its data: `clips` in planned `order`, and what it is validated on."""

    settings: Settings
    clips: list[ClipTokens]
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

    def without(self, left_out: Sequence[LeftOut]) -> "Work":
        """The same, but for data that are left out."""
        return Work(tuple(replace(s, order=s.order.without(left_out)) for s in self.stages))


@dataclass(frozen=True)
class Inputs:
    """A data folder as one run sees it. `snapshot` pins the training clips and their codec."""

    info: DataInfo
    snapshot: str
    work: Work
    reader: ShardReader
    catalogue: Catalogue

    @cached_property
    def null_text(self) -> Tensor:
        return self.reader.null_text()

    def read(self, entries: list[Entry]) -> list[Sample]:
        return [self.reader.read(entry) for entry in entries]


def open_inputs(config: RunConfig, folder: Path) -> Inputs:
    """Open the data folder for a run; every mismatch between data and model is an error here."""
    catalogue = Catalogue.open(folder)
    check_match(config, catalogue.info, folder)
    return Inputs(
        info=catalogue.info,
        snapshot=catalogue.snapshot("train"),
        work=Work(tuple(_stage(config, settings, catalogue) for settings in config.settings())),
        reader=ShardReader(folder),
        catalogue=catalogue,
    )


def assumed_work(config: RunConfig) -> Work:
    """The work of a run whose data are not there, on clips of the sizes that the config assumes."""
    entries = assumed_entries(config.data.assumed_clips)
    entries = [replace(entry, scores=dict.fromkeys(config.model.scores, 0.5)) for entry in entries]
    stages = []
    for settings in config.settings():
        chosen = [entry for entry in entries if matches(settings.clips, entry)]
        if not chosen:
            raise ConfigError(
                f"data.assumed_clips = {list(config.data.assumed_clips)} holds none for the stage "
                f"from step {settings.begin}, which asks for {settings.clips}; add one"
            )
        stages.append(_planned(config, settings, chosen, []))
    return Work(tuple(stages))


def _stage(config: RunConfig, settings: Settings, catalogue: Catalogue) -> Stage:
    entries = _entries(catalogue, "train", settings, "run jobs/prepare.py on media")
    way_out = "prepare it with a --validation-share"
    validation = _entries(catalogue, "validation", settings, way_out)
    chosen = pick_validation(validation, config.log.validation_clips)
    return _planned(config, settings, entries, chosen)


def _planned(
    config: RunConfig, settings: Settings, entries: list[Entry], validation: list[Entry]
) -> Stage:
    _check_scores(settings.model, entries)
    clips = clip_tokens(settings.model, entries)
    order = PackOrder(entries, clips, settings.data, config.seed, begin=settings.begin)
    return Stage(settings, clips, order, validation)


def _entries(catalogue: Catalogue, split: Split, settings: Settings, way_out: str) -> list[Entry]:
    entries = catalogue.entries(split, settings.clips)
    if entries:
        return entries
    if catalogue.entries(split):
        raise DataError(
            f"{catalogue.path}: no {split} clip for the stage from step {settings.begin}, which "
            f"asks for {settings.clips}; widen stages.clips, or prepare such clips"
        )
    kind = "training" if split == "train" else split
    raise DataError(f"{catalogue.path}: no {kind} clip in the catalogue; {way_out}")


def _check_scores(model: ModelConfig, entries: list[Entry]) -> None:
    """A score that no clip has would be a condition that the model never sees."""
    there = {name for entry in entries for name in entry.scores}
    unknown = [name for name in model.scores if name not in there]
    if unknown:
        raise ConfigError(
            f"model.scores names {', '.join(unknown)}, which no clip has; there are: "
            f"{', '.join(sorted(there)) or 'none'}. Prepare with --scores, or leave them out"
        )


def clip_tokens(model: ModelConfig, entries: list[Entry]) -> list[ClipTokens]:
    """Tokens of every entry under the model's patch size."""
    return [
        ClipTokens(visual_tokens(model, e.latent_frames, e.height, e.width), e.text_tokens)
        for e in entries
    ]


def check_match(config: RunConfig, info: DataInfo, folder: Path) -> None:
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


def pick_validation(entries: list[Entry], count: int) -> list[Entry]:
    """At most `count` clips, pictures and videos in equal parts as far as there are any."""
    pictures = [entry for entry in entries if not entry.is_video]
    videos = [entry for entry in entries if entry.is_video]
    share = max(count // 2, count - len(videos))
    chosen = pictures[:share]
    return chosen + videos[: count - len(chosen)]


def identity(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    """What must stay the same for a run to be resumed: all that its numbers depend on."""
    tree = to_dict(config)
    kept = ("seed", "steps", "model", "flow", "stages", "optimizer", "guard", "activation_penalty")
    data = {key: tree["data"][key] for key in ("pack_tokens", "packs_per_step")}
    return {
        **{key: tree[key] for key in kept},
        "data": data,
        "compute": config.parallel.compute,
        "snapshot": inputs.snapshot,
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
