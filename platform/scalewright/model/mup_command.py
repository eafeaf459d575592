"""`python -m scalewright.model.mup`: the table of rules, and whether they hold."""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from scalewright.config import assign, to_dict
from scalewright.errors import ScalewrightError
from scalewright.model.mup import ParamRule, param_rules
from scalewright.model.mup_check import KINDS, CheckConfig, Scan, Site, check
from scalewright.model.shape import ModelConfig

CONTEXT = {"help_option_names": ["-h", "--help"]}

# Small where size does not matter, so that narrow models are as near to wide ones as can be.
SMALL = ModelConfig(
    width=128,
    depth=2,
    head_dim=32,
    rope_axes=(8, 12, 12),
    time_freq_dim=64,
    time_dim=64,
    text_dim=16,
    latent_channels=8,
    mup_base_width=64,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """The model whose widths are measured, and how."""

    model: ModelConfig = SMALL
    check: CheckConfig = dataclasses.field(default_factory=CheckConfig)


@click.group(context_settings=CONTEXT)
def mup() -> None:
    """How training numbers carry over from narrow models to wide ones."""


@mup.command("check", context_settings=CONTEXT)
@click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print all numbers as JSON.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write figures here.")
def check_command(assignments: tuple[str, ...], as_json: bool, out: Path | None) -> None:
    """Train small models of several widths a few steps; exit 1 where a size grows with width.

    Settings are those of the model and of the check, such as model.qk_norm=layer,
    check.widths=[64,128,256] or check.train.lr=1e-3. With model.mup_base_depth=2 depth is
    measured, too.
    """
    config = assign(Checked(), assignments)
    torch.set_num_threads(1)  # the matrices are small: threads would mostly wait for each other
    begin_s = time.perf_counter()
    scans = check(config.model, config.check)
    figures = _figures(scans, out)
    seconds = time.perf_counter() - begin_s
    click.echo(_check_json(config, scans, figures, seconds) if as_json else check_text(scans))
    if not as_json:
        for path in figures:
            click.echo(f"figure: {path}")
    if failing := sum(len(scan.failing) for scan in scans):
        raise ScalewrightError(
            f"muP does not hold at {failing} sites: sizes there change with the size of the model, "
            "so a learning rate found at one size is not the right one at another"
        )


@mup.command("rules", context_settings=CONTEXT)
@click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def rules_command(assignments: tuple[str, ...], as_json: bool) -> None:
    """Print every tensor's role and factors, for example with model.width=1024."""
    config = assign(Checked(), assignments).model
    rules = param_rules(config)
    if as_json:
        table = {name: dataclasses.asdict(rule) for name, rule in rules.items()}
        click.echo(
            json.dumps({"schema_version": 1, "model": to_dict(config), "rules": table}, indent=2)
        )
    else:
        click.echo(rules_text(rules))


def rules_text(rules: dict[str, ParamRule]) -> str:
    """One line a tensor; of the blocks, which are alike, the first."""
    fields = [field.name for field in dataclasses.fields(ParamRule)]
    rows = [["parameter", *fields]]
    for name, rule in rules.items():
        if not name.startswith("blocks.") or name.startswith("blocks.0."):
            values = [getattr(rule, field) for field in fields]
            rows.append([name.replace("blocks.0.", "blocks.*."), *map(_short, values)])
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip()
        for row in rows
    )


def _short(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def check_text(scans: Sequence[Scan]) -> str:
    """The verdict with its numbers, for people."""
    lines = []
    for scan in scans:
        lines.append(
            f"{scan.axis} {', '.join(map(str, scan.sizes))}: slopes of log2 l1 over "
            f"log2 {scan.axis}, at most {scan.max_slope:g}"
        )
        for kind in KINDS:
            count = sum(site.kind == kind for site in scan.sites)
            lines.append(f"  {count:3d} {kind + 's':12} steepest {_described(scan.steepest(kind))}")
        lines += [f"  BREAKS {site.kind:11} {_described(site)}" for site in scan.failing]
    holds = not any(scan.failing for scan in scans)
    return "\n".join([*lines, "muP holds" if holds else "muP does not hold"])


def _described(site: Site) -> str:
    if site.slope is None:
        return f"{site.name}: no finite, nonzero size to judge"
    return f"{site.slope:+.3f} at {site.name}, step {site.step}"


def _check_json(
    config: Checked, scans: Sequence[Scan], figures: Sequence[Path], seconds: float
) -> str:
    content = {
        "schema_version": 1,
        "holds": not any(scan.failing for scan in scans),
        "scans": [
            {
                "axis": scan.axis,
                "sizes": scan.sizes,
                "max_slope": scan.max_slope,
                "failing": [{"kind": site.kind, "name": site.name} for site in scan.failing],
                "sites": [dataclasses.asdict(site) for site in scan.sites],
            }
            for scan in scans
        ],
        "config": to_dict(config),
        "figures": [str(path) for path in figures],
        "wall_s": round(seconds, 3),
    }
    return json.dumps(_finite(content), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    """JSON knows no NaN: numbers that are not finite are null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and value - value != 0 else value


def _figures(scans: Sequence[Scan], out: Path | None) -> list[Path]:
    if out is None:
        return []
    from scalewright.model.mup_figure import write_figure  # matplotlib takes a second to import

    out.mkdir(parents=True, exist_ok=True)
    return [write_figure(scan, out / f"mup-{scan.axis}.png") for scan in scans]
