"""The supervisor's end of an attempt: a child process that is told what to do and is listened to.

Neither Ray nor torch is imported here: whatever happens to them happens to the child.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from scalewright.cluster.packages import with_packages
from scalewright.errors import ScalewrightError

# Without a word for so long, a child does not come back: it is stopped, or cut off from its CPU.
SILENCE_S = 30.0


class LostError(Exception):
    """The attempt's process ended or fell silent before it said how the attempt ended."""


class AttemptProcess:
    """A process that joins the cluster and runs one attempt; it ends when this one does."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scalewright.cluster.attempt"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=with_packages(environment),
            text=True,
            # Ctrl-C in a terminal reaches all of its group; the supervisor decides what it means.
            start_new_session=True,
        )
        self._words: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._heard_s = time.monotonic()
        self._said: set[str] = set()
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        """Whether it runs and spoke of late."""
        return self._process.poll() is None and time.monotonic() - self._heard_s < SILENCE_S

    def tell(self, do: str, **fields: Any) -> None:
        """Give an order; one to a process that is gone shows when it is listened to."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()

    def hear(self, within_s: float) -> dict[str, Any] | None:
        """The next word, None if there is none in time; `LostError` if there will be none."""
        end = time.monotonic() + within_s
        while True:
            try:
                word = self._words.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                silent_s = time.monotonic() - self._heard_s
                if silent_s > SILENCE_S:
                    raise LostError(
                        f"the attempt's process said nothing for {silent_s:.0f} s"
                    ) from None
                return None
            if word is None:
                code = self._process.wait()
                raise LostError(f"the attempt's process ended {_ending(code)}")
            if word["is"] != "alive":
                return word

    def said(self, word: str) -> bool:
        """Whether this word came, also if nobody listened to it yet."""
        return word in self._said

    def wait_for(self, word: str, within_s: float) -> dict[str, Any]:
        """Listen until this word comes; an error of the child's is raised."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            heard = self.hear(within_s=max(0.1, end - time.monotonic()))
            if heard is None:
                continue
            if heard["is"] == word:
                return heard
            raise_error(heard)
        raise LostError(f"the attempt's process did not say {word!r} within {within_s:.0f} s")

    def end(self) -> None:
        """End it and all that it started, without asking."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what was not written goes nowhere
                pipe.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed by `end`
            for line in self._process.stdout:
                self._heard_s = time.monotonic()
                word = json.loads(line)
                self._said.add(word["is"])
                self._words.put(word)
        self._words.put(None)


def raise_error(word: Mapping[str, Any]) -> None:
    """Raise what a child said went wrong, if this is what it said."""
    if word["is"] == "refused":
        error = ScalewrightError(word["message"])
        error.exit_code = word["exit_code"]
        raise error
    if word["is"] == "lost":
        raise LostError(word["message"])


def _ending(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
