"""The quickstart's clips: the caption tells what is to be seen, and a seed gives the same files."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalewright.data.media import Frames, Sampling, read_media, to_frames
from scalewright.errors import ConfigError
from scalewright.prepare.shapes import (
    BACKGROUNDS,
    COLOURS,
    LENGTHS,
    SHAPES,
    SIZES_PX,
    draw,
    render_shapes,
    scenes,
)

MOVES = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}


def rows(captions: Path) -> list[dict[str, str]]:
    with captions.open(newline="") as file:
        return list(csv.DictReader(file))


def shape_pixels(frame: Frames, background: str) -> Frames:
    """Where a frame (H, W, 3) differs from its background: (H, W) bool."""
    return np.abs(frame.astype(int) - BACKGROUNDS[background]).max(axis=-1) > 25


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_shapes(tmp_path_factory.mktemp("shapes"), videos=10, pictures=6, seed=3)


def test_files_are_what_their_captions_say(rendered: Path) -> None:
    found = rows(rendered)
    assert len(found) == 16
    for row in found:
        (clip,) = read_media(rendered.parent / row["path"], Sampling())
        words = row["caption"].replace(" moves", "").split()
        colour, shape, background = words[1], words[2], words[-2]
        assert shape in SHAPES
        assert (clip.shape[2], clip.shape[1]) in SIZES_PX
        middle = np.median(clip[0][shape_pixels(clip[0], background)], axis=0)
        assert np.abs(middle - COLOURS[colour]).max() < 20, row
        if row["path"].endswith(".png"):
            assert len(clip) == 1
            assert "moves" not in row["caption"]
        else:
            assert len(clip) in LENGTHS
            assert f"moves {words[3]} on" in row["caption"]
            first, last = (np.argwhere(shape_pixels(f, background)).mean(0) for f in clip[[0, -1]])
            step = np.sign(np.round((last - first) / 4))  # (down, right)
            assert tuple(step[::-1]) == MOVES[words[3]], row


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), direction=st.sampled_from([*MOVES, None]))
def test_shapes_stay_inside_and_keep_their_size(seed: int, direction: str | None) -> None:
    (scene,) = scenes(np.random.default_rng(seed), 1, [direction])
    areas = []
    for frame in to_frames(draw(scene)):
        contrast = np.abs(frame.astype(int) - BACKGROUNDS[scene.background]).max(axis=-1)
        sides = (contrast[0], contrast[-1], contrast[:, 0], contrast[:, -1])
        # An antialiased edge may reach into the last pixel, the shape itself not.
        assert np.concatenate(sides).max() < 0.5 * contrast.max()
        areas.append(shape_pixels(frame, scene.background).sum())
    assert max(areas) < 1.2 * min(areas)
    assert min(areas) > 100


def test_every_caption_comes_once_before_any_twice() -> None:
    pictures = scenes(np.random.default_rng(0), 168, [None])
    captions = [scene.caption for scene in pictures]
    assert len(set(captions[:84])) == len(set(captions[84:])) == 84  # 3 · (6 · 5 - 2)
    assert {scene.background for scene in pictures} == set(BACKGROUNDS)
    assert "an orange square on a white background" in captions
    assert "a red circle on a dark background" in captions


def test_the_same_seed_gives_the_same_files(tmp_path: Path, rendered: Path) -> None:
    again = render_shapes(tmp_path / "again", videos=10, pictures=6, seed=3)
    names = [row["path"] for row in rows(rendered)]
    assert again.read_bytes() == rendered.read_bytes()
    for name in names:
        assert (again.parent / name).read_bytes() == (rendered.parent / name).read_bytes(), name
    other = render_shapes(tmp_path / "other", videos=10, pictures=6, seed=4)
    assert other.read_bytes() != rendered.read_bytes()


def test_nothing_to_render_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 videos and 0 pictures"):
        render_shapes(tmp_path, videos=0, pictures=0)
