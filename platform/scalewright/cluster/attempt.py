"""A process that joins the cluster and runs one attempt when its supervisor tells it to.

    python -m scalewright.cluster.attempt

Orders come as JSON lines on stdin, word goes back as JSON lines on what was stdout. It imports and
joins before it is needed, so that an attempt that follows another begins at once. It ends with its
supervisor: when stdin does.
"""

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from scalewright.cluster import launch, preflight
from scalewright.cluster.agents import Eyes
from scalewright.cluster.fit import fit
from scalewright.cluster.monitor import Monitor
from scalewright.cluster.order import Order
from scalewright.cluster.preload import WORKER
from scalewright.cluster.survey import Surveyor
from scalewright.cluster.warm import warm
from scalewright.errors import ScalewrightError
from scalewright.health.settings import HealthConfig

ALIVE_S = 1.0  # between two words to the supervisor


class Line:
    """The line to the supervisor: what is said on it, by any thread."""

    def __init__(self) -> None:
        # Libraries print to stdout: they get stderr, and the line keeps what was stdout.
        self._file = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def say(self, word: str, **fields: Any) -> None:
        with self._lock:
            self._file.write(json.dumps({"is": word, **fields}) + "\n")
            self._file.flush()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    line, orders = Line(), sys.stdin
    threading.Thread(target=_stay_alive, args=(line,), daemon=True).start()
    line.say("imported")
    try:
        _obey(line, orders)
    except ScalewrightError as error:
        line.say("refused", message=str(error), exit_code=error.exit_code)
    except Exception as error:  # Ray's side: the supervisor tries again
        logging.getLogger(__name__).exception("the attempt's process failed")
        line.say("lost", message=f"{type(error).__name__}: {error}")
    # Without Ray's farewell: the workers end with the job, and nothing here is left to save.
    os._exit(0)


def _obey(line: Line, orders: TextIO) -> None:
    surveyor: Surveyor | None = None
    for text in orders:
        order = json.loads(text)
        match order["do"]:
            case "join":
                launch.connect(order["address"], worker_logs=order["worker_logs"])
                surveyor = _surveyor(order)
                surveyor.refresh()  # agents start here and now
                line.say("joined")
                if order["waiting"]:
                    # Whoever stands by may be needed meanwhile.
                    threading.Thread(
                        target=_get_ready, args=(line, order, surveyor), daemon=True
                    ).start()
            case "survey":
                assert surveyor is not None
                line.say(
                    "survey", nodes=[node.record() for node in surveyor.look(check=order["check"])]
                )
            case "identify":
                assert surveyor is not None
                line.say("identified", nodes=preflight.identify(surveyor.agents, order["nodes"]))
            case "measure":
                assert surveyor is not None
                threading.Thread(target=_measure, args=(line, order, surveyor), daemon=True).start()
            case "launch":
                assert surveyor is not None
                _run(line, orders, Order.read(order), surveyor)
                return
            case other:
                raise ValueError(f"order {other!r} is not known")


def _get_ready(line: Line, order: dict[str, Any], surveyor: Surveyor) -> None:
    """Have processes wait on the nodes for the attempt to come."""
    try:
        warm(surveyor.nodes, surveyor.slots(), {**WORKER, **order["variables"]})
    except Exception:  # Ray's side: the attempt begins later then, but begins
        logging.getLogger(__name__).exception("no processes wait for the next attempt")
    line.say("ready")


def _surveyor(order: dict[str, Any]) -> Surveyor:
    health = HealthConfig(**order["health"])
    eyes = Eyes(
        folders=(Path(order["folder"]),),
        expected_gpus=None,
        period_s=health.check_period_s,
        shadow=tuple(health.shadow),
        preflight=health.preflight,
    )
    return Surveyor(order["gpus_per_worker"], eyes)


def _measure(line: Line, order: dict[str, Any], surveyor: Surveyor) -> None:
    try:
        told = preflight.measure(surveyor, order["nodes"], order["variables"], again=order["again"])
    except Exception:  # Ray's side: nothing was measured, which blames nobody
        logging.getLogger(__name__).exception("nodes could not be measured")
        told = {"measured": {node: {} for node in order["nodes"]}, "rounds": []}
    line.say("measured", tag=order["tag"], **told)


def _run(line: Line, orders: TextIO, order: Order, surveyor: Surveyor) -> None:
    """One attempt to its end; a pause may be ordered meanwhile."""
    monitor = Monitor(order, surveyor, line.say)
    threading.Thread(target=_listen, args=(orders, monitor), daemon=True).start()
    with monitor:
        errors = fit(order)
        monitor.told(errors)


def _listen(orders: TextIO, monitor: Monitor) -> None:
    for text in orders:
        order = json.loads(text)
        if order["do"] == "pause":
            monitor.pause(order["reason"], order["within_s"])
    os._exit(1)  # the supervisor is gone, and with it whoever would judge the end


def _stay_alive(line: Line) -> None:
    while True:
        time.sleep(ALIVE_S)
        try:
            line.say("alive")
        except OSError:
            os._exit(1)


if __name__ == "__main__":
    main()
