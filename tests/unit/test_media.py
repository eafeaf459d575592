"""Reading hostile and odd media into clips."""

import contextlib
import io
import math
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scalewright.data.media import (
    Frames,
    Sampling,
    read_media,
    target_size,
    write_video,
)
from scalewright.errors import ConfigError, DataError

EVERY_CLIP = Sampling(fps=240, clips_per_file=None)


def grey_video(path: Path, levels: list[int], fps: float, faststart: bool = False) -> Path:
    """A 64x64 px video whose frames are even greys, so that a frame tells which one it is."""
    times = [Fraction(index) / Fraction(fps) for index in range(len(levels))]
    return timed_video(path, levels, times, faststart)


def timed_video(
    path: Path, levels: list[int], times: list[Fraction], faststart: bool = False
) -> Path:
    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=1000, options={"crf": "5", "g": "10"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for level, time in zip(levels, times, strict=True):
            pixels = np.full((64, 64, 3), level, np.uint8)
            pixels[::7, ::5] = 255 - level  # some detail, so that there is data to damage
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels_of(clip: Frames) -> list[int]:
    return [round(float(np.median(frame)) / 5) for frame in clip]


def the_clip(path: Path, sampling: Sampling = EVERY_CLIP) -> Frames:
    (clip,) = read_media(path, sampling)
    return clip


# Pictures


def test_transparency_shows_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 16, 32))
    image.save(tmp_path / "a.png")
    image.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE).save(
        tmp_path / "b.png", transparency=1
    )
    clip = the_clip(tmp_path / "a.png")
    assert clip.shape == (1, 32, 32, 3)
    assert clip[0, 0, 0].tolist() == [0, 0, 255]
    assert clip[0, 0, 31].tolist() == [255, 255, 255]
    assert (the_clip(tmp_path / "b.png")[0] == 255).all(axis=-1).any(), "a palette's transparency"


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (96, 48), "black")
    image.paste((255, 255, 255), (0, 0, 48, 48))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a quarter turn clockwise: white on top
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    clip = the_clip(tmp_path / "a.jpg")
    assert clip.shape == (1, 96, 48, 3)
    assert clip[0, 8].mean() > 250
    assert clip[0, -8].mean() < 5


@pytest.mark.parametrize("value", [0, 128 * 257, 65535])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, value: int) -> None:
    Image.fromarray(np.full((32, 32), value, np.uint16)).save(tmp_path / "a.png")
    assert the_clip(tmp_path / "a.png")[0, 5, 5].tolist() == pytest.approx([value / 257] * 3, abs=1)


def test_resizing_averages_fine_detail(tmp_path: Path) -> None:
    stripes = np.zeros((300, 500, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    clip = the_clip(tmp_path / "a.png", Sampling(area_px=4096))
    assert clip.shape == (1, 48, 80, 3)
    assert np.abs(clip.astype(int) - 127).max() < 20


def test_what_does_not_fit_is_cut_off_evenly(tmp_path: Path) -> None:
    picture = np.zeros((300, 450, 3), np.uint8)  # 3:2 into 80x48 px, 5:3: 15 lines too high
    picture[:12] = picture[-12:] = 255
    picture[:, :12] = picture[:, -12:] = 128
    Image.fromarray(picture).save(tmp_path / "a.png")
    (frame,) = the_clip(tmp_path / "a.png", Sampling(area_px=4096))
    assert frame.shape == (48, 80, 3)
    assert frame[[0, -1], 5:-5].max() < 20, "the white lines are gone at both sides"
    assert np.abs(frame[:, [0, -1]].astype(int) - 128).max() < 20, "nothing of the width is"


@given(width=st.integers(16, 4000), height=st.integers(16, 4000), area=st.integers(256, 1_000_000))
def test_sizes_are_near_what_was_asked(width: int, height: int, area: int) -> None:
    wide, high = target_size(width, height, area)
    assert wide % 16 == high % 16 == 0
    assert 16 <= wide <= width
    assert 16 <= high <= height
    aspect = max(width, height) / min(width, height)
    if aspect <= 4 and area >= 4096 and width * height >= 4 * area:
        assert 0.6 < wide * high / area < 1.6
        assert abs(math.log(wide / high) - math.log(width / height)) < 0.35


def test_small_sources_are_not_enlarged(tmp_path: Path) -> None:
    Image.new("RGB", (40, 33)).save(tmp_path / "a.png")
    assert the_clip(tmp_path / "a.png", Sampling(area_px=65536)).shape == (1, 32, 32, 3)


# Videos


def test_frames_are_sampled_at_the_asked_rate(tmp_path: Path) -> None:
    video = grey_video(tmp_path / "a.mp4", [5 * i for i in range(40)], fps=24)
    clip = the_clip(video, Sampling(fps=8, max_frames=17))
    assert levels_of(clip) == [3 * i for i in range(13)]  # 14 sampled, 13 = 1 + 4·3 kept


def test_the_rate_never_rises_above_the_sources(tmp_path: Path) -> None:
    video = grey_video(tmp_path / "a.mkv", [5 * i for i in range(13)], fps=6)
    assert levels_of(the_clip(video, Sampling(fps=8))) == list(range(13))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_rounded_time_stamps_lose_no_frame(tmp_path: Path, suffix: str) -> None:
    video = grey_video(tmp_path / f"a{suffix}", [5 * i for i in range(45)], fps=30)  # 33, 67, 100
    clips = list(read_media(video, Sampling(fps=30, max_frames=45)))
    assert levels_of(clips[0]) == list(range(45))


def test_a_variable_rate_is_kept_in_real_time(tmp_path: Path) -> None:
    # 10 frames in the first tenth of a second each 10 ms, then one each 125 ms.
    times = [Fraction(i, 100) for i in range(10)] + [Fraction(i, 8) for i in range(1, 9)]
    video = timed_video(tmp_path / "a.mkv", [5 * i for i in range(18)], times)
    clip = the_clip(video, Sampling(fps=8))
    assert levels_of(clip)[0] == 0
    assert levels_of(clip)[2:] == list(range(11, 18))


def test_clips_are_consecutive_and_a_short_rest_is_dropped(tmp_path: Path) -> None:
    video = grey_video(tmp_path / "a.mp4", [5 * i for i in range(29)], fps=8)
    clips = list(read_media(video, Sampling(max_frames=9, clips_per_file=None)))
    assert [levels_of(clip) for clip in clips] == [
        list(range(9)),
        list(range(9, 18)),
        list(range(18, 27)),  # 2 frames are left over
    ]
    clips = list(read_media(video, Sampling(max_frames=17, clips_per_file=None)))
    assert [len(clip) for clip in clips] == [17, 9]  # of the 12 left over
    assert len(list(read_media(video, Sampling(max_frames=5, clips_per_file=2)))) == 2


@pytest.mark.parametrize("frames", [1, 3])
def test_a_video_of_few_frames_is_a_picture(tmp_path: Path, frames: int) -> None:
    video = grey_video(tmp_path / "a.mp4", [50] * frames, fps=8)
    assert the_clip(video).shape == (1, 64, 64, 3)


def test_gif_transparency_and_delays(tmp_path: Path) -> None:
    frames = []
    for index in range(6):
        frame = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
        frame.paste((255, 0, 0, 255), (0, 0, 4 * (index + 1), 32))
        frames.append(frame)
    frames[0].save(
        tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2
    )
    clip = the_clip(tmp_path / "a.gif", Sampling(fps=5))  # every second: 0, 2, 4
    assert len(clip) == 1
    clip = the_clip(tmp_path / "a.gif", Sampling(fps=10))
    assert len(clip) == 5
    assert clip[4, 16, 16].tolist() == [255, 0, 0]
    assert clip[4, 16, 30].tolist() == [255, 255, 255]


def test_rotation_in_the_container_is_applied(tmp_path: Path) -> None:
    frames = torch.full((5, 3, 32, 64), -1.0)
    frames[:, :, :, :32] = 1.0  # white on the left
    write_video(tmp_path / "a.mp4", frames, fps=8)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # ISO 14496-12, 8.3.2: a quarter turn clockwise
    turn = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30)
    content[matrix : matrix + 36] = turn
    (tmp_path / "b.mp4").write_bytes(content)
    clip = the_clip(tmp_path / "b.mp4")
    assert clip.shape == (5, 64, 32, 3)
    assert clip[0, 8].mean() > 240, "white on top"
    assert clip[0, -8].mean() < 15


def test_long_videos_are_streamed(tmp_path: Path) -> None:
    video = grey_video(tmp_path / "a.mp4", [5 * (i % 40) for i in range(100)], 8, faststart=True)
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2])
    clips = read_media(video, Sampling(max_frames=5, clips_per_file=None))
    assert levels_of(next(clips)) == list(range(5)), "before the end of the file was seen"
    with pytest.raises(DataError, match=r"a\.mp4"):
        list(clips)


# Broken and hostile files


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.mp4", "b.mp4", "a.mkv"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.8])
def test_cut_files_are_named(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    if path.suffix in (".png", ".jpg"):
        Image.fromarray(noise).save(path)
    elif path.suffix == ".gif":
        pictures = [Image.fromarray(np.roll(noise, i, 0)) for i in range(20)]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    else:
        grey_video(path, [5 * (i % 40) for i in range(60)], 8, faststart=name == "b.mp4")
    assert list(read_media(path, EVERY_CLIP)), "the whole file is fine"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=name):
        list(read_media(path, EVERY_CLIP))


def test_damaged_frames_are_not_trained_on(tmp_path: Path) -> None:
    video = grey_video(tmp_path / "a.mp4", [5 * (i % 40) for i in range(60)], fps=8)
    content = bytearray(video.read_bytes())
    middle = content.index(b"mdat") + len(content) // 3
    content[middle : middle + 400] = bytes(400)
    video.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.mp4: (frame \d+ is damaged|cannot be read)"):
        list(read_media(video, EVERY_CLIP))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(["a.png", "a.jpg", "a.gif", "a.mp4", "a.mkv"]))
def test_any_damage_gives_frames_or_a_reason(
    data: st.DataObject,
    name: str,
    small_files: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    content = bytearray(small_files[name])
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    with contextlib.suppress(DataError):  # and nothing else
        assert all(len(clip) % 4 == 1 for clip in read_media(path, EVERY_CLIP))


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("small")
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    pictures = [Image.fromarray(np.roll(noise, i, 0)) for i in range(6)]
    pictures[0].save(folder / "a.png")
    pictures[0].save(folder / "a.jpg")
    pictures[0].save(folder / "a.gif", save_all=True, append_images=pictures[1:], duration=100)
    for name in ("a.mp4", "a.mkv"):
        grey_video(folder / name, [50] * 6, fps=8)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_bombs_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.new("L", (16, 16)).save(image, "png")
    header = image.getvalue()
    for side in (9_000, 60_000):
        (tmp_path / "a.png").write_bytes(header[:16] + struct.pack(">II", side, side) + header[24:])
        with pytest.raises(DataError, match=r"a\.png: "):
            list(read_media(tmp_path / "a.png", Sampling()))
    Image.new("L", (16, 16)).save(tmp_path / "b.gif")
    content = (tmp_path / "b.gif").read_bytes()
    (tmp_path / "b.gif").write_bytes(content[:6] + struct.pack("<HH", 9_000, 9_000) + content[10:])
    with pytest.raises(DataError, match=r"b\.gif: 9000x9000 px is more than"):
        list(read_media(tmp_path / "b.gif", Sampling()))


def test_too_many_frames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = grey_video(tmp_path / "a.mp4", [50] * 30, fps=8)
    monkeypatch.setattr("scalewright.data.media.MAX_SOURCE_FRAMES", 20)
    with pytest.raises(DataError, match=r"a\.mp4: more than 20 frames"):
        list(read_media(video, EVERY_CLIP))
    assert list(read_media(video, Sampling())), "17 frames are read before the limit"


@pytest.mark.parametrize(
    ("size", "told"), [((15, 64), "at least 16 px"), ((200, 40), r"longer than 4:1")]
)
def test_odd_shapes_are_refused(tmp_path: Path, size: tuple[int, int], told: str) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"a\.png: .*{told}"):
        list(read_media(tmp_path / "a.png", Sampling()))


def test_what_is_no_media_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        list(read_media(tmp_path / "gone.png", Sampling()))
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=r"a\.txt: \.txt is not a media file; known: \.avi"):
        list(read_media(tmp_path / "a.txt", Sampling()))
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(DataError, match=r"sound\.mkv: holds no video"):
        list(read_media(tmp_path / "sound.mkv", Sampling()))
    Image.new("RGB", (32, 32)).save(
        tmp_path / "moves.png", save_all=True, append_images=[Image.new("RGB", (32, 32), "red")]
    )
    with pytest.raises(DataError, match="an animated picture"):
        list(read_media(tmp_path / "moves.png", Sampling()))


def test_a_change_of_size_is_refused(tmp_path: Path) -> None:
    video = tmp_path / "a.mkv"
    parts = []
    for side in (64, 96):
        part = io.BytesIO()
        with av.open(part, "w", format="h264") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            for _ in range(5):
                pixels = np.zeros((side, side, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        parts.append(part.getvalue())
    video.write_bytes(b"".join(parts))  # FFmpeg knows a raw stream by its content
    with pytest.raises(DataError, match=r"frame 6 is 96x96 px in a video of|frame 1 is 64x64 px"):
        list(read_media(video, EVERY_CLIP))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_frames": 16}, "use 13 or 17"),
        ({"max_frames": 0}, "use 1 or 5"),
        ({"fps": 0.0}, "fps = 0.0"),
        ({"fps": math.nan}, "fps = nan"),
        ({"area_px": 100}, "at least 256"),
        ({"clips_per_file": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Sampling(**settings)  # type: ignore[arg-type]


# Writing
