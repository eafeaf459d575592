"""What an attempt is told to run: in JSON values, from the supervisor to the attempt's process."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from scalewright.config import merge
from scalewright.train.place import RunPlace
from scalewright.train.run import RunConfig


@dataclass(frozen=True)
class Order:
    """What an attempt runs, and how many workers on which nodes, by Ray's node id.

    `s_per_flop`: how fast steps were with as many workers before, None if there were none. `xids`:
    of attempts before, as `xid_history.to_record` writes them.
    """

    config: dict[str, Any]
    place: dict[str, Any]
    nodes: dict[str, int]
    s_per_flop: float | None = None
    xids: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> "Order":
        told = {each.name: message[each.name] for each in fields(cls)}
        return cls(**told)

    def record(self) -> dict[str, Any]:
        """The message that `read` reads."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def run_config(self) -> RunConfig:
        return merge(RunConfig(), self.config, where="the supervisor")

    @property
    def attempt(self) -> int:
        return int(self.place["attempt"])

    @property
    def folder(self) -> Path:
        return Path(self.place["folder"])


def place_record(place: RunPlace) -> dict[str, Any]:
    """A run's place in JSON values."""
    return {name: str(v) if isinstance(v, Path) else v for name, v in asdict(place).items()}


def place_of_record(record: Mapping[str, Any]) -> RunPlace:
    """The inverse of `place_record`."""
    names = ("codec_weights", "inception_weights")
    codec, inception = (Path(record[name]) if record[name] else None for name in names)
    return RunPlace(
        Path(record["folder"]), record["data"], record["attempt"], codec, inception,
        only_trusted=record["only_trusted"],
    )  # fmt: skip
