"""`python -m scalewright.cluster.ledger`: what an operator sees of the ledger, and orders."""

import difflib
import getpass
import json
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from scalewright.cluster.evidence import Action, Evidence, Order
from scalewright.cluster.ledger import FILE_NAME, Ledger
from scalewright.cluster.ledger_text import (
    duration,
    event_lines,
    event_record,
    standing_record,
    standings_text,
    why_text,
)
from scalewright.errors import ConfigError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
EPILOG = """\b
Examples:
  python -m scalewright.cluster.ledger list
  python -m scalewright.cluster.ledger why SN-0412
  python -m scalewright.cluster.ledger hold SN-0412 --for 2d --reason "DIMM to be swapped"
  python -m scalewright.cluster.ledger repaired SN-0412 --reason "GPU 3 replaced"
"""
_UNITS_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([dhms])")

Command = TypeVar("Command", bound=Callable[..., Any])


class Duration(click.ParamType):
    """A time such as 2d, 12h, 30m or 1d12h, in seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, int | float):
            return float(value)
        parts = _DURATION.findall(value)
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
        if not seconds or "".join(number + unit for number, unit in parts) != value:
            self.fail(f"{value!r}: expected a time above 0 such as 2d, 12h, 30m or 1d12h")
        return seconds


def default_path() -> Path:
    """`ledger.db` in $SCALEWRIGHT_HOME or the current folder."""
    home = os.environ.get("SCALEWRIGHT_HOME")
    return (Path(home).expanduser() if home else Path.cwd()) / FILE_NAME


def _shared(command: Command) -> Command:
    """The options of every command."""
    command = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(
        command
    )
    return click.option(
        "--ledger",
        "path",
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"The ledger's file [$SCALEWRIGHT_HOME/{FILE_NAME} or ./{FILE_NAME}].",
    )(command)


def _ordering(command: Command) -> Command:
    """The options of every order."""
    command = click.option("--who", help="Who orders it [USER@HOST].")(command)
    command = click.option(
        "--new", is_flag=True, help="The machine may be one that nothing was noted about."
    )(command)
    return click.option("--reason", required=True, help="Why, for whoever reads it later.")(command)


@click.group(context_settings=CONTEXT, epilog=EPILOG)
def ledger() -> None:
    """Which machines may be used, and why not: what was seen of them, and orders about them.

    MACHINE is a serial, as `list` prints it. Orders take effect when a run next places its
    workers.
    """


@ledger.command("list", context_settings=CONTEXT)
@click.option("--all", "everything", is_flag=True, help="Show healthy machines, too.")
@_shared
def list_command(everything: bool, path: Path | None, as_json: bool) -> None:
    """Print the machines that are not healthy, worst first, and the breaker."""
    book, now_s = _open(path), time.time()
    standings, breaker = book.standings(now_s), book.breaker(now_s)
    if not as_json:
        click.echo(standings_text(standings, breaker, book.machines(), now_s, everything))
        return
    shown = {
        machine: standing
        for machine, standing in standings.items()
        if everything or standing.state != "healthy"
    }
    _echo_json(
        {
            "ledger": str(book.path),
            "time_s": now_s,
            "fleet": book.machines(),
            "known": len(standings),
            "frozen_since_s": breaker.frozen_since_s,
            "refused": sorted(breaker.refused),
            "machines": [standing_record(machine, one) for machine, one in shown.items()],
        }
    )


@ledger.command(context_settings=CONTEXT)
@click.argument("machine")
@_shared
def why(machine: str, path: Path | None, as_json: bool) -> None:
    """Print where MACHINE stands, why, what comes next, and what to do."""
    book, now_s = _open(path), time.time()
    _check_known(machine, sorted(book.standings(now_s)))
    standing, history = book.standing(machine, now_s), book.history(machine)
    if as_json:
        events = [event_record(event) for event in history]
        _echo_json({**standing_record(machine, standing), "time_s": now_s, "history": events})
    else:
        click.echo(why_text(machine, standing, history, now_s))


@ledger.command(context_settings=CONTEXT)
@click.argument("machine", required=False, metavar="[MACHINE|GPU]")
@click.option("--last", default=50, show_default=True, type=click.IntRange(1), help="Rows shown.")
@_shared
def history(machine: str | None, last: int, path: Path | None, as_json: bool) -> None:
    """Print what was noted, oldest first: of a machine, of a GPU wherever it was, or of all."""
    book = _open(path)
    events = book.history(machine)
    if machine is not None and not events:
        gpus = {one.gpu for one in book.history() if isinstance(one, Evidence) and one.gpu}
        _check_known(machine, [*sorted(book.standings()), *sorted(gpus)])
    if as_json:
        _echo_json({"events": [event_record(event) for event in events[-last:]]})
        return
    if len(events) > last:
        click.echo(f"{len(events) - last} earlier ones not shown; --last {len(events)} shows all")
    click.echo("\n".join(event_lines(events[-last:])))


@ledger.command(context_settings=CONTEXT)
@click.argument("machine")
@click.option("--for", "ttl_s", type=Duration(), help="How long, such as 2d [until released].")
@_ordering
@_shared
def hold(**options: Any) -> None:
    """Keep MACHINE from being used. A hold that ends by itself is followed by probation."""
    _order("hold", **options)


@ledger.command(context_settings=CONTEXT)
@click.argument("machine")
@click.option("--for", "ttl_s", type=Duration(), help="No verdict holds it so long, such as 12h.")
@_ordering
@_shared
def release(**options: Any) -> None:
    """Use MACHINE again at once: holding it was wrong. What was seen before no longer counts.

    A checker that goes on to call it broken has it held again, unless --for protects it.
    """
    _order("release", **options)


@ledger.command(context_settings=CONTEXT)
@click.argument("machine")
@_ordering
@_shared
def retire(**options: Any) -> None:
    """Never use MACHINE again, until it is repaired or released."""
    _order("retire", ttl_s=None, **options)


@ledger.command(context_settings=CONTEXT)
@click.argument("machine")
@_ordering
@_shared
def repaired(**options: Any) -> None:
    """Put MACHINE on probation: used where no other is left, retired by one more fault."""
    _order("repaired", ttl_s=None, **options)


@ledger.command(context_settings=CONTEXT)
@click.option("--who", help="Who orders it [USER@HOST].")
@click.option("--reason", required=True, help="Why, for whoever reads it later.")
@_shared
def thaw(who: str | None, reason: str, path: Path | None, as_json: bool) -> None:
    """Let automatic verdicts take effect again after the breaker froze them.

    Machines whose verdicts were refused stay in use until new evidence comes.
    """
    book = _open(path)
    frozen_s = book.breaker().frozen_since_s
    book.thaw(who or _who(), reason)
    if as_json:
        _echo_json({"frozen_since_s": frozen_s, "thawed": frozen_s is not None})
    else:
        click.echo("verdicts were not frozen" if frozen_s is None else "verdicts take effect again")


def _order(
    action: Action,
    *,
    machine: str,
    ttl_s: float | None,
    reason: str,
    new: bool,
    who: str | None,
    path: Path | None,
    as_json: bool,
) -> None:
    book, now_s = _open(path, create=new), time.time()
    if not new:
        hint = "; --new orders it of a machine that nothing was noted about"
        _check_known(machine, sorted(book.standings(now_s)), hint)
    before = book.standing(machine, now_s)
    if action == "hold" and before.state == "retired":
        raise ConfigError(
            f"{machine} is retired, which holds it already; repaired or release ends that"
        )
    book.order(Order(machine, action, who or _who(), reason, now_s, ttl_s))
    after = book.standing(machine, now_s)
    if as_json:
        _echo_json({**standing_record(machine, after), "before": before.state})
        return
    end = "" if after.until_s is None else f" for {duration(after.until_s - now_s)}"
    click.echo(f"{machine}: {before.state} -> {after.state}{end}")


def _open(path: Path | None, *, create: bool = False) -> Ledger:
    return Ledger(path or default_path(), create=create)


def _check_known(name: str, known: list[str], hint: str = "") -> None:
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    nearest = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"nothing was noted about {name!r}{nearest} ({len(known)} are known){hint}")


def _who() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _echo_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, allow_nan=False))
