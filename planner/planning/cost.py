"""GPUs: FLOPs that they give in some days, hours and money of a run, memory it takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.errors import InputError
from planner.fitting.base import Base
from scalewright.model.memory import MemoryEstimate, memory_estimate
from scalewright.model.shape import ModelConfig

DEFAULT_RATIOS = (10.0, 30.0, 100.0)
DAY_S, HOUR_S = 86_400.0, 3_600.0


@dataclass(frozen=True, slots=True)
class Hardware:
    """GPUs to plan for.

    `peak_flops` is dense bf16 FLOP/s; `utilisation` the share of it that training reaches, exact
    FLOPs counted; `source` says where peak and memory are from. Price and utilisation are
    assumptions until they are measured.
    """

    name: str = "H100 SXM"
    peak_flops: float = 989e12
    memory_bytes: float = 80e9
    price_per_gpu_hour: float = 2.5
    source: str = "NVIDIA H100 data sheet, dense bf16 (half of the sparse 1,979 TFLOPS)"
    utilisation: float = 0.40
    gpus: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.utilisation <= 1:
            raise InputError(f"--utilisation {self.utilisation:g}: above 0, at most 1")
        if self.gpus < 1:
            raise InputError(f"--gpus {self.gpus}: at least 1")
        for option, value in (
            ("--gpu-peak-tflops", self.peak_flops / 1e12),
            ("--price", self.price_per_gpu_hour),
        ):
            if not 0 < value < float("inf"):
                raise InputError(f"{option} {value:g}: a finite number above 0")

    @property
    def flops_per_s(self) -> float:
        """FLOP/s of one GPU as it is used."""
        return self.peak_flops * self.utilisation

    @property
    def assumption(self) -> str:
        """Peak and utilisation in words."""
        return (
            f"{self.peak_flops / 1e12:g} TFLOP/s of {self.name} at {self.utilisation:.0%} "
            "utilisation (assumed)"
        )

    def gpu_hours(self, flops: float) -> float:
        return flops / self.flops_per_s / HOUR_S

    def days(self, flops: float) -> float:
        """On all GPUs together."""
        return self.gpu_hours(flops) * HOUR_S / DAY_S / self.gpus

    def cost(self, flops: float) -> float:
        return self.gpu_hours(flops) * self.price_per_gpu_hour

    def flops_in(self, days: float) -> float:
        """What all GPUs give in so many days."""
        return self.gpus * days * DAY_S * self.flops_per_s


# Prices: what specialised clouds ask on demand in 2026, rounded; say your own with --price.
HARDWARE = {
    "A100": Hardware(
        "A100 SXM 80GB", 312e12, 80e9, 1.5, "NVIDIA A100 data sheet, dense bf16 tensor core"
    ),
    "H100": Hardware(),
    "H200": Hardware(
        "H200 SXM", 989e12, 141e9, 3.5,
        "NVIDIA H200 data sheet, dense bf16 (half of the sparse 1,979 TFLOPS)",
    ),
    "B200": Hardware(
        "B200 SXM", 2250e12, 180e9, 5.0,
        "NVIDIA HGX B200 data sheet, dense bf16 (half of the sparse 4.5 PFLOPS)",
    ),
}  # fmt: skip


def hardware_of(
    gpu: str = "H100",
    *,
    peak_tflops: float | None = None,
    utilisation: float | None = None,
    price_per_gpu_hour: float | None = None,
    gpus: int | None = None,
) -> Hardware:
    """The named GPU with what the command line says of it; `InputError` for an unknown name."""
    if gpu not in HARDWARE:
        raise InputError(
            f"--gpu {gpu!r}: unknown; known: {', '.join(HARDWARE)}, and for any other "
            "--gpu-peak-tflops beside the one nearest in memory"
        )
    hardware = HARDWARE[gpu]
    said = {
        "utilisation": utilisation,
        "price_per_gpu_hour": price_per_gpu_hour,
        "gpus": gpus,
    }
    if peak_tflops is not None:
        hardware = replace(hardware, peak_flops=peak_tflops * 1e12, source="--gpu-peak-tflops")
    return replace(hardware, **{name: value for name, value in said.items() if value is not None})  # type: ignore[arg-type]


def targets(
    largest_flops: float,
    wanted: Sequence[float] = (),
    hardware: Hardware | None = None,
    days: float | None = None,
) -> list[float]:
    """FLOPs to plan for: those wanted, what the GPUs give in `days`, or 10x, 30x, 100x the largest.

    `InputError` where both are said.
    """
    if days is None:
        return list(wanted) or [ratio * largest_flops for ratio in DEFAULT_RATIOS]
    if wanted:
        raise InputError("--target and --days both say what to plan for; give one of them")
    if not 0 < days < float("inf"):
        raise InputError(f"--days {days:g}: a finite number above 0")
    return [(hardware or Hardware()).flops_in(days)]


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one of `workers` GPUs among which a step is shared."""

    workers: int
    packs_per_worker: int
    estimate: MemoryEstimate


def memory_per_gpu(
    base: Base, model: ModelConfig, packs_per_step: int, hardware: Hardware
) -> Memory:
    """Peak memory under full sharding over as many of the GPUs as share a step's packs evenly."""
    workers = max(world for world in range(1, hardware.gpus + 1) if packs_per_step % world == 0)
    packs = packs_per_step // workers
    return Memory(
        workers,
        packs,
        memory_estimate(
            model,
            workers=workers,
            packs_per_worker=packs,
            pack_tokens=base.pack_tokens,
            compute_bytes=base.compute_bytes,
            activation_checkpointing=base.activation_checkpointing,
        ),
    )
