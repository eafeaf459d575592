"""What software and hardware a node has, and which nodes differ from the others.

A node with another driver, NCCL or image computes something else, or hangs in the first
collective; it is not admitted. Nothing here imports torch: versions stand in the packages'
metadata. The GPU's side comes from the `gpus` reading.
"""

import importlib.metadata
import importlib.util
import os
import platform
import runpy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scalewright.health.finding import Finding, Remedy, Verdict
from scalewright.health.gpus import NodeGpus

IMAGE = "SCALEWRIGHT_IMAGE"  # what the node was started from, such as an image's digest
_NCCL = ("nvidia-nccl-cu13", "nvidia-nccl-cu12")
_PORTS = Path("/sys/class/infiniband")
_TOLD_ONLY = frozenset({"kernel"})

Fingerprint = Mapping[str, str | None]


def read(question: dict[str, Any]) -> Any:
    """The software of this node; None where there is no such thing."""
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "torch": _version("torch"),
        "cuda": _cuda(),
        "nccl": next(filter(None, map(_version, _NCCL)), None),
        "image": os.environ.get(IMAGE) or None,
        "infiniband_ports": str(len(list(_PORTS.glob("*/ports/*")))),
    }


def with_gpus(fingerprint: Fingerprint, gpus: NodeGpus) -> Fingerprint:
    """The fingerprint with what NVML tells: driver, models, links and whether ECC is on."""
    models = Counter(gpu.name or "unknown" for gpu in gpus.gpus)
    links = {sum(gpu.nvlinks) for gpu in gpus.gpus}
    ecc = {gpu.ecc_enabled for gpu in gpus.gpus}
    return {
        **fingerprint,
        "driver": gpus.driver,
        "gpus": ", ".join(f"{count} x {name}" for name, count in sorted(models.items())) or None,
        "nvlinks": ", ".join(map(str, sorted(links))) or None,
        "ecc": ", ".join(sorted(map(str, ecc))) or None,
    }


def drifted(
    fingerprints: Mapping[str, Fingerprint],
    time_s: float,
    spares: Mapping[str, Fingerprint] | None = None,
) -> dict[str, Finding]:
    """The nodes that differ from most, each with all that differs; pure.

    `fingerprints` is keyed by node. A value that most nodes have is right; where two are as
    frequent the `spares` have a vote, and if that is no help nobody is right, and all of those
    nodes are named: such a run must not start. What is not known of a node is not compared. A
    kernel of its own is told and no failure: nodes are updated one after the other.
    """
    wrong: dict[str, list[tuple[str, str]]] = {}
    for key in sorted({key for one in fingerprints.values() for key in one}):
        values = {node: one[key] for node, one in fingerprints.items() if key in one}
        counts = _counted(values.values())
        if _tied(counts):
            votes = (one[key] for one in (spares or {}).values() if key in one)
            counts = _counted([*values.values(), *votes])
        usual, most = counts[0]
        for node, value in values.items():
            if _tied(counts):
                told = " and ".join(f"{each!r} on {count}" for each, count in counts)
                wrong.setdefault(node, []).append((key, f"{key} is {value!r}; {told} nodes"))
            elif value != usual:
                of = sum(count for _, count in counts)
                told = f"{key} is {value!r}, {usual!r} on {most} of {of} nodes"
                wrong.setdefault(node, []).append((key, told))
    return {node: _finding(told, fingerprints[node], time_s) for node, told in wrong.items()}


def _counted(values: Iterable[str | None]) -> list[tuple[str | None, int]]:
    return Counter(values).most_common()


def _tied(counts: Sequence[tuple[str | None, int]]) -> bool:
    return len(counts) > 1 and counts[1][1] == counts[0][1]


def _finding(wrong: Sequence[tuple[str, str]], fingerprint: Fingerprint, time_s: float) -> Finding:
    fails = any(key not in _TOLD_ONLY for key, _ in wrong)
    reasons = "; ".join(told for _, told in wrong)
    return Finding(
        check="fingerprint",
        verdict=Verdict.FAIL if fails else Verdict.WARN,
        reason=f"not admitted: {reasons}" if fails else reasons,
        remedy=Remedy.INSPECT if fails else Remedy.NONE,
        evidence={"fingerprint": dict(fingerprint)},
        time_s=time_s,
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cuda() -> str | None:
    """The CUDA that torch was built for, from its version file: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version = Path(spec.origin).with_name("version.py")
    return runpy.run_path(str(version)).get("cuda") if version.exists() else None
