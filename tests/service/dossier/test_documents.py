"""Documents: every common encoding is read, and what cannot be read is one clear line."""

from __future__ import annotations

from pathlib import Path

import pypdf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from guard.classifiers.normalize import mask_form
from guard.errors import ConfigurationError
from guard.service.dossier import documents
from guard.service.dossier.documents import read_document

GERMAN = "Die Straße führt über schöne Hügel nach München, und der Müller trägt das Mehl zu den Bäckern. " * 8


def write_pdf(path: Path, text: str, password: str = "") -> Path:
    """A PDF of one page; text is set with a standard font."""
    writer = pypdf.PdfWriter()
    page = writer.add_blank_page(300, 300)
    if text:
        font = DictionaryObject({
            NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        })
        fonts = DictionaryObject({NameObject("/F1"): font})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        content = DecodedStreamObject()
        content.set_data(f"BT /F1 12 Tf 10 200 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = writer._add_object(content)
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    writer.write(path)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"])
def test_common_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(GERMAN.encode(encoding))
    assert read_document(path).text == GERMAN


def test_markdown_loses_its_marks_and_keeps_its_headings(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("# The *First* Chapter\n\nA [link](http://x.y/z) and `snake_case`.\n\nSecond\n------\n\n> Said.\n")
    document = read_document(path)
    assert document.headings == ("The First Chapter", "Second")
    assert document.text.splitlines()[2] == "A link and snake_case."
    assert "Said." in document.text and ">" not in document.text


def test_a_pdf_gives_its_text(tmp_path: Path) -> None:
    document = read_document(write_pdf(tmp_path / "book.pdf", "The lantern was lit at nine"))
    assert document.text.strip() == "The lantern was lit at nine"


@pytest.mark.parametrize("content", [b"", b"  \n\t ", b"\xef\xbb\xbf", b"***\n---"])
def test_a_document_without_text_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="empty.txt holds no text"):
        read_document(path)


def test_a_pdf_of_pictures_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="its pages may be pictures"):
        read_document(write_pdf(tmp_path / "scan.pdf", ""))


def test_an_encrypted_pdf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is encrypted"):
        read_document(write_pdf(tmp_path / "secret.pdf", "The lantern", password="x"))


@pytest.mark.parametrize("content", [b"%PDF-1.7\nnothing", b"\x00\x01\x02\x03" * 50, bytes(range(256)) * 40])
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="data.bin"):
        read_document(path)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(ConfigurationError, match="large.txt has 100 MiB, a document may have 16"):
        read_document(path)


def test_a_long_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_CHARACTERS", 100)
    (tmp_path / "long.txt").write_text("word " * 30)
    with pytest.raises(ConfigurationError, match="split it"):
        read_document(tmp_path / "long.txt")


@pytest.mark.parametrize("name", ["missing.txt", "folder"])
def test_a_missing_file_and_a_folder_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match=f"{name} cannot be read"):
        read_document(tmp_path / name)


@given(st.text(max_size=300), st.sampled_from([".md", ".txt"]))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_read_or_refused(tmp_path: Path, text: str, ending: str) -> None:
    path = tmp_path / f"any{ending}"
    path.write_text(text, encoding="utf-8", errors="ignore")
    try:
        document = read_document(path)
    except ConfigurationError:
        return
    assert mask_form(document.text)


@given(st.binary(max_size=300), st.sampled_from([".md", ".txt", ".pdf"]))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"any{ending}"
    path.write_bytes(content)
    try:
        read_document(path)
    except ConfigurationError as error:
        assert path.name in str(error)
