"""The report in a real browser: nothing is cut, nothing is fetched, what can be opened opens."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from unit.planner import reports

pytestmark = pytest.mark.browser

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WIDTHS = (1280, 420)

CUT = """() => [...document.querySelectorAll(
    "h1, h2, h3, p, li, dt, dd, pre, summary, figcaption, .finding, .tile, nav a")]
  .filter((e) => e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1)
  .filter((e) => getComputedStyle(e).display !== "inline")
  .map((e) => `${e.tagName} ${e.textContent.slice(0, 60)}`)"""

OUTSIDE = """() => [...document.querySelectorAll("main *, nav *")]
  .filter((e) => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1)
  .map((e) => e.tagName)"""

LABELS = """() => [...document.querySelectorAll("figure svg")].map((svg) => {
  const frame = svg.getBoundingClientRect();
  const labels = [...svg.querySelectorAll("text")].map((e) => {
    const { left, right, top, bottom } = e.getBoundingClientRect();
    return { text: e.textContent, left, right, top, bottom };
  });
  const cut = labels.filter((e) => e.left < frame.left - 1 || e.right > frame.right + 1
    || e.top < frame.top - 1 || e.bottom > frame.bottom + 1).map((e) => e.text);
  const touching = labels.flatMap((a, i) => labels.slice(i + 1)
    .filter((b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
    .map((b) => `${a.text} | ${b.text}`));
  return { figure: svg.closest("figure").id, count: labels.length, cut, touching };
})"""


@dataclass
class Opened:
    """A page, and what it said and asked for while it opened."""

    page: "playwright.Page"
    complaints: list[str]
    requests: list[str]


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"none of {', '.join(NAMES)} is on the PATH")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield opened
        opened.close()


def open_report(browser: "playwright.Browser", width: int, scripts: bool = True) -> Opened:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, java_script_enabled=scripts
    )
    opened = Opened(context.new_page(), [], [])
    opened.page.on("console", lambda message: opened.complaints.append(message.text))
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto((reports.written()[0] / "report.html").as_uri())
    return opened


@pytest.fixture(scope="module", params=WIDTHS)
def opened(request: pytest.FixtureRequest, browser: "playwright.Browser") -> Opened:
    return open_report(browser, request.param)


def test_it_opens_in_silence_and_fetches_nothing(opened: Opened) -> None:
    assert opened.complaints == []
    assert opened.requests == [opened.page.url]


def test_the_page_itself_never_scrolls_sideways(opened: Opened) -> None:
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert opened.page.evaluate(OUTSIDE) == []


def test_no_text_is_cut(opened: Opened) -> None:
    assert opened.page.evaluate(CUT) == []


def test_labels_of_figures_are_whole_and_apart(opened: Opened) -> None:
    found = opened.page.evaluate(LABELS)
    assert len(found) == 10
    for each in found:
        assert each["count"] > 5
        assert each["cut"] == [], each["figure"]
        assert each["touching"] == [], each["figure"]


def test_wide_tables_and_figures_scroll_in_their_own_box(browser: "playwright.Browser") -> None:
    page = open_report(browser, 420).page
    boxes = "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth)"
    assert page.evaluate(f"{boxes}.length") > 5
    assert page.evaluate(f"{boxes}.every((e) => getComputedStyle(e).overflowX === 'auto')")


@pytest.mark.parametrize("scripts", [True, False])
def test_what_is_folded_opens(browser: "playwright.Browser", scripts: bool) -> None:
    page = open_report(browser, 1280, scripts).page
    folded = page.locator("details", has_text="All runs").first
    assert not folded.locator("table").is_visible()
    folded.locator("summary").click()
    assert folded.locator("table").is_visible()
    fit, _ = reports.full()
    assert folded.locator("tbody tr").count() == len(fit.sweep.runs)


def test_a_point_tells_what_it_is(browser: "playwright.Browser") -> None:
    page = open_report(browser, 1280).page
    tip = page.locator("#tip")
    assert not tip.is_visible()
    point = page.locator("#group01-base-figure-surface use:has(title)").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    assert tip.is_visible()
    assert tip.text_content() == point.locator("title").text_content()


def test_without_scripts_it_says_the_same(browser: "playwright.Browser") -> None:
    with_scripts, without = (
        open_report(browser, 1280, scripts).page.locator("main").inner_text()
        for scripts in (True, False)
    )
    assert with_scripts == without


def test_on_paper_there_is_no_navigation_and_nothing_scrolls(browser: "playwright.Browser") -> None:
    page = open_report(browser, 1280).page
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.locator("section.verdict").first.is_visible()
    cut = "[...document.querySelectorAll('.scroll')].map((e) => getComputedStyle(e).overflowX)"
    assert set(page.evaluate(cut)) == {"visible"}
