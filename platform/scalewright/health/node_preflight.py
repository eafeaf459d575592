"""One node's side of the preflight: its fingerprint, its measurements, its part in tests of pairs.

Each is done in a child with a deadline, and what is known is not asked for again.
"""

import socket
import threading
from collections.abc import Mapping
from typing import Any

from scalewright.health import gpus
from scalewright.health.child import Reply, ask_once
from scalewright.health.fingerprint import Fingerprint, with_gpus
from scalewright.health.pair import PairResult, meet
from scalewright.health.preflight import BUDGETS_S, check_budget

FINGERPRINT_S = 15.0


class NodePreflight:
    """Every method may be called by any thread; what is under way is waited for, not done twice."""

    def __init__(self) -> None:
        self._measuring = threading.Lock()
        self._measured: dict[str, list[dict[str, Any]]] = {}
        self._fingerprint: Fingerprint | None = None
        self._told = threading.Event()
        self._reading: threading.Thread | None = None
        self._beginning = threading.Lock()

    def begin(self) -> None:
        """Find out the fingerprint, without anybody waiting for it."""
        with self._beginning:
            if self._reading is None:
                self._reading = threading.Thread(target=self._read, daemon=True)
                self._reading.start()

    def fingerprint(self, within_s: float) -> Fingerprint | None:
        """As it was found once; None if that failed, or is not done in time."""
        self.begin()
        self._told.wait(within_s)
        return self._fingerprint

    def measure(self, budget: str, *, again: bool = False) -> dict[str, list[dict[str, Any]]]:
        """Each device's `Measurement` as a record, by budget: the light one is part of the full.

        Empty where there was no answer in time.
        """
        check_budget(budget)
        with self._measuring:
            for each in ("light", "full") if budget == "full" else ("light",):
                if again or each not in self._measured:
                    answer = ask_once("measure", {"budget": each}, BUDGETS_S[each])
                    self._measured[each] = answer.value if isinstance(answer, Reply) else []
            return dict(self._measured)

    def meet(
        self, rank: int, place: str, device: str, within_s: float, environment: Mapping[str, str]
    ) -> PairResult:
        """Work together with another node, as `pair.meet`."""
        return meet(rank, place, device, within_s, environment)

    def _read(self) -> None:
        try:
            software = ask_once("fingerprint", {}, FINGERPRINT_S)
            if isinstance(software, Reply):
                self._fingerprint = _with_gpus(software.value)
        finally:
            self._told.set()


def free_port() -> int:
    """A port that nobody listens on, for two nodes to meet at."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def _with_gpus(software: Fingerprint) -> Fingerprint:
    """Without what NVML tells where it gives no answer: that is not known, and not compared."""
    answer = ask_once("gpus", {}, FINGERPRINT_S)
    if not isinstance(answer, Reply):
        return software
    found = gpus.from_json(answer.value)
    return software if found.broken is not None else with_gpus(software, found)
