import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.planner.synthetic import Truth, platform_sweep, settings, sweep_of

from planner.errors import InputError
from planner.fitting.base import Base, read_base
from planner.planning.cost import HARDWARE, Hardware, hardware_of, memory_per_gpu, targets
from scalewright.model.memory import memory_estimate


@pytest.fixture(scope="module")
def base() -> Base:
    rows = platform_sweep(Truth(), budgets=(1e11,), lrs=(4e-3,))
    found = read_base(sweep_of(rows, settings()))
    assert found is not None
    return found


def test_hours_and_cost_follow_from_peak_utilisation_and_price() -> None:
    gpu = Hardware(peak_flops=1e15, utilisation=0.4, price_per_gpu_hour=2.5, gpus=10)
    assert gpu.gpu_hours(1e21) == pytest.approx(1e21 / 4e14 / 3600)
    assert gpu.gpu_hours(1e21) == pytest.approx(694.444, rel=1e-5)
    assert gpu.cost(1e21) == pytest.approx(1736.11, rel=1e-5)
    assert gpu.days(1e21) == pytest.approx(2.89352, rel=1e-5)
    assert "1000 TFLOP/s" in gpu.assumption
    assert "40% utilisation" in gpu.assumption


@given(
    st.floats(1e-3, 1e4),
    st.integers(1, 100_000),
    st.floats(0.01, 1),
    st.sampled_from(list(HARDWARE)),
)
def test_the_flops_of_some_days_take_just_these_days(
    days: float, gpus: int, utilisation: float, name: str
) -> None:
    gpu = hardware_of(name, gpus=gpus, utilisation=utilisation)
    assert gpu.days(gpu.flops_in(days)) == pytest.approx(days)


def test_64_gpus_for_14_days_are_3e22_flops() -> None:
    (target,) = targets(1e20, hardware=hardware_of(gpus=64), days=14)
    assert target == pytest.approx(64 * 14 * 86_400 * 989e12 * 0.4)
    assert target == pytest.approx(3.0625e22, rel=1e-4)


def test_without_a_target_it_is_10_30_and_100_times_the_largest() -> None:
    assert targets(2e18) == [2e19, 6e19, 2e20]
    assert targets(2e18, [1e22, 3e22]) == [1e22, 3e22]


def test_a_target_said_twice_is_an_error() -> None:
    with pytest.raises(InputError, match="--target and --days both say"):
        targets(1e18, [1e22], days=3)
    with pytest.raises(InputError, match="--days 0"):
        targets(1e18, days=0)


def test_what_is_said_of_a_gpu_stands_above_the_table() -> None:
    gpu = hardware_of("B200", peak_tflops=2000, utilisation=0.3, price_per_gpu_hour=6, gpus=72)
    assert gpu == Hardware("B200 SXM", 2e15, 180e9, 6, "--gpu-peak-tflops", 0.3, 72)
    assert hardware_of() == HARDWARE["H100"] == Hardware()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"gpu": "V100"}, "known: A100, H100, H200, B200"),
        ({"utilisation": 0.0}, "--utilisation 0: above 0"),
        ({"utilisation": 40.0}, "--utilisation 40"),
        ({"peak_tflops": -1.0}, "--gpu-peak-tflops -1"),
        ({"price_per_gpu_hour": float("inf")}, "--price inf"),
        ({"gpus": 0}, "--gpus 0"),
    ],
)
def test_a_gpu_that_cannot_be_is_refused(said: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        hardware_of(**said)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("packs", "gpus", "workers"), [(4, 8, 4), (6, 4, 3), (16, 8, 8), (7, 4, 1)]
)
def test_memory_is_that_of_as_many_gpus_as_share_a_step_evenly(
    base: Base, packs: int, gpus: int, workers: int
) -> None:
    found = memory_per_gpu(base, base.model, packs, Hardware(gpus=gpus))
    assert found.workers == workers
    assert found.packs_per_worker == packs // workers
    assert found.estimate == memory_estimate(
        base.model,
        workers=workers,
        packs_per_worker=packs // workers,
        pack_tokens=2048,
        compute_bytes=4,
        activation_checkpointing="none",
    )
