"""Which machine is this? Its serial outlives addresses, names, containers and reinstallation.

The first source that holds a real serial is taken and named: `SCALEWRIGHT_MACHINE`, the DMI
serial, the DMI UUID (both readable by root alone), `/etc/machine-id`.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scalewright.errors import ConfigError

VARIABLE = "SCALEWRIGHT_MACHINE"
_FILES = (
    "sys/class/dmi/id/product_serial",
    "sys/class/dmi/id/product_uuid",
    "etc/machine-id",
)
_BOOT_ID = "proc/sys/kernel/random/boot_id"
_LONGEST = 128

# What vendors leave in the field, in lower case without blanks, dots and dashes.
_PLACEHOLDERS = frozenset(
    {
        "tobefilledbyoem",
        "defaultstring",
        "systemserialnumber",
        "chassisserialnumber",
        "serialnumber",
        "notspecified",
        "notavailable",
        "notapplicable",
        "notpresent",
        "unknown",
        "uninitialized",
        "none",
        "null",
        "na",
        "n/a",
        "oem",
        "invalid",
        "empty",
        "default",
        "test",
        "0123456789",
        "123456789",
        "1234567890",
        "12345678",
        "03000200040005000006000700080009",  # AMI's example UUID, shipped by many boards
    }
)


@dataclass(frozen=True)
class Machine:
    """A machine, known by its serial; `boot_id` changes when it is booted.

    `source` tells where the serial is from: a variable or a file.
    """

    serial: str
    hostname: str
    boot_id: str
    source: str


def identify(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> Machine:
    """This machine. Raises `ConfigError` where no source gives a real serial."""
    serial, source = _serial(environment, root)
    return Machine(serial, socket.gethostname(), _read(root / _BOOT_ID), source)


def is_placeholder(serial: str) -> bool:
    """Whether a vendor's default stands where a serial should; then many machines share it."""
    plain = "".join(c for c in serial.lower() if c not in " \t.-_")
    return len(set(plain)) < 2 or plain in _PLACEHOLDERS


def check_distinct(machines: Mapping[str, Machine]) -> None:
    """Refuse nodes that share a serial though they were booted apart, as clones of one image are.

    `machines` is keyed by any name of a node. Several nodes on one machine share the boot, too.
    """
    seen: dict[str, str] = {}
    for node, machine in machines.items():
        other = seen.setdefault(machine.serial, node)
        if machines[other].boot_id != machine.boot_id:
            raise ConfigError(
                f"nodes {other} and {node} both have the serial {machine.serial!r} (from "
                f"{machine.source}) but were booted apart: two machines would share one history; "
                f"set {VARIABLE} on each to a serial of its own"
            )


def _serial(environment: Mapping[str, str], root: Path) -> tuple[str, str]:
    told = environment.get(VARIABLE, "").strip()
    if told:
        if is_placeholder(told) or len(told) > _LONGEST or not told.isprintable():
            raise ConfigError(
                f"{VARIABLE} = {told!r} is no serial; expected printable text of 2 to {_LONGEST} "
                "characters that no other machine has"
            )
        return told, VARIABLE
    for file in _FILES:
        found = _read(root / file)
        if not is_placeholder(found):
            return found[:_LONGEST], f"/{file}"
    raise ConfigError(
        f"no serial of this machine in /{', /'.join(_FILES)} (missing, unreadable or a vendor's "
        f"placeholder); set {VARIABLE} to a name that only this machine has"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip().strip("\0")
    except OSError:
        return ""
