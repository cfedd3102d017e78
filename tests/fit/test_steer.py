"""Fitting steering vectors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from guard.errors import ConfigurationError
from guard.fit.hooks import edits
from guard.fit.labelled_texts import LabelledText, read_labelled_texts, split_labelled
from guard.fit.steer import fit_steer, steering_vector
from guard.fit.steering_fit import SteeringFit
from guard.interventions.edits import edit_rows
from guard.interventions.steer import SteerConfig
from guard.packs.format import load_pack
from guard.site import Site
from tests.fit.small_models import labelled_words, loaded_llama

SITE = Site(1, "resid_post")
CONFIG = SteerConfig(sites="1.resid_post")


def test_the_difference_moves_the_mean_source_onto_the_mean_target() -> None:
    source, target = torch.randn(7, 4), torch.randn(5, 4) + 3.0
    vector = steering_vector(source, target, "difference")
    torch.testing.assert_close((source + vector).mean(dim=0), target.mean(dim=0))


def test_the_principal_direction_is_the_one_that_the_pairs_share() -> None:
    generator = torch.Generator().manual_seed(0)
    direction = torch.tensor([0.0, 0.6, 0.0, -0.8])
    source = 0.01 * torch.randn(50, 4, generator=generator)
    target = 0.01 * torch.randn(50, 4, generator=generator) + 5.0 * direction
    vector = steering_vector(source, target, "principal")
    torch.testing.assert_close(vector, 5.0 * direction, rtol=0.01, atol=0.02)


def test_equal_means_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="same mean"):
        steering_vector(torch.ones(3, 2), torch.ones(4, 2), "difference")


def test_a_fitted_pack_moves_the_served_activations_to_the_target(tmp_path: Path) -> None:
    loaded, texts = loaded_llama(), labelled_words()
    pack = fit_steer(loaded, texts, CONFIG, out=tmp_path, show_progress=False)
    stored = load_pack(tmp_path / "steer", model_fingerprint=loaded.fingerprint)
    assert stored.content_hash == pack.content_hash
    fit = SteeringFit(loaded, texts, CONFIG, method="steer", out=tmp_path, show_progress=False)
    with edits(loaded.model, edit_rows(stored)):
        moved = fit.states(fit.texts.source)[SITE].mean(dim=0)
    torch.testing.assert_close(moved, fit.states(fit.texts.target)[SITE].mean(dim=0), rtol=1e-4, atol=1e-4)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["cost_after"] < report["cost_before"]
    assert report["texts"] == {"source": 9, "target": 9, "held_out_source": 3, "held_out_target": 3}
    assert (tmp_path / "report.png").stat().st_size > 1000


def test_a_stopped_fit_reads_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, texts = loaded_llama(), labelled_words()
    whole = fit_steer(loaded, texts, CONFIG, out=tmp_path / "whole", show_progress=False)
    monkeypatch.setattr("guard.fit.steer.CHECKPOINT_TEXTS", 4)
    read, states = [0], SteeringFit.states

    def stopping(self: SteeringFit, *arguments: object, **options: object) -> object:
        read[0] += 1
        if read[0] == 4:
            raise KeyboardInterrupt
        return states(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(SteeringFit, "states", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit_steer(loaded, texts, CONFIG, out=tmp_path / "parts", show_progress=False)
    resumed = fit_steer(loaded, texts, CONFIG, out=tmp_path / "parts", show_progress=False)
    # 3 chunks before the stop, 3 after, and 3 passes of the report
    assert read[0] == 4 + 3 + 3
    torch.testing.assert_close(resumed.tensors["1.resid_post/vector"], whole.tensors["1.resid_post/vector"])


def test_bad_data_is_named_by_line_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "a", "label": "source"}\n{"text": "secret", "label": "other"}\n')
    with pytest.raises(ConfigurationError, match=r"data\.jsonl:2") as raised:
        read_labelled_texts(file)
    assert "secret" not in str(raised.value)
    with pytest.raises(ConfigurationError, match="label target"):
        split_labelled([LabelledText(text=str(i), label="source") for i in range(9)], 0.25, 0)
