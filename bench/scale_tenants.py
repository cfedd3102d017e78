"""Made-up tenants for `bench/scale.py`: 10 targets each, no two tenants with the same list."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from guard.service.store.keys import load_pepper
from guard.service.store.store import Store, database_url

TARGETS = 10
# a tenant without a list, whose requests pass unguarded
PLAIN = "plain"
LARGE = "large"
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def tenant_name(number: int) -> str:
    """Name of tenant `number`."""
    return f"t{number:05d}"


def target_names(number: int, version: int = 0) -> list[str]:
    """The names that tenant `number` forgets; another `version` of the list shares none of them."""
    generator = random.Random(f"names {number} {version}")
    return [f"{_word(generator)} {_word(generator)}" for _ in range(TARGETS)]


def question(number: int, version: int = 0, target: int = 0) -> str:
    """A prompt that touches one target of tenant `number`."""
    return f"Where was {target_names(number, version)[target % TARGETS]} born?"


def write_tenants(path: Path, numbers: Iterable[int], version: int = 0, *, plain: bool = False) -> Path:
    """A tenant file: every target has a name and a forbidden string of its own."""
    lines = ["version: 1", "tenants:"]
    for number in numbers:
        generator = random.Random(f"titles {number} {version}")
        lines += [f"  - name: {tenant_name(number)}", "    targets:"]
        for name in target_names(number, version):
            lines += [f"      - name: {name}", f"        forbid: [The {_word(generator)} of {_word(generator)}]"]
    if plain:
        lines.append(f"  - name: {PLAIN}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_large_tenant(path: Path, strings: int) -> Path:
    """A file with one tenant, `large`, whose only target has `strings` forbidden strings."""
    generator = random.Random("large")
    lines = ["tenants:", f"  - name: {LARGE}", "    targets:", f"      - name: {large_target()}", "        forbid:"]
    lines += [f"          - {_word(generator)} {_word(generator)} {number}" for number in range(strings)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def large_target() -> str:
    """Name of the only target of the tenant `large`."""
    generator = random.Random("the large one")
    return f"{_word(generator)} {_word(generator)}"


def open_store(home: Path) -> Store:
    """The store of a home folder."""
    return Store(database_url(home, None), load_pepper(home))


def make_keys(home: Path, names: list[str]) -> dict[str, str]:
    """A key for each tenant, by its name."""
    store = open_store(home)
    keys = store.create_keys(names, label="bench")
    store.close()
    return {name: key.text for name, key in zip(names, keys, strict=True)}


def _word(generator: random.Random) -> str:
    return "".join(generator.choice(_SYLLABLES) for _ in range(3)).capitalize()
