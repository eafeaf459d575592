"""Every code that a warning can have is explained in docs/planner.md, and no other."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
TABLE_ROW = re.compile(r"^\| (`[^|]*) \|", re.MULTILINE)


def test_the_codes_of_all_findings_are_documented() -> None:
    table = (
        (ROOT / "docs" / "planner.md")
        .read_text()
        .split("## What it says, and what it refuses")[1]
        .split("\n## ")[0]
    )
    documented = set(re.findall(r"`([a-z_0-9]+)`", " ".join(TABLE_ROW.findall(table))))
    used = {code for path in (ROOT / "planner").rglob("*.py") for code in _codes(path)}
    assert len(used) > 40
    assert used == documented


def _codes(path: Path) -> set[str]:
    """First arguments of `Finding(...)`, and both branches of a conditional one."""
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Finding" and node.args
    ]
    literals = [part for call in calls for part in ast.walk(call.args[0])]
    return {str(part.value) for part in literals if isinstance(part, ast.Constant)}
