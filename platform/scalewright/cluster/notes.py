"""What a run tells the ledger, and asks it: each thing once, and none is lost to a busy disk."""

import logging
from collections import deque

from scalewright.cluster.evidence import Evidence
from scalewright.cluster.ledger import Ledger, LedgerError
from scalewright.cluster.standing import usable

logger = logging.getLogger(__name__)


class Notes:
    """A run's side of the ledger; a ledger that cannot be written does not stop the run."""

    def __init__(self, ledger: Ledger, who: str) -> None:
        self._ledger, self._who = ledger, who
        self._waiting: deque[Evidence] = deque()
        self._told: dict[tuple[str, str | None, str], int] = {}
        self._ranks: dict[str, int | None] = {}
        self._fleet = 0

    def add(self, evidence: Evidence | None) -> None:
        """Note evidence unless it was; a check repeats what it found until it finds another."""
        if evidence is None:
            return
        # Reasons begin with the name of the check, or the cause; what was measured changes.
        key = (evidence.machine, evidence.gpu, evidence.reason.partition(":")[0])
        if self._told.get(key) != evidence.attempt:
            self._told[key] = evidence.attempt
            self._waiting.append(evidence)
        self._flush()

    def fleet(self, machines: int) -> None:
        """Tell how many machines there are, when it changes."""
        if machines != self._fleet:
            try:
                self._ledger.fleet(machines, self._who)
                self._fleet = machines
            except LedgerError as error:
                logger.warning("%s", error)

    def rank(self, machine: str) -> int | None:
        """How good a machine is for placement, None if held back; the last known if unreadable."""
        try:
            self._ranks[machine] = usable(self._ledger.standing(machine))
        except LedgerError as error:
            logger.warning("%s", error)
        return self._ranks.get(machine, 0)

    def _flush(self) -> None:
        while self._waiting:
            try:
                self._ledger.note(self._waiting[0])
            except LedgerError as error:
                logger.warning("%s; noted later", error)
                return
            self._waiting.popleft()
