"""Nodes compared: fingerprints, speed, bits; and real measurements of this one."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scalewright.errors import ConfigError
from scalewright.health import fingerprint
from scalewright.health.child import Reply, ask_once
from scalewright.health.finding import Finding, Remedy, Verdict
from scalewright.health.gpus import GpuSnapshot, NodeGpus
from scalewright.health.measure import checksum
from scalewright.health.pair import meet
from scalewright.health.preflight import (
    LastPreflight,
    Measurement,
    PreflightLimits,
    compare,
    due,
)

H100 = Measurement("GPU-1", "H100", 700e12, 3e12, 50e9, 50e9, "aaaa")
CPU = Measurement("cpu", "cpu", 1e11, 1e10, None, None, "cccc")
ROOT = Path(__file__).parents[3]


def compared(*devices: Measurement) -> list[dict[str, Finding]]:
    """For each device, on a node of its own, its findings by check."""
    measured = {f"n{index}": [one] for index, one in enumerate(devices)}
    result = compare(measured, PreflightLimits(), 1.0)
    return [{f.check.partition(".")[2]: f for f in result[node]} for node in measured]


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, Verdict.PASS),
        ({"matmul_flops_per_s": 0.96 * 700e12}, Verdict.PASS),
        ({"matmul_flops_per_s": 0.94 * 700e12}, Verdict.WARN),
        ({"memory_bytes_per_s": 0.89 * 3e12}, Verdict.FAIL),
        ({"copy_to_host_bytes_per_s": 1e9}, Verdict.FAIL),
    ],
)
def test_speed_beside_the_median_of_the_model(change: dict[str, float], verdict: Verdict) -> None:
    odd = replace(H100, device="GPU-2", **change)  # type: ignore[arg-type]
    slower = replace(H100, model="A100", matmul_flops_per_s=280e12)
    last = compared(H100, H100, slower, slower, slower, odd)
    assert (last[-1]["speed"].verdict, last[-1]["speed"].gpu) == (verdict, "GPU-2")
    assert {one["speed"].verdict for one in last[:-1]} == {Verdict.PASS}


def test_processors_may_vary_far_more() -> None:
    half = replace(CPU, matmul_flops_per_s=0.5e11)
    crawl = replace(CPU, matmul_flops_per_s=0.2e11)
    found = compared(CPU, CPU, CPU, half, crawl)
    assert [one["speed"].verdict for one in found[3:]] == [Verdict.WARN, Verdict.FAIL]
    assert found[4]["speed"].gpu is None


def test_two_devices_have_no_median() -> None:
    found = compared(H100, replace(H100, matmul_flops_per_s=1e12))
    assert {one["speed"].verdict for one in found} == {Verdict.PASS}
    assert "nothing to compare with" in found[0]["speed"].reason


def test_the_minority_computes_wrongly() -> None:
    wrong = replace(H100, device="GPU-7", checksum="bbbb")
    found = compared(H100, H100, wrong)
    assert found[2]["bits"].verdict is Verdict.FAIL
    assert found[2]["bits"].remedy is Remedy.REPLACE
    assert found[2]["bits"].gpu == "GPU-7"
    assert found[0]["bits"].verdict is Verdict.PASS
    assert {one["bits"].verdict for one in compared(H100, wrong)} == {Verdict.WARN}
    assert compared(replace(H100, checksum="unstable"))[0]["bits"].verdict is Verdict.FAIL


def test_when_a_node_is_measured_again() -> None:
    last = LastPreflight(1e9, "boot1", "light")
    assert due(None, "boot1", 1e9)
    assert not due(last, "boot1", 1e9 + 3600)
    assert due(last, "boot2", 1e9 + 3600)
    assert due(last, "boot1", 1e9 + 86_400)
    assert due(last, "boot1", 1e9 - 5)
    assert due(last, "boot1", 1e9 + 1, "full")
    assert not due(replace(last, budget="full"), "boot1", 1e9 + 1, "light")
    with pytest.raises(ConfigError, match="budget = 'deep'"):
        due(last, "boot1", 1e9, "deep")
    with pytest.raises(ConfigError, match="fail_share"):
        PreflightLimits(fail_share=0.99)


def test_a_node_that_drifts_is_not_admitted() -> None:
    usual = {"driver": "570.1", "nccl": "2.28.3", "image": "sha256:a"}
    nodes = {"a": usual, "b": usual, "c": {**usual, "nccl": "2.27.5", "image": None}}
    wrong = fingerprint.drifted(nodes, 1.0)
    assert set(wrong) == {"c"}
    assert wrong["c"].verdict is Verdict.FAIL
    assert "nccl is '2.27.5', '2.28.3' on 2 of 3 nodes" in wrong["c"].reason
    assert "image is None" in wrong["c"].reason
    assert fingerprint.drifted({"a": usual, "b": usual}, 1.0) == {}
    assert set(fingerprint.drifted({"a": usual, "c": nodes["c"]}, 1.0)) == {"a", "c"}
    assert fingerprint.drifted({}, 1.0) == {}


def test_spares_break_a_tie_and_do_nothing_else() -> None:
    a, b = {"image": "a"}, {"image": "b"}
    assert set(fingerprint.drifted({"n1": a, "n2": b}, 1.0, {"n3": b})) == {"n1"}
    assert set(fingerprint.drifted({"n1": a, "n2": b}, 1.0, {"n3": b, "n4": a})) == {"n1", "n2"}
    assert fingerprint.drifted({"n1": a, "n2": a}, 1.0, {"n3": b, "n4": b, "n5": b}) == {}


def test_what_is_not_known_is_not_compared_and_a_kernel_only_told() -> None:
    usual = {"driver": "570", "kernel": "6.1"}
    nodes = {"a": usual, "b": {"kernel": "6.1"}, "c": {**usual, "kernel": "6.2"}}
    (found,) = fingerprint.drifted(nodes, 1.0).values()
    assert (found.verdict, found.remedy) == (Verdict.WARN, Remedy.NONE)
    assert "kernel is '6.2'" in found.reason


def test_this_nodes_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALEWRIGHT_IMAGE", "sha256:abc")
    answer = ask_once("fingerprint", {}, 60)
    assert isinstance(answer, Reply)
    assert answer.value["image"] == "sha256:abc"
    assert answer.value["torch"]
    gpus = NodeGpus(
        (GpuSnapshot(index=0, name="H100", nvlinks=(True,) * 18, ecc_enabled=True),) * 2,
        driver="570",
    )
    whole = fingerprint.with_gpus(answer.value, gpus)
    assert (whole["driver"], whole["gpus"]) == ("570", "2 x H100")
    assert (whole["nvlinks"], whole["ecc"]) == ("18", "True")


def test_this_node_is_measured() -> None:
    answer = ask_once("measure", {}, 120)
    assert isinstance(answer, Reply), answer
    devices = [Measurement(**one) for one in answer.value]
    assert all(one.matmul_flops_per_s > 1e8 for one in devices)
    assert all(one.memory_bytes_per_s > 1e7 for one in devices)


def test_the_bits_are_those_of_whole_numbers() -> None:
    size = 64
    row = np.arange(size, dtype=np.int64)
    a = (31 * row[:, None] + 17 * row[None, :]) % 63 - 31
    b = (13 * row[:, None] + 29 * row[None, :]) % 61 - 30
    exact = hashlib.sha256((a @ b).astype(np.float32).tobytes()).hexdigest()[:16]
    assert checksum(torch.device("cpu"), size) == exact


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_two_nodes_work_together_and_one_alone_ends() -> None:
    place = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "scalewright.health.pair", "--meet", place]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    sides = [
        subprocess.Popen(
            [*command, "--rank", str(rank)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(2)
    ]
    told = [json.loads(side.communicate(timeout=120)[0]) for side in sides]
    assert [one["error"] for one in told] == [None, None]
    assert all(one["seconds"] >= one["work_s"] > 0 for one in told)
    assert [side.returncode for side in sides] == [0, 0]
    alone = meet(1, f"127.0.0.1:{free_port()}", deadline_s=0.5)
    assert alone.error == "no end in 0.5 s"


def test_what_cannot_be_a_pair_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank = 2"):
        meet(2, "localhost:1")
    with pytest.raises(ConfigError, match="meet = 'nowhere'"):
        meet(0, "nowhere")
    with pytest.raises(ConfigError, match="device = 'tpu'"):
        meet(0, "localhost:1", "tpu")
