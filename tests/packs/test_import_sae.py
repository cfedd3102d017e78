"""Imported autoencoders clamp their features exactly like direct implementations of every architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from guard.errors import ConfigurationError, PackError
from guard.packs.format import load_pack
from guard.packs.importing import Choice, import_pack
from tests.packs.imported_packs import CHOSEN, CLAMP, FEATURES, VALUE, WIDTH, imported


@pytest.fixture
def parts() -> dict[str, Tensor]:
    """The tensors that the autoencoders of all architectures have between them."""
    random = torch.Generator().manual_seed(3)

    def draw(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=random) * scale

    return {
        "W_enc": draw(WIDTH, FEATURES, scale=WIDTH**-0.5), "W_dec": draw(FEATURES, WIDTH, scale=0.4),
        "b_enc": draw(FEATURES, scale=0.2), "b_dec": draw(WIDTH, scale=0.5), "threshold": draw(FEATURES, scale=0.5),
        "b_gate": draw(FEATURES, scale=0.3), "b_mag": draw(FEATURES, scale=0.3), "r_mag": draw(FEATURES, scale=0.3),
    }


def saelens(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """A SAELens folder."""
    folder.mkdir()
    values = {"d_in": WIDTH, "d_sae": FEATURES, "apply_b_dec_to_input": False, "normalize_activations": "none",
              "hook_name": "blocks.2.hook_resid_post"}
    (folder / "cfg.json").write_text(json.dumps(values | config))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def without(parts: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    """`parts` but for `names`."""
    return {name: tensor for name, tensor in parts.items() if name not in names}


def clamped(x: Tensor, features: Tensor, decoder: Tensor, b_dec: Tensor) -> Tensor:
    """Decode with the chosen features set where they fire, plus the error term."""
    error = x - (features @ decoder + b_dec)
    changed = features.clone()
    for feature in CHOSEN:
        changed[:, feature] = torch.where(features[:, feature] > 0, VALUE, features[:, feature])
    assert not torch.equal(changed, features)
    return changed @ decoder + b_dec + error


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "batchtopk"])
def test_features_of_a_saelens_folder_are_clamped_exactly(
    architecture: str, centred: bool, model: Path, parts: dict[str, Tensor], x: Tensor, tmp_path: Path
) -> None:
    pre = (x - parts["b_dec"] * centred) @ parts["W_enc"]
    if architecture == "gated":
        magnitude = (x - parts["b_dec"] * centred) @ (parts["W_enc"] * parts["r_mag"].exp()) + parts["b_mag"]
        features, tensors = (pre + parts["b_gate"] > 0) * magnitude.relu(), without(parts, "b_enc", "threshold")
    else:
        tensors = without(parts, "b_gate", "b_mag", "r_mag")
        pre = pre + parts["b_enc"]
        features = pre.relu()
        if architecture == "jumprelu":
            features = features * (pre > parts["threshold"])
        else:
            del tensors["threshold"]
        if architecture == "batchtopk":
            tensors["topk_threshold"] = torch.tensor(0.31, dtype=torch.float64)
            features = features * (pre > 0.31)
    expected = clamped(x, features, parts["W_dec"], parts["b_dec"])
    folder = saelens(tmp_path / "sae", tensors, architecture=architecture, apply_b_dec_to_input=centred)
    torch.testing.assert_close(imported("saelens", folder, model, CLAMP, x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norms", [False, True])
def test_a_topk_autoencoder_needs_a_calibrated_threshold(
    norms: bool, model: Path, parts: dict[str, Tensor], x: Tensor, tmp_path: Path
) -> None:
    tensors = without(parts, "threshold", "b_gate", "b_mag", "r_mag")
    folder = saelens(tmp_path / "sae", tensors, architecture="topk", rescale_acts_by_decoder_norm=norms)
    with pytest.raises(ConfigurationError, match="calibrated"):
        imported("saelens", folder, model, CLAMP, x)
    sizes = parts["W_dec"].norm(dim=-1) if norms else torch.ones(FEATURES)
    pre = (x @ parts["W_enc"] + parts["b_enc"]) * sizes
    expected = clamped(x, pre * (pre > 0.4), parts["W_dec"] / sizes[:, None], parts["b_dec"])
    choice = Choice(features=CHOSEN, config=CLAMP.config, threshold=0.4)
    torch.testing.assert_close(imported("saelens", folder, model, choice, x), expected, atol=1e-5, rtol=1e-5)


def test_gemma_scope_features_are_clamped_exactly(
    model: Path, parts: dict[str, Tensor], x: Tensor, tmp_path: Path
) -> None:
    names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    arrays: dict[str, Any] = {name: parts[name].numpy() for name in names}
    np.savez(tmp_path / "params.npz", **arrays)
    pre = x @ parts["W_enc"] + parts["b_enc"]
    expected = clamped(x, pre.relu() * (pre > parts["threshold"]), parts["W_dec"], parts["b_dec"])
    with pytest.raises(ConfigurationError, match="name it"):
        imported("gemma-scope", tmp_path / "params.npz", model, CLAMP, x)
    choice = Choice("4.resid_post", CHOSEN, CLAMP.config)
    found = imported("gemma-scope", tmp_path / "params.npz", model, choice, x, "4.resid_post")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    report = load_pack(tmp_path / "out").header.fit_report
    assert report == {"imported_from": "gemma-scope", "source": "params.npz", "features": list(CHOSEN)}


@pytest.mark.parametrize(
    ("hook", "site"),
    [("blocks.2.hook_resid_post", "2.resid_post"), ("blocks.3.hook_resid_pre", "2.resid_post"),
     ("model.layers.5", "5.resid_post")],
)
@pytest.mark.parametrize("section", [None, "meta", "metadata"])
def test_the_site_is_read_from_the_hook_name(
    hook: str, site: str, section: str | None, model: Path, parts: dict[str, Tensor], tmp_path: Path
) -> None:
    named: dict[str, Any] = {"hook_name": hook} if section is None else {section: {"hook_name": hook}}
    folder = saelens(tmp_path / "sae", without(parts, "threshold"), **({"hook_name": None} | named))
    if section is not None:
        config = json.loads((folder / "cfg.json").read_text())
        del config["hook_name"]
        (folder / "cfg.json").write_text(json.dumps(config))
    pack = import_pack("saelens", folder, tmp_path / "out", model=model, choice=CLAMP, licence="MIT")
    assert pack.header.sites == (site,)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"normalize_activations": "layer_norm"}, "no affine form"),
        ({"normalize_activations": "constant_norm_rescale"}, "no affine form"),
        ({"normalize_activations": "expected_average_only_in"}, "fold"),
        ({"hook_name": "blocks.2.attn.hook_z"}, "residual stream"),
        ({"hook_name": "blocks.0.hook_resid_pre"}, "embeddings"),
        ({"hook_name": "blocks.9.hook_resid_post"}, "layers 0..5"),
        ({"reshape_activations": "hook_z"}, "attention heads"),
        ({"hook_head_index": 3}, "attention heads"),
        ({"architecture": "transcoder"}, "transcoder is not served"),
        ({"activation_fn_str": "tanh-relu"}, "tanh-relu is not served"),
        ({"finetuning_scaling_factor": True}, "output scale"),
        ({"architecture": "gated"}, "needs the tensors b_gate"),
    ],
)
def test_variants_that_cannot_be_served_are_refused_with_the_reason(
    config: dict[str, Any], reason: str, model: Path, parts: dict[str, Tensor], x: Tensor, tmp_path: Path
) -> None:
    folder = saelens(tmp_path / "sae", without(parts, "threshold", "b_gate", "b_mag", "r_mag"), **config)
    with pytest.raises(PackError, match=reason):
        imported("saelens", folder, model, CLAMP, x)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["W_enc", "W_dec"])
def test_transposed_matrices_are_refused(
    name: str, model: Path, parts: dict[str, Tensor], x: Tensor, tmp_path: Path
) -> None:
    tensors = parts | {name: parts[name].T.contiguous()}
    folder = saelens(tmp_path / "sae", tensors, architecture="jumprelu")
    with pytest.raises(PackError, match=f"{name} must be .* transposed"):
        imported("saelens", folder, model, CLAMP, x)


@pytest.mark.parametrize(
    "choice",
    [
        Choice(features=(), config=CLAMP.config), Choice(features=(1, 1), config=CLAMP.config),
        Choice(features=(FEATURES,), config=CLAMP.config), Choice(features=tuple(range(33)), config=CLAMP.config),
        Choice(features=CHOSEN), Choice("3.resid_post", CHOSEN, CLAMP.config),
        Choice("*.resid_post", CHOSEN, CLAMP.config), Choice("", CHOSEN, CLAMP.config, threshold=0.5),
    ],
)
def test_choices_that_do_not_fit_the_autoencoder_are_refused(
    choice: Choice, model: Path, parts: dict[str, Tensor], x: Tensor, tmp_path: Path
) -> None:
    folder = saelens(tmp_path / "sae", parts, architecture="jumprelu")
    with pytest.raises(ConfigurationError):
        imported("saelens", folder, model, choice, x)
