"""`python -m scalewright.cluster.ledger`: what an operator sees and orders."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from machines import HOUR_S, seen

from scalewright.cluster.ledger import Ledger
from scalewright.cluster.ledger_command import ledger as command
from scalewright.cluster.ledger_text import duration
from scalewright.errors import ScalewrightError

GPU = "GPU-5a8b2c31-77d0-4c1f-9f51-1f0d3e2a9b44"


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A fleet with one healthy, one suspect and one held machine."""
    monkeypatch.setenv("SCALEWRIGHT_HOME", str(tmp_path))
    ledger, now_s = Ledger(tmp_path / "ledger.db"), time.time()
    ledger.fleet(16, "a run")
    ledger.note(seen("full_preflight_passed", now_s - 3 * HOUR_S, "SN-0401"))
    ledger.note(seen("death", now_s - 2 * HOUR_S, "SN-0402"))
    reason = "XID 79: the GPU has fallen off the bus"
    ledger.note(seen("hardware", now_s - HOUR_S, "SN-0403", gpu=GPU, reason=reason))
    return ledger


def out_of(*arguments: str) -> str:
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert all(len(line) <= 100 for line in done.output.splitlines() if "{" not in line)
    return done.output


def test_list_shows_what_is_not_healthy_worst_first(book: Ledger) -> None:
    text = out_of("list")
    head, _, _, first, second = text.splitlines()
    assert head == "3 machines known of 16: 1 healthy, 1 suspect, 1 quarantined"
    assert re.match(r"SN-0403  quarantined  5\.0    1 h ago  in 1 d 2[23] h", first)
    assert "hardware on GPU-5a8b2c31: XID 79" in first
    assert second.startswith("SN-0402  suspect")
    assert "SN-0401  healthy" in out_of("list", "--all")
    record = json.loads(out_of("list", "--json"))
    ranks = {one["machine"]: one["rank"] for one in record["machines"]}
    assert (ranks, record["fleet"], record["known"]) == ({"SN-0402": 1, "SN-0403": None}, 16, 3)


def test_list_shouts_while_verdicts_are_frozen(book: Ledger) -> None:
    for machine in ("SN-0404", "SN-0405", "SN-0406"):
        book.note(seen("hardware", time.time(), machine))
    text = out_of("list")
    assert "VERDICTS ARE FROZEN" in text
    assert "in use all the same: SN-0406" in text
    assert json.loads(out_of("list", "--json"))["refused"] == ["SN-0406"]
    assert out_of("thaw", "--reason", "looked") == "verdicts take effect again\n"
    assert "FROZEN" not in out_of("list")
    assert out_of("thaw", "--reason", "again") == "verdicts were not frozen\n"


def test_why_tells_the_reason_what_comes_next_and_what_to_do(book: Ledger) -> None:
    text = out_of("why", "SN-0403")
    assert "SN-0403 is quarantined since" in text
    assert f"hardware on {GPU}: XID 79: the GPU has fallen off the bus" in " ".join(text.split())
    assert "or until a full preflight passes, then on probation for 7 d" in text
    assert "ledger repaired SN-0403" in text
    record = json.loads(out_of("why", "SN-0403", "--json"))
    assert (record["state"], record["history"][0]["gpu"]) == ("quarantined", GPU)
    assert "used as any" in out_of("why", "SN-0401")


def test_history_is_of_a_machine_a_gpu_or_all(book: Ledger) -> None:
    assert len(out_of("history").splitlines()) == 4
    assert out_of("history", "SN-0403") == out_of("history", GPU)
    assert out_of("history", "--last", "1").startswith("3 earlier ones not shown; --last 4 shows")
    (event,) = json.loads(out_of("history", "SN-0402", "--json"))["events"]
    assert (event["type"], event["kind"]) == ("evidence", "death")


def test_orders_take_effect_and_say_so(book: Ledger) -> None:
    assert out_of(
        "hold", "SN-0401", "--for", "1d12h", "--reason", "DIMM", "--who", "night shift"
    ) == ("SN-0401: healthy -> quarantined for 1 d 12 h\n")
    assert book.standing("SN-0401").reasons == ("hold by night shift: DIMM",)
    assert out_of("release", "SN-0401", "--reason", "r") == "SN-0401: quarantined -> healthy\n"
    assert out_of("repaired", "SN-0403", "--reason", "r") == (
        "SN-0403: quarantined -> probation for 7 d\n"
    )
    assert out_of("retire", "SN-0403", "--reason", "r") == "SN-0403: probation -> retired\n"
    record = json.loads(out_of("release", "SN-0403", "--for", "1h", "--reason", "r", "--json"))
    assert (record["before"], record["state"], record["rank"]) == ("retired", "healthy", 0)
    book.note(seen("hardware", time.time(), "SN-0403"))
    assert book.standing("SN-0403").state == "suspect"
    out_of("retire", "SN-0402", "--reason", "r")
    with pytest.raises(ScalewrightError, match="is retired, which holds it already"):
        out_of("hold", "SN-0402", "--reason", "r")


def test_an_unknown_machine_is_named_with_the_nearest(book: Ledger) -> None:
    for arguments in (("why", "SN-0430"), ("history", "SN-0430")):
        with pytest.raises(ScalewrightError, match=r"about 'SN-0430'; did you mean 'SN-0403'\?"):
            out_of(*arguments)
    with pytest.raises(ScalewrightError, match="--new orders it"):
        out_of("hold", "SN-0430", "--reason", "r")
    assert "SN-0430: healthy -> quarantined" in out_of("hold", "SN-0430", "--new", "--reason", "r")


@pytest.mark.parametrize("value", ["2", "2x", "d", "1d-2h", "0s", "2dd", ""])
def test_what_is_no_time_is_refused(book: Ledger, value: str) -> None:
    arguments = ["hold", "SN-0401", "--reason", "r", "--for", value]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2
    assert "expected a time above 0 such as 2d" in done.output
    assert book.standing("SN-0401").state == "healthy"


def module(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "scalewright.cluster.ledger", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"SCALEWRIGHT_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_the_module_runs_and_imports_nothing_heavy(book: Ledger, tmp_path: Path) -> None:
    done = module("list", home=tmp_path)
    assert done.returncode == 0
    assert "SN-0403" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "scalewright.cluster.fleet" in imported
    assert not imported & {"ray", "torch", "numpy", "sqlalchemy", "mlflow"}


def test_no_ledger_and_bad_usage_have_exit_codes(tmp_path: Path) -> None:
    missing = module("list", home=tmp_path)
    assert missing.returncode == 1
    assert f"{tmp_path}/ledger.db: there is no ledger" in missing.stderr
    assert not list(tmp_path.iterdir())
    assert module("hold", "SN-1", home=tmp_path).returncode == 2


def test_durations_are_of_two_units() -> None:
    times_s = [0, 59, 60, 61, 3600, 90061, 172799.6]
    texts = ["0 s", "59 s", "1 min", "1 min 1 s", "1 h", "1 d 1 h", "2 d"]
    assert [duration(time_s) for time_s in times_s] == texts
