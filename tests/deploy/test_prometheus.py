"""A real Prometheus scrapes the running server, evaluates the alert rules and answers queries."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
import yaml

from tests.conftest import free_port
from tests.progress import GaveUpError, Patience, Probe, Watched

DEPLOY = Path(__file__).parents[2] / "deploy"
# it scrapes every second, so it is never without progress
PATIENCE = Patience(quiet_s=60.0, ceiling_s=300.0, pause_s=0.2)
STOP_S = 20.0


class Server(Protocol):
    """The running server of the fixture `server`."""

    url: str


class Prometheus:
    """Questions to a Prometheus over its HTTP interface."""

    def __init__(self, url: str, process: Watched) -> None:
        self._client = httpx.Client(base_url=url, timeout=5.0)
        self._process = process

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """The first true result of `condition`; fails when Prometheus makes no progress, or for too long."""
        found: list[Any] = []

        def look() -> Probe:
            try:
                found.append(condition())
            except httpx.HTTPError as error:  # not listening yet, or 503 while it starts
                return Probe(False, type(error).__name__)
            return Probe(bool(found[-1]))

        try:
            self._process.wait_until(look, what, PATIENCE)
        except GaveUpError as error:
            pytest.fail(str(error), pytrace=False)
        return found[-1]

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer."""
        return self._client.get(path, params=parameters).raise_for_status().json()["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result vector of an instant query."""
        result: list[dict[str, Any]] = self.get("/api/v1/query", query=expression)["result"]
        return result


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Debian's Prometheus with the shipped configuration, pointed at the running server."""
    beside = Path(sys.executable).with_name("prometheus")
    program = str(beside) if beside.exists() else shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed (`deploy/setup.sh prometheus` or Debian's package prometheus)")
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [server.url.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    shutil.copy(DEPLOY / "alerts.yml", folder)
    address = f"127.0.0.1:{free_port()}"
    command = [
        program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with Watched(command, folder / "log") as process:
        client = Prometheus(f"http://{address}", process)
        client.wait_for(lambda: client.query("up == 1"), "Prometheus scrapes the server")
        yield client
        process.stop(STOP_S)


@pytest.mark.vllm
def test_prometheus_scrapes_the_server(prometheus: Prometheus) -> None:
    (target,) = prometheus.get("/api/v1/targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")


@pytest.mark.vllm
def test_prometheus_stores_the_guards_series_next_to_vllms(prometheus: Prometheus) -> None:
    names = set(prometheus.wait_for(lambda: prometheus.get("/api/v1/label/__name__/values"), "series names"))
    assert {"guard_ready", "guard_snapshot_revision", "guard_enforcement_expected_total"} <= names
    assert {"guard_stage_latency_seconds_bucket", "vllm:num_requests_running"} <= names


@pytest.mark.vllm
def test_prometheus_answers_queries_for_the_guards_series(prometheus: Prometheus) -> None:
    ready = prometheus.query("guard_ready")
    assert [sample["value"][1] for sample in ready] == ["1"]
    assert float(prometheus.query("guard_tenants")[0]["value"][1]) >= 1


@pytest.mark.vllm
def test_prometheus_evaluates_every_rule_and_none_fires_on_a_healthy_server(prometheus: Prometheus) -> None:
    def evaluated() -> list[dict[str, Any]]:
        rules = [rule for group in prometheus.get("/api/v1/rules")["groups"] for rule in group["rules"]]
        return rules if rules and all(rule["health"] == "ok" for rule in rules) else []

    rules = prometheus.wait_for(evaluated, "all rules evaluated without an error")
    expected = yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    assert {rule["name"] for rule in rules} == {rule["alert"] for rule in expected}
    critical = [rule["name"] for rule in rules if rule["labels"]["severity"] == "critical"]
    assert [rule["name"] for rule in rules if rule["state"] == "firing" and rule["name"] in critical] == []
