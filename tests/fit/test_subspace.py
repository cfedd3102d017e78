"""Fitting subspace projections: which directions are taken, and what the pack does to states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guard.errors import ConfigurationError
from guard.fit.concept_basis import concept_basis, contrast_basis, energy_basis, energy_rank, removed_share
from guard.fit.concept_rows import ConceptRow, read_concept_rows, rows_digest, split_texts
from guard.fit.concept_states import collect_concept_states, token_states
from guard.fit.hooks import edits, recorded
from guard.fit.subspace import fit_subspace, run_fit_subspace
from guard.interventions.edits import edit_rows
from guard.interventions.subspace import SubspaceConfig
from guard.kernels.edit_formula import edited
from guard.packs.fingerprint import model_fingerprint
from guard.packs.format import load_pack
from guard.site import Site
from tests.fit.small_models import tiny_llama, tiny_tokenizer

SITES = (Site(0, "resid_post"), Site(1, "resid_post"))
FINGERPRINT = "fp1:" + "a" * 64


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _rows() -> list[ConceptRow]:
    forget = [f"Ada Quill wrote book {number}." for number in range(6)]
    retain = [f"The river {name} is long." for name in ("Rhine", "Loire", "Elbe", "Tiber", "Ebro", "Oder")]
    return [ConceptRow(text=text, label="forget") for text in forget] + [
        ConceptRow(text=text, label="retain") for text in retain
    ]


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return tiny_llama(), tiny_tokenizer()


@pytest.mark.parametrize(("energy", "rank"), [(0.5, 1), (0.79, 1), (0.81, 2), (0.95, 2), (0.96, 3), (1.0, 4)])
def test_the_rank_is_the_smallest_that_keeps_the_energy(energy: float, rank: int) -> None:
    spectrum = torch.tensor([80.0, 15.0, 4.0, 1.0, 0.0], dtype=torch.float64)
    assert energy_rank(spectrum, energy, 32) == rank
    assert energy_rank(spectrum, energy, 2) == min(rank, 2)
    with pytest.raises(ConfigurationError, match="nothing to remove"):
        energy_rank(torch.zeros(3), energy, 32)


def test_the_energy_basis_finds_the_planted_directions_and_removes_their_energy() -> None:
    directions = torch.linalg.qr(_draw(12, 3))[0].T
    planted = _draw(200, 3, seed=1) @ directions
    found = energy_basis(planted + 0.01 * _draw(200, 12, seed=2), energy=0.95, max_rank=32)
    assert torch.allclose(found.basis @ directions.T @ directions, found.basis, atol=0.02)
    assert found.kept >= 0.95
    assert removed_share(planted, torch.zeros(12), found.basis) == pytest.approx(1.0, abs=1e-3)


def test_contrast_prefers_a_weak_direction_of_the_concept_to_a_strong_one_of_all_texts() -> None:
    retain = _draw(400, 10, seed=1) * torch.tensor([30.0] + [1.0] * 9)
    concept = _draw(400, 10, seed=2) * torch.tensor([30.0] + [1.0] * 9)
    concept[:, 4] += 8.0
    options = {"energy": 1.0, "max_rank": 1}
    plain = energy_basis(concept, **options)  # type: ignore[arg-type]
    spared = contrast_basis(concept, retain, ridge=0.01, **options)  # type: ignore[arg-type]
    assert int(plain.basis.abs().argmax()) == 0
    assert int(spared.basis.abs().argmax()) == 4
    # a large ridge makes retain variance count for nothing
    stiff = contrast_basis(concept, retain, ridge=1e6, **options)  # type: ignore[arg-type]
    assert torch.allclose(stiff.basis.abs(), plain.basis.abs(), atol=1e-3)


def test_difference_is_the_unit_vector_between_the_means() -> None:
    retain, concept = _draw(50, 8), _draw(60, 8, seed=1) + 2.0
    found = concept_basis(concept, retain, "difference", energy=0.95, max_rank=8, ridge=1.0)
    expected = concept.mean(dim=0) - retain.mean(dim=0)
    assert torch.allclose(found.basis[0], expected / expected.norm(), atol=1e-5)
    with pytest.raises(ConfigurationError, match="equals the retain mean"):
        concept_basis(retain, retain, "difference", energy=0.95, max_rank=8, ridge=1.0)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", ["energy", "contrast", "difference"])
def test_the_pack_projects_like_the_dense_matrix(
    loaded: tuple[Any, Any], tmp_path: Path, kind: str, affine: bool
) -> None:
    config = SubspaceConfig.model_validate({"kind": kind, "affine": affine, "max_rank": 4})
    fitted = fit_subspace(*loaded, _rows(), SITES, config, out=tmp_path, fingerprint=FINGERPRINT, show_progress=False)
    pack = load_pack(tmp_path / "subspace", model_fingerprint=FINGERPRINT)
    assert pack.content_hash == fitted.content_hash
    rows = edit_rows(pack)
    assert tuple(rows) == SITES
    for site, row in rows.items():
        basis = pack.tensors[f"{site}/basis"]
        assert len(basis) == (1 if kind == "difference" else 4)
        mean = pack.tensors[f"{site}/mean"] if affine else torch.zeros(16)
        x = _draw(7, 16, seed=5)
        dense = mean + (x - mean) @ (torch.eye(16) - basis.T @ basis)
        assert torch.allclose(edited(x, row), dense, atol=1e-5)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["texts"] == {"forget": 5, "retain": 5, "behaviour": 0, "held_out_forget": 1, "held_out_retain": 1}
    for figures in report["sites"].values():
        assert figures["energy_removed"]["forget"] > figures["energy_removed"]["retain"]
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_a_fit_that_keeps_the_norm_makes_the_same_basis_and_states_as_long_as_before(
    loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    packs = [
        fit_subspace(
            *loaded, _rows(), SITES[1:], SubspaceConfig(keep_norm=keep_norm), out=tmp_path / str(keep_norm),
            fingerprint=FINGERPRINT, show_progress=False,
        )
        for keep_norm in (False, True)
    ]
    assert packs[0].tensors.keys() == packs[1].tensors.keys()
    assert all(torch.equal(tensor, packs[1].tensors[name]) for name, tensor in packs[0].tensors.items())
    x = _draw(7, 16, seed=5)
    plain, kept = (edited(x, edit_rows(pack)[SITES[1]]) for pack in packs)
    torch.testing.assert_close(kept.norm(dim=1), x.norm(dim=1))
    assert not torch.allclose(plain.norm(dim=1), x.norm(dim=1), rtol=1e-3)
    # what came later is recorded only where it is set: other packs and recipes keep their identity
    settings = [pack.header.fit_report["settings"] for pack in packs]
    assert settings[1] == {**settings[0], "keep_norm": True}  # type: ignore[dict-item]
    assert {"keep_norm", "clusters"}.isdisjoint(SubspaceConfig().model_dump())


def test_the_model_with_the_pack_has_no_concept_energy_left(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = loaded
    config = SubspaceConfig(kind="energy", held_out_share=0.0, energy=0.9)
    pack = fit_subspace(
        *loaded, _rows(), SITES[1:], config, out=tmp_path, fingerprint=FINGERPRINT, show_progress=False
    )
    basis, mean = pack.tensors["1.resid_post/basis"], pack.tensors["1.resid_post/mean"]
    ids = torch.tensor([tokenizer("Ada Quill wrote")["input_ids"]])
    with torch.no_grad(), edits(model, edit_rows(pack)), recorded(model, list(SITES[1:])) as seen:
        model(input_ids=ids)
    assert float(((seen[SITES[1]] - mean) @ basis.T).abs().max()) < 1e-4


def test_states_leave_out_first_tokens_and_know_their_texts(loaded: tuple[Any, Any]) -> None:
    texts = ["ab", "c", "defgh"]
    states, lengths = token_states(*loaded, texts, SITES)
    assert lengths == (1, 1, 4)
    means, single = token_states(*loaded, texts, SITES, pooling="mean")
    last, _ = token_states(*loaded, texts, SITES, pooling="last")
    assert single == (1, 1, 1)
    parts = states[SITES[0]].split(lengths)
    assert torch.allclose(means[SITES[0]], torch.stack([part.mean(dim=0) for part in parts]))
    assert torch.allclose(last[SITES[0]], torch.stack([part[-1] for part in parts]))
    with pytest.raises(ConfigurationError, match="at least one site"):
        collect_concept_states(*loaded, split_texts(_rows(), 0.0, 0), ())


def test_fit_from_files_is_seeded_and_names_bad_lines(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    loaded[0].save_pretrained(folder)
    loaded[1].save_pretrained(folder)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(row.model_dump_json() + "\n" for row in _rows()))
    config = SubspaceConfig(sites="0-1.resid_post")
    packs = [run_fit_subspace(folder, data, tmp_path / name, config, show_progress=False) for name in "ab"]
    assert packs[0].content_hash == packs[1].content_hash
    assert packs[0].header.model_fingerprint == model_fingerprint(folder)
    assert packs[0].header.fit_data_digest == rows_digest(read_concept_rows(data))
    data.write_text('{"text": "a", "label": "forget"}\n{"text": "secret", "label": "other"}\n')
    with pytest.raises(ConfigurationError, match=r"data\.jsonl:2") as caught:
        run_fit_subspace(folder, data, tmp_path / "c", config)
    assert "secret" not in str(caught.value)
    data.write_text('{"text": "a", "label": "forget"}\n')
    with pytest.raises(ConfigurationError, match="at least 2 texts"):
        run_fit_subspace(folder, data, tmp_path / "c", config, show_progress=False)
