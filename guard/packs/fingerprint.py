"""Model fingerprint: which model a pack was fitted for.

`fp1:` + SHA-256 over
  1. the canonical JSON of config.json, without keys that do not describe the model (versions, paths, storage dtype);
  2. for every tensor of every *.safetensors file, sorted by name: name, dtype, shape and content.

Content is hashed whole while all weights together have at most 256 MiB; above that, three 16 KiB blocks of every tensor
(begin, middle, end) stand for it, so that 140 GB take seconds. The fingerprint does not depend on how weights are
sharded. It tells models apart; it is no signature against somebody who edits weights on purpose between the blocks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from guard.errors import PackError

WHOLE_LIMIT_BYTES = 256 << 20
BLOCK_BYTES = 16 << 10
_MAX_HEADER_BYTES = 100 << 20
_VOLATILE_KEYS = frozenset(
    {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "_commit_hash"}
)


@dataclass(frozen=True, slots=True)
class _StoredTensor:
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def model_fingerprint(model: Path) -> str:
    """Fingerprint of the model folder `model`. Raises PackError when config or weights are missing or damaged."""
    config = _read_config(model / "config.json")
    files = sorted(model.glob("*.safetensors"))
    if not files:
        raise PackError(f"{model.name}: no *.safetensors files, so the model has no fingerprint")
    tensors: dict[str, _StoredTensor] = {}
    for file in files:
        tensors |= _stored_tensors(file)
    digest = hashlib.sha256(b"guard model fingerprint 1\n")
    digest.update(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    whole = sum(tensor.end - tensor.begin for tensor in tensors.values()) <= WHOLE_LIMIT_BYTES
    for name in sorted(tensors):
        _add_tensor(digest, name, tensors[name], whole=whole)
    return f"fp1:{digest.hexdigest()}"


def _read_config(path: Path) -> dict[str, object]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise PackError(f"{path.parent.name}: config.json cannot be read, so the model has no fingerprint") from exc
    if not isinstance(config, Mapping):
        raise PackError(f"{path.parent.name}: config.json is not an object")
    return {key: value for key, value in config.items() if key not in _VOLATILE_KEYS}


def _stored_tensors(file: Path) -> dict[str, _StoredTensor]:
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
                raise PackError(f"{file.name}: damaged safetensors header")
            header = json.loads(stream.read(length))
        found = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = (8 + length + int(offset) for offset in entry["data_offsets"])
            if not 8 + length <= begin <= end <= size:
                raise PackError(f"{file.name}: tensor {name} lies outside the file; it may be truncated")
            found[name] = _StoredTensor(file, str(entry["dtype"]), tuple(entry["shape"]), begin, end)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise PackError(f"{file.name}: damaged safetensors file") from exc
    return found


def _add_tensor(digest: hashlib._Hash, name: str, tensor: _StoredTensor, *, whole: bool) -> None:
    digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
    length = tensor.end - tensor.begin
    if whole or length <= 3 * BLOCK_BYTES:
        pieces = [(tensor.begin, length)]
    else:
        middle = tensor.begin + (length - BLOCK_BYTES) // 2
        pieces = [(start, BLOCK_BYTES) for start in (tensor.begin, middle, tensor.end - BLOCK_BYTES)]
    with tensor.file.open("rb") as stream:
        for start, count in pieces:
            stream.seek(start)
            while count > 0:
                block = stream.read(min(count, 1 << 20))
                if not block:
                    raise PackError(f"{tensor.file.name}: ends early")
                digest.update(block)
                count -= len(block)
