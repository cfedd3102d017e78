"""Lets Model Runner V2 run on a machine without an accelerator: put this folder on PYTHONPATH of every process.

vLLM enables Triton on a CPU when a backend called "cpu" has an active driver. The one registered here only says so; all
kernels run in Triton's interpreter.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")

import triton.backends  # noqa: E402 - the variable above is read at import
from triton.runtime import interpreter  # noqa: E402


class CpuDriver:
    """The part of a driver that vLLM asks for."""

    @staticmethod
    def is_active() -> bool:
        """Always: the interpreter needs no device."""
        return True

    def get_current_device(self) -> int:
        """The only device."""
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        """The only stream."""
        return 0

    def get_active_torch_device(self) -> object:
        """Where tensors live."""
        import torch

        return torch.device("cpu")

    def get_current_target(self) -> object:
        """A target that no kernel is compiled for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cpu", 0, 1)


def _register() -> None:
    triton.backends.backends["cpu"] = type("CpuBackend", (), {"compiler": None, "driver": CpuDriver})


def _accept_integer_masks() -> None:
    # the compiler converts integer masks, the interpreter fails on them; vLLM's n-gram kernel uses one
    for name, place in (("create_masked_load", 1), ("create_masked_store", 2)):
        stock = getattr(interpreter.InterpreterBuilder, name)

        def wrapped(
            self: object, *arguments: Any, _stock: Callable[..., object] = stock, _place: int = place
        ) -> object:
            mask = arguments[_place]
            if mask is not None and mask.data.dtype != bool:
                mask.data = mask.data.astype(bool)
            return _stock(self, *arguments)

        setattr(interpreter.InterpreterBuilder, name, wrapped)


_register()
_accept_integer_masks()
