"""The vectors on disk: found again, bounded, and never in the way when the file cannot be used."""

from __future__ import annotations

import sqlite3
import stat
import time
from pathlib import Path

import numpy as np
import pytest

from guard.classifiers.vector_store import VectorStore

LABEL = "0123456789abcdef"


def vectors(count: int, seed: int = 0) -> dict[bytes, np.ndarray]:
    """Random unit vectors under random digests."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(count, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return {generator.bytes(32): row for row in rows}


def test_vectors_are_found_again_bit_for_bit_by_another_process(tmp_path: Path) -> None:
    made = vectors(1200)
    VectorStore(tmp_path / "v", LABEL).add(made)
    found = VectorStore(tmp_path / "v", LABEL).get([*made, b"x" * 32])
    assert found.keys() == made.keys()
    assert all((found[key] == made[key]).all() for key in made)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "v").iterdir()} == {0o600}
    assert stat.S_IMODE((tmp_path / "v").stat().st_mode) == 0o700


def test_the_vectors_of_another_encoder_are_not_found(tmp_path: Path) -> None:
    made = vectors(3)
    VectorStore(tmp_path, LABEL).add(made)
    assert VectorStore(tmp_path, "f" * 16).get(list(made)) == {}


def test_a_stored_vector_is_not_replaced(tmp_path: Path) -> None:
    made = vectors(1)
    store = VectorStore(tmp_path, LABEL)
    store.add(made)
    (key,) = made
    store.add({key: -made[key]})
    np.testing.assert_array_equal(store.get([key])[key], made[key])


def test_the_longest_unused_vectors_go_first_when_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = 86400.0
    store = VectorStore(tmp_path, LABEL, most=100)
    old, used, late = vectors(50, 1), vectors(50, 2), vectors(30, 3)
    store.add(old)
    store.add(used)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * day)
    store.get(list(used), touch=True)
    store.add(late)
    assert len(store.get(list(late))) == 30 and len(store.get(list(used))) == 50
    assert len(store.get(list(old))) == 10
    # and the file goes on being used
    store.add(vectors(10, 4))
    assert len(store.get(list(late))) == 30


@pytest.mark.parametrize("size", [0, 40, 5000])
def test_a_damaged_file_is_ignored_and_replaced(tmp_path: Path, size: int) -> None:
    made = vectors(200)
    store = VectorStore(tmp_path, LABEL)
    store.add(made)
    store.close()
    (file,) = tmp_path.glob("*.sqlite3")
    data = file.read_bytes()
    file.write_bytes(data[:size] + b"\xff" * (len(data) - size if size == 5000 else 0))
    damaged = VectorStore(tmp_path, LABEL)
    assert set(damaged.get(list(made))) <= set(made)
    for _ in range(2):
        damaged.add(made)
    assert damaged.get(list(made)).keys() == made.keys()


def test_a_damaged_vector_is_not_used_and_can_be_stored_again(tmp_path: Path) -> None:
    made = vectors(2)
    store = VectorStore(tmp_path, LABEL)
    store.add(made)
    store.close()
    first, second = made
    with sqlite3.connect(tmp_path / f"{LABEL}.sqlite3") as connection:
        broken = np.full(16, np.nan, np.float32).tobytes()
        connection.execute("UPDATE vectors SET vector = ? WHERE digest = ?", (broken, first))
    connection.close()
    assert store.get([first, second]).keys() == {second}
    store.add(made)
    assert store.get([first, second]).keys() == {first, second}


def test_a_locked_file_is_passed_by(tmp_path: Path) -> None:
    made = vectors(2)
    store = VectorStore(tmp_path, LABEL)
    store.add(vectors(1, 9))
    other = sqlite3.connect(tmp_path / f"{LABEL}.sqlite3")
    other.execute("BEGIN IMMEDIATE")
    store.add(made)
    assert store.get(list(made)) == {}
    other.rollback()
    other.close()
    store.add(made)
    assert store.get(list(made)).keys() == made.keys()


def test_files_of_the_format_before_are_removed(tmp_path: Path) -> None:
    old = tmp_path / f"{LABEL}-0011223344556677.safetensors"
    old.write_bytes(b"old")
    kept = tmp_path / "notes.safetensors"
    kept.write_bytes(b"not ours")
    VectorStore(tmp_path, LABEL).get([b"x" * 32])
    assert not old.exists() and kept.exists()


def test_two_processes_share_one_key(tmp_path: Path) -> None:
    key = VectorStore(tmp_path / "v", LABEL).key()
    assert len(key) == 32 and VectorStore(tmp_path / "v", LABEL).key() == key
    (tmp_path / "v" / "digest.key").write_bytes(b"short")
    assert len(VectorStore(tmp_path / "v", LABEL).key()) == 32
