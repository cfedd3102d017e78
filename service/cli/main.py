"""The command line `guard`. Commands import what they need when they run, so that small ones start fast.

Exit codes: 0 done, 1 a file or pack does not validate, 2 configuration or usage, one clear line on standard error.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from guard import __version__
from guard.errors import ConfigurationError, TenantFileError
from guard.service.cli import audit_trail, fits, forget, models, packs, stored_packs, tenants
from guard.service.cli.options import (
    DEFAULT_HOME,
    INVALID,
    AsJson,
    DatabaseUrl,
    GuardGroup,
    Home,
    MaxRank,
    MaxSlots,
    Sites,
    console,
    fail,
    open_store,
)

app = typer.Typer(
    name="guard", cls=GuardGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Per-tenant unlearning for vLLM.",
)
app.add_typer(tenants.keys, name="key")
app.add_typer(tenants.tenants, name="tenant")
app.add_typer(packs.packs, name="pack")
app.add_typer(fits.fits, name="fit")
app.command("check")(models.check)
app.command("forget")(forget.forget)
app.command("audit")(audit_trail.show_audit_trail)
for name, command in (
    ("add", stored_packs.add_pack), ("list", stored_packs.list_packs), ("remove", stored_packs.remove_pack)
):
    packs.packs.command(name)(command)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Tenant file (YAML).")]
# options of `guard serve` and the settings that they stand for
OWN_OPTIONS = {
    "--home": "home", "--database-url": "database_url", "--guard-sites": "sites", "--guard-max-slots": "max_slots",
    "--guard-max-rank": "max_rank",
}
MAX_UNCHANGED = 50
PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def main() -> None:
    """Entry point of the console script."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vllm-guard {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Per-tenant unlearning for vLLM."""


@app.command(context_settings=PASS_THROUGH)
def serve(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="Folder or Hugging Face id of a model, `demo` or `smollm2`; vLLM's flags follow.")
    ],
    home: Home = DEFAULT_HOME, database_url: DatabaseUrl = "", sites: Sites = None,
    max_slots: MaxSlots = None, max_rank: MaxRank = None,
) -> None:
    """Serve MODEL with the guard. Every flag of `vllm serve` may follow MODEL and is passed through untouched."""
    own, extra = split_own_options(context.args)
    # an option may stand before or after MODEL; the one behind it wins
    before = {"home": home, "database_url": database_url, "sites": sites, "max_slots": max_slots, "max_rank": max_rank}
    from guard.service.settings import load_settings

    settings = load_settings(options={**before, **{OWN_OPTIONS[name]: value for name, value in own.items()}})
    from guard.service import launch

    raise typer.Exit(launch.serve(model, extra, settings))


def split_own_options(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Take the guard's own options out of the flags after MODEL; the rest is vLLM's, in its order.

    Raises ConfigurationError when one of them has no value.
    """
    own: dict[str, str] = {}
    extra: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name not in OWN_OPTIONS:
            extra.append(argument)
            continue
        given = value if equals else next(rest, "")
        if not given:
            raise ConfigurationError(f"{name} needs a value")
        own[name] = given
    return own, extra


@app.command()
def demo(
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="[QUESTION]...", help="Questions instead of the built-in ones.")
    ] = None,
    url: Annotated[str, typer.Option(help="Address of a running `guard serve demo`.")] = "http://127.0.0.1:8000",
    home: Home = DEFAULT_HOME,
) -> None:
    """Ask a running demo server the same questions for its tenants, side by side."""
    from guard.demo.show import show

    show(url, home, questions or ())


@app.command()
def apply(
    file: FileArgument, home: Home = DEFAULT_HOME, database_url: DatabaseUrl = "", as_json: AsJson = False
) -> None:
    """Create or replace the tenants of FILE: all of them, or none when anything in it is wrong."""
    from guard.service.cli.written_store import tell_store
    from guard.service.files.tenant_file import examine, read_text, with_line
    from guard.service.store.audit import command_line_actor

    text = read_text(file)
    parsed, problems = examine(text)
    errors = [problem.error() for problem in problems]
    if parsed is not None:
        store = open_store(home, database_url, create=True)
        try:
            changes = store.publish(parsed, actor=command_line_actor())
        except TenantFileError as unresolved:
            # what only the store knows: its packs, and what the running server can edit
            errors.append(with_line(unresolved, text))
    if errors:
        for each in errors:
            fail(str(each))
        fail(f"{file.name} was not applied; the running policy is unchanged")
        raise typer.Exit(INVALID)
    rows = [
        {"tenant": change.tenant, "index": change.index, "change": change.kind, "targets": change.targets,
         "policy_version": change.policy_version}
        for change in changes
    ]
    changed = [row for row in rows if row["change"] != "unchanged"]
    # of a long file nobody wants to read what stayed as it was; JSON has all of it
    shown = rows if as_json or len(rows) <= MAX_UNCHANGED else changed
    tenants.show_rows(shown, ("tenant", "index", "change", "targets", "policy_version"), as_json)
    if parsed is not None:
        tenants.show_warnings(parsed, text)
    tell_store(store, home, f"{len(changed)} of {len(rows)} tenants changed")


@app.command()
def validate(file: FileArgument) -> None:
    """Check FILE without applying it; every problem is named by line and field."""
    from guard.service.files.tenant_file import examine, read_text

    text = read_text(file)
    parsed, problems = examine(text)
    if parsed is None:
        for problem in problems:
            fail(str(problem.error()))
        raise typer.Exit(INVALID)
    tenants.show_warnings(parsed, text)
    targets = sum(len(tenant.targets) for tenant in parsed.tenants)
    console().print(f"{file.name} is valid: {len(parsed.tenants)} tenants, {targets} targets", markup=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of tenant files, for editors and other programs."""
    from guard.service.files.schema import schema_text

    typer.echo(schema_text())


@app.command()
def selftest(
    url: Annotated[str, typer.Option(help="Address of a running server.")] = "http://127.0.0.1:8000",
) -> None:
    """Ask a running server for the result of its self-test and the state of its parts; 1 when it is not ready."""
    import httpx

    try:
        answer = httpx.get(f"{url.rstrip('/')}/readyz", timeout=10.0, trust_env=False)
        typer.echo(answer.text)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigurationError(f"no server answers at {url}: {type(error).__name__}") from error
    if answer.status_code != httpx.codes.OK:
        raise typer.Exit(INVALID)


if __name__ == "__main__":
    main()
