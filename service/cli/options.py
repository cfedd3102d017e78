"""What the commands of `guard` share: options, the store they open, the consoles, and how errors end a command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from guard.errors import ConfigurationError, GuardError, PackError, TenantFileError

if TYPE_CHECKING:
    from guard.policy import Tenant

INVALID = 1
MISCONFIGURED = 2

Home = Annotated[
    Path, typer.Option("--home", envvar="GUARD_HOME", help="Folder of the tenant store and the key pepper.")
]
DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--database-url", envvar="GUARD_DATABASE_URL",
        help="SQLAlchemy URL of the tenant store; empty for the SQLite file in the home folder.",
    ),
]
Sites = Annotated[
    str | None, typer.Option("--guard-sites", envvar="GUARD_SITES", help="Sites at which activation edits can apply.")
]
MaxSlots = Annotated[
    int | None,
    typer.Option("--guard-max-slots", envvar="GUARD_MAX_SLOTS", help="Edit packs that can be resident at once."),
]
MaxRank = Annotated[
    int | None,
    typer.Option("--guard-max-rank", envvar="GUARD_MAX_RANK", help="Largest rank of an edit pack: 16 or 32."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DEFAULT_HOME = Path(".guard")


class GuardGroup(TyperGroup):
    """Turns an error of the guard into one line on standard error and an exit code: 1 for content, 2 for set-up."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. Errors that are not GuardErrors are faults of the program and keep their traceback."""
        try:
            return super().invoke(ctx)
        except GuardError as error:
            fail(str(error))
            raise typer.Exit(INVALID if isinstance(error, TenantFileError | PackError) else MISCONFIGURED) from None


def console() -> Console:
    """Standard output. Made per call, so that a redirection is seen."""
    return Console(highlight=False)


def fail(message: str) -> None:
    """One line on standard error, whatever the message holds."""
    typer.echo(f"guard: error: {' '.join(message.split())}", err=True)


def open_store(home: Path, database_url: str, *, create: bool = False) -> Any:
    """The tenant store of the shared options; `create` makes pepper, database and tables where missing."""
    # SQLAlchemy takes most of the start-up time; commands without a store do without it
    from guard.service.store.keys import load_pepper
    from guard.service.store.store import Store
    from guard.service.store.store import database_url as location

    store = Store(location(home, database_url), load_pepper(home, create=create))
    if create:
        store.migrate()
    return store


def stored_tenant(home: Path, database_url: str, name: str) -> Tenant:
    """The tenant as the store has it now. Raises ConfigurationError when there is none of that name."""
    found: Tenant | None = open_store(home, database_url).tenant(name)
    if found is None:
        raise ConfigurationError(f"there is no tenant {name}; `guard tenant list` shows them")
    return found
