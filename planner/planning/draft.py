"""The numbers of a plan, one by one: value, interval, unit, and why it is so.

What follows from the size is taken over N*'s interval: each end of it is a run of its own, with its
own tokens, steps and learning rate. What a law adds of its own widens that, in quadrature.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from planner.fitting.base import Base
from planner.fitting.hyper_law import HyperLaw
from planner.fitting.laws import Estimate
from planner.planning.choice import Batch, Candidate, Choice, Rung, at_size, lr_of_largest
from planner.planning.cost import Hardware, Memory, memory_per_gpu
from planner.planning.target import BestSize, Evidence, loss_at
from planner.planning.tradeoff import SHARES, Smaller, tradeoff

LAW_OF_LR = "law of the best learning rates, form of arXiv 2411.17470 Eq. 13"
LAW_OF_BATCH = "law of the best batches, form of arXiv 2411.17470 Eq. 10"
SWEEP = "the sweep's own setting"
MEMORY = "scalewright.model.shape.memory_estimate"
ASSUMED = "it follows from the FLOPs; utilisation and price are assumed, not measured"


@dataclass(frozen=True)
class Number:
    """One planned number: its interval (or why there is none), why it is so, and who says so."""

    estimate: Estimate
    unit: str
    reason: str
    source: str


def number_of_params(fit: Evidence, best: BestSize) -> Number:
    """N* itself."""
    reason = f"N*: the size of the lowest loss that {best.target_flops:.3g} FLOPs buy"
    counted = fit.sweep.accounting.params
    if counted is not None:
        reason += f"; counted: {counted}"
    return Number(best.params, "parameters", reason, best.source)


@dataclass(frozen=True)
class Draft:
    """The chosen run, and what its numbers are made of.

    `lr_at_hand`: without a law, take the learning rate of the best of the largest runs.
    """

    fit: Evidence
    best: BestSize
    batch: Batch
    choice: Choice
    hardware: Hardware
    lr_at_hand: bool

    @property
    def run(self) -> Candidate:
        return self.choice.chosen

    @cached_property
    def numbers(self) -> dict[str, Number]:
        """In the order a reader asks for them, without those that nothing is known of."""
        return dict(self._numbers())

    def _numbers(self) -> Iterator[tuple[str, Number]]:
        yield "params", number_of_params(self.fit, self.best)
        if self.run.rung is not None:
            yield from self._of_rung(self.run.rung)
        yield "tokens", self._tokens()
        yield "loss", self._loss()
        for name, number in (("lr", self._lr()), ("batch_tokens", self._batch())):
            if number is not None:
                yield name, number
        if self.run.steps and self.run.batch_tokens:
            yield "steps", self._steps(self.run.batch_tokens)
        if self.fit.base is not None:
            yield "warmup_steps", self._warmup(self.fit.base)
        yield from self._money()
        if self.memory is not None:
            yield "memory_per_gpu_bytes", self._memory(self.memory)

    def tradeoff(self) -> tuple[Smaller, ...]:
        """Over-training, which only a surface can tell."""
        if self.fit.resamples is None:
            return ()
        others = self.choice.others
        if self.fit.base is None:
            others = tuple(
                at_size(self.fit, self.best.target_flops, self.batch, share * self.run.params)
                for share in SHARES
            )
        evaluations = 1 if self.fit.base is None else self.fit.base.evaluations or 1
        return tradeoff(self.fit.resamples, self.run, others, evaluations)

    @cached_property
    def memory(self) -> Memory | None:
        """What the run takes of a GPU, None off the ladder."""
        return self._memory_of(self.run)

    def _memory_of(self, run: Candidate) -> Memory | None:
        if self.fit.base is None or run.rung is None:
            return None
        return memory_per_gpu(self.fit.base, run.rung.model, run.rung.packs_per_step, self.hardware)

    def _of_rung(self, rung: Rung) -> Iterator[tuple[str, Number]]:
        depth, source = rung.model.depth, self.best.source
        reason = (
            f"of {len(self.choice.others)} rungs at depth {depth} that of the lowest fitted loss, "
            "in whole steps"
        )
        if self.best.surface is None:
            reason = f"of the rungs at depth {depth} the nearest to N*"
        params = self._over_ends(lambda run: round(run.params))
        width = self._over_ends(lambda run: run.rung.model.width if run.rung else 0)
        yield "block_params", Number(params, "parameters in blocks", reason, source)
        reason = f"of that rung; widths come in heads of {rung.model.head_dim}"
        yield "width", Number(width, "model width", reason, source)

    def _tokens(self) -> Number:
        reason = f"{self.best.target_flops:.3g} FLOPs at {self.run.flops_per_token:.4g} a token" + (
            "" if self.fit.base is None else ", in whole steps"
        )
        estimate = self._over_ends(lambda run: run.tokens)
        return Number(estimate, "tokens", reason, self.fit.frontier.source)

    def _loss(self) -> Number:
        estimate = loss_at(self.fit, self.best, self.run.params, self.run.tokens)
        reason = f"of one run of N = {self.run.params:.4g}, D = {self.run.tokens:.4g}"
        if self.best.surface is None:
            reason = "L*(C), of the best size at the target"
        return Number(estimate, "loss", f"{reason}, at the best hyperparameters", self.best.source)

    def _lr(self) -> Number | None:
        unit = "learning rate"
        if self.fit.base is not None:
            unit = "learning rate at muP's base width"
        law = self.fit.hyper.lr
        if isinstance(law, HyperLaw):
            reason = f"law at N = {self.run.params:.4g}, D = {self.run.tokens:.4g}; {law.reason}"
            return Number(self._of_law(law), unit, reason, LAW_OF_LR)
        tried = lr_of_largest(self.fit.groups) if self.lr_at_hand else None
        if tried is None:
            return None
        reason = "no law; that of the best of the largest runs, because the plan was forced"
        return Number(Estimate(tried, unknown=law.reason), unit, reason, SWEEP)

    def _batch(self) -> Number | None:
        value, law = self.run.batch_tokens, self.batch.law
        if value is None:
            return None
        if law is None:
            unknown = "the sweep carries no law of the batch"
            reason = "as in the sweep, whose learning rates are best at this batch"
            return Number(Estimate(value, unknown=unknown), "tokens a step", reason, SWEEP)
        of_law = self._of_law(law)
        reason = f"law at N = {self.run.params:.4g}, D = {self.run.tokens:.4g}; {law.reason}"
        if self.run.rung is not None:
            reason += f"; the nearest number of packs is {self.run.rung.packs_per_step}"
        if of_law.low is None or of_law.high is None:
            estimate = Estimate(value, unknown=of_law.unknown)
        else:
            low, high = min(of_law.low, value), max(of_law.high, value)
            estimate = Estimate(value, low, high, parts=of_law.parts)
        return Number(estimate, "tokens a step", reason, LAW_OF_BATCH)

    def _steps(self, batch_tokens: float) -> Number:
        # An end of the interval may not pay for a step of the batch there.
        estimate = self._over_ends(lambda run: max(run.steps or 0, 1))
        if self.batch.law is not None:
            law = self.batch.law.predict(self.run.params, self.run.tokens)
            estimate = _widened(estimate, law)
        reason = f"{self.run.tokens:.4g} tokens at {batch_tokens:.4g} a step"
        return Number(estimate, "steps", reason, self.fit.frontier.source)

    def _warmup(self, base: Base) -> Number:
        """The sweep's share of the steps; at least one where the sweep warmed up at all."""

        def steps(run: Candidate) -> int:
            share = base.warmup_share
            return max(round(share * (run.steps or 0)), 1 if share > 0 else 0)

        reason = f"the sweep's share of the steps ({base.warmup_share:.2%})"
        return Number(self._over_ends(steps), "steps", reason, SWEEP)

    def _money(self) -> Iterator[tuple[str, Number]]:
        flops, hardware = self.run.flops, self.hardware
        hours = hardware.gpu_hours(flops)
        busy = hardware.gpus if self.memory is None else self.memory.workers
        price = f"{hours:.4g} GPU hours at {hardware.price_per_gpu_hour:g} each (assumed)"
        spent = Estimate(flops, unknown="it is chosen, not estimated")
        reason = "tokens x FLOPs per token, within the target"
        yield "planned_flops", Number(spent, "FLOPs", reason, self.fit.frontier.source)
        for name, value, unit, why in (
            ("gpu_hours", hours, "GPU hours", hardware.assumption),
            ("days", hours / 24 / busy, f"days on {busy} GPUs", hardware.assumption),
            ("cost", hardware.cost(flops), "US dollars", f"{price}, {hardware.assumption}"),
        ):
            yield name, Number(Estimate(value, unknown=ASSUMED), unit, why, hardware.source)

    def _memory(self, memory: Memory) -> Number:
        reason = (
            f"weights, gradients and optimizer sharded over {memory.workers} GPUs, packs a step on "
            f"each: {memory.packs_per_worker}; {self.hardware.name} has "
            f"{self.hardware.memory_bytes / 1e9:.0f} GB"
        )
        return Number(self._over_ends(self._bytes), "bytes", reason, MEMORY)

    def _bytes(self, run: Candidate) -> int:
        memory = self._memory_of(run)
        return 0 if memory is None else memory.estimate.total_bytes

    def _over_ends(self, quantity: Callable[[Candidate], float]) -> Estimate:
        """`quantity` of the chosen run, between its values at the ends of N*'s interval."""
        value, ends = quantity(self.run), self.choice.ends
        if ends is None:
            return Estimate(value, unknown=self.best.params.unknown)
        values = [value, *map(quantity, ends)]
        return Estimate(value, min(values), max(values))

    def _of_law(self, law: HyperLaw) -> Estimate:
        """The law at the chosen run: its own interval, and where N* and D* may really lie."""
        over_ends = self._over_ends(lambda run: law.value(run.params, run.tokens))
        return _widened(over_ends, law.predict(self.run.params, self.run.tokens))


def _widened(over_ends: Estimate, law: Estimate) -> Estimate:
    """A positive number over N*'s interval, with a law's own uncertainty in quadrature, in ln."""
    if over_ends.low is None or over_ends.high is None:
        return over_ends
    if law.low is None or law.high is None:
        return Estimate(over_ends.value, unknown=law.unknown)
    below = math.hypot(math.log(over_ends.value / over_ends.low), math.log(law.value / law.low))
    above = math.hypot(math.log(over_ends.high / over_ends.value), math.log(law.high / law.value))
    parts = {
        "law": math.log(law.high / law.low) / 2,
        "best size": math.log(over_ends.high / over_ends.low) / 2,
    }
    low, high = over_ends.value * _exp(-below), over_ends.value * _exp(above)
    return Estimate(over_ends.value, low, high, parts=parts)


def _exp(value: float) -> float:
    return math.exp(min(max(value, -700.0), 700.0))
