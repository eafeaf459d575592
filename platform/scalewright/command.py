"""How a job ends: its exit code, and an error as one readable message instead of a traceback."""

import signal
import sys
from types import FrameType

import click

from scalewright.errors import ScalewrightError

INTERRUPTED = 130
REQUEUE = 75  # EX_TEMPFAIL: whoever ended it may run the same command again


class Terminated(KeyboardInterrupt):
    """SIGTERM: as Ctrl-C, but from whoever started the job and may start it again."""


def run(command: click.Command) -> None:
    """Run a click command as a program.

    0 done, 1 failed, 2 usage or config, 130 interrupted, 75 ended by SIGTERM. SIGTERM ends a job
    as Ctrl-C does: what it had begun is left so that it can be gone on with.
    """
    heed_sigterm()
    try:
        command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ScalewrightError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except Terminated:
        click.echo("terminated; run the same command again to go on", err=True)
        sys.exit(REQUEUE)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; run the same command again to go on", err=True)
        sys.exit(INTERRUPTED)


def heed_sigterm() -> None:
    """Let SIGTERM raise `Terminated`, also after a library has put its own handler there."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise Terminated
