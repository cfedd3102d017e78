"""Every method, put into the one edit formula, does what a direct implementation of that method does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guard.errors import PackError
from guard.interventions.cast import Condition, save_cast
from guard.interventions.edits import check_fits, edit_rows
from guard.interventions.lineas import save_lineas
from guard.interventions.sae import SaeConfig, SaeFeatures, save_sae
from guard.interventions.steer import save_steer
from guard.interventions.subspace import save_subspace
from guard.kernels.edit_formula import EditRow, edited
from guard.packs.edit_format import Origin
from guard.packs.format import Pack, PackHeader, load_pack, save_pack
from guard.site import Site

WIDTH, FEATURES, TOKENS = 48, 96, 64
SITE = Site(3, "resid_post")
ORIGIN: Origin = {
    "model_fingerprint": "fp1:" + "a" * 64, "fit_data_digest": "c" * 64, "fit_report": {"score": 0.5}, "licence": "MIT",
}


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def row_of(path: Path) -> EditRow:
    """The only row of a pack read from disk."""
    (row,) = edit_rows(load_pack(path, model_fingerprint=ORIGIN["model_fingerprint"])).values()
    return row


def assert_same(found: Tensor, expected: Tensor, x: Tensor) -> None:
    expected = expected.float()
    assert not torch.allclose(expected, x, atol=1e-3)  # an edit that does nothing proves nothing
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def orthonormal(rank: int, random: torch.Generator) -> Tensor:
    columns: Tensor = torch.linalg.qr(torch.randn(WIDTH, rank, generator=random, dtype=torch.float64))[0]
    return columns.T.float().contiguous()


@pytest.mark.parametrize("method", ["lineas", "linear-act"])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.7])
def test_affine_maps(method: Any, strength: float, random: torch.Generator, tmp_path: Path) -> None:
    x, weight, bias = (torch.randn(*shape, generator=random) for shape in ((TOKENS, WIDTH), (WIDTH,), (WIDTH,)))
    save_lineas(tmp_path / "p", {SITE: (weight, bias)}, method=method, **ORIGIN)
    transported = strength * (weight * x + bias) + (1 - strength) * x
    found = edited(x, row_of(tmp_path / "p"), strength)
    torch.testing.assert_close(found, transported, atol=1e-5, rtol=1e-5)


def test_steering_adds_the_vector(random: torch.Generator, tmp_path: Path) -> None:
    x, vector = torch.randn(TOKENS, WIDTH, generator=random), torch.randn(WIDTH, generator=random)
    save_steer(tmp_path / "p", {SITE: vector}, **ORIGIN)
    assert_same(edited(x, row_of(tmp_path / "p"), -2.0), x - 2.0 * vector, x)


@pytest.mark.parametrize("rank", [1, 5, 32])
def test_projection_is_the_dense_projector(rank: int, random: torch.Generator, tmp_path: Path) -> None:
    x, basis = torch.randn(TOKENS, WIDTH, generator=random), orthonormal(rank, random)
    save_subspace(tmp_path / "p", {SITE: basis}, **ORIGIN)
    columns = basis.double().T
    projector = torch.eye(WIDTH, dtype=torch.float64) - columns @ torch.linalg.inv(columns.T @ columns) @ columns.T
    found = edited(x, row_of(tmp_path / "p"))
    assert_same(found, x.double() @ projector.T, x)
    assert (found @ basis.T).abs().max() < 1e-5


def test_concept_erasure_leaves_the_mean_in_the_subspace(random: torch.Generator, tmp_path: Path) -> None:
    x, mean, basis = (torch.randn(TOKENS, WIDTH, generator=random), torch.randn(WIDTH, generator=random) * 3,
                      orthonormal(4, random))
    save_subspace(tmp_path / "p", {SITE: basis}, {SITE: mean}, **ORIGIN)
    projector = torch.eye(WIDTH) - basis.T @ basis
    found = edited(x, row_of(tmp_path / "p"))
    assert_same(found, mean + (x - mean) @ projector.T, x)
    torch.testing.assert_close(found @ basis.T, (basis @ mean).expand(TOKENS, -1), atol=1e-5, rtol=1e-5)


def autoencoder(random: torch.Generator) -> dict[str, Tensor]:
    """A whole autoencoder: encoder [d, F], decoder [F, d], biases and thresholds, in the usual sizes."""
    return {
        "W_enc": torch.randn(WIDTH, FEATURES, generator=random) / WIDTH**0.5,
        "W_dec": torch.nn.functional.normalize(torch.randn(FEATURES, WIDTH, generator=random), dim=-1),
        "b_enc": torch.randn(FEATURES, generator=random) * 0.2, "b_dec": torch.randn(WIDTH, generator=random) * 0.3,
        "threshold": torch.rand(FEATURES, generator=random) * 0.7,
    }


def features_of(parts: dict[str, Tensor], chosen: list[int], threshold: Tensor) -> SaeFeatures:
    return SaeFeatures(
        parts["W_enc"][:, chosen].T.contiguous(), parts["b_enc"][chosen], threshold[chosen], parts["W_dec"][chosen]
    )


@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
@pytest.mark.parametrize("value", [0.0, 4.0, -20.0])
def test_clamping_equals_encode_clamp_decode_with_the_error_term(
    activation: str, value: float, random: torch.Generator, tmp_path: Path
) -> None:
    x, parts, chosen = torch.randn(TOKENS, WIDTH, generator=random), autoencoder(random), [5, 11, 40, 41, 90]
    threshold = parts["threshold"] if activation == "jumprelu" else torch.zeros(FEATURES)
    pre = x @ parts["W_enc"] + parts["b_enc"]
    features = pre.relu() * (pre > threshold)
    error = x - (features @ parts["W_dec"] + parts["b_dec"])
    clamped = features.clone()
    for feature in chosen:
        clamped[:, feature] = torch.where(features[:, feature] > 0, value, features[:, feature])
    expected = clamped @ parts["W_dec"] + parts["b_dec"] + error
    save_sae(tmp_path / "p", {SITE: features_of(parts, chosen, threshold)}, SaeConfig(value=value), **ORIGIN)
    assert_same(edited(x, row_of(tmp_path / "p")), expected, x)


def test_a_gated_autoencoder_is_a_jumprelu_with_its_own_thresholds(random: torch.Generator, tmp_path: Path) -> None:
    x, parts, chosen = torch.randn(TOKENS, WIDTH, generator=random), autoencoder(random), [0, 33, 95]
    r_mag, b_mag, b_gate = (torch.randn(FEATURES, generator=random) * 0.3 for _ in range(3))
    gate = x @ parts["W_enc"] + b_gate > 0
    features = gate * (x @ (parts["W_enc"] * r_mag.exp()) + b_mag).relu()
    clamped = features.clone()
    clamped[:, chosen] = torch.where(features[:, chosen] > 0, 3.0, features[:, chosen])
    expected = x + (clamped - features) @ parts["W_dec"]
    scaled = {**parts, "W_enc": parts["W_enc"] * r_mag.exp(), "b_enc": b_mag}
    threshold = (b_mag - r_mag.exp() * b_gate).clamp_min(0.0)
    save_sae(tmp_path / "p", {SITE: features_of(scaled, chosen, threshold)}, SaeConfig(value=3.0), **ORIGIN)
    assert_same(edited(x, row_of(tmp_path / "p")), expected, x)


def test_the_dynamic_guardrail_sets_all_features_where_one_fires(random: torch.Generator, tmp_path: Path) -> None:
    x, parts, chosen, c = torch.randn(TOKENS, WIDTH, generator=random), autoencoder(random), [2, 17, 60], 30.0
    parts["threshold"] += 0.8  # so that features are silent on some tokens
    pre = x @ parts["W_enc"] + parts["b_enc"]
    features = pre.relu() * (pre > parts["threshold"])
    fires = (features[:, chosen] > 0).any(dim=-1)
    assert 0 < int(fires.sum()) < TOKENS
    expected = x.clone()
    for token in fires.nonzero().flatten().tolist():
        for feature in chosen:
            expected[token] -= (c + features[token, feature]) * parts["W_dec"][feature]
    config = SaeConfig(value=-c, gate="any")
    save_sae(tmp_path / "p", {SITE: features_of(parts, chosen, parts["threshold"])}, config, **ORIGIN)
    found = edited(x, row_of(tmp_path / "p"))
    assert torch.equal(found[~fires], x[~fires])
    assert_same(found, expected, x)


def test_conditional_steering_adds_each_behaviour_where_its_condition_holds(
    random: torch.Generator, tmp_path: Path
) -> None:
    x, vectors, behaviours = (torch.randn(*shape, generator=random) for shape in ((TOKENS, WIDTH), *((2, WIDTH),) * 2))
    threshold, bias = torch.tensor([0.5, -1.0]), torch.tensor([0.0, 2.0])
    save_cast(tmp_path / "p", {SITE: Condition(vectors, threshold, bias)}, {SITE: behaviours}, **ORIGIN)
    expected = x.clone()
    for token in range(TOKENS):
        for pair in range(2):
            if torch.dot(vectors[pair], x[token]) + bias[pair] > threshold[pair]:
                expected[token] += 1.5 * behaviours[pair]
    assert_same(edited(x, row_of(tmp_path / "p"), 1.5), expected, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["pack", "pack.safetensors"])
def test_what_is_saved_is_what_is_read(
    name: str, dtype: torch.dtype, random: torch.Generator, tmp_path: Path
) -> None:
    first, second = Site(2, "attn_norm"), Site(10, "mlp_norm")
    shared = torch.randn(WIDTH, generator=random).to(dtype)
    vectors = {second: shared, first: shared}
    low_rank = [torch.randn(3, WIDTH, generator=random).to(dtype) for _ in range(2)]
    small = [torch.randn(3, generator=random).to(dtype) for _ in range(2)]
    steer = save_steer(tmp_path / f"a{name}", vectors, **ORIGIN)
    assert steer.header.sites == ("2.attn_norm", "10.mlp_norm")
    rows = edit_rows(load_pack(tmp_path / f"a{name}"))
    assert list(rows) == [first, second]
    assert all(torch.equal(part(rows[site].shift), vectors[site]) for site in vectors)
    save_sae(tmp_path / f"b{name}", {SITE: SaeFeatures(low_rank[0], small[0], small[1], low_rank[1])},
             SaeConfig(value=-2.5, gate="any"), **ORIGIN)
    row = row_of(tmp_path / f"b{name}")
    assert row.any_gate and part(row.offset).tolist() == [-2.5] * 3 and part(row.gain).tolist() == [-1.0] * 3
    for found, given in zip((row.read, row.bias, row.threshold, row.write),
                            (low_rank[0], *small, low_rank[1]), strict=True):
        assert found is not None and found.dtype == dtype and torch.equal(found, given)
    assert load_pack(tmp_path / f"b{name}").header.fit_report == {"score": 0.5}


def part(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def write(path: Path, method: str, tensors: dict[str, Tensor], **changes: Any) -> Pack:
    """A pack that no save function made."""
    values = {"kind": "edit", "method": method, "sites": ("3.resid_post",), "parameters": {}, **ORIGIN}
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    return save_pack(path, PackHeader.model_validate(values | changes), copies)


V = torch.ones(WIDTH)
BAD: dict[str, tuple[str, dict[str, Tensor], dict[str, Any], str]] = {
    "unknown method": ("prefix", {"3.resid_post/vector": V}, {}, "unknown"),
    "other kind": ("steer", {"3.resid_post/vector": V}, {"kind": "corruption"}, "not an edit pack"),
    "unknown place": ("steer", {"3.mlp/vector": V}, {"sites": ("3.mlp",)}, "not a site"),
    "site spelt otherwise": ("steer", {"03.resid_post/vector": V}, {"sites": ("03.resid_post",)}, "order of layers"),
    "repeated site": ("steer", {"3.resid_post/vector": V}, {"sites": ("3.resid_post",) * 2}, "order of layers"),
    "no site": ("steer", {}, {"sites": ()}, "1 to"),
    "missing tensor": ("lineas", {"3.resid_post/weight": V}, {}, "lacks tensors: 3.resid_post/bias"),
    "foreign tensor": ("steer", {"3.resid_post/vector": V, "x": V}, {}, "unexpected tensors: x"),
    "tensor of another site": ("steer", {"3.resid_post/vector": V, "4.resid_post/vector": V}, {}, "unexpected"),
    "parameters of another method": ("steer", {"3.resid_post/vector": V}, {"parameters": {"value": 1}}, "value"),
    "matrix for a vector": ("steer", {"3.resid_post/vector": torch.ones(1, WIDTH)}, {}, "1 dimensions"),
    "number for a vector": ("steer", {"3.resid_post/vector": torch.tensor(1.0)}, {}, "1 dimensions"),
    "empty": ("steer", {"3.resid_post/vector": torch.ones(0)}, {}, "empty"),
    "integers": ("steer", {"3.resid_post/vector": torch.ones(WIDTH, dtype=torch.int32)}, {}, "float32"),
    "float16": ("steer", {"3.resid_post/vector": V.half()}, {}, "float32"),
    "lengths differ": ("lineas", {"3.resid_post/weight": V, "3.resid_post/bias": torch.ones(3)}, {}, "length"),
    "not orthonormal": ("subspace", {"3.resid_post/basis": torch.ones(2, WIDTH)}, {}, "orthonormal"),
    "more rows than dimensions": ("subspace", {"3.resid_post/basis": torch.eye(4)[[0, 1, 2, 3, 0]]}, {}, "orthonormal"),
    "mean of another width": (
        "subspace", {"3.resid_post/basis": torch.eye(WIDTH)[:2], "3.resid_post/mean": torch.ones(3)}, {}, "mean"
    ),
    "rank above 32": ("subspace", {"3.resid_post/basis": torch.eye(WIDTH)[:33]}, {}, "rank 33 exceeds 32"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_packs_are_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    method, tensors, changes, reason = BAD[case]
    write(tmp_path / "p", method, tensors, **changes)
    with pytest.raises(PackError, match=reason):
        edit_rows(load_pack(tmp_path / "p"))


@pytest.mark.parametrize("name", ["encoder", "encoder_bias", "threshold", "decoder"])
def test_autoencoder_tensors_of_other_shapes_are_refused(name: str, tmp_path: Path) -> None:
    tensors = {"encoder": torch.ones(2, 8), "encoder_bias": torch.ones(2), "threshold": torch.ones(2),
               "decoder": torch.ones(2, 8)}
    tensors[name] = torch.ones(*tensors[name].shape[:-1], 5)
    with pytest.raises(PackError, match="must be"):
        save_sae(tmp_path / "p", {SITE: SaeFeatures(**tensors)}, SaeConfig(value=0.0), **ORIGIN)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float, tmp_path: Path) -> None:
    with pytest.raises(PackError):
        save_steer(tmp_path / "p", {SITE: torch.tensor([1.0, bad])}, **ORIGIN)
    pack = Pack(PackHeader.model_validate({"kind": "edit", "method": "subspace", "sites": ("3.resid_post",),
                                           "parameters": {}, **ORIGIN}), {"3.resid_post/basis": torch.tensor([[bad]])})
    with pytest.raises(PackError, match="orthonormal"):
        edit_rows(pack)


def test_saving_refuses_sites_and_headers_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="no basis"):
        save_subspace(tmp_path / "p", {SITE: torch.eye(4)[:1]}, {Site(4, "resid_post"): torch.ones(4)}, **ORIGIN)
    with pytest.raises(PackError, match="same sites"):
        save_cast(tmp_path / "p", {SITE: Condition(torch.ones(1, 4), torch.ones(1))}, {}, **ORIGIN)
    origin: Origin = {**ORIGIN, "model_fingerprint": "none"}
    with pytest.raises(PackError, match="model_fingerprint"):
        save_steer(tmp_path / "p", {SITE: V}, **origin)


def test_a_pack_fits_models_of_its_width_with_enough_layers(tmp_path: Path) -> None:
    pack = save_subspace(tmp_path / "p", {SITE: torch.eye(WIDTH)[:9]}, **ORIGIN)
    check_fits(pack, width=WIDTH, num_layers=4)
    with pytest.raises(PackError, match="layers 0..2"):
        check_fits(pack, width=WIDTH, num_layers=3)
    with pytest.raises(PackError, match=f"hidden size {WIDTH}"):
        check_fits(pack, width=WIDTH + 1, num_layers=4)
    with pytest.raises(PackError, match="rank 9"):
        check_fits(pack, width=WIDTH, num_layers=4, max_rank=8)
