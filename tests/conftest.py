"""Fixtures that several test files share."""

import os
import sys
from pathlib import Path

import pytest
from folders import write_data_folder

# mup brings torchvision along, which nothing here uses; where its build does not fit torch's,
# diffusers fails to import as long as it finds it.
sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data folder of 48 small clips; tests only read it."""
    return write_data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real clips and sweeps, which only some machines have."""
    folder = os.environ.get("SCALEWRIGHT_TEST_DATA")
    if not folder:
        pytest.skip("SCALEWRIGHT_TEST_DATA is not set: no real clips and sweeps on this machine")
    return Path(folder)
