"""Two nodes work together for a moment: `python -m scalewright.health.pair --rank R --meet H:P`.

Started on both nodes, with ranks 0 and 1; rank 0's node is the one to meet at. Matrix products
and collectives alternate as in training, in a child with a deadline, and what is gathered is
compared with what was sent. `pairs.py` plans which nodes meet and what the results mean.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from scalewright.errors import ConfigError
from scalewright.health.child import Reply, Silent, ask_once

DEADLINE_S = 60.0
_SIZES = {"cpu": (256, 1 << 20, 5), "cuda": (4096, 64 << 20, 20)}  # matrix, bytes, repeats


@dataclass(frozen=True)
class PairResult:
    """One side's account. `work_s` is its own matrix products, `seconds` with the collectives.

    `error` is None if all went well.
    """

    error: str | None
    seconds: float | None = None
    work_s: float | None = None
    gathered_bytes_per_s: float | None = None


def meet(
    rank: int,
    place: str,
    device: str = "cpu",
    deadline_s: float = DEADLINE_S,
    environment: Mapping[str, str] | None = None,
) -> PairResult:
    """Take part in a test of two nodes as `rank` 0 or 1; never takes much longer than told.

    `place` is HOST:PORT, of rank 0's node. `environment`: what workers get set, such as the
    network that NCCL is to use. Raises `ConfigError` for what cannot be a test.
    """
    if rank not in (0, 1):
        raise ConfigError(f"rank = {rank}; a pair has ranks 0 and 1")
    if device not in _SIZES:
        raise ConfigError(f"device = {device!r}; expected {' or '.join(map(repr, _SIZES))}")
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"meet = {place!r}; expected HOST:PORT of the node with rank 0")
    question = {"rank": rank, "place": place, "device": device, "deadline_s": deadline_s}
    answer = ask_once("pair", question, deadline_s, environment)
    if isinstance(answer, Reply):
        return PairResult(**answer.value)
    if isinstance(answer, Silent):
        return PairResult(error=f"no end in {deadline_s:g} s")
    return PairResult(error=answer.reason)


def read(question: dict[str, Any]) -> Any:
    """The child's side of `meet`: join, work, leave."""
    import torch
    import torch.distributed as dist

    device = torch.device("cuda:0" if question["device"] == "cuda" else "cpu")
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"tcp://{question['place']}",
        rank=question["rank"],
        world_size=2,
        timeout=timedelta(seconds=question["deadline_s"]),
    )
    try:
        return asdict(_work(device, question["rank"]))
    finally:
        dist.destroy_process_group()


def _work(device: Any, rank: int) -> PairResult:
    import torch
    import torch.distributed as dist

    size, gathered_bytes, repeats = _SIZES[device.type]
    matrix = torch.ones(size, size, device=device)
    mine = torch.full((gathered_bytes // 4,), float(rank + 1), device=device)
    theirs = [torch.empty_like(mine) for _ in range(2)]

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    dist.all_gather(theirs, mine)  # connects
    matrix @ matrix
    work_s = gather_s = 0.0
    for _ in range(repeats):
        begin = wait()
        matrix @ matrix
        worked = wait()
        dist.all_gather(theirs, mine)
        work_s, gather_s = work_s + worked - begin, gather_s + wait() - worked
    wrong = [other for other in range(2) if not bool((theirs[other] == other + 1).all())]
    error = f"what came from rank {wrong[0]} is not what it sent" if wrong else None
    return PairResult(error, work_s + gather_s, work_s, repeats * gathered_bytes / gather_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the result as JSON; 0 if it went well, 1 if not, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="python -m scalewright.health.pair")
    parser.add_argument("--rank", type=int, required=True, help="0 or 1")
    parser.add_argument("--meet", required=True, metavar="HOST:PORT", help="at rank 0's node")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--deadline-s", type=float, default=DEADLINE_S)
    told = parser.parse_args(arguments)
    try:
        result = meet(told.rank, told.meet, told.device, told.deadline_s)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(asdict(result)))
    return 0 if result.error is None else 1


if __name__ == "__main__":
    sys.exit(main())
