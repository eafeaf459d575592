"""The folder of checkpoints: what counts, what is set aside, who may write, what is trusted."""

import json
import os
from pathlib import Path

import pytest

from scalewright.errors import CheckpointError, ConfigError, FencedError
from scalewright.events import EVENTS_FILE, EventLog, read_events
from scalewright.train.fence import RUN_STATE, Fence
from scalewright.train.manifest import Manifest, committed, name_of, newest_verified, verify
from scalewright.train.readback import Written, read_back, sample, write_synced
from scalewright.train.vault import CheckpointConfig, Vault

CONTENT = bytes(range(256)) * 40


def vault_of(run: Path, attempt: int = 1, **settings: object) -> Vault:
    vault = Vault(
        run / "checkpoints",
        Fence(run, attempt),
        CheckpointConfig(**settings),  # type: ignore[arg-type]
    )
    vault.open()
    return vault


def written_part(vault: Vault, step: int, attempt: int = 1) -> tuple[Path, Manifest]:
    part = vault.part(step)
    part.mkdir()
    files = {"weights": write_synced(part / "weights", [memoryview(CONTENT)]).fingerprint()}
    return part, Manifest(step, attempt, 1, {}, files, read_back_bytes=len(CONTENT))


def commit(vault: Vault, *steps: int, attempt: int = 1) -> None:
    for step in steps:
        vault.commit(*written_part(vault, step, attempt))


def names(folder: Path) -> list[str]:
    return [path.name for path in committed(folder / "checkpoints")]


def replaced_by(run: Path, attempt: int, kept: dict[int, list[str]] | None = None) -> None:
    part = run / "run.json.part"
    part.write_text(json.dumps({"attempt": attempt, "kept": kept or {}}))
    os.replace(part, run / RUN_STATE)


def test_a_commit_counts_and_can_be_verified(tmp_path: Path) -> None:
    vault = vault_of(tmp_path)
    commit(vault, 4, 8)
    assert names(tmp_path) == [name_of(8), name_of(4)]
    manifest = verify(tmp_path / "checkpoints" / name_of(8))
    assert manifest.verified
    assert manifest.time_s > 1e9
    (tmp_path / "checkpoints" / name_of(8) / "weights").write_bytes(CONTENT[:-1])
    assert newest_verified(tmp_path / "checkpoints")[1].step == 4  # type: ignore[index]
    assert [m.step for _, m in vault.listing().entries] == [8, 4]


def test_a_fenced_attempt_can_neither_commit_nor_remove_nor_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vault, log = vault_of(tmp_path), EventLog(tmp_path / EVENTS_FILE, 1, Fence(tmp_path, 1).check)
    commit(vault, 4)
    log.event("one")
    part, manifest = written_part(vault, 8)
    replaced_by(tmp_path, 2)
    with pytest.raises(FencedError, match=r"attempt 1 was replaced by 2 .*run\.json") as error:
        vault.commit(part, manifest)
    assert error.value.exit_code == 75
    four = tmp_path / "checkpoints" / name_of(4)
    for forbidden in (
        lambda: vault.set_aside(four, "left", "why"), lambda: vault.trust(4), vault.open,
        lambda: commit(vault, 12),
    ):  # fmt: skip
        with pytest.raises(FencedError):
            forbidden()
    assert names(tmp_path) == [name_of(4)]
    log.event("two")
    log.event("three")
    events, _ = read_events(tmp_path / EVENTS_FILE, 0)
    assert [event.kind for event in events] == ["one"]  # type: ignore[union-attr]
    assert caplog.text.count("no more events are written: attempt 1 was replaced by 2") == 1


def test_what_slipped_through_while_the_fence_was_passed_does_not_count(tmp_path: Path) -> None:
    """Frozen between its look at the fence and its rename, the first attempt wakes up late."""
    late = vault_of(tmp_path)
    commit(late, 4)
    part, manifest = written_part(late, 8)
    late._fence.check = lambda: None  # type: ignore[method-assign]  # it has looked already
    replaced_by(tmp_path, 2, {1: [name_of(4)]})
    newer = vault_of(tmp_path, 2)  # it clears the part away, as the first one's is not over
    assert not part.exists()
    part, manifest = written_part(late, 8)
    late.commit(part, manifest)
    assert [m.step for _, m in newer.listing().entries] == [4]
    newer.retain(4)
    assert names(tmp_path) == [name_of(4)]
    commit(newer, 8, attempt=2)
    with pytest.raises(FencedError, match="committed by a newer attempt"):
        late.commit(*written_part(late, 8))
    assert verify(tmp_path / "checkpoints" / name_of(8)).attempt == 2
    # An attempt that was fenced without a list counts with all it has.
    replaced_by(tmp_path, 3)
    assert [m.step for _, m in vault_of(tmp_path, 3).listing().entries] == [8, 4]


def test_a_fence_that_cannot_be_read_stops_commits_and_no_events(tmp_path: Path) -> None:
    vault, log = vault_of(tmp_path), EventLog(tmp_path / EVENTS_FILE, 1, Fence(tmp_path, 1).check)
    (tmp_path / RUN_STATE).write_text('{"attempt": ')
    with pytest.raises(CheckpointError, match=r'run\.json: expected \{"attempt": N'):
        commit(vault, 4)
    log.event("told")
    assert len(read_events(tmp_path / EVENTS_FILE, 0)[0]) == 1


def test_what_was_left_half_done_is_cleared_away_or_put_back(tmp_path: Path) -> None:
    vault = vault_of(tmp_path)
    commit(vault, 4, 8)
    folder = tmp_path / "checkpoints"
    (folder / f"{name_of(12)}.attempt-1.part").mkdir()
    (folder / f"{name_of(12)}.attempt-3.part").mkdir()
    (folder / f"{name_of(4)}.gone.part").mkdir()
    os.replace(folder / name_of(8), folder / f"{name_of(8)}.replaced.part")
    vault_of(tmp_path, 2)
    assert sorted(path.name for path in folder.iterdir()) == [
        name_of(4), name_of(8), f"{name_of(12)}.attempt-3.part"
    ]  # fmt: skip


def test_trust_is_durable_and_goes_back_with_the_run(tmp_path: Path) -> None:
    vault = vault_of(tmp_path)
    assert vault.trusted_until is None
    for step in (9, 5):
        vault.trust(step)
    assert vault_of(tmp_path, 2).trusted_until == 9
    commit(vault, 4, 8, 12)
    assert vault.forget_after(6)
    assert not vault.forget_after(3)
    assert names(tmp_path) == [name_of(4)]
    again = vault_of(tmp_path, 2)
    assert again.trusted_until == 6
    older = Manifest(8, 1, 1, {}, {}, time_s=1e9)
    assert again.was_left(older)
    assert not again.was_left(Manifest(8, 2, 1, {}, {}, time_s=4e9))
    again.resumed(4)
    assert vault_of(tmp_path, 3).trusted_until == 4
    (tmp_path / "checkpoints" / "vault.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"vault\.json: not readable.*Delete it"):
        vault_of(tmp_path, 4)


def test_the_newest_trusted_outlives_all_and_a_full_disk_takes_the_oldest(tmp_path: Path) -> None:
    vault = vault_of(tmp_path, keep_every_s=1e9, keep_for_s=0.0, keep_every_steps=10)
    for step in range(2, 22, 2):
        commit(vault, step)
        if step == 4:
            vault.trust(5)
        vault.retain(step)
    assert names(tmp_path) == [name_of(step) for step in (20, 18, 10, 4, 2)]
    aside = vault.set_aside(tmp_path / "checkpoints" / name_of(18), "damaged", "why")
    assert vault.make_room(2**62) == [aside, tmp_path / "checkpoints" / name_of(2)]
    assert names(tmp_path) == [name_of(step) for step in (20, 10, 4)]
    assert vault.make_room(1) == []


def test_a_bit_that_turns_on_the_way_to_the_disk_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    size = 9 * 2**20
    written = write_synced(path, [memoryview(os.urandom(size))])
    assert read_back({path: written}, 2**30, 0) == size
    assert 2 * 4 * 2**20 >= read_back({path: written}, 1, 0) > 4 * 2**20  # the two ends
    with path.open("r+b") as file:
        file.seek(5 * 2**20)
        byte = file.read(1)
        file.seek(5 * 2**20)
        file.write(bytes([byte[0] ^ 4]))
    with pytest.raises(CheckpointError, match="bytes 4194304 to 8388608 do not read back"):
        read_back({path: written}, 2**30, 0)
    os.truncate(path, size - 1)
    with pytest.raises(CheckpointError, match=f"{size} bytes written, {size - 1} are there"):
        read_back({path: written}, 1, 0)


def test_what_is_read_back_is_bounded_and_has_the_ends_of_every_file() -> None:
    files = {Path(str(n)): Written(blocks=[0] * (10 * n)) for n in range(4)}
    for budget in (0, 20, 200):
        chosen = sample(files, budget * 4 * 2**20, seed=1)
        assert sum(map(len, chosen.values())) == min(60, max(6, budget))
        assert all({0, 10 * n - 1} <= set(chosen[Path(str(n))]) for n in (1, 2, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 1}, "at least 2"),
        ({"every_steps": 0}, r"checkpoint\.every_steps = 0; at least 1"),
        ({"read_back_mib": 0}, r"checkpoint\.read_back_mib = 0"),
        ({"max_missed_s": 0.0}, "must be positive"),
        ({"wait_s": -1.0}, "at least 0"),
        ({"local": "nvme"}, "relative path"),
        ({"mirror": "gs://bucket"}, "s3://bucket/prefix"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CheckpointConfig(**settings)  # type: ignore[arg-type]
