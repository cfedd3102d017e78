"""Fixtures for the tests of the gate's pipeline, of the outermost layer and of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.service.door.auth import GuardMiddleware, Limits
from guard.service.door.rules import RuleContext
from tests.service.door.outermost_layer import Directory, Engine


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The demo's tokenizer."""
    # imported here: they load torch and transformers, which most tests of this folder do without
    from guard.demo.corpus import training_examples
    from guard.demo.train import train_tokenizer

    return train_tokenizer(training_examples("full"))


@pytest.fixture
def pipeline(tokenizer: Any, tmp_path: Path) -> Any:
    """A function (verdict, failing call) -> a gate with a home of its own; see `gate_pipeline.Pipeline`."""
    from tests.service.gate_pipeline import Pipeline

    return lambda verdict, failing="": Pipeline(tokenizer, tmp_path, verdict, failing)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, not yet made, that commands take as their home."""
    monkeypatch.setenv("GUARD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GUARD_DATABASE_URL", raising=False)
    return tmp_path / "home"


@pytest.fixture
def engine() -> Engine:
    """What stands in the place of vLLM's application."""
    return Engine()


@pytest.fixture
def directory() -> Directory:
    """Two fixed keys."""
    return Directory()


@pytest.fixture
def client(engine: Engine, directory: Directory) -> httpx.AsyncClient:
    """A client of the outermost layer around `engine`."""
    app = GuardMiddleware(
        engine,
        directory=directory,
        rules=RuleContext(("demo",)),
        limits=Limits(body_bytes=4096, body_timeout_s=1.0),
        models_body=b'{"object":"list","data":[]}',
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://guard")
