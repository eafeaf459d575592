"""Why the laws are not to be trusted at a target, in words: each reason with its way out."""

from collections.abc import Iterator

from planner.findings import Finding
from planner.fitting.base import Base
from planner.fitting.isoflop import ComputeLaws
from planner.fitting.laws import Estimate, NotFitted
from planner.planning.choice import Batch, Candidate
from planner.planning.cost import Hardware, Memory
from planner.planning.target import BestSize, Evidence

MAX_EXTRAPOLATION = 300.0
FAR_FROM_BEST = 1.3
BF16_BYTES = 2
WIDE = 10.0  # N* within a factor of this either way: beyond it the plan says next to nothing
WORTHLESS = 1000.0  # from the low end of N*'s interval to the high one: beyond it, nothing
FAR_BATCH = 10.0  # times the batches that were tried: a law is not known to hold that far
MANY_STEPS = 1e7  # ten times the longest runs there are


def doubts_of_laws(
    fit: Evidence, best: BestSize | NotFitted, target_flops: float
) -> Iterator[Finding]:
    """What makes every number of a plan doubtful; those that refuse leave no number standing."""
    if isinstance(best, NotFitted):
        yield Finding("no_law", f"no plan: {best.reason}", refuses=True)
        return
    yield from _extrapolation(fit, best, target_flops)
    if isinstance(fit.isoflop.laws, ComputeLaws):
        yield from _falling(fit.isoflop.laws, alone=best.surface is None)
    if best.surface is None:
        yield Finding(
            "no_surface",
            "no loss surface could be fitted, so the plan rests on the isoFLOP minima alone: no "
            "over-training trade-off, and the loss is that of the best size, not of the rung",
        )


def doubts_of_size(fit: Evidence, best: BestSize) -> Iterator[Finding]:
    """Whether there is a best size at all among those that can be chosen, and one is known."""
    yield from _wide(best.params)
    if best.inside:
        return
    smallest, largest = fit.frontier.smallest_params, fit.frontier.largest_params
    if fit.base is None:
        yield Finding(
            "no_best_size",
            f"the fitted loss has no minimum between {smallest:.3g} and {largest:.3g} parameters "
            "at this target: one of its terms has all but vanished. Sweep sizes on both sides of "
            "the best one",
            refuses=True,
        )
        return
    widths = fit.base.ladder[0].model.width, fit.base.ladder[-1].model.width
    yield Finding(
        "off_ladder",
        f"the best size N* = {best.params.value:.3g} is at the end of or off the ladder of sizes "
        f"at depth {fit.base.model.depth} ({smallest:.3g} at width {widths[0]} to {largest:.3g} at "
        f"width {widths[1]}); change --target, or sweep at another depth",
        refuses=True,
    )


def doubts_of_settings(fit: Evidence, batch: Batch) -> Iterator[Finding]:
    """Whether laws choose batch and learning rate."""
    if batch.finding is not None:
        yield batch.finding
    if fit.base is not None and isinstance(fit.hyper.lr, NotFitted):
        yield Finding(
            "no_lr_law",
            f"no config without a law of the learning rate: {fit.hyper.lr.reason}. With --force "
            "the plan takes that of the best of the largest runs",
            refuses=True,
        )


def doubts_of_run(
    fit: Evidence, run: Candidate, best: BestSize, memory: Memory | None, hardware: Hardware
) -> Iterator[Finding]:
    """What a reader should know of the chosen run itself."""
    if run.steps == 0 and run.batch_tokens:
        yield less_than_a_step(best.target_flops, run.batch_tokens)
    yield from _doubts_of_batch(fit, run)
    if fit.base is None or memory is None:
        return
    ratio = run.params / best.params.value
    if not 1 / FAR_FROM_BEST <= ratio <= FAR_FROM_BEST:
        yield Finding(
            "rung_far_from_best",
            f"the chosen size is {ratio:.2f} of N*: widths come in steps of "
            f"{fit.base.model.head_dim} (one head), and steps are whole",
        )
    yield from _doubts_of_gpus(fit.base, memory, hardware)


def _doubts_of_batch(fit: Evidence, run: Candidate) -> Iterator[Finding]:
    """A batch that no one ran, or that no run has: most often some were counted in samples."""
    tried = [each.batch_tokens for group in fit.groups for each in group.runs if each.batch_tokens]
    if run.batch_tokens is None or not tried:
        return
    way_out = (
        "Batches in samples among those in tokens do this: map batch_tokens to tokens a step "
        '(--map batch_tokens="COLUMN*TOKENS_PER_SAMPLE")'
    )
    said = f"the planned batch is {run.batch_tokens:.3g} tokens"
    if run.batch_tokens < 1:
        yield Finding("batch_implausible", f"{said}, less than one. {way_out}", refuses=True)
        return
    off = max(run.batch_tokens / max(tried), min(tried) / run.batch_tokens)
    if off > FAR_BATCH:
        yield Finding(
            "batch_implausible",
            f"{said}, {off:.3g}x outside the batches tried ({min(tried):.3g} to {max(tried):.3g}; "
            f"limit {FAR_BATCH:.0f}x). {way_out}",
        )
    elif run.steps is not None and run.steps > MANY_STEPS:
        yield Finding(
            "batch_implausible",
            f"{said}, so {run.steps:.3g} steps (limit {MANY_STEPS:.0g}). {way_out}",
        )


def less_than_a_step(target_flops: float, batch_tokens: float | None) -> Finding:
    """The target does not pay for a single step; None: of no batch that the law asks for."""
    of = "" if batch_tokens is None else f" of {batch_tokens:.4g} tokens"
    return Finding(
        "less_than_a_step",
        f"{target_flops:.3g} FLOPs do not pay for one step{of}; raise --target",
        refuses=True,
    )


def _doubts_of_gpus(base: Base, memory: Memory, hardware: Hardware) -> Iterator[Finding]:
    need = memory.estimate.total_bytes
    if need > hardware.memory_bytes:
        yield Finding(
            "memory_exceeds_gpu",
            f"a GPU needs about {need / 1e9:.1f} GB and {hardware.name} has "
            f"{hardware.memory_bytes / 1e9:.0f} GB; use more GPUs, "
            "parallel.activation_checkpointing=full, or a smaller data.pack_tokens",
        )
    if base.compute_bytes > BF16_BYTES:
        yield Finding(
            "not_bf16",
            "hours are counted at the GPU's bf16 peak, but the sweep's parallel.compute is wider; "
            "set parallel.compute=bfloat16 for the run, or give --gpu-peak-tflops",
        )
    if memory.workers < hardware.gpus:
        packs = memory.workers * memory.packs_per_worker
        yield Finding(
            "idle_gpus",
            f"a step of {packs} packs shares out evenly over {memory.workers} of {hardware.gpus} "
            f"GPUs; the others would stand idle. Sweep with more packs a step, or plan for "
            f"{memory.workers} GPUs",
        )


def _extrapolation(fit: Evidence, best: BestSize, target_flops: float) -> Iterator[Finding]:
    laws = fit.isoflop.laws
    reach = fit.largest_flops
    if best.surface is None and isinstance(laws, ComputeLaws):
        reach = laws.largest_flops
    ratio = target_flops / reach
    if ratio > MAX_EXTRAPOLATION:
        yield Finding(
            "extrapolation",
            f"{target_flops:.3g} FLOPs is {ratio:.4g}x the largest budget fitted ({reach:.3g}); "
            f"the limit is {MAX_EXTRAPOLATION:.0f}x. Sweep larger budgets, lower the target, or "
            "pass --force",
            refuses=True,
        )


def _falling(laws: ComputeLaws, alone: bool) -> Iterator[Finding]:
    """Minima that fall with compute: no loss of the surface's form has such."""
    for name, law in (("size N*", laws.size), ("token count D*", laws.tokens)):
        exponent = law.exponent("C")
        if exponent.value > 0:
            continue
        surely = exponent.high is not None and exponent.high < 0
        yield Finding(
            "minima_are_noise",
            f"the best {name} of the budgets falls with compute (exponent "
            f"{_with_interval(exponent)}): the minima are noise; add budgets further apart, or "
            "more sizes to each",
            refuses=alone or surely,
        )


def _wide(params: Estimate) -> Iterator[Finding]:
    if params.low is None or params.high is None:
        return
    factor = max(params.high / params.value, params.value / params.low)
    span = params.high / params.low
    ends = f"{params.low:.3g} to {params.high:.3g}"
    way_out = "Add budgets further apart; `planner design` says which runs help"
    if span > WORTHLESS:
        yield Finding(
            "interval_too_wide",
            f"the interval of N* spans a factor of {span:.3g} about {params.value:.3g} ({ends}, "
            f"limit {WORTHLESS:.0f}): the sweep does not say which size is best. {way_out}",
            refuses=True,
        )
    elif factor > WIDE:
        yield Finding(
            "interval_too_wide",
            f"the interval of N* reaches a factor of {factor:.3g} from {params.value:.3g} "
            f"({ends}, limit {WIDE:.0f}): the sweep hardly says which size is best. {way_out}",
        )


def _with_interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3g}"
    return f"{estimate.value:.3g}, {estimate.low:.3g} to {estimate.high:.3g}"
