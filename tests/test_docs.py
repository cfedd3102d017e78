"""Every setting, tenant-file key, series and command is documented, and the generated tables are up to date."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from guard.metrics import SERIES
from guard.packs.bank import memory_bytes
from guard.policy import TenantFile
from guard.service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    specification = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def tenant_file_keys(model: type[BaseModel]) -> Iterator[str]:
    """Every key that a tenant file may hold, from the JSON Schema."""
    schema = model.model_json_schema()
    for definition in (schema, *schema.get("$defs", {}).values()):
        yield from definition.get("properties", {})


def test_generated_tables_are_up_to_date(generator: ModuleType) -> None:
    pages = [path.name for path in sorted(DOCS.glob("*.md")) if "<!-- begin " in path.read_text(encoding="utf-8")]
    assert pages == sorted(generator.BLOCKS)
    stale = [name for name in pages if page(name) != generator.render(name, page(name))]
    assert stale == [], "run `make docs`"


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 96), st.integers(1, 300), st.integers(1, 8192), st.sampled_from([16, 32]),
    st.sampled_from([(torch.bfloat16, 2), (torch.float32, 4)]),
)
def test_the_memory_of_the_edit_bank_follows_the_documented_formula(
    sites: int, slots: int, width: int, rank: int, number: tuple[torch.dtype, int]
) -> None:
    assert "sites * (slots + 1) * (2 * (1 + rank) * width * item + 16 * rank + 16)" in page("edits.md")
    dtype, item = number
    documented = sites * (slots + 1) * (2 * (1 + rank) * width * item + 16 * rank + 16)
    assert memory_bytes(sites, slots + 1, width, rank, dtype) == documented


def test_every_setting_is_documented() -> None:
    missing = [name for name in Settings.model_fields if f"`{PREFIX}{name.upper()}`" not in page("configuration.md")]
    assert missing == []


def test_every_variable_that_the_code_reads_is_documented() -> None:
    folders = ("guard", "kernels", "classifiers", "service")
    files = [ROOT / "Makefile", ROOT / "deploy" / "setup.sh"]
    files += [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    used = {name for path in files for name in re.findall(r"\bGUARD_[A-Z][A-Z_]*[A-Z]\b", path.read_text("utf-8"))}
    assert [name for name in sorted(used) if f"`{name}`" not in page("configuration.md")] == []


def test_every_setting_and_tenant_file_key_says_what_it_means(generator: ModuleType) -> None:
    rows = re.findall(r"^\|.*\|$", generator.settings_table() + "\n" + generator.tenant_file_table(), re.MULTILINE)
    assert [row for row in rows if row.endswith("|  |")] == []


def test_every_tenant_file_key_is_documented() -> None:
    keys = re.findall(r"^\| `([^`]+)`", page("configuration.md"), re.MULTILINE)
    documented = {key.removesuffix("[]").rsplit(".", 1)[-1] for key in keys}
    assert set(tenant_file_keys(TenantFile)) <= documented


def test_every_series_is_documented_with_its_type() -> None:
    rows = dict(re.findall(r"^\| `(guard_\w+)` \| (\w+) \|", page("metrics.md"), re.MULTILINE))
    assert set(rows) == set(SERIES)


def test_every_command_is_documented(generator: ModuleType) -> None:
    missing = [name for name, _ in generator.cli_commands() if f"### `{name}`" not in page("cli.md")]
    assert missing == []


@pytest.mark.parametrize("path", [*sorted(DOCS.glob("*.md")), ROOT / "README.md"], ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []
