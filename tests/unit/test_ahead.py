"""Steps made ahead: in order, whatever ends them, and no thread outlives its context."""

import threading
from collections.abc import Iterator

import pytest
import torch
from ranks import CPU, small

from scalewright.data.loader import StepData
from scalewright.data.sample import Sample
from scalewright.objective.flow import NoisedPack, training_pack
from scalewright.train.ahead import STEPS_AHEAD, Ahead

CONFIG = small()
NULL = torch.zeros(1, CONFIG.model.text_dim)


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    yield
    assert not [each.name for each in threading.enumerate() if each.name == "ahead"]


def noised(data: StepData) -> list[NoisedPack]:
    return [
        training_pack(pack, NULL, CONFIG.flow, CONFIG.model, seed=0, step=data.step)
        for pack in data.packs
    ]


def steps(count: int) -> Iterator[StepData]:
    for step in range(count):
        latent = torch.full((1, CONFIG.model.latent_channels, 4, 4), float(step)).half()
        text = torch.ones(3, CONFIG.model.text_dim).half()
        yield StepData(step, [[Sample(step, latent, text, {})]])


def test_every_step_comes_once_and_is_what_making_it_in_place_gives() -> None:
    with Ahead(noised, CPU) as ahead:
        for data, ready in zip(steps(7), ahead.over(steps(7)), strict=True):
            assert ready.data.step == data.step
            for found, wanted in zip(ready.packs, noised(data), strict=True):
                assert torch.equal(found.target, wanted.target)
                assert torch.equal(found.batch.visual, wanted.batch.visual)
    assert ahead.wait_s > 0


def test_no_more_is_made_than_will_be_used_next() -> None:
    made, enough = list[int](), threading.Event()

    def make(data: StepData) -> list[NoisedPack]:
        made.append(data.step)
        if len(made) == STEPS_AHEAD + 2:
            enough.set()
        return []

    with Ahead(make, CPU) as ahead:
        assert next(iter(ahead.over(steps(50)))).data.step == 0
        assert enough.wait(10)  # one in use, some waiting, one that waits for room
        assert len(made) == STEPS_AHEAD + 2


@pytest.mark.parametrize("where", ["loader", "make"])
def test_errors_reach_the_steps_after_those_that_were_made(where: str) -> None:
    def failing() -> Iterator[StepData]:
        yield from steps(3)
        raise OSError("no more")

    def make(data: StepData) -> list[NoisedPack]:
        if where == "make" and data.step == 2:
            raise OSError("no more")
        return noised(data)

    with Ahead(make, CPU) as ahead:
        ready = ahead.over(failing() if where == "loader" else steps(9))
        for step in range(3 if where == "loader" else 2):
            assert next(ready).data.step == step
        with pytest.raises(OSError, match="no more"):
            next(ready)


def test_it_can_be_left_while_its_loader_waits() -> None:
    closed = threading.Event()

    def stuck() -> Iterator[StepData]:
        yield from steps(1)
        closed.wait()
        raise RuntimeError("closed")

    with Ahead(noised, CPU) as ahead:
        next(iter(ahead.over(stuck())))
        closed.set()  # as leaving the loader's context does
