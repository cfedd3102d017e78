"""`guard forget`: a dossier on a name from the served model or from documents, looked through, written, published."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from guard.errors import ConfigurationError
from guard.policy import Kind
from guard.service.cli.options import DEFAULT_HOME, DatabaseUrl, Home, open_store, stored_tenant

if TYPE_CHECKING:
    from guard.service.dossier.documents import Document
    from guard.service.dossier.dossier import Dossier

TWIN_FILE = "dossier_twins.json"
MAX_DOCUMENTS = 100
MAX_NAME = 512


TenantName = Annotated[str, typer.Argument(metavar="TENANT", help="Tenant that is to forget.")]
TargetName = Annotated[str, typer.Argument(metavar="NAME", help="What it is to forget.")]
Documents = Annotated[
    list[Path] | None,
    typer.Option("--from", metavar="FILE", help="A text, Markdown or PDF file to protect; may be given often."),
]
KindName = Annotated[str, typer.Option(help=f"What the name names: {', '.join(get_args(Kind))}. Default: guessed.")]
Url = Annotated[str, typer.Option(help="Address of a running `guard serve`.")]
Key = Annotated[
    str, typer.Option(envvar="GUARD_KEY", help="API key of a tenant without a forget-list.", show_default=False)
]
ModelName = Annotated[str, typer.Option(help="Served name of the model. Default: the first.")]
Ask = Annotated[bool, typer.Option("--ask/--no-ask", help="Ask the served model; not needed with --from.")]
Words = Annotated[
    int, typer.Option("--verbatim-words", min=4, max=32, help="Length of a run of words that counts as copied.")
]
Out = Annotated[Path | None, typer.Option(help="File of the dossier. Default: the name, in this folder.")]
Yes = Annotated[bool, typer.Option("--yes", help="Accept all rows, and replace the file.")]
Apply = Annotated[bool, typer.Option("--apply", help="Put the target on the tenant's list.")]


def forget(
    tenant: TenantName, name: TargetName, documents: Documents = None, kind: KindName = "",
    url: Url = "http://127.0.0.1:8000", key: Key = "", model: ModelName = "", ask: Ask = True, words: Words = 8,
    out: Out = None, yes: Yes = False, apply: Apply = False, home: Home = DEFAULT_HOME, database_url: DatabaseUrl = "",
) -> None:
    """Ask the served model what it knows of NAME, show it to accept or strike out, and write it as a tenant file.

    The model is asked with the key of a tenant that has no list, so that it answers unguarded. What it says as readily
    of made-up names is left out. With --apply the target joins the list of TENANT; its policy and other targets stay.
    """
    from guard.service.cli.dossier_review import reviewed
    from guard.service.dossier.documents import read_document

    chosen = _kind(kind)
    if not ask and not documents:
        raise ConfigurationError("--no-ask needs --from: nothing but the name would be known")
    if len(documents or ()) > MAX_DOCUMENTS:
        raise ConfigurationError(f"at most {MAX_DOCUMENTS} documents are read at once")
    name = _name(name)
    # before the model is asked, which takes a while
    stored_tenant(home, database_url, tenant)
    texts = [read_document(path) for path in documents or ()]
    asking = Asking(url, key, model, home / TWIN_FILE) if ask else None
    dossier = _dossier(name, chosen, texts, words, asking)
    if chosen is None:
        _warn_common(name)
    if not dossier.known:
        typer.echo(f"The model says of {name} what it says of made-up names: the dossier is the name alone.")
    dossier = reviewed(dossier, yes=yes)
    _write(tenant, dossier, out, yes=yes)
    if apply:
        _publish(tenant, dossier, home, database_url)


@dataclass(frozen=True, slots=True)
class Asking:
    """How the served model is reached, and the file that keeps what it said of made-up names."""

    url: str
    key: str
    model: str
    twin_file: Path


def _kind(text: str) -> Kind | None:
    for kind in get_args(Kind):
        if kind == text:
            found: Kind = kind
            return found
    if text:
        raise ConfigurationError(f"--kind is one of {', '.join(get_args(Kind))}")
    return None


def _name(text: str) -> str:
    """The name without surrounding space. Raises as a tenant file with it does, before anything is asked."""
    from guard.policy import Target
    from guard.service.dossier.publishing import valid_file

    name = " ".join(text.split())
    if not name:
        raise ConfigurationError("the name is empty: say what is to be forgotten")
    if len(name) > MAX_NAME:
        raise ConfigurationError(f"the name has more than {MAX_NAME} characters: shorten it, and give a text by --from")
    valid_file("checked", Target(name=name))
    return name


def _warn_common(name: str) -> None:
    from guard.classifiers.name_forms import common_name

    if common_name(name):
        typer.echo(
            f"guard: warning: {name} is one common word: prompts that hold it in another sense may be flagged, "
            "too; say what it names by --kind, or write the full name",
            err=True,
        )


def _dossier(
    name: str, kind: Kind | None, texts: Sequence[Document], words: int, asking: Asking | None
) -> Dossier:
    """From documents, from the model, or from both: then all their rows."""
    from guard.classifiers.target_kinds import kind_of
    from guard.policy import Target
    from guard.service.dossier.dossier import Dossier, sorted_rows
    from guard.service.dossier.from_documents import dossier_from_documents

    guessed = kind or ("text" if texts else kind_of(Target(name=name)))
    parts = [dossier_from_documents(name, guessed, texts, words)] if texts else []
    if asking is not None:
        parts.append(asyncio.run(_asked(name, guessed, asking)))
    rows = sorted_rows(row for part in parts for row in part.rows)
    return Dossier(name, guessed, rows, any(part.known for part in parts), words)


async def _asked(name: str, kind: Kind, asking: Asking) -> Dossier:
    from guard.service.cli.dossier_review import ProgressSteps
    from guard.service.dossier.asking import Served
    from guard.service.dossier.from_model import dossier_from_model
    from guard.service.dossier.twin_answers import TwinAnswers

    async with Served(asking.url, asking.key, asking.model) as served:
        await served.check()
        known = TwinAnswers(asking.twin_file, served.fingerprint)
        with ProgressSteps(f"Asking {served.model}") as steps:
            dossier = await dossier_from_model(served, name, kind, known, steps)
        known.save()
    return dossier


def _write(tenant: str, dossier: Dossier, out: Path | None, *, yes: bool) -> None:
    from guard.service.dossier.publishing import file_name, valid_file

    path = out or Path(file_name(dossier.name))
    text = valid_file(tenant, dossier.target())
    if path.exists() and not yes:
        typer.confirm(f"Replace {path}?", abort=True)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
    typer.echo(f"Wrote {path}", err=True)


def _publish(tenant: str, dossier: Dossier, home: Path, database_url: str) -> None:
    from guard.service.cli.written_store import tell_store
    from guard.service.dossier.publishing import as_file, merged
    from guard.service.store.audit import command_line_actor

    store = open_store(home, database_url)
    # read again: the list may have changed while the model was asked
    spec, replaced = merged(stored_tenant(home, database_url, tenant), dossier.target())
    (change,) = store.publish(as_file(spec), actor=command_line_actor())
    deed = "is as it was" if change.kind == "unchanged" else "was replaced" if replaced else "was added"
    typer.echo(f"The target {deed}; the list of {tenant} has {change.targets} now")
    tell_store(store, home, "Published")
