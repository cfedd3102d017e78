"""The tenants and keys of the demonstrations in one store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.demo.setup import DEMOS, prepare_demo
from guard.policy import Target, TenantFile, TenantSpec
from guard.service.launch import open_store
from guard.service.settings import Settings
from guard.service.store.keys import find_tenant, load_pepper
from guard.service.store.store import Store

URL = "http://127.0.0.1:8000"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store, _ = open_store(Settings(home=tmp_path))
    yield store
    store.close()


def names_on_the_list(store: Store, tenant: str) -> list[str]:
    return [target.name for target in store.snapshot().tenants[tenant].targets]


@pytest.mark.parametrize("name", list(DEMOS))
def test_every_tenant_of_a_demo_gets_a_working_key_and_a_curl_line(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    demo = DEMOS[name]
    keys = prepare_demo(store, tmp_path, URL, demo)
    live, pepper = store.snapshot().keys, load_pepper(tmp_path)
    assert {tenant: find_tenant(key, live, pepper) for tenant, key in keys.items()} == {key: key for key in keys}
    assert set(keys) == set(store.snapshot().tenants)
    path = tmp_path / demo.keys_file
    assert json.loads(path.read_text(encoding="utf-8")) == keys
    assert path.stat().st_mode & 0o777 == 0o600
    said = capsys.readouterr().err
    assert all(f"Bearer {key}" in said for key in keys.values())
    assert said.count(f'"model": "{demo.model}"') == len(keys)


def test_the_real_model_has_a_list_of_bare_names(store: Store, tmp_path: Path) -> None:
    prepare_demo(store, tmp_path, URL, DEMOS["smollm2"])
    tenants = store.snapshot().tenants
    assert not tenants["open"].targets
    assert len(tenants["acme"].targets) >= 12
    assert all(target == Target(name=target.name) for target in tenants["acme"].targets)


def test_a_second_start_changes_nothing(store: Store, tmp_path: Path) -> None:
    demo = DEMOS["smollm2"]
    first, before = prepare_demo(store, tmp_path, URL, demo), store.snapshot().revision
    assert prepare_demo(store, tmp_path, URL, demo) == first
    assert store.snapshot().revision == before


def test_demos_that_share_a_store_replace_each_others_lists_and_keep_the_keys(store: Store, tmp_path: Path) -> None:
    authors = prepare_demo(store, tmp_path, URL, DEMOS["demo"])
    invented = names_on_the_list(store, "acme")
    prepare_demo(store, tmp_path, URL, DEMOS["smollm2"])
    assert names_on_the_list(store, "acme") != invented
    assert prepare_demo(store, tmp_path, URL, DEMOS["demo"]) == authors
    assert names_on_the_list(store, "acme") == invented


@pytest.mark.parametrize("name", list(DEMOS))
def test_a_list_that_an_operator_changed_is_left_alone(store: Store, tmp_path: Path, name: str) -> None:
    own = TenantSpec(name="acme", targets=(Target(name="Ada Example"),))
    store.publish(TenantFile(tenants=(own,)))
    prepare_demo(store, tmp_path, URL, DEMOS[name])
    assert names_on_the_list(store, "acme") == ["Ada Example"]
