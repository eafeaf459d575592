"""A real NVML binding in a real child before NVML's stand-in: each fault names its GPU and cure."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from nvml.stand_in import StandIn

from scalewright.health import gpus
from scalewright.health.agent import Agent
from scalewright.health.checks import Look, gpu_check
from scalewright.health.child import Child, Reply, Silent
from scalewright.health.finding import Finding, Remedy, Verdict, failures
from scalewright.health.gpu_rules import GpuLimits
from scalewright.health.judge import CHECKS

LONG_S = 30.0


class Watched:
    """A node's GPUs, looked at by a child as often as a test likes, on a clock of its own."""

    def __init__(self, node: StandIn, expected: int | None = None) -> None:
        self.node = node
        self.child = Child("gpus", node.environment)
        self.check = gpu_check(GpuLimits(), expected)
        self._past: object = None
        self._began_s = time.time()

    def look(self, clock_s: float = 0.0) -> dict[str, Finding]:
        """What is not well, by check; ordinary wall time, `clock_s` of the monotonic clock."""
        answer = self.child.ask({}, LONG_S)
        assert isinstance(answer, Reply), answer
        look = Look(answer.value, time.time(), clock_s)
        self._past, findings = self.check.judge(self._past, look)
        self.all = findings
        return {
            one.check.removeprefix("gpus."): one
            for one in findings
            if one.verdict is not Verdict.PASS
        }


@pytest.fixture
def node(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path / "gpus")


@pytest.fixture
def watched(node: StandIn) -> Iterator[Watched]:
    one = Watched(node, expected=2)
    yield one
    one.child.close()


def told(finding: Finding) -> tuple[str | None, Verdict, Remedy]:
    return finding.gpu, finding.verdict, finding.remedy


def test_healthy_gpus_are_read_whole(node: StandIn, watched: Watched) -> None:
    node.set(1, process="4242 1048576", recovery=0, retired=3, retired_pending=0)
    assert watched.look() == {}
    assert [one.check for one in watched.all] == [f"gpus.{check}" for check in CHECKS]
    answer = watched.child.ask({}, LONG_S)
    assert isinstance(answer, Reply)
    look = gpus.from_json(answer.value)
    first, second = look.gpus
    assert look.driver == "570.86.15"
    assert first == gpus.GpuSnapshot(
        index=0,
        uuid=node.uuid(0),
        name="NVIDIA H100 80GB HBM3",
        serial="1650123456780",
        pci_bus_id="0000:c0:00",
        ecc_enabled=True,
        uncorrected_volatile=0,
        uncorrected_aggregate=0,
        corrected_volatile=0,
        corrected_aggregate=0,
        remapped=gpus.Remapped(0, 0, False, False),
        nvlinks=(True,) * 18,
        nvlink_replays=0,
        nvlink_recoveries=0,
        nvlink_crc_errors=0,
        clock_reasons=0,
        temperature_c=45,
        power_w=350.0,
        pcie_generation=5,
        pcie_generation_max=5,
        pcie_width=16,
        pcie_width_max=16,
        processes=(),
    )
    assert second.recovery_action == 0
    assert second.retired_pages == 3
    assert second.processes == (gpus.Process(4242, 1048576),)


def test_what_a_gpu_does_not_support_is_no_error(node: StandIn, watched: Watched) -> None:
    names = ("ecc", "corrected", "uncorrected", "remap_corrected", "nvlinks", "clocks", "recovery")
    node.set(**dict.fromkeys((*names, "pcie_width", "power_mw", "temperature", "process"), "none"))
    assert watched.look() == {}


# XID -> what is to be done, exactly; None where nothing is.
XIDS = {
    13: (Verdict.WARN, Remedy.RESTART_APP),
    31: (Verdict.WARN, Remedy.RESTART_APP),
    48: (Verdict.FAIL, Remedy.RESET_GPU),
    63: None,
    64: (Verdict.FAIL, Remedy.RESET_GPU),
    74: (Verdict.FAIL, Remedy.RESET_GPU),
    79: (Verdict.FAIL, Remedy.REBOOT),
    94: (Verdict.WARN, Remedy.RESTART_APP),
    95: (Verdict.FAIL, Remedy.RESET_GPU),
    119: (Verdict.FAIL, Remedy.RESET_GPU),
    777: (Verdict.WARN, Remedy.INSPECT),
}


def test_every_xid_asks_for_exactly_this_of_its_gpu(tmp_path: Path) -> None:
    node = StandIn(tmp_path / "gpus", gpus=len(XIDS))
    node.xid(0, 79)  # of before the child began to listen
    watched = Watched(node)
    try:
        assert watched.look() == {}
        for gpu, number in enumerate(XIDS):
            node.xid(gpu, number)
        watched.look()
        found = {one.gpu: (one.verdict, one.remedy) for one in watched.all if one.gpu}
        asked = [found[node.uuid(gpu)] for gpu in range(len(XIDS))]
        well = (Verdict.PASS, Remedy.NONE)
        assert dict(zip(XIDS, asked, strict=True)) == {
            number: action or well for number, action in XIDS.items()
        }
        # It was told once, and stays known although it does not come again.
        watched.look()
        assert {one.gpu: (one.verdict, one.remedy) for one in watched.all if one.gpu} == found
        assert {one.evidence["xid"] for one in watched.all if one.gpu} == set(XIDS)
    finally:
        watched.child.close()


STATES = [
    ({"uncorrected": 1}, "ecc", Verdict.FAIL, Remedy.RESET_GPU),
    ({"uncorrected": 1, "recovery": 0}, "ecc", Verdict.WARN, Remedy.NONE),
    ({"uncorrected_ever": 10_000}, "ecc", Verdict.WARN, Remedy.REPLACE),
    ({"corrected_ever": 20_000_000}, "ecc", Verdict.WARN, Remedy.REPLACE),
    ({"ecc": 0}, "ecc", Verdict.WARN, Remedy.NONE),
    ({"remap_pending": 1}, "memory_rows", Verdict.WARN, Remedy.RESET_GPU),
    ({"remap_failed": 1}, "memory_rows", Verdict.FAIL, Remedy.REPLACE),
    ({"retired": 60}, "memory_rows", Verdict.FAIL, Remedy.REPLACE),
    ({"retired": 1, "retired_pending": 1}, "memory_rows", Verdict.WARN, Remedy.RESET_GPU),
    ({"nvlinks_down": 0b100}, "nvlink", Verdict.FAIL, Remedy.RESET_GPU),
    ({"nvlink_recoveries": 2}, "nvlink", Verdict.WARN, Remedy.NONE),
    ({"pcie_width": 8}, "pcie", Verdict.WARN, Remedy.INSPECT),
    ({"pcie_width": 4}, "pcie", Verdict.FAIL, Remedy.INSPECT),
    ({"recovery": 1}, "recovery", Verdict.FAIL, Remedy.RESET_GPU),
    ({"recovery": 2}, "recovery", Verdict.FAIL, Remedy.REBOOT),
    ({"recovery": 4}, "recovery", Verdict.WARN, Remedy.RESET_GPU),
    ({"recovery": 99}, "recovery", Verdict.WARN, Remedy.INSPECT),
    ({"unlisted": 1}, "count", Verdict.FAIL, Remedy.REBOOT),
    ({"lost": 1}, "count", Verdict.FAIL, Remedy.REBOOT),
    ({"lost": 16}, "count", Verdict.FAIL, Remedy.RESET_GPU),
]


def test_every_state_names_its_gpu_and_passes(node: StandIn) -> None:
    """All states one after the other on one node, each taken back: none leaves anything behind."""
    watched = Watched(node)
    try:
        assert watched.look() == {}
        for values, check, verdict, remedy in STATES:
            node.set(1, **values)
            found = watched.look()
            if check == "pcie":  # counts in the second look
                assert found == {}
                found = watched.look()
            assert set(found) == {check}, values
            assert told(found[check]) == (node.uuid(1), verdict, remedy), values
            node.set(1, **dict.fromkeys(values))
            watched.look()
            assert watched.look() == {}, values
    finally:
        watched.child.close()


def test_an_nvlink_that_is_down_stays_said(node: StandIn, watched: Watched) -> None:
    watched.look()
    node.set(nvlinks_down=1)  # on both ends
    for _ in range(3):
        watched.look()
        down = [one.gpu for one in watched.all if one.check == "gpus.nvlink"]
        assert down == [node.uuid(0), node.uuid(1)]


def test_fewer_nvlinks_than_the_neighbour(node: StandIn, watched: Watched) -> None:
    node.set(0, nvlinks_down=1)  # before the first look
    assert told(watched.look()["nvlink"]) == (node.uuid(0), Verdict.FAIL, Remedy.RESET_GPU)


def test_another_model_may_have_fewer_nvlinks(node: StandIn, watched: Watched) -> None:
    node.set(0, name="NVIDIA A100", nvlinks=12)
    assert watched.look() == {}


def test_the_gpus_own_wish_wins_over_the_catalogue(node: StandIn, watched: Watched) -> None:
    node.set(recovery=0)
    watched.look()
    node.xid(1, 95)
    found = watched.look()
    assert told(found["xid"]) == (node.uuid(1), Verdict.WARN, Remedy.RESTART_APP)
    node.set(1, recovery=2)
    found = watched.look()
    assert found["recovery"].remedy is Remedy.REBOOT
    assert found["xid"].verdict is Verdict.FAIL


def test_a_gpu_that_falls_off_the_bus_is_named(node: StandIn, watched: Watched) -> None:
    watched.look()
    node.xid(1, 79)
    node.set(1, unlisted=1)
    watched.look()
    found = {(one.check, one.gpu): one for one in failures(watched.all)}
    assert set(found) == {
        ("gpus.count", node.uuid(1)),
        ("gpus.xid", node.uuid(1)),
        ("gpus.count", None),  # 1 answers, 2 are expected
    }
    node.set(gpus=1)  # after a new start of the driver it is not even listed
    watched.look()
    assert ("gpus.count", node.uuid(1)) in {(one.check, one.gpu) for one in failures(watched.all)}


def test_too_few_gpus_from_the_start(node: StandIn) -> None:
    watched = Watched(node, expected=8)
    try:
        finding = watched.look()["count"]
        assert told(finding) == (None, Verdict.FAIL, Remedy.REBOOT)
        assert finding.reason == "2 GPUs answer, expected 8"
        node.set(1, unlisted=1)
        assert "1 GPUs answer" in watched.look()["count"].reason
    finally:
        watched.child.close()


@pytest.mark.parametrize(
    ("init", "expected", "verdict"),
    [
        (9, None, Verdict.PASS),  # a node without GPUs that has the library
        (9, 2, Verdict.FAIL),
        (18, None, Verdict.FAIL),  # a driver replaced below the running one
    ],
)
def test_nvml_that_does_not_start(
    node: StandIn, init: int, expected: int | None, verdict: Verdict
) -> None:
    node.set(init=init)
    watched = Watched(node, expected)
    try:
        watched.look()
        assert [one.verdict for one in watched.all] == [verdict]
        node.set(init=0)
        assert watched.look() == {}  # it is tried again
        node.set(1, lost=1)
        watched.look()
        node.set(init=9)
        assert watched.look()["count"].verdict is Verdict.FAIL  # there were GPUs
    finally:
        watched.child.close()


def test_one_hot_sample_is_nothing_and_a_minute_is(node: StandIn, watched: Watched) -> None:
    node.set(1, clocks=0x40)
    assert watched.look(0) == {}
    node.set(1, clocks=None)
    assert watched.look(5) == {}
    node.set(1, clocks=0x48)
    for clock_s in (10, 25, 40, 55, 69):
        assert watched.look(clock_s) == {}
    finding = watched.look(70)["clocks"]
    assert told(finding) == (node.uuid(1), Verdict.WARN, Remedy.INSPECT)
    assert "thermal" in finding.reason
    node.set(1, clocks=None)
    assert watched.look(75) == {}
    # Two samples with nothing known between them are not a lasting state.
    node.set(1, clocks=0x80)
    assert watched.look(100) == {}
    assert watched.look(200) == {}
    # Ten minutes of the hardware's own brake fail; the software's limit alone never does.
    node.set(0, clocks=0x20)
    for clock_s in range(210, 820, 10):
        watched.look(clock_s)
    verdicts = {one.gpu: one.verdict for one in watched.all if one.check == "gpus.clocks"}
    assert verdicts == {node.uuid(0): Verdict.WARN, node.uuid(1): Verdict.FAIL}


def test_processes_of_nobody_count_after_a_minute(node: StandIn) -> None:
    ours: set[int] = {7}
    watched = Watched(node)
    watched.check = gpu_check(GpuLimits(), ours=lambda: frozenset(ours))
    try:
        node.set(0, process=f"7 {8 << 30}")
        node.set(1, process=f"8 {8 << 30}")
        for clock_s in (0, 30):
            assert watched.look(clock_s) == {}
        assert told(watched.look(60)["processes"])[:2] == (node.uuid(1), Verdict.FAIL)
        ours.add(8)
        assert watched.look(70) == {}
    finally:
        watched.child.close()


def test_a_hanging_driver_hangs_nobody_and_is_found(
    node: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in node.environment.items():
        monkeypatch.setenv(name, value)
    before = set(psutil.Process().children(recursive=True))
    check = replace(gpu_check(GpuLimits(), 2), deadline_s=0.7, period_s=0.05)
    with Agent([check]) as agent:
        assert agent.wait(LONG_S)
        assert {one.verdict for one in agent.look()} == {Verdict.PASS}
        node.set(1, uncorrected=1)
        until(lambda: any(one.check == "gpus.ecc" for one in failures(agent.look())))
        node.set(1, hang=1)
        until(lambda: any(one.verdict is Verdict.UNKNOWN for one in agent.look()))
        # What was wrong before is still said; what was well is not claimed any more.
        assert {one.check for one in agent.look()} == {"gpus", "gpus.ecc"}
        until(lambda: any(one.check == "gpus" for one in failures(agent.look())))
        hung = next(one for one in failures(agent.look()) if one.check == "gpus")
        assert "the driver hangs the checker" in hung.reason
        assert hung.remedy is Remedy.REBOOT
        node.set(1, hang=None)
        until(lambda: not any(one.check == "gpus" for one in agent.look()))
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_driver_that_hangs_from_the_start(node: StandIn) -> None:
    node.set(hang=1)
    child = Child("gpus", node.environment)
    assert child.ask({}, 1.0) == Silent(1.0, stuck=False)
    child.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, f"waited for {LONG_S} s"
        time.sleep(0.02)
