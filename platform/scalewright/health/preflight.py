"""Which nodes are too slow or compute wrongly: measurements of many nodes, compared; pure.

A device is compared with the median of its model over the fleet, as nothing else tells what it
should reach. Limits from SuperBench and the HyperPod checks: 5 % below is odd, 10 % is a failure.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from scalewright.errors import ConfigError
from scalewright.health.finding import Finding, Remedy, Verdict

BUDGETS_S = {"light": 60.0, "full": 480.0}  # what measuring a node may take
RATES = {
    "matmul_flops_per_s": "matrix products",
    "memory_bytes_per_s": "memory",
    "copy_to_device_bytes_per_s": "copies to the device",
    "copy_to_host_bytes_per_s": "copies to the host",
}


@dataclass(frozen=True)
class Measurement:
    """One device's results. Rates are the best of several tries, so that noise only lowers them.

    `checksum` is of the bits of a matrix product that healthy devices of a model and budget share.
    `copy_*` is None without a GPU.
    """

    device: str
    model: str
    matmul_flops_per_s: float
    memory_bytes_per_s: float
    copy_to_device_bytes_per_s: float | None
    copy_to_host_bytes_per_s: float | None
    checksum: str


@dataclass(frozen=True, kw_only=True)
class PreflightLimits:
    """Shares of the median below which a device is odd, or fails. Processors vary far more.

    With fewer than `min_devices` of a model a median says nothing, and rates are not judged.
    """

    warn_share: float = 0.95
    fail_share: float = 0.90
    cpu_warn_share: float = 0.6
    cpu_fail_share: float = 0.3
    min_devices: int = 3
    cache_s: float = 86_400.0

    def __post_init__(self) -> None:
        for fail, warn in (("fail_share", "warn_share"), ("cpu_fail_share", "cpu_warn_share")):
            low, high = getattr(self, fail), getattr(self, warn)
            if not 0 <= low <= high <= 1:
                raise ConfigError(f"{fail} = {low}, {warn} = {high}; 0 <= {fail} <= {warn} <= 1")
        if self.min_devices < 2:
            raise ConfigError(f"min_devices = {self.min_devices}; at least 2")


@dataclass(frozen=True)
class LastPreflight:
    """When a machine last passed, in which boot, and how thoroughly (`light` or `full`)."""

    time_s: float
    boot_id: str
    budget: str


def check_budget(budget: str) -> None:
    """Raise `ConfigError` unless it is the name of a budget."""
    if budget not in BUDGETS_S:
        raise ConfigError(f"budget = {budget!r}; expected {' or '.join(map(repr, BUDGETS_S))}")


def due(
    last: LastPreflight | None,
    boot_id: str,
    now_s: float,
    budget: str = "light",
    cache_s: float = 86_400.0,
) -> bool:
    """Whether a node must be measured again: never was, was booted since, too long ago, too light.

    A time in the future, of a clock that was set back, is no time.
    """
    check_budget(budget)
    if last is None or last.boot_id != boot_id:
        return True
    if budget == "full" and last.budget != "full":
        return True
    return not 0 <= now_s - last.time_s < cache_s


def compare(
    measured: Mapping[str, Sequence[Measurement]], limits: PreflightLimits, time_s: float
) -> dict[str, tuple[Finding, ...]]:
    """What each node's measurements mean beside those of all; `measured` is keyed by node.

    All must be of one budget.
    """
    by_model: dict[str, list[Measurement]] = {}
    for devices in measured.values():
        for one in devices:
            by_model.setdefault(one.model, []).append(one)
    return {
        node: tuple(
            finding
            for one in devices
            for finding in _judge(one, by_model[one.model], limits, time_s)
        )
        for node, devices in measured.items()
    }


def _judge(
    one: Measurement, fleet: Sequence[Measurement], limits: PreflightLimits, time_s: float
) -> Iterator[Finding]:
    cpu = one.model == "cpu"
    warn = limits.cpu_warn_share if cpu else limits.warn_share
    fail = limits.cpu_fail_share if cpu else limits.fail_share
    yield _bits(one, fleet, time_s)
    verdict, told = Verdict.PASS, []
    for rate, name in RATES.items():
        usual = [value for other in fleet if (value := getattr(other, rate)) is not None]
        value = getattr(one, rate)
        if value is None or len(usual) < limits.min_devices:
            continue
        share = value / median(usual)
        told.append(f"{name} at {share:.0%} of the median of {len(usual)}")
        if share < fail:
            verdict = Verdict.FAIL
        elif share < warn and verdict is Verdict.PASS:
            verdict = Verdict.WARN
    reason = "; ".join(told) or f"only {len(fleet)} of model {one.model}: nothing to compare with"
    remedy = Remedy.INSPECT if verdict is Verdict.FAIL else Remedy.NONE
    yield _finding("speed", verdict, remedy, reason, one, time_s)


def _bits(one: Measurement, fleet: Sequence[Measurement], time_s: float) -> Finding:
    """The minority computes wrongly; of two against one another, nobody knows which."""
    if one.checksum == "unstable":
        told = "one matrix product, repeated, gave different bits"
        return _finding("bits", Verdict.FAIL, Remedy.REPLACE, told, one, time_s)
    counts = Counter(other.checksum for other in fleet).most_common()
    usual, most = counts[0]
    if len(counts) == 1:
        return _finding("bits", Verdict.PASS, Remedy.NONE, "the same bits as all", one, time_s)
    if counts[1][1] == most:
        told = f"{one.checksum} where others have other bits, as many each: nobody knows whose"
        return _finding("bits", Verdict.WARN, Remedy.INSPECT, told, one, time_s)
    if one.checksum == usual:
        told = f"the same bits as {most} of {len(fleet)}"
        return _finding("bits", Verdict.PASS, Remedy.NONE, told, one, time_s)
    told = f"a matrix product gave bits {one.checksum}, {usual} on {most} of {len(fleet)}"
    return _finding("bits", Verdict.FAIL, Remedy.REPLACE, told, one, time_s)


def _finding(
    check: str, verdict: Verdict, remedy: Remedy, reason: str, one: Measurement, time_s: float
) -> Finding:
    return Finding(
        check=f"preflight.{check}",
        verdict=verdict,
        reason=reason,
        gpu=None if one.model == "cpu" else one.device,
        remedy=remedy,
        evidence={
            **{rate: getattr(one, rate) for rate in RATES},
            "model": one.model,
            "checksum": one.checksum,
        },
        time_s=time_s,
    )
