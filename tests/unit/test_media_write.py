"""Writing pictures and videos that browsers play."""

import math
from pathlib import Path

import av
import pytest
import torch

from scalewright.data.media import (
    Frames,
    Sampling,
    read_media,
    to_frames,
    to_tensor,
    write_picture,
    write_video,
)
from scalewright.errors import ConfigError, DataError

EVERY_CLIP = Sampling(fps=240, clips_per_file=None)


def the_clip(path: Path) -> Frames:
    (clip,) = read_media(path, EVERY_CLIP)
    return clip


def test_a_written_video_plays_and_looks_the_same(tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 64)
    frames = torch.stack([torch.stack([x.roll(i).expand(32, 64)] * 3) for i in range(9)]) * 0.8
    write_video(tmp_path / "new" / "a.mp4", frames, fps=8)
    with av.open(str(tmp_path / "new" / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.frames, stream.average_rate) == (9, 8)
    clip = to_tensor(the_clip(tmp_path / "new" / "a.mp4"))
    assert (clip - frames).abs().mean() < 0.05
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.mp4"]


def test_a_written_picture_is_exact(tmp_path: Path) -> None:
    levels = torch.randint(0, 256, (3, 32, 48))
    write_picture(tmp_path / "a.png", levels / 127.5 - 1)
    assert torch.equal(torch.from_numpy(the_clip(tmp_path / "a.png")[0]).permute(2, 0, 1), levels)


def test_values_outside_are_clamped_and_infinite_ones_refused(tmp_path: Path) -> None:
    frames = torch.tensor([-3.0, 0.999, 3.0]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    assert to_frames(frames)[0, 0, 0].tolist() == [0, 255, 255]
    broken = frames.clone()
    broken[0, 0, 3, 3] = math.nan
    with pytest.raises(DataError, match="NaN"):
        write_picture(tmp_path / "a.png", broken[0])
    with pytest.raises(DataError, match="even sides"):
        write_video(tmp_path / "a.mp4", torch.zeros(5, 3, 15, 16), fps=8)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", torch.zeros(5, 3, 16, 16), fps=8)
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(av.FFmpegError):
        write_video(tmp_path / "a.mp4", torch.zeros(5, 3, 16, 16), fps=8, crf="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="0 frames a second"):
        write_video(tmp_path / "a.mp4", torch.zeros(5, 3, 16, 16), fps=0)
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
