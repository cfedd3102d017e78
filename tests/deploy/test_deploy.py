"""The deployment files: they parse, agree with each other and name only series that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from guard.metrics import SERIES
from guard.service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))
SERIES_NAME = re.compile(r"\bguard_[a-z_]+")


def promtool() -> str:
    """Path of promtool; skips the test where it is not installed."""
    beside = Path(sys.executable).with_name("promtool")
    found = str(beside) if beside.exists() else shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (`deploy/setup.sh prometheus` or Debian's package prometheus)")
    return found


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def expressions() -> Iterator[str]:
    """Every PromQL expression of the alert rules and the dashboard."""
    for group in load("alerts.yml")["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "guard.json").read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    yield from (variable["definition"] for variable in dashboard["templating"]["list"])


def known_series() -> set[str]:
    """Series names as Prometheus stores them, histograms with their suffixes."""
    return {name + suffix for name in SERIES for suffix in ("", "_bucket", "_sum", "_count")}


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.y*ml")), ids=lambda path: path.name)
def test_yaml_files_parse(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_expressions_name_only_series_that_exist() -> None:
    used = {name for expression in expressions() for name in SERIES_NAME.findall(expression)}
    assert len(used) > 10
    assert used <= known_series()


def test_every_alert_says_what_happened_and_what_to_do() -> None:
    for group in load("alerts.yml")["groups"]:
        for rule in group["rules"]:
            assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]
            assert rule["labels"]["severity"] in {"warning", "critical"}, rule["alert"]


def test_dashboard_panels_have_distinct_ids_and_do_not_overlap() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "guard.json").read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + right, place["y"] + down) for right in range(place["w"]) for down in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_dashboard_uses_the_provisioned_data_source() -> None:
    (source,) = load("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    text = (DEPLOY / "grafana" / "dashboards" / "guard.json").read_text(encoding="utf-8")
    assert set(re.findall(r'"type": "prometheus",\s+"uid": "([^"]+)"', text)) == {source["uid"]}


def test_compose_mounts_and_builds_what_exists() -> None:
    compose = load("compose.yaml")
    for service in compose["services"].values():
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"], mount
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{port} would be open to the network"
    (job,) = load("prometheus.yml")["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    assert target.split(":")[0] in compose["services"]


def test_a_model_of_ones_own_is_served_from_where_it_is_mounted() -> None:
    service = load("compose.model.yaml")["services"]["guard"]
    (mount,) = service["volumes"]
    source, _, rest = mount.rpartition("}")
    target, mode = rest.removeprefix(":").split(":")
    assert service["command"][:2] == ["serve", target]
    assert mode == "ro"
    assert service["command"][service["command"].index("--host") + 1] == "0.0.0.0"
    variables = set(re.findall(r"\$\{(\w+)", source + " ".join(service["command"])))
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    assert variables == {"MODEL_FOLDER", "MODEL_NAME"}
    assert {name for name in variables if f"{name}=" not in text} == set()


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_copy_what_exists_and_do_not_run_as_root(path: Path) -> None:
    lines = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8")).splitlines()
    steps = [tuple(line.split(maxsplit=1)) for line in lines if line.strip() and not line.startswith("#")]
    words = [step[0] for step in steps]
    assert words[0] == "FROM"
    assert words.count("ENTRYPOINT") == words.count("CMD") == words.count("HEALTHCHECK") == 1
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert next(rest for word, rest in steps if word == "USER") != "root"
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for source in [name for word, rest in steps if word == "COPY" for name in rest.split()[:-1]]:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in allowed, f"{source} is ignored by .dockerignore"


def test_environment_variables_in_container_files_are_settings() -> None:
    files = [*DOCKERFILES, *DEPLOY.glob("*.yml"), *DEPLOY.glob("*.yaml")]
    used = {name for path in files for name in re.findall(r"\bGUARD_[A-Z_]+", path.read_text(encoding="utf-8"))}
    assert "GUARD_HOME" in used
    assert used <= {PREFIX + name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "deploy/prometheus.yml"), ("check", "rules", "deploy/alerts.yml"),
     ("test", "rules", "tests/deploy/alerts_test.yml")],
    ids=lambda arguments: " ".join(arguments),
)
def test_promtool_accepts_the_rules_and_they_fire_when_they_should(arguments: tuple[str, ...]) -> None:
    result = subprocess.run([promtool(), *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def test_promtool_parses_every_dashboard_expression(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(expressions())
        if not expression.startswith("label_values")
    ]
    path = tmp_path / "panels.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}), encoding="utf-8")
    result = subprocess.run(
        [promtool(), "check", "rules", str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stdout + result.stderr
