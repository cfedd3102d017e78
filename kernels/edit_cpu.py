"""Native implementation of activation edits on CPUs: builds and loads `edit_cpu.cpp`.

The source is compiled once per process by the C++ compiler that torch.compile needs as well, into a private folder that
is gone as soon as it is loaded. Its OpenMP threads are those of torch. Without a compiler the torch reference works.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from guard.kernels.edit import EditBank

_SOURCE = Path(__file__).with_name("edit_cpu.cpp")
_OPTIONS = ("-O3", "-march=native", "-std=gnu++17", "-fopenmp", "-shared", "-fPIC")
_BUILD_S = 120
_POINTERS = ("scale", "shift", "read", "write", "bias", "gain", "offset", "threshold", "rank", "parts", "counts")
_DTYPES = (torch.float32, torch.bfloat16)
# below this many tokens, threads cost more than they bring
_TOKENS_PER_THREAD = 4

_LOG = logging.getLogger(__name__)


class _Arguments(ctypes.Structure):
    """`Arguments` of the source, field by field."""

    _fields_ = [
        ("hidden", ctypes.c_void_p), ("residual", ctypes.c_void_p), ("hidden_stride", ctypes.c_int64),
        ("residual_stride", ctypes.c_int64), ("tokens", ctypes.c_int64), ("lane", ctypes.c_void_p),
        ("strength", ctypes.c_void_p), ("lane_stride", ctypes.c_int64), ("strength_stride", ctypes.c_int64),
        ("site", ctypes.c_void_p), *((name, ctypes.c_void_p) for name in _POINTERS), ("sites", ctypes.c_int64),
        ("slots", ctypes.c_int64), ("rows", ctypes.c_int64), ("width", ctypes.c_int64),
        ("hidden_is_bfloat16", ctypes.c_int64), ("bank_is_bfloat16", ctypes.c_int64), ("threads", ctypes.c_int64),
    ]


def works(hidden: Tensor, residual: Tensor | None) -> bool:
    """Whether the native code runs on this machine and for these dtypes: float32 or bfloat16, the same in both."""
    fits = not hidden.is_cuda and hidden.dtype in _DTYPES and (residual is None or residual.dtype == hidden.dtype)
    return fits and library() is not None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled code; the first call takes a few seconds. None, and a warning once, where it cannot be built."""
    known = [path for name in ("g++", "clang++") if (path := shutil.which(name))]
    compiler = shlex.split(os.environ.get("CXX", "")) or known[:1]
    if not compiler:
        _LOG.warning("no C++ compiler: edits on the CPU run in torch, which is several times slower; install g++")
        return None
    try:
        built = _built(compiler)
    except (OSError, subprocess.SubprocessError) as error:
        reason = error.stderr[-500:] if isinstance(error, subprocess.CalledProcessError) else str(error)
        _LOG.warning("edits on the CPU run in torch, because %s did not build them: %s", compiler[0], reason)
        return None
    built.guard_edit.argtypes = [ctypes.POINTER(_Arguments)]
    built.guard_edit.restype = None
    return built


def launch_edit(
    hidden: Tensor, residual: Tensor | None, site: Tensor, token_lane: Tensor, token_strength: Tensor, bank: EditBank,
) -> None:
    """Edit in place; arguments as in `guard.kernels.edit.edit`, already checked. Raises RuntimeError unless `works`."""
    built = library() if works(hidden, residual) else None
    if built is None:
        # other dtypes would be read as if they were float32
        raise RuntimeError("the native edits are not built on this machine, or not for these dtypes")
    tokens = hidden.shape[0]
    arguments = _Arguments(
        hidden.data_ptr(), 0 if residual is None else residual.data_ptr(), hidden.stride(0),
        0 if residual is None else residual.stride(0), tokens, token_lane.data_ptr(), token_strength.data_ptr(),
        token_lane.stride(0), token_strength.stride(0), site.data_ptr(),
        *(getattr(bank, name).data_ptr() for name in _POINTERS), bank.num_sites, bank.num_slots, bank.max_rank,
        bank.width, hidden.dtype == torch.bfloat16, bank.read.dtype == torch.bfloat16,
        max(1, min(torch.get_num_threads(), tokens // _TOKENS_PER_THREAD)),
    )
    built.guard_edit(ctypes.byref(arguments))


def _built(compiler: list[str]) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="guard-edit-") as folder:
        target = Path(folder) / "edit_cpu.so"
        subprocess.run(
            [*compiler, *_OPTIONS, str(_SOURCE), "-o", str(target)], check=True, capture_output=True, text=True,
            timeout=_BUILD_S,
        )
        # stays mapped when the file is gone
        return ctypes.CDLL(str(target))
