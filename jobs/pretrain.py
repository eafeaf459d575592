#!/usr/bin/env python3
"""Train a model: `--plan plan.toml`, a recipe, or the demo when nothing is said."""

import sys
from pathlib import Path

# Run the submitted tree, not an older install on the cluster.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import json
import logging
import shutil
from collections.abc import Sequence
from typing import Any

import click

from scalewright import __version__, command
from scalewright.cluster import launch
from scalewright.cluster.ledger import FILE_NAME as LEDGER
from scalewright.cluster.ledger import Ledger
from scalewright.cluster.run_folder import finished, only_driver
from scalewright.cluster.supervise import RunFolders, supervise
from scalewright.config import assign, digest, merge, read_toml, to_dict, to_toml
from scalewright.data.codec import codec_for
from scalewright.data.storage import place_of
from scalewright.errors import ConfigError
from scalewright.events import Event, Metrics, Notice
from scalewright.prepare.embedded import ensure_shapes
from scalewright.recipes import SHAPES, recipe
from scalewright.track import Forwarder, absolute_uri
from scalewright.train.estimate import check_memory, estimate
from scalewright.train.inputs import (
    Inputs,
    Work,
    assumed_work,
    check_same_run,
    identity,
    open_inputs,
)
from scalewright.train.manifest import CHECKPOINTS, committed
from scalewright.train.place import SNAPSHOT, write_json
from scalewright.train.run import RunConfig

EPILOG = """\b
Examples:
  jobs/pretrain.py --plan sweeps/demo/fit/plan.toml --dry-run
  jobs/pretrain.py --recipe demo steps=600 optimizer.lr_peak=4e-3 --workers 2
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--recipe", "recipe_name", default="demo", help="Recipe to start from [demo].")
@click.option(
    "--plan",
    "--config",
    "plans",
    multiple=True,
    type=click.Path(path_type=Path),
    help="TOML file over the recipe: a plan of the planner, or any part of a config.",
)
@click.option("--workers", type=int, help="Workers; the same as parallel.workers=N.")
@click.option("--fresh", is_flag=True, help="Set an earlier run of this name aside and start over.")
@click.option("--tracking-uri", help="MLflow [sqlite:///HOME/mlflow.db].")
@click.option(
    "--codec-weights",
    type=click.Path(path_type=Path),
    help="Folder of weights of a codec that needs them, for sample videos.",
)
@click.option(
    "--inception-weights",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="inception-2015-12-05.pt of StyleGAN2-ADA, to measure sample videos by FID.",
)
@click.option(
    "--ledger",
    type=click.Path(path_type=Path),
    help="What is known of the machines, for all runs on them [HOME/ledger.db].",
)
@click.option("--worker-logs", is_flag=True, help="Show what the workers print.")
@click.option("--dry-run", is_flag=True, help="Print what would run and what it costs; no start.")
@click.option("--json", "as_json", is_flag=True, help="Print the dry run as one JSON object.")
def main(
    assignments: Sequence[str],
    recipe_name: str,
    plans: Sequence[Path],
    workers: int | None,
    fresh: bool,
    tracking_uri: str | None,
    codec_weights: Path | None,
    inception_weights: Path | None,
    ledger: Path | None,
    worker_logs: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a run to its last step; the same command goes on where it stopped.

    Settings: recipe < --plan < KEY=VALUE. The run lives in HOME/runs/NAME, where HOME is
    $SCALEWRIGHT_HOME or the current folder.
    """
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    config, provenance = resolve(recipe_name, plans, assignments, workers)
    home = launch.home()
    folders = RunFolders(
        run=home / "runs" / config.name,
        data=place_of(home, config.data.path),
        codec_weights=codec_weights.resolve() if codec_weights else None,
        inception_weights=inception_weights.resolve() if inception_weights else None,
    )
    if inception_weights is not None and config.log.sample_clips < 2:
        raise ConfigError(
            f"--inception-weights with log.sample_clips = {config.log.sample_clips}; FID takes at "
            "least 2 samples"
        )
    if config.data.path == SHAPES:
        ensure_shapes(Path(folders.data))
    if dry_run:
        show(config, estimate(config, work_of(config, folders)), as_json)
        return
    inputs = open_inputs(config, folders.data, None if fresh else pinned_already(folders.run))
    check_memory(config, workers_run_here=launch.starts_cluster())
    if config.log.sample_clips:
        codec_for(inputs.info.codec, folders.codec_weights)
    with only_driver(folders.run):
        if fresh:
            set_aside(folders.run)
        inputs = open_inputs(config, folders.data, folders.run / SNAPSHOT)
        check_identity(folders.run, identity(config, inputs))
        summary = finished(config, folders.run)
        if summary is None:
            tracking = absolute_uri(tracking_uri, home)
            records = Ledger(ledger or home / LEDGER)
            summary = train(config, provenance, folders, inputs, tracking, records, worker_logs)
        else:
            click.echo("all steps are done already", err=True)
    click.echo(json.dumps(summary))


def work_of(config: RunConfig, folders: RunFolders) -> Work:
    """What there is to do: on the data folder, or where it is not there on assumed clips."""
    data = folders.data
    if config.data.assumed_clips and not Path(data).exists():
        click.echo(f"{data} is not there; counting with data.assumed_clips", err=True)
        return assumed_work(config)
    check_memory(config, workers_run_here=launch.starts_cluster())
    return open_inputs(config, data, pinned_already(folders.run)).work


def pinned_already(run: Path) -> Path | None:
    """The snapshot that the run was begun with, if it was begun."""
    return path if (path := run / SNAPSHOT).exists() else None


def train(
    config: RunConfig,
    provenance: dict[str, Any],
    folders: RunFolders,
    inputs: Inputs,
    tracking_uri: str,
    ledger: Ledger,
    worker_logs: bool,
) -> dict[str, Any]:
    """Train under Ray, tracked; returns the summary and tells where to look."""
    artifacts = write_settings(folders.run, config, provenance)
    with Forwarder(
        folders.run,
        tracking_uri,
        experiment="scalewright",
        run_name=config.name,
        params=to_dict(config),
        tags={
            "version": __version__,
            "config_digest": digest(config),
            "data": inputs.snapshot.digest,
        },
        artifacts=artifacts,
        on_events=lambda events: narrate(events, config.steps),
    ) as tracking:
        summary = supervise(
            config, folders, ledger, cpus=local_cpus(config), worker_logs=worker_logs
        )
    click.echo(f"run: {folders.run}\nMLflow: {tracking.run_url_hint}", err=True)
    return summary


def check_identity(folder: Path, now: dict[str, Any]) -> None:
    """Refuse to go on with a run begun under other settings; a new run notes its own.

    A run without a checkpoint has nothing that other settings could not go on with.
    """
    path = folder / "identity.json"
    if path.exists() and committed(folder / CHECKPOINTS):
        check_same_run(json.loads(path.read_text()), now, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, now)


def local_cpus(config: RunConfig) -> int | None:
    """CPUs of a cluster started here: one a worker, however few cores; None is all there are."""
    return None if config.parallel.gpus_per_worker else config.parallel.workers


def resolve(
    recipe_name: str, plans: Sequence[Path], assignments: Sequence[str], workers: int | None
) -> tuple[RunConfig, dict[str, Any]]:
    """The config after every layer, and the plan's account of where its numbers come from."""
    config = recipe(recipe_name)
    provenance: dict[str, Any] = {}
    for path in plans:
        changes = read_toml(path)
        provenance |= changes.pop("plan", {})
        config = merge(config, changes, where=str(path))
    config = assign(config, assignments)
    if workers is not None:
        config = merge(
            config,
            {
                "parallel": {
                    "workers": workers,
                    "min_workers": min(workers, config.parallel.min_workers),
                }
            },
            where="--workers",
        )
    return config, provenance


def set_aside(folder: Path) -> None:
    """Move an earlier run of the same name out of the way; nothing is deleted."""
    if not folder.exists():
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    shutil.move(folder, aside)
    click.echo(f"the earlier run is now {aside}", err=True)


def write_settings(folder: Path, config: RunConfig, provenance: dict[str, Any]) -> list[Path]:
    """Write the resolved config, and the plan's reasons if there are any, into the run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "config.toml"
    settings.write_text(to_toml(config))
    if not provenance:
        return [settings]
    reasons = folder / "plan.json"
    reasons.write_text(json.dumps(provenance, indent=1))
    return [settings, reasons]


def show(config: RunConfig, cost: dict[str, Any], as_json: bool) -> None:
    """Print the dry run: one JSON object, or the config as TOML and the cost in words."""
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "config": to_dict(config), **cost}))
        return
    click.echo(to_toml(config))
    click.echo(f"parameters     {cost['params']:,} ({cost['block_params']:,} in blocks)")
    for stage in cost["stages"]:
        click.echo(
            f"from step {stage['begin']:<8,d} "
            f"{stage['visual_tokens_per_step']:,.0f} visual tokens, "
            f"{stage['clips_per_step']:,.1f} clips, {stage['flops_per_step']:.3g} FLOPs a step; "
            f"packs {stage['pack_fill']:.0%} full"
        )
    click.echo(
        f"the run        {cost['steps']:,} steps, {cost['run_visual_tokens']:.3g} tokens, "
        f"{cost['run_flops']:.3g} FLOPs (6ND says {cost['run_flops_6nd']:.3g})"
    )
    for split in cost["batch_split"]:
        click.echo(
            f"on {split['workers']:4d} workers {split['packs_per_worker']} packs each, "
            f"{split['memory_gib']:.2f} GiB each"
        )


def narrate(events: Sequence[Event], steps: int) -> None:
    """One line on stderr for each thing that happened."""
    for event in events:
        if isinstance(event, Metrics):
            click.echo(metrics_line(event, steps), err=True)
        elif isinstance(event, Notice):
            fields = ", ".join(f"{key} {value}" for key, value in event.fields.items())
            told = f"{event.kind} ({fields})" if fields else event.kind
            click.echo(f"attempt {event.attempt}: {told}", err=True)


def metrics_line(event: Metrics, steps: int) -> str:
    """A progress line: the training metrics, or what else was measured at this step.

    Splits by level or octave, whose names end in a number, are left to the log and MLflow.
    """
    values = event.values
    if "loss/train" not in values:
        whole = (name for name in values if not name.rpartition("_")[2].isdigit())
        parts = [f"{name} {values[name]:.4f}" for name in whole]
    else:
        parts = [
            f"loss {values['loss/train']:.4f}",
            f"norm {values['grad/norm']:.3f}",
            f"lr {values['optim/lr']:.2e}",
            f"{values['perf/clips_per_s']:.1f} clips/s",
            f"{values['perf/flop_utilisation']:.0%} of peak",
            f"{values['elastic/world_size']:.0f} workers",
            f"{(steps - event.step) * values['perf/step_s']:.0f} s left",
        ]
    return f"step {event.step}/{steps}  " + "  ".join(parts)


if __name__ == "__main__":
    command.run(main)
