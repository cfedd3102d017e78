"""Imports only go down the floors, and only guard/engine touches vLLM."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# longest prefix wins; a module may import from its own floor and from lower ones
FLOORS = {
    "guard.kernels": 0,
    "guard": 1,
    "guard.classifiers": 1,
    "guard.fit": 2,
    "guard.packs": 2,
    "guard.interventions": 2,
    "guard.engine": 3,
    # rooms of the service: none knows the running server, which the command line starts
    "guard.service.door": 4,
    "guard.service.store": 4,
    "guard.service.files": 4,
    "guard.service.residency": 4,
    "guard.service.dossier": 4,
    # the demonstration sets up tenants of the service; its corpus is data
    "guard.demo": 5,
    "guard.service": 6,
    "guard.service.cli": 7,
    "guard.demo.corpus": 1,
}
# what a folder may not import at all: the device code knows torch only, the words know no I/O framework
BANNED = {
    "guard.kernels": {"vllm", "transformers", "fastapi", "starlette", "sqlalchemy", "pydantic", "numpy"},
    "guard": {"vllm", "fastapi", "starlette", "sqlalchemy", "transformers"},
    "guard.classifiers": {"vllm", "fastapi", "starlette", "sqlalchemy"},
    "guard.fit": {"vllm", "fastapi", "starlette", "sqlalchemy"},
    "guard.packs": {"vllm", "fastapi", "starlette", "sqlalchemy"},
    "guard.interventions": {"vllm", "fastapi", "starlette", "sqlalchemy"},
    "guard.service": {"vllm"},
    **{f"guard.service.{room}": {"vllm"} for room in ("door", "store", "files", "residency", "dossier", "cli")},
    "guard.demo": {"vllm"},
}


def modules() -> dict[str, Path]:
    """Every module of the project by its import name."""
    found = {}
    for folder in ("guard", "kernels", "classifiers", "service"):
        for path in sorted((ROOT / folder).rglob("*.py")):  # rglob does not follow the links inside guard/
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts if folder == "guard" else ("guard", *parts)).removesuffix(".__init__")
            found[name] = path
    return found


def folder_of(module: str) -> str:
    """The key of FLOORS that a module belongs to."""
    return max((name for name in FLOORS if module == name or module.startswith(f"{name}.")), key=len)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import statement, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            base = node.module or ""
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def test_every_module_is_found() -> None:
    assert {"guard.policy", "guard.kernels.corrupt", "guard.classifiers.normalize"} <= set(modules())


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_only_go_down(module: str) -> None:
    path = modules()[module]
    own = folder_of(module)
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imports(path)
        if name.split(".")[0] == "guard" and FLOORS[folder_of(name)] > FLOORS[own]
    ]
    assert upward == []


@pytest.mark.parametrize("module", sorted(modules()))
def test_no_folder_imports_a_framework_that_is_not_its_business(module: str) -> None:
    path = modules()[module]
    banned = BANNED.get(folder_of(module), set())
    found = [f"{path.relative_to(ROOT)}:{line} imports {name}" for line, name in imports(path)
             if name.split(".")[0] in banned]
    assert found == []


@pytest.mark.parametrize("module", sorted(name for name in modules() if folder_of(name) == "guard.kernels"))
def test_kernels_import_each_other_and_torch_only(module: str) -> None:
    path = modules()[module]
    foreign = [f"{path.relative_to(ROOT)}:{line} imports {name}" for line, name in imports(path)
               if name.split(".")[0] == "guard" and folder_of(name) != "guard.kernels"]
    assert foreign == []
