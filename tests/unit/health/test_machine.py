"""A machine is known by a real serial, or not at all."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalewright.errors import ConfigError
from scalewright.health.machine import Machine, check_distinct, identify, is_placeholder

SERIAL = "sys/class/dmi/id/product_serial"
UUID = "sys/class/dmi/id/product_uuid"
MACHINE_ID = "etc/machine-id"


def write(root: Path, file: str, text: str) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text)


def test_the_first_real_serial_wins_and_its_source_is_told(tmp_path: Path) -> None:
    write(tmp_path, "proc/sys/kernel/random/boot_id", "b1\n")
    write(tmp_path, MACHINE_ID, "3d1219c7\n")
    assert identify({}, tmp_path).serial == "3d1219c7"
    write(tmp_path, UUID, "4c4c4544-0042\n")
    assert identify({}, tmp_path).source == f"/{UUID}"
    write(tmp_path, SERIAL, "J5XK9T3\n")
    found = identify({}, tmp_path)
    assert (found.serial, found.source, found.boot_id) == ("J5XK9T3", f"/{SERIAL}", "b1")
    assert identify({"SCALEWRIGHT_MACHINE": "rack 3"}, tmp_path).serial == "rack 3"
    assert identify({"SCALEWRIGHT_MACHINE": " "}, tmp_path).serial == "J5XK9T3"


@pytest.mark.parametrize(
    "text",
    [
        "To Be Filled By O.E.M.",
        "Default string",
        "System Serial Number",
        "0000000000",
        "00000000-0000-0000-0000-000000000000",
        "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
        "03000200-0400-0500-0006-000700080009",
        "Not Specified",
        "N/A",
        "",
        " ",
        "xxxx",
    ],
)
def test_placeholders_are_passed_over(tmp_path: Path, text: str) -> None:
    write(tmp_path, SERIAL, text)
    write(tmp_path, MACHINE_ID, "3d1219c7")
    assert identify({}, tmp_path).source == f"/{MACHINE_ID}"


def test_without_any_serial_the_way_out_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set SCALEWRIGHT_MACHINE"):
        identify({}, tmp_path)
    with pytest.raises(ConfigError, match="'none' is no serial"):
        identify({"SCALEWRIGHT_MACHINE": "none"}, tmp_path)


@settings(deadline=None)
@given(st.text(alphabet="0123456789ABCDEF", min_size=11, max_size=30))
def test_what_looks_like_a_serial_is_one(text: str) -> None:
    assert is_placeholder(text) == (len(set(text)) < 2)


def test_clones_are_told_from_nodes_on_one_machine() -> None:
    one = Machine("S1", "a", "boot1", "/etc/machine-id")
    check_distinct({"n1": one, "n2": one})
    with pytest.raises(ConfigError, match="n1 and n2 both have the serial 'S1'"):
        check_distinct({"n1": one, "n2": replace(one, boot_id="boot2")})
