"""The rules of the layout, each a function from a root folder to what breaks it there."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

INSTALL = (
    'python3 -m venv .venv && .venv/bin/pip install -q -c infra/constraints/cpu.txt -e ".[test]"'
)
MAX_LINES = 400
HELP_S = 0.3

SOURCES = ("platform", "planner", "jobs", "tests", "benchmarks")

# What each part of the platform may import of it, besides itself. The base knows nothing above it.
BASE = {"errors", "config", "events", "progress", "mlflow_store", "track", "command", "heartbeat"}
BELOW: dict[str, set[str]] = dict.fromkeys(BASE, BASE)
BELOW["health"] = BASE
BELOW["model"] = BASE
BELOW["data"] = BASE | {"model"}
BELOW["objective"] = BELOW["data"] | {"data"}
BELOW["prepare"] = BELOW["data"] | {"data"}
BELOW["train"] = BELOW["objective"] | {"objective", "health"}
BELOW["recipes"] = BELOW["train"] | {"train"}
BELOW["cluster"] = BELOW["train"] | {"train"}
JOBS = set(BELOW) | {"__version__"}

# The planner's stages, in the order that data pass them; each imports those before it.
STAGES = ("reading", "fitting", "planning", "designing", "showing")

# What the planner knows of the platform: pure arithmetic of a model's sizes.
SIZES = ("shape", "memory")

# Who alone may import a package, by the beginning of its path.
MEASURED = ("tests/", "benchmarks/")
OWNERS: dict[str, tuple[str, ...]] = {
    "ray": ("platform/scalewright/cluster/", *MEASURED),
    "mlflow": ("platform/scalewright/mlflow_store.py", "planner/reading/tracked.py", *MEASURED),
    "torch": ("platform/", "jobs/", *MEASURED),
    "boto3": ("platform/scalewright/data/storage.py", *MEASURED),
    "botocore": ("platform/scalewright/data/storage.py", *MEASURED),
    "sqlalchemy": ("platform/scalewright/data/catalogue.py", *MEASURED),
    "pynvml": ("platform/scalewright/health/gpus.py", *MEASURED),  # a driver may hang its caller
    "planner": ("planner/", "jobs/", "platform/scalewright/cluster/packages.py", *MEASURED),
    "torchvision": (),  # mup asks for it; its CUDA build cannot be imported beside a CPU torch
    "mup.coord_check": (),  # imports seaborn
    "jobs": (),
}
LAZY = ("mlflow",)  # two seconds to import, so only inside functions


@dataclass(frozen=True)
class Import:
    """One imported name: `from a.b import c` is `a.b.c`."""

    file: str
    line: int
    name: str
    lazy: bool

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line} imports {self.name}"

    def inside(self, module: str) -> bool:
        return self.name == module or self.name.startswith(f"{module}.")


def python_files(root: Path) -> list[Path]:
    found = (path for folder in SOURCES for path in (root / folder).rglob("*.py"))
    return sorted(path for path in found if "__pycache__" not in path.parts)


def imports(root: Path) -> list[Import]:
    """Every import of every Python file under `root`, also those inside functions."""
    found = ((path.relative_to(root).as_posix(), path.read_text()) for path in python_files(root))
    return [one for file, text in found for one in _imports_of(file, text)]


@cache
def _imports_of(file: str, text: str) -> list[Import]:
    return [
        Import(file, node.lineno, name, lazy)
        for node, lazy in _statements(ast.parse(text), lazy=False)
        for name in _names(node)
    ]


def _statements(node: ast.AST, *, lazy: bool) -> Iterator[tuple[ast.stmt | ast.expr, bool]]:
    """Each statement and expression below, and whether importing the module leaves it out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.expr):
            yield child, lazy
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _statements(child, lazy=lazy or function or typing_only)


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        start = "." * node.level + (node.module or "")
        return [f"{start}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
        ("import_module", "__import__")
    ):
        return [str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant)]
    return []


def source_root(root: Path) -> list[str]:
    """`platform/` holds packages and no module of its own: else Python's `platform` is hidden."""
    return [f"{path.relative_to(root)}: move it" for path in (root / "platform").glob("*.py")]


def hidden_platform(root: Path) -> list[str]:
    """Python's own `platform` is what `import platform` gives in the root."""
    code = "import platform, os; print(os.path.dirname(platform.__file__), platform.system())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, env=bare()
    )
    expected = f"{os.path.dirname(os.__file__)} "
    return [] if done.stdout.startswith(expected) else [done.stdout + done.stderr]


def package_files(root: Path) -> list[str]:
    """Each package has an `__init__.py` without code; the platform's holds the version."""
    wrong = []
    packages = {path.parent for path in python_files(root) if _packaged(path.relative_to(root))}
    for folder in sorted(packages):
        init = folder / "__init__.py"
        if not init.exists():
            wrong.append(f"{folder.relative_to(root)}: no __init__.py")
        elif _code(init, allow_version=folder == root / "platform" / "scalewright"):
            wrong.append(f"{init.relative_to(root)}: has code")
    return wrong


def _packaged(path: Path) -> bool:
    return path.parts[0] == "planner" or path.parts[:2] == ("platform", "scalewright")


def _code(init: Path, *, allow_version: bool) -> list[str]:
    lines = [ast.unparse(node) for node in ast.parse(init.read_text()).body]
    if not allow_version:
        return lines
    return [line for line in lines if not line.startswith(("__version__ = ", "'", '"'))]


def upward_imports(root: Path) -> list[str]:
    """Imports go downwards: jobs, cluster, train, (objective, data, model), the base."""
    return [found.place for found in imports(root) if not _downward(found)]


def _downward(found: Import) -> bool:
    if found.name.startswith("."):
        return False
    if found.inside("planner") and found.file.startswith("planner/"):
        return _next_stage(found)
    if not found.inside("scalewright"):
        return True
    folder, *inside = found.file.removesuffix(".py").split("/")
    if folder == "planner":
        return any(found.inside(f"scalewright.model.{name}") for name in SIZES)
    target = [*found.name.split("."), "__version__"][1]
    if folder != "platform":
        return target in JOBS
    part = inside[1]
    return target in BELOW.get(part, set()) | {part, "__version__"}


def _next_stage(found: Import) -> bool:
    """Within the planner: only what the same or an earlier stage holds."""
    stage, target = found.file.split("/")[1], [*found.name.split("."), ""][1]
    if stage not in STAGES:
        return True
    return target not in STAGES or STAGES.index(target) <= STAGES.index(stage)


def unknown_parts(root: Path) -> list[str]:
    """Every part of the platform has a place in the layers."""
    parts = {path.stem for path in (root / "platform" / "scalewright").iterdir()}
    return sorted(parts - set(BELOW) - {"__init__", "__main__", "__pycache__"})


def foreign_imports(root: Path) -> list[str]:
    """Packages with an owner are imported by it alone, the slow ones only inside functions."""
    wrong = []
    for found in imports(root):
        for package, owners in OWNERS.items():
            if not found.inside(package):
                continue
            if not found.file.startswith(owners):
                wrong.append(found.place)
            elif package in LAZY and not (found.lazy or found.file.startswith(MEASURED)):
                wrong.append(f"{found.place}; do so inside a function")
    return wrong


def long_files(root: Path) -> list[str]:
    counts = {path: len(path.read_text().splitlines()) for path in python_files(root)}
    return [
        f"{path.relative_to(root)}: {count} lines, at most {MAX_LINES}"
        for path, count in counts.items()
        if count > MAX_LINES
    ]


def job_files(root: Path) -> list[str]:
    """Each job has a shebang and is executable, also in a clone."""
    wrong = []
    modes = {}
    for line in _git(root, "ls-files", "--stage", "jobs"):
        mode, _, _, file = line.split(maxsplit=3)
        modes[file] = mode
    for path in sorted((root / "jobs").glob("*.py")):
        file = f"jobs/{path.name}"
        if not path.read_text().startswith("#!/usr/bin/env python3\n"):
            wrong.append(f"{file}: first line is not #!/usr/bin/env python3")
        if not os.access(path, os.X_OK):
            wrong.append(f"{file}: not executable; chmod +x {file}")
        if modes.get(file) != "100755":
            wrong.append(f"{file}: mode {modes.get(file)} in git; git update-index --chmod=+x")
    return wrong


def ignored_sources(root: Path) -> list[str]:
    """No source is git-ignored; Ray, too, leaves ignored files out of what it uploads."""
    arguments = ("ls-files", "--others", "--ignored", "--exclude-standard", "platform", "planner")
    return [line for line in _git(root, *arguments, "jobs") if line.endswith(".py")]


def _git(root: Path, *arguments: str) -> list[str]:
    done = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, env=bare()
    )
    return done.stdout.splitlines()


def pins(file: Path) -> dict[str, str]:
    """Package -> version of a constraints file, all of whose lines must be `name==version`."""
    found: dict[str, str] = {}
    for line in file.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
        name = canonicalize_name(match[1]) if match else line
        if match is None or name in found:
            raise ValueError(f"{file.name}: {line!r}: one name==version a package, nothing else")
        found[name] = match[2]
    return found


def unmet_ranges(root: Path, constraints: str) -> list[str]:
    """Requirements that the pins leave open or contradict; most extras need not be pinned."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    pinned = pins(root / "infra" / "constraints" / constraints)
    extras = project["optional-dependencies"]
    needed = {*project["dependencies"], *extras["test"]}
    wrong = []
    for text in sorted(needed.union(*extras.values())):
        requirement = Requirement(text)
        version = pinned.get(canonicalize_name(requirement.name))
        if version is None and text in needed:
            wrong.append(f"{text}: not pinned")
        elif version and not requirement.specifier.contains(version):
            wrong.append(f"{text}: pinned to {version}")
    return wrong


def constraints_apart(root: Path) -> list[str]:
    """The two files agree but for torch, and the CPU one has nothing for GPUs."""
    cpu, gpu = (pins(root / "infra" / "constraints" / f"{name}.txt") for name in ("cpu", "gpu"))
    differ = {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    cuda = re.compile(r"(nvidia|cuda|triton)(?!-ml-py)")
    return sorted(differ - {"torch", "torchvision"}) + [name for name in cpu if cuda.match(name)]


def readme_commands(root: Path) -> list[str]:
    """README holds the two commands, each on a line of its own."""
    lines = (root / "README.md").read_text().splitlines()
    ends = ("jobs/quickstart.py", "-m pytest")
    commands = (f"{INSTALL} && .venv/bin/python {end}" for end in ends)
    return [f"README.md has no line {command}" for command in commands if command not in lines]


def planner_help(root: Path, *python_options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *python_options, "-m", "planner", "--help"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        env=bare() | {"PYTHONPATH": "platform"},
    )


def help_imports(root: Path) -> set[str]:
    """Modules, heavy ones, that `planner --help` imports."""
    report = planner_help(root, "-X", "importtime").stderr
    modules = {line.rpartition("|")[2].strip() for line in report.splitlines()}
    return modules & {"torch", "ray", "numpy", "scipy", "matplotlib", "mlflow", "scalewright"}


def bare() -> dict[str, str]:
    """The environment without what would lead Python or git elsewhere."""
    return {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "GIT_"))
    }
