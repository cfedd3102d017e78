"""What the reader says of each token is what the tokenizer's own decoder makes of it in a text."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import guard.demo
from guard.classifiers.spans import PromptDecoder
from guard.classifiers.token_bytes import TokenBytes, read_tokenizer
from guard.classifiers.vocabulary import Vocabulary
from guard.errors import ConfigurationError
from tests.classifiers.vocabularies import tokenizer as trained

DEMO = Path(guard.demo.__file__).parent / "model"
DEMO_DIGEST = "0bdeba5a14c21877fba264a9473b64f70ffd5894ede45d05145dbd7257c6f2da"
WORDS = ("\u2581Hi", "na", "\u2581", "\u2581\u2581", "é", "日", "x y", "a", "\u2581Ameen", ".", "##s", "\n", "<0xZZ>")
KINDS = ("demo", "metaspace", "metaspace never", "byte fallback", "llama", "word pieces", "word ends")


@lru_cache(maxsize=16)
def tokenizer(kind: str) -> Any:
    """A tokenizer of each kind of decoder, with an added token of its own and one special token."""
    if kind == "demo":
        made = AutoTokenizer.from_pretrained(DEMO)
    else:
        made = PreTrainedTokenizerFast(tokenizer_object=_backend(kind), unk_token="<unk>", eos_token="</s>")
    made.add_tokens([AddedToken("plain added", normalized=False), AddedToken("日本", normalized=False)])
    return made


def _backend(kind: str) -> Tokenizer:
    vocabulary = {"<unk>": 0, "</s>": 1, **{f"<0x{byte:02X}>": byte + 2 for byte in range(256)}}
    for word in (*WORDS, "er</w>", "Ġx"):
        vocabulary[word] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    fallback = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    kinds: dict[str, Any] = {
        "metaspace": decoders.Metaspace(),
        "metaspace never": decoders.Metaspace(prepend_scheme="never"),
        "byte fallback": decoders.Sequence(fallback),
        "llama": decoders.Sequence([*fallback, decoders.Strip(" ", 1, 0)]),
        "word pieces": decoders.WordPiece(cleanup=False),
        "word ends": decoders.BPEDecoder(),
    }
    backend.decoder = kinds[kind]
    return backend


@lru_cache(maxsize=16)
def read(kind: str) -> TokenBytes:
    """What the reader says of a kind."""
    return read_tokenizer(tokenizer(kind))


@given(st.data())
@settings(max_examples=300, deadline=None)
@pytest.mark.parametrize("kind", KINDS)
def test_joined_bytes_are_what_the_tokenizer_decodes(kind: str, data: st.DataObject) -> None:
    made, bytes_of = tokenizer(kind), read(kind)
    usable = [i for i, piece in enumerate(bytes_of.pieces) if piece is not None and i not in bytes_of.special_ids]
    bytes_as_tokens = kind in ("byte fallback", "llama")
    if bytes_as_tokens:
        # decoders show a broken run of byte tokens one by one as U+FFFD, readable ones with it; only whole runs agree
        usable = [i for i in usable if i < 2 or i > 257]
        characters = data.draw(st.lists(st.sampled_from(["A", "é", "日", "🐍", ""]), max_size=8))
        runs = [[made.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in text.encode()] for text in characters]
        ids = [token for run in runs for token in [*run, data.draw(st.sampled_from(usable))]]
    else:
        ids = data.draw(st.lists(st.sampled_from(usable), max_size=24))
    # a decoder may treat the ends of a text in its own way: both ends are ordinary letters here
    letter = made.convert_tokens_to_ids("a")
    ids = [letter, *ids, letter]
    joined = b"".join(bytes_of.pieces[token] or b"" for token in ids).decode("utf-8", "replace")
    decoded = made.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    # where words are joined by spaces there is one before the first word, which the decoder leaves out
    assert joined.removeprefix(" ") == decoded


@pytest.mark.parametrize(
    ("kind", "piece", "expected"),
    [
        ("metaspace", "\u2581Hi", b" Hi"), ("metaspace", "<0x41>", b"<0x41>"), ("byte fallback", "<0xE9>", b"\xe9"),
        ("byte fallback", "<0xZZ>", b"<0xZZ>"), ("llama", "\u2581", b" "), ("word pieces", "##s", b"s"),
        ("word pieces", "na", b" na"), ("word ends", "er</w>", b"er "), ("metaspace", "Ġx", "Ġx".encode()),
        ("metaspace", "plain added", b"plain added"), ("demo", "plain added", b"plain added"),
        ("demo", "日本", "日本".encode()), ("metaspace", "</s>", b"</s>"),
    ],
)
def test_a_token_stands_for_these_bytes(kind: str, piece: str, expected: bytes) -> None:
    assert read(kind).pieces[tokenizer(kind).convert_tokens_to_ids(piece)] == expected


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@settings(max_examples=200, deadline=None)
def test_a_byte_level_vocabulary_without_a_decoder_is_read_as_the_text_it_was_made_from(text: str) -> None:
    bare = _without_decoder()
    assert PromptDecoder(bare).decode(bare(text, add_special_tokens=False).input_ids).text == text


def test_detector_and_constraint_read_one_vocabulary_alike_with_or_without_a_decoder() -> None:
    whole, bare = AutoTokenizer.from_pretrained(DEMO), _without_decoder()
    assert read_tokenizer(bare) == read_tokenizer(whole)
    assert Vocabulary.from_tokenizer(bare).digest == Vocabulary.from_tokenizer(whole).digest == DEMO_DIGEST


@lru_cache(maxsize=1)
def _without_decoder() -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    backend.decoder = None
    eos = AutoTokenizer.from_pretrained(DEMO).eos_token
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos)


@pytest.mark.parametrize("kind", ["bundled", "sentencepiece"])
@given(text=st.text(alphabet="Hina Ameen é日🐍\n", max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_text_survives_a_trained_vocabulary(kind: str, text: str) -> None:
    made = trained(kind)
    assert PromptDecoder(made).decode(made(text, add_special_tokens=False).input_ids).text == text


def test_words_without_a_decoder_are_joined_by_spaces_as_the_tokenizer_does() -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "Hina": 1, "Ameen": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert PromptDecoder(words).decode([1, 2]).text == " Hina Ameen"
    assert words.decode([1, 2]) == "Hina Ameen"


def test_an_added_token_that_a_byte_level_decoder_breaks_keeps_its_text() -> None:
    made = AutoTokenizer.from_pretrained(DEMO)
    made.add_tokens(["José"])
    (token,) = made("José", add_special_tokens=False).input_ids
    assert made.decode([token]) == "Jos\ufffd"
    assert PromptDecoder(made).decode([token]).text == "José"
    assert read_tokenizer(made).pieces[token] == "José".encode()


def test_special_tokens_are_marked_and_have_no_text_for_the_constraint() -> None:
    made = tokenizer("demo")
    assert set(made.all_special_ids) <= read("demo").special_ids
    assert read("demo").eos_ids == (made.eos_token_id,)
    vocabulary = Vocabulary.from_tokenizer(made)
    assert vocabulary.rest(made.eos_token_id) == [] and made.eos_token_id in vocabulary.special_ids


def test_a_tokenizer_without_its_json_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="tokenizer.json"):
        read_tokenizer(object())
