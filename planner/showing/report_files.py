"""The files of a report, by name: what one leaves behind must not pass for a later one's."""

import re
from collections.abc import Sequence
from pathlib import Path

REPORT_FILE = "report.html"
NAMES = (
    *("surface", "residuals", "isoflop", "laws", "maps", "lr_curves", "batch_curves"),
    *("hyper_laws", "transfer", "tradeoff"),
)
KINDS = ("png", "svg")
_OURS = re.compile(rf"(group\d+-[\w.-]*-)?({'|'.join(NAMES)})\.({'|'.join(KINDS)})")


def remove_report(folder: Path) -> None:
    """The page and every figure of an earlier report."""
    (folder / REPORT_FILE).unlink(missing_ok=True)
    remove_figures(folder, ())


def remove_figures(folder: Path, keep: Sequence[Path]) -> None:
    """The figures of an earlier report, but for those to `keep`."""
    kept = set(keep)
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path not in kept:
            path.unlink()
