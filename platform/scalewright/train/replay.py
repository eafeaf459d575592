"""Silent corruption: every so many steps a pack of each rank is computed again on another rank.

A rank that computes something wrong and says nothing spoils all: its gradients are summed into
every replica alike, so that no comparison of replicas can find it. Only computing the same again
elsewhere can.

What is compared is the training step itself, not a rehearsal of it. While the step runs a tap
reads what this rank computes of one of its packs. Before the weights are updated every rank
computes that pack of another rank once more, from the clips on: it noises them (all that is random
is keyed by seed, clip and step), and runs forward and backward with the same weights. All ranks do
so at once, as FSDP gathers weights for all of them together. The digests of both must be equal, bit
by bit. Where they are not, further ranks compute the packs, with the same weights still, until the
wrong one is known (`verdict.judge`), and the run ends with a `CorruptionError` before the step has
changed anything.

Compiled code is not compared: it depends on the sizes that a rank has met first, and so do its
roundings. There both sides compute the pack without compilation, which tests the processor, and not
what the step has computed.
"""

import dataclasses
import logging
import os
import pickle
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from scalewright.data.loader import StepData
from scalewright.data.sample import Missing, Sample
from scalewright.errors import CorruptionError
from scalewright.model.attention import attention_for, flash_attention
from scalewright.model.mmdit import Block
from scalewright.model.statistics import Watch
from scalewright.objective.flow import NoisedPack
from scalewright.train.ahead import Ready
from scalewright.train.inputs import Inputs
from scalewright.train.parallel import World, set_gradient_sync
from scalewright.train.run import RunConfig
from scalewright.train.runners import choose_runner
from scalewright.train.step import counts_of, noised_packs, objective_of
from scalewright.train.tap import Tap, digest_of_all, quantities
from scalewright.train.training import Training
from scalewright.train.verdict import MORE_ROUNDS, Verdict, judge, owners

logger = logging.getLogger(__name__)

Clips = list[Sample | Missing]
Tell = Callable[..., None]
Trust = Callable[[int], None]


class Replay:
    """The checks of one attempt; every rank has one, and enters `over` at every step."""

    def __init__(self, training: Training, tell: Tell, trust: Trust | None = None) -> None:
        """`tell(kind, **fields)` logs an event. `trust(step)` is called on every rank when the
        check of the step that makes `step` has passed and the step is taken: see docs/replay.md for
        what that proves.
        """
        self._training, self._tell, self._trust = training, tell, trust
        self._world, self._config = training.world, training.config
        self._backward, self.covers = covered(self._config, self._world.device)
        self._kinds = _gathered(kind_of_rank(self._config, self._world.device), self._world)
        self._names = ["inputs", *quantities(training.model)]
        self._checks = 0

    @contextmanager
    def over(self, inputs: Inputs, ready: Ready, watch: Watch) -> Iterator[None]:
        """Around the step that trains on `ready`: checks it if it is due.

        Raises `CorruptionError` on all ranks, before the step has changed the weights, where a
        rank is found wrong.
        """
        done = ready.data.step + 1
        if not self._config.replay.is_due(done, self._config.steps):
            yield
            return
        check = _Check(self, inputs, ready, watch, self._checks)
        self._checks += 1
        with check.watching():
            yield
        if check.passed and self._trust is not None:
            self._trust(done)

    def _settle(self, done: int, rounds: "_Rounds", seconds: float) -> bool:
        """Tell what the check found; whether it has passed."""
        verdict, differing = rounds.verdict(), rounds.differing(self._names)
        lonely = [rank for rank, kind in enumerate(self._kinds) if self._kinds.count(kind) == 1]
        self._tell("replay", step=done, seconds=seconds, passed=not differing, alone=lonely,
                   covers=self.covers)  # fmt: skip
        if not differing:
            return True
        self._tell("corruption", step=done, ranks=list(verdict.wrong), why=verdict.why,
                   confidence=verdict.confidence, differing=differing)  # fmt: skip
        text = f"step {done}, computed twice from the same numbers, differs in "
        text += ", ".join(differing[:4]) + (" and more" if len(differing) > 4 else "")
        if verdict.wrong:
            raise CorruptionError(
                f"{text}: {verdict.why}. Its processor or memory computes wrongly; go on without "
                "it, from the last checkpoint before a check that passed",
                verdict.wrong, done, verdict.confidence,
            )  # fmt: skip
        logger.warning("%s: %s; nobody is accused, and nothing is trusted", text, verdict.why)
        return False


class _Check:
    """One check of one step: what the step computed, and what others compute of the same."""

    def __init__(
        self, replay: Replay, inputs: Inputs, ready: Ready, watch: Watch, number: int
    ) -> None:
        self._replay, self._inputs, self._ready, self._watch = replay, inputs, ready, watch
        self._number, self.passed = number, False
        self._training, self._world = replay._training, replay._world
        self._step = ready.data.step
        self._place = number % len(ready.packs)  # which of this rank's packs
        self._clips = ready.data.packs[self._place]

    @contextmanager
    def watching(self) -> Iterator[None]:
        compiled = self._training.config.parallel.compile
        with ExitStack() as stack:
            tap = None
            if not compiled:
                stack.enter_context(_deterministic(self._world.device, self._replay._backward))
                tap = stack.enter_context(
                    Tap(self._training.model, at=self._place, backward=self._replay._backward)
                )
            hook = self._training.optimizer.register_step_pre_hook(lambda *_: self._compare(tap))
            stack.callback(hook.remove)
            yield

    def _compare(self, tap: Tap | None) -> None:
        """Between the backward pass of the step and its update."""
        counts = counts_of(self._inputs, self._step)
        self._objective = objective_of(self._training, self._ready.packs, counts, self._watch)
        rounds = _Rounds(self._world)
        with ExitStack() as stack:
            stack.enter_context(_gradients_aside(self._training))
            stack.enter_context(_deterministic(self._world.device, self._replay._backward))
            if tap is None:
                stack.enter_context(_uncompiled(self._training))
            else:
                tap.close()
                inputs = digest_of_all(self._ready.packs[self._place])
                rounds.add(self._own(), torch.cat((inputs[None], tap.digests())))
            begin_s = time.perf_counter()
            if tap is None:
                rounds.add(self._own(), self._recompute(self._own()))
            turns = range(1 + MORE_ROUNDS)
            for turn in turns:
                of = owners(self._replay._kinds, self._number, turn)
                rounds.add(of, self._recompute(of))
                if rounds.agree:
                    break
        seconds = time.perf_counter() - begin_s
        self.passed = self._replay._settle(self._step + 1, rounds, seconds)

    def _own(self) -> list[int]:
        return list(range(self._world.size))

    def _recompute(self, of: Sequence[int]) -> Tensor:
        """Digests of the pack of rank `of[this rank]`; every rank must call it."""
        clips = _exchanged(self._clips, of, self._world)
        data = StepData(self._step, [clips])
        (pack,) = noised_packs(self._training.config, self._inputs, data)
        pack = pack.to(self._world.device)
        return torch.cat((digest_of_all(pack)[None], self._pass(pack)))

    def _pass(self, pack: NoisedPack) -> Tensor:
        training = self._training
        set_gradient_sync(training.model, enabled=False)
        with Tap(training.model, backward=self._replay._backward, drop=True) as tap:
            with training.autocast:
                prediction = training.model(pack.batch, self._watch)
            _, whole = self._objective(prediction, pack)
            whole.backward()  # always, as it is by this that FSDP lets go of what it gathered
            return tap.digests()


class _Rounds:
    """All opinions of a check so far, equal on all ranks."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._opinions: dict[tuple[int, int], list[tuple[int, ...]]] = {}

    def add(self, of: Sequence[int], digests: Tensor) -> None:
        """What every rank has computed of the pack of rank `of[rank]`."""
        everyone = [digests]
        if self._world.size > 1:
            everyone = [torch.empty_like(digests) for _ in of]
            dist.all_gather(everyone, digests)
        for rank, (owner, found) in enumerate(zip(of, everyone, strict=True)):
            self._opinions.setdefault((rank, owner), []).append(tuple(found.tolist()))

    @property
    def agree(self) -> bool:
        return not self._differing()

    def verdict(self) -> Verdict:
        return judge(self._opinions)

    def differing(self, names: Sequence[str]) -> list[str]:
        return [names[index] for index in self._differing()]

    def _differing(self) -> list[int]:
        """Places of the digests in which opinions of a pack differ."""
        packs: dict[int, list[tuple[int, ...]]] = {}
        for (_, owner), digests in self._opinions.items():
            packs.setdefault(owner, []).extend(digests)
        return sorted(
            {
                index
                for found in packs.values()
                for index, each in enumerate(zip(*found, strict=True))
                if len(set(each)) > 1
            }
        )


def covered(config: RunConfig, device: torch.device) -> tuple[bool, str]:
    """Whether gradients can be compared bitwise on `device`, and what is compared, with the reason.

    On CUDA the backward passes of attention and of index_select add up in any order, unless torch
    is told to be deterministic, which cuBLAS has to be told at the start of the process.
    """
    step = "a rehearsal without compilation" if config.parallel.compile else "the step itself"
    if device.type != "cuda":
        return True, f"{step}: forward and backward"
    if attention_for(device, getattr(torch, config.parallel.compute))[0] is flash_attention:
        return False, f"{step}: forward alone; the backward pass of flash-attn has no fixed order"
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in (":4096:8", ":16:8"):
        return False, (
            f"{step}: forward alone; set parallel.environment CUBLAS_WORKSPACE_CONFIG=:4096:8 for "
            "the backward pass, too"
        )
    return True, f"{step}: forward and backward"


def kind_of_rank(config: RunConfig, device: torch.device) -> tuple[Any, ...]:
    """What the roundings of a rank depend on; ranks of different kinds are not comparable."""
    attention = attention_for(device, getattr(torch, config.parallel.compute))[1]
    # Packs are noised on the host.
    host = torch.__version__, torch.backends.cpu.get_cpu_capability()
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        versions = torch.version.cuda, torch.backends.cudnn.version()
        return (*host, *versions, card.name, card.multi_processor_count, attention)
    return (*host, _processor(), torch.get_num_threads(), attention)


def _processor() -> str:
    """The model of the CPU; libraries choose their code by it."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _gathered(value: Any, world: World) -> list[Any]:
    if world.size == 1:
        return [value]
    found = [None] * world.size
    dist.all_gather_object(found, value)
    return found


def _exchanged(clips: Clips, of: Sequence[int], world: World) -> Clips:
    """The clips of rank `of[this rank]`; this rank's go to who computes them."""
    if list(of) == list(range(world.size)):
        return clips
    source, target = of[world.rank], list(of).index(world.rank)
    whole = bytearray(pickle.dumps([_compact(clip) for clip in clips]))
    sent = torch.frombuffer(whole, dtype=torch.uint8).to(world.device)
    sizes = _gathered(len(sent), world)
    received = torch.empty(sizes[source], dtype=torch.uint8, device=world.device)
    to, from_ = [0] * world.size, [0] * world.size
    to[target], from_[source] = len(sent), len(received)
    dist.all_to_all_single(received, sent, from_, to)
    return cast(Clips, pickle.loads(received.cpu().numpy().tobytes()))


def _compact(clip: Sample | Missing) -> Sample | Missing:
    """A clip is a window on all that was read with it, which would be sent as a whole."""
    if isinstance(clip, Missing):
        return clip
    return dataclasses.replace(clip, latent=clip.latent.clone(), text=clip.text.clone())


@contextmanager
def _gradients_aside(training: Training) -> Iterator[None]:
    """Keep the gradients of the step out of the reach of other passes."""
    weights = list(training.model.parameters())
    kept = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    try:
        yield
    finally:
        for weight, gradient in zip(weights, kept, strict=True):
            weight.grad = gradient


@contextmanager
def _uncompiled(training: Training) -> Iterator[None]:
    """Run blocks as they are written; recomputed, as they need more memory so."""
    blocks = [cast(Block, block) for block in training.model.blocks]
    runners = [block.runner for block in blocks]
    parallel = training.config.parallel
    plain = dataclasses.replace(parallel, compile=False, activation_checkpointing="full")
    try:
        for block in blocks:
            choose_runner(block, plain)
        yield
    finally:
        for block, runner in zip(blocks, runners, strict=True):
            block.runner = runner


@contextmanager
def _deterministic(device: torch.device, wanted: bool) -> Iterator[None]:
    """Make kernels of a CUDA device add up in a fixed order; those of a CPU do."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type != "cuda" or not wanted:
        yield
        return
    try:
        torch.use_deterministic_algorithms(True)
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
