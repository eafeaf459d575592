"""Which snapshot a run trains on: the one it was begun with, or the newest there is."""

import tempfile
from pathlib import Path

from scalewright.data.catalogue import Catalogue
from scalewright.data.fetching import read_whole
from scalewright.data.snapshot import FILE_NAME, Snapshot, open_snapshot, verify, write_snapshot
from scalewright.data.storage import MissingError, Storage, open_storage
from scalewright.errors import DataError


def pinned_snapshot(
    place: str, catalogue: str | None, pinned: Path | None, storage: Storage | None = None
) -> Snapshot:
    """The snapshot in `pinned`; where that is not there, the newest of the data, pinned from now.

    `place`: where the data lies; `catalogue`: the URL of its catalogue, if that is a database;
    `storage`: the place, where it is open already.
    Reads a catalogue row by row only where its changes are newer than the snapshot beside it.
    """
    if pinned is not None and pinned.exists():
        return open_snapshot(pinned)
    if "://" in place and catalogue is None:
        return _from_store(storage or open_storage(place), pinned)
    snapshot = _newest(Path(place), catalogue)
    if pinned is None:
        return snapshot
    write_snapshot(snapshot, pinned)
    return open_snapshot(pinned)


def _newest(folder: Path, url: str | None) -> Snapshot:
    catalogue = Catalogue.open(url if url is not None else folder)
    beside = folder / FILE_NAME
    if url is None and beside.exists():
        found = open_snapshot(beside)
        if found.revision == catalogue.revision():
            return verify(found, str(beside))
    return catalogue.snapshot()


def _from_store(storage: Storage, pinned: Path | None) -> Snapshot:
    """A store has no catalogue to ask; the snapshot lies beside its shards."""
    try:
        data = read_whole(storage, FILE_NAME)
    except MissingError as error:
        raise DataError(
            f"{error}; copy {FILE_NAME} of the prepared folder there with its shards, or give "
            "data.catalogue=URL"
        ) from None
    if pinned is None:
        with tempfile.NamedTemporaryFile() as file:  # mapped, it lives on without its name
            file.write(data)
            file.flush()
            return verify(open_snapshot(Path(file.name)), FILE_NAME)
    pinned.parent.mkdir(parents=True, exist_ok=True)
    part = pinned.with_name(f"{pinned.name}.part")
    part.write_bytes(data)
    try:
        verify(open_snapshot(part), FILE_NAME)
    except DataError:
        part.unlink()
        raise
    part.replace(pinned)
    return open_snapshot(pinned)
