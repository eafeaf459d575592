"""Faults inside a rank's own loop, put there from outside: on the PYTHONPATH of a cluster's nodes.

A rank whose number stands in the file that SABOTAGE names does in its next step what the file says,
once: {"rank": 1, "do": "sleep"}; or in each, if it says "always"; or from one "step" on.
SABOTAGE_PAUSE_S is how long each step leaves the processor to others, as one on a GPU does.
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from pathlib import Path

TARGET = "scalewright.train.worker"


def sabotaged(take_step):
    def step(training, *arguments, **settings):
        time.sleep(float(os.environ.get("SABOTAGE_PAUSE_S", "0")))
        _act(training, settings["step"])
        return take_step(training, *arguments, **settings)

    return step


def _act(training, step):
    try:
        told = json.loads(PLAN.read_text())
    except (OSError, ValueError):
        return
    if told["rank"] != training.world.rank:
        return
    if step < told.get("step", 0):
        return
    if not told.get("always"):
        PLAN.unlink()
    match told["do"]:
        case "sleep":
            time.sleep(told.get("seconds", 3600))
        case "raise":
            raise ValueError("a bug of the user's")
        case "memory":
            bytearray(1 << 50)


class Finder(importlib.abc.MetaPathFinder):
    """Lets the module be found as ever, and changes it once it is there."""

    def find_spec(self, name, path, target=None):
        if name != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            module.take_step = sabotaged(module.take_step)

        spec.loader.exec_module = exec_module
        return spec


if "SABOTAGE" in os.environ:
    PLAN = Path(os.environ["SABOTAGE"])
    sys.meta_path.insert(0, Finder())
