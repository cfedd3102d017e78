"""Imported packs do what the source does: synthetic files of every format against direct implementations."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from guard.errors import ConfigurationError, GuardError, PackError
from guard.interventions.edits import edit_rows
from guard.interventions.sae import SaeConfig
from guard.kernels.edit_formula import edited
from guard.packs.format import load_pack
from guard.packs.import_vectors import read_vectors
from guard.packs.importing import Choice, Format, import_pack
from guard.site import Site

WIDTH, FEATURES, TOKENS, LAYERS = 24, 40, 32, 6
CHOSEN = (3, 17, 22, 39)
VALUE = 2.5
CLAMP = Choice(features=CHOSEN, config=SaeConfig(value=VALUE))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration and one tensor of a model."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps({"hidden_size": WIDTH, "num_hidden_layers": LAYERS}))
    save_file({"model.layers.0.input_layernorm.weight": torch.ones(WIDTH)}, folder / "model.safetensors")
    return folder


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


@pytest.fixture
def x() -> Tensor:
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(4))


def saelens(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """A SAELens folder."""
    folder.mkdir()
    values = {"d_in": WIDTH, "d_sae": FEATURES, "apply_b_dec_to_input": False, "normalize_activations": "none",
              "hook_name": "blocks.2.hook_resid_post"}
    (folder / "cfg.json").write_text(json.dumps(values | config))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def without(parts: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in parts.items() if name not in names}


def clamped(x: Tensor, features: Tensor, decoder: Tensor, b_dec: Tensor) -> Tensor:
    """Decode with the chosen features set where they fire, plus the error term."""
    error = x - (features @ decoder + b_dec)
    changed = features.clone()
    for feature in CHOSEN:
        changed[:, feature] = torch.where(features[:, feature] > 0, VALUE, features[:, feature])
    assert not torch.equal(changed, features)
    return changed @ decoder + b_dec + error


def imported(
    source_format: Format, source: Path, model: Path, choice: Choice, x: Tensor, site: str = "2.resid_post"
) -> Tensor:
    """Import, read from disk, and edit `x` at `site`."""
    out = source.parent / "out"
    import_pack(source_format, source, out, model=model, choice=choice, licence="MIT")
    return edited(x, edit_rows(load_pack(out))[Site.parse(site)])


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
