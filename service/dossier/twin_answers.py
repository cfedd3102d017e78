"""What a model said of made-up names, kept so that the next name need not ask again.

A file of JSON: the model's fingerprint, and question -> answers. A file of another model is not used.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from guard.errors import ConfigurationError


class TwinAnswers:
    """The answers to questions about made-up names; from `path` where that holds those of the same model."""

    def __init__(self, path: Path | None = None, fingerprint: str = "") -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._old: dict[str, list[str]] = _read(path, fingerprint) if path else {}
        self._new: dict[str, list[str]] = {}

    def find(self, question: str) -> tuple[str, ...] | None:
        """The answers to `question`, or None when it has not been asked."""
        found = self._new.get(question) or self._old.get(question)
        return None if found is None else tuple(found)

    def add(self, question: str, answer: str) -> None:
        """Add an answer to `question`."""
        self._new.setdefault(question, []).append(answer)

    def save(self) -> None:
        """Write the file, if there is one. Raises ConfigurationError when it cannot be written."""
        if self._path is None or not self._new:
            return
        content = {"fingerprint": self._fingerprint, "answers": self._old | self._new}
        partial = self._path.with_suffix(".part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
            os.replace(partial, self._path)
        except OSError as error:
            raise ConfigurationError(f"{self._path} cannot be written: {error.strerror}") from error


def _read(path: Path, fingerprint: str) -> dict[str, list[str]]:
    """A file that is missing, damaged or of another model holds nothing: the questions are asked again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or content.get("fingerprint") != fingerprint:
        return {}
    answers = content.get("answers")
    if not isinstance(answers, dict):
        return {}
    return {
        question: [text for text in texts if isinstance(text, str)]
        for question, texts in answers.items() if isinstance(texts, list)
    }
