"""An SVG file as an element of a page: no foreign references, no ids twice, hints on points."""

import re
import xml.etree.ElementTree as ET  # of our own making: matplotlib wrote it
from collections.abc import Iterator, Mapping, Sequence

SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"
DROPPED = (f"{SVG}metadata", f"{SVG}style")
REFERENCE = re.compile(r"url\(#([^)]+)\)")


def for_page(svg: bytes, prefix: str, label: str, tips: Mapping[str, Sequence[str]]) -> str:
    """`svg` for inlining; `label` tells what it shows to who cannot see it.

    Ids that are referred to start with `prefix`, the others go. Each point of a group that `tips`
    knows gets its text, in order.
    """
    root = ET.fromstring(svg)
    _give_tips(root, tips)
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in DROPPED]:
            parent.remove(child)
    _rename(root, prefix)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ET.tostring(root, encoding="unicode", short_empty_elements=True)


def _give_tips(root: ET.Element, tips: Mapping[str, Sequence[str]]) -> None:
    groups = {element.get("id"): element for element in root.iter(f"{SVG}g")}
    for name, texts in tips.items():
        if name not in groups:
            continue
        marks = list(_marks(groups[name]))
        if len(marks) != len(texts):
            raise ValueError(f"{len(texts)} hints for {len(marks)} points of {name}")
        for mark, text in zip(marks, texts, strict=True):
            ET.SubElement(mark, f"{SVG}title").text = text


def _marks(element: ET.Element) -> Iterator[ET.Element]:
    """What is drawn in a group: definitions are not."""
    for child in element:
        if child.tag in (f"{SVG}use", f"{SVG}path"):
            yield child
        elif child.tag != f"{SVG}defs":
            yield from _marks(child)


def _rename(root: ET.Element, prefix: str) -> None:
    used = set()
    for element in root.iter():
        target = element.attrib.pop(LINK, None)
        if target is not None:
            used.add(target.removeprefix("#"))
            # An embedded picture is no reference.
            element.set("href", f"#{prefix}{target[1:]}" if target.startswith("#") else target)
        for name, value in element.attrib.items():
            used.update(REFERENCE.findall(value))
            element.set(name, REFERENCE.sub(rf"url(#{prefix}\1)", value))
    for element in root.iter():
        name = element.attrib.pop("id", "")
        if name in used:
            element.set("id", f"{prefix}{name}")
