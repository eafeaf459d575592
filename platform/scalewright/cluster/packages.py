"""The packages of this tree, for processes that must run the same code."""

import os
from collections.abc import Mapping
from pathlib import Path


def packages() -> list[Path]:
    """The folders of the packages, as they are imported here."""
    import planner
    import scalewright

    return [Path(module.__path__[0]) for module in (scalewright, planner)]


def with_packages(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which a child imports these packages, before any that are installed."""
    roots = [str(folder.parent) for folder in packages()]
    path = os.pathsep.join([*roots, environment.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**environment, "PYTHONPATH": path}
