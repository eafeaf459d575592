"""The quickstart's own clips: coloured shapes that move, as real mp4 and png files with captions.

Every word of a caption shows: shape, colour, direction and background. So a tiny model can learn
from a few hundred clips what text has to do with pictures, and one can see whether it did.
"""

import csv
import io
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalewright.data.media import write_picture, write_video
from scalewright.errors import ConfigError

FPS = 8.0
SIZES_PX = ((64, 64), (80, 48), (48, 80))  # (width, height), equal in area within 7%
LENGTHS = (5, 9, 13, 17)
SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (220, 50, 45),
    "green": (50, 165, 75),
    "blue": (50, 95, 215),
    "yellow": (235, 205, 55),
    "purple": (150, 65, 185),
    "orange": (240, 135, 35),
}
BACKGROUNDS = {
    "dark": (28, 28, 32),
    "white": (242, 242, 242),
    "gray": (128, 128, 128),
    "blue": (70, 110, 190),
    "green": (95, 160, 105),
}
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}

Points = NDArray[np.floating]


@dataclass(frozen=True)
class Scene:
    """What a caption says, plus what it leaves open: pixels. `direction` None is a picture."""

    shape: str
    colour: str
    background: str
    direction: str | None
    size_px: tuple[int, int]
    radius_px: float
    start_px: tuple[float, float]
    speed_px: float
    frames: int

    @property
    def caption(self) -> str:
        moves = f" moves {self.direction}" if self.direction else ""
        article = "an" if self.colour == "orange" else "a"
        return f"{article} {self.colour} {self.shape}{moves} on a {self.background} background"


def render_shapes(out: Path, *, videos: int = 240, pictures: int = 160, seed: int = 0) -> Path:
    """Write the clips and, last, `captions.csv` (path,caption) under `out`; return its path.

    The same counts and seed give the same files.
    """
    if videos < 0 or pictures < 0 or videos + pictures == 0:
        raise ConfigError(f"{videos} videos and {pictures} pictures; ask for at least one file")
    rng = np.random.default_rng(seed)
    moving = scenes(rng, videos, list(DIRECTIONS))
    still = scenes(rng, pictures, [None])
    files = {f"videos/{index:05d}.mp4": scene for index, scene in enumerate(moving)}
    files |= {f"pictures/{index:05d}.png": scene for index, scene in enumerate(still)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_write, (out / name for name in files), files.values()))
    return _write_captions(out / "captions.csv", files)


def _write(path: Path, scene: Scene) -> None:
    if scene.direction is None:
        write_picture(path, draw(scene)[0])
    else:  # near-lossless, as these frames are to be learned from
        write_video(path, draw(scene), FPS, crf=8)


def draw(scene: Scene) -> Tensor:
    """The scene's frames, (F, 3, H, W) in [-1, 1], with antialiased edges."""
    width, height = scene.size_px
    time = np.arange(scene.frames, dtype=np.float32)[:, None, None]
    step_x, step_y = DIRECTIONS[scene.direction] if scene.direction else (0, 0)
    x = (
        np.arange(width, dtype=np.float32)
        + 0.5
        - scene.start_px[0]
        - time * scene.speed_px * step_x
    )
    y = np.arange(height, dtype=np.float32)[:, None] + 0.5 - scene.start_px[1]
    y = y - time * scene.speed_px * step_y
    # A signed distance to the edge in pixels gives the share of a pixel that is covered.
    covered = np.clip(0.5 - _distance(scene.shape, x, y, scene.radius_px), 0, 1)[..., None]
    colour = np.array(COLOURS[scene.colour], np.float32)
    background = np.array(BACKGROUNDS[scene.background], np.float32)
    pixels = (background + covered * (colour - background)) / 127.5 - 1  # (F, H, W, 3)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _distance(shape: str, x: Points, y: Points, radius: float) -> Points:
    """Signed distance to the shape's edge, negative inside; about exact near the edge."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.88 * radius
    # Triangle, upright: three half planes, each at half the outer radius from the centre.
    slope_x, slope_y = np.sqrt(0.75), 0.5
    sides = slope_x * np.abs(x) - slope_y * y
    return np.maximum(sides, y) - 0.5 * radius


def scenes(rng: np.random.Generator, count: int, directions: list[str] | list[None]) -> list[Scene]:
    """`count` scenes that use every caption once before any twice."""
    captions = [
        combination
        for combination in itertools.product(SHAPES, COLOURS, BACKGROUNDS, directions)
        if combination[1] != combination[2]
    ]
    order: list[int] = []
    while len(order) < count:
        order += rng.permutation(len(captions)).tolist()
    return [_scene(rng, *captions[index]) for index in order[:count]]


def _scene(
    rng: np.random.Generator, shape: str, colour: str, background: str, direction: str | None
) -> Scene:
    size = SIZES_PX[rng.integers(len(SIZES_PX))]
    frames = int(rng.choice(LENGTHS)) if direction else 1
    radius = float(rng.uniform(11, 14))
    speed = float(rng.uniform(1.5, 2.5))
    step_x, step_y = DIRECTIONS[direction] if direction else (0, 0)
    room = [side / 2 - radius - 1 for side in size]  # from the centre, still wholly inside
    along = room[0] if step_x else room[1]
    speed = min(speed, 2 * along / max(1, frames - 1))
    # The way is centred; the rest of the position is free, a little.
    way = speed * (frames - 1) / 2
    start = [
        side / 2 - step * way + float(rng.uniform(-0.4, 0.4)) * (free - abs(step) * way)
        for side, step, free in zip(size, (step_x, step_y), room, strict=True)
    ]
    return Scene(
        shape, colour, background, direction, size, radius, (start[0], start[1]), speed, frames
    )


def _write_captions(path: Path, files: dict[str, Scene]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "caption"))
    writer.writerows((name, scene.caption) for name, scene in files.items())
    part = path.with_name(f".{path.name}.part")
    part.write_text(text.getvalue(), encoding="utf-8")
    os.replace(part, path)
    return path
