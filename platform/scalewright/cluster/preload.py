"""What a new process of a node imports before it is asked to: Ray runs `preload` in each first.

Imported by every process of the job, so it imports little itself.
"""

import importlib
import os
import sys
import threading
import time
from collections.abc import Iterable

# In the environment of training workers.
WORKER = {"SCALEWRIGHT_PRELOAD": "1"}
# FSDP imports the compiler as late as it can.
_OF_WORKER = ("ray.train.torch", "torch._dynamo", "scalewright.cluster.fit")
# Ray Train sets it on its controller and on what that starts, and nobody else does.
CONTROLLER = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}
# Whoever is started because it is needed is an actor by then.
_IDLE_S = 5.0
_YIELDS = 19  # the lowest priority


def preload() -> None:
    """Import what a training worker, or Ray Train's controller and its helpers, will need."""
    if WORKER.items() <= os.environ.items():
        _import_gently(_OF_WORKER)
    elif CONTROLLER.items() <= os.environ.items():
        _import_gently(["ray.train"])
        threading.Thread(target=_while_it_waits, daemon=True).start()


def _import_gently(modules: Iterable[str]) -> None:
    """Import in a thread that yields to what trains on the same cores; the process itself does not.

    A thread of its own, since who lowered its priority may not raise it again.
    """

    def import_all() -> None:
        if sys.platform == "linux":  # elsewhere a priority is that of a whole process
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _YIELDS)
        for module in modules:
            importlib.import_module(module)

    gentle = threading.Thread(target=import_all)
    gentle.start()
    gentle.join()


def _while_it_waits() -> None:
    """Import what the controller alone needs, in a process that may become one."""
    time.sleep(_IDLE_S)
    import ray

    if ray.get_runtime_context().get_actor_id() is None:
        _import_gently(["ray.train.torch"])
