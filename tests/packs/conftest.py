"""A model's folder and activations for the tests of imported packs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.packs.imported_packs import LAYERS, TOKENS, WIDTH


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration and one tensor of a model."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps({"hidden_size": WIDTH, "num_hidden_layers": LAYERS}))
    save_file({"model.layers.0.input_layernorm.weight": torch.ones(WIDTH)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def x() -> Tensor:
    """Activations [TOKENS, WIDTH] that an imported pack edits."""
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(4))
