"""Sources, splits and the way from files to a data folder, with everything that can go wrong."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from folders import read_clips
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from scalewright.data.catalogue import Catalogue
from scalewright.data.codec import HaarCodec
from scalewright.data.media import Sampling, read_media, to_tensor, write_video
from scalewright.data.reading import ClipReader
from scalewright.data.sample import Entry
from scalewright.data.storage import Folder
from scalewright.data.text import ByteNgramEncoder
from scalewright.errors import ConfigError, DataError
from scalewright.prepare.encode import PrepareConfig, prepare
from scalewright.prepare.sources import Source, SplitRule, read_sources, uncaptioned

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")


def make_media(folder: Path, *, pictures: int = 16, videos: int = 6, frames: int = 9) -> Path:
    """Even pictures in PNG, moving edges in mp4, and the captions of both; return the CSV file."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path,caption"]
    for index in range(pictures):
        colour = COLOURS[index % len(COLOURS)]
        Image.new("RGB", (64, 64), colour).save(folder / f"p{index:02d}.png")
        lines.append(f'p{index:02d}.png,"a {colour} picture, number {index}"')
    for index in range(videos):
        clip = torch.full((frames, 3, 32, 48), -1.0)
        for time in range(frames):
            clip[time, index % 3, :, : 2 + 4 * time] = 1.0
        write_video(folder / f"v{index:02d}.mp4", clip, fps=8)
        lines.append(f"v{index:02d}.mp4,an edge moves right {index}")
    captions = folder / "captions.csv"
    captions.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return captions


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 16 pictures and 6 videos; tests only read it."""
    folder = tmp_path_factory.mktemp("media")
    make_media(folder)
    return folder


def entries(out: Path) -> list[Entry]:
    catalogue = Catalogue.open(out)
    return catalogue.entries("train") + catalogue.entries("validation")


class HookedCodec(HaarCodec):
    """The Haar codec, with something that happens at its n-th clip."""

    def __init__(self, at: int, hook: Callable[[], None]) -> None:
        super().__init__()
        self._left, self._hook, self._lock = at, hook, threading.Lock()

    def encode(self, frames: Tensor) -> Tensor:
        with self._lock:
            self._left -= 1
            due = self._left == 0
        if due:
            self._hook()
        return super().encode(frames)


# Captions


def test_captions_are_read_in_order_of_their_hash(media: Path) -> None:
    sources = read_sources(media / "captions.csv")
    assert len(sources) == 22
    shares = [source.share for source in sources]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < 0.25
    assert 0.75 < shares[-1] < 1
    assert Source("p03.png", "a yellow picture, number 3") in sources


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "no column caption and path in the first line"),
        ("path,text\na.png,b\n", r"no column caption in the first line \(path, text\)"),
        ("path,caption\n", "names no file"),
        ("path,caption\na.png\n", r"captions\.csv:2: caption is empty"),
        ("path,caption\n ,red\n", r"captions\.csv:2: path is empty"),
        ("path,caption\na.png,b\n./a.png,c\n", r"captions\.csv:3: a\.png is there twice"),
        ("path,caption\n../a.png,b\n", "outside the source folder"),
        ("path,caption\n/etc/a.png,b\n", "outside the source folder"),
    ],
)
def test_captions_that_cannot_be_used_are_named(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "captions.csv").write_text(content)
    with pytest.raises(DataError, match=told):
        read_sources(tmp_path / "captions.csv")


def test_captions_must_be_there_and_in_utf8(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        read_sources(tmp_path / "gone.csv")
    (tmp_path / "latin.csv").write_bytes("path,caption\na.png,Ärger\n".encode("latin-1"))
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        read_sources(tmp_path / "latin.csv")
    (tmp_path / "bom.csv").write_text("path,caption\na.png,b\n", encoding="utf-8-sig")
    assert [source.name for source in read_sources(tmp_path / "bom.csv")] == ["a.png"]


def test_files_without_a_caption_are_found(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.MP4", "sub/.hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert uncaptioned(tmp_path, [Source("a.png", "a")]) == ["sub/b.MP4"]


# Splits


@given(names=st.lists(st.text("abcdefgh", min_size=1), min_size=30, max_size=60, unique=True))
def test_a_source_keeps_its_split_whatever_comes_with_it(names: list[str]) -> None:
    def splits(some: list[str]) -> dict[str, str]:
        rule = SplitRule(0.3, len(some), kinds=[False])
        return {name: rule.split(Source(f"{name}.png", "a"), is_video=False) for name in some}

    everything = splits(names)
    part = splits(names[::2])
    assert part == {name: everything[name] for name in part}


def test_the_share_of_validation_is_met() -> None:
    rule = SplitRule(0.1, 5000, kinds=[])
    taken = [rule.split(Source(f"{i}.png", "a"), is_video=False) for i in range(5000)]
    assert 400 < taken.count("validation") < 600


def test_small_data_get_a_picture_and_a_video_to_validate() -> None:
    sources = sorted((Source(f"{i}.png", "a") for i in range(11)), key=lambda s: s.share)

    def count(rule: SplitRule, is_video: bool) -> int:
        return [rule.split(s, is_video) for s in sources].count("validation")

    rule = SplitRule(1e-9, len(sources), kinds=[])
    assert count(rule, is_video=True) == 1
    assert count(rule, is_video=False) == 1, "the same sources; only the first is put aside"
    assert count(SplitRule(1e-9, 10, kinds=[]), is_video=False) == 0, "too few sources"
    assert count(SplitRule(0.0, 11, kinds=[]), is_video=False) == 0, "none was asked for"
    assert count(SplitRule(1e-9, 11, kinds=[False]), is_video=False) == 0, "one is there already"


def test_an_excerpt_in_another_format_is_in_the_same_split() -> None:
    assert Source("a/b.gif", "x").share == Source("a/b.mp4", "y").share
    rule = SplitRule(1e-9, 20, kinds=[])
    assert rule.split(Source("a/b.gif", "x"), is_video=True) == "validation"
    assert rule.split(Source("a/b.mp4", "x"), is_video=True) == "validation"
    assert rule.split(Source("a/c.mp4", "x"), is_video=True) == "train"


# From files to a data folder


def test_everything_arrives_and_can_be_read_back(media: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    summary = prepare(media, media / "captions.csv", out)
    assert (summary.clips, summary.pictures, summary.videos) == (22, 16, 6)
    assert summary.new_clips == 22
    assert summary.rejected == summary.uncaptioned == []
    assert summary.latent_positions == 16 * 64 + 6 * 3 * 4 * 6
    assert summary.shard_bytes > 0

    catalogue = Catalogue.open(out)
    assert catalogue.info.codec == "haar(octaves=2)"
    assert catalogue.info.text_encoder == "byte-ngrams(dim=64)"
    assert {entry.is_video for entry in catalogue.entries("validation")} == {True, False}
    assert {entry.is_video for entry in catalogue.entries("train")} == {True, False}
    codec, text = HaarCodec(), ByteNgramEncoder()
    captions = catalogue.captions([entry.id for entry in entries(out)])
    by_caption = {source.caption: source for source in read_sources(media / "captions.csv")}
    for entry, sample in zip(entries(out), read_clips(out, entries(out)), strict=True):
        path = media / by_caption[captions[entry.id]].name
        latent = codec.encode(to_tensor(next(read_media(path, Sampling()))))
        torch.testing.assert_close(sample.latent, latent, atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(
            sample.text, text.encode([captions[entry.id]])[0], atol=2e-3, rtol=1e-3
        )
        assert entry.text_tokens == len(sample.text)
    assert torch.allclose(ClipReader(Folder(out)).null_text(), text.encode([""])[0], atol=2e-3)


def test_running_again_adds_only_what_is_new(media: Path, tmp_path: Path) -> None:
    captions, out = tmp_path / "some.csv", tmp_path / "data"
    lines = (media / "captions.csv").read_text().splitlines()
    captions.write_text("\n".join(lines[:15]))
    first = prepare(media, captions, out)
    before = entries(out)
    assert (first.new_clips, len(first.uncaptioned)) == (14, 8)
    captions.write_text("\n".join(lines))
    second = prepare(media, captions, out)
    assert (second.clips, second.new_clips, second.uncaptioned) == (22, 8, [])
    assert set(before) <= set(entries(out)), "what was there did not move"
    third = prepare(media, captions, out)
    assert (third.clips, third.new_clips) == (22, 0)


def test_clips_of_a_file_share_split_and_caption(tmp_path: Path) -> None:
    captions = make_media(tmp_path / "media", pictures=0, videos=12, frames=30)
    sampling = Sampling(max_frames=9, clips_per_file=None)
    config = PrepareConfig(sampling=sampling, validation_share=0.3)
    # Shards of 20 kB: the clips of a file fall into several.
    out = tmp_path / "data"
    prepare(tmp_path / "media", captions, out, config=config, shard_bytes=20_000)
    assert len(list((out / "shards").glob("*.tar"))) > 3
    catalogue = Catalogue.open(out)
    assert len(entries(out)) == 36
    held = {
        split: set(catalogue.captions([e.id for e in catalogue.entries(split)]).values())
        for split in ("train", "validation")
    }
    assert held["train"]
    assert held["validation"]
    assert not held["train"] & held["validation"]
    sources = catalogue.sources()
    assert {"v00.mp4", "v00.mp4#1", "v00.mp4#2"} <= sources
    for entry in entries(out):
        read_clips(out, [entry])


def test_broken_and_missing_files_are_left_out_with_their_reason(
    media: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, out = tmp_path / "media", tmp_path / "data"
    captions = make_media(folder)
    (folder / "p00.png").write_bytes((folder / "p00.png").read_bytes()[:60])
    (folder / "v01.mp4").unlink()
    summary = prepare(folder, captions, out, max_broken_share=0.1)
    assert summary.clips == 20
    reasons = dict(summary.rejected)
    assert set(reasons) == {"p00.png", "v01.mp4"}
    assert reasons["v01.mp4"] == "no such file"
    assert reasons["p00.png"].startswith("cannot be read: ")
    assert "p00.png" in caplog.text
    assert prepare(folder, captions, out, max_broken_share=0.1).new_clips == 0


def test_too_many_broken_files_stop_early_and_say_what_to_do(tmp_path: Path) -> None:
    folder, out = tmp_path / "media", tmp_path / "data"
    captions = make_media(folder, pictures=40, videos=0)
    for path in folder.glob("p*.png"):
        path.write_bytes(b"not a picture")
    told = r"3 of 40 files \(7\.5%\).*--max-broken-share 0\.05; the first is p\d\d\.png.*raise"
    with pytest.raises(DataError, match=told):
        prepare(folder, captions, out)
    assert len(Catalogue.open(out).rejected()) == 3, "2 are allowed, the third is one too many"
    with pytest.raises(DataError, match=told):
        prepare(folder, captions, out)
    with pytest.raises(DataError, match="no clip could be made"):
        prepare(folder, captions, out, max_broken_share=1.0)


def test_going_on_after_too_many_broken_files_keeps_what_was_done(tmp_path: Path) -> None:
    folder, out = tmp_path / "media", tmp_path / "data"
    captions = make_media(folder, pictures=20, videos=0)
    last = [source.name for source in read_sources(captions)][-2:]
    for name in last:
        (folder / name).unlink()
    with pytest.raises(DataError, match=r"2 of 20 files"):
        prepare(folder, captions, out)
    assert len(entries(out)) == 18
    summary = prepare(folder, captions, out, max_broken_share=0.1)
    assert (summary.clips, summary.new_clips) == (18, 0)


def test_an_interrupt_seals_what_is_done_and_the_rest_follows(media: Path, tmp_path: Path) -> None:
    captions = media / "captions.csv"
    codec = HookedCodec(6, lambda: os.kill(os.getpid(), signal.SIGINT))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        prepare(media, captions, tmp_path / "a", codec=codec, workers=1)
    held = len(entries(tmp_path / "a"))
    assert 0 < held < 22
    assert signal.getsignal(signal.SIGINT) is handler
    summary = prepare(media, captions, tmp_path / "a")
    assert summary.new_clips == 22 - held
    prepare(media, captions, tmp_path / "b", workers=3)
    interrupted = Catalogue.open(tmp_path / "a").snapshot()
    assert interrupted.digest == Catalogue.open(tmp_path / "b").snapshot().digest


def test_a_crash_loses_the_open_shard_and_nothing_else(media: Path, tmp_path: Path) -> None:
    def crash() -> None:
        raise RuntimeError("out of power")

    out = tmp_path / "data"
    with pytest.raises(RuntimeError, match="out of power"):
        prepare(
            media, media / "captions.csv", out, codec=HookedCodec(20, crash), shard_bytes=20_000
        )
    held = entries(out)
    assert 0 < len(held) < 20
    for entry in held:
        read_clips(out, [entry])
    assert prepare(media, media / "captions.csv", out).clips == 22


def test_other_settings_need_another_folder(media: Path, tmp_path: Path) -> None:
    prepare(media, media / "captions.csv", tmp_path)
    with pytest.raises(DataError, match=r"prepare\.toml.*'fps': 8\.0.*'fps': 4\.0"):
        prepare(
            media,
            media / "captions.csv",
            tmp_path,
            config=PrepareConfig(sampling=Sampling(fps=4.0)),
        )
    with pytest.raises(DataError, match="octaves=1"):
        prepare(media, media / "captions.csv", tmp_path, codec=HaarCodec(1))


def test_arguments_that_cannot_be_are_refused(media: Path, tmp_path: Path) -> None:
    captions = media / "captions.csv"
    with pytest.raises(DataError, match="no such folder"):
        prepare(media / "gone", captions, tmp_path)
    with pytest.raises(ConfigError, match="max_broken_share = 5"):
        prepare(media, captions, tmp_path, max_broken_share=5)
    with pytest.raises(ConfigError, match="workers = 0"):
        prepare(media, captions, tmp_path, workers=0)
    with pytest.raises(ConfigError, match=r"validation_share = 1\.0"):
        PrepareConfig(validation_share=1.0)
    assert not list(tmp_path.iterdir())
