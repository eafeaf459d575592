"""The layout is what CONTRIBUTING.md says, and every rule notices when it is broken."""

import importlib
import importlib.metadata
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import layout
import pytest

import scalewright

ROOT = Path(__file__).resolve().parents[1]
SCALEWRIGHT = "platform/scalewright"
MLFLOW = f"{SCALEWRIGHT}/mlflow_store.py"
STEP = f"{SCALEWRIGHT}/train/step.py"

RULES: dict[str, Callable[[Path], list[str]]] = {
    "source root": layout.source_root,
    "hidden platform": layout.hidden_platform,
    "package files": layout.package_files,
    "layers": layout.upward_imports,
    "parts": layout.unknown_parts,
    "owners": layout.foreign_imports,
    "long files": layout.long_files,
    "jobs": layout.job_files,
    "ignored sources": layout.ignored_sources,
    "cpu ranges": partial(layout.unmet_ranges, constraints="cpu.txt"),
    "gpu ranges": partial(layout.unmet_ranges, constraints="gpu.txt"),
    "constraints": layout.constraints_apart,
    "readme": layout.readme_commands,
}

# Rule, file, a statement that the rule forbids there.
IMPORTS = [
    ("layers", f"{SCALEWRIGHT}/errors.py", "from scalewright.train import run"),
    ("layers", f"{SCALEWRIGHT}/model/rope.py", "from scalewright.data import sample"),
    ("layers", f"{SCALEWRIGHT}/data/text.py", "def f(): import scalewright.objective.flow"),
    ("layers", f"{SCALEWRIGHT}/prepare/encode.py", "from scalewright.train.run import RunConfig"),
    ("layers", f"{SCALEWRIGHT}/objective/flow.py", "import scalewright.train.step as s"),
    ("layers", STEP, "from scalewright import recipes"),
    ("layers", STEP, "from scalewright.cluster import launch"),
    ("layers", STEP, "from scalewright.prepare import encode"),
    ("layers", STEP, "from . import run"),
    ("layers", STEP, "import_module('scalewright.cluster.launch')"),
    ("layers", "planner/fitting/laws.py", "from scalewright.config import assign"),
    ("layers", "planner/fitting/laws.py", "from scalewright.model import mup"),
    ("layers", "planner/reading/rows.py", "from planner.fitting.fit import Fit"),
    ("layers", "planner/planning/cost.py", "def f(): import planner.showing.tables"),
    ("layers", "jobs/pretrain.py", "from scalewright.absent import thing"),
    ("owners", "jobs/sweep.py", "import ray"),
    ("owners", STEP, "def f(): from ray import train"),
    ("owners", STEP, "import mlflow"),
    ("owners", STEP, "def f(): import pynvml"),
    ("owners", STEP, "import planner.fitting.laws"),
    ("owners", "planner/planning/plan.py", "import torch.nn"),
    ("owners", "planner/planning/plan.py", "def f(): import ray"),
    ("owners", MLFLOW, "import mlflow"),
    ("owners", f"{SCALEWRIGHT}/model/mup.py", "from mup import coord_check"),
    ("owners", f"{SCALEWRIGHT}/data/media.py", "from torchvision.io import read_image"),
    ("owners", "tests/ranks.py", "import torchvision"),
]

# Rule, file, text added at its end, what the rule then says.
ADDITIONS = [
    ("source root", "platform/__init__.py", "", "platform/__init__.py"),
    ("source root", "platform/tools.py", "", "platform/tools.py"),
    ("hidden platform", "platform/__init__.py", "", "has no attribute 'system'"),
    ("package files", f"{SCALEWRIGHT}/train/__init__.py", "import json", "has code"),
    ("package files", f"{SCALEWRIGHT}/__init__.py", "import json", "has code"),
    ("package files", f"{SCALEWRIGHT}/model/deep/x.py", "", "no __init__.py"),
    ("parts", f"{SCALEWRIGHT}/extra/__init__.py", "", "extra"),
    ("long files", "planner/fitting/laws.py", "#\n" * 400, "planner/fitting/laws.py"),
    ("jobs", "jobs/extra.py", "import sys", "first line"),
    ("jobs", "jobs/extra.py", "import sys", "not executable"),
    ("jobs", "jobs/extra.py", "import sys", "mode None in git"),
    ("ignored sources", ".gitignore", "data/", f"{SCALEWRIGHT}/data/extra.py"),
    ("constraints", "infra/constraints/cpu.txt", "nvidia-cublas==13.1.0.3", "nvidia-cublas"),
    ("constraints", "infra/constraints/cpu.txt", "triton==3.6.0", "triton"),
]

# Rule, file, text, what stands in its place, what the rule then says.
CHANGES = [
    ("cpu ranges", "pyproject.toml", '"mup>', '"absent>', "absent>=1.0,<2: not pinned"),
    ("cpu ranges", "infra/constraints/cpu.txt", "mup==1.", "mup==2.", "pinned to 2.0.0"),
    ("gpu ranges", "infra/constraints/gpu.txt", "torch==2.11.0", "torch==2.5.0", "to 2.5.0"),
    ("constraints", "infra/constraints/gpu.txt", "numpy==2", "numpy==1", "numpy"),
    ("readme", "README.md", "-c infra/constraints/cpu.txt ", "", "jobs/quickstart.py"),
    ("readme", "README.md", "-c infra/constraints/cpu.txt ", "", "-m pytest"),
]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the tree to break: a git checkout of its own."""
    leave = shutil.ignore_patterns("__pycache__")
    for folder in (ROOT / name for name in (*layout.SOURCES, "infra")):
        if folder.exists():
            shutil.copytree(folder, tmp_path / folder.name, ignore=leave)
    for name in (".gitignore", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for arguments in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True, env=layout.bare())
    return tmp_path


@pytest.mark.parametrize("rule", RULES)
def test_the_tree_keeps_the_rule(rule: str) -> None:
    assert RULES[rule](ROOT) == []


def test_every_rule_is_broken_once() -> None:
    assert {case[0] for case in (*IMPORTS, *ADDITIONS, *CHANGES)} == set(RULES)


def append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(f"\n{text}\n")


@pytest.mark.parametrize(("rule", "file", "statement"), IMPORTS)
def test_a_forbidden_import_is_found(copy: Path, rule: str, file: str, statement: str) -> None:
    append(copy / file, statement)
    last = len((copy / file).read_text().splitlines())
    (found,) = RULES[rule](copy)
    assert found.startswith(f"{file}:{last} imports ")


@pytest.mark.parametrize(("rule", "file", "text", "message"), ADDITIONS)
def test_an_addition_that_breaks_the_rule_is_found(
    copy: Path, rule: str, file: str, text: str, message: str
) -> None:
    assert RULES[rule](copy) == []
    append(copy / file, text)
    if rule == "ignored sources":
        append(copy / SCALEWRIGHT / "data" / "extra.py", "")
    assert message in "\n".join(RULES[rule](copy))


@pytest.mark.parametrize(("rule", "file", "old", "new", "message"), CHANGES)
def test_a_change_that_breaks_the_rule_is_found(
    copy: Path, rule: str, file: str, old: str, new: str, message: str
) -> None:
    assert RULES[rule](copy) == []
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new))
    assert message in "\n".join(RULES[rule](copy))


def test_a_job_that_lost_its_mode_in_git_is_found(copy: Path) -> None:
    (copy / "jobs" / "sweep.py").chmod(0o644)
    subprocess.run(["git", "add", "jobs"], cwd=copy, check=True, env=layout.bare())
    assert any("mode 100644 in git" in line for line in layout.job_files(copy))


@pytest.mark.parametrize("line", ["torch>=2.13", "--index-url x", "-e .", "torch==2.13.0+cpu"])
def test_a_constraint_that_pins_nothing_is_refused(tmp_path: Path, line: str) -> None:
    append(tmp_path / "cpu.txt", line)
    with pytest.raises(ValueError, match="one name==version a package"):
        layout.pins(tmp_path / "cpu.txt")


def test_planner_help_starts_fast_and_imports_nothing_heavy(copy: Path) -> None:
    assert layout.help_imports(ROOT) == set()
    append(copy / "planner" / "cli.py", "import numpy")
    append(copy / "planner" / "__init__.py", "import scipy")
    assert layout.help_imports(copy) >= {"numpy", "scipy"}


def test_planner_help_takes_less_than_its_limit() -> None:
    assert "fit" in layout.planner_help(ROOT).stdout
    times_s = []
    for _ in range(5):
        start_s = time.perf_counter()
        layout.planner_help(ROOT)
        times_s.append(time.perf_counter() - start_s)
    assert min(times_s) < layout.HELP_S


def test_console_scripts_exist() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for target in scripts.values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_one_version_everywhere() -> None:
    assert f"## [{scalewright.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    try:
        installed = importlib.metadata.version("scalewright")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("scalewright is not installed here, only on the path")
    assert installed == scalewright.__version__, "install again: pip install -e ."
