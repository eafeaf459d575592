"""From encoded files to shards and catalogue: each file whole, with its split, or its reason."""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from torch import Tensor

from scalewright.data.catalogue import Catalogue, NewClip, Split
from scalewright.data.shards import ShardWriter
from scalewright.data.text import TextEncoder
from scalewright.prepare.sources import Source, SplitRule
from scalewright.prepare.static import MARK, StaticConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """The latents (T, C, H, W) of a file's clips, and that of its static clip if it gives one."""

    clips: list[Tensor]
    static: Tensor | None


@dataclass(frozen=True)
class _Part:
    """A clip of a file. `mark` tells it from the file's other clips; the first has none."""

    mark: str
    latent: Tensor
    caption: str
    text: Tensor
    scores: Mapping[str, float] = field(default_factory=dict)

    def source(self, file: Source) -> str:
        return f"{file.name}#{self.mark}" if self.mark else file.name

    def key(self, file: Source) -> str:
        digest = hashlib.sha256(file.name.encode()).hexdigest()[:16]
        return f"{digest}-{self.mark or '0':0>5}"


class Intake:
    """Takes encoded files into shards and catalogue, each file whole.

    `broken`: (source, reason), also those of earlier runs.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        text_encoder: TextEncoder,
        sources: Sequence[Source],
        validation_share: float,
        static: StaticConfig,
    ) -> None:
        names = {source.name for source in sources}
        kinds = {entry.is_video for entry in catalogue.entries("validation")}
        self.broken = [row for row in catalogue.rejected() if row[0] in names]
        self._catalogue = catalogue
        self._text_encoder = text_encoder
        self._rule = SplitRule(validation_share, len(sources), kinds)
        self._static = static
        self._unsealed: list[NewClip] = []  # written, in a shard that is not sealed yet

    def missing(self, sources: Sequence[Source]) -> list[Source]:
        """The sources that the catalogue does not hold."""
        held = self._catalogue.sources()
        return [source for source in sources if source.name not in held]

    def take(self, shards: ShardWriter, source: Source, encoded: Encoded | str) -> None:
        """Write the clips of a file, or note why it has none."""
        if isinstance(encoded, str):
            self._reject(source, encoded)
            return
        split = self._rule.split(source, is_video=len(encoded.clips[0]) > 1)
        parts = self._parts(source, encoded, split)
        clips = [self._write(shards, source, part, split) for part in parts]
        # Only now: `shards.add` may have sealed a shard with the first of these clips.
        self._unsealed += clips

    def enter_catalogue(self, shard: str) -> None:
        """A shard was sealed, and with it all clips of the files before the present one."""
        self._catalogue.add(self._unsealed)
        self._unsealed = []

    def _parts(self, source: Source, encoded: Encoded, split: Split) -> Iterator[_Part]:
        caption, text = source.caption, self._text_encoder.encode([source.caption])[0]
        for index, latent in enumerate(encoded.clips):
            yield _Part(str(index) if index else "", latent, caption, text, source.scores)
        if encoded.static is not None and split == "train":
            caption = self._static.caption(source.caption)
            text = self._text_encoder.encode([caption])[0]
            # Without scores: the file's may speak of a movement that this clip does not have.
            yield _Part(MARK, encoded.static, caption, text)

    def _write(self, shards: ShardWriter, source: Source, part: _Part, split: Split) -> NewClip:
        location = shards.add(part.key(source), part.latent, part.text)
        frames, _, height, width = part.latent.shape
        return NewClip(
            source=part.source(source),
            split=split,
            caption=part.caption,
            latent_frames=frames,
            height=height,
            width=width,
            text_tokens=len(part.text),
            collection=source.collection,
            scores=part.scores,
            **asdict(location),
        )

    def _reject(self, source: Source, reason: str) -> None:
        logger.warning("left out %s: %s", source.name, reason)
        self._catalogue.reject(source.name, reason)
        self.broken.append((source.name, reason))
