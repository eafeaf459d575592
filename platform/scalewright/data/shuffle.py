"""Shuffles that are computed, not stored: where the clip at any place of an epoch lies.

An epoch visits the clips in runs: some clips that lie side by side in a shard, and are read
together. Runs come in a keyed random order; the clips of a block of runs are then shuffled among
themselves. So two clips far apart in the shards meet at random, while neighbours stay within one
block: with blocks of 65,536 clips the shuffle of a set of that size is perfect, and of a larger one
it is that of its runs.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6  # of the Feistel network; 4 give a good random permutation (Luby and Rackoff 1988)


def key_of(*parts: object) -> int:
    """64 bits that depend on all parts and on nothing else."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def permuted(places: NDArray[np.int64], count: int, key: int) -> NDArray[np.int64]:
    """What a keyed random permutation of range(count) has at `places`; no memory but theirs.

    A Feistel network over the smallest square of a power of two, walked until it is in range.
    """
    half = max(1, (max(count - 1, 1).bit_length() + 1) // 2)
    found = _feistel(places.astype(np.uint64), half, key)
    while (outside := found >= count).any():
        found[outside] = _feistel(found[outside], half, key)
    return found.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half: int, key: int) -> NDArray[np.uint64]:
    mask, bits = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = values >> bits, values & mask
    for number in range(ROUNDS):
        left, right = right, left ^ (_mix(right + _key_word(key, number)) & mask)
    return left << bits | right


def _key_word(key: int, number: int) -> np.uint64:
    return np.uint64((key + number * 0x9E3779B97F4A7C15) % 2**64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64; wraps around, as it is meant to."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def epoch_rows(count: int, run: int, key: int, begin: int, end: int) -> NDArray[np.int64]:
    """Which of `count` rows come at the places `begin` to before `end` of an epoch, in runs.

    Every row comes once an epoch. What is left over beside whole runs comes last; where the first
    run begins is keyed too, so that it is not always the same.
    """
    places = np.arange(begin, end, dtype=np.int64)
    runs = count // run
    whole = places < runs * run
    rows = places.copy()
    inside = places[whole]
    rows[whole] = permuted(inside // run, runs, key) * run + inside % run
    return (rows + key % count) % count


def shuffled(values: NDArray[np.int64], key: int) -> NDArray[np.int64]:
    """The values in a keyed random order; a set of any size below 2^32 has its own."""
    return values[permuted(np.arange(len(values), dtype=np.int64), len(values), key)]
