"""Which checkpoint a run goes on from: the newest that all ranks together find whole.

Each rank checks its share of the files. What is damaged is passed over, and set aside only once
there is another to go on from; a run that has checkpoints never begins anew by itself.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scalewright.errors import CheckpointError, DataError, StorageError
from scalewright.train.manifest import Manifest, check_files
from scalewright.train.mirror import Mirror
from scalewright.train.peers import Peers
from scalewright.train.place import ONLY_TRUSTED
from scalewright.train.vault import Listing, Vault, remove

logger = logging.getLogger(__name__)


def choose(
    vault: Vault, mirror: Mirror | None, peers: Peers, *, only_trusted: bool
) -> tuple[Path, Manifest] | None:
    """The checkpoint to go on from; None where there was none yet. A collective of all ranks.

    `CheckpointError` when there are some and none may be taken; `StorageError` or OSError when
    what there is cannot be read: then nothing is changed.
    """
    choice = peers.from_first(lambda: _choice(vault, only_trusted=only_trusted))
    candidates = _candidates(vault, mirror, choice)
    bad: list[_Bad] = []
    while (found := peers.from_first(lambda: next(candidates, None))) is not None:
        problems = [bad for bad in peers.gather(_check_share(*found, peers)) if bad is not None]
        if not problems:
            break
        logger.warning("%s; going back to the checkpoint before it", problems[0].reason)
        bad += problems
    peers.from_first(lambda: _settle(vault, choice, found, bad))
    return found


@dataclass(frozen=True)
class _Choice:
    """What lies in the run's folder, and the last step that may be gone on from."""

    listing: Listing
    limit: int | None

    def admits(self, manifest: Manifest) -> bool:
        return self.limit is None or manifest.step <= self.limit


@dataclass(frozen=True)
class _Bad:
    """A checkpoint that is not whole; `unreadable`: so says the disk, of which it may be a mood."""

    path: Path
    reason: str
    unreadable: bool = False


def _choice(vault: Vault, *, only_trusted: bool) -> _Choice:
    if only_trusted and vault.trusted_until is None:
        raise CheckpointError(
            f"{vault.folder}: no step was confirmed yet, so no checkpoint is trusted; delete "
            f"{vault.folder.parent / ONLY_TRUSTED} to go on from the newest all the same, or move "
            "the folder away to begin anew"
        )
    return _Choice(vault.listing(), vault.trusted_until if only_trusted else None)


def _candidates(
    vault: Vault, mirror: Mirror | None, choice: _Choice
) -> Iterator[tuple[Path, Manifest]]:
    """On rank 0: what to look at, newest first, from the mirror where it is newer there."""
    here = [each for each in choice.listing.entries if choice.admits(each[1])]
    there = [each for each in _in_mirror(mirror, needed=not here) if choice.admits(each)]
    while here or there:
        if mirror is None or not there or (here and here[0][1].step >= there[0].step):
            yield here.pop(0)
            continue
        manifest = there.pop(0)
        try:
            path = mirror.fetch(manifest)
        except (CheckpointError, DataError) as error:
            remove(vault.part(manifest.step))
            if isinstance(error, DataError) and not here:
                raise StorageError(str(error)) from None
            logger.warning("%s; going back to the checkpoint before it", error)
            continue
        yield path, manifest


def _in_mirror(mirror: Mirror | None, *, needed: bool) -> list[Manifest]:
    try:
        return [] if mirror is None else mirror.manifests()
    except DataError as error:
        if needed:
            raise StorageError(
                f"{error}; the run's folder has no checkpoint, and whether the mirror has one is "
                "unknown. Repair it, or leave out checkpoint.mirror to begin anew"
            ) from None
        logger.warning("the mirror is not looked at: %s", error)
        return []


def _check_share(path: Path, manifest: Manifest, peers: Peers) -> _Bad | None:
    """What is wrong with this rank's share of the files."""
    names = sorted(manifest.files)[peers.rank :: peers.size]
    try:
        check_files(path, {name: manifest.files[name] for name in names})
    except CheckpointError as error:
        return _Bad(path, str(error))
    except OSError as error:
        return _Bad(path, f"{path}: cannot be read: {error}", unreadable=True)
    return None


def _settle(
    vault: Vault, choice: _Choice, found: tuple[Path, Manifest] | None, bad: list[_Bad]
) -> None:
    """Set aside what must not be found again; nothing, where no checkpoint is left."""
    damaged = dict(choice.listing.damaged)
    damaged |= {each.path: each.reason for each in bad}
    if found is None:
        if unreadable := [each.reason for each in bad if each.unreadable]:
            raise StorageError(f"no checkpoint can be read: {unreadable[0]}")
        if damaged or choice.limit is not None:
            raise CheckpointError(
                f"{vault.folder}: none of its checkpoints can be gone on from"
                + "".join(f"; {reason}" for reason in list(damaged.values())[:1])
                + ". Restore one, or move the folder away to begin anew"
            )
    else:
        damaged.pop(found[0], None)  # the mirror's is in its place
    for path, reason in damaged.items():
        vault.set_aside(path, "damaged", reason)
    for path, reason in choice.listing.fenced:
        vault.set_aside(path, "fenced", reason)
    if found is None:
        return
    if choice.limit is not None:
        vault.leave_after(found[1].step)
        for path, manifest in choice.listing.entries:
            if not choice.admits(manifest):
                vault.set_aside(path, "untrusted", f"steps are confirmed up to {choice.limit}")
    vault.resumed(found[1].step)
