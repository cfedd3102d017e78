"""Imported vectors and maps go to the site that their names say and do exactly what they did at the source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from guard.errors import ConfigurationError, GuardError, PackError
from guard.interventions.edits import edit_rows
from guard.kernels.edit_formula import edited
from guard.packs.format import load_pack
from guard.packs.import_formats import Format
from guard.packs.import_vectors import read_vectors
from guard.packs.importing import Choice, import_pack
from guard.site import Site
from tests.packs.imported_packs import WIDTH, imported


@pytest.mark.parametrize("name", ["{}", "layer_{}", "layers.{}", "direction.{}", "model.layers.{}",
                                  "blocks.{}.hook_resid_post", "{}.resid_post", "{}.resid_post/vector"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_steering_vectors_of_layers_go_where_their_names_say(
    name: str, dtype: torch.dtype, model: Path, x: Tensor, tmp_path: Path
) -> None:
    vectors = {layer: torch.randn(1, WIDTH).to(dtype) for layer in (1, 2, 4)}
    save_file({name.format(layer): vector for layer, vector in vectors.items()}, tmp_path / "v.safetensors")
    found = imported("steer", tmp_path / "v.safetensors", model, Choice("2.resid_post,4.resid_post"), x)
    assert torch.equal(found, x + vectors[2].float())
    assert load_pack(tmp_path / "out").header.sites == ("2.resid_post", "4.resid_post")


def test_a_nameless_vector_goes_to_the_named_site(model: Path, x: Tensor, tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).standard_normal((2, WIDTH))
    np.save(tmp_path / "v.npy", matrix)
    found = imported("steer", tmp_path / "v.npy", model, Choice("1.resid_post,2.resid_post"), x)
    torch.testing.assert_close(found, x + torch.from_numpy(matrix[1]).float())
    save_file({"refusal": torch.ones(WIDTH)}, tmp_path / "one.safetensors")
    with pytest.raises(ConfigurationError, match="name one site"):
        import_pack("steer", tmp_path / "one.safetensors", tmp_path / "o", model=model, choice=Choice(), licence="MIT")
    pack = import_pack(
        "steer", tmp_path / "one.safetensors", tmp_path / "o", model=model, choice=Choice("3.mlp_norm"), licence="MIT"
    )
    assert pack.header.sites == ("3.mlp_norm",)


@pytest.mark.parametrize("method", ["lineas", "linear-act"])
def test_maps_of_norms_are_transported_exactly(method: Format, model: Path, x: Tensor, tmp_path: Path) -> None:
    names = {"model.layers.2.input_layernorm": "2.attn_norm", "model.layers.2.post_attention_layernorm": "2.mlp_norm",
             "transformer.h.3.ln_2": "3.mlp_norm", "5.attn_norm": "5.attn_norm"}
    maps = {name: (torch.randn(WIDTH), torch.randn(WIDTH)) for name in names}
    tensors = {f"{name}{'/' if name in names.values() else '.'}{part}": tensor for name, pair in maps.items()
               for part, tensor in zip(("weight", "bias"), pair, strict=True)}
    save_file(tensors, tmp_path / "maps.safetensors")
    pack = import_pack(method, tmp_path / "maps.safetensors", tmp_path / "out", model=model, choice=Choice(),
                       licence="MIT")
    rows = edit_rows(load_pack(tmp_path / "out"))
    assert pack.header.method == method and [str(site) for site in rows] == list(names.values())
    for name, site in names.items():
        weight, bias = maps[name]
        found = edited(x, rows[Site.parse(site)])
        torch.testing.assert_close(found, weight * x + bias, atol=1e-5, rtol=1e-5)


def test_the_output_norm_of_attention_is_no_site(model: Path, x: Tensor, tmp_path: Path) -> None:
    other = tmp_path / "model"
    other.mkdir()
    (other / "config.json").write_bytes((model / "config.json").read_bytes())
    save_file({"model.layers.0.pre_feedforward_layernorm.weight": torch.ones(2)}, other / "model.safetensors")
    name = "model.layers.1.post_attention_layernorm"
    save_file({f"{name}.weight": torch.ones(WIDTH), f"{name}.bias": torch.zeros(WIDTH)}, tmp_path / "m.safetensors")
    with pytest.raises(PackError, match="no site"):
        imported("lineas", tmp_path / "m.safetensors", other, Choice(), x)


@pytest.mark.parametrize(
    ("source_format", "tensors", "choice", "reason"),
    [
        ("steer", {"layer_1": torch.ones(WIDTH + 1)}, Choice(), "hidden size"),
        ("steer", {"layer_6": torch.ones(WIDTH)}, Choice(), "layers 0..5"),
        ("steer", {"a": torch.ones(WIDTH), "b": torch.ones(WIDTH)}, Choice(), "which layer"),
        ("steer", {"layer_1": torch.ones(WIDTH), "layers.1": torch.ones(WIDTH)}, Choice(), "same place"),
        ("steer", {"layer_1": torch.ones(2, WIDTH)}, Choice(), "must be a vector"),
        ("steer", {"layer_1": torch.ones(WIDTH, dtype=torch.int64)}, Choice(), "floating-point"),
        ("steer", {"layer_1": torch.full((WIDTH,), float("nan"))}, Choice(), "finite"),
        ("steer", {"layer_1": torch.ones(WIDTH)}, Choice("2.resid_post"), "nothing for 2.resid_post"),
        ("steer", {"layer_1": torch.ones(WIDTH)}, Choice(features=(1,)), "autoencoders"),
        ("lineas", {"1.attn_norm/weight": torch.ones(WIDTH)}, Choice(), "a weight and a bias"),
        ("lineas", {"model.layers.1.mlp.weight": torch.ones(WIDTH)}, Choice(), "not a norm"),
    ],
)
def test_vectors_and_maps_that_do_not_fit_are_refused(
    source_format: Format, tensors: dict[str, Tensor], choice: Choice, reason: str, model: Path, x: Tensor,
    tmp_path: Path,
) -> None:
    save_file(tensors, tmp_path / "v.safetensors")
    with pytest.raises(GuardError, match=reason):
        imported(source_format, tmp_path / "v.safetensors", model, choice, x)
    assert not (tmp_path / "out").exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=40))
def test_any_name_of_a_vector_has_a_site_or_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "v.safetensors"
    save_file({name: torch.ones(2), "layer_7": torch.ones(2)}, file)
    try:
        sites = list(read_vectors(file, ()))
    except PackError:
        return
    assert all(Site.parse(str(site)) == site for site in sites)
    assert sites == [Site(7, "resid_post")] if name == "layer_7" else any(char in "0123456789" for char in name)
