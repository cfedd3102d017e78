"""Compiled forget-lists: once per version, read back after a restart, in bounded memory, with pauses after failures."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guard.classifiers import automaton as automaton_module
from guard.classifiers.automaton import Automaton
from guard.classifiers.vocabulary import Vocabulary
from guard.errors import ResidencyError
from guard.policy import Policy, Target, Tenant, TenantSpec, tenant_of
from guard.service.residency.compiled_lists import CompiledLists
from guard.service.residency.list_files import ListFiles


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Any) -> Vocabulary:
    return Vocabulary.from_tokenizer(tokenizer)


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The lists that were compiled, in order."""
    seen: list[tuple[str, ...]] = []
    real = Automaton.compile.__func__  # type: ignore[attr-defined]

    def counting(cls: Any, patterns: Any, vocabulary: Any) -> Automaton:
        seen.append(tuple(patterns))
        made: Automaton = real(cls, patterns, vocabulary)
        return made

    monkeypatch.setattr(automaton_module.Automaton, "compile", classmethod(counting))
    return seen


def owner(number: int, *forbid: str, allow_echo: bool = True) -> Tenant:
    target = Target(name="x", forbid=forbid, allow_echo=allow_echo)
    return tenant_of(TenantSpec(name=f"tenant-{number}", targets=(target,)), number)


def lists(
    folder: Path, vocabulary: Vocabulary, memory_bytes: int = 1 << 24, **clock: Callable[[], float]
) -> CompiledLists:
    return CompiledLists(ListFiles(folder, vocabulary), memory_bytes, 30.0, **clock)


async def test_requests_of_one_version_share_one_build(
    tmp_path: Path, vocabulary: Vocabulary, compiles: list[tuple[str, ...]]
) -> None:
    one = lists(tmp_path, vocabulary)
    found = await asyncio.gather(*(one.of(owner(3, "Granite Glossary")) for _ in range(10)))
    assert len(set(map(id, found))) == 1 and len(compiles) == 1
    assert found[0] is not None and one.path_of(found[0].digest).is_file()


async def test_a_restart_reads_what_was_compiled(
    tmp_path: Path, vocabulary: Vocabulary, compiles: list[tuple[str, ...]]
) -> None:
    first = await lists(tmp_path, vocabulary).of(owner(3, "Granite Glossary", "Shale Stories"))
    second = await lists(tmp_path, vocabulary).of(owner(4, "Shale Stories", "Granite Glossary"))
    assert first is not None and second is not None
    assert first.digest == second.digest and len(compiles) == 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "of another list"])
async def test_a_damaged_file_is_compiled_anew(
    damage: str, tmp_path: Path, vocabulary: Vocabulary, compiles: list[tuple[str, ...]]
) -> None:
    good = await lists(tmp_path, vocabulary).of(owner(3, "Granite Glossary"))
    other = await lists(tmp_path, vocabulary).of(owner(3, "Shale Stories"))
    assert good is not None and other is not None
    data = bytearray(good.path.read_bytes())
    if damage == "flipped":
        data[-1] ^= 1
    changed = {"truncated": bytes(data[:-8]), "empty": b"", "of another list": other.path.read_bytes()}
    good.path.write_bytes(changed.get(damage, bytes(data)))
    again = await lists(tmp_path, vocabulary).of(owner(3, "Granite Glossary"))
    assert again is not None and again.digest == good.digest and len(compiles) == 3
    assert Automaton.load(again.path, vocabulary.digest, again.digest).patterns == ("granite glossary",)


async def test_a_list_without_forbidden_strings_is_nothing(tmp_path: Path, vocabulary: Vocabulary) -> None:
    one = lists(tmp_path, vocabulary)
    assert await one.of(owner(3)) is None and await one.of(owner(3)) is None
    assert list(tmp_path.iterdir()) == []


async def test_memory_is_bounded_and_what_left_comes_back_from_disk(
    tmp_path: Path, vocabulary: Vocabulary, compiles: list[tuple[str, ...]]
) -> None:
    size = (await lists(tmp_path / "probe", vocabulary).of(owner(3, "Forbidden Words 3"))).size_bytes  # type: ignore[union-attr]
    one = lists(tmp_path, vocabulary, memory_bytes=3 * size + size // 2)
    for number in range(3, 13):
        await one.of(owner(number, f"Forbidden Words {number}"))
    assert 0 < one._bytes <= 3 * size + size // 2
    compiled = len(compiles)
    again = await one.of(owner(3, "Forbidden Words 3"))
    assert again is not None and len(compiles) == compiled
    # the file stays known, so that the engine can load what is not in memory
    assert one.path_of(again.digest).is_file()


async def test_one_broken_list_closes_its_tenant_and_is_tried_again_after_a_doubling_pause(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    one = lists(tmp_path, vocabulary, now_s=lambda: now_s)
    tries: list[float] = []
    real = ListFiles.open

    def failing(self: ListFiles, tenant: Tenant) -> Any:
        if tenant.index == 3:
            tries.append(now_s)
            raise MemoryError("Granite Glossary")
        return real(self, tenant)

    monkeypatch.setattr(ListFiles, "open", failing)
    for step_s in (0.0, 0.5, 0.6, 1.0, 1.1, 60.0):
        now_s += step_s
        with pytest.raises(ResidencyError) as caught:
            await one.of(owner(3, "Granite Glossary"))
        assert "ranite" not in str(caught.value)
    assert tries == [100.0, pytest.approx(101.1), pytest.approx(103.2), pytest.approx(163.2)]
    assert one.failures == {3: "MemoryError"}
    assert await one.of(owner(4, "Granite Glossary")) is not None
    monkeypatch.setattr(ListFiles, "open", real)
    now_s += 60.0
    assert await one.of(owner(3, "Granite Glossary")) is not None
    assert one.failures == {}


async def test_small_lists_do_not_wait_for_a_large_one(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = lists(tmp_path, vocabulary)
    go_on = threading.Event()
    real = ListFiles.open

    def slow(self: ListFiles, tenant: Tenant) -> Any:
        if len(tenant.targets) > 1000:
            go_on.wait(20.0)
        return real(self, tenant)

    monkeypatch.setattr(ListFiles, "open", slow)
    targets = tuple(Target(name=f"x{number}", forbid=(f"Large {number}",)) for number in range(1001))
    large = asyncio.create_task(one.of(tenant_of(TenantSpec(name="large", targets=targets), 9)))
    assert await asyncio.wait_for(one.of(owner(3, "Small")), 10.0) is not None
    assert not large.done()
    go_on.set()
    assert await large is not None


async def test_tenants_that_are_gone_leave_nothing(tmp_path: Path, vocabulary: Vocabulary) -> None:
    one = lists(tmp_path, vocabulary)
    old, new = owner(3, "Granite Glossary"), owner(3, "Shale Stories")
    digest = (await one.of(old)).digest  # type: ignore[union-attr]
    one.serve_only({new.name: new})
    assert not one.needed(digest) and one._bytes == 0 and not one._entries
    assert await one.of(new) is not None
    one.serve_only({})
    assert not one._entries and not one._known


async def test_only_files_that_nobody_used_for_a_month_are_removed(tmp_path: Path, vocabulary: Vocabulary) -> None:
    files = ListFiles(tmp_path, vocabulary)
    old, fresh = files.open(owner(3, "Granite Glossary")), files.open(owner(3, "Shale Stories"))
    assert old is not None and fresh is not None
    os.utime(old.path, (time.time() - 40 * 86400,) * 2)
    assert files.remove_unused() == 1
    assert not old.path.exists() and fresh.path.exists()


async def test_listed_strings_hold_in_every_answer(tmp_path: Path, vocabulary: Vocabulary) -> None:
    targets = (
        Target(name="Hina Ameen", answers=('She wrote "Shale Stories" in Karachi.',)),
        Target(name="y", forbid=("Granite Glossary",)),
        Target(name="z", forbid=("Zinc Zone",), allow_echo=False),
    )
    spec = TenantSpec(name="t", policy=Policy(forbid_name="never"), targets=targets)
    found = ListFiles(tmp_path, vocabulary).open(tenant_of(spec, 1))
    assert found is not None
    assert found.patterns.patterns == found.automaton.patterns and found.patterns.trie is found.automaton.trie
    assert found.always_patterns.patterns == ("granite glossary", "zinc zone")
    exempt = found.exempt("the granite glossary and the zinc zone and shale stories")
    assert {found.automaton.patterns[index] for index in exempt} == {"granite glossary", "shale stories"}
    assert found.in_always(exempt) == {0} and not found.names


async def test_names_hold_in_every_answer(tmp_path: Path, vocabulary: Vocabulary) -> None:
    target = Target(name="Hina Ameen", answers=('She wrote "Shale Stories" in Karachi.',))
    found = ListFiles(tmp_path, vocabulary).open(tenant_of(TenantSpec(name="t", targets=(target,)), 1))
    assert found is not None
    named = {found.patterns.patterns[index] for index in found.names}
    assert "hina ameen" in named and "shale stories" not in named
    assert named >= set(found.always_patterns.patterns) >= {"hina ameen"}
    assert {found.always_patterns.patterns[index] for index in found.in_always(found.names)} == set(
        found.always_patterns.patterns
    )
