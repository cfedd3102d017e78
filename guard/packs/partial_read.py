"""Parts of large matrices on disk: an autoencoder has gigabytes, a pack needs a few of its rows.

Everything comes out as float32 on the CPU. Nothing is unpickled.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from guard.errors import PackError

# its functions have no types
_NPY: Any = np.lib.format


class Arrays(Protocol):
    """Named arrays of one file. Methods raise PackError for arrays that do not hold floating-point numbers."""

    def __contains__(self, name: str) -> bool: ...

    def names(self) -> frozenset[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape, without reading the content."""

    def whole(self, name: str) -> Tensor:
        """The whole array."""

    def rows(self, name: str, chosen: Sequence[int]) -> Tensor:
        """[len(chosen), n] of a matrix [m, n]."""

    def columns(self, name: str, chosen: Sequence[int]) -> Tensor:
        """[len(chosen), m] of a matrix [m, n]: columns as rows."""


@contextmanager
def open_safetensors(file: Path) -> Iterator[Arrays]:
    """The tensors of a safetensors file. Raises PackError."""
    try:
        with safe_open(file, framework="pt", device="cpu") as stream:
            yield _Safetensors(stream)
    except (SafetensorError, OSError) as exc:
        raise PackError(f"{file.name}: missing, truncated or not a safetensors file") from exc


@contextmanager
def open_npz(file: Path) -> Iterator[Arrays]:
    """The arrays of a NumPy archive. Raises PackError, also for one that holds Python objects."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield _Npz(archive)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as exc:
        raise PackError(f"{file.name}: missing, damaged or not an .npz archive of plain arrays") from exc


class _Safetensors:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._names = frozenset(stream.keys())

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def names(self) -> frozenset[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._stream.get_slice(name).get_shape())

    def whole(self, name: str) -> Tensor:
        return _numbers(name, self._stream.get_tensor(name))

    def rows(self, name: str, chosen: Sequence[int]) -> Tensor:
        part = self._stream.get_slice(name)
        return _numbers(name, torch.cat([part[index : index + 1] for index in chosen]))

    def columns(self, name: str, chosen: Sequence[int]) -> Tensor:
        part = self._stream.get_slice(name)
        return _numbers(name, torch.cat([part[:, index : index + 1] for index in chosen], dim=1)).T


class _Npz:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._names = frozenset(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def names(self) -> frozenset[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        with self._archive.open(f"{name}.npy") as stream:
            if _NPY.read_magic(stream) == (1, 0):
                return tuple(_NPY.read_array_header_1_0(stream)[0])
            return tuple(_NPY.read_array_header_2_0(stream)[0])

    def whole(self, name: str) -> Tensor:
        return _numbers(name, torch.from_numpy(self._read(name)))

    def rows(self, name: str, chosen: Sequence[int]) -> Tensor:
        return _numbers(name, torch.from_numpy(self._read(name)[list(chosen)]))

    def columns(self, name: str, chosen: Sequence[int]) -> Tensor:
        return _numbers(name, torch.from_numpy(self._read(name)[:, list(chosen)])).T

    def _read(self, name: str) -> Any:
        with self._archive.open(f"{name}.npy") as stream:
            array = _NPY.read_array(stream, allow_pickle=False)
        if array.dtype.kind != "f":
            raise PackError(f"{name} holds {array.dtype}, not floating-point numbers")
        return array.astype(np.float32)


def _numbers(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise PackError(f"{name} holds {tensor.dtype}, not floating-point numbers")
    return tensor.float()
