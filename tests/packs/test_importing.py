"""Sources that are not trusted: nothing in them runs, damaged ones are refused, and no pack is replaced."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from guard.errors import ConfigurationError, PackError
from guard.packs.import_formats import Format
from guard.packs.importing import Choice, import_pack
from tests.packs.imported_packs import CHOSEN, CLAMP, WIDTH


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["v.npy", "v.pt", "v.safetensors", "params.npz"])
def test_pickles_are_refused_and_never_run(name: str, model: Path, tmp_path: Path) -> None:
    proof, source = tmp_path / "proof", tmp_path / name
    payload = np.array([Payload(str(proof))], dtype=object)
    if name.endswith(".npy"):
        np.save(source, payload, allow_pickle=True)
    elif name.endswith(".npz"):
        names = {"W_enc": (2, 3), "W_dec": (3, 2), "b_enc": (3,), "b_dec": (2,), "threshold": (3,)}
        arrays: dict[str, Any] = {key: np.broadcast_to(payload, shape) for key, shape in names.items()}
        np.savez(source, **arrays)
    else:
        source.write_bytes(pickle.dumps(payload))
    source_format: Format = "gemma-scope" if name == "params.npz" else "steer"
    choice = Choice("1.resid_post", *(((0,), CLAMP.config) if name == "params.npz" else ()))
    with pytest.raises(PackError):
        import_pack(source_format, source, tmp_path / "out", model=model, choice=choice, licence="MIT")
    assert not proof.exists()


@pytest.mark.parametrize("source_format", ["saelens", "gemma-scope", "steer", "lineas"])
@pytest.mark.parametrize("content", [None, b"", b"junk" * 100])
def test_missing_and_damaged_sources_are_refused(
    source_format: Format, content: bytes | None, model: Path, tmp_path: Path
) -> None:
    source = tmp_path / {"saelens": "sae", "gemma-scope": "params.npz"}.get(source_format, "v.safetensors")
    choice = CLAMP if source_format == "saelens" else Choice()
    if source_format == "gemma-scope":
        choice = Choice("1.resid_post", CHOSEN, CLAMP.config)
    if content is not None and source_format == "saelens":
        source.mkdir()
        (source / "cfg.json").write_text("{}")
        (source / "sae_weights.safetensors").write_bytes(content)
    elif content is not None:
        source.write_bytes(content)
    with pytest.raises(PackError):
        import_pack(source_format, source, tmp_path / "out", model=model, choice=choice, licence="MIT")


def test_an_existing_pack_is_not_replaced(model: Path, tmp_path: Path) -> None:
    save_file({"layer_1": torch.ones(WIDTH)}, tmp_path / "v.safetensors")
    out = tmp_path / "out.safetensors"
    import_pack("steer", tmp_path / "v.safetensors", out, model=model, choice=Choice(), licence="MIT")
    before = out.read_bytes()
    with pytest.raises(ConfigurationError, match="exists"):
        import_pack("steer", tmp_path / "v.safetensors", out, model=model, choice=Choice(), licence="MIT")
    assert out.read_bytes() == before
