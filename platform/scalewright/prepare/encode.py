"""Media and captions -> a data folder: catalogue, shards of latents, the empty prompt's embedding.

Files are decoded and encoded in threads, one clip of frames in RAM each; the caller's thread
writes. What is sealed in a shard stays, so a run that was stopped goes on where it was.
"""

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from scalewright.config import read_toml, to_dict, to_toml
from scalewright.data.catalogue import Catalogue
from scalewright.data.codec import Codec, HaarCodec
from scalewright.data.media import Sampling, read_media, to_tensor
from scalewright.data.sample import DataInfo, Entry
from scalewright.data.shards import MAX_SHARD_BYTES, SHARD_FOLDER, ShardWriter, write_null_text
from scalewright.data.snapshot import FILE_NAME, write_snapshot
from scalewright.data.text import ByteNgramEncoder, TextEncoder
from scalewright.errors import ConfigError, DataError
from scalewright.prepare.intake import Encoded, Intake
from scalewright.prepare.scores import ScoreColumn
from scalewright.prepare.sources import Source, read_sources, uncaptioned
from scalewright.prepare.static import MARK, StaticConfig, check_frames, repeated

logger = logging.getLogger(__name__)

SETTINGS_FILE = "prepare.toml"
REPORT_EVERY_S = 5.0
FILES_AHEAD = 2  # encoded files that wait for the writing thread, per worker


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What shapes the data besides codec and text encoder. Kept in the folder as `prepare.toml`."""

    sampling: Sampling = field(default_factory=Sampling)
    validation_share: float = 0.1
    scores: tuple[ScoreColumn, ...] = ()
    static: StaticConfig = field(default_factory=StaticConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ConfigError(
                f"validation_share = {self.validation_share}; it must be at least 0 and below 1"
            )
        if self.static.share:
            check_frames(self.static_frames)

    @property
    def static_frames(self) -> int:
        """Frames of a static clip."""
        return self.sampling.max_frames if self.static.frames is None else self.static.frames


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The whole folder after a run; `new_clips` and `seconds` are this run's.

    `latent_positions`: T·H·W over all clips; visual tokens are these over the positions a patch.
    `rejected`: (source, reason). `uncaptioned`: media files that no caption names. The static
    clips are among the videos.
    """

    clips: int
    pictures: int
    videos: int
    static_clips: int
    validation_clips: int
    new_clips: int
    latent_positions: int
    text_tokens: int
    shard_bytes: int
    rejected: list[tuple[str, str]]
    uncaptioned: list[str]
    seconds: float


def prepare(
    source: Path,
    captions: Path,
    out: Path,
    *,
    config: PrepareConfig | None = None,
    codec: Codec | None = None,
    text_encoder: TextEncoder | None = None,
    max_broken_share: float = 0.05,
    workers: int = 2,
    shard_bytes: int = MAX_SHARD_BYTES,
) -> Summary:
    """Encode the files under `source` that `captions` (CSV path,caption) names into `out`.

    `config.scores` names further columns of `captions`, kept with a file's clips; a share of the
    files gives a static clip besides (`config.static`). Sources that `out` holds are skipped.
    Broken and missing files enter the catalogue with their reason; `DataError` once they are more
    than `max_broken_share` of all. Ctrl-C seals what is done, then raises KeyboardInterrupt.
    """
    began, config = time.monotonic(), config or PrepareConfig()
    codec, text_encoder = codec or HaarCodec(), text_encoder or ByteNgramEncoder()
    _check_arguments(source, max_broken_share, workers)
    sources = read_sources(captions, config.scores)
    strangers = _report_uncaptioned(source, sources)
    catalogue = _open_folder(out, config, codec, text_encoder)
    clips_before = len(_entries(catalogue))
    intake = Intake(catalogue, text_encoder, sources, config.validation_share, config.static)
    _check_broken(intake.broken, len(sources), max_broken_share, out)
    todo = intake.missing(sources)

    def encode(entry: Source) -> Encoded | str:
        static_frames = config.static_frames if config.static.wants(entry) else None
        return _encode(source / entry.name, config.sampling, codec, static_frames)

    with (
        _torch_threads(workers),
        _interrupts_deferred() as interrupted,
        ShardWriter(out, shard_bytes, intake.enter_catalogue) as shards,
    ):
        progress = _Progress(len(todo), len(sources))
        for entry, encoded in _in_order(todo, encode, workers):
            intake.take(shards, entry, encoded)
            progress.one_more(len(intake.broken))
            # Of all sources, not of those seen: over the limit now is over it at the end.
            if interrupted.is_set() or len(intake.broken) > max_broken_share * len(sources):
                break
    if interrupted.is_set():
        raise KeyboardInterrupt
    _check_broken(intake.broken, len(sources), max_broken_share, out)
    return _summary(catalogue, out, clips_before, strangers, time.monotonic() - began)


def _encode(
    path: Path, sampling: Sampling, codec: Codec, static_frames: int | None
) -> Encoded | str:
    """A file's latents, or why there are none."""
    clips: list[Tensor] = []
    static = None
    try:
        for clip in read_media(path, sampling):
            frames = to_tensor(clip)
            if not clips and static_frames is not None:
                static = codec.encode(repeated(frames, static_frames))
            clips.append(codec.encode(frames))
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")
    return Encoded(clips, static)


def _in_order(
    todo: Sequence[Source], encode: Callable[[Source], Encoded | str], workers: int
) -> Iterator[tuple[Source, Encoded | str]]:
    """Each source with its result, in order: ids do not depend on which thread was faster."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")
    waiting: deque[tuple[Source, Future[Encoded | str]]] = deque()
    try:
        for source in todo:
            waiting.append((source, pool.submit(encode, source)))
            if len(waiting) > FILES_AHEAD * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _check_arguments(source: Path, max_broken_share: float, workers: int) -> None:
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; give the folder of pictures and videos")
    if not 0 <= max_broken_share <= 1:
        raise ConfigError(f"max_broken_share = {max_broken_share}; it must be from 0 to 1")
    if workers < 1:
        raise ConfigError(f"workers = {workers}; it must be at least 1")


def _report_uncaptioned(folder: Path, sources: Sequence[Source]) -> list[str]:
    strangers = uncaptioned(folder, sources)
    if strangers:
        logger.warning(
            "%d media files have no caption and are left alone, such as %s",
            len(strangers),
            strangers[0],
        )
    return strangers


def _open_folder(
    out: Path, config: PrepareConfig, codec: Codec, text_encoder: TextEncoder
) -> Catalogue:
    """Make the data folder, or go on with it where codec, encoder and settings are the same."""
    info = DataInfo(
        codec=codec.fingerprint,
        latent_channels=codec.latent_channels,
        text_encoder=text_encoder.fingerprint,
        text_dim=text_encoder.dim,
    )
    catalogue = Catalogue.create(out, info)
    _keep_settings(out / SETTINGS_FILE, config)
    write_null_text(out, text_encoder.encode([""])[0])
    return catalogue


def _keep_settings(path: Path, config: PrepareConfig) -> None:
    if not path.exists():
        part = path.with_name(f"{path.name}.part")
        part.write_text(to_toml(config), encoding="utf-8")
        os.replace(part, path)
    # What an older folder does not state, was then as it is now by default.
    held, wanted = to_dict(PrepareConfig()) | read_toml(path), to_dict(config)
    if differ := [key for key in wanted if held[key] != wanted[key]]:
        before, now = ({key: tree[key] for key in differ} for tree in (held, wanted))
        raise DataError(
            f"{path}: this folder was prepared with {before}, not {now}; "
            f"prepare into another folder, or delete this one first"
        )


def _check_broken(
    broken: Sequence[tuple[str, str]], sources: int, max_broken_share: float, out: Path
) -> None:
    if len(broken) > max_broken_share * sources:
        raise DataError(
            f"{len(broken)} of {sources} files ({len(broken) / sources:.1%}) cannot be used, more "
            f"than --max-broken-share {max_broken_share:g}; the first is {broken[0][0]}: "
            f"{broken[0][1]}. Repair or take out such files and prepare into a new folder, or "
            f"raise --max-broken-share to go on in {out}"
        )


def _summary(
    catalogue: Catalogue, out: Path, clips_before: int, strangers: list[str], seconds: float
) -> Summary:
    entries = _entries(catalogue)
    if entries:
        write_snapshot(catalogue.snapshot(), out / FILE_NAME)
    else:
        raise DataError(f"{out}: no clip could be made; the catalogue tells why of each file")
    return Summary(
        clips=len(entries),
        pictures=sum(not entry.is_video for entry in entries),
        videos=sum(entry.is_video for entry in entries),
        static_clips=sum(source.endswith(f"#{MARK}") for source in catalogue.sources()),
        validation_clips=len(catalogue.entries("validation")),
        new_clips=len(entries) - clips_before,
        latent_positions=sum(e.latent_frames * e.height * e.width for e in entries),
        text_tokens=sum(entry.text_tokens for entry in entries),
        shard_bytes=sum(path.stat().st_size for path in (out / SHARD_FOLDER).glob("*.tar")),
        rejected=catalogue.rejected(),
        uncaptioned=strangers,
        seconds=seconds,
    )


def _entries(catalogue: Catalogue) -> list[Entry]:
    return catalogue.entries("train") + catalogue.entries("validation")


class _Progress:
    """A line to the log at the start and every few seconds."""

    def __init__(self, files: int, sources: int) -> None:
        logger.info("%d files to encode, %d done before", files, sources - files)
        self._files = files
        self._done = 0
        self._began = self._reported = time.monotonic()

    def one_more(self, broken: int) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._reported < REPORT_EVERY_S:
            return
        self._reported = now
        rate = self._done / (now - self._began)
        logger.info(
            "%d of %d files, %d left out, %.1f files/s, %.0f s to go",
            self._done,
            self._files,
            broken,
            rate,
            (self._files - self._done) / rate,
        )


@contextmanager
def _torch_threads(workers: int) -> Iterator[None]:
    """Share the cores among `workers` encoding threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _interrupts_deferred() -> Iterator[threading.Event]:
    """Set the event on SIGINT or SIGTERM, so that no clip is left half written; a second one
    interrupts at once. Only the main thread gets signals; in others this does nothing."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def note(signum: int, frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        logger.warning("interrupted: finishing the files in hand; once more to stop at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
