"""Byte n-grams as text embeddings, and T5 on tiny random weights."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scalewright.data.text import MAX_WORDS, ByteNgramEncoder, text_encoder_for, words
from scalewright.errors import ConfigError

EXPECTED = [
    "--+--+--+--+-+--+--++-+++---++-+",
    "+0-0-0+--000++0-0-0-0+0-00+0+--0",
    "0+-------0--+0+---+---0-+++-0-00",
    "--++----+0++----+--+-++-00++-++-",
]


def vector(word: str) -> Tensor:
    return ByteNgramEncoder().encode([word])[0][1]


def likeness(one: str, other: str) -> float:
    return torch.cosine_similarity(vector(one), vector(other), dim=0).item()


def test_nothing_is_the_begin_token_alone() -> None:
    empty, blank, red = ByteNgramEncoder().encode(["", " \n.,;", "red"])
    assert empty.shape == (1, 64)
    assert torch.equal(blank, empty)
    assert torch.equal(red[:1], empty)
    assert red.shape == (2, 64)


@settings(deadline=None)
@given(prompt=st.text(max_size=200))
def test_every_token_has_unit_size(prompt: str) -> None:
    (tokens,) = ByteNgramEncoder(dim=48).encode([prompt])
    assert tokens.shape == (1 + len(words(prompt)), 48)
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens.square().mean(1).sqrt(), torch.ones(len(tokens)))


def test_words_are_cut_at_space_and_punctuation_without_case() -> None:
    assert words('A red-brick Wall, "again"; Ärger\u00a0x2') == [
        *("a", "red", "brick", "wall", "again", "ärger", "x2")
    ]
    assert words("a\u0308") == words("ä"), "the same letter in two Unicode forms"


def test_words_after_the_last_are_not_read() -> None:
    (tokens,) = ByteNgramEncoder().encode([" ".join(f"w{i}" for i in range(100))])
    assert len(tokens) == 1 + MAX_WORDS


def test_similar_words_get_similar_vectors() -> None:
    assert likeness("circle", "circles") > 0.7
    assert likeness("moves", "moved") > 0.4
    for other in ("square", "triangle", "red", "left"):
        assert likeness("circle", other) < 0.5
    assert likeness("left", "felt") < 0.9, "the order of letters counts"


def test_vectors_are_the_same_in_every_process() -> None:
    # Python's own hashes differ from process to process; these values must not.
    (tokens,) = ByteNgramEncoder(dim=32).encode(["a red circle"])
    signs = ["".join("-0+"[int(value.sign()) + 1] for value in token) for token in tokens]
    assert signs == EXPECTED


def test_text_encoder_for_reads_fingerprints() -> None:
    encoder = text_encoder_for("byte-ngrams(dim=32)", None)
    assert (encoder.fingerprint, encoder.dim) == ("byte-ngrams(dim=32)", 32)
    with pytest.raises(ConfigError, match="at least 32"):
        text_encoder_for("byte-ngrams(dim=8)", None)
    with pytest.raises(ConfigError, match=r"clip.*known: byte-ngrams"):
        text_encoder_for("clip", None)
    with pytest.raises(ConfigError, match="--text-weights"):
        text_encoder_for("t5(0123456789ab)", None)


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """T5's encoder with tiny random weights and a tokenizer of seven words."""
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel
    except Exception as error:
        pytest.skip(f'needs transformers (pip install -e ".[encoders]"): {error}')
    folder = tmp_path_factory.mktemp("t5")
    vocabulary = ["<pad>", "</s>", "<unk>", "a", "red", "circle", "square"]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    config = T5Config(vocab_size=7, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    return folder


def test_t5_embeds_each_prompt_at_its_own_length(t5_folder: Path) -> None:
    from scalewright.data.t5 import MAX_TOKENS, T5Encoder

    encoder = T5Encoder(t5_folder)
    assert encoder.dim == 16
    empty, short, long, cut = encoder.encode(
        ["", "a red circle", "a red square a red circle", "red " * 500]
    )
    assert [len(empty), len(short), len(long), len(cut)] == [1, 4, 7, MAX_TOKENS]
    assert short.dtype == torch.float32
    assert not torch.equal(short[:3], long[:3]), "tokens see their context"
    assert torch.equal(encoder.encode(["a red circle"])[0], short)
    assert text_encoder_for(encoder.fingerprint, t5_folder).fingerprint == encoder.fingerprint
    with pytest.raises(ConfigError, match="give the folder of those weights"):
        text_encoder_for("t5(000000000000)", t5_folder)
