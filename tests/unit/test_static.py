"""Static clips: which files give one, what is in it, and that nothing else of the data moves."""

import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from folders import read_clips
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scalewright.data.catalogue import Catalogue
from scalewright.data.codec import HaarCodec
from scalewright.data.media import Sampling, read_media, to_tensor
from scalewright.data.sample import Sample
from scalewright.errors import ConfigError, DataError
from scalewright.prepare.encode import PrepareConfig, prepare
from scalewright.prepare.scores import ScoreColumn
from scalewright.prepare.shapes import render_shapes
from scalewright.prepare.sources import Source, read_sources
from scalewright.prepare.static import StaticConfig

PREFIX = "static video, no movement, "


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_shapes(tmp_path_factory.mktemp("shapes"), videos=12, pictures=12, seed=0)


def static(share: float, **settings: object) -> PrepareConfig:
    return PrepareConfig(static=StaticConfig(share=share, **settings))


def samples(out: Path) -> dict[str, Sample]:
    """The training clips by caption; those of the fixture all differ."""
    catalogue = Catalogue.open(out)
    entries = catalogue.entries("train")
    captions = catalogue.captions([entry.id for entry in entries])
    samples = read_clips(out, entries)
    return {captions[sample.id]: sample for sample in samples}


def static_sources(out: Path) -> set[str]:
    return {source for source in Catalogue.open(out).sources() if source.endswith("#static")}


def test_a_static_clip_is_the_first_frame_repeated(captions: Path, tmp_path: Path) -> None:
    summary = prepare(captions.parent, captions, tmp_path, config=static(1.0, frames=9))
    by_caption = samples(tmp_path)
    catalogue = Catalogue.open(tmp_path)
    validation = catalogue.entries("validation")
    assert summary.static_clips == len(static_sources(tmp_path)) == 24 - len(validation)
    assert len(by_caption) == 2 * summary.static_clips, "each training file, and its static clip"
    codec = HaarCodec()
    for source in read_sources(captions):
        sample = by_caption.get(PREFIX + source.caption)
        assert (sample is None) == (source.caption not in by_caption)
        if sample is None:
            continue
        frames = to_tensor(next(read_media(captions.parent / source.name, Sampling())))
        wanted = codec.encode(frames[:1].repeat(9, 1, 1, 1))
        torch.testing.assert_close(sample.latent, wanted, atol=2e-3, rtol=1e-3)
        assert sample.latent.shape[0] == 3
        torch.testing.assert_close(codec.decode(sample.latent)[8], codec.decode(sample.latent)[0])


def test_validation_holds_no_static_clip_nor_the_file_of_one(
    captions: Path, tmp_path: Path
) -> None:
    config = PrepareConfig(validation_share=0.4, static=StaticConfig(share=1.0))
    prepare(captions.parent, captions, tmp_path, config=config)
    catalogue = Catalogue.open(tmp_path)
    ids = [entry.id for entry in catalogue.entries("validation")]
    aside = set(catalogue.captions(ids).values())
    assert aside
    assert not any(caption.startswith(PREFIX) for caption in aside)
    assert not {PREFIX + caption for caption in aside} & samples(tmp_path).keys()


def test_static_clips_are_as_long_as_videos_unless_told(captions: Path, tmp_path: Path) -> None:
    config = PrepareConfig(sampling=Sampling(max_frames=13), static=StaticConfig(share=0.5))
    prepare(captions.parent, captions, tmp_path, config=config)
    lengths = {
        sample.latent.shape[0]
        for caption, sample in samples(tmp_path).items()
        if caption.startswith(PREFIX)
    }
    assert lengths == {4}


def test_the_other_clips_are_those_without_static_ones(captions: Path, tmp_path: Path) -> None:
    prepare(captions.parent, captions, tmp_path / "without")
    prepare(captions.parent, captions, tmp_path / "with", config=static(0.5))
    without, with_static = samples(tmp_path / "without"), samples(tmp_path / "with")
    assert 0 < len(with_static) - len(without) < 20
    for caption, sample in without.items():
        assert torch.equal(with_static[caption].latent, sample.latent)
    aside = [
        Counter(entry.crc32c for entry in Catalogue.open(tmp_path / name).entries("validation"))
        for name in ("without", "with")
    ]
    assert aside[0] == aside[1]


def test_an_interrupted_run_gives_the_same_static_clips(captions: Path, tmp_path: Path) -> None:
    class Stops(HaarCodec):
        left, lock = 15, threading.Lock()

        def encode(self, frames: Tensor) -> Tensor:
            with self.lock:
                self.left -= 1
            if self.left == 0:
                raise RuntimeError("out of power")
            return super().encode(frames)

    whole, parts, config = tmp_path / "whole", tmp_path / "parts", static(0.5)
    prepare(captions.parent, captions, whole, config=config)
    with pytest.raises(RuntimeError, match="out of power"):
        prepare(captions.parent, captions, parts, config=config, codec=Stops(), shard_bytes=20_000)
    assert 0 < len(Catalogue.open(parts).sources()) < 24
    prepare(captions.parent, captions, parts, config=config, workers=3)
    assert static_sources(parts) == static_sources(whole)
    assert Catalogue.open(parts).snapshot().digest == Catalogue.open(whole).snapshot().digest
    again = prepare(captions.parent, captions, parts, config=config)
    assert (again.new_clips, again.static_clips) == (0, len(static_sources(whole)))


def test_static_clips_have_no_scores(captions: Path, tmp_path: Path) -> None:
    scored = tmp_path / "captions.csv"
    head, *rows = captions.read_text().splitlines()
    scored.write_text("\n".join([f"{head},motion", *(f"{row},0.5" for row in rows)]))
    config = PrepareConfig(scores=(ScoreColumn("motion"),), static=StaticConfig(share=1.0))
    prepare(captions.parent, scored, tmp_path / "data", config=config)
    for caption, sample in samples(tmp_path / "data").items():
        assert sample.scores == ({} if caption.startswith(PREFIX) else {"motion": 0.5})


# Which files


@given(name=st.text("abc/", min_size=1, max_size=8), low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_larger_share_takes_the_files_of_a_smaller_one(
    name: str, low: float, high: float
) -> None:
    low, high = sorted((low, high))
    source = Source(f"x{name}.png", "a")
    chosen = StaticConfig(share=low).wants(source)
    assert chosen <= StaticConfig(share=high).wants(source)
    assert chosen == StaticConfig(share=low).wants(Source(source.name, "another caption"))


def test_the_share_is_met_in_every_part_of_the_splits_hash() -> None:
    sources = [Source(f"{index}.png", "a") for index in range(20_000)]
    config = StaticConfig(share=0.05)
    for low in (0.0, 0.25, 0.5, 0.75):  # were they one hash, validation would take all static ones
        part = [source for source in sources if low <= source.share < low + 0.25]
        assert 0.04 < sum(map(config.wants, part)) / len(part) < 0.06
    assert not any(map(StaticConfig().wants, sources))
    assert all(map(StaticConfig(share=1.0).wants, sources))


# Settings


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"static share = 1\.5; it must be from 0 to 1"):
        static(1.5)
    with pytest.raises(ConfigError, match="static prefix is empty"):
        static(0.1, prefix=" ")
    with pytest.raises(ConfigError, match=r"static frames = 8.*use 5 or 9"):
        static(0.1, frames=8)
    with pytest.raises(ConfigError, match=r"static frames = 1;.*use 5 or 9"):
        PrepareConfig(sampling=Sampling(max_frames=1), static=StaticConfig(share=0.1))


def test_a_folder_keeps_its_settings_and_an_older_one_is_gone_on_with(
    captions: Path, tmp_path: Path
) -> None:
    prepare(captions.parent, captions, tmp_path)
    settings = tmp_path / "prepare.toml"
    with pytest.raises(DataError, match=r"prepare\.toml.*'share': 0\.0.*'share': 0\.5"):
        prepare(captions.parent, captions, tmp_path, config=static(0.5))
    text = settings.read_text()
    assert "[static]" in text
    old = text.partition("[static]")[0].replace("scores = []\n", "")
    settings.write_text(old)
    assert prepare(captions.parent, captions, tmp_path).new_clips == 0
