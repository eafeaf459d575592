"""Measures of quality: distances that are known in closed form, and what they react to."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scalewright.errors import ConfigError, DataError
from scalewright.train.quality import (
    FrechetDistance,
    QualityMetric,
    SlicedWasserstein,
    frechet,
    inception_features,
    laplacian_pyramid,
)


def frames(seed: int, count: int = 4, size: int = 64) -> Tensor:
    """Smooth random pictures."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, size // 8, size // 8, generator=generator) * 2 - 1
    return nn.functional.interpolate(coarse, (size, size), mode="bilinear")


def measured(metric: QualityMetric, real: Tensor, made: Tensor) -> dict[str, float]:
    metric.update(real, made)
    return metric.result()


def test_frechet_of_independent_coordinates() -> None:
    """For diagonal covariances: squared distance of the means plus of the deviations."""
    mean_a, mean_b = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.0, 1.0]).double()
    dev_a, dev_b = torch.tensor([0.5, 2.0]).double(), torch.tensor([1.5, 0.3]).double()
    found = frechet(mean_a, dev_a.square().diag(), mean_b, dev_b.square().diag())
    assert found == pytest.approx(10 + ((dev_a - dev_b) ** 2).sum().item())


def test_frechet_does_not_care_for_rotations() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, turn = (torch.randn(5, 5, generator=generator).double() for _ in range(3))
    a, b = a @ a.T, b @ b.T
    turn = torch.linalg.qr(turn).Q
    zero = torch.zeros(5).double()
    plain = frechet(zero, a, zero, b)
    assert frechet(zero, turn @ a @ turn.T, zero, turn @ b @ turn.T) == pytest.approx(plain)
    assert frechet(zero, b, zero, a) == pytest.approx(plain)
    assert frechet(zero, a, zero, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_takes_clips_as_they_come() -> None:
    def features(clip: Tensor) -> Tensor:
        return clip.mean((2, 3))

    real, made = frames(0, 12), frames(1, 12) * 0.5
    streamed = FrechetDistance(features, "colour")
    for part in range(0, 12, 5):
        streamed.update(real[part : part + 5], made[part : part + 5])
    moments = []
    for x in (features(real).double(), features(made).double()):
        moments += [x.mean(0), x.T.cov()]
    assert streamed.result()["colour"] == pytest.approx(frechet(*moments), rel=1e-9)
    with pytest.raises(DataError, match="0 frames"):
        FrechetDistance(features).result()


def test_pyramid_adds_up_to_the_picture() -> None:
    picture = frames(0, 1)
    octaves = laplacian_pyramid(picture)
    assert [octave.shape[-1] for octave in octaves] == [64, 32, 16]
    whole = octaves[-1]
    for detail in reversed(octaves[:-1]):
        whole = nn.functional.interpolate(whole, detail.shape[-2:], mode="bilinear") + detail
    assert torch.allclose(whole, picture, atol=1e-6)


def test_sliced_wasserstein_sees_what_has_changed() -> None:
    real = frames(0)
    assert measured(SlicedWasserstein(), real, real)["swd"] == 0
    generator = torch.Generator().manual_seed(9)
    grainy = real + 0.05 * torch.randn(real.shape, generator=generator)
    grain = measured(SlicedWasserstein(), real, grainy)
    assert grain["swd_octave_0"] > 5 * grain["swd_octave_2"]
    tinted = measured(SlicedWasserstein(), real, real + torch.tensor([0.3, 0, -0.3])[:, None, None])
    assert tinted["swd_octave_2"] > 5 * tinted["swd_octave_0"]
    strong = measured(SlicedWasserstein(), real, real + 3 * (grainy - real))
    assert strong["swd"] > grain["swd"]
    assert measured(SlicedWasserstein(), real, grainy) == grain


def test_sliced_wasserstein_of_other_shapes_and_of_nothing() -> None:
    with pytest.raises(DataError, match="clips of one shape"):
        SlicedWasserstein().update(frames(0), frames(0, size=32))
    with pytest.raises(DataError, match="no frames"):
        SlicedWasserstein().result()


class Detector(nn.Module):
    """Of the interface of the Inception file: uint8 pixels in, features out."""

    def forward(self, pixels: Tensor, return_features: bool = False) -> Tensor:
        assert pixels.dtype == torch.uint8
        return pixels.float().mean((2, 3))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # the file is TorchScript
def test_inception_is_read_from_its_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; FID needs inception-2015-12-05\.pt"):
        inception_features(tmp_path / "none.pt", torch.device("cpu"))
    torch.jit.script(Detector()).save(tmp_path / "detector.pt")
    features = inception_features(tmp_path / "detector.pt", torch.device("cpu"))
    found = features(torch.tensor([-1.0, 0.0, 2.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4))
    assert found.tolist() == [[0, 128, 255]]
