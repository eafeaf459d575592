"""A table of runs -> validated sweeps."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.findings import Finding
from planner.runs import Accounting, Rejection, Run, Stopped
from planner.spec import ReadOptions

__all__ = ["Accounting", "Rejection", "Run", "Stopped", "Sweep", "read_sweeps"]


@dataclass(frozen=True, slots=True)
class Sweep:
    """The validated table of one sweep, or of one group of it.

    `sha256` is that of the whole source; `rows` counts those read, after --where and before
    rejection. `noise` is the relative standard deviation of the loss between seeds, where stated.
    `settings` is the whole of `sweep.toml` or --spec, None without one.
    """

    source: str
    folder: Path | None
    group: str | None
    sha256: str
    rows: int
    runs: tuple[Run, ...]
    stopped: tuple[Stopped, ...]
    rejections: tuple[Rejection, ...]
    accounting: Accounting
    noise: float | None
    findings: tuple[Finding, ...]
    settings: Mapping[str, Any] | None


def read_sweeps(source: str, options: ReadOptions) -> list[Sweep]:
    """The sweep at `source`, or one for each value of --group in order of first appearance."""
    raise NotImplementedError
