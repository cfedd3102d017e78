"""Activation edits through the running server: from a pack on disk to an edited answer, beside untouched tenants."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from typer.testing import CliRunner, Result

from guard.interventions.steer import save_steer
from guard.service.cli.main import app
from guard.service.store.engine_record import EngineRecord
from guard.service.store.keys import load_pepper
from guard.service.store.store import Store
from guard.site import Site
from tests.conftest import RunningServer

pytestmark = pytest.mark.vllm

# a little more than the interval at which the server reads the engine's counters
COUNTERS_READ_S = 4.0
QUESTION = {"role": "user", "content": "What is the capital of Australia?"}
TENANTS = """\
version: 1
tenants:
  - name: styled
    policy:
      edits:
        - {pack: PACK, when: always, strength: 1}
"""


def run(server: RunningServer, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--home", str(server.home)])


def record_of(server: RunningServer) -> EngineRecord:
    found = Store(server.home / "guard.db", load_pepper(server.home)).engine_record()
    assert found is not None
    return found


def add_pack(server: RunningServer, folder: Path, name: str, site: str) -> None:
    """Add a steering vector several times as long as the residual stream: no answer survives it."""
    record = record_of(server)
    vector = torch.randn(record.width, generator=torch.Generator().manual_seed(0)) * 100
    path = folder / f"{name}.safetensors"
    save_steer(
        path, {Site.parse(site): vector}, model_fingerprint=record.model_fingerprint, fit_data_digest="0" * 64,
        fit_report={}, licence="Apache-2.0",
    )
    assert run(server, "pack", "add", path, "--name", name).exit_code == 0


def apply(server: RunningServer, folder: Path, pack: str) -> Result:
    path = folder / "tenants.yaml"
    path.write_text(TENANTS.replace("PACK", pack), encoding="utf-8")
    return run(server, "apply", path)


def ask(server: RunningServer, key: str, **changes: Any) -> httpx.Response:
    body = {"model": "demo", "temperature": 0, "max_tokens": 16, "messages": [QUESTION], **changes}
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}/v1/chat/completions", headers=headers, json=body, timeout=60.0)


def answer(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def series(server: RunningServer, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics", timeout=10.0).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@pytest.fixture(scope="module")
def styled(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The key of a tenant whose every request is edited, under the running server."""
    folder = tmp_path_factory.mktemp("packs")
    add_pack(server, folder, "loud", record_of(server).sites[0])
    assert apply(server, folder, "loud").exit_code == 0
    key = json.loads(run(server, "key", "create", "styled", "--json").stdout)["key"]
    deadline_s = time.monotonic() + 10.0
    while ask(server, key, max_tokens=1).status_code == 401 and time.monotonic() < deadline_s:
        time.sleep(0.1)
    yield key
    run(server, "tenant", "delete", "styled", "--yes")
    run(server, "pack", "remove", "loud")


def test_the_server_says_where_it_can_edit(server: RunningServer) -> None:
    record = record_of(server)
    assert record.sites and all(Site.parse(site).place == "resid_post" for site in record.sites)
    assert (record.max_slots, record.max_rank) == (64, 16)


def test_an_edited_tenant_gets_another_answer_and_nobody_else_does(server: RunningServer, styled: str) -> None:
    before = answer(ask(server, server.keys["open"]))
    edited = ask(server, styled)
    assert answer(edited) != before
    assert edited.headers["x-guard-action"] == "guarded"
    assert answer(ask(server, server.keys["open"])) == before
    assert answer(ask(server, styled)) == answer(edited)


def test_every_edited_token_is_counted(server: RunningServer, styled: str) -> None:
    time.sleep(COUNTERS_READ_S)  # whatever ran before is in the counters then
    started = series(server, 'guard_enforcement_counted_total{kind="edit"}')
    usage = ask(server, styled).json()["usage"]
    # the last token is never read by the model; cached blocks are not computed again
    most = usage["prompt_tokens"] + usage["completion_tokens"] - 1
    time.sleep(COUNTERS_READ_S)
    counted = series(server, 'guard_enforcement_counted_total{kind="edit"}') - started
    assert usage["completion_tokens"] <= counted <= most
    assert series(server, 'guard_enforcement_counted_total{kind="edit"}') == series(
        server, 'guard_enforcement_expected_total{kind="edit"}'
    )
    assert series(server, 'guard_slots_in_use{kind="edit"}') == 1


def test_probabilities_are_shown_where_there_is_no_list_to_hide(server: RunningServer, styled: str) -> None:
    assert ask(server, styled, logprobs=True, max_tokens=2).json()["choices"][0]["logprobs"]["content"]


def test_a_site_that_is_not_steered_is_told_at_apply(server: RunningServer, styled: str, tmp_path: Path) -> None:
    add_pack(server, tmp_path, "elsewhere", "0.attn_norm")
    refused = apply(server, tmp_path, "elsewhere")
    assert refused.exit_code == 1
    assert "line 6: tenants[0].policy.edits[0].pack" in refused.stderr
    assert f"0.attn_norm; steerable: {', '.join(record_of(server).sites)}" in refused.stderr
    assert run(server, "pack", "remove", "elsewhere").exit_code == 0
    assert answer(ask(server, styled)) != answer(ask(server, server.keys["open"]))
