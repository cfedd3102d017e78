"""LinEAS: the proximal step, the training and its pack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.errors import ConfigurationError
from guard.fit import lineas
from guard.fit.lineas import fit_lineas
from guard.fit.proximal import penalty, proximal_step
from guard.fit.steering_fit import SteeringFit
from guard.fit.transport import channel_units
from guard.interventions.edits import edit_rows
from guard.interventions.lineas import LineasConfig
from guard.kernels.edit_formula import edited
from guard.packs.format import load_pack
from tests.fit.small_models import labelled_words, loaded_llama

CONFIG = LineasConfig(steps=30, samples=6, learning_rate=0.05, checkpoint_steps=4)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), width=st.integers(1, 12), l1=st.floats(0.0, 1.0), group=st.floats(0.0, 0.7),
)
def test_the_proximal_step_is_the_exact_minimiser(seed: int, width: int, l1: float, group: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(width, generator=generator, dtype=torch.float64)
    found = proximal_step(z, l1, group)

    def objective(y: torch.Tensor) -> float:
        return float((y - z).square().sum() / 2 + penalty(y, l1, group))

    # the objective is strongly convex: f(y) >= f(minimiser) + |y - minimiser|^2 / 2 everywhere
    others = [found + step * torch.randn(width, generator=generator, dtype=torch.float64)
              for step in (1e-4, 1e-3, 1e-2, 0.1, 1.0) for _ in range(20)]
    others += [torch.zeros(width, dtype=torch.float64), z, found * 0.999]
    for other in others:
        assert objective(other) >= objective(found) + float((other - found).square().sum()) / 2 - 1e-12


def test_a_channel_that_does_not_vary_still_has_a_unit() -> None:
    samples = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    mean, deviation = channel_units(samples)
    assert mean.tolist() == [2.0, 5.0]
    assert float(deviation[0]) == 1.0
    assert 0.0 < float(deviation[1]) < 0.01
    assert channel_units(samples[:, 1:])[1].tolist() == [1.0]


@pytest.mark.parametrize("changes", [
    {}, {"optimizer": "adam", "learning_rate": 0.02}, {"pooling": "tokens"}, {"sites": "1.resid_post"},
    {"standardise": True, "learning_rate": 0.01}, {"standardise": True, "pooling": "tokens", "sites": "*.resid_post"},
], ids=["sgd", "adam", "tokens", "resid_post", "standardised", "standardised tokens"])
def test_the_fit_brings_source_and_target_together(tmp_path: Path, changes: dict[str, object]) -> None:
    config = LineasConfig.model_validate(CONFIG.model_dump() | changes)
    fit_lineas(loaded_llama(), labelled_words(16), config, out=tmp_path, show_progress=False)
    report = json.loads((tmp_path / "report.json").read_text())
    losses = report["losses"]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert report["cost_after"] < report["cost_before"]


def test_a_standardised_fit_bears_large_activations(tmp_path: Path) -> None:
    loaded = loaded_llama()
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight.mul_(100.0)
    config = CONFIG.model_copy(update={"sites": "*.resid_post"})
    with pytest.raises(ConfigurationError, match="learning rate"):
        fit_lineas(loaded, labelled_words(16), config, out=tmp_path / "plain", show_progress=False)
    standardised = config.model_copy(update={"standardise": True})
    fit_lineas(loaded, labelled_words(16), standardised, out=tmp_path / "units", show_progress=False)
    report = json.loads((tmp_path / "units" / "report.json").read_text())
    assert report["cost_after"] < 0.8 * report["cost_before"]


@pytest.mark.parametrize("offset", [-3.0, 40.0])
def test_the_first_step_of_a_standardised_map_moves_sources_to_the_targets_mean(
    tmp_path: Path, offset: float
) -> None:
    # one site and no text held out: a step of size 1/2 along the gradient of the cost is the whole way to the mean
    config = LineasConfig(
        sites="2.resid_post", steps=1, samples=12, learning_rate=0.5, standardise=True, held_out_share=0.0
    )
    loaded, texts = loaded_llama(), labelled_words()
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight.add_(offset)
    pack = fit_lineas(loaded, texts, config, out=tmp_path, show_progress=False)
    fit = SteeringFit(loaded, texts, config, method="lineas", out=tmp_path, show_progress=False)
    (site,) = fit.sites
    source, target = (fit.states(rows)[site] for rows in (fit.texts.source, fit.texts.target))
    weight, bias = pack.tensors[f"{site}/weight"], pack.tensors[f"{site}/bias"]
    mean = target.mean(dim=0)
    step = (weight - 1.0) * (source.mean(dim=0) - mean)
    torch.testing.assert_close((weight * source + bias).mean(dim=0) - step, mean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("kappa", ["step", "constant"])
def test_a_large_penalty_leaves_every_site_alone(tmp_path: Path, kappa: str, standardise: bool) -> None:
    changes = {"gamma": 1000.0, "kappa": kappa, "steps": 5, "standardise": standardise}
    config = LineasConfig.model_validate(CONFIG.model_dump() | changes)
    pack = fit_lineas(loaded_llama(), labelled_words(), config, out=tmp_path, show_progress=False)
    for name, tensor in pack.tensors.items():
        assert bool((tensor == (1.0 if name.endswith("weight") else 0.0)).all())
    assert pack.header.fit_report["support"] == 0.0
    row = next(iter(edit_rows(pack).values()))
    x = torch.randn(3, 16)
    assert torch.equal(edited(x, row), x)


def test_a_small_penalty_leaves_some_channels_alone(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"gamma": 0.5, "lambda_group": 0.01})
    pack = fit_lineas(loaded_llama(), labelled_words(), config, out=tmp_path, show_progress=False)
    support = pack.header.fit_report["support"]
    assert isinstance(support, float) and 0.0 < support < 0.95


@pytest.mark.parametrize(("optimizer", "standardise"), [("sgd", False), ("adam", False), ("adam", True)])
def test_a_resumed_fit_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, standardise: bool
) -> None:
    changes = {"optimizer": optimizer, "steps": 10, "gamma": 0.01, "standardise": standardise}
    config = LineasConfig.model_validate(CONFIG.model_dump() | changes)
    loaded, texts = loaded_llama(), labelled_words()
    whole = fit_lineas(loaded, texts, config, out=tmp_path / "whole", show_progress=False)
    training = lineas._Training
    advance, steps = training.advance, [0]

    def stopping(self: lineas._Training) -> None:
        steps[0] += 1
        if steps[0] == 7:
            raise KeyboardInterrupt
        advance(self)

    monkeypatch.setattr(training, "advance", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit_lineas(loaded, texts, config, out=tmp_path / "parts", show_progress=False)
    resumed = fit_lineas(loaded, texts, config, out=tmp_path / "parts", show_progress=False)
    # stopped in the seventh step, gone on after the fourth, which was saved
    assert steps[0] == 7 + 6
    assert resumed.content_hash == whole.content_hash
    report = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "parts")]
    assert report[0] == report[1]


def test_a_finished_fit_is_not_trained_again_and_another_seed_is(tmp_path: Path) -> None:
    loaded, texts = loaded_llama(), labelled_words()
    config = CONFIG.model_copy(update={"steps": 3})
    first = fit_lineas(loaded, texts, config, out=tmp_path, show_progress=False)
    again = fit_lineas(loaded, texts, config, out=tmp_path, show_progress=False)
    other = fit_lineas(loaded, texts, config.model_copy(update={"seed": 1}), out=tmp_path, show_progress=False)
    assert first.content_hash == again.content_hash != other.content_hash
    assert load_pack(tmp_path / "lineas", model_fingerprint=loaded.fingerprint).content_hash == other.content_hash


def test_a_diverging_fit_writes_no_pack(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"learning_rate": 10.0, "sites": "*.resid_post", "steps": 60})
    with pytest.raises(ConfigurationError, match="learning rate"):
        fit_lineas(loaded_llama(), labelled_words(), config, out=tmp_path, show_progress=False)
    assert not (tmp_path / "lineas").exists()
