"""Measures of made frames against real ones: the interface, and two that can be had offline."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from scalewright.errors import ConfigError, DataError
from scalewright.objective.flow import keyed_generator

PATCH_PX = 7
PATCHES_PER_FRAME = 32
PROJECTIONS = 512
SMALLEST_SIDE_PX = 16


class QualityMetric(Protocol):
    """Takes in clip after clip, then tells results by name. Frames: (F, 3, H, W) in [-1, 1]."""

    def update(self, real_frames: Tensor, made_frames: Tensor) -> None: ...

    def result(self) -> dict[str, float]: ...


class SlicedWasserstein:
    """Sliced Wasserstein distance of patches at every octave of detail; needs no weights.

    Karras et al. 2018, section 5: 7x7 patches of a Laplacian pyramid, projected on random
    directions, where the distance of two sorted sets is exact; times 1000. Unlike there, both sides
    are scaled by the real patches' mean and deviation, so that a colour cast counts. Real and made
    frames have the same shape, and are looked at in the same places.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._clips = 0
        # By octave, the finest first: patches (n, 3·7·7) of real and of made frames.
        self._patches: list[tuple[list[Tensor], list[Tensor]]] = []

    def update(self, real_frames: Tensor, made_frames: Tensor) -> None:
        if real_frames.shape != made_frames.shape:
            raise DataError(
                f"real frames of {tuple(real_frames.shape)}, made ones of "
                f"{tuple(made_frames.shape)}; give clips of one shape"
            )
        octaves = zip(laplacian_pyramid(real_frames), laplacian_pyramid(made_frames), strict=True)
        for octave, pair in enumerate(octaves):
            if octave == len(self._patches):
                self._patches.append(([], []))
            for patches, frames in zip(self._patches[octave], pair, strict=True):
                generator = keyed_generator("patches", self._seed, self._clips, octave)
                patches.append(_random_patches(frames, generator))
        self._clips += 1

    def result(self) -> dict[str, float]:
        """`swd` and, finest octave first, `swd_octave_0` onwards."""
        if not self._patches:
            raise DataError("sliced Wasserstein distance of no frames; update it with clips first")
        octaves = [self._distance(torch.cat(real), torch.cat(made)) for real, made in self._patches]
        named = {f"swd_octave_{index}": value for index, value in enumerate(octaves)}
        return {"swd": sum(octaves) / len(octaves), **named}

    def _distance(self, real: Tensor, made: Tensor) -> float:
        mean, deviation = real.mean((0, 2), keepdim=True), real.std((0, 2), keepdim=True)
        deviation = deviation.clamp(min=torch.finfo(deviation.dtype).eps)
        generator = keyed_generator("projections", self._seed)
        directions = torch.randn(3 * PATCH_PX**2, PROJECTIONS, generator=generator)
        directions = directions / directions.norm(dim=0)
        sides = [((x - mean) / deviation).flatten(1) @ directions for x in (real, made)]
        first, second = (side.sort(dim=0).values for side in sides)
        return 1000 * (first - second).abs().mean().item()


def laplacian_pyramid(frames: Tensor) -> list[Tensor]:
    """(F, 3, H, W) -> details octave by octave, and last what is left at about 16 px."""
    octaves = []
    current = frames.float()
    while min(current.shape[-2:]) >= 2 * SMALLEST_SIDE_PX:
        coarse = _blurred(current)[..., ::2, ::2]
        size = (current.shape[-2], current.shape[-1])
        octaves.append(current - functional.interpolate(coarse, size, mode="bilinear"))
        current = coarse
    return [*octaves, current]


def _blurred(frames: Tensor) -> Tensor:
    """The binomial filter of Burt and Adelson 1983."""
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = torch.outer(row, row).expand(3, 1, 5, 5)
    return functional.conv2d(functional.pad(frames, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)


def _random_patches(frames: Tensor, generator: torch.Generator) -> Tensor:
    """(F, 3, H, W) -> (F·32, 3, 49)."""
    count, _, height, width = frames.shape
    total = count * PATCHES_PER_FRAME
    tops = torch.randint(height - PATCH_PX + 1, (total, 1, 1), generator=generator)
    lefts = torch.randint(width - PATCH_PX + 1, (total, 1, 1), generator=generator)
    rows, columns = tops + torch.arange(PATCH_PX)[:, None], lefts + torch.arange(PATCH_PX)
    which = torch.arange(count).repeat_interleave(PATCHES_PER_FRAME)[:, None, None]
    return frames[which, :, rows, columns].permute(0, 3, 1, 2).flatten(2)


class FrechetDistance:
    """Fréchet distance of Gaussians fitted to features of real and made frames.

    With Inception features this is FID (Heusel et al. 2017, eq. 6). `features`: (F, 3, H, W) in
    [-1, 1] -> (F, D).
    """

    def __init__(self, features: Callable[[Tensor], Tensor], name: str = "fid") -> None:
        self._features, self._name = features, name
        self._real, self._made = _Moments(), _Moments()

    def update(self, real_frames: Tensor, made_frames: Tensor) -> None:
        self._real.add(self._features(real_frames))
        self._made.add(self._features(made_frames))

    def result(self) -> dict[str, float]:
        return {self._name: frechet(*self._real.gaussian(), *self._made.gaussian())}


class _Moments:
    """Running sums from which mean and covariance follow, in fp64."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Tensor | float = 0.0
        self._products: Tensor | float = 0.0

    def add(self, features: Tensor) -> None:
        wide = features.detach().double().cpu()
        self._count += len(wide)
        self._sum = self._sum + wide.sum(0)
        self._products = self._products + wide.T @ wide

    def gaussian(self) -> tuple[Tensor, Tensor]:
        if self._count < 2:
            raise DataError(f"Fréchet distance of {self._count} frames; it takes at least 2")
        mean = torch.as_tensor(self._sum) / self._count
        centred = torch.as_tensor(self._products) - self._count * torch.outer(mean, mean)
        return mean, centred / (self._count - 1)


def frechet(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """|mean_a - mean_b|² + tr(A + B - 2·(A·B)^½), (D,) and (D, D) each.

    The trace of (A·B)^½ is the sum of roots of the eigenvalues of A^½·B·A^½, which is symmetric.
    """
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    apart = (mean_a - mean_b).square().sum()
    return (apart + cov_a.trace() + cov_b.trace() - 2 * shared).item()


def inception_features(weights: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The 2048 features of FID; `weights` is the file inception-2015-12-05.pt of StyleGAN2-ADA."""
    if not weights.is_file():
        raise ConfigError(
            f"{weights}: no such file; FID needs inception-2015-12-05.pt of StyleGAN2-ADA; without "
            "weights, SlicedWasserstein can be measured"
        )
    detector: nn.Module = torch.jit.load(weights, map_location=device).eval()

    @torch.no_grad()
    def features(frames: Tensor) -> Tensor:
        pixels = ((frames.clamp(-1, 1) + 1) * 127.5).round().to(device, torch.uint8)
        found: Tensor = detector(pixels, return_features=True)
        return found

    return features
