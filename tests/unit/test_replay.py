"""Whose result is wrong: the judge, the order of turns, and digests of bits."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scalewright.errors import ConfigError, CorruptionError
from scalewright.train.tap import digest, digest_of_all
from scalewright.train.verdict import MORE_ROUNDS, ReplayConfig, Verdict, judge, owners

Opinions = dict[tuple[int, int], list[int]]


def held(
    kinds: Sequence[int], check: int, wrong: Callable[[int, int], bool], salt: int = 0
) -> Opinions:
    """A whole check: `wrong(rank, n)` says whether the n-th pass of a rank goes wrong.

    A wrong digest depends on rank and pack, and with `salt` on the pass.
    """
    opinions: Opinions = {}
    turns = [list(range(len(kinds)))] + [owners(kinds, check, t) for t in range(1 + MORE_ROUNDS)]
    for n, of in enumerate(turns):
        for rank, owner in enumerate(of):
            bad = wrong(rank, n)
            value = 10_000 + 97 * rank + owner + salt * n * 1000 if bad else owner
            opinions.setdefault((rank, owner), []).append(value)
    return opinions


worlds = st.lists(st.integers(0, 2), min_size=1, max_size=9)
checks = st.integers(0, 50)


@given(worlds, checks, st.integers(0, 12))
def test_every_pack_is_computed_once_a_turn_by_a_rank_of_its_kind(
    kinds: list[int], check: int, turn: int
) -> None:
    of = owners(kinds, check, turn)
    assert sorted(of) == list(range(len(kinds)))
    assert [kinds[owner] for owner in of] == kinds
    if turn == 0:
        for rank, owner in enumerate(of):
            assert (owner != rank) == (kinds.count(kinds[rank]) > 1)


@given(worlds, checks)
def test_all_of_a_kind_have_an_opinion_of_a_pack_after_as_many_turns(
    kinds: list[int], check: int
) -> None:
    for size in {kinds.count(kind) for kind in kinds}:
        seen = {(rank, owner) for turn in range(size)
                for rank, owner in enumerate(owners(kinds, check, turn))}  # fmt: skip
        for rank, kind in enumerate(kinds):
            if kinds.count(kind) == size:
                assert len([pair for pair in seen if pair[0] == rank]) == size


@given(st.integers(2, 40))
def test_later_checks_pair_ranks_anew(size: int) -> None:
    partners = [owners([0] * size, check, 0)[0] for check in range(size - 1)]
    assert sorted(partners) == list(range(1, size))


@given(worlds, checks)
def test_healthy_ranks_are_never_named(kinds: list[int], check: int) -> None:
    assert judge(held(kinds, check, lambda *_: False)) == Verdict((), 1.0, "all agree")


@given(st.integers(3, 9), checks, st.data())
def test_a_single_wrong_rank_among_three_or_more_is_named(
    size: int, check: int, data: st.DataObject
) -> None:
    """Whichever of its passes go wrong, in the same way every time or not."""
    rank = data.draw(st.integers(0, size - 1))
    passes = data.draw(st.sets(st.integers(0, 1 + MORE_ROUNDS), min_size=1))
    salt = data.draw(st.integers(0, 1))
    verdict = judge(held([0] * size, check, lambda r, n: r == rank and n in passes, salt))
    assert verdict.wrong == (rank,)
    assert verdict.confidence == 1.0


@given(st.integers(3, 7), st.integers(0, 3), checks, st.data())
def test_other_kinds_neither_hide_the_wrong_rank_nor_are_named(
    size: int, others: int, check: int, data: st.DataObject
) -> None:
    kinds = data.draw(st.permutations([0] * size + [1] * others))
    rank = data.draw(st.sampled_from([r for r, kind in enumerate(kinds) if kind == 0]))
    assert judge(held(kinds, check, lambda r, _: r == rank)).wrong == (rank,)


@given(checks, st.integers(0, 1), st.sets(st.integers(0, 5), min_size=1))
def test_of_two_ranks_one_that_contradicts_itself_is_named_and_else_both(
    check: int, rank: int, passes: set[int]
) -> None:
    opinions = held([0, 0], check, lambda r, n: r == rank and n in passes)
    fickle = any(len(set(found)) > 1 for found in opinions.values())
    verdict = judge(opinions)
    assert verdict.wrong == ((rank,) if fickle else (0, 1))
    assert verdict.confidence == (1.0 if fickle else 0.5)


def test_a_rank_without_peers_can_only_contradict_itself() -> None:
    assert judge({(0, 0): [7, 7, 7]}).wrong == ()
    assert judge({(0, 0): [7, 8]}).wrong == (0,)


@given(st.integers(2, 8), checks)
def test_software_that_is_not_deterministic_accuses_nobody(size: int, check: int) -> None:
    verdict = judge(held([0] * size, check, lambda r, n: n > 0, salt=1))
    assert verdict.wrong == ()
    if size < MORE_ROUNDS:  # of more, no rank computes a pack of another twice
        assert "not deterministic" in verdict.why


def test_ranks_that_fall_into_groups_accuse_nobody() -> None:
    """Two compute in one way and two in another, which no fault does."""
    opinions = {(rank, owner): [rank // 2] for rank in range(4) for owner in range(4)}
    assert judge(opinions).wrong == ()
    assert "groups" in judge(opinions).why


def test_several_at_once_are_named_with_less_confidence() -> None:
    verdict = judge(held([0] * 8, 0, lambda r, _: r in (2, 5)))
    assert verdict.wrong == (2, 5)
    assert verdict.confidence == 0.5


def test_pairs_without_a_common_rank_accuse_nobody() -> None:
    assert judge(held([0, 0, 1, 1], 0, lambda r, _: r in (0, 2))).wrong == ()


dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])


@given(dtypes, st.integers(1, 200), st.data())
def test_a_digest_knows_every_bit_and_changes_none(
    dtype: torch.dtype, size: int, data: st.DataObject
) -> None:
    values = (100 * torch.randn(size)).to(dtype)
    before = values.clone()
    flipped = values.clone()
    raw = flipped.view(torch.uint8)
    place = data.draw(st.integers(0, len(raw) - 1))
    # A bool has one bit.
    raw[place] ^= 1 << (0 if dtype is torch.bool else data.draw(st.integers(0, 7)))
    assert digest(values) != digest(flipped)
    assert digest(values) == digest(before)
    assert torch.equal(values.view(torch.uint8), before.view(torch.uint8))


def test_digests_tell_apart_what_sums_do_not() -> None:
    x = torch.randn(64, dtype=torch.float64)
    assert digest(x) != digest(x.flip(0))
    assert digest(x) != digest(-x)
    assert digest(torch.zeros(4)) != digest(torch.zeros(5))
    assert digest(x, salt=1) != digest(x, salt=2)
    assert digest(torch.tensor(0.0)) != digest(torch.tensor(-0.0))
    assert digest_of_all([x, x + 1]) != digest_of_all([x + 1, x])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_digests_tell_apart_what_flipped_bits_leave(dtype: torch.dtype) -> None:
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    x = torch.randn(64, dtype=dtype, generator=torch.Generator().manual_seed(0))
    whole = digest(x)
    for bit in range(8 * dtype.itemsize):
        one = torch.ones((), dtype=integers) << bit
        for trial in range(50):
            chosen = torch.rand(64, generator=torch.Generator().manual_seed(trial)) < 0.5
            flipped = torch.where(chosen, x.view(integers) ^ one, x.view(integers))
            assert digest(flipped.view(dtype)) != whole, (bit, trial)


def test_a_digest_does_not_depend_on_strides_or_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(37, 11)
    whole = digest(x)
    assert digest(x.T.contiguous().T) == whole
    monkeypatch.setattr("scalewright.train.tap._CHUNK", 100)
    assert digest(x) == whole


def test_when_a_check_is_due() -> None:
    config = ReplayConfig(every_steps=4)
    assert [n for n in range(1, 11) if config.is_due(n, 10)] == [4, 8, 10]
    assert not any(replace(config, every_steps=0).is_due(n, 10) for n in range(1, 11))
    with pytest.raises(ConfigError, match=r"replay\.every_steps = -1; at least 1, or 0"):
        ReplayConfig(every_steps=-1)


def test_the_error_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(CorruptionError("why", (1,), 7, 1.0)))
    assert (str(error), error.ranks, error.step, error.culprit) == ("why", (1,), 7, 1)
    assert CorruptionError("why", (0, 1), 7, 0.5).culprit is None
    assert error.exit_code == 1
