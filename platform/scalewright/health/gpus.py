"""Everything that NVML tells of a node's GPUs, in one look. Read, not judged.

Runs in a child (`check.py`) that stays, because NVML's event set only hears what happens while it
is open. What a GPU or driver does not support is None, never an error.
"""

import contextlib
import ctypes
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

from scalewright.health.host import KernelLog
from scalewright.health.xid import XidEvent, xid_of_line

_RECOVERY_ACTION = 230  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION; older bindings do not name it
_MOST_LINKS = 36
_MOST_EVENTS = 1000  # of one look; a GPU that errs faster than that has said enough
_DOUBLE_BIT_XID = 48  # what the driver also logs for a double-bit event
_NVLINK_ERRORS = {"replay": 0, "recovery": 1, "crc": 2}


@dataclass(frozen=True)
class Remapped:
    """Rows of memory taken out of use. `pending` ones need a reset; `failed`: none are left."""

    corrected: int
    uncorrected: int
    pending: bool
    failed: bool


@dataclass(frozen=True)
class Process:
    """A process that computes on a GPU; NVML gives its number outside of containers."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class GpuSnapshot:
    """One GPU at one moment; counters since the last reset (volatile) or ever (aggregate).

    `lost`: what NVML said instead of an answer, `needs_reset` if it will answer after a reset; then
    little else is known. `recovery_action` and
    `clock_reasons` are NVML's numbers. `nvlinks` says of each link whether it is up.
    """

    index: int
    uuid: str | None = None
    lost: str | None = None
    needs_reset: bool = False
    name: str | None = None
    serial: str | None = None
    pci_bus_id: str | None = None
    ecc_enabled: bool | None = None
    uncorrected_volatile: int | None = None
    uncorrected_aggregate: int | None = None
    corrected_volatile: int | None = None
    corrected_aggregate: int | None = None
    remapped: Remapped | None = None
    retired_pages: int | None = None
    retired_pending: bool | None = None
    nvlinks: tuple[bool, ...] = ()
    nvlink_replays: int | None = None
    nvlink_recoveries: int | None = None
    nvlink_crc_errors: int | None = None
    clock_reasons: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    pcie_generation: int | None = None
    pcie_generation_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    recovery_action: int | None = None
    processes: tuple[Process, ...] | None = None


@dataclass(frozen=True)
class NodeGpus:
    """All GPUs of a node. `absent`: why there is no NVML here, as on a node without GPUs.

    `broken`: NVML is here and refuses to work. `events`: XIDs since the last look.
    """

    gpus: tuple[GpuSnapshot, ...] = ()
    events: tuple[XidEvent, ...] = ()
    absent: str | None = None
    broken: str | None = None
    driver: str | None = None


def reader() -> Callable[[dict[str, Any]], Any]:
    """What answers with `NodeGpus` as JSON."""
    nvml = _Nvml(KernelLog())
    return lambda question: asdict(nvml.look())


def from_json(value: dict[str, Any]) -> NodeGpus:
    """The snapshot that a child answered with."""
    events = tuple(XidEvent(**event) for event in value["events"])
    return NodeGpus(
        **{**value, "gpus": tuple(_gpu(one) for one in value["gpus"]), "events": events}
    )


def _gpu(value: dict[str, Any]) -> GpuSnapshot:
    remapped, processes = value["remapped"], value["processes"]
    return GpuSnapshot(
        **{
            **value,
            "nvlinks": tuple(value["nvlinks"]),
            "remapped": None if remapped is None else Remapped(**remapped),
            "processes": None if processes is None else tuple(Process(**one) for one in processes),
        }
    )


class _LostError(Exception):
    """The GPU does not answer any more, or only after a reset."""

    def __init__(self, told: str, *, needs_reset: bool) -> None:
        super().__init__(told)
        self.needs_reset = needs_reset


class _Nvml:
    """An open NVML, its GPUs and its event set; opened again after a GPU was lost."""

    def __init__(self, log: KernelLog) -> None:
        self._log = log
        self._pynvml: ModuleType | None = None
        self._handles: list[Any] = []
        self._events: Any = None
        self._uuids: dict[int, str] = {}  # by handle, also of GPUs that are lost since
        self._buses: dict[str, str] = {}  # PCI address -> UUID

    def look(self) -> NodeGpus:
        try:
            import pynvml
        except ImportError as error:
            return NodeGpus(absent=f"{error}; install nvidia-ml-py")
        try:
            self._open(pynvml)
            gpus = tuple(self._gpu(pynvml, index) for index in range(len(self._handles)))
            # Events last: what led to one of them is then seen in the next look at the latest.
            events = (*self._nvml_events(pynvml), *self._logged_events())
            driver = _ask(pynvml, pynvml.nvmlSystemGetDriverVersion)
        except pynvml.NVMLError as error:
            self._close()
            if error.value in (
                pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
                pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
            ):
                return NodeGpus(absent=str(error))
            return NodeGpus(broken=str(error), events=self._logged_events())
        if any(gpu.lost for gpu in gpus):
            self._close()  # handles of before a reset stay dead
        return NodeGpus(gpus=gpus, events=events, driver=driver)

    def _open(self, pynvml: ModuleType) -> None:
        if self._pynvml is not None:
            return
        pynvml.nvmlInit()
        self._pynvml = pynvml
        self._handles = [_handle(pynvml, i) for i in range(pynvml.nvmlDeviceGetCount())]
        self._events = pynvml.nvmlEventSetCreate()
        wanted = pynvml.nvmlEventTypeXidCriticalError | pynvml.nvmlEventTypeDoubleBitEccError
        for handle in self._handles:
            with contextlib.suppress(pynvml.NVMLError):  # lost, or a GPU without events
                types = wanted & pynvml.nvmlDeviceGetSupportedEventTypes(handle)
                pynvml.nvmlDeviceRegisterEvents(handle, types, self._events)

    def _close(self) -> None:
        if self._pynvml is not None:
            with contextlib.suppress(self._pynvml.NVMLError):
                self._pynvml.nvmlShutdown()
        self._pynvml, self._handles, self._events, self._uuids = None, [], None, {}

    def _gpu(self, pynvml: ModuleType, index: int) -> GpuSnapshot:
        handle = self._handles[index]
        if isinstance(handle, pynvml.NVMLError):
            reset = handle.value == pynvml.NVML_ERROR_RESET_REQUIRED
            return GpuSnapshot(index=index, lost=str(handle), needs_reset=reset)
        uuid, bus = self._uuids.get(_address(handle)), None
        try:
            uuid = _ask(pynvml, pynvml.nvmlDeviceGetUUID, handle)
            pci = _ask(pynvml, pynvml.nvmlDeviceGetPciInfo, handle)
            bus = None if pci is None else _short(_text(pci.busId))
            if uuid is not None:
                self._uuids[_address(handle)] = uuid
            if uuid is not None and bus is not None:
                self._buses[bus] = uuid
            return _read(pynvml, handle, index, uuid, bus)
        except _LostError as error:
            return GpuSnapshot(
                index=index,
                uuid=uuid,
                pci_bus_id=bus,
                lost=str(error),
                needs_reset=error.needs_reset,
            )

    def _nvml_events(self, pynvml: ModuleType) -> tuple[XidEvent, ...]:
        found = []
        with contextlib.suppress(pynvml.NVMLError):  # a time-out: no more of them
            for _ in range(_MOST_EVENTS):
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
                double_bit = event.eventType == pynvml.nvmlEventTypeDoubleBitEccError
                xid = _DOUBLE_BIT_XID if double_bit else int(event.eventData)
                found.append(XidEvent(time.time(), self._uuids.get(_address(event.device)), xid))
        return tuple(found)

    def _logged_events(self) -> tuple[XidEvent, ...]:
        """XIDs in the kernel's log. A container sees those of GPUs that are not its, too."""
        found = filter(None, (xid_of_line(line) for line in self._log.new_lines()))
        return tuple(
            XidEvent(time.time(), self._buses[bus], xid) for bus, xid in found if bus in self._buses
        )


def _handle(pynvml: ModuleType, index: int) -> Any:
    """The handle, or the error of a GPU that is lost."""
    try:
        return pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError as error:
        return error


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _read(
    pynvml: ModuleType, handle: Any, index: int, uuid: str | None, bus: str | None
) -> GpuSnapshot:
    def ask(name: str, *arguments: Any) -> Any:
        return _ask(pynvml, getattr(pynvml, name, None), handle, *arguments)

    ecc = ask("nvmlDeviceGetEccMode")
    remapped = ask("nvmlDeviceGetRemappedRows")
    cause = pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR
    retired = ask("nvmlDeviceGetRetiredPages", cause)
    pending = ask("nvmlDeviceGetRetiredPagesPendingStatus")
    power_mw = ask("nvmlDeviceGetPowerUsage")
    processes = ask("nvmlDeviceGetComputeRunningProcesses")
    links = _links(ask)

    def errors(kind: int, counter: int) -> Any:
        return ask("nvmlDeviceGetTotalEccErrors", kind, counter)

    def link_errors(counter: int) -> int | None:
        counts = [
            ask("nvmlDeviceGetNvLinkErrorCounter", link, counter) for link in range(len(links))
        ]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    return GpuSnapshot(
        index=index,
        uuid=uuid,
        name=ask("nvmlDeviceGetName"),
        serial=ask("nvmlDeviceGetSerial"),
        pci_bus_id=bus,
        ecc_enabled=None if ecc is None else bool(ecc[0]),
        uncorrected_volatile=errors(1, 0),
        uncorrected_aggregate=errors(1, 1),
        corrected_volatile=errors(0, 0),
        corrected_aggregate=errors(0, 1),
        remapped=None
        if remapped is None
        else Remapped(remapped[0], remapped[1], bool(remapped[2]), bool(remapped[3])),
        retired_pages=None if retired is None else len(retired),
        retired_pending=None if pending is None else bool(pending),
        nvlinks=links,
        nvlink_replays=link_errors(_NVLINK_ERRORS["replay"]),
        nvlink_recoveries=link_errors(_NVLINK_ERRORS["recovery"]),
        nvlink_crc_errors=link_errors(_NVLINK_ERRORS["crc"]),
        clock_reasons=ask("nvmlDeviceGetCurrentClocksEventReasons"),
        temperature_c=ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
        power_w=None if power_mw is None else power_mw / 1000,
        pcie_generation=ask("nvmlDeviceGetCurrPcieLinkGeneration"),
        pcie_generation_max=ask("nvmlDeviceGetMaxPcieLinkGeneration"),
        pcie_width=ask("nvmlDeviceGetCurrPcieLinkWidth"),
        pcie_width_max=ask("nvmlDeviceGetMaxPcieLinkWidth"),
        recovery_action=_field(ask("nvmlDeviceGetFieldValues", [_RECOVERY_ACTION])),
        processes=None
        if processes is None
        else tuple(Process(one.pid, one.usedGpuMemory) for one in processes),
    )


def _links(ask: Callable[..., Any]) -> tuple[bool, ...]:
    """Whether each NVLink is up; a GPU has as many as answer from the first on."""
    links: list[bool] = []
    for link in range(_MOST_LINKS):
        state = ask("nvmlDeviceGetNvLinkState", link)
        if state is None:
            break
        links.append(bool(state))
    return tuple(links)


def _field(values: Any) -> int | None:
    """A field's number; None if this GPU or driver has no such field."""
    if values is None or values[0].nvmlReturn != 0:
        return None
    return int(values[0].value.uiVal)


def _ask(pynvml: ModuleType, function: Callable[..., Any] | None, *arguments: Any) -> Any:
    """What NVML says, None if it cannot; `_LostError` if the GPU is gone or needs a reset."""
    if function is None:  # older bindings
        return None
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        if error.value in (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED):
            needs_reset = error.value == pynvml.NVML_ERROR_RESET_REQUIRED
            raise _LostError(str(error), needs_reset=needs_reset) from None
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _short(bus: str) -> str:
    """A PCI address as the kernel writes it: NVML's domain has four digits more."""
    domain, _, rest = bus.lower().partition(":")
    return f"{domain[-4:]}:{rest.partition('.')[0]}"
