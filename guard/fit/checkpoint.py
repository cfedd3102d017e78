"""The state of a stopped fit: tensors in one safetensors file that says which fit it belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from guard.errors import ConfigurationError

_KEY = "guard.fit"


def fit_identity(*parts: object) -> str:
    """Hex SHA-256 of everything that decides a fit (values of JSON)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Checkpoint:
    """One file; the state of another fit is not taken over but replaced at the first save."""

    def __init__(self, path: Path, identity: str) -> None:
        self._path, self._identity = path, identity

    def load(self) -> dict[str, Tensor]:
        """The saved state, empty when there is none of this fit. Raises ConfigurationError for a damaged file."""
        if not self._path.exists():
            return {}
        try:
            with safe_open(self._path, framework="pt", device="cpu") as stream:
                if (stream.metadata() or {}).get(_KEY) != self._identity:
                    return {}
                return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as exc:
            raise ConfigurationError(f"{self._path.name}: cannot be read; remove it to begin the fit anew") from exc

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Replace the file at once, so that a fit stopped while saving keeps the state before."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
        save_file(plain, partial, metadata={_KEY: self._identity})
        partial.replace(self._path)
