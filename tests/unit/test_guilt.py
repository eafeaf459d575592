"""The one that did not come is named, never those that waited for it."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalewright.health.guilt import Last, Place, behind, guilty, parse_trace, place_of
from scalewright.health.stacks import Frame, Stack, Thread, parse_faulthandler, same_place

LOOP, OTHER = 1, 2
STEP = Frame("_Worker._step", "/x/scalewright/train/worker.py", 251)
GATHER = (
    Frame("_exception_logger.<locals>.wrapper", "/v/torch/distributed/c10d_logger.py", 83),
    Frame("foreach_all_gather", "/v/torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py", 364),
    STEP,
)
SLEEP = (Frame("augment", "/x/mine.py", 11), STEP)
BACKWARD = (Frame("_engine_run_backward", "/v/torch/autograd/graph.py", 979), STEP)
ITEM = (Frame("Meter.report", "/x/scalewright/train/meter.py", 79), STEP)
DATA = (
    Frame("Condition.wait", "/lib/python3.11/threading.py", 327),
    Frame("Queue.get", "/lib/python3.11/queue.py", 171),
    Frame("Ahead.over", "/x/scalewright/train/ahead.py", 64),
    STEP,
)
COMPILE = (Frame("codegen", "/v/torch/_inductor/scheduler.py", 9), STEP)
NATIVE = (
    Frame("pthread_cond_wait", "libc.so", 0),
    Frame("gloo::transport::tcp::UnboundBuffer::waitRecv", "libtorch_cpu.so", 0),
    Frame("any", "/x/mine.py", 5),
)
SAVING = (Frame("write", "/v/torch/distributed/checkpoint/filesystem.py", 3), STEP)
SYNCHRONIZE = (Frame("synchronize", "/v/torch/cuda/__init__.py", 900), ITEM[0])


def stack(rank: int, *frames: Frame, state: str = "S", kernel: tuple[str, ...] = ()) -> Stack:
    threads = (Thread(LOOP, "", frames),) if frames else ()
    return Stack(rank, 100 + rank, LOOP, state, kernel, threads)


def world(**away: tuple[Frame, ...]) -> dict[int, Stack]:
    """Four ranks that wait in a gather, but for these (`r1=...`)."""
    return {rank: stack(rank, *away.get(f"r{rank}", GATHER)) for rank in range(4)}


@pytest.mark.parametrize(
    ("frames", "place"),
    [
        (GATHER, Place.WAITS),
        (NATIVE, Place.WAITS),
        (SYNCHRONIZE, Place.WAITS),
        (SLEEP, Place.RUNS),
        (SAVING, Place.RUNS),
        (BACKWARD, Place.RUNS),
        (DATA, Place.DATA),
        (COMPILE, Place.COMPILES),
        ((), Place.UNSEEN),
    ],
)
def test_a_stack_tells_what_the_loop_is_at(frames: tuple[Frame, ...], place: Place) -> None:
    assert place_of(stack(0, *frames)) is place


def test_a_backward_pass_in_another_thread_waits_there() -> None:
    alone = stack(0, *BACKWARD)
    joined = replace(alone, threads=(*alone.threads, Thread(OTHER, "autograd", GATHER)))
    assert place_of(joined) is Place.WAITS


@pytest.mark.parametrize("rank", range(4))
@pytest.mark.parametrize("frames", [SLEEP, SAVING, BACKWARD])
def test_the_sleeper_is_named(rank: int, frames: tuple[Frame, ...]) -> None:
    blame = guilty(world(**{f"r{rank}": frames}), {})
    assert (blame.ranks, blame.confidence, blame.cause) == ((rank,), 0.9, "hang")
    assert frames[0].function in blame.why
    assert "3 wait for a collective" in blame.why


def test_of_two_the_one_that_does_not_wait_is_named() -> None:
    assert guilty({0: stack(0, *GATHER), 1: stack(1, *SLEEP)}, {}).ranks == (1,)


def test_a_majority_that_waits_for_its_device_at_one_line_waits() -> None:
    blame = guilty(world(r0=ITEM, r1=ITEM, r2=ITEM, r3=SLEEP), {})
    assert (blame.ranks, blame.confidence) == ((3,), 0.9)


@pytest.mark.parametrize("frames", [GATHER, ITEM])
def test_all_at_the_same_place_names_nobody(frames: tuple[Frame, ...]) -> None:
    stacks = world(r0=frames, r1=frames, r2=frames, r3=frames)
    even = {rank: {"0": Last(7, "all_gather")} for rank in range(4)}
    blame = guilty(stacks, even)
    assert blame.ranks == ()
    assert blame.confidence < 0.2


def test_many_that_do_not_wait_name_nobody() -> None:
    assert guilty(world(r0=SLEEP, r1=BACKWARD, r2=DATA), {}).ranks == ()


def test_who_compiles_or_waits_for_data_is_told_apart() -> None:
    compiles, data = guilty(world(r2=COMPILE), {}), guilty(world(r2=DATA), {})
    assert (compiles.cause, compiles.confidence) == ("compile", 0.3)
    assert (data.cause, data.ranks, data.confidence) == ("data", (2,), 0.8)


def test_the_stopped_is_named_whatever_its_stack() -> None:
    stacks = world(r1=SLEEP) | {3: stack(3, *GATHER, state="T")}
    blame = guilty(stacks, {})
    assert (blame.ranks, blame.confidence) == ((3,), 0.95)


def test_one_that_waits_for_storage_in_the_kernel_is_the_storages() -> None:
    def stuck(rank: int) -> Stack:
        return stack(rank, *SLEEP, state="D", kernel=("nfs_wait_bit_killable", "rpc_wait"))

    blame = guilty(world() | {0: stuck(0)}, {})
    assert (blame.ranks, blame.cause) == ((0,), "storage")
    assert "nfs_wait_bit_killable" in blame.why
    blame = guilty(world() | {rank: stuck(rank) for rank in range(3)}, {})
    assert (blame.ranks, blame.cause) == ((), "storage")


def test_the_last_collectives_name_whom_stacks_do_not() -> None:
    traces = {rank: {"0": Last(9 if rank != 2 else 8, "all_gather")} for rank in range(4)}
    blame = guilty(world(), traces)
    assert (blame.ranks, blame.confidence) == ((2,), 0.8)
    assert "rank 2 is 1 collectives behind in group 0, after all_gather 8" in blame.why
    assert guilty(world(r2=SLEEP), traces).confidence == 0.95
    contradicted = guilty(world(r1=SLEEP), traces)
    assert (contradicted.ranks, contradicted.confidence) == ((1,), 0.5)


def test_one_that_is_behind_because_it_waits_elsewhere_is_not_named() -> None:
    # 0 waits for 1 in the rows, 2 for 0 in the columns: only 1 waits for nobody.
    traces = {
        0: {"row": Last(5, "a"), "column": Last(3, "b")},
        1: {"row": Last(4, "a")},
        2: {"column": Last(4, "b")},
    }
    assert behind(traces) == (1,)


@given(st.dictionaries(st.integers(0, 9), st.integers(1, 20), min_size=1))
def test_in_one_group_the_lowest_is_behind_unless_all_are_even(numbers: dict[int, int]) -> None:
    least = min(numbers.values())
    late = tuple(sorted(rank for rank, number in numbers.items() if number == least))
    expected = () if len(late) == len(numbers) else late
    assert behind({rank: {"g": Last(n, "op")} for rank, n in numbers.items()}) == expected


def test_a_flight_record_is_read() -> None:
    def entry(number: int, group: str, p2p: bool = False) -> dict[str, object]:
        return {
            "collective_seq_id": number, "process_group": [group, "shard"], "is_p2p": p2p,
            "profiling_name": f"gloo:op{number}",
        }  # fmt: skip

    entries = [entry(3, "0"), entry(4, "0"), entry(1, "1"), entry(9, "1", p2p=True)]
    record = {"entries": entries, "pg_config": {"1": {"ranks": "[0, 2]"}}}
    trace = parse_trace(json.dumps(record).encode())
    assert trace == {"0 shard ": Last(4, "gloo:op4"), "1 shard [0, 2]": Last(1, "gloo:op1")}


@pytest.mark.parametrize("broken", [b"", b"[]", b"null", b'{"entries": [3]}', b"\xff"])
def test_what_is_no_flight_record_tells_nothing(broken: bytes) -> None:
    assert parse_trace(broken) == {}


def test_a_dump_by_the_process_itself_is_read() -> None:
    text = (
        "Thread 0x00007f0a (most recent call first):\n"
        '  File "/a/b.py", line 12 in wait\n  File "/a/c.py", line 3 in f\n\n'
        'Current thread 0x00007f0b (most recent call first):\n  File "<string>", line 1 in g\n'
    )
    first, second = parse_faulthandler(text)
    assert first == Thread(0x7F0A, "", (Frame("wait", "/a/b.py", 12), Frame("f", "/a/c.py", 3)))
    assert second.frames == (Frame("g", "<string>", 1),)


def test_standing_at_the_same_place_needs_a_stack() -> None:
    assert same_place(stack(0, *SLEEP), stack(0, *SLEEP))
    assert not same_place(stack(0, *SLEEP), stack(0, *GATHER))
    assert not same_place(stack(0), stack(0))
