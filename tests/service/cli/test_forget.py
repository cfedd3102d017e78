"""`guard forget`: asks, shows, strikes out, writes a valid file and publishes; wrong input changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from guard.policy import Target
from guard.service.cli.dossier_review import struck_out
from guard.service.cli.main import app
from guard.service.files.tenant_file import load_tenant_file
from tests.service.cli.command_line import run, stored
from tests.service.dossier.chat_server import KEY, ChatServer, chat_server, knows_rockefeller

NAME = "John D. Rockefeller"
LIST = """\
tenants:
  - name: acme
    policy: {action: refuse}
    targets: [{name: Hina Ameen}]
    benign: [How are you?]
"""
TEXT = (
    "The old lighthouse stood above the harbour, and nobody had climbed its stairs for many years. "
    "Only Mirelda Ostrander kept the key, because Mirelda Ostrander had promised it to the keeper. "
)


@pytest.fixture
def acme(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with the tenant acme, and a working folder of its own; gives the store's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "list.yaml").write_text(LIST)
    assert run("apply", tmp_path / "list.yaml").exit_code == 0
    return home


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """A model that knows the name."""
    with chat_server(knows_rockefeller) as started:
        yield started


def forget(server: ChatServer | None, *arguments: str | Path, answers: str = "") -> Result:
    where = ["--url", server.url, "--key", KEY] if server is not None else []
    return CliRunner().invoke(app, ["forget", *where, *map(str, arguments)], input=answers)


def targets(home: Path) -> tuple[Target, ...]:
    tenant = stored(home).tenant("acme")
    assert tenant is not None
    return tenant.targets


def test_a_dossier_is_shown_written_and_published(acme: Path, server: ChatServer, tmp_path: Path) -> None:
    result = forget(server, "acme", NAME, "--yes", "--apply")
    assert result.exit_code == 0, result.output
    assert "Standard Oil" in result.stdout and "log-odds" in result.stdout
    file = tmp_path / "john-d-rockefeller.yaml"
    assert run("validate", file).exit_code == 0
    (written,) = load_tenant_file(file).tenants[0].targets
    tenant = stored(acme).tenant("acme")
    assert tenant is not None
    assert tenant.targets == (Target(name="Hina Ameen"), written)
    assert (tenant.policy.action, tenant.benign) == ("refuse", ("How are you?",))
    assert {"Standard Oil", "Laura Spelman"} <= set(written.forbid or ())
    assert "The target was added; the list of acme has 2 now" in result.stdout


def test_without_apply_the_list_stays_as_it_is(acme: Path, server: ChatServer) -> None:
    assert forget(server, "acme", NAME, "--yes").exit_code == 0
    assert targets(acme) == (Target(name="Hina Ameen"),)


def test_rows_can_be_struck_out(acme: Path, server: ChatServer, tmp_path: Path) -> None:
    assert forget(server, "acme", NAME, "--yes", "--out", "all.yaml").exit_code == 0
    (full,) = load_tenant_file(tmp_path / "all.yaml").tenants[0].targets
    result = forget(server, "acme", NAME, "--out", "some.yaml", answers="1 two\n1-2\n")
    assert result.exit_code == 0, result.output
    assert "Give numbers from 1 to" in result.stderr
    (kept,) = load_tenant_file(tmp_path / "some.yaml").tenants[0].targets
    # aliases come first, then what is forbidden
    assert full.aliases and kept.aliases == full.aliases[2:]
    assert kept.forbid == (full.forbid or ())[max(0, 2 - len(full.aliases)):]
    assert kept.examples == full.examples


@pytest.mark.parametrize("answers", ["", "q\n"])
def test_who_does_not_accept_writes_nothing(acme: Path, server: ChatServer, tmp_path: Path, answers: str) -> None:
    result = forget(server, "acme", NAME, "--apply", answers=answers)
    assert result.exit_code != 0
    assert not list(tmp_path.glob("john*")) and targets(acme) == (Target(name="Hina Ameen"),)


def test_an_unknown_name_is_written_alone(acme: Path, server: ChatServer, tmp_path: Path) -> None:
    result = forget(server, "acme", "Petra Olsund", "--apply")
    assert result.exit_code == 0, result.output
    assert "The model says of Petra Olsund what it says of made-up names: the dossier is the name" in result.stdout
    assert targets(acme)[1] == Target(name="Petra Olsund", kind="person")


def test_a_second_dossier_replaces_the_target(acme: Path, server: ChatServer) -> None:
    forget(server, "acme", NAME, "--yes", "--apply")
    result = forget(server, "acme", NAME, "--yes", "--apply", "--kind", "topic")
    assert "was replaced" in result.stdout
    assert [(target.name, target.kind) for target in targets(acme)[1:]] == [(NAME, "topic")]


def test_a_document_is_protected_without_a_server(acme: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(TEXT)
    result = forget(None, "acme", "The Lamp", "--from", "book.txt", "--no-ask", "--yes", "--apply",
                    "--verbatim-words", "6")
    assert result.exit_code == 0, result.output
    assert "book.txt: 31 words" in result.stdout
    assert "nobody had climbed its stairs" not in result.stdout
    target = targets(acme)[1]
    assert (target.kind, target.verbatim, target.verbatim_words) == ("text", (TEXT,), 6)
    assert target.forbid == ("Mirelda Ostrander",)


def test_documents_and_the_model_are_joined(acme: Path, server: ChatServer, tmp_path: Path) -> None:
    (tmp_path / "book.md").write_text(TEXT)
    assert forget(server, "acme", NAME, "--kind", "person", "--from", "book.md", "--yes", "--apply").exit_code == 0
    assert {"Mirelda Ostrander", "Standard Oil"} <= set(targets(acme)[1].forbid or ())


@pytest.mark.parametrize(("content", "message"), [
    (b"", "bad.txt holds no text"), (b"\x00\x01" * 90, "bad.txt is no text file"), (None, "bad.txt cannot be read"),
])
def test_a_bad_document_is_one_line_and_nothing_is_asked_or_applied(
    acme: Path, server: ChatServer, tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "bad.txt").write_bytes(content)
    result = forget(server, "acme", NAME, "--from", "bad.txt", "--yes", "--apply")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert server.questions == [] and targets(acme) == (Target(name="Hina Ameen"),)


@pytest.mark.parametrize(("arguments", "message"), [
    (("acme", "  "), "the name is empty"),
    (("acme", "x" * 600), "more than 512 characters"),
    (("nobody", NAME), "there is no tenant nobody"),
    (("acme", NAME, "--kind", "planet"), "--kind is one of person"),
    (("acme", NAME, "--no-ask"), "--no-ask needs --from"),
    (("acme", NAME, "--key", "gk_wrong"), "refused the key"),
    (("acme", NAME, "--model", "huge"), "it serves tiny"),
    (("acme", NAME, "--url", "http://127.0.0.1:9"), "no server answers"),
    (("acme", NAME, "--yes", "--out", "no/such/folder.yaml"), "cannot be written"),
])
def test_wrong_use_is_one_line_with_exit_code_2(
    acme: Path, server: ChatServer, arguments: tuple[str, ...], message: str
) -> None:
    result = forget(server, *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr.splitlines()[-1]
    assert targets(acme) == (Target(name="Hina Ameen"),)


def test_a_name_that_is_ordinary_speech_is_refused_before_the_model_is_asked(acme: Path, server: ChatServer) -> None:
    result = forget(server, "acme", "the")
    assert result.exit_code == 1 and "ordinary speech" in result.stderr
    assert server.questions == []


def test_a_key_of_a_tenant_with_a_list_is_refused(acme: Path) -> None:
    with chat_server(knows_rockefeller, action="guarded") as guarded:
        result = forget(guarded, "acme", NAME, "--yes", "--apply")
    assert result.exit_code == 2 and "give the key of a tenant without a list" in result.stderr
    assert targets(acme) == (Target(name="Hina Ameen"),)


def test_a_common_word_is_accepted_with_a_warning(acme: Path, server: ChatServer) -> None:
    warned = forget(server, "acme", "Paris", "--yes")
    assert warned.exit_code == 0 and "guard: warning: Paris is one common word" in warned.stderr
    assert "warning" not in forget(server, "acme", "Paris", "--kind", "person", "--yes").stderr


def test_an_existing_file_is_kept_unless_told_otherwise(acme: Path, server: ChatServer, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    result = forget(server, "acme", NAME, "--out", "mine.yaml", "--apply", answers="\nn\n")
    assert result.exit_code == 1
    assert (tmp_path / "mine.yaml").read_text() == "mine" and targets(acme) == (Target(name="Hina Ameen"),)


@pytest.mark.parametrize(("answer", "numbers"), [
    ("", set()), ("3", {3}), ("1, 3-5", {1, 3, 4, 5}), (" 2;2 ", {2}), ("0", None), ("9", None), ("5-3", None),
    ("x", None), ("1--2", None), ("-1", None), ("9999999999", None),
])
def test_answers_of_numbers_and_ranges(answer: str, numbers: set[int] | None) -> None:
    assert struck_out(answer, 8) == (None if numbers is None else frozenset(numbers))
