"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside `path`, then rename over it."""
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    part.write_bytes(content)
    os.replace(part, path)
