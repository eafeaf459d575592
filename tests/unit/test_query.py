"""Queries: which clips of a snapshot a stage trains on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from catalogues import INFO, clip
from hypothesis import given, settings
from hypothesis import strategies as st

from scalewright.data.catalogue import Catalogue
from scalewright.data.clips import Clips
from scalewright.data.query import ClipQuery
from scalewright.data.sample import Entry
from scalewright.errors import ConfigError


def by_hand(query: ClipQuery) -> Callable[[Entry], bool]:
    """What a query says, an entry at a time."""

    def means(entry: Entry) -> bool:
        area, frames = entry.height * entry.width, entry.latent_frames
        return (
            (query.kind == "all" or entry.is_video == (query.kind == "video"))
            and query.min_latent_area <= area
            and (query.max_latent_area is None or area <= query.max_latent_area)
            and query.min_latent_frames <= frames
            and (query.max_latent_frames is None or frames <= query.max_latent_frames)
        )

    return means


@st.composite
def queries(draw: st.DrawFn) -> ClipQuery:
    kind = draw(st.sampled_from(["all", "picture", "video"]))
    area = draw(st.integers(1, 260))
    frames = 1 if kind == "picture" else draw(st.integers(1, 5))
    least = 2 if kind == "video" else 1
    return ClipQuery(
        kind=kind,
        min_latent_area=area,
        max_latent_area=draw(st.none() | st.integers(area, 260)),
        min_latent_frames=frames,
        max_latent_frames=draw(st.none() | st.integers(max(frames, least), 6)),
    )


@pytest.fixture(scope="module")
def many_sizes(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    catalogue = Catalogue.create(tmp_path_factory.mktemp("many"), INFO)
    sides = (1, 4, 6, 9, 16)
    sizes = [(t, h, w) for t in range(1, 6) for h in sides for w in sides]
    catalogue.add(
        [
            replace(clip(number), latent_frames=t, height=h, width=w)
            for number, (t, h, w) in enumerate(sizes)
        ]
    )
    return catalogue.snapshot().clips


@settings(max_examples=60, deadline=None)
@given(query=queries())
def test_a_query_takes_the_clips_that_it_says(many_sizes: Clips, query: ClipQuery) -> None:
    assert many_sizes.take(query.mask(many_sizes)).entries() == list(
        filter(by_hand(query), many_sizes.entries())
    )


def test_without_limits_every_clip_is_meant(many_sizes: Clips) -> None:
    assert ClipQuery().mask(many_sizes).sum() == len(many_sizes) == 125
    limits = ClipQuery(
        min_latent_area=24, max_latent_area=24, min_latent_frames=3, max_latent_frames=3
    )
    chosen = many_sizes.take(limits.mask(many_sizes)).entries()
    assert {(e.latent_frames, e.height, e.width) for e in chosen} == {(3, 4, 6), (3, 6, 4)}


def test_a_query_asks_for_data_sets_and_for_known_quality(tmp_path: Path) -> None:
    catalogue = Catalogue.create(tmp_path, INFO)
    scores: list[dict[str, float]] = [{}, {"motion": 0.2}, {"motion": 0.5}, {"motion": 0.9}]
    catalogue.add(
        [
            replace(clip(number), scores=scores[number % 4], collection="ab"[number % 2])
            for number in range(8)
        ]
    )
    clips = catalogue.snapshot().clips

    def meant(**query: Any) -> list[int]:
        return clips.id[ClipQuery(**query).mask(clips)].tolist()

    assert meant(collections=("b",)) == [2, 4, 6, 8]
    assert meant(min_scores={"motion": 0.5}) == [3, 4, 7, 8]
    assert meant(collections=("a",), min_scores={"motion": 0.0}) == [3, 7]
    with pytest.raises(ConfigError, match=r"clips\.collections names x, .* there are: a, b"):
        meant(collections=("a", "x"))
    with pytest.raises(ConfigError, match=r"clips\.min_scores names look, .* there are: motion"):
        meant(min_scores={"look": 0.5})


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"kind": "gif"}, "kind = 'gif'; allowed: all, picture, video"),
        ({"min_latent_area": 0}, "min_latent_area = 0; it must be at least 1"),
        ({"min_latent_frames": -1}, "min_latent_frames = -1"),
        (
            {"min_latent_area": 9, "max_latent_area": 8},
            "max_latent_area = 8 is below min_latent_area = 9",
        ),
        ({"max_latent_frames": 0}, "max_latent_frames = 0 is below min_latent_frames = 1"),
        ({"kind": "picture", "min_latent_frames": 2}, "a picture has one latent frame"),
        ({"kind": "video", "max_latent_frames": 1}, "a video has at least 2 latent frames"),
    ],
)
def test_a_query_that_nothing_can_meet_is_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ClipQuery(**wrong)
