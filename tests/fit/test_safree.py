"""SAFREE on embeddings: closed forms equal what they stand for, and calibration keeps its promise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from guard.errors import ConfigurationError
from guard.fit.safree import (
    calibrate_kappa,
    calibrate_validation,
    concept_tokens,
    embedding_center,
    embedding_concept,
    rare_tokens,
    token_counts,
)
from guard.interventions import safree
from guard.interventions.safree import Concept, SafreeConfig, Validation
from tests.fit.small_models import tiny_tokenizer

WIDTH = 24


def _rows(count: int, seed: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def _basis(rank: int, seed: int) -> Tensor:
    columns: Tensor = torch.linalg.qr(_rows(rank, seed).T)[0]
    return columns.T


def _dense(basis: Tensor) -> Tensor:
    dense: Tensor = basis.T @ torch.linalg.pinv(basis.T)
    return dense


@given(count=st.integers(2, 40), rank=st.integers(1, 6), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_leave_one_out_equals_recomputing_every_mean(count: int, rank: int, seed: int) -> None:
    rows, basis = _rows(count, seed), _basis(rank, seed + 1)
    outside = torch.eye(WIDTH) - _dense(basis)
    means = torch.stack([torch.cat([rows[:i], rows[i + 1 :]]).mean(dim=0) for i in range(count)])
    assert torch.allclose(safree.leave_one_out(rows, basis), (means @ outside.T).norm(dim=-1), atol=1e-5)


@given(safe=st.integers(1, 16), rank=st.integers(1, 6), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_both_projectors_are_orthogonal_to_the_concept_and_the_exact_one_stays_inside(
    safe: int, rank: int, seed: int
) -> None:
    rows, concept, inside = _rows(5, seed), _basis(rank, seed + 1), _basis(safe, seed + 2)
    paper = safree.project(rows, inside, concept, "paper")
    dense = (torch.eye(WIDTH) - _dense(concept)) @ _dense(inside)
    assert torch.allclose(paper, rows @ dense.T, atol=1e-5)
    assert torch.allclose(paper @ concept.T, torch.zeros(5, rank), atol=1e-5)
    exact = safree.project(rows, inside, concept, "exact")
    assert torch.allclose(exact @ concept.T, torch.zeros(5, rank), atol=1e-5)
    assert torch.allclose(exact @ _dense(inside), exact, atol=1e-5)
    # an orthogonal projection: applying it again changes nothing
    assert torch.allclose(safree.project(exact, inside, concept, "exact"), exact, atol=1e-5)


def test_the_papers_order_leaves_the_span_of_the_safe_tokens() -> None:
    inside = _basis(6, 2)
    paper = safree.project(_rows(5, 0), inside, _basis(4, 1), "paper")
    assert float((paper - paper @ _dense(inside)).norm() / paper.norm()) > 0.05


@given(count=st.integers(0, 200), size=st.integers(2, 64))
def test_cores_of_windows_cover_every_row_once(count: int, size: int) -> None:
    covered: list[int] = []
    for window, core in safree.windows(count, size):
        assert window.start <= core.start < core.stop <= window.stop
        assert window.stop - window.start == min(size, count)
        covered += range(core.start, core.stop)
    assert covered == list(range(count))


def _planted(concept: Concept, count: int, triggers: tuple[int, ...]) -> Tensor:
    rows = safree.without(_rows(count, 7), concept.basis)
    rows /= rows.norm(dim=-1, keepdim=True)
    for index in triggers:
        rows[index] = concept.basis[0] + 0.2 * rows[index]
    return rows + concept.center


def test_planted_triggers_are_found_and_replaced_by_rows_of_their_norm_without_concept() -> None:
    concept = Concept(center=_rows(1, 3)[0], basis=_basis(3, 4))
    rows = _planted(concept, 80, (5, 6, 70))
    for config in (SafreeConfig(projector="paper"), SafreeConfig(projector="exact")):
        found = safree.replace(rows, concept, config)
        assert found.positions.tolist() == [5, 6, 70]
        assert found.erase.tolist() == []
        new, old = found.rows - concept.center, rows[found.positions] - concept.center
        assert torch.allclose(new.norm(dim=-1), old.norm(dim=-1), atol=1e-5)
        assert torch.allclose(new @ concept.basis.T, torch.zeros(3, 3), atol=1e-5)
        assert 0.0 < found.beta <= 2.0


def test_the_relative_test_looks_at_the_own_window_only() -> None:
    concept = Concept(center=torch.zeros(WIDTH), basis=_basis(1, 4))
    rows = _planted(concept, 60, (3,))
    alone = safree.triggers(rows[:32], concept.basis, SafreeConfig())
    assert safree.triggers(rows, concept.basis, SafreeConfig())[:16].tolist() == alone[:16].tolist()


def test_the_absolute_test_spares_prompts_without_the_concept() -> None:
    concept = Concept(center=torch.zeros(WIDTH), basis=_basis(1, 4))
    rows = _rows(6, 8)
    assert bool(safree.triggers(rows, concept.basis, SafreeConfig(alpha=-1.0, kappa=0.0)).all())
    assert not bool(safree.triggers(rows, concept.basis, SafreeConfig(alpha=-1.0, kappa=0.9)).any())


def test_a_window_without_a_safe_token_is_erased_not_replaced() -> None:
    concept = Concept(center=torch.zeros(WIDTH), basis=_basis(1, 4))
    for count in (1, 2):
        found = safree.replace(concept.basis[:1].expand(count, WIDTH), concept, SafreeConfig(alpha=0.0))
        assert found.erase.tolist() == list(range(count))
        assert found.positions.tolist() == []
        assert math.isnan(found.beta)
    empty = safree.replace(torch.empty(0, WIDTH), concept, SafreeConfig())
    assert empty.positions.numel() == empty.erase.numel() == 0


def test_validation_blends_between_the_old_and_the_filtered_row() -> None:
    concept = Concept(center=torch.zeros(WIDTH), basis=_basis(1, 4))
    rows = _planted(concept, 12, (5,))
    full = safree.replace(rows, concept, SafreeConfig())
    off = safree.replace(rows, concept, SafreeConfig(), Validation(steepness=10.0, midpoint=1000.0))
    half = safree.replace(rows, concept, SafreeConfig(), Validation(steepness=1.0, midpoint=10.0 * full.beta))
    assert torch.allclose(off.rows, rows[5:6], atol=1e-6)
    assert torch.allclose(half.rows, (rows[5:6] + full.rows) / 2, atol=1e-5)


def test_kappa_edits_at_most_the_target_share_of_new_benign_prompts() -> None:
    concept = Concept(center=torch.zeros(WIDTH), basis=_basis(3, 4))
    benign = [_rows(10, 100 + index) for index in range(400)]
    forget = [_planted(concept, 10, (4,)) for _ in range(5)]
    found = calibrate_kappa(benign[:200], concept, SafreeConfig(), forget=forget, target=0.1)
    assert found.benign_edited <= 0.1
    assert found.forget_edited == 1.0
    config = SafreeConfig(kappa=found.kappa)
    fresh = [bool(safree.triggers(rows, concept.basis, config).any()) for rows in benign[200:]]
    # 0.1 in expectation; four standard errors of 200 prompts above it
    assert 0.0 < sum(fresh) / 200 < 0.1 + 4 * math.sqrt(0.09 / 200)
    with pytest.raises(ConfigurationError, match="at least 19"):
        calibrate_kappa(benign[:18], concept, SafreeConfig(), target=0.05)


def test_self_validation_reaches_its_strength_at_the_median_forget_prompt() -> None:
    concept = Concept(center=torch.zeros(WIDTH), basis=_basis(3, 4))
    benign = [safree.without(_rows(6, index), concept.basis) for index in range(20)]
    forget = [_planted(concept, 12, (2, 6, 9)) for _ in range(3)]
    validation = calibrate_validation(benign, forget, concept, SafreeConfig())
    beta = safree.self_validation(forget[0], concept, SafreeConfig())
    assert safree.strength(beta, validation) == pytest.approx(0.95, abs=1e-3)
    with pytest.raises(ConfigurationError, match="tell the prompts apart"):
        calibrate_validation(forget, benign, concept, SafreeConfig())


def test_the_concept_holds_every_spelling_and_its_subspace_every_token() -> None:
    byte_tokenizer = tiny_tokenizer()
    tokens = concept_tokens(byte_tokenizer, [" Ada ", "QX"])
    texts = set(byte_tokenizer.convert_ids_to_tokens(tokens))
    assert texts == {"A", "d", "a", "D", "Q", "X", "q", "x", "Ġ"}
    table = _rows(len(byte_tokenizer), 9)
    counts = token_counts(byte_tokenizer, ["aab", "b"], len(table))
    assert counts[byte_tokenizer.convert_tokens_to_ids("a")] == 2
    ids = byte_tokenizer.convert_tokens_to_ids(["a", "b"])
    center = embedding_center(table, counts)
    assert torch.allclose(center, table[ids].mean(dim=0))
    concept = embedding_concept(table, tokens, center, energy=1.0)
    assert torch.allclose(safree.concept_share(table[tokens] - center, concept.basis), torch.ones(len(tokens)))
    rare = rare_tokens(tokens, token_counts(byte_tokenizer, ["a daxq"] * 5 + ["Q"], len(table)), most=0.05)
    assert set(byte_tokenizer.convert_ids_to_tokens(rare)) == {"A", "D", "Q", "X"}
    with pytest.raises(ConfigurationError, match="common"):
        rare_tokens(ids, counts, most=0.1)
    with pytest.raises(ConfigurationError, match="no tokens"):
        concept_tokens(byte_tokenizer, ["", "  "])
    with pytest.raises(ConfigurationError, match="counted"):
        embedding_center(table, torch.zeros(len(table)))
