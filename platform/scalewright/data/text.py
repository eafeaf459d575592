"""Captions -> text embeddings: a token a word without weights, or T5 (in `t5.py`).

Shapes: S text tokens, D numbers a token.
"""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalewright.errors import ConfigError

MAX_WORDS = 64
LONGEST_NGRAM_BYTES = 4
_BEGIN = b"<>"  # no word is empty, so no n-gram of a word is this


class TextEncoder(Protocol):
    """Prompts to embeddings; `fingerprint` names the encoder and everything that shapes it."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """One (S, D) float32 a prompt, each of its own length, S >= 1 also for ""."""
        ...


def text_encoder_for(fingerprint: str, weights: Path | None) -> TextEncoder:
    """The encoder that made embeddings of this `fingerprint`; `weights` is read by learned ones."""
    ngrams = re.fullmatch(r"byte-ngrams\(dim=(\d+)\)", fingerprint)
    if ngrams:
        return ByteNgramEncoder(dim=int(ngrams[1]))
    if not fingerprint.startswith("t5("):
        raise ConfigError(
            f"text encoder {fingerprint!r} is not known; known: byte-ngrams(dim=N), t5(DIGEST)"
        )
    if weights is None:
        raise ConfigError(
            f"text encoder {fingerprint} needs its weights; give their folder with --text-weights"
        )
    from scalewright.data.t5 import T5Encoder

    encoder = T5Encoder(weights)
    if encoder.fingerprint != fingerprint:
        raise ConfigError(
            f"{weights} holds {encoder.fingerprint}, but the data were made with {fingerprint}; "
            f"give the folder of those weights"
        )
    return encoder


class ByteNgramEncoder:
    """A begin token, then a token a word: the sum of hashed +-1 vectors of its byte n-grams.

    Words that share n-grams (n = 1..4, with marks at both ends) get similar vectors, as in
    fastText (Bojanowski et al. 2017), but nothing is learned. Words are runs of letters and
    digits, lower-cased; punctuation only separates. Words after the 64th are not read. Each token
    has a root mean square of 1. The same on every platform.
    """

    def __init__(self, dim: int = 64) -> None:
        if dim < 32:  # fewer signs could cancel, or tell words apart badly
            raise ConfigError(f"byte-ngrams(dim={dim}); dim must be at least 32")
        self._dim = dim

    @property
    def fingerprint(self) -> str:
        return f"byte-ngrams(dim={self._dim})"

    @property
    def dim(self) -> int:
        return self._dim

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """One (1 + words, D) float32 a prompt."""
        return [self._encode(prompt) for prompt in prompts]

    def _encode(self, prompt: str) -> Tensor:
        tokens = [_signs(_BEGIN, self._dim)]
        tokens += [_word_vector(word, self._dim) for word in words(prompt)]
        return torch.from_numpy(np.stack(tokens))


def words(prompt: str) -> list[str]:
    """The words that `ByteNgramEncoder` reads, at most 64."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFC", prompt).lower())[:MAX_WORDS]


@functools.lru_cache(maxsize=65_536)
def _word_vector(word: str, dim: int) -> NDArray[np.float32]:
    total = np.sum([_signs(ngram, dim) for ngram in _ngrams(word)], axis=0)
    return (total / np.sqrt(np.mean(total**2))).astype(np.float32)


def _ngrams(word: str) -> list[bytes]:
    marked = b"<" + word.encode() + b">"
    return [
        marked[start : start + size]
        for size in range(1, LONGEST_NGRAM_BYTES + 1)
        for start in range(len(marked) - size + 1)
        if size > 1 or 0 < start < len(marked) - 1  # a mark alone tells nothing
    ]


def _signs(ngram: bytes, dim: int) -> NDArray[np.float32]:
    bits = np.frombuffer(hashlib.shake_256(ngram).digest((dim + 7) // 8), np.uint8)
    return np.unpackbits(bits)[:dim].astype(np.float32) * 2 - 1
