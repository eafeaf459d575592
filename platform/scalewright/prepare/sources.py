"""Which files to prepare, in which order, and into which split. Reads names, never media."""

import csv
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from scalewright.data.catalogue import Split
from scalewright.data.media import MEDIA_SUFFIXES
from scalewright.errors import DataError

# Fewer sources than this are a trial, not data: none is put aside for validation by force.
MIN_SOURCES_TO_VALIDATE = 11


@dataclass(frozen=True)
class Source:
    """A file by its path under the source folder, with / on every platform, and its caption."""

    name: str
    caption: str

    @property
    def share(self) -> float:
        """A number in [0, 1) by hash of the name without suffix.

        A clip and its excerpt in another format so have one number, and fall into one split.
        """
        stem = str(PurePosixPath(self.name).with_suffix(""))
        return int.from_bytes(hashlib.sha256(stem.encode()).digest()[:8], "big") / 2**64


def read_sources(captions: Path) -> list[Source]:
    """The sources that a CSV file with the columns path,caption names, in order of their hash.

    That order is a fair sample of the folder at every moment. `DataError` names the line that
    has no path, no caption, a path outside the folder, or one that was there before.
    """
    sources: dict[str, Source] = {}
    try:
        with captions.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            _check_columns(captions, reader.fieldnames)
            for row in reader:
                source = _source(f"{captions}:{reader.line_num}", row)
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


def _check_columns(captions: Path, columns: Iterable[str] | None) -> None:
    missing = {"path", "caption"} - set(columns or ())
    if missing:
        raise DataError(
            f"{captions}: no column {' and '.join(sorted(missing))} in the first line "
            f"({', '.join(columns or ()) or 'empty'}); it must name path and caption"
        )


def _source(where: str, row: dict[str, str | None]) -> Source:
    name, caption = (row["path"] or "").strip(), (row["caption"] or "").strip()
    if not name or not caption:
        raise DataError(f"{where}: {'caption' if name else 'path'} is empty; fill it or cut it")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where}: {name} is outside the source folder; give paths inside it")
    return Source(str(path), caption)


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
