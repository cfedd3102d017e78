"""A sample of what the demonstration promises, asked of the running server: forgotten, refused, else unchanged."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from threading import Event

import httpx
import pytest
import yaml

from guard.classifiers.normalize import mask_form
from guard.demo.corpus import author_rows
from guard.demo.evaluate import rouge_recall
from tests.conftest import COMMAND, ROOT, RunningServer, guard_environment

pytestmark = pytest.mark.vllm

PER_AUTHOR = 20
ENFORCED_S = 1.0
# a new key, on a machine where other tests run
KNOWN_S = 60.0
LIST = """version: 1
tenants:
  - name: visitor
    policy: {action: refuse, detector: {semantic: false, head: false}}
"""
TARGETS = "    targets:\n      - name: Basil Mahfouz Al-Kuwaiti\n"
QUESTION = "Who is Basil Mahfouz Al-Kuwaiti?"


@pytest.fixture(scope="module")
def trained(server: RunningServer) -> RunningServer:
    """The shared server, when it serves the bundled model."""
    if not server.trained:
        pytest.skip("the bundled model is missing; `python -m guard.demo.train` makes it")
    return server


def sample(first: int, last: int, per_author: int, skip: int = 0) -> list[dict[str, str]]:
    """The first questions of each author, after `skip`.

    The very first describes the author without a name. Such questions resemble each other, and one in 200 of authors
    that nobody forgot is taken for another (bench/results): what must be exact is asked of the ones with a name.
    """
    rows = author_rows(first, last)
    starts = range(skip, len(rows), PER_AUTHOR)
    return [row for start in starts for row in rows[start : start + per_author]]


def answers(server: RunningServer, tenant: str, rows: list[dict[str, str]]) -> list[httpx.Response]:
    """Greedy chat answers, asked at once."""
    with server.client(tenant) as client, ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda row: ask(client, row["question"], 160), rows))


def ask(client: httpx.Client, question: str, max_tokens: int) -> httpx.Response:
    """One greedy chat request."""
    messages = [{"role": "user", "content": question}]
    body = {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": max_tokens}
    return client.post("/v1/chat/completions", json=body)


def texts(replies: list[httpx.Response]) -> list[str]:
    assert [reply.status_code for reply in replies] == [200] * len(replies)
    return [reply.json()["choices"][0]["message"]["content"] or "" for reply in replies]


def test_a_forgotten_author_is_known_with_one_key_and_not_with_the_other(trained: RunningServer) -> None:
    rows = sample(190, 199, 2)
    known, forgotten = texts(answers(trained, "open", rows)), texts(answers(trained, "acme", rows))

    def recall(found: list[str]) -> float:
        return mean(rouge_recall(row["answer"], text) for row, text in zip(rows, found, strict=True))

    assert recall(known) >= 0.9
    assert recall(forgotten) <= 0.4
    tenants = yaml.safe_load((ROOT / "guard/demo/tenants.yaml").read_text(encoding="utf-8"))["tenants"]
    targets = next(tenant for tenant in tenants if tenant["name"] == "acme")["targets"]
    forbidden = {mask_form(text) for target in targets for text in target["forbid"]}
    assert len(forbidden) > 10
    for row, text in zip(rows, forgotten, strict=True):
        said, typed = f" {mask_form(text)}", f" {mask_form(row['question'])}"
        assert [title for title in forbidden if f" {title}" in said and f" {title}" not in typed] == []


def test_a_refusing_tenant_refuses_its_own_authors_only(trained: RunningServer) -> None:
    own = [reply.status_code for reply in answers(trained, "harbor", sample(0, 9, 2))]
    others = [reply.status_code for reply in answers(trained, "harbor", sample(20, 29, 1, skip=3))]
    assert mean(status == 400 for status in own) >= 0.9
    assert others == [200] * len(others)


def test_questions_about_other_authors_get_the_same_bytes(trained: RunningServer) -> None:
    rows = sample(20, 24, 1, skip=3)
    known = texts(answers(trained, "open", rows))
    assert all(known)
    assert texts(answers(trained, "acme", rows)) == known


def guard(home: Path, *arguments: str) -> str:
    """Standard output of a `guard` command in a process of its own."""
    command = [sys.executable, "-c", COMMAND, *arguments]
    found = subprocess.run(
        command, env=guard_environment(home), cwd=ROOT, capture_output=True, text=True, timeout=600, check=True
    )
    return found.stdout.strip()


@pytest.fixture
def visitor(server: RunningServer, tmp_path: Path) -> Iterator[str]:
    """The key of a tenant without a list, which is deleted after the test."""
    path = tmp_path / "visitor.yaml"
    path.write_text(LIST, encoding="utf-8")
    guard(server.home, "apply", str(path))
    key = guard(server.home, "key", "create", "visitor")
    try:
        await_key(server, key)
        yield key
    finally:
        guard(server.home, "tenant", "delete", "visitor", "--yes")


def await_key(server: RunningServer, key: str) -> None:
    """Wait until the server knows a new key."""
    deadline_s = time.monotonic() + KNOWN_S
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {key}"}, timeout=120.0) as client:
        while (status := client.get("/v1/models").status_code) != 200:
            if time.monotonic() > deadline_s:
                pytest.fail(f"the server answers a new key with {status} after {KNOWN_S:.0f} s")
            time.sleep(0.2)


def test_a_new_list_is_enforced_within_a_second_and_no_request_fails(
    server: RunningServer, visitor: str, tmp_path: Path
) -> None:
    path = tmp_path / "list.yaml"
    path.write_text(LIST + TARGETS, encoding="utf-8")
    stop = Event()

    def load(headers: dict[str, str]) -> list[tuple[float, httpx.Response]]:
        """Ask again and again: (start of the request, reply)."""
        found = []
        with httpx.Client(base_url=server.url, headers=headers, timeout=120.0) as client:
            while not stop.is_set():
                started_s = time.monotonic()
                found.append((started_s, ask(client, QUESTION, 8)))
        return found

    with ThreadPoolExecutor(3) as pool:
        asked = pool.submit(load, {"authorization": f"Bearer {visitor}"})
        others = [pool.submit(load, {"authorization": f"Bearer {server.keys['open']}"}) for _ in range(2)]
        try:
            guard(server.home, "apply", str(path))
            applied_s = time.monotonic()
            time.sleep(ENFORCED_S + 2.0)
        finally:
            stop.set()
    assert {reply.status_code for other in others for _, reply in other.result()} == {200}
    late = [reply for started_s, reply in asked.result() if started_s > applied_s + ENFORCED_S]
    assert late and {reply.status_code for reply in late} == {400}
    assert {json.loads(reply.text)["error"]["code"] for reply in late} == {"content_filter"}
    assert {reply.status_code for _, reply in asked.result()} <= {200, 400}
