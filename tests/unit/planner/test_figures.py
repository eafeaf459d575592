import io
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from unit.planner import reports

from planner.showing import figures
from planner.showing.drawing import around, clean, log_ticks
from planner.showing.figures_hyper import MOST_MAPS, on_maps
from planner.showing.report_files import remove_figures

SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Drawn:
    """A figure as its two files, and as the page has it."""

    png: bytes
    svg: bytes
    inline: str


@pytest.fixture(scope="module")
def rendered() -> dict[str, Drawn]:
    """Of the first group of a written report."""
    folder, paths = reports.written()
    inline = re.findall(r"<svg .*?</svg>", (folder / "report.html").read_text(), re.DOTALL)
    drawn = [path for path in paths if path.suffix == ".png"]
    figures = {}
    for path, element in zip(drawn, inline, strict=True):
        if not path.name.startswith("group01"):
            continue
        svg = path.with_suffix(".svg").read_bytes()
        figures[path.stem.rsplit("-", 1)[1]] = Drawn(path.read_bytes(), svg, element)
    return figures


def titles(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter() if element.tag.endswith("title")]


def test_every_stage_that_was_fitted_has_its_figure(rendered: dict[str, Drawn]) -> None:
    assert set(rendered) == {
        *("surface", "residuals", "isoflop", "laws", "maps", "lr_curves", "hyper_laws"),
        *("transfer", "tradeoff"),
    }


def test_a_sweep_of_one_size_has_only_what_it_can_show() -> None:
    assert set(figures.render_all(*reports.one_size())) == {"maps"}


def test_png_and_svg_are_whole_and_of_one_shape(rendered: dict[str, Drawn]) -> None:
    for name, each in rendered.items():
        width, height = Image.open(io.BytesIO(each.png)).size
        box = [float(value) for value in ET.fromstring(each.svg).attrib["viewBox"].split()]
        assert width / height == pytest.approx(box[2] / box[3], rel=0.01), name


def test_text_of_a_figure_stays_text(rendered: dict[str, Drawn]) -> None:
    root = ET.fromstring(rendered["isoflop"].svg)
    shown = {"".join(element.itertext()) for element in root.iter(f"{SVG}text")}
    assert {"1e18 FLOPs", "1e20 FLOPs", "parameters N", "surface"} <= shown


def test_every_point_tells_what_it_is(rendered: dict[str, Drawn]) -> None:
    fit, _ = reports.full()
    told = titles(ET.fromstring(rendered["surface"].inline))
    assert len(told) == len(fit.points)
    assert all("N " in text and "loss " in text for text in told)
    on_page = titles(ET.fromstring(rendered["maps"].inline))
    assert len(on_page) == sum(len(group.grid.stable) for group in on_maps(fit))


def test_a_hint_belongs_to_its_point(rendered: dict[str, Drawn]) -> None:
    """On the residuals over N, further right is a larger N."""
    root = ET.fromstring(rendered["residuals"].inline)
    marks = [mark for mark in root.iter("use") if mark.find("title") is not None]
    count = len(marks) // 3
    places = []
    for mark in marks[:count]:
        title = mark.find("title")
        assert title is not None
        size, suffix = str(title.text).split("N ")[1].split(",")[0].split()
        places.append((float(mark.attrib["x"]), float(size) * {"M": 1e6, "B": 1e9}[suffix]))
    ordered = [size for _, size in sorted(places)]
    assert ordered == sorted(ordered)
    assert len(set(ordered)) > 3


def test_ids_on_a_page_belong_to_one_figure_and_resolve(rendered: dict[str, Drawn]) -> None:
    seen: set[str] = set()
    for name, each in rendered.items():
        root = ET.fromstring(each.inline)
        ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        assert len(ids) == len(set(ids))
        assert not seen & set(ids)
        seen |= set(ids)
        assert all(found.startswith(f"group01-base-{name}-") for found in ids)
        links = [element.attrib["href"] for element in root.iter() if "href" in element.attrib]
        assert links
        assert all(link[1:] in ids or link.startswith("data:image/png;") for link in links)


def test_an_inlined_figure_refers_to_nothing_outside(rendered: dict[str, Drawn]) -> None:
    for each in rendered.values():
        assert "http" not in each.inline
        assert "<style" not in each.inline
        assert "<metadata" not in each.inline


def test_what_another_report_left_goes_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    ours = ("surface.png", "group01-base-maps.svg")
    theirs = ("photo.png", "surface.png.txt", "my-surface.png", "laws.json")
    for name in (*ours, *theirs):
        (tmp_path / name).write_text("x")
    kept = tmp_path / "laws.svg"
    kept.write_text("new")
    remove_figures(tmp_path, [kept])
    assert {path.name for path in tmp_path.iterdir()} == {*theirs, "laws.svg"}


def test_only_the_largest_groups_have_maps() -> None:
    fit, _ = reports.full()
    swept = on_maps(fit)[0]
    many = tuple(replace(swept, flops=float(place)) for place in range(MOST_MAPS + 3))
    shown = on_maps(replace(fit, groups=many))
    assert [group.flops for group in shown] == [float(p) for p in range(3, MOST_MAPS + 3)]


@given(st.floats(1e-6, 1e24), st.floats(1.001, 1e8), st.integers(3, 9))
def test_ticks_are_few_and_within_the_axis(low: float, ratio: float, most: int) -> None:
    ticks = log_ticks(low, low * ratio, most)
    assert 1 <= len(ticks) <= most
    assert all(low <= tick <= low * ratio for tick in ticks)
    assert ticks == sorted(set(ticks))


@given(st.lists(st.floats(1e-9, 1e24), min_size=1))
def test_an_axis_shows_all_of_its_values_with_room(values: list[float]) -> None:
    low, high = around(values)
    assert low < min(values) <= max(values) < high


@given(st.text())
def test_a_clean_name_is_valid_xml(name: str) -> None:
    ET.fromstring(ET.tostring(_element(clean(name)), encoding="utf-8"))


def _element(text: str) -> ET.Element:
    element = ET.Element("a")
    element.text = text
    return element
