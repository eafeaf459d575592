"""Pictures and videos <-> frames: read, sample in time, resize, cut into clips; write.

Reading streams: at most one clip of a video is in RAM. Whatever is wrong with a file becomes a
`DataError` with its name and the reason.
"""

import itertools
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from scalewright.errors import ConfigError, DataError

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".gif", ".webm", ".mov", ".avi"})
MEDIA_SUFFIXES = PICTURE_SUFFIXES | VIDEO_SUFFIXES

SIDE_MULTIPLE_PX = 16  # 8 pixels a latent cell, 2 cells a patch
MAX_ASPECT = 4.0
MAX_SOURCE_PX = 64 * 2**20
MAX_SOURCE_FRAMES = 1_000_000
# A container states its length in frames or seconds; less than this share of it is a cut file.
MIN_SHARE_OF_STATED = 0.9

Frames = NDArray[np.uint8]  # (F, H, W, 3)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a file becomes clips.

    `fps`: sampled frames a second, at most the source's own. `max_frames`: longest clip; clips
    have 1 + 4k frames. `area_px`: pixels of a frame, about; sources are never enlarged.
    `clips_per_file`: consecutive clips taken from the start of a video; None takes them all.
    """

    fps: float = 8.0
    max_frames: int = 17
    area_px: int = 4096
    clips_per_file: int | None = 1

    def __post_init__(self) -> None:
        if not 0 < self.fps <= 240:
            raise ConfigError(f"fps = {self.fps}; it must be above 0 and at most 240")
        if self.max_frames < 1 or self.max_frames % 4 != 1:
            below = max(1, (self.max_frames - 1) // 4 * 4 + 1)
            raise ConfigError(
                f"max_frames = {self.max_frames}; clips have 1 + 4k frames, "
                f"use {below} or {below + 4}"
            )
        if self.area_px < SIDE_MULTIPLE_PX**2:
            raise ConfigError(f"area_px = {self.area_px}; it must be at least 256 (16x16 px)")
        if self.clips_per_file is not None and self.clips_per_file < 1:
            raise ConfigError(f"clips_per_file = {self.clips_per_file}; it must be at least 1")


def is_video_file(path: Path) -> bool:
    """Whether the name says video; a video of a single frame still becomes a picture."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def read_media(path: Path, sampling: Sampling) -> Iterator[Frames]:
    """Yield the clips of a picture or video file, each (F, H, W, 3) uint8 with F = 1 + 4k.

    `DataError` with the name and the reason when the file is missing, broken, cut short, of no
    known kind, too large, too small or too long and thin.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if suffix in PICTURE_SUFFIXES:
        yield _fit(path, _read_picture(path), sampling.area_px)[None]
    elif suffix in VIDEO_SUFFIXES:
        yield from _cut(_sampled(path, sampling), sampling)
    else:
        known = " ".join(sorted(MEDIA_SUFFIXES))
        raise DataError(f"{path}: {suffix or 'no suffix'} is not a media file; known: {known}")


def target_size(width: int, height: int, area_px: int) -> tuple[int, int]:
    """(width, height) in multiples of 16 px, near `area_px` and the source's aspect.

    Never above the source; a side is 0 where the source has fewer than 16 px. Of the sizes next
    to the exact one, takes that which changes the aspect least, then the area.
    """
    scale = math.sqrt(area_px / (width * height))

    def sides(source: int) -> set[int]:
        exact = source * scale / SIDE_MULTIPLE_PX
        near = {max(1, math.floor(exact)), math.ceil(exact)}
        return {min(side, source // SIDE_MULTIPLE_PX) * SIDE_MULTIPLE_PX for side in near}

    def misfit(size: tuple[int, int]) -> float:
        if not all(size):
            return math.inf
        aspect = math.log(size[0] / size[1]) - math.log(width / height)
        return 2 * abs(aspect) + abs(math.log(size[0] * size[1] / area_px))

    return min(
        itertools.product(sides(width), sides(height)), key=lambda size: (misfit(size), size)
    )


def _read_picture(path: Path) -> Image.Image:
    with _named(path), warnings.catch_warnings():
        # Pillow warns of large pictures at open; the limit below refuses them before decoding.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            _check_pixels(path, image.width, image.height)
            if getattr(image, "is_animated", False):
                raise DataError(f"{path}: an animated picture; convert it to gif or mp4")
            return _on_white(ImageOps.exif_transpose(image))


def _on_white(image: Image.Image) -> Image.Image:
    """As RGB; what is transparent shows white."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scale
        image = image.point(lambda value: value * (1 / 257)).convert("L")
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _sampled(path: Path, sampling: Sampling) -> Iterator[Frames]:
    """The frames at the ticks of `sampling.fps`, each resized to (H, W, 3), one at a time.

    Works on time stamps, so a variable rate is kept in real time; a source frame is used at most
    once. A frame may lead its tick by a quarter period, because containers round time stamps.
    """
    fps = Fraction(sampling.fps).limit_denominator(1000)
    start, last_tick, seen, end = Fraction(0), -1, 0, Fraction(0)
    with _named(path), _video(path) as (container, stream):
        size = (stream.width, stream.height)
        for frame in container.decode(stream):
            time = _frame_time(frame, seen, stream)
            start = time if seen == 0 else start
            seen, end = seen + 1, time - start + _hold(frame, stream)
            _check_frame(path, frame, size, seen)
            tick = math.floor((time - start) * fps + Fraction(1, 4))
            if tick > last_tick:
                last_tick = tick
                yield _fit(path, _upright(frame), sampling.area_px)
        _check_length(path, container, stream, seen, float(end))


@contextmanager
def _video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise DataError(f"{path}: holds no video")
        stream = container.streams.video[0]
        _check_pixels(path, stream.width, stream.height)
        if path.suffix.lower() == ".gif" and not _gif_is_whole(path):
            raise DataError(f"{path}: the end of the GIF is missing; the file is cut short")
        yield container, stream


def _gif_is_whole(path: Path) -> bool:
    """A GIF states no length; only its closing mark tells that nothing is missing."""
    with path.open("rb") as file:
        file.seek(-min(64, path.stat().st_size), os.SEEK_END)
        return file.read().rstrip(b"\0").endswith(b";")


def _frame_time(frame: av.VideoFrame, index: int, stream: VideoStream) -> Fraction:
    if frame.pts is not None and frame.time_base is not None:
        return frame.pts * Fraction(frame.time_base)
    return index / Fraction(stream.average_rate or 25)


def _hold(frame: av.VideoFrame, stream: VideoStream) -> Fraction:
    """Seconds that a frame is shown."""
    if frame.duration and frame.time_base is not None:
        return frame.duration * Fraction(frame.time_base)
    return 1 / Fraction(stream.average_rate or 25)


def _upright(frame: av.VideoFrame) -> Image.Image:
    if any(component.is_alpha for component in frame.format.components):
        image = _on_white(Image.fromarray(frame.to_ndarray(format="rgba")))
    else:
        image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _cut(frames: Iterator[Frames], sampling: Sampling) -> Iterator[Frames]:
    """Consecutive clips of `max_frames`, then the 1 + 4k frames that the rest holds.

    A rest of fewer than 5 frames is dropped: it would be a picture with a video's caption. Only
    where it is all there is does its first frame become a picture.
    """
    clip: list[Frames] = []
    clips = 0
    for frame in frames:
        clip.append(frame)
        if len(clip) == sampling.max_frames:
            yield np.stack(clip)
            clip, clips = [], clips + 1
            if clips == sampling.clips_per_file:
                return
    whole = (len(clip) - 1) // 4 * 4 + 1
    if whole > 1 or (clip and clips == 0):
        yield np.stack(clip[:whole])


def _fit(path: Path, image: Image.Image, area_px: int) -> Frames:
    """Resize with antialiasing and crop the small rest in the centre -> (H, W, 3)."""
    width, height = target_size(image.width, image.height, area_px)
    if not width or not height:
        raise DataError(
            f"{path}: {image.width}x{image.height} px; both sides must be at least "
            f"{SIDE_MULTIPLE_PX} px"
        )
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise DataError(
            f"{path}: {image.width}x{image.height} px is longer than {MAX_ASPECT:g}:1; crop it"
        )
    scale = max(width / image.width, height / image.height)
    left = max(0.0, (image.width - width / scale) / 2)
    top = max(0.0, (image.height - height / scale) / 2)
    box = (left, top, image.width - left, image.height - top)
    return np.array(image.resize((width, height), Image.Resampling.LANCZOS, box))


def _check_pixels(path: Path, width: int, height: int) -> None:
    if width * height > MAX_SOURCE_PX:
        raise DataError(
            f"{path}: {width}x{height} px is more than {MAX_SOURCE_PX} px; make it smaller"
        )


def _check_frame(path: Path, frame: av.VideoFrame, size: tuple[int, int], number: int) -> None:
    if frame.is_corrupt:
        raise DataError(f"{path}: frame {number} is damaged")
    if number > MAX_SOURCE_FRAMES:
        raise DataError(f"{path}: more than {MAX_SOURCE_FRAMES} frames; cut it")
    if (frame.width, frame.height) != size:
        raise DataError(
            f"{path}: frame {number} is {frame.width}x{frame.height} px in a video of "
            f"{size[0]}x{size[1]} px; encode it again at one size"
        )


def _check_length(
    path: Path, container: InputContainer, stream: VideoStream, frames: int, end_s: float
) -> None:
    """A file that was cut short may decode without an error and simply end early."""
    if frames == 0:
        raise DataError(f"{path}: no frame can be decoded; the file is broken or cut short")
    if frames < MIN_SHARE_OF_STATED * stream.frames:
        raise DataError(
            f"{path}: ends after {frames} of {stream.frames} frames; the file is cut short"
        )
    # Of several streams another may be the longest, and the container's length is that one's.
    alone = len(container.streams) == 1 and container.duration is not None
    stated_s = (container.duration or 0) / av.time_base if alone else 0.0
    if end_s < MIN_SHARE_OF_STATED * stated_s:
        raise DataError(
            f"{path}: ends after {end_s:.2f} of {stated_s:.2f} s; the file is cut short"
        )


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn whatever the decoders raise, which for hostile files is anything, into a `DataError`."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: cannot be read: {reason}") from error


def to_tensor(frames: Frames) -> Tensor:
    """(F, H, W, 3) uint8 -> (F, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_frames(frames: Tensor) -> Frames:
    """(F, 3, H, W) float, clamped to [-1, 1] -> (F, H, W, 3) uint8; `DataError` if not finite."""
    if frames.ndim != 4 or frames.shape[1] != 3:
        raise DataError(f"frames have shape {tuple(frames.shape)}; expected (F, 3, H, W)")
    if not torch.isfinite(frames).all():
        raise DataError("frames hold NaN or infinite values; what made them has failed")
    levels = (frames.detach().cpu().float().clamp(-1, 1) + 1) * 127.5
    return levels.round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def write_picture(path: Path, frame: Tensor) -> None:
    """Write (3, H, W) in [-1, 1] as PNG, whole or not at all."""
    image = Image.fromarray(to_frames(frame[None])[0])
    with _replacing(path) as part:
        image.save(part, format="png")


def write_video(path: Path, frames: Tensor, fps: float, crf: int = 18) -> None:
    """Write (F, 3, H, W) in [-1, 1] as H.264 mp4 that browsers play, whole or not at all.

    `crf`: 0 (lossless) to 51; 18 is visually lossless. Sides must be even (yuv420p).
    """
    if not fps > 0:
        raise ConfigError(f"{path}: {fps} frames a second; it must be above 0")
    pixels = to_frames(frames)
    count, height, width, _ = pixels.shape
    if not count or height % 2 or width % 2:
        raise DataError(f"{path}: {count} frames of {width}x{height} px; H.264 needs even sides")
    with _replacing(path) as part, av.open(str(part), "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        # With x264's macroblock tree, the same frames do not always give the same bytes.
        options = {"crf": str(crf), "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
