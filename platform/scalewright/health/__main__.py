"""Check this node by hand: `python -m scalewright.health`."""

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from scalewright.errors import ConfigError, ScalewrightError
from scalewright.health.agent import Agent
from scalewright.health.checks import Check, light_checks
from scalewright.health.finding import Finding, Verdict, failures
from scalewright.health.machine import Machine, identify

_FIRST_LOOK_S = 90.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the light checks; 0 if none failed, 1 if one did, 2 for a wrong command line."""
    told = _parser().parse_args(arguments)
    try:
        machine = identify()
        checks = _chosen(
            light_checks(expected_gpus=told.expect_gpus, folders=told.folder), told.check
        )
        with Agent(checks, told.period_s, frozenset(told.shadow)) as agent:
            if told.watch:
                return _watch(agent, told.period_s, told.out)
            agent.wait(_FIRST_LOOK_S)
            findings = agent.look()
    except ScalewrightError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(_as_json(machine, findings) if told.json else _as_table(machine, findings))
    return 1 if failures(findings) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scalewright.health",
        description="Check this node. Exit code 0: passed or warned; 1: failed; 2: usage.",
        epilog="example: python -m scalewright.health --expect-gpus 8 --folder /mnt/runs",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--check", action="append", default=[], help="only this one; repeatable")
    parser.add_argument(
        "--shadow", action="append", default=[], help="record it, do not count it; repeatable"
    )
    parser.add_argument("--expect-gpus", type=int, default=None, help="how many there must be")
    parser.add_argument(
        "--folder", action="append", default=[], type=Path, help="storage to try; repeatable"
    )
    parser.add_argument("--period-s", type=float, default=15.0, help="between looks of --watch")
    parser.add_argument("--watch", action="store_true", help="go on until ended by a signal")
    parser.add_argument("--out", type=Path, help="append what changes to this file, as JSON lines")
    return parser


def _chosen(checks: Sequence[Check], names: Sequence[str]) -> list[Check]:
    known = sorted({check.name for check in checks})
    for name in names:
        if name not in known:
            raise ConfigError(f"--check {name}: no such check; known: {', '.join(known)}")
    return [check for check in checks if not names or check.name in names]


def _watch(agent: Agent, period_s: float, out: Path | None) -> int:
    """Tell what changes until SIGINT or SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    file = out.open("a", encoding="utf-8") if out else sys.stdout
    last: dict[tuple[str, str | None, str], Verdict] = {}
    try:
        while not ended.is_set():
            newest = {(one.check, one.gpu, _place(one)): one for one in agent.look()}
            for key, one in newest.items():
                if last.get(key) != one.verdict:
                    print(json.dumps(one.record()), file=file, flush=True)
            last = {key: one.verdict for key, one in newest.items()}
            ended.wait(min(1.0, period_s))
    finally:
        if out:
            file.close()
    return 0


def _place(finding: Finding) -> str:
    return str(finding.evidence.get("folder", ""))


def _as_json(machine: Machine, findings: Sequence[Finding]) -> str:
    return json.dumps(
        {
            "machine": {
                "serial": machine.serial,
                "source": machine.source,
                "hostname": machine.hostname,
                "boot_id": machine.boot_id,
            },
            "time_s": time.time(),
            "findings": [one.record() for one in findings],
        },
        indent=1,
    )


def _as_table(machine: Machine, findings: Sequence[Finding]) -> str:
    rows = [f"{machine.hostname}: machine {machine.serial} (from {machine.source})"]
    for one in findings:
        verdict = one.verdict.upper() + (" (shadow)" if one.shadow else "")
        where = f"{one.gpu}: " if one.gpu else ""
        remedy = f" [{one.remedy}]" if one.remedy != "none" else ""
        rows.append(f"{verdict:<8} {one.check:<18} {where}{one.reason}{remedy}")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
