"""Offsets between the engine's tokens and their text are exact."""

from __future__ import annotations

from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from guard.classifiers.spans import PromptDecoder, ordinary_text, turns
from guard.demo.corpus import training_examples
from guard.demo.train import train_tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@lru_cache(maxsize=1)
def demo_tokenizer() -> PreTrainedTokenizerFast:
    """The bundled model's tokenizer."""
    return train_tokenizer(training_examples("full"))


@lru_cache(maxsize=1)
def demo_decoder() -> PromptDecoder:
    """Decoder of the bundled tokenizer."""
    return PromptDecoder(demo_tokenizer())


def encode(text: str) -> list[int]:
    """Token ids of a text without template."""
    return list(demo_tokenizer()(text, add_special_tokens=False).input_ids)


def chat(*contents: str) -> list[int]:
    """Token ids of a dialogue that begins with the user."""
    roles = ("user", "assistant")
    messages = [{"role": roles[turn % 2], "content": content} for turn, content in enumerate(contents)]
    return encode(str(demo_tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)))


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@settings(max_examples=300, deadline=None)
def test_text_survives_and_every_token_covers_exactly_its_bytes(text: str) -> None:
    decoder = demo_decoder()
    prompt = decoder.decode(encode(text))
    assert prompt.text == text
    reached = 0
    for (start, end), token in zip(prompt.offsets, prompt.token_ids, strict=True):
        piece = demo_tokenizer().convert_ids_to_tokens(token)
        # a token shares at most one character with its predecessor, and leaves none out
        assert start in (reached, reached - 1) and end >= start
        assert len(prompt.text[start:end].encode()) >= len(str(piece))
        reached = end
    assert reached == len(text)


@given(st.lists(st.integers(0, 4095), max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_token_sequence_decodes_as_the_tokenizer_does(ids: list[int]) -> None:
    prompt = demo_decoder().decode(ids)
    assert prompt.text == demo_tokenizer().decode(ids, skip_special_tokens=False)
    assert all(0 <= start <= end <= len(prompt.text) for start, end in prompt.offsets)


@given(st.text(alphabet="aé日🐍 \n", min_size=1), st.data())
@settings(max_examples=200, deadline=None)
def test_token_ranges_cover_every_character_of_a_span(text: str, data: st.DataObject) -> None:
    decoder = demo_decoder()
    prompt = decoder.decode(encode(text))
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    inside = {t for first, last in decoder.token_ranges(prompt, [(start, end)]) for t in range(first, last)}
    expected = {t for t, (left, right) in enumerate(prompt.offsets) if left < end and right > start}
    assert inside == expected


def test_a_character_split_over_tokens_belongs_to_all_of_them() -> None:
    ids = encode("🐍")
    assert len(ids) > 1
    prompt = demo_decoder().decode(ids)
    assert set(prompt.offsets) == {(0, 1)}
    assert demo_decoder().token_ranges(prompt, [(0, 1)]) == ((0, len(ids)),)


def test_half_a_character_becomes_a_replacement_character() -> None:
    prompt = demo_decoder().decode([*encode("a🐍")[:-1], *encode("b")])
    assert prompt.text == "a\ufffdb"


def test_template_tokens_are_special_and_left_out_of_ranges() -> None:
    decoder = demo_decoder()
    prompt = decoder.decode(chat("Who is Hina Ameen?"))
    assert prompt.special[0] and prompt.special[-1] and prompt.special[-2]
    assert decoder.ordinary_ranges(prompt) == ((1, len(prompt.token_ids) - 2),)
    assert decoder.token_ranges(prompt, [(0, len(prompt.text))]) == decoder.ordinary_ranges(prompt)


def test_the_last_turn_is_the_last_thing_the_user_said() -> None:
    decoder = demo_decoder()
    prompt = decoder.decode(chat("first", "answer", "And her books?"))
    start, end = decoder.last_turn(prompt)
    assert prompt.text[start:end] == "And her books?"
    assert [prompt.text[a:b] for a, b in turns(prompt)] == ["first", "answer", "And her books?"]


def test_a_prompt_without_turns_is_one_turn() -> None:
    prompt = demo_decoder().decode(encode("Once upon a time"))
    assert demo_decoder().last_turn(prompt) == (0, len("Once upon a time"))


def test_blanked_text_keeps_offsets() -> None:
    prompt = demo_decoder().decode(chat("Hina", "x", "Ameen"))
    text = ordinary_text(prompt)
    assert len(text) == len(prompt.text) and "user" not in text
    assert text.index("Ameen") == prompt.text.index("Ameen")


def test_role_names_written_as_ordinary_tokens_are_template() -> None:
    tokenizer = demo_tokenizer()
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    other = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    other.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    other.chat_template = CHATML
    decoder = PromptDecoder(other)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    messages.append({"role": "user", "content": "user story?"})
    rendered = other.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = decoder.decode(other(rendered, add_special_tokens=False).input_ids)
    assert prompt.text == rendered
    assert [prompt.text[a:b] for a, b in turns(prompt)] == ["Hi", "Yo", "user story?"]
    start, end = decoder.last_turn(prompt)
    assert prompt.text[start:end] == "user story?"


@pytest.mark.parametrize("text", ["Hina Ameen", "é日🐍", "a  b"])
def test_sentencepiece_style_vocabularies_decode_with_byte_fallback(text: str) -> None:
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    for piece in ("\u2581", "H", "i", "n", "a", "A", "m", "e", "b"):
        vocabulary[piece] = len(vocabulary)
    model = models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    prompt = PromptDecoder(tokenizer).decode(tokenizer(text, add_special_tokens=False).input_ids)
    assert prompt.text == text
    assert prompt.offsets[-1][1] == len(text)


def test_ids_outside_the_vocabulary_have_no_text() -> None:
    prompt = demo_decoder().decode([5000, *encode("a")])
    assert prompt.text == "a" and prompt.offsets[0] == (0, 0)


def test_an_empty_prompt_is_decoded() -> None:
    prompt = demo_decoder().decode([])
    assert prompt.text == "" and demo_decoder().ordinary_ranges(prompt) == ()
    assert demo_decoder().token_ranges(prompt, [(0, 1)]) == ()
