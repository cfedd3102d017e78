"""Keys are random, hashed with the pepper and never shown; the pepper is made once and kept private."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import ConfigurationError
from guard.service.store.keys import find_tenant, generate_key, hash_key, key_id_of, load_pepper, mask_key

PEPPER = b"p" * 32


def test_keys_have_their_form_and_differ() -> None:
    keys = [generate_key() for _ in range(50)]
    assert len({key.text for key in keys}) == 50
    assert all(key_id_of(key.text) == key.id for key in keys)


def test_a_key_does_not_show_its_secret_when_printed() -> None:
    key = generate_key()
    secret = key.text.split("_")[2]
    assert secret not in repr(key) + str(key) + mask_key(key.text)
    assert key.id in repr(key)


def test_a_key_is_found_by_its_hash_only_with_the_same_pepper() -> None:
    key = generate_key().text
    hashes = {hash_key(key, PEPPER): "acme"}
    assert find_tenant(key, hashes, PEPPER) == "acme"
    assert find_tenant(key, hashes, b"q" * 32) is None
    assert find_tenant(generate_key().text, hashes, PEPPER) is None
    assert find_tenant(key[:-1] + ("0" if key[-1] != "0" else "1"), hashes, PEPPER) is None


@given(st.text(max_size=200) | st.from_regex(r"gk_[0-9a-f]{0,20}_[0-9a-f]{0,60}"))
def test_no_text_but_a_stored_key_is_accepted(text: str) -> None:
    stored = "gk_" + "0" * 12 + "_" + "f" * 48
    assert find_tenant(text, {hash_key(stored, PEPPER): "acme"}, PEPPER) == ("acme" if text == stored else None)
    if key_id_of(text) is None:
        assert mask_key(text) == "***"


@pytest.mark.parametrize("suffix", ["\n", " ", "\x00", "0"])
def test_a_key_with_anything_added_is_refused(suffix: str) -> None:
    assert key_id_of(generate_key().text + suffix) is None


def test_the_pepper_is_made_once_and_private(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    first = load_pepper(home)
    assert len(first) == 32
    assert load_pepper(home) == first
    assert stat.S_IMODE((home / "pepper").stat().st_mode) == 0o600
    assert [path.name for path in home.iterdir()] == ["pepper"]


def test_processes_that_start_together_agree_on_the_pepper(tmp_path: Path) -> None:
    seen: list[bytes] = []
    threads = [threading.Thread(target=lambda: seen.append(load_pepper(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert len(set(seen)) == 1


@pytest.mark.parametrize("content", ["", "short", "g" * 64, "é" * 64])
def test_a_damaged_pepper_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "pepper").write_text(content, encoding="utf-8")
    (tmp_path / "pepper").chmod(0o600)
    with pytest.raises(ConfigurationError):
        load_pepper(tmp_path)


def test_a_pepper_that_others_can_read_is_refused(tmp_path: Path) -> None:
    load_pepper(tmp_path)
    (tmp_path / "pepper").chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_pepper(tmp_path)


def test_a_missing_pepper_is_named_when_it_may_not_be_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="pepper"):
        load_pepper(tmp_path, create=False)
    assert list(tmp_path.iterdir()) == []
