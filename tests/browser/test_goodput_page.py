"""The goodput page in a real browser: nothing is cut, nothing is fetched, light and dark."""

import shutil
from collections.abc import Iterator
from random import Random

import pytest

from scalewright.cluster.goodput_page import page
from scalewright.cluster.timeline import timeline
from scalewright.events import Event, Metrics, Notice

pytestmark = pytest.mark.browser

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]

CUT = """() => [...document.querySelectorAll(
    "h1, h2, p, dt, dd, figcaption, .finding, .ends span")]
  .filter((e) => e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1)
  .filter((e) => getComputedStyle(e).display !== "inline")
  .map((e) => `${e.tagName} ${e.textContent.slice(0, 60)}`)"""

OUTSIDE = """() => [...document.querySelectorAll("main *")]
  .filter((e) => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1)
  .map((e) => e.tagName)"""

# Relative luminance by WCAG 2, of text against the nearest background that is painted.
CONTRAST = """() => {
  const parts = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => parts(c).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const under = (e) => {
    const c = getComputedStyle(e).backgroundColor;
    return e === document.documentElement || (parts(c)[3] ?? 1) > 0 ? c : under(e.parentElement);
  };
  const texts = document.querySelectorAll("h1, p, dt, dd, td, th, figcaption");
  return Math.min(...[...texts].map((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(under(e))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }));
}"""


def eventful(attempts: int) -> list[Event]:
    """A run that failed many times, in many ways."""
    random, time_s, events = Random(0), 1.7e9, list[Event]()

    def tell(attempt: int, kind: str, after_s: float, **fields: object) -> None:
        nonlocal time_s
        time_s += after_s
        events.append(Notice(time_s, attempt, kind, fields))

    for attempt in range(1, attempts + 1):
        tell(attempt, "queued", 40000 if attempt == 3 else 3)
        tell(attempt, "preflight", 10)
        tell(attempt, "launched", 60)
        tell(attempt, "attempt", 30, start_step=attempt * 90)
        tell(attempt, "first_step", 20)
        for step in range(attempt * 90, attempt * 100, 10):
            time_s += 60
            events.append(Metrics(time_s, attempt, step + 10, {"perf/step_s": 6.0}))
            tell(attempt, "save", 2, step=step + 10)
        reason = "GPU-6d1f has fallen off the bus, XID 79, row " + "remapping failed " * 4
        tell(attempt, "detected", random.uniform(5, 50), cause="gpu", machine=f"SN-{attempt:07d}")
        tell(attempt, "attempt_failed", 20, cause="gpu", rank=attempt, reason=reason)
    return events


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "goodput.html"
    path.write_text(page("a <run> & more", timeline(eventful(30))), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"none of {', '.join(NAMES)} is on the PATH")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
def test_the_page_is_whole_and_readable(
    browser: "playwright.Browser", address: str, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened, said, asked = context.new_page(), list[str](), list[str]()
    opened.on("console", lambda message: said.append(message.text))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    assert said == []
    assert asked == [address]
    assert opened.title() == "Goodput of a <run> & more"
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert opened.evaluate(OUTSIDE) == []
    assert opened.evaluate(CUT) == []
    assert opened.evaluate(CONTRAST) > 4.5
    assert opened.locator("#setbacks tbody tr").count() == 30
    assert opened.locator(".marks line").count() == 30
    assert opened.locator(".attempts rect").count() == 30
    context.close()


def test_every_phase_of_the_strip_has_its_colour_and_the_columns_are_full(
    browser: "playwright.Browser", address: str
) -> None:
    opened = browser.new_page()
    opened.goto(address)
    colours = opened.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll(".strip rect")]
            .map((e) => [e.className.baseVal, getComputedStyle(e).fill]))"""
    )
    assert {"step", "recompute", "stopped", "init"} <= set(colours)
    assert len(set(colours.values())) == len(colours)
    assert "rgb(0, 0, 0)" not in colours.values()
    area = opened.evaluate(
        """() => [...document.querySelectorAll(".strip rect")]
            .reduce((sum, e) => sum + e.width.baseVal.value * e.height.baseVal.value, 0)"""
    )
    assert area == pytest.approx(480 * 100, rel=1e-3)
