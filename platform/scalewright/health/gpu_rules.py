"""What is wrong with one GPU: a rule each, pure, from its state now and as it was.

Thresholds: retired pages from NVIDIA's replacement policy, lifetime errors from Azure's node
health checks, PCIe width from IBM Autopilot.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from scalewright.errors import ConfigError
from scalewright.health.finding import Remedy, Verdict
from scalewright.health.gpus import GpuSnapshot

# NVML's clock event reasons that mean trouble.
REASONS = {
    0x08: "hardware slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x20: "software thermal slowdown",
}
_SOFTWARE = 0x20

# NVML field 230. Draining means that the GPU still works, for now.
_ACTIONS = {
    1: (Verdict.FAIL, Remedy.RESET_GPU, "a reset"),
    2: (Verdict.FAIL, Remedy.REBOOT, "a reboot of the node"),
    3: (Verdict.WARN, Remedy.RESTART_APP, "an end of peer-to-peer traffic"),
    4: (Verdict.WARN, Remedy.RESET_GPU, "a reset once its work is done"),
    5: (Verdict.WARN, Remedy.INSPECT, "a recovery of its IMEX domain"),
    6: (Verdict.FAIL, Remedy.RESET_GPU, "a reset of its bus"),
    7: (Verdict.FAIL, Remedy.REBOOT, "a reboot of the system"),
}


@dataclass(frozen=True)
class Wrong:
    """Something that is not well, and the least that cures it."""

    verdict: Verdict
    remedy: Remedy
    reason: str


@dataclass(frozen=True, kw_only=True)
class GpuLimits:
    """From where on a GPU is said to be unwell.

    A slowdown counts if it lasts over `slow_looks` looks, none more than `gap_s` after the one
    before. A foreign process counts if it holds `foreign_bytes` for `foreign_s`.
    """

    slow_warn_s: float = 60.0
    slow_fail_s: float = 600.0
    slow_looks: int = 3
    gap_s: float = 60.0
    corrected_total: int = 20_000_000
    uncorrected_total: int = 10_000
    retired_pages: int = 60
    pcie_fail_share: float = 0.25
    foreign_s: float = 60.0
    foreign_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if not 0 < self.slow_warn_s <= self.slow_fail_s:
            raise ConfigError(
                f"slow_warn_s = {self.slow_warn_s}; more than 0 and at most slow_fail_s = "
                f"{self.slow_fail_s}"
            )
        if self.slow_looks < 2:
            raise ConfigError(f"slow_looks = {self.slow_looks}; at least 2: one look is no state")
        if not 0 <= self.pcie_fail_share < 1:
            raise ConfigError(f"pcie_fail_share = {self.pcie_fail_share}; 0 to 1")


@dataclass(frozen=True)
class Lasting:
    """A state that was there in each of `looks` looks, from `since_s` to `last_s` (monotonic)."""

    since_s: float
    last_s: float
    looks: int

    @property
    def seconds(self) -> float:
        return self.last_s - self.since_s


def recovery(gpu: GpuSnapshot) -> Wrong | None:
    """What the GPU itself asks for."""
    if not gpu.recovery_action:
        return None
    verdict, remedy, what = _ACTIONS.get(
        gpu.recovery_action,
        (Verdict.WARN, Remedy.INSPECT, f"action {gpu.recovery_action}, unknown here"),
    )
    return Wrong(verdict, remedy, f"the GPU asks for {what}")


def ecc(gpu: GpuSnapshot, limits: GpuLimits) -> Wrong | None:
    """Errors of memory. Uncorrected ones since the last reset are wrong data or a dead process."""
    if gpu.uncorrected_volatile:
        told = f"{gpu.uncorrected_volatile} uncorrected memory errors since the last reset"
        if gpu.recovery_action == 0:  # it contained them, and knows better than a counter
            return Wrong(Verdict.WARN, Remedy.NONE, f"{told}, of which the GPU has recovered")
        return Wrong(Verdict.FAIL, Remedy.RESET_GPU, told)
    if (gpu.uncorrected_aggregate or 0) >= limits.uncorrected_total:
        told = f"{gpu.uncorrected_aggregate} uncorrected memory errors in its life"
        return Wrong(Verdict.WARN, Remedy.REPLACE, told)
    if (gpu.corrected_aggregate or 0) >= limits.corrected_total:
        told = f"{gpu.corrected_aggregate} corrected memory errors in its life"
        return Wrong(Verdict.WARN, Remedy.REPLACE, told)
    if gpu.ecc_enabled is False:
        return Wrong(Verdict.WARN, Remedy.NONE, "ECC is off: flipped bits go unseen")
    return None


def memory_rows(gpu: GpuSnapshot, limits: GpuLimits) -> Wrong | None:
    """Rows (Ampere and later) or pages (before) that were taken out of use."""
    if gpu.remapped is not None and gpu.remapped.failed:
        return Wrong(Verdict.FAIL, Remedy.REPLACE, "a row could not be remapped: none are left")
    if (gpu.retired_pages or 0) >= limits.retired_pages:
        return Wrong(Verdict.FAIL, Remedy.REPLACE, f"{gpu.retired_pages} pages retired")
    if gpu.retired_pending or (gpu.remapped is not None and gpu.remapped.pending):
        told = "memory waits to be remapped; reset the GPU at the next stop"
        return Wrong(Verdict.WARN, Remedy.RESET_GPU, told)
    return None


def nvlink(
    before: GpuSnapshot | None, gpu: GpuSnapshot, ever_up: frozenset[int], most_up: int
) -> Wrong | None:
    """Links that went down, or that others of its model on this node have (`most_up`)."""
    down = sorted(link for link in ever_up if gpu.nvlinks[link : link + 1] != (True,))
    if down:
        told = f"NVLink {', '.join(map(str, down))} went down"
        return Wrong(Verdict.FAIL, Remedy.RESET_GPU, told)
    if sum(gpu.nvlinks) < most_up:
        told = f"{sum(gpu.nvlinks)} NVLinks up, {most_up} on another GPU of this model"
        return Wrong(Verdict.FAIL, Remedy.RESET_GPU, told)
    earlier = None if before is None else before.nvlink_recoveries
    if earlier is not None and (gpu.nvlink_recoveries or 0) > earlier:
        told = f"NVLinks were retrained; {gpu.nvlink_recoveries} times by now, {earlier} before"
        return Wrong(Verdict.WARN, Remedy.NONE, told)
    return None


def clocks(lasting: Mapping[int, Lasting], limits: GpuLimits) -> Wrong | None:
    """Clocks held down by heat or power for long; `lasting` is keyed by reason."""
    long = {
        bit: state
        for bit, state in lasting.items()
        if state.looks >= limits.slow_looks and state.seconds >= limits.slow_warn_s
    }
    if not long:
        return None
    hard = any(bit != _SOFTWARE and s.seconds >= limits.slow_fail_s for bit, s in long.items())
    names = ", ".join(f"{REASONS[bit]} for {state.seconds:.0f} s" for bit, state in long.items())
    return Wrong(Verdict.FAIL if hard else Verdict.WARN, Remedy.INSPECT, names)


def pcie(before: GpuSnapshot | None, gpu: GpuSnapshot, limits: GpuLimits) -> Wrong | None:
    """Fewer lanes than the slot has, in two looks. The generation falls when idle and is well."""
    widths = (gpu.pcie_width, gpu.pcie_width_max)
    if before is None or before.pcie_width != gpu.pcie_width or None in widths:
        return None
    width, most = widths
    assert width is not None
    assert most is not None
    if width >= most:
        return None
    fail = width <= limits.pcie_fail_share * most
    told = f"PCIe runs {width} lanes of {most}"
    return Wrong(Verdict.FAIL if fail else Verdict.WARN, Remedy.INSPECT, told)


def processes(foreign: Mapping[int, Lasting], limits: GpuLimits) -> Wrong | None:
    """Processes that hold memory and are not of the run, such as those of an earlier attempt."""
    long = sorted(pid for pid, state in foreign.items() if state.seconds >= limits.foreign_s)
    if not long:
        return None
    told = f"foreign processes {', '.join(map(str, long))} hold its memory; end them"
    return Wrong(Verdict.FAIL, Remedy.INSPECT, told)
