"""MLflow stores for the tests of tracking."""

import shutil
from pathlib import Path

import pytest

from scalewright.track import absolute_uri


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")  # to see what is littered there
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: to create one takes seconds."""
    from mlflow import MlflowClient  # two seconds that the other tests here do not need

    root = tmp_path_factory.mktemp("store")
    MlflowClient(absolute_uri(None, root))
    return root / "mlflow.db"


@pytest.fixture
def root(tmp_path: Path, empty_store: Path, own_home: None) -> Path:
    """A folder of runs with its own database."""
    folder = tmp_path / "runs of us"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder
