"""The text automaton against plain decoding and searching."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.classifiers.automaton import START, Automaton, State
from guard.classifiers.normalize import fold_character, mask_form
from guard.classifiers.token_bytes import read_tokenizer
from guard.classifiers.vocabulary import Vocabulary, fold_table, pack_bytes, unpack_bytes
from guard.errors import PackError
from tests.classifiers.vocabularies import tokenizer

KINDS = ("bundled", "gpt2", "sentencepiece")
WORDS = ["jaime", "vasquez", "hina", "ameen", "josé", "café", "o'neil", "shale", "zoë"]
WORDS += ["ab", "東京", "москва", "naïve", "the"]
CONTEXTS = ["", " ", "I know ", "It is: ", "x", "caf\u00e9", "\u200b", "hi\n\n", "東"]
_loaded: dict[str, Vocabulary] = {}


def vocabulary(kind: str) -> Vocabulary:
    if kind not in _loaded:
        _loaded[kind] = Vocabulary.from_tokenizer(tokenizer(kind))
    return _loaded[kind]


def decode(kind: str, ids: list[int]) -> str:
    return str(tokenizer(kind).decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def contains(text: str, pattern: str) -> bool:
    """The rule, spelled out: mask form, left word edge, no right edge."""
    return f" {pattern}" in f" {mask_form(text)}"


def random_patterns(rng: random.Random) -> list[str]:
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 3))) for _ in range(6)]


def disguise(pattern: str, rng: random.Random) -> str:
    """Another writing of the same mask form: case, accents, wide letters, separator runs, invisible characters."""
    out = []
    for character in pattern:
        if character == " ":
            out.append("".join(rng.choice(" -.,'\n\u3000") for _ in range(rng.randint(1, 3))))
            continue
        out.append(character.upper() if rng.random() < 0.3 and mask_form(character.upper()) == character else character)
        if character.isascii() and rng.random() < 0.1:
            out[-1] = chr(ord(character) + 0xFEE0)
        out.append(rng.choice(["", "", "", "", "\u0301", "\u200b", "\u00ad"]))
    return "".join(out)


def pieces_of(kind: str) -> dict[bytes, list[int]]:
    read = read_tokenizer(tokenizer(kind))
    found: dict[bytes, list[int]] = {}
    for token, piece in enumerate(read.pieces):
        if piece is not None and token not in read.special_ids:
            found.setdefault(piece, []).append(token)
    return found


def segment(text: str, pieces: dict[bytes, list[int]], rng: random.Random) -> list[int]:
    """A random spelling of `text`; single bytes always fit."""
    data, ids = text.encode(), []
    while data:
        lengths = [n for n in range(1, min(len(data), 12) + 1) if data[:n] in pieces]
        length = 1 if rng.random() < 0.15 else rng.choice(lengths)
        ids.append(rng.choice(pieces[data[:length]]))
        data = data[length:]
    return ids


@pytest.mark.parametrize("kind", KINDS)
def test_no_segmentation_of_a_forbidden_string_gets_through(kind: str) -> None:
    words, rng, pieces = vocabulary(kind), random.Random(11), pieces_of(kind)
    for pattern in random_patterns(rng)[:4]:
        automaton = Automaton.compile([pattern], words)
        (form,) = automaton.patterns
        for _ in range(1000):
            # a lone byte that joins with nothing would make a run of byte tokens unreadable as a whole
            ids = segment(rng.choice(CONTEXTS[:4]) + disguise(form, rng), pieces, rng)
            text = decode(kind, ids)
            assert contains(text, form), (text, form)
            state = START
            for place, token in enumerate(ids):
                if automaton.completes(state, token, words, frozenset()):
                    stopped = place
                    break
                state = automaton.advance(state, token, words, skip_special=True)
            else:
                pytest.fail(f"{form!r} came out as {text!r}")
            # nothing is stopped before the string is there, and it is stopped where it is
            assert not contains(decode(kind, ids[:stopped]), form)
            assert contains(decode(kind, ids[: stopped + 1]), form)


@pytest.mark.parametrize(("kind", "states"), [("bundled", 16), ("gpt2", 2), ("sentencepiece", 40)])
def test_a_token_is_banned_exactly_when_it_completes_a_forbidden_string(kind: str, states: int) -> None:
    words, rng, pieces = vocabulary(kind), random.Random(23), pieces_of(kind)
    banned_somewhere = 0
    for number in range(states):
        automaton = Automaton.compile(random_patterns(rng), words)
        form = rng.choice(automaton.patterns)
        exempt = frozenset(rng.sample(range(len(automaton.patterns)), 1)) if number % 3 == 0 else frozenset()
        text = rng.choice(CONTEXTS) + disguise(form, rng)
        ids = segment(text, pieces, rng)
        ids = ids[: rng.randint(max(0, len(ids) - 4), len(ids) - 1)]
        state = START
        for place, token in enumerate(ids):
            if automaton.completes(state, token, words, exempt):
                # a guarded text never gets this far
                ids = ids[:place]
                break
            state = automaton.advance(state, token, words, skip_special=True)
        rows = [[*ids, token] for token in range(words.size)]
        texts = tokenizer(kind).batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        forbidden = [f for index, f in enumerate(automaton.patterns) if index not in exempt]
        expected = {token for token, after in enumerate(texts) if any(contains(after, f) for f in forbidden)}
        got = set(automaton.banned(state, words, exempt).tolist())
        assert got == expected, (ids, automaton.patterns, exempt)
        banned_somewhere += bool(got)
    assert banned_somewhere > states // 4


@pytest.mark.parametrize("kind", KINDS)
def test_banned_equals_one_by_one_completion(kind: str) -> None:
    words, rng, pieces = vocabulary(kind), random.Random(3), pieces_of(kind)
    automaton = Automaton.compile([" ".join(rng.choices(WORDS, k=2)) for _ in range(30)], words)
    for _ in range(4 if kind == "gpt2" else 30):
        state = START
        text = disguise(rng.choice(automaton.patterns), rng)
        for token in segment(text, pieces, rng)[:-1]:
            state = automaton.advance(state, token, words)
        exempt = frozenset(rng.sample(range(len(automaton.patterns)), 3))
        one_by_one = [t for t in range(words.size) if automaton.completes(state, t, words, exempt)]
        assert automaton.banned(state, words, exempt).tolist() == one_by_one


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=6))
def test_occurrences_are_the_patterns_that_the_text_contains(text: str, patterns: list[str]) -> None:
    automaton = Automaton.compile(patterns, vocabulary("bundled"))
    assert automaton.patterns == tuple(sorted({mask_form(p) for p in patterns} - {""}))
    assert automaton.occurrences(text) == {i for i, p in enumerate(automaton.patterns) if contains(text, p)}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "ab", " ", "ba", "-"]), max_size=16),
    st.lists(st.text("ab ", min_size=1, max_size=7), min_size=1),
)
def test_dense_overlapping_patterns_are_found_through_failure_links(parts: list[str], patterns: list[str]) -> None:
    automaton = Automaton.compile(patterns, vocabulary("bundled"))
    text = "".join(parts)
    assert automaton.occurrences(text) == {i for i, p in enumerate(automaton.patterns) if contains(text, p)}


def test_a_left_word_edge_is_required_and_a_right_one_is_not() -> None:
    automaton = Automaton.compile(["ana"], vocabulary("bundled"))
    assert automaton.occurrences("Anabel") and automaton.occurrences("x-ana")
    assert not automaton.occurrences("banana")


def test_special_tokens_are_an_edge_in_prompts_and_nothing_in_visible_text() -> None:
    words = vocabulary("bundled")
    automaton = Automaton.compile(["hina ameen"], words)
    state = START
    for token in tokenizer("bundled")("x Hina")["input_ids"]:
        state = automaton.advance(state, token, words)
    assert automaton.advance(state, words.eos_ids[0], words) == START
    assert automaton.advance(state, words.eos_ids[0], words, skip_special=True) == state
    assert automaton.advance(state, words.size + 5, words) == state
    assert not set(words.special_ids) & set(automaton.banned(state, words).tolist())


def test_no_patterns_means_nothing_is_banned() -> None:
    automaton = Automaton.compile(["", "  ", "!?"], vocabulary("bundled"))
    assert automaton.patterns == ()
    assert automaton.banned(State(1), vocabulary("bundled")).size == 0


def test_saving_and_loading_gives_the_same_automaton_and_refuses_others(tmp_path: Path) -> None:
    words = vocabulary("bundled")
    automaton = Automaton.compile(["Jaime Vasquez", "東京"], words)
    path = tmp_path / "a.safetensors"
    automaton.save(path)
    loaded = Automaton.load(path, words.digest, automaton.digest)
    assert loaded.patterns == automaton.patterns and loaded.digest == automaton.digest
    assert all(np.array_equal(loaded.arrays[name], array) for name, array in automaton.arrays.items())
    with pytest.raises(PackError, match="vocabulary"):
        Automaton.load(path, "0" * 64, automaton.digest)
    with pytest.raises(PackError, match="digest"):
        Automaton.load(path, words.digest, "0" * 64)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(PackError, match="cannot be read"):
        Automaton.load(path, words.digest, automaton.digest)


def test_digest_depends_on_patterns_and_vocabulary_but_not_on_their_order() -> None:
    one = Automaton.compile(["Jaime", "Hina"], vocabulary("bundled"))
    assert Automaton.compile(["hina!", "JAIME"], vocabulary("bundled")).digest == one.digest
    assert Automaton.compile(["Jaime"], vocabulary("bundled")).digest != one.digest
    assert Automaton.compile(["Jaime", "Hina"], vocabulary("sentencepiece")).digest != one.digest


@given(st.binary(max_size=3))
def test_packed_bytes_come_back(data: bytes) -> None:
    assert unpack_bytes(pack_bytes(data)) == data


def test_fold_table_agrees_with_the_fold_of_characters() -> None:
    value, offsets, codes = fold_table()
    for code in (*range(0, 0x11000), *range(0x11000, 0x110000, 97)):
        if 0xD800 <= code < 0xE000:
            continue
        entry = int(value[code])
        longer = codes[offsets[-2 - entry] : offsets[-1 - entry]].tolist() if entry < -1 else []
        string = [entry] if entry >= 0 else longer
        assert "".join(map(chr, string)) == fold_character(chr(code)), hex(code)


def test_twenty_thousand_patterns_compile_in_seconds() -> None:
    rng = random.Random(0)
    pieces = [e for e in tokenizer("bundled").get_vocab() if e.isascii() and e.isalpha()]
    patterns = ["".join(rng.choices(pieces, k=4)) for _ in range(20_000)]
    began = time.perf_counter()
    automaton = Automaton.compile(patterns, vocabulary("bundled"))
    assert time.perf_counter() - began < 20
    assert automaton.bytes < 40e6
