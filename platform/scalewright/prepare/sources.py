"""Which files to prepare, in which order, and into which split. Reads names, never media."""

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from scalewright.data.catalogue import Split
from scalewright.data.media import MEDIA_SUFFIXES
from scalewright.errors import DataError
from scalewright.prepare.scores import ScoreColumn, read_scores

# Fewer sources than this are a trial, not data: none is put aside for validation by force.
MIN_SOURCES_TO_VALIDATE = 11


@dataclass(frozen=True)
class Source:
    """A file by its path under the source folder, with / on every platform, and its caption.

    `collection`: the data set that it is of. `scores`: quality by name, from 0 to 1, as far as it
    is known.
    """

    name: str
    caption: str
    collection: str = ""
    scores: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def share(self) -> float:
        """A number in [0, 1) by hash of the name without suffix.

        A clip and its excerpt in another format so have one number, and fall into one split.
        """
        return _hashed(self._stem)

    def number(self, purpose: str) -> float:
        """Another such number, as good as independent of `share` and of other purposes."""
        return _hashed(f"{purpose}\0{self._stem}")

    @property
    def _stem(self) -> str:
        return str(PurePosixPath(self.name).with_suffix(""))


def _hashed(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def read_sources(captions: Path, scores: Sequence[ScoreColumn] = ()) -> list[Source]:
    """The sources that a CSV file with the columns path,caption names, in order of their hash.

    A column `collection` is read if there is one. The order is a fair sample of the folder at
    every moment. `DataError` names the line that has no path, no caption, a path outside the
    folder, one that was there before, or in a column of `scores` something else than a number of
    its range; an empty cell is an unknown score.
    """
    wanted = ["path", "caption", *(column.name for column in scores)]
    sources: dict[str, Source] = {}
    try:
        with captions.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            _check_columns(captions, wanted, reader.fieldnames)
            for row in reader:
                source = _source(f"{captions}:{reader.line_num}", row, scores)
                if source.name in sources:
                    raise DataError(f"{captions}:{reader.line_num}: {source.name} is there twice")
                sources[source.name] = source
    except FileNotFoundError:
        raise DataError(f"{captions}: no such file; give a CSV file path,caption") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{captions}: not a CSV file in UTF-8: {error}") from None
    if not sources:
        raise DataError(f"{captions}: names no file; write a line path,caption for each")
    return sorted(sources.values(), key=lambda source: (source.share, source.name))


def _check_columns(captions: Path, wanted: Sequence[str], columns: Iterable[str] | None) -> None:
    missing = set(wanted) - set(columns or ())
    if missing:
        raise DataError(
            f"{captions}: no column {' and '.join(sorted(missing))} in the first line "
            f"({', '.join(columns or ()) or 'empty'}); it must name {' and '.join(wanted)}"
        )


def _source(where: str, row: dict[str, str | None], scores: Sequence[ScoreColumn]) -> Source:
    name, caption = (row["path"] or "").strip(), (row["caption"] or "").strip()
    if not name or not caption:
        raise DataError(f"{where}: {'caption' if name else 'path'} is empty; fill it or cut it")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where}: {name} is outside the source folder; give paths inside it")
    collection = (row.get("collection") or "").strip()
    return Source(str(path), caption, collection, read_scores(row, scores, where))


def uncaptioned(folder: Path, sources: Iterable[Source]) -> list[str]:
    """The media files under `folder` that no caption names."""
    files = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in MEDIA_SUFFIXES and not path.name.startswith(".")
    }
    return sorted(files - {source.name for source in sources})


class SplitRule:
    """Puts `validation_share` of the sources aside, by their hash: a source never changes sides.

    Small data may leave validation without any picture or any video. So where none of a kind is
    there (`kinds`: whether is_video, of those there already), the first that comes goes there.
    """

    def __init__(self, validation_share: float, sources: int, kinds: Iterable[bool]) -> None:
        self._validation_share = validation_share
        self._forces = validation_share > 0 and sources >= MIN_SOURCES_TO_VALIDATE
        self._kinds = set(kinds)
        self._forced: set[float] = set()

    def split(self, source: Source, is_video: bool) -> Split:
        """The split of a source that can be read; it counts as there from now on."""
        if self._forces and is_video not in self._kinds:
            self._forced.add(source.share)
        if source.share >= self._validation_share and source.share not in self._forced:
            return "train"
        self._kinds.add(is_video)
        return "validation"
