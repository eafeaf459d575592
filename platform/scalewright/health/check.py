"""The child that reads one thing of this node: `python -m scalewright.health.check READING`.

Questions come as lines of JSON on standard input, answers go as lines to standard output. It ends
with its input, and the kernel kills it when its parent dies.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from scalewright.health.child import READY

Reader = Callable[[dict[str, Any]], Any]

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answer questions until the input ends."""
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    answers.write(READY.decode())
    answers.flush()
    reader = _open(sys.argv[1])
    for line in sys.stdin:
        answers.write(json.dumps(_answer(reader, json.loads(line))) + "\n")
        answers.flush()


def _open(reading: str) -> Reader:
    """What answers the questions of one reading; it holds open whatever it needs.

    Imported here, in the child alone: NVML and torch may hang, and are slow to import.
    """
    match reading:
        case "gpus":
            from scalewright.health import gpus

            return gpus.reader()
        case "host":
            from scalewright.health import host

            return host.reader()
        case "storage":
            from scalewright.health import storage

            return storage.read
        case "fingerprint":
            from scalewright.health import fingerprint

            return fingerprint.read
        case "measure":
            from scalewright.health import measure

            return measure.read
        case "pair":
            from scalewright.health import pair

            return pair.read
        case "echo":
            return lambda question: question
        case _:
            sys.exit(f"no reading {reading!r}")


def _answer(reader: Reader, question: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"value": reader(question)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get("SCALEWRIGHT_PARENT", str(os.getppid())) != str(os.getppid()):
        sys.exit("the parent died before this child began")


if __name__ == "__main__":
    main()
