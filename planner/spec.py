"""How a table is to be read: `sweep.toml` or --spec, then --map, --where and --group."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """The reader's options of the command line, as given there."""

    maps: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    group: str | None = None
    spec: Path | None = None
