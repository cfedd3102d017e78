"""The layout that keeps imports, wheel and editable install in agreement (see docs/architecture.md, "Folders")."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LINKED = ("kernels", "classifiers", "service")


def tracked(*patterns: str) -> list[str]:
    """Files that git tracks under the given path patterns; skips the test outside a git checkout."""
    result = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip("not a git checkout")
    return [name for name in result.stdout.splitlines() if (ROOT / name).exists()]


def project() -> dict[str, dict[str, object]]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def test_linked_folders_and_tests_hold_no_init_file() -> None:
    found = [path for folder in (*LINKED, "tests") for path in (ROOT / folder).rglob("__init__.py")]
    assert found == []


def test_code_below_the_top_of_a_linked_folder_lies_in_a_listed_room() -> None:
    rooms = {str(name) for name in project()["tool"]["setuptools"]["packages"]}  # type: ignore[index]
    found = {path.parent.relative_to(ROOT) for folder in LINKED for path in (ROOT / folder).glob("*/**/*.py")}
    assert {".".join(("guard", *folder.parts)) for folder in found} == rooms & {
        name for name in rooms if name.count(".") == 2
    }


def test_links_are_committed_and_relative() -> None:
    for folder in LINKED:
        link = ROOT / "guard" / folder
        assert link.is_symlink()
        assert Path(os.readlink(link)) == Path("..") / folder


def test_importing_kernels_from_the_repository_root_finds_no_file_of_ours() -> None:
    script = "import sys; sys.path.insert(0, '.')\ntry:\n import kernels\n print(kernels.__file__)\n" \
             "except ImportError:\n print(None)\nimport transformers.modeling_utils"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    place = result.stdout.splitlines()[0]
    assert place == "None" or ROOT not in Path(place).parents or ".venv" in Path(place).parts


def test_wheel_holds_exactly_the_tracked_files(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir",
         str(tmp_path), "."],
        cwd=copy_of_tracked_files(tmp_path / "source"), check=True, timeout=300,
    )
    (wheel,) = tmp_path.glob("vllm_guard-*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {name for name in tracked("guard", *LINKED) if not (ROOT / name).is_symlink()}
    # the answers of the retain models are read by the measurements only
    wanted = {name for name in files if not name.startswith("guard/demo/records/")}
    assert names == {name if name.startswith("guard/") else f"guard/{name}" for name in wanted}


def test_every_direct_dependency_is_pinned_for_the_cpu_build() -> None:
    lines = (ROOT / "requirements" / "cpu.txt").read_text(encoding="utf-8").splitlines()
    split = [line.split("==") for line in lines if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in split}
    section = project()["project"]
    extras = section["optional-dependencies"]
    wanted = [*section["dependencies"], *extras["cpu"], *extras["dev"]]  # type: ignore[misc, index]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), str(requirement)


def copy_of_tracked_files(folder: Path) -> Path:
    """Copy what git tracks, links as links, so that a build leaves nothing behind in the checkout."""
    for name in tracked():
        source, copy = ROOT / name, folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.symlink_to(os.readlink(source))
        else:
            copy.write_bytes(source.read_bytes())
    return folder
