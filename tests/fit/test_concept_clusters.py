"""Subspaces of several clusters of forget texts: which texts go together, and what their common basis removes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from guard.errors import ConfigurationError
from guard.fit.concept_clusters import clustered_basis, joint_basis, text_clusters
from guard.fit.concept_rows import ConceptRow
from guard.fit.concept_states import ConceptStates
from guard.fit.subspace import fit_subspace
from guard.interventions.subspace import SubspaceConfig
from guard.site import Site
from tests.fit.small_models import tiny_llama, tiny_tokenizer

WIDTH = 12


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _topics(count: int, texts: int = 6, tokens: int = 5) -> tuple[ConceptStates, Tensor]:
    """States of `count` topics with an axis each, text by text in turns, and the axes [count, d]."""
    axes = torch.linalg.qr(_draw(WIDTH, count, seed=8)).Q.T
    topic = torch.arange(texts * count).remainder(count).repeat_interleave(tokens)
    retain = _draw(200, WIDTH, seed=1) + 3.0
    forget = retain.mean(dim=0) + 10.0 * axes[topic] + 0.1 * _draw(len(topic), WIDTH, seed=2)
    lengths, none = (tokens,) * (texts * count), torch.empty(0, WIDTH)
    return ConceptStates(forget, retain, none, none, none, lengths, (1,) * 200, (), ()), axes


def _missed(axes: Tensor, basis: Tensor) -> float:
    """How far the axes lie outside the span of the basis."""
    return float((axes - axes @ basis.T @ basis).norm(dim=1).max())


def test_texts_of_a_topic_go_together_whatever_the_seed() -> None:
    states, _ = _topics(3)
    centred = states.forget - states.retain.mean(dim=0)
    for seed in (0, 1, (1 << 32) - 1):
        assert text_clusters(centred, states.forget_lengths, 3, seed).tolist() == [0, 1, 2] * 6
    # a cluster is made of texts, however many states they have
    uneven = text_clusters(torch.cat([centred[:5], centred[5:6], centred[15:20]]), (5, 1, 5), 2, 0)
    assert uneven.tolist() == [0, 1, 0]


@pytest.mark.parametrize("kind", ["energy", "contrast", "difference"])
def test_the_common_basis_holds_the_axis_of_every_topic(kind: str) -> None:
    states, axes = _topics(3)
    config = SubspaceConfig.model_validate({"kind": kind, "clusters": 3, "max_rank": 4, "energy": 1.0, "ridge": 1.0})
    found = clustered_basis(states, config)
    assert found.basis.shape == (3, WIDTH)
    assert found.basis.dtype == torch.float32
    torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(3), atol=1e-5, rtol=0.0)
    assert _missed(axes, found.basis) < 0.2
    assert found.kept > 0.98
    assert found.cluster_texts == (6, 6, 6)
    assert bool((found.spectrum[:2] >= found.spectrum[1:3]).all())


def test_one_difference_of_means_misses_what_clusters_find() -> None:
    states, axes = _topics(4)
    one = clustered_basis(states, SubspaceConfig(kind="difference", clusters=1))
    assert len(one.basis) == 1
    assert _missed(axes, one.basis) > 0.8
    four = clustered_basis(states, SubspaceConfig(kind="difference", clusters=4))
    assert _missed(axes, four.basis) < 0.1


def test_directions_that_clusters_share_are_taken_once() -> None:
    axes = torch.eye(WIDTH)
    basis = joint_basis(_draw(30, WIDTH), [axes[:2], axes[1:3], axes[2:3]])
    assert len(basis.basis) == 3
    assert _missed(axes[:3], basis.basis) < 1e-5
    # the first direction keeps most
    tilted = _draw(300, WIDTH) * torch.tensor([1.0, 9.0, 1.0] + [1.0] * (WIDTH - 3))
    assert int(joint_basis(tilted, [axes[:3]]).basis[0].abs().argmax()) == 1


def test_more_clusters_than_directions_or_texts_are_refused() -> None:
    with pytest.raises(ValidationError, match="max_rank of at least 5, not 4"):
        SubspaceConfig(clusters=5)
    with pytest.raises(ValidationError, match="less than or equal to 32"):
        SubspaceConfig(clusters=33, max_rank=32)
    states, _ = _topics(2, texts=1)
    with pytest.raises(ConfigurationError, match="2 forget texts do not make 3 clusters"):
        clustered_basis(states, SubspaceConfig(clusters=3))


def test_a_fit_with_clusters_is_seeded_and_reports_their_texts(tmp_path: Path) -> None:
    rows = [ConceptRow(text=f"Ada Quill wrote book {number}.", label="forget") for number in range(5)]
    rows += [ConceptRow(text=f"{number} goats live where Ada was born.", label="forget") for number in range(5)]
    rows += [ConceptRow(text=f"The river number {number} is long.", label="retain") for number in range(8)]
    config = SubspaceConfig(clusters=2, max_rank=6, energy=1.0, keep_norm=True, held_out_share=0.0)
    options: dict[str, Any] = {"fingerprint": "fp1:" + "a" * 64, "show_progress": False}
    model, tokenizer, site = tiny_llama(), tiny_tokenizer(), Site(1, "resid_post")
    packs = [fit_subspace(model, tokenizer, rows, [site], config, out=tmp_path / name, **options) for name in "ab"]
    assert packs[0].content_hash == packs[1].content_hash
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert sum(report["sites"][str(site)]["texts_of_clusters"]) == 10
    assert report["sites"][str(site)]["rank"] == 6
    assert report["settings"]["clusters"] == 2
    assert packs[0].header.parameters == {"keep_norm": True}
