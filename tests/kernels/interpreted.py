"""Runs Triton launchers on CPU tensors under Triton's interpreter, in a process of its own.

`python interpreted.py IN OUT`: IN is a safetensors file of cases made by `run`; the interpreter must be switched on
before triton is imported, which the calling process, where triton is normal, cannot do any more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Case = dict[str, Tensor]


def run(kernel: str, cases: list[Case], options: list[dict[str, Any]], folder: Path) -> list[Case]:
    """Results of `kernel` ("corrupt" or "fill") for every case; tensors are changed in place and come back."""
    given, answer = folder / f"{kernel}_in.safetensors", folder / f"{kernel}_out.safetensors"
    flat = {f"{i}/{name}": tensor.contiguous() for i, case in enumerate(cases) for name, tensor in case.items()}
    save_file(flat, given, metadata={"kernel": kernel, "options": json.dumps(options)})
    done = subprocess.run(  # noqa: S603 - our own interpreter and script
        [sys.executable, __file__, str(given), str(answer)], capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-3000:])
    return _read(answer)[0]


def _read(path: Path) -> tuple[list[Case], dict[str, str]]:
    cases: dict[int, Case] = {}
    with safe_open(path, framework="pt") as stream:
        for key in stream.keys():  # noqa: SIM118
            index, name = key.split("/", 1)
            # a copy: the interpreter takes an empty tensor for its neighbour in the file, which has the same address
            cases.setdefault(int(index), {})[name] = stream.get_tensor(key).clone()
        metadata = stream.metadata() or {}
    return [cases[index] for index in sorted(cases)], metadata


def _main(given: Path, answer: Path) -> None:
    from guard.kernels.corrupt import CorruptionTable, corrupt
    from guard.kernels.route import RouteTable, fill

    cases, metadata = _read(given)
    for case, options in zip(cases, json.loads(metadata["options"]), strict=True):
        if metadata["kernel"] == "corrupt":
            names = ("kind", "dims", "rho", "seed", "counts")
            table = CorruptionTable(**{name: case[name] for name in names})
            width = options["width"]
            # a row stride wider than the row, as in a padded buffer
            corrupt(case["hidden"][:, :width], case["token_slot"], case["position"], table, backend="triton")
        else:
            tables = {field.name: case[field.name] for field in fields(RouteTable) if field.name != "planned"}
            routes = RouteTable(**tables, planned=set(options["planned"]))
            buffers = ["token_lane", "token_strength"] if options.get("lanes", True) else []
            lanes = {name: case[name] for name in buffers}
            fill(
                case["token_slot"], case["token_position"], routes, case["query_start_loc"], case["positions"],
                request_slots=case["request_slots"], num_padded=options["num_padded"], backend="triton", **lanes,
            )
    save_file({f"{i}/{name}": tensor for i, case in enumerate(cases) for name, tensor in case.items()}, answer)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
