"""The demonstration: the same questions for two tenants and without a guard, side by side in the terminal.

Needs a running `guard serve demo`, which leaves the demo keys in `demo_keys.json` of its home folder. The three columns
are asked at the same time, so that the engine runs them in one batch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from guard.demo.corpus import author_rows
from guard.errors import ConfigurationError

KEYS_FILE = "demo_keys.json"
COLUMNS = (
    ("open", "no list"),
    ("acme", "forgets authors 190-199"),
    ("harbor", "refuses authors 0-9"),
)
# authors whose questions are asked: on harbor's list, on acme's, on nobody's
AUTHORS = (("harbor", 1), ("acme", 191), ("nobody", 22))
QUESTIONS_PER_AUTHOR = 2
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as the terminal shows it; `refused` for `content_filter`."""

    text: str
    refused: bool = False


def read_keys(home: Path) -> dict[str, str]:
    """The demo tenants' keys. Raises ConfigurationError when the server has not written them."""
    path = home / KEYS_FILE
    try:
        keys: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        hint = "start `guard serve demo` with this GUARD_HOME first"
        raise ConfigurationError(f"{path} cannot be read: {hint}") from error
    missing = [name for name, _ in COLUMNS if name not in keys]
    if missing:
        raise ConfigurationError(f"{path} has no key for {', '.join(missing)}: start `guard serve demo` anew")
    return keys


def demo_questions() -> list[tuple[str, str]]:
    """Pairs of the tenant whose list the question touches (`nobody` for none) and the question."""
    pairs = []
    for owner, author in AUTHORS:
        rows = author_rows(author, author)
        pairs += [(owner, row["question"]) for row in rows[1 : 1 + QUESTIONS_PER_AUTHOR]]
    return pairs


def ask(client: httpx.Client, key: str, question: str, model: str) -> Reply:
    """One chat completion, greedy. Raises ConfigurationError when the server does not answer as one."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0.0,
        "max_tokens": 96,
    }
    try:
        response = client.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})
        answer = response.json()
    except (httpx.TransportError, json.JSONDecodeError) as error:
        raise ConfigurationError(f"no guarded server answers at {client.base_url}") from error
    if response.status_code == httpx.codes.OK:
        choice = answer["choices"][0]
        return Reply((choice["message"].get("content") or "").strip(), choice["finish_reason"] == "content_filter")
    fault = answer.get("error", {})
    if fault.get("code") == "content_filter":
        return Reply(fault.get("message", ""), refused=True)
    raise ConfigurationError(f"the server answered {response.status_code}: {fault.get('message', 'no message')}")


def cell(reply: Reply, touched: bool) -> str:
    """A table cell: refusals in red, answers changed by the guard in yellow, others plain."""
    text = reply.text.replace("[", "\\[")
    if reply.refused:
        return f"[red]refused:[/red] {text}"
    return f"[yellow]{text}[/yellow]" if touched else text


def show(
    url: str, home: Path, questions: Sequence[str] = (), *, model: str = "demo", console: Console | None = None
) -> int:
    """Ask and print; the number of questions shown. `questions` replaces the built-in ones.

    Raises ConfigurationError when the keys are missing or no server answers at `url`.
    """
    keys = read_keys(home)
    console = console or Console()
    pairs = [("", question) for question in questions] or demo_questions()
    table = Table(title=f"One model, three tenants, at {url}", show_lines=True, expand=True)
    table.add_column("question", ratio=3)
    for name, what in COLUMNS:
        table.add_column(f"{name}\n{what}", ratio=4)
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client, ThreadPoolExecutor(len(COLUMNS)) as pool:
        for owner, question in pairs:
            waiting = [pool.submit(ask, client, keys[name], question, model) for name, _ in COLUMNS]
            replies = [one.result() for one in waiting]
            cells = [
                cell(reply, name == owner or reply.text != replies[0].text)
                for (name, _), reply in zip(COLUMNS, replies, strict=True)
            ]
            table.add_row(question.replace("[", "\\["), *cells)
    console.print(table)
    console.print("[yellow]yellow[/yellow]: differs from the answer without a list; [red]red[/red]: refused by policy.")
    return len(pairs)
