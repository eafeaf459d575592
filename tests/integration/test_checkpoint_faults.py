"""Storage that fails while a run saves: full, broken, hung, cut; training goes on through it."""

import json
import os
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from faults import Faults, Mode, proxy
from ranks import CPU, notices, run_ranks, small, train_on
from servers import moto

from scalewright.errors import CheckpointError, FencedError, StorageError
from scalewright.train import interval, mirror, readback, saving
from scalewright.train.manifest import CHECKPOINTS, Manifest, committed, verify
from scalewright.train.parallel import current_world
from scalewright.train.saving import Checkpointer
from scalewright.train.training import Training, begin_training
from scalewright.train.vault import CheckpointConfig


@pytest.fixture(scope="module")
def training() -> Training:
    return begin_training(small(), current_world(CPU))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interval, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(mirror, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(saving, "COPY_PAUSES_S", (0.02, 0.02))


class Saver:
    """One run's checkpointer, its training, and what it tells."""

    def __init__(self, folder: Path, training: Training, attempt: int = 1, **settings: Any) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.folder, self.training = folder / CHECKPOINTS, training
        self.config = CheckpointConfig(**settings)
        self.extras = {"extra": b"x"}
        self.checkpoints = Checkpointer(
            folder, training.world, attempt, self.config,
            tell=lambda kind, **fields: self.told.append((kind, fields)),
        )  # fmt: skip

    def save(self, step: int) -> bool:
        """Begin a save and wait for its end; whether it began."""
        began = self.checkpoints.save(step, self.training, {"of": step}, self.extras)
        self.checkpoints.wait()
        return began is not None

    def resume(self, **how: bool) -> Manifest | None:
        return self.checkpoints.resume(self.training, **how)

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told]

    def steps(self) -> list[int]:
        return [int(path.name[5:]) for path in committed(self.folder)]


@pytest.fixture
def saver(tmp_path: Path, training: Training) -> Iterator[Callable[..., Saver]]:
    made: list[Saver] = []

    def make(attempt: int = 1, folder: str = "run", **settings: Any) -> Saver:
        made.append(Saver(tmp_path / folder, training, attempt, **settings))
        return made[-1]

    yield make
    for each in made:
        each.checkpoints.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB: of four checkpoints of `small()`."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_save_is_read_back_and_told(saver: Callable[..., Saver]) -> None:
    run = saver()
    assert run.save(4)
    (kind, fields), manifest = run.told[0], verify(run.folder / "step-00000004")
    assert kind == "saved"
    assert fields["bytes"] == fields["read_back_bytes"] == manifest.read_back_bytes
    assert manifest.files["extra"]["bytes"] == 1
    assert run.checkpoints.kept(4)


def test_a_full_disk_costs_saves_and_no_training(
    small_disk: Path, data_folder: Path, tmp_path: Path
) -> None:
    """It fills up while the run goes on, and is freed once the run has told of it twice."""
    config = small("checkpoint.every_steps=1", "log.validate_every_steps=100")
    filler, run = small_disk / "others", tmp_path / "run"
    run.mkdir()
    (run / CHECKPOINTS).symlink_to(small_disk)

    def fill_and_free() -> None:
        wait_until(lambda: len(notices(run, "saved")) >= 2)
        try:
            with filler.open("wb", buffering=0) as file:
                while file.write(bytes(2**16)):
                    pass
        except OSError:
            pass
        wait_until(lambda: len(notices(run, "save_failed")) >= 2)
        filler.unlink()

    other = threading.Thread(target=fill_and_free, daemon=True)
    other.start()
    train_on(0, config, run, data_folder)
    other.join(60)
    failed = notices(run, "save_failed")
    assert [event["alarm"] for event in failed[:2]] == [False, True]
    assert "No space left on device" in failed[0]["reason"]
    assert notices(run, "done")
    assert verify(committed(run / CHECKPOINTS)[0]).step == 12
    assert not list((run / CHECKPOINTS).glob("*.part"))


def save_beyond_a_limit(rank: int, folder: Path) -> None:
    """Rank 1 may write no file of more than 100 kB, until its second save failed."""
    world = current_world(CPU)
    training = begin_training(small(), world)
    told: list[tuple[str, dict[str, Any]]] = []
    checkpoints = Checkpointer(
        folder, world, 1, CheckpointConfig(),
        tell=lambda kind, **fields: told.append((kind, fields)),
    )  # fmt: skip
    interval.FIRST_PAUSE_S = 0.05
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, unlimited[1]))
    for step in (1, 2):
        assert checkpoints.save(step, training, {}, {}) is not None
        assert not checkpoints.kept(step)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert checkpoints.save(3, training, {}, {}) is not None
    assert checkpoints.kept(3)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, unlimited[1]))
    checkpoints._config = CheckpointConfig(max_missed_s=0.1)
    with pytest.raises(StorageError, match=r"no checkpoint for .*max_missed_s = 0\.1"):  # noqa: PT012
        for step in range(4, 1000):
            checkpoints.save(step, training, {}, {})
            time.sleep(0.01)
    checkpoints.close()
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    if rank == 0:
        (folder / "told.json").write_text(json.dumps(told))


def test_one_rank_that_cannot_write_fails_the_save_on_all_and_hangs_none(tmp_path: Path) -> None:
    run_ranks(2, save_beyond_a_limit, tmp_path)
    told = json.loads((tmp_path / "told.json").read_text())
    assert [kind for kind, _ in told[:4]] == ["save_failed", "save_failed", "saved", "save_failed"]
    assert told[0][1]["reason"].startswith("rank 1: OSError: [Errno 27] File too large")
    assert [path.name for path in committed(tmp_path / CHECKPOINTS)] == ["step-00000003"]
    assert not list((tmp_path / CHECKPOINTS).glob("*.part"))


def test_what_does_not_read_back_never_counts(
    saver: Callable[..., Saver], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saver()
    run.save(4)
    advise, flipped = os.posix_fadvise, list[int]()

    def flip(file: int, *arguments: int) -> None:
        """A bit of the file turns on the disk, once."""
        if not flipped:
            path = os.readlink(f"/proc/self/fd/{file}")
            with open(path, "r+b") as other:
                flipped.append(other.read(1)[0])
                other.seek(0)
                other.write(bytes([flipped[0] ^ 1]))
        advise(file, *arguments)

    monkeypatch.setattr(readback.os, "posix_fadvise", flip)
    run.save(8)
    assert run.kinds() == ["saved", "save_failed"]
    assert "do not read back as they were written" in run.told[1][1]["reason"]
    assert run.steps() == [4]
    assert (run.folder / "step-00000008.misread-1").is_dir()
    run.save(12)
    assert run.steps() == [12, 4]


def test_a_save_that_hangs_costs_one_wait_and_stops_the_run_at_last(
    saver: Callable[..., Saver], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sync, go_on = saver(wait_s=2.0), os.fsync, threading.Event()
    run.save(4)
    with monkeypatch.context() as hung:
        hung.setattr(os, "fsync", lambda file: go_on.wait(60) and sync(file))
        run.checkpoints.save(8, run.training, {}, {})
        stalls = []
        for step in (12, 16, 20):
            begin_s = time.monotonic()
            assert run.checkpoints.save(step, run.training, {}, {}) is None
            stalls.append(time.monotonic() - begin_s)
        assert stalls[0] >= 2.0 > stalls[1]
        assert "the save of step 8 is under way for" in run.told[-1][1]["reason"]
        run.checkpoints._config = replace(run.config, max_missed_s=0.1)
        with pytest.raises(StorageError, match="no checkpoint for"):
            run.checkpoints.save(24, run.training, {}, {})
        with pytest.raises(StorageError, match="the save of step 8 is under way"):
            run.checkpoints.kept(24)
        go_on.set()
        run.checkpoints._config = run.config
        run.checkpoints.wait()
    assert run.steps() == [8, 4]
    assert run.save(28)


def test_a_fenced_attempt_stops_at_its_next_save(saver: Callable[..., Saver]) -> None:
    run = saver()
    run.save(4)
    (run.folder.parent / "run.json").write_text(json.dumps({"attempt": 2}))
    run.checkpoints.save(8, run.training, {}, {})
    with pytest.raises(FencedError, match="attempt 1 was replaced by 2"):
        run.checkpoints.kept(8)
    with pytest.raises(FencedError):
        run.checkpoints.save(12, run.training, {}, {})
    assert run.steps() == [4]
    assert saver(attempt=2).resume().step == 4  # type: ignore[union-attr]


def test_the_folder_of_the_node_comes_first_and_is_left_out_where_it_fails(
    saver: Callable[..., Saver], small_disk: Path, tmp_path: Path
) -> None:
    run = saver(local=str(small_disk))
    run.save(4)
    assert run.steps() == [4]
    assert not list(small_disk.rglob("*.distcp"))
    (small_disk / "others").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    run.save(8)
    run.save(12)
    assert run.kinds() == ["saved", "save_failed", "saved"]
    assert run.steps() == [12, 4]
    verify(run.folder / "step-00000012")


def test_only_what_was_confirmed_is_trusted(saver: Callable[..., Saver]) -> None:
    run = saver(keep=4)
    for step in (4, 8, 12):
        run.save(step)
    with pytest.raises(CheckpointError, match="no step was confirmed yet"):
        run.resume(only_trusted=True)
    run.checkpoints.trust(9)
    again = saver(attempt=2, keep=4)
    assert again.resume(only_trusted=True).run == {"of": 8}  # type: ignore[union-attr]
    assert (run.folder / "step-00000012.untrusted-2").is_dir()
    assert again.checkpoints._vault.trusted_until == 8


def cut_newest(run: Saver) -> None:
    """The end of a file is missing, as after a power cut."""
    shard = committed(run.folder)[0] / "__0_0.distcp"
    os.truncate(shard, shard.stat().st_size // 2)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(
    saver: Callable[..., Saver],
) -> None:
    run = saver()
    run.save(4)
    cut_newest(run)
    with pytest.raises(
        CheckpointError, match=r"none of its checkpoints .*damaged.*move the folder"
    ):
        saver(attempt=2).resume()
    assert run.steps() == [4]  # nothing is touched


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with moto(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, server: str, tmp_path: Path) -> str:
    """The URL of an empty bucket; large files go there in parts."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setattr("scalewright.data.storage.READ_TIMEOUT_S", 1.0)
    name = f"checkpoints-{abs(hash(str(tmp_path)))}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}/there"


def test_the_mirror_makes_good_what_the_folder_lost(
    saver: Callable[..., Saver], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "PART_BYTES", 5 * 2**20)  # the least that S3 takes
    run = saver(mirror=bucket)
    run.extras = {"large": os.urandom(6 * 2**20)}
    for step in (4, 8, 12, 16):
        run.save(step)
        assert run.checkpoints.finish()
    assert run.kinds() == ["saved", "mirrored"] * 4
    there = run.checkpoints._mirror
    assert there is not None
    assert [manifest.step for manifest in there.manifests()] == [16, 12, 4]  # as in the folder
    before = {path.name: path.read_bytes() for path in committed(run.folder)[0].iterdir()}
    cut_newest(run)
    again = saver(attempt=2, mirror=bucket)
    assert again.resume().step == 16  # type: ignore[union-attr]
    after = {path.name: path.read_bytes() for path in committed(run.folder)[0].iterdir()}
    assert {**after, "manifest.json": b""} == {**before, "manifest.json": b""}
    shutil.rmtree(run.folder)
    assert saver(attempt=3, mirror=bucket).resume().step == 16  # type: ignore[union-attr]
    # Steps that the run went back over do not come back from the mirror either.
    last = saver(attempt=4, mirror=bucket)
    (last.folder / "step-00000012").mkdir()
    last.checkpoints._vault.leave_after(13)
    shutil.rmtree(last.folder / "step-00000016")
    assert saver(attempt=5, mirror=bucket).resume().step == 12  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["500", "stall"])
def test_a_store_that_fails_for_now_delays_the_copy_and_nothing_else(
    mode: Mode, saver: Callable[..., Saver], bucket: str, server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    faults = Faults(mode, times=1, match="step-00000004", methods=("PUT",), stall_s=2.0)
    with proxy(server, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        run = saver(mirror=bucket)
        assert run.save(4)
        assert run.checkpoints.kept(4)
        assert run.checkpoints.finish()
        assert run.kinds() == ["saved", "mirrored"]
        assert faults.damaged


def test_a_store_that_is_gone_is_told_and_an_empty_folder_then_waits_for_it(
    saver: Callable[..., Saver], bucket: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "TRIES", 2)
    faults = Faults("500", times=0, match="", methods=("GET", "PUT", "POST", "DELETE"))
    with proxy(server, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        run = saver(mirror=bucket)
        with pytest.raises(StorageError, match="whether the mirror has one is unknown"):
            run.resume()
        run.save(4)
        assert not run.checkpoints._mirror.settle(0.5)  # type: ignore[union-attr]
        assert "mirror_failed" in run.kinds()
        assert saver(attempt=2, mirror=bucket).resume().step == 4  # type: ignore[union-attr]


def test_a_run_that_saves_by_time_resumes_bit_by_bit(data_folder: Path, tmp_path: Path) -> None:
    """Saved at steps that the clock chose: what is computed does not depend on them."""
    timed = train_on(0, timed_run("checkpoint.min_s=0.0"), tmp_path / "timed", data_folder)
    whole = train_on(0, timed_run("checkpoint.min_s=9999.0"), tmp_path / "whole", data_folder)
    assert [event["step"] for event in notices(whole, "save")] == [12]
    assert all(event["stall_s"] > 0 for event in notices(timed, "save"))
    saved = committed(timed / CHECKPOINTS)
    for path in saved[:-1]:
        shutil.rmtree(path)
    train_on(0, timed_run("checkpoint.min_s=9999.0"), timed, data_folder, attempt=2)
    assert notices(timed, "attempt")[-1]["start_step"] == int(saved[-1].name[5:])
    for name in ("__0_0.distcp",):
        one, other = (run / CHECKPOINTS / "step-00000012" / name for run in (timed, whole))
        assert one.read_bytes() == other.read_bytes()


def timed_run(*settings: str) -> Any:
    config = small("log.every_steps=2", *settings)
    return replace(config, checkpoint=replace(config.checkpoint, every_steps=None))


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not holds() and time.monotonic() < deadline_s:
        time.sleep(0.01)
