"""The numbers of a plan, one by one: value, interval, unit, and why it is so.

What follows from the size is taken over N*'s interval: each end of it is a run of its own, with its
own tokens, steps and learning rate. What a law adds of its own widens that, in quadrature.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from planner.base import Base
from planner.choice import Batch, Candidate, Choice, at_size, lr_of_largest
from planner.cost import Hardware, Memory, memory_per_gpu
from planner.findings import Finding
from planner.hyper_law import HyperLaw
from planner.laws import Estimate
from planner.target import BestSize, Evidence, loss_at
from planner.tradeoff import SHARES, Smaller, tradeoff
from scalewright.model.shape import ModelConfig

FAR_FROM_BEST = 1.3
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


def number_of_params(best: BestSize) -> Number:
    """N* itself."""
    reason = f"N*: the size of the lowest loss that {best.target_flops:.3g} FLOPs buy"
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
        yield "params", number_of_params(self.best)
        if self.fit.base is not None:
            yield from self._rung(self.fit.base)
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
            yield "memory_per_gpu", self._memory(self.memory)

    def doubts(self) -> Iterator[Finding]:
        """What a reader should know of the chosen run itself."""
        ratio = self.run.params / self.best.params.value
        if self.fit.base is not None and abs(math.log(ratio)) > math.log(FAR_FROM_BEST):
            yield Finding(
                "rung_far_from_best",
                f"the chosen size is {ratio:.2f} of N*: widths come in steps of "
                f"{self.fit.base.model.head_dim} (one head), and steps are whole",
            )
        if self.run.steps == 0 and self.run.batch_tokens:
            yield less_than_a_step(self.best.target_flops, self.run.batch_tokens)
        if self.memory is None or self.fit.base is None:
            return
        if self.memory.estimate.total_bytes > self.hardware.memory_bytes:
            yield Finding(
                "memory_exceeds_gpu",
                f"a GPU needs about {self.memory.estimate.total_bytes / 1e9:.1f} GB and "
                f"{self.hardware.name} has {self.hardware.memory_bytes / 1e9:.0f} GB; use more "
                "GPUs, parallel.activation_checkpointing=true, or a smaller data.pack_tokens",
            )
        if self.memory.workers < self.hardware.gpus:
            yield Finding(
                "idle_gpus",
                f"{self.run.packs_per_step} packs a step share out evenly over "
                f"{self.memory.workers} of {self.hardware.gpus} GPUs; the others would stand "
                f"idle. Sweep with more packs a step, or plan for {self.memory.workers} GPUs",
            )

    def tradeoff(self) -> tuple[Smaller, ...]:
        """Over-training, None of it without a surface."""
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
        return None if self.fit.base is None else self._memory_of(self.fit.base, self.run)

    def _memory_of(self, base: Base, run: Candidate) -> Memory:
        model, packs = self._on_ladder(run)
        return memory_per_gpu(base, model, packs, self.hardware)

    @staticmethod
    def _on_ladder(run: Candidate) -> tuple[ModelConfig, int]:
        if run.model is None or run.packs_per_step is None:
            raise ValueError("a run off the ladder has neither a model nor packs")
        return run.model, run.packs_per_step

    def _rung(self, base: Base) -> Iterator[tuple[str, Number]]:
        model, _ = self._on_ladder(self.run)
        reason = (
            f"of the {len(self.choice.others)} rungs at depth {model.depth} the one of the lowest "
            "fitted loss in whole steps"
        )
        if self.best.surface is None:
            reason = f"of the rungs at depth {model.depth} the nearest to N*"
        per_rung = self._over_ends(lambda run: round(run.params))
        width = self._over_ends(lambda run: self._on_ladder(run)[0].width)
        yield "block_params", Number(per_rung, "parameters in blocks", reason, self.best.source)
        yield "width", Number(width, "model width", f"N = {self.run.params:.4g}", self.best.source)

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
        if self.run.packs_per_step is not None:
            reason += f"; the nearest number of packs is {self.run.packs_per_step}"
        if of_law.low is None or of_law.high is None:
            estimate = Estimate(value, unknown=of_law.unknown)
        else:
            low, high = min(of_law.low, value), max(of_law.high, value)
            estimate = Estimate(value, low, high, parts=of_law.parts)
        return Number(estimate, "tokens a step", reason, LAW_OF_BATCH)

    def _steps(self, batch_tokens: float) -> Number:
        estimate = self._over_ends(lambda run: run.steps or 0)
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
        busy = hardware.gpus if self.memory is None else self.memory.workers
        price = f"{hardware.price_per_gpu_hour:g} a GPU hour (assumed)"
        hours = hardware.gpu_hours(flops)
        for name, value, unit, reason, source in (
            ("planned_flops", flops, "FLOPs", "tokens x FLOPs per token, within the target",
             self.fit.frontier.source),
            ("gpu_hours", hours, "GPU hours", hardware.assumption, hardware.source),
            ("days", hours / 24 / busy, f"days on {busy} GPUs", hardware.assumption,
             hardware.source),
            ("cost", hardware.cost(flops), "US dollars", f"{hours:.4g} GPU hours at {price}, "
             f"{hardware.assumption}", "--price"),
        ):  # fmt: skip
            unknown = "it is chosen, not estimated" if name == "planned_flops" else ASSUMED
            yield name, Number(Estimate(value, unknown=unknown), unit, reason, source)

    def _memory(self, memory: Memory) -> Number:
        base = self.fit.base
        estimate = self._over_ends(
            lambda run: (
                memory.estimate.total_bytes
                if base is None
                else self._memory_of(base, run).estimate.total_bytes
            )
        )
        reason = (
            f"weights, gradients and optimizer sharded over {memory.workers} GPUs, "
            f"{memory.packs_per_worker} packs each a step; {self.hardware.name} has "
            f"{self.hardware.memory_bytes / 1e9:.0f} GB"
        )
        return Number(estimate, "bytes", reason, MEMORY)

    def _over_ends(self, quantity: Callable[[Candidate], float]) -> Estimate:
        """`quantity` of the chosen run, between its values at the ends of N*'s interval."""
        value, ends = quantity(self.run), self.choice.ends
        if ends is None:
            return Estimate(value, unknown=self.best.params.unknown)
        values = [value, *map(quantity, ends)]
        return Estimate(value, min(values), max(values))

    def _of_law(self, law: HyperLaw) -> Estimate:
        """The law at the chosen run: its own interval, and where N* and D* may really lie."""
        of_law = law.predict(self.run.params, self.run.tokens)
        ends = self.choice.ends
        if of_law.low is None or of_law.high is None:
            return of_law
        if ends is None:
            return Estimate(of_law.value, unknown=self.best.params.unknown)
        value = math.log(of_law.value)
        at_ends = [math.log(law.value(run.params, run.tokens)) for run in ends]
        low = math.hypot(value - math.log(of_law.low), max(value - min(at_ends), 0.0))
        high = math.hypot(math.log(of_law.high) - value, max(max(at_ends) - value, 0.0))
        parts = {
            "law": math.log(of_law.high / of_law.low) / 2,
            "best size": (max(at_ends) - min(at_ends)) / 2,
        }
        ends_of_law = _exp(value - low), _exp(value + high)
        return Estimate(of_law.value, *ends_of_law, parts=parts)


def less_than_a_step(target_flops: float, batch_tokens: float) -> Finding:
    """The target does not pay for a single step."""
    return Finding(
        "less_than_a_step",
        f"{target_flops:.3g} FLOPs do not pay for one step of {batch_tokens:.4g} tokens at the "
        "best size; raise --target",
        refuses=True,
    )


def _exp(value: float) -> float:
    return math.exp(min(max(value, -700.0), 700.0))
