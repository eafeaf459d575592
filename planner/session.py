"""One call of `planner fit` or `planner report`: read, fit, plan, write; and what to tell."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.files import write_bytes
from planner.fitting.fit import Fit, FitOptions, fit_sweep
from planner.planning.cost import Hardware, targets
from planner.planning.plan import Plan, make_plan
from planner.planning.plan_file import write_plan
from planner.reading.records import Sweep, read_sweeps
from planner.reading.spec import ReadOptions
from planner.showing.report_files import remove_report
from planner.showing.results import document, to_json
from planner.showing.tables import summary

SCHEMA_VERSION = 2
LAWS_FILE, PLAN_FILE = "laws.json", "plan.toml"


@dataclass(frozen=True)
class Request:
    """Everything the command line said; `command` is itself, for the report."""

    source: str
    read: ReadOptions
    target_flops: tuple[float, ...]
    days: float | None
    hardware: Hardware
    resamples: int
    seed: int
    out: Path | None
    force: bool
    command: str


@dataclass(frozen=True)
class Outcome:
    """For people, for machines, and whether no refusal stands that was not forced."""

    summary: str
    json: str
    trusted: bool


def run(request: Request, with_report: bool) -> Outcome:
    """Do all of it; every bad input is found before anything is written."""
    sweeps = read_sweeps(request.source, request.read)
    folder = request.out or default_folder(sweeps[0])
    check_folder(folder)
    fits = [_fitted(sweep, request) for sweep in sweeps]
    documents = [document(fit, plans) for fit, plans in fits]
    whole = documents[0] if sweeps[0].group is None else _grouped(sweeps, documents)
    json = to_json(whole)
    written = _write(fits, json, folder)
    if with_report:
        from planner.showing.report import write_report

        written += write_report(fits, folder, request.command, reading=request.read)
    told = "\n\n".join(summary(fit, plans) for fit, plans in fits)
    return Outcome(
        summary=f"{told}\n\nWritten: {', '.join(map(str, written))}",
        json=json,
        trusted=request.force or all(each["trusted"] for each in documents),
    )


def default_folder(sweep: Sweep) -> Path:
    """`fit/` beside a sweep.toml; other people's data is not written into."""
    own = sweep.folder is not None and (sweep.folder / "sweep.toml").is_file()
    return sweep.folder / "fit" if own and sweep.folder else Path("fit")


def check_folder(folder: Path) -> None:
    """`InputError` where no folder can be made, or nothing written into the one there is."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"--out {folder}: {there} is no folder; name one that is, or a new one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--out {folder}: nothing can be written into {there}; name another one")


def _fitted(sweep: Sweep, request: Request) -> tuple[Fit, list[Plan]]:
    fit = fit_sweep(sweep, FitOptions(request.resamples, request.seed))
    asked = bool(request.target_flops) or request.days is not None
    if not asked and not fit.has_law_of_size:
        return fit, []  # an lr x batch grid at one size: there is nothing to plan, and no one asked
    wanted = targets(fit.largest_flops, request.target_flops, request.hardware, request.days)
    return fit, [make_plan(fit, flops, request.hardware, request.force) for flops in wanted]


def _grouped(sweeps: Sequence[Sweep], documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    groups = {str(sweep.group): each for sweep, each in zip(sweeps, documents, strict=True)}
    return {"schema_version": SCHEMA_VERSION, "groups": groups}


def _write(fits: Sequence[tuple[Fit, list[Plan]]], json: str, folder: Path) -> list[Path]:
    """laws.json, and plan.toml where there is a config; what an earlier fit left does not stay.

    Neither does its report: a page beside laws it does not tell of would pass for theirs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_report(folder)
    (folder / PLAN_FILE).unlink(missing_ok=True)
    written = [folder / LAWS_FILE]
    write_bytes(written[0], json.encode())
    first = next((plan for _, plans in fits for plan in plans if plan.config is not None), None)
    if first is not None:
        written.append(folder / PLAN_FILE)
        write_plan(first, written[-1])
    return written
