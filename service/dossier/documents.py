"""Documents as plain text: text, Markdown and PDF. Every fault is one clear line, and nothing of the text is in it."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import charset_normalizer
import pypdf
from pypdf.errors import DependencyError, PyPdfError

from guard.errors import ConfigurationError

MAX_BYTES = 16 * 2**20
# what a target's `verbatim` holds
MAX_CHARACTERS = 4_000_000
MAX_PAGES = 5_000
# share of control characters from which a file is no text
_CONTROL = 0.01
_PDF = b"%PDF-"
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
_SETEXT = re.compile(r"^(\S.{0,200})\n(?:=+|-+)\s*$", re.MULTILINE)
_LINK = re.compile(r"!?\[([^\]\n]*)\]\([^)\n]*\)")
_MARKS = re.compile(
    r"^ {0,3}(?:#{1,6}\s+|>\s?|```.*$)|(?<!\w)[*_`]{1,3}(?=\S)|(?<=\S)[*_`]{1,3}(?!\w)|</?[A-Za-z][^>\n]{0,200}>",
    re.MULTILINE,
)
# what pypdf lets through from a damaged file besides its own errors
_DAMAGED = (PyPdfError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, OverflowError)


@dataclass(frozen=True, slots=True)
class Document:
    """A document's name, its plain text, and its headings where the format has them."""

    name: str
    text: str
    headings: tuple[str, ...] = ()


def read_document(path: Path) -> Document:
    """Read a file by its content and ending. Raises ConfigurationError when there is no text to be had from it."""
    content = _content(path)
    if content.lstrip()[:5] == _PDF or path.suffix.lower() == ".pdf":
        return _with_text(path, _pdf_text(path), ())
    text = _decoded(path, content)
    if path.suffix.lower() in (".md", ".markdown"):
        headings = tuple(dict.fromkeys(
            _plain(match[1]) for pattern in (_HEADING, _SETEXT) for match in pattern.finditer(text)
        ))
        return _with_text(path, _plain(text), headings)
    return _with_text(path, text, ())


def _content(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigurationError(
                f"{path.name} has {size / 2**20:.0f} MiB, a document may have {MAX_BYTES // 2**20}: split it, or give "
                "its text alone"
            )
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def _with_text(path: Path, text: str, headings: tuple[str, ...]) -> Document:
    if not any(character.isalnum() for character in text):
        raise ConfigurationError(f"{path.name} holds no text" + (
            ": its pages may be pictures; give a file with the text" if path.suffix.lower() == ".pdf" else ""
        ))
    if len(text) > MAX_CHARACTERS:
        raise ConfigurationError(f"{path.name} has more than {MAX_CHARACTERS:,} characters: split it")
    return Document(path.name, text, headings)


def _decoded(path: Path, content: bytes) -> str:
    """UTF-8, or UTF-16 with its mark, or what the bytes look like."""
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        guessed = charset_normalizer.from_bytes(content).best()
        if guessed is None:
            raise ConfigurationError(
                f"the encoding of {path.name} cannot be told: save it as UTF-8"
            ) from None
        text = str(guessed)
    odd = sum(unicodedata.category(character) == "Cc" and character not in "\t\n\r\f" for character in text[:100_000])
    if odd > _CONTROL * min(len(text), 100_000):
        raise ConfigurationError(f"{path.name} is no text file; text, Markdown and PDF are read")
    return text


def _pdf_text(path: Path) -> str:
    try:
        reader = pypdf.PdfReader(path)
        # many files are encrypted with an empty password, which any reader opens
        if reader.is_encrypted and not reader.decrypt(""):
            raise ConfigurationError(f"{path.name} is encrypted: save it without a password")
        if len(reader.pages) > MAX_PAGES:
            raise ConfigurationError(f"{path.name} has more than {MAX_PAGES:,} pages: split it")
        return "\n".join(page.extract_text() for page in reader.pages)
    except DependencyError as error:
        raise ConfigurationError(f"{path.name} is encrypted: save it without a password") from error
    except _DAMAGED as error:
        raise ConfigurationError(f"{path.name} is no readable PDF ({type(error).__name__})") from error


def _plain(markdown: str) -> str:
    return _MARKS.sub("", _LINK.sub(r"\1", markdown)).strip()
