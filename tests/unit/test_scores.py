"""Quality scores: from the columns of a CSV file to the samples that are trained on."""

import math
from pathlib import Path

import pytest
from folders import read_clips
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scalewright.data.catalogue import Catalogue
from scalewright.errors import ConfigError, DataError
from scalewright.prepare.encode import PrepareConfig, prepare
from scalewright.prepare.scores import ScoreColumn, parse_score_columns
from scalewright.prepare.sources import read_sources

COLUMNS = parse_score_columns("motion,aesthetics=1:10")
numbers = st.floats(-1e12, 1e12)


def write(folder: Path, *lines: str) -> Path:
    path = folder / "captions.csv"
    path.write_text("\n".join(("path,caption,motion,aesthetics", *lines)) + "\n")
    return path


def test_columns_are_named_with_their_ranges() -> None:
    assert parse_score_columns("") == ()
    assert parse_score_columns("motion, aesthetics = 1:10 ,x=-2.5:1e3") == (
        ScoreColumn("motion", 0, 1),
        ScoreColumn("aesthetics", 1, 10),
        ScoreColumn("x", -2.5, 1000),
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("motion,motion=0:2", "score motion is there twice"),
        ("motion,", "score ''"),
        ("caption", "a column other than path, caption and collection"),
        ("a=10:1", "range 10:1; the first number must be below"),
        ("a=1:1", "range 1:1"),
        ("a=0:nan", "range 0:nan"),
        ("a=0:inf", "range 0:inf"),
        ("a=1-10", r"'a=1-10'; expected NAME or NAME=LOW:HIGH"),
        ("a=1:2:3", "expected NAME or NAME=LOW:HIGH"),
    ],
)
def test_columns_that_cannot_be_are_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_score_columns(text)


@given(limits=st.lists(numbers, min_size=2, max_size=2, unique=True).map(sorted), share=st.data())
def test_shares_stay_in_range_and_in_order(limits: list[float], share: st.DataObject) -> None:
    column = ScoreColumn("motion", *limits)
    inside = st.floats(*limits)
    low, high = sorted((share.draw(inside), share.draw(inside)))
    assert column.share(repr(limits[0]), "here") == 0
    assert column.share(repr(limits[1]), "here") == 1
    assert 0 <= column.share(repr(low), "here") <= column.share(repr(high), "here") <= 1


def test_scores_are_read_as_shares_and_empty_cells_are_unknown(tmp_path: Path) -> None:
    captions = write(tmp_path, "a.png,a,0.25,5.5", "b.png,b, ,10", "c.png,c,,", "d.png,d")
    scores = {source.name: source.scores for source in read_sources(captions, COLUMNS)}
    assert scores == {
        "a.png": {"motion": 0.25, "aesthetics": 0.5},
        "b.png": {"aesthetics": 1.0},
        "c.png": {},
        "d.png": {},
    }
    assert all(not source.scores for source in read_sources(captions)), "none was asked for"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("a.png,a,fast,5", r"captions\.csv:3: motion = 'fast' is not a number"),
        ("a.png,a,,0.9", r"captions\.csv:3: aesthetics = 0\.9 is outside 1 to 10"),
        ("a.png,a,nan,5", r"captions\.csv:3: motion = nan is outside 0 to 1"),
        ("a.png,a,-inf,5", r"captions\.csv:3: motion = -inf is outside"),
    ],
)
def test_what_is_no_score_is_told_with_its_line(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_sources(write(tmp_path, "b.png,b,0,1", line), COLUMNS)


def test_a_missing_column_is_told(tmp_path: Path) -> None:
    captions = write(tmp_path, "a.png,a,0,1")
    with pytest.raises(DataError, match=r"no column clarity in the first line \(path, caption, mo"):
        read_sources(captions, (*COLUMNS, ScoreColumn("clarity")))


def test_scores_arrive_in_samples_and_are_a_setting_of_the_folder(tmp_path: Path) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / name)
    captions, out = write(tmp_path, "a.png,red,0.75,"), tmp_path / "data"
    config = PrepareConfig(scores=COLUMNS)
    prepare(tmp_path, captions, out, config=config)
    write(tmp_path, "a.png,red,0.75,", "b.png,blue,0.5,4")
    prepare(tmp_path, captions, out, config=config)

    catalogue = Catalogue.open(out)
    first, second = read_clips(out, catalogue.entries("train"))
    assert first.scores == {"motion": 0.75}
    assert second.scores["motion"] == 0.5
    assert math.isclose(second.scores["aesthetics"], 1 / 3)
    with pytest.raises(
        DataError, match=r"prepare\.toml.*'aesthetics', 'low': 1\.0.*'scores': \[\]"
    ):
        prepare(tmp_path, captions, out)


def test_a_clip_is_of_the_collection_that_its_line_names(tmp_path: Path) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "blue"), ("c.png", "green")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / name)
    captions = tmp_path / "some.csv"
    captions.write_text(
        "path,caption,collection\na.png,red,films\nb.png,blue, photos \nc.png,green\n"
    )
    prepare(tmp_path, captions, tmp_path / "data", config=PrepareConfig(validation_share=0))
    catalogue = Catalogue.open(tmp_path / "data")
    found = {entry.id: entry.collection for entry in catalogue.entries("train")}
    told = {caption: found[id] for id, caption in catalogue.captions(list(found)).items()}
    assert told == {"red": "films", "blue": "photos", "green": ""}
    with pytest.raises(ConfigError, match="name a column other than path, caption and collection"):
        parse_score_columns("collection")
