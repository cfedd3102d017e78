"""A pack on disk: one fitted intervention as safetensors with a typed header, identified by the hash of its content.

Two containers, one meaning:
  FILE.safetensors   tensors; the header is JSON under the metadata key `guard.pack`
  FOLDER/            `pack.json` (the header) and the tensor file that it names, inside the folder

The content hash is SHA-256 over the canonical header without the hash and the tensor file's name, and over name, dtype,
shape and bytes of every tensor: the same pack has the same identity in both containers. Packs are refused (PackError)
when they are truncated, hold non-finite numbers, name a file outside their folder, have the wrong hash, or were made
for another model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from guard import __version__
from guard.errors import PackError

PackKind = Literal["corruption", "edit"]
Fingerprint = Annotated[str, StringConstraints(pattern=r"^fp1:[0-9a-f]{64}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
HEADER_FILE = "pack.json"
TENSOR_FILE = "tensors.safetensors"
METADATA_KEY = "guard.pack"
MAX_HEADER_BYTES = 4 << 20


class PackHeader(BaseModel):
    """What a pack is, which model it fits and how it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format_version: Literal[1] = 1
    kind: PackKind
    method: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]{1,40}$")]
    model_fingerprint: Fingerprint
    sites: tuple[str, ...]
    parameters: dict[str, JsonValue]
    fit_data_digest: Digest
    fit_report: dict[str, JsonValue] = Field(default_factory=dict)
    licence: str
    created_by: str = f"vllm-guard {__version__}"
    tensors: str | None = None
    content_hash: Digest | None = None


@dataclass(frozen=True, slots=True)
class Pack:
    """A verified pack in memory; `header.content_hash` is its identity."""

    header: PackHeader
    tensors: Mapping[str, Tensor]

    @property
    def content_hash(self) -> str:
        return content_hash(self.header, self.tensors)


def content_hash(header: PackHeader, tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256: the identity of a pack, independent of its container."""
    canonical = header.model_dump(mode="json", exclude={"content_hash", "tensors"})
    digest = hashlib.sha256(b"guard pack 1\n")
    digest.update(json.dumps(canonical, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_pack(path: Path, header: PackHeader, tensors: Mapping[str, Tensor]) -> Pack:
    """Write a pack to `path`: a single file when it ends in .safetensors, else a folder. Raises PackError."""
    _check_finite(path, tensors)
    sealed = header.model_copy(update={"content_hash": content_hash(header, tensors), "tensors": None})
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(plain, path, metadata={METADATA_KEY: sealed.model_dump_json()})
        return Pack(sealed, plain)
    path.mkdir(parents=True, exist_ok=True)
    sealed = sealed.model_copy(update={"tensors": TENSOR_FILE})
    save_file(plain, path / TENSOR_FILE)
    (path / HEADER_FILE).write_text(sealed.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Pack(sealed, plain)


def load_pack(path: Path, *, model_fingerprint: str | None = None) -> Pack:
    """Read and verify a pack; with `model_fingerprint`, refuse one that was made for another model.

    Raises PackError. None skips the model check and is for inspection only, never for serving.
    """
    header, tensors = _read_folder(path) if path.is_dir() else _read_file(path)
    if header.content_hash is None or content_hash(header, tensors) != header.content_hash:
        raise PackError(f"{path.name}: the content hash does not match; the pack was changed or damaged")
    _check_finite(path, tensors)
    if model_fingerprint is not None and header.model_fingerprint != model_fingerprint:
        raise PackError(
            f"{path.name}: made for the model {header.model_fingerprint}, but the served model is "
            f"{model_fingerprint}; fit a pack for this model"
        )
    return Pack(header, tensors)


def _read_folder(folder: Path) -> tuple[PackHeader, dict[str, Tensor]]:
    path = folder / HEADER_FILE
    if not _inside(path, folder):
        raise PackError(f"{folder.name}: {HEADER_FILE} lies outside the pack folder")
    try:
        if path.stat().st_size > MAX_HEADER_BYTES:
            raise PackError(f"{folder.name}: {HEADER_FILE} is larger than {MAX_HEADER_BYTES} bytes")
        header = _parse_header(folder.name, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise PackError(f"{folder.name}: {HEADER_FILE} cannot be read") from exc
    if header.tensors is None:
        raise PackError(f"{folder.name}: the header names no tensor file")
    try:
        tensor_path = folder / header.tensors
        inside = _inside(tensor_path, folder)
    except (OSError, ValueError) as exc:
        raise PackError(f"{folder.name}: the tensor file's name is not a path") from exc
    if not inside:
        raise PackError(f"{folder.name}: the tensor file lies outside the pack folder")
    return header, _read_tensors(tensor_path)[1]


def _read_file(path: Path) -> tuple[PackHeader, dict[str, Tensor]]:
    metadata, tensors = _read_tensors(path)
    if METADATA_KEY not in metadata:
        raise PackError(f"{path.name}: not a pack, the metadata key {METADATA_KEY} is missing")
    return _parse_header(path.name, metadata[METADATA_KEY]), tensors


def _read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            metadata = stream.metadata() or {}
            return dict(metadata), {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as exc:
        raise PackError(f"{path.name}: missing, truncated or not a safetensors file") from exc


def _parse_header(name: str, text: str) -> PackHeader:
    try:
        return PackHeader.model_validate(json.loads(text, parse_constant=_refuse_constant))
    except ValidationError as exc:
        fields = ", ".join(".".join(map(str, error["loc"])) or "header" for error in exc.errors()[:5])
        raise PackError(f"{name}: the header does not validate: {fields}") from exc
    except (ValueError, RecursionError) as exc:
        raise PackError(f"{name}: the header is not valid JSON with finite numbers") from exc


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not allowed")


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise PackError(f"{path.name}: tensor {name} holds non-finite numbers")


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve()) and path.resolve() != folder.resolve()
