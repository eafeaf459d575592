import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from unit.planner import reports
from unit.planner.reports import COMMAND, HOSTILE

from planner.findings import Finding
from planner.fitting.fit import Fit
from planner.fitting.forecast import HoldOut
from planner.planning.plan import make_plan
from planner.showing.drawing import clean
from planner.showing.report import write_report
from planner.showing.report_plan import quantity
from planner.showing.report_verdict import confidence, no_plan, verdict
from planner.wording import plain

VOID = {"meta", "br", "link", "img", "input", "hr"}


@dataclass
class Page(HTMLParser):
    """A page read with care: every tag that opens must close, in order."""

    text: str = ""
    tags: Counter[str] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name == "href"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def folder() -> Path:
    return reports.written()[0]


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return read(folder / "report.html")


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text).lower()


def tells(page: Page, text: str) -> bool:
    """Whether the page says this, but for capitals, spaces and what code looks like."""
    return squeezed(clean(text).replace("`", "")) in squeezed(page.text)


def test_the_page_is_well_formed_and_leads_nowhere(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    assert page.links
    for link in page.links:
        assert link.startswith("data:image/png;") or link[1:] in page.ids, link
    assert not [a for a in page.attributes if a[1] in ("src", "srcset", "action", "poster")]
    assert page.tags["link"] == page.tags["img"] == page.tags["iframe"] == 0
    styles = [value for _, name, value in page.attributes if name == "style"]
    assert not [style for style in styles if re.search(r"url\((?!#)", style)]


def test_its_policy_forbids_every_request(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\(\s*['\"]?http", text)
    # The hostile name is all that reads like an address.
    assert set(re.findall(r"https?://[\w.]+", text)) == {"https://evil.example"}


def test_every_finding_is_told_with_its_code(page: Page) -> None:
    fit, plans = reports.full()
    findings = [*fit.findings, *(finding for plan in plans for finding in plan.findings)]
    assert any(finding.refuses for finding in findings)
    for finding in findings:
        assert finding.code in page.text
        assert tells(page, finding.text), finding.text


def test_every_number_of_a_plan_is_told_with_interval_reason_and_source(page: Page) -> None:
    _, plans = reports.full()
    assert len(plans[0].numbers) > 6
    for name, number in plans[0].numbers.items():
        label, words = quantity(name)
        for text in (label, words(number.estimate.value), number.reason, number.source):
            assert tells(page, text), (name, text)
        if number.estimate.low is not None and number.estimate.high is not None:
            assert tells(page, f"{words(number.estimate.low)} to {words(number.estimate.high)}")


def test_a_refused_target_is_told_as_refused(page: Page) -> None:
    assert "No run can be planned for 1e23 FLOPs" in page.text


def test_the_laws_and_their_doubts_are_told(page: Page) -> None:
    fit, _ = reports.full()
    for way in ("huber", "varpro"):
        for name, estimate in fit.constants[way].items():
            assert tells(page, plain(estimate.value, 4)), (way, name)
    assert isinstance(fit.forecast, HoldOut)
    assert f"{fit.forecast.predicted:.4f}" in page.text
    assert f"{fit.huber.agreeing} of {fit.huber.starts}" in page.text
    for budget in fit.isoflop.budgets:
        assert budget.verdict in page.text
    assert tells(page, fit.transfer.text)
    for law in (fit.hyper.lr, fit.hyper.batch_tokens):
        assert tells(page, law.reason)


def test_every_row_is_accounted_for(page: Page) -> None:
    fit, _ = reports.full()
    sweep = fit.sweep
    counts = f"{sweep.rows} read, {len(sweep.runs)} used, 1 rejected, 1 diverged, 0 failed"
    assert counts in page.text
    for each in (*sweep.runs, *sweep.stopped):
        assert tells(page, each.run)
    assert tells(page, sweep.rejections[0].reason)
    for group in fit.groups:
        assert tells(page, group.reason)


def test_where_it_comes_from_is_told(page: Page) -> None:
    assert COMMAND in page.text
    assert reports.full()[0].sweep.sha256 in page.text
    for name in ("scalewright", "python", "numpy", "scipy"):
        assert name in page.text


def test_a_hostile_name_is_only_text(folder: Path, page: Page) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert page.tags["script"] == 1
    assert "<script>alert" not in text
    assert clean(HOSTILE) in page.text
    assert not set(text) & {"\x00", "\x1b"}
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        assert not value.startswith("javascript:")


def test_each_group_has_its_part_and_its_figures(page: Page) -> None:
    _, paths = reports.written()
    assert "All groups" in page.text
    assert {"#group01-base", "#overview"} <= set(page.links)
    drawn = [path for path in paths if path.suffix == ".png"]
    assert Counter(path.name.split("-")[0] for path in drawn) == {"group01": 9, "group02": 1}
    assert page.tags["svg"] == len(drawn)
    for path in drawn:
        slug, name = path.stem.rsplit("-", 1)
        assert f"{slug}-figure-{name}" in page.ids
        assert f"{name}.png, {name}.svg" in page.text
        assert path.with_suffix(".svg") in paths


def test_all_lies_in_the_folder_and_nothing_half_written(folder: Path) -> None:
    _, paths = reports.written()
    found = [path for path in folder.parents[1].rglob("*") if path.is_file()]
    assert sorted(found) == sorted(paths)
    assert {path.suffix for path in found} == {".html", ".png", ".svg"}


def test_one_fit_needs_no_groups(tmp_path: Path) -> None:
    path, *figures = write_report([reports.one_size()], tmp_path, COMMAND)
    page = read(path)
    assert "All groups" not in page.text
    assert {"#fit-verdict", "#fit-data", "#provenance"} <= set(page.links)
    assert [figure.name for figure in figures] == ["maps.png", "maps.svg"]


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    one, other = (
        write_report([reports.one_size()], tmp_path / name, COMMAND) for name in ("one", "other")
    )
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_a_date_is_told_only_where_it_is_given(tmp_path: Path) -> None:
    page, *_ = write_report([reports.one_size()], tmp_path, COMMAND)
    assert "date" not in read(page).text
    write_report([reports.one_size()], tmp_path, COMMAND, date="2026-11-21")
    assert read(page).text.count("2026-11-21") == 2


def test_a_sweep_without_a_plan_says_why_and_what_still_holds(tmp_path: Path) -> None:
    fit, _ = reports.one_size()
    page = read(write_report([(fit, [])], tmp_path, COMMAND)[0])
    assert "No run can be planned from this sweep" in page.text
    (group,) = fit.groups
    assert group.lr is not None
    assert tells(page, f"best learning rate {quantity('lr')[1](group.lr)}")
    assert no_plan(fit).kind == "refused"


def with_forecast(fit: Fit, error: float) -> Fit:
    assert isinstance(fit.forecast, HoldOut)
    return replace(
        fit, forecast=replace(fit.forecast, predicted=fit.forecast.observed * (1 + error))
    )


@pytest.mark.parametrize(("error", "kind"), [(0.001, "good"), (0.01, "fair"), (-0.05, "low")])
def test_confidence_falls_with_the_error_of_the_forecast(error: float, kind: str) -> None:
    fit, (plan, _) = reports.full()
    found, words = confidence(with_forecast(fit, error), plan)
    assert found == kind
    assert kind in words


def test_what_refuses_the_data_refuses_every_plan() -> None:
    fit, (plan, _) = reports.full()
    doubt = Finding("contradiction", "the columns contradict each other", refuses=True)
    doubted = replace(fit, findings=(*fit.findings, doubt))
    refused = verdict(doubted, plan)
    assert (refused.kind, refused.refusals) == ("refused", (doubt.text,))
    forced = verdict(doubted, make_plan(fit, plan.target_flops, force=True))
    assert (forced.kind, forced.refusals) == ("forced", (doubt.text,))


def shares(text: str) -> Sequence[float]:
    return [float(found) for found in re.findall(r"\((\d+)%\)", text.split("comes from")[1])]


def test_where_the_width_comes_from_adds_up() -> None:
    fit, (plan, _) = reports.full()
    told = dict(verdict(fit, plan).sure)
    for name in ("The size", "The loss"):
        assert sum(shares(told[name])) == pytest.approx(100, abs=3)
