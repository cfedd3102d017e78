"""The command line as the tests call it, and the store that it leaves behind."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from guard.service.cli.main import app
from guard.service.store.keys import load_pepper
from guard.service.store.store import Store


def run(*arguments: str | Path) -> Result:
    """`guard` with `arguments`, in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def stored(home: Path) -> Store:
    """The store in the folder `home`, which must have been made."""
    return Store(home / "guard.db", load_pepper(home, create=False))
