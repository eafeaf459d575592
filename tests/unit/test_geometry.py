"""Sizes and lengths that a model can make, and pictures fitted to them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scalewright.errors import ConfigError
from scalewright.model.shape import ModelConfig, visual_tokens
from scalewright.train.geometry import Geometry, fitted, read_frame

PLAIN = ModelConfig()
GROUPED = ModelConfig(attention="local_global", groups=(1, 2, 3))


def picture(height: int, width: int) -> torch.Tensor:
    return torch.zeros(1, 3, height, width)


def test_multiples_are_those_of_patch_and_groups() -> None:
    assert Geometry.of(PLAIN) == Geometry(16, 16, 1)
    assert Geometry.of(GROUPED) == Geometry(32, 48, 1)


@pytest.mark.parametrize(
    ("size", "aspect", "given", "expected"),
    [
        (None, None, None, (64, 64)),
        ("96x48", None, None, (96, 48)),
        ("96X48", None, picture(500, 500), (96, 48)),
        (None, "16:9", None, (48, 80)),
        ("256x256", "16:9", None, (192, 336)),
        ("256x256", "9:16", None, (336, 192)),
        (None, None, picture(300, 600), (48, 96)),
        (None, "1:1", picture(300, 600), (64, 64)),
    ],
)
def test_size(
    size: str | None, aspect: str | None, given: torch.Tensor | None, expected: tuple[int, int]
) -> None:
    assert Geometry.of(PLAIN).size(size, aspect, given) == expected


@given(st.integers(1, 8), st.integers(1, 8), st.integers(4, 60), st.sampled_from([PLAIN, GROUPED]))
def test_every_aspect_has_a_size_that_the_model_takes(
    width: int, height: int, side: int, model: ModelConfig
) -> None:
    geometry = Geometry.of(model)
    asked = (geometry.height_px * side, geometry.width_px * side)
    size = geometry.size(f"{asked[0]}x{asked[1]}", f"{width}:{height}", None)
    shape = geometry.latent(17, *size, model.latent_channels)
    visual_tokens(model, shape[0], *shape[2:])
    # Each side is off by less than one of its steps.
    exact = math.sqrt(asked[0] * asked[1] * height / width)
    assert abs(size[0] - exact) <= geometry.height_px


@pytest.mark.parametrize(
    ("size", "aspect", "words"),
    [
        ("64", None, r"--size '64': expected HEIGHTxWIDTH"),
        ("64x100", None, r"100 must be a multiple of 16 pixels; use 96 or 112"),
        ("0x16", None, r"0 must be a multiple of 16 pixels; use 16 or 32"),
        (None, "wide", r"--aspect 'wide': expected WIDTH:HEIGHT"),
        (None, "9:1", r"--aspect 9:1: allowed are 1:8 to 8:1"),
        (None, "1:0", r"--aspect 1:0: allowed"),
        (None, "nan:1", r"--aspect nan:1: allowed"),
        (None, "inf:inf", r"--aspect inf:inf: allowed"),
    ],
)
def test_sizes_that_cannot_be(size: str | None, aspect: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Geometry.of(PLAIN).size(size, aspect, None)


@pytest.mark.parametrize("frames", [0, -3, 2, 16])
def test_lengths_that_cannot_be(frames: int) -> None:
    with pytest.raises(ConfigError, match=f"--frames {frames}: the codec takes 1, 5, 9"):
        Geometry.of(PLAIN).latent(frames, 64, 64, 32)


def test_a_picture_is_cropped_in_the_centre_and_resized(tmp_path: Path) -> None:
    """Left and right quarters of a wide picture go; a smooth middle stays as it is."""
    ramp = np.tile(np.linspace(0, 255, 128), (64, 1))
    ramp[:, :32], ramp[:, 96:] = 0, 0
    Image.fromarray(np.stack([ramp] * 3, 2).round().astype(np.uint8)).save(tmp_path / "wide.png")
    frames = read_frame(tmp_path / "wide.png")
    assert frames.shape == (1, 3, 64, 128)
    small = fitted(frames, 16, 16)
    assert small.shape == (1, 3, 16, 16)
    middles = torch.linspace(-1, 1, 128)[32:96].unflatten(0, (16, 4)).mean(1)
    assert torch.allclose(small[0, 0, 8, 1:-1], middles[1:-1], atol=0.02)
    assert fitted(frames, 64, 128).equal(frames)
