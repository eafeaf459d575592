#!/usr/bin/env python3
"""The loader against its peers: MB/s, CPU and memory, from a folder, from S3, from S3 far away.

    pip install mosaicml-streaming litdata webdataset        # in a venv of their own
    export AWS_ENDPOINT_URL=... AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...
    benchmarks/loader_speed.py DATA > benchmarks/loader_speed-MACHINE.md

Writes about 8 GB of data under DATA and into a bucket, once. Rows are processes of their own, which
take turns, and count with their best of some rounds, for whatever else a machine does only
slows them. CPU is that of the row's processes, not the server's, which shares the machine here. Far
away is the same server behind a relay that holds every request for 40 ms.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import datetime
import json
import os
import platform
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import click

from benchmarks.loader_data import upload, write
from benchmarks.loader_rows import ROWS

PEERS = ("mds", "litdata", "wds")
DELAY_S = 0.04
Result = dict[str, Any]

TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "From S3": (("plain", "ours", "ours_near", *PEERS), ("--s3",)),
    "From S3, as packs of 25 latent frames, one tensor each": (
        ("ours", "ours_hot", *PEERS), ("--s3", "--packs"),
    ),
    "From S3, 40 ms away": (("plain", "ours", "ours_near", *PEERS), ("--s3",)),
    "From a folder, in the page cache": (("plain", "ours", *PEERS), ()),
}  # fmt: skip
FAR = "From S3, 40 ms away"
TOLD = {
    "plain": "plain reads of 8 MiB, 16 at a time",
    "ours": "**ours**, all clips shuffled",
    "ours_near": "**ours**, shuffled in blocks of 64 clips",
    "ours_hot": "**ours**, through a hot volume",
    "mds": "mosaicml-streaming",
    "litdata": "litdata",
    "wds": "WebDataset",
}


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--size", default=2_000_000_000, show_default=True, help="Bytes of clips.")
@click.option("--rounds", default=2, show_default=True, help="Of which the best counts.")
@click.option("--table", multiple=True, type=click.Choice(list(TABLES)), help="Only these.")
def main(data: Path, size: int, rounds: int, table: tuple[str, ...]) -> None:
    """Print the tables as Markdown; what runs meanwhile is told on stderr."""
    write(data, size)
    upload(data)
    print("# The loader against its peers\n")
    print(f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, "
          f"{datetime.date.today()}; {_versions()}.\n")  # fmt: skip
    for title in table or TABLES:
        rows, options = TABLES[title]
        with _far_away() if title == FAR else _as_it_is() as environment:
            found: dict[str, list[Result]] = {row: [] for row in rows}
            for _ in range(rounds):
                for row in rows:
                    if result := _run(row, data, options, environment):
                        found[row].append(result)
        _print(title, found)
    checked = [_run("ours", data, (*way, "--check"), dict(os.environ)) for way in ((), ("--s3",))]
    if not all(each and each["wrong"] == 0 for each in checked):
        raise click.ClickException(f"wrong bytes: {checked}")
    print("Every byte of ours was compared with what was written, in passes of their own.")


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    names, found = ("torch", "boto3", "mosaicml-streaming", "litdata", "webdataset"), []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} is not installed")
    return ", ".join(found)


def _run(row: str, data: Path, options: tuple[str, ...], environment: dict[str, str]) -> Result:
    """A pass in a process of its own; nothing where the row cannot run here."""
    script = ROOT / "benchmarks" / "loader_rows.py"
    done = subprocess.run(
        [sys.executable, str(script), row, str(data), str(data / "scratch"), *options],
        capture_output=True, text=True, env=environment, timeout=600,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        print(f"{row} {options}: exit {done.returncode}\n{done.stderr[-800:]}", file=sys.stderr)
        return {}
    print(lines[-1], file=sys.stderr)
    found: Result = json.loads(lines[-1])
    return found


def _print(title: str, found: dict[str, list[Result]]) -> None:
    packs = "packs" in title
    print(f"## {title}\n")
    columns = ["", "MB/s", "of the best peer", "CPU s/GB", "first s", "peak MB"]
    print("| " + " | ".join([*columns, "packs/s"] if packs else columns) + " |")
    print("| --- " + "| ---: " * (len(columns) - 1 + packs) + "|")
    rates = {row: max((r["MB_per_s"] for r in each), default=0.0) for row, each in found.items()}
    best_peer = max((rates[row] for row in PEERS if row in rates), default=0.0)
    for row, results in found.items():
        if not results:
            print(f"| {TOLD[row]} | did not run " + "| " * (len(columns) - 2 + packs) + "|")
            continue
        least = {
            key: min(r[key] for r in results) for key in ("cpu_s_per_GB", "first_s", "peak_MB")
        }
        cells = [
            TOLD[row], f"{rates[row]:.0f}", f"{rates[row] / best_peer:.2f}" if best_peer else "",
            f"{least['cpu_s_per_GB']:.2f}", f"{least['first_s']:.2f}", f"{least['peak_MB']:.0f}",
        ]  # fmt: skip
        if packs:
            cells.append(f"{max(r['packs_per_s'] for r in results):.0f}")
        print("| " + " | ".join(cells) + " |")
    print(flush=True)
    for row in rates:
        lost = {r["distinct"] for r in found[row]} if row != "plain" else set()
        if len(lost) > 1:
            print(f"{TOLD[row]} gave {sorted(lost)} clips.\n")


@contextmanager
def _as_it_is() -> Iterator[dict[str, str]]:
    yield dict(os.environ)


@contextmanager
def _far_away() -> Iterator[dict[str, str]]:
    """The server behind a relay of bytes that holds what clients send for a while."""
    server = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def pump(source: socket.socket, sink: socket.socket, delay_s: float) -> None:
        buffer = memoryview(bytearray(2**20))
        try:
            while count := source.recv_into(buffer):
                time.sleep(delay_s)
                sink.sendall(buffer[:count])
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            sink.close()

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            upstream = socket.create_connection((server.hostname, server.port))
            for ends in ((client, upstream, DELAY_S), (upstream, client, 0.0)):
                threading.Thread(target=pump, args=ends, daemon=True).start()

    with closing(listener):
        threading.Thread(target=serve, daemon=True).start()
        port = listener.getsockname()[1]
        yield os.environ | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}


if __name__ == "__main__":
    assert set(TOLD) == set(ROWS)
    main()
