"""`guard fit`: a command for each method of the registry, and `recipes`."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from guard.service.cli.fit_recipes import fit_recipes


class MethodGroup(TyperGroup):
    """Reads the registry when a command is looked for: that imports torch, and other commands need not wait for it."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands, the methods first."""
        self._read_registry()
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, None when there is none."""
        if cmd_name not in self.commands:
            self._read_registry()
        return super().get_command(ctx, cmd_name)

    def _read_registry(self) -> None:
        from guard.interventions.registry import methods
        from guard.service.cli.method_command import method_command

        self.commands = {**{name: method_command(method) for name, method in methods().items()}, **self.commands}


fits = typer.Typer(cls=MethodGroup, help="Fit interventions to a model.", no_args_is_help=True)
fits.command("recipes")(fit_recipes)
