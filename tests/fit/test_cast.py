"""Fitting conditional steering: conditions on planted clusters, thresholds, behaviour and the pack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from guard.errors import ConfigurationError
from guard.fit.cast import (
    ThresholdPoint,
    behaviour_vector,
    best_threshold,
    condition_vector,
    fit_cast,
    fit_condition,
    measure,
    threshold_grid,
)
from guard.fit.concept_states import ConceptStates
from guard.interventions.cast import CastConfig
from guard.interventions.edits import edit_rows
from guard.kernels.edit_formula import edited
from guard.packs.format import load_pack
from guard.site import Site
from tests.fit.small_models import tiny_llama, tiny_tokenizer, zebra_rows

WIDTH, LENGTH = 12, 6
FINGERPRINT = "fp1:" + "c" * 64
KINDS: tuple[Literal["discriminant", "difference"], ...] = ("discriminant", "difference")


def _tokens(texts: int, seed: int, planted: float) -> Tensor:
    """Tokens of texts; one token of each has `planted` on direction 5, and direction 0 varies a lot everywhere."""
    x = torch.randn(texts, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed))
    x[..., 0] *= 20.0
    x[:, 2, 5] += planted
    return x.flatten(0, 1) + 3.0


def _states(planted: float = 12.0, behaviour: Tensor | None = None) -> ConceptStates:
    lengths = (LENGTH,) * 40
    return ConceptStates(
        forget=_tokens(40, 1, planted), retain=_tokens(40, 2, 0.0),
        behaviour=torch.empty(0, WIDTH) if behaviour is None else behaviour,
        held_out_forget=_tokens(40, 3, planted), held_out_retain=_tokens(40, 4, 0.0), forget_lengths=lengths,
        retain_lengths=lengths, held_out_forget_lengths=lengths, held_out_retain_lengths=lengths,
    )


def test_the_threshold_separates_planted_texts_that_the_fit_has_not_seen() -> None:
    states = _states()
    found = fit_condition(states, CastConfig(ridge=0.01))
    assert found.best.f1 == 1.0
    assert int(found.vector.abs().argmax()) == 5
    assert float(found.vector.norm()) == pytest.approx(1.0)
    scores = [
        (part @ found.vector + found.bias).view(40, LENGTH).max(dim=-1).values
        for part in (states.held_out_forget, states.held_out_retain)
    ]
    assert measure(scores[0], scores[1], found.best.threshold).f1 > 0.97


def test_the_discriminant_ignores_what_varies_everywhere_where_the_difference_does_not() -> None:
    states = _states(planted=6.0)
    weights = {
        kind: condition_vector(states.forget, states.retain, CastConfig(condition=kind, ridge=0.01))
        for kind in KINDS
    }
    assert abs(float(weights["discriminant"][0])) < 0.05 < abs(float(weights["difference"][0]))


def test_a_grid_point_counts_hits_and_false_hits() -> None:
    forget, retain = torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.tensor([0.0, 2.0, 4.0, 4.0])
    point = measure(forget, retain, 2.5)
    assert (point.precision, point.recall) == (0.6, 0.75)
    assert point.f1 == pytest.approx(2 * 0.6 * 0.75 / 1.35, abs=1e-6)
    assert measure(forget, retain, 100.0) == ThresholdPoint(100.0, 0.0, 0.0, 0.0)
    grid = threshold_grid(forget, retain, 8)
    assert (grid[0].threshold, grid[-1].threshold) == (0.0, 7.0)
    assert best_threshold(grid).f1 == max(point.f1 for point in grid)


def test_among_equal_thresholds_the_middle_of_the_longest_run_is_taken() -> None:
    values = [0.5, 1.0, 0.5, 1.0, 1.0, 1.0, 0.2]
    points = [ThresholdPoint(float(index), value, 0.0, 0.0) for index, value in enumerate(values)]
    assert best_threshold(points).threshold == 4.0


def test_the_push_leads_from_the_forget_mean_to_the_behaviour_or_the_retain_mean() -> None:
    states = _states()
    away = behaviour_vector(states, 1.0)
    assert torch.allclose(states.forget.mean(dim=0) + away, states.retain.mean(dim=0), atol=1e-4)
    shown = _states(behaviour=torch.full((3, WIDTH), 9.0))
    assert torch.allclose(
        behaviour_vector(shown, 2.0), 2.0 * (torch.full((WIDTH,), 9.0) - shown.forget.mean(dim=0)), atol=1e-4
    )


def test_the_pack_steers_exactly_the_tokens_above_the_threshold(tmp_path: Path) -> None:
    model: Any = tiny_llama()
    tokenizer: Any = tiny_tokenizer()
    rows = zebra_rows()
    sites = (Site(0, "resid_post"), Site(2, "resid_post"))
    fitted = fit_cast(
        model, tokenizer, rows, sites, CastConfig(scale=2.0), out=tmp_path, fingerprint=FINGERPRINT,
        show_progress=False,
    )
    pack = load_pack(tmp_path / "cast", model_fingerprint=FINGERPRINT)
    assert pack.content_hash == fitted.content_hash
    ((site, row),) = edit_rows(pack).items()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["site"] == str(site)
    assert report["best"]["f1"] == max(report["f1_by_site"].values()) == 1.0
    tensors = {name: pack.tensors[f"{site}/{name}"] for name in ("condition", "bias", "threshold", "behaviour")}
    x = 3.0 * torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    above = (x @ tensors["condition"][0] + tensors["bias"]) > tensors["threshold"]
    assert 0 < int(above.sum()) < 200
    assert torch.allclose(edited(x, row), x + above[:, None] * tensors["behaviour"], atol=1e-4)
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_equal_texts_are_refused() -> None:
    states = _states()
    with pytest.raises(ConfigurationError, match="same mean"):
        condition_vector(states.forget, states.forget, CastConfig())
