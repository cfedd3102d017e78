"""One forget-list compiled for the served model, and the file that it is kept in.

The file is named by what went into it (vocabulary and forbidden strings), so that a start finds what an earlier one
compiled. What is read is compared with its own content hash and with the strings; anything else is compiled again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
from safetensors import SafetensorError, safe_open

from guard.classifiers.automaton import Automaton
from guard.classifiers.normalize import mask_form
from guard.classifiers.phrases import Pattern, forbidden_patterns
from guard.classifiers.vocabulary import Vocabulary
from guard.errors import PackError
from guard.policy import Tenant
from guard.stream import PatternSet

# goes into the name: raise it when the same strings compile to something else
FORMAT = "guard-list-1"
UNUSED_DAYS = 30
# tables that lookups make of an automaton's arrays are about as large as these
_TABLES = 2

log = structlog.get_logger("guard.lists")


@dataclass(frozen=True, slots=True)
class CompiledList:
    """A compiled forget-list.

    `patterns` is the automaton's own set: what answers to flagged prompts may not contain. `always` are the indices of
    those that no answer may contain, `always_patterns` the same strings with a matcher of their own. `echoable` are
    indices of strings that may be repeated, `names` of those that name a target.
    """

    automaton: Automaton
    digest: str
    path: Path
    size_bytes: int
    echoable: frozenset[int]
    always: tuple[int, ...]
    names: frozenset[int]
    patterns: PatternSet
    always_patterns: PatternSet

    def exempt(self, prompt_text: str) -> frozenset[int]:
        """Patterns that the prompt itself contains and that may be repeated."""
        return self.automaton.occurrences(prompt_text) & self.echoable

    def in_always(self, indices: frozenset[int]) -> frozenset[int]:
        """`indices` into `patterns` as indices into `always_patterns`; the others are left out."""
        if not indices:
            return indices
        return frozenset(place for place, index in enumerate(self.always) if index in indices)


class ListFiles:
    """The compiled lists in `folder` for one vocabulary. Safe to use from several threads."""

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        self._folder, self._vocabulary = folder, vocabulary

    def open(self, tenant: Tenant) -> CompiledList | None:
        """The compiled list of a tenant, from its file or compiled now; None when nothing is forbidden.

        Raises ConfigurationError for a list that is too large, OSError when the file cannot be written.
        """
        patterns = forbidden_patterns(tenant)
        if not patterns:
            return None
        forms = tuple(sorted({form for pattern in patterns if (form := mask_form(pattern.text))}))
        path = self._folder / f"{self._name(forms)}.safetensors"
        automaton = self._read(path, forms)
        if automaton is None:
            automaton = Automaton.compile(forms, self._vocabulary)
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            automaton.save(path)
        return _compiled(automaton, path, patterns)

    def remove_unused(self) -> int:
        """Delete files that no start or request has used for a month; how many."""
        limit_s, removed = time.time() - UNUSED_DAYS * 86400, 0
        for path in self._folder.glob("*"):
            with suppress(OSError):
                if path.is_file() and path.stat().st_mtime < limit_s:
                    path.unlink()
                    removed += 1
        return removed

    def _name(self, forms: Sequence[str]) -> str:
        state = hashlib.sha256(f"{FORMAT}\x1f{self._vocabulary.digest}".encode())
        for form in forms:
            state.update(b"\x1f" + form.encode())
        return state.hexdigest()

    def _read(self, path: Path, forms: tuple[str, ...]) -> Automaton | None:
        """What an earlier start saved; None when there is nothing, or it is damaged."""
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                digest = (file.metadata() or {}).get("digest", "")
            automaton = Automaton.load(path, self._vocabulary.digest, digest)
            path.touch()
        except (OSError, SafetensorError, PackError) as error:
            log.warning("list_file_not_usable", file=path.name[:16], error=type(error).__name__)
            return None
        return automaton if automaton.patterns == forms else None


def _compiled(automaton: Automaton, path: Path, patterns: Sequence[Pattern]) -> CompiledList:
    index = {form: position for position, form in enumerate(automaton.patterns)}
    placed = [(index.get(mask_form(pattern.text)), pattern) for pattern in patterns]
    strict = {position for position, pattern in placed if not pattern.allow_echo}
    always = tuple(sorted({place for place, pattern in placed if place is not None and pattern.always}))
    whole = PatternSet(automaton.patterns, automaton.trie)
    part = whole
    if len(always) < len(automaton.patterns):
        part = PatternSet.compile(tuple(automaton.patterns[position] for position in always))
    text_bytes = sum(map(len, automaton.patterns))
    return CompiledList(
        automaton, automaton.digest, path, _TABLES * automaton.bytes + 4 * text_bytes,
        echoable=frozenset(position for position, _ in placed if position is not None) - strict,
        always=always, names=frozenset(place for place, each in placed if place is not None and each.name),
        patterns=whole, always_patterns=part,
    )
