"""Processes that wait on the nodes with everything imported, for the attempt to come.

Importing torch and Ray Train takes longer than all else of a restart. Ray hands a process that
never ran anything to the next actor of the same job whose runtime environment is the same. Nothing
public has it start such a process ahead, so every raylet is asked for them by the call that Ray's
own language bindings have; what `preload.py` imports is there by the time they are needed.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.utils import get_runtime_env_info
from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc
from ray.runtime_env import RuntimeEnv
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scalewright.cluster.preload import CONTROLLER

logger = logging.getLogger(__name__)

# Ray Train's controller, and the actors that it starts beside itself for each attempt.
_ACTORS = 4
_ANSWER_S = 10.0
_ONE_STARTS_S = 5.0
_KEPT_S = 10**9


def warm(
    nodes: Mapping[str, Mapping[str, Any]], slots: Mapping[str, int], variables: Mapping[str, str]
) -> None:
    """Have as many processes wait on each node as it has slots, and a few for the controller here.

    `nodes` are as Ray lists them, and `slots` workers, both by Ray's node id; `variables` are what
    workers get set. A process that is not there when it is needed is started then.
    """
    here = ray.get_runtime_context().get_node_id()
    sample = _Sample.options(
        runtime_env={"env_vars": {**CONTROLLER, **get_env_vars_to_propagate()}},
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
    ).remote()
    of_controller = ray.get(sample.own.remote())
    of_workers = sample.of_child.remote(dict(variables))  # it imports all that a worker does
    for _ in range(_ACTORS):
        # A raylet starts as many at a time as it has CPUs, and forgets the others: a head has none.
        _start(nodes[here], of_controller, 1)
        time.sleep(_ONE_STARTS_S)
    for node, count in slots.items():
        _start(nodes[node], ray.get(of_workers), count)
    ray.kill(sample)


class _Sampled:
    """Tells runtime environments as Ray writes them, of actors made as Ray Train makes its own.

    A process is taken only if its environment is equal to the letter.
    """

    def own(self) -> str:
        return ray.get_runtime_context().get_runtime_env_string()

    def of_child(self, variables: dict[str, str]) -> str:
        set_on_it = {**get_env_vars_to_propagate(), **variables}
        child = _Sample.options(runtime_env={"env_vars": set_on_it}).remote()
        its: str = ray.get(child.own.remote())
        ray.kill(child)
        return its


_Sample: Any = ray.remote(num_cpus=0)(_Sampled)


def _start(node: Mapping[str, Any], environment: str, count: int) -> None:
    info = get_runtime_env_info(RuntimeEnv.deserialize(environment))
    info.serialized_runtime_env = environment
    request = node_manager_pb2.PrestartWorkersRequest(
        language=common_pb2.PYTHON,
        job_id=bytes.fromhex(ray.get_runtime_context().get_job_id()),
        runtime_env_info=info,
        keep_alive_duration_secs=_KEPT_S,
        num_workers=count,
    )
    address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    with init_grpc_channel(address) as channel:
        try:
            node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(
                request, timeout=_ANSWER_S
            )
        except grpc.RpcError as error:
            logger.warning("%s has no process wait for the next attempt: %s", address, error)
