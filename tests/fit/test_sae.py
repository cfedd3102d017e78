"""Fitting feature clamps: training, the threshold, the choice of features, and the pack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guard.errors import ConfigurationError
from guard.fit import autoencoder as training_module
from guard.fit.autoencoder import Autoencoder, batch_top_k, train
from guard.fit.checkpoint import Checkpoint
from guard.fit.features import (
    feature_statistics,
    firing_share,
    firing_texts,
    raise_thresholds,
    select_by_ratio,
    select_by_sparsity,
)
from guard.fit.sae import fit_sae, load_autoencoder
from guard.interventions.edits import edit_rows
from guard.interventions.sae import ClampConfig, SaeConfig, TrainingConfig, clamp_row
from guard.kernels.edit_formula import edited
from guard.packs.format import load_pack
from guard.site import Site
from tests.fit.small_models import tiny_llama, tiny_tokenizer, zebra_rows

WIDTH, TRUE_FEATURES = 24, 40
SMALL = TrainingConfig(features=64, active=3, steps=250, batch=256, learning_rate=3e-3)
FINGERPRINT = "fp1:" + "b" * 64


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _dictionary() -> Tensor:
    directions = torch.randn(TRUE_FEATURES, WIDTH, generator=_generator(0))
    unit: Tensor = directions / directions.norm(dim=-1, keepdim=True)
    return unit


def _activations(count: int, seed: int, allowed: range = range(TRUE_FEATURES)) -> Tensor:
    """Three true features of `allowed` on each token, around a mean that is far from zero."""
    generator = _generator(seed)
    chosen = torch.stack([torch.randperm(len(allowed), generator=generator)[:3] for _ in range(count)]) + allowed.start
    size = 5.0 + torch.rand(count, 3, generator=generator)
    return (size.unsqueeze(-1) * _dictionary()[chosen]).sum(dim=1) + 20.0


@pytest.fixture(scope="module")
def trained() -> tuple[Autoencoder, training_module.TrainingReport]:
    return train(_activations(4000, 1), _activations(600, 2), SMALL)


def test_training_lowers_the_loss_and_the_threshold_agrees_with_topk(
    trained: tuple[Autoencoder, training_module.TrainingReport],
) -> None:
    autoencoder, report = trained
    assert report.losses[-1] < 0.25 * report.losses[0]
    assert report.unexplained < 0.3
    assert abs(report.unexplained - report.unexplained_topk) < 0.05
    assert report.active == pytest.approx(3.0, abs=0.5)
    assert report.agreement > 0.9
    assert torch.allclose(autoencoder.decoder.norm(dim=-1), torch.ones(64), atol=1e-4)


def test_scale_and_mean_are_folded_into_the_weights(
    trained: tuple[Autoencoder, training_module.TrainingReport],
) -> None:
    autoencoder, report = trained
    x = _activations(600, 2)
    error = (x - autoencoder.decode(autoencoder.encode(x))).square().sum()
    assert float(error / (x - x.mean(dim=0)).square().sum()) == pytest.approx(report.unexplained, abs=1e-3)


def test_batch_top_k_keeps_the_largest_of_the_whole_batch() -> None:
    before = torch.tensor([[5.0, 4.0, 3.0], [1.0, -2.0, 0.5]])
    assert batch_top_k(before, 1).tolist() == [[5.0, 4.0, 0.0], [0.0, 0.0, 0.0]]
    assert batch_top_k(before, 3).tolist() == [[5.0, 4.0, 3.0], [1.0, 0.0, 0.5]]


def test_a_stopped_training_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_module, "CHECKPOINT_STEPS", 10)
    data, held = _activations(300, 1), _activations(50, 2)
    config = SMALL.model_copy(update={"steps": 30, "batch": 32})
    whole, report = train(data, held, config)

    class StoppedError(Exception):
        pass

    steps: list[int] = []

    def stop() -> None:
        steps.append(1)
        if len(steps) == 25:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(data, held, config, checkpoint=Checkpoint(tmp_path / "state.safetensors", "one"), advance=stop)
    again: list[int] = []
    resumed, second = train(
        data, held, config, checkpoint=Checkpoint(tmp_path / "state.safetensors", "one"),
        advance=lambda: again.append(1),
    )
    assert len(again) == 30
    assert torch.equal(resumed.encoder, whole.encoder)
    assert second == report


@pytest.mark.parametrize("gate", ["own", "any"])
def test_the_clamp_pack_equals_encode_clamp_decode_with_the_error_kept(
    trained: tuple[Autoencoder, training_module.TrainingReport], gate: str
) -> None:
    autoencoder, _ = trained
    x, chosen, value = _activations(50, 3), [3, 11, 40, 7], -6.5
    row = clamp_row(autoencoder.features(chosen), SaeConfig.model_validate({"value": value, "gate": gate}))
    features = autoencoder.encode(x)
    error = x - autoencoder.decode(features)
    fires = features[:, chosen] > 0
    mask = fires if gate == "own" else fires.any(dim=-1, keepdim=True).expand_as(fires)
    clamped = features.clone()
    clamped[:, chosen] = torch.where(mask, torch.tensor(value), features[:, chosen])
    assert bool(fires.any())
    assert torch.allclose(edited(x, row), autoencoder.decode(clamped) + error, atol=1e-3)


def test_both_selections_find_the_planted_features() -> None:
    # features that read one true direction each: the identity dictionary
    eye = torch.eye(WIDTH)
    autoencoder = Autoencoder(eye, torch.zeros(WIDTH), torch.full((WIDTH,), 0.5), eye, torch.zeros(WIDTH))
    generator = _generator(4)
    retain = (torch.rand(2000, WIDTH, generator=generator) < 0.2).float()
    retain[:, 20:] = (torch.rand(2000, 4, generator=generator) < 0.004).float()
    forget = (torch.rand(500, WIDTH, generator=generator) < 0.2).float()
    forget[:, 20:] = (torch.rand(500, 4, generator=generator) < torch.tensor([0.3, 0.5, 0.2, 0.4])).float()
    statistics = feature_statistics(autoencoder, forget, retain)
    assert select_by_sparsity(statistics, 8) == [21, 23, 20, 22]
    assert select_by_ratio(statistics, 3, percentile=80.0) == [21, 23, 20]
    assert firing_share(autoencoder, [20, 21], forget) == pytest.approx(1 - 0.7 * 0.5, abs=0.08)
    # nothing fires on the forget texts: nothing stands for them
    silent = feature_statistics(autoencoder, torch.zeros(5, WIDTH), retain)
    assert select_by_sparsity(silent, 8) == select_by_ratio(silent, 8) == []


def _first_coordinates() -> Autoencoder:
    """Feature i is coordinate i of two, with the threshold 0.5."""
    eye = torch.eye(2)
    return Autoencoder(eye, torch.zeros(2), torch.full((2,), 0.5), eye, torch.zeros(2))


def test_raised_thresholds_silence_a_feature_in_all_but_the_allowed_share_of_retain_texts() -> None:
    generator = _generator(5)
    lengths = [3, 1, 4, 2, 5, 3, 2, 4, 1, 5]
    # the second feature never reaches its threshold
    retain = torch.rand(sum(lengths), 2, generator=generator) * torch.tensor([5.0, 0.4]) + torch.tensor([0.6, 0.0])
    plain = _first_coordinates()
    assert firing_texts(plain, [0, 1], retain, lengths) == 1.0
    for share, firing in ((0.0, 0.0), (0.19, 0.1), (0.2, 0.2), (0.9, 0.9), (1.0, 1.0)):
        raised = raise_thresholds(plain, retain, lengths, share)
        assert firing_texts(raised, [0, 1], retain, lengths) == pytest.approx(firing)
        assert float(raised.threshold[1]) == 0.5
        assert bool((raised.threshold >= plain.threshold).all())
    # only the thresholds differ, and what is stronger than all retain tokens still fires
    silent = raise_thresholds(plain, retain, lengths, 0.0)
    assert firing_share(silent, [0, 1], torch.tensor([[6.0, 0.0], [0.7, 0.0]])) == 0.5
    assert torch.equal(silent.encoder, plain.encoder)


def test_texts_are_counted_once_however_many_tokens_fire() -> None:
    tokens = torch.tensor([[9.0, 9.0], [9.0, 0.0], [0.0, 0.0], [0.0, 9.0], [0.0, 0.0]])
    assert firing_texts(_first_coordinates(), [0], tokens, [2, 1, 2]) == pytest.approx(1 / 3)
    assert firing_texts(_first_coordinates(), [0, 1], tokens, [2, 1, 2]) == pytest.approx(2 / 3)
    assert firing_texts(_first_coordinates(), [0], tokens[:0], []) == 0.0


def test_fit_writes_a_pack_an_autoencoder_and_a_report_and_reuses_the_autoencoder(tmp_path: Path) -> None:
    model: Any = tiny_llama()
    tokenizer: Any = tiny_tokenizer()
    rows = zebra_rows()
    site = Site(1, "resid_post")
    training = TrainingConfig(features=32, active=4, steps=60, batch=64, learning_rate=3e-3)
    config = ClampConfig(retain_sparsity=0.2, clamp=0.5)
    options: dict[str, Any] = {"fingerprint": FINGERPRINT, "show_progress": False}
    first = fit_sae(model, tokenizer, rows, site, training, config, out=tmp_path / "one", **options)
    pack = load_pack(tmp_path / "one" / "sae", model_fingerprint=FINGERPRINT)
    assert pack.content_hash == first.content_hash
    row = edit_rows(pack)[site]
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert row.rank == len(report["features"]) > 0
    assert row.offset is not None and float(row.offset[0]) == pytest.approx(report["value"], rel=1e-5)
    assert report["value"] < 0.0
    assert report["tokens_edited"]["forget"] > report["tokens_edited"]["retain"]
    assert report["texts_edited"]["forget"] > report["texts_edited"]["retain"]
    assert set(report["texts_edited"]) == {"forget", "retain", "held_out_forget", "held_out_retain"}
    kept = config.model_copy(update={"retain_texts": 1.0})
    plain = edit_rows(fit_sae(
        model, tokenizer, rows, site, training, kept, out=tmp_path / "plain",
        autoencoder=tmp_path / "one" / "autoencoder.safetensors", **options,
    ))[site]
    # every feature of this autoencoder has one threshold
    assert row.threshold is not None and plain.threshold is not None
    assert len(plain.threshold.unique()) == 1 < len(row.threshold.unique())
    assert float(row.threshold.min()) >= float(plain.threshold[0])
    assert (tmp_path / "one" / "report.png").read_bytes()[:4] == b"\x89PNG"
    second = fit_sae(
        model, tokenizer, rows, site, training, config, out=tmp_path / "two",
        autoencoder=tmp_path / "one" / "autoencoder.safetensors", **options,
    )
    assert {name: tensor.tolist() for name, tensor in second.tensors.items()} == {
        name: tensor.tolist() for name, tensor in first.tensors.items()
    }
    never = ClampConfig(retain_sparsity=0.0, held_out_share=0.0)
    same = [row.model_copy(update={"text": "equal"}) for row in rows]
    with pytest.raises(ConfigurationError, match="stands for the concept"):
        fit_sae(model, tokenizer, same, site, training, never, out=tmp_path / "three", **options)


def test_unusable_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="all equal"):
        train(torch.ones(10, 4), torch.ones(4, 4), TrainingConfig(features=4, active=1, steps=1))
    with pytest.raises(ConfigurationError, match="no more active"):
        train(torch.randn(10, 4), torch.randn(4, 4), TrainingConfig(features=4, active=5, steps=1))
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(ConfigurationError, match="not an autoencoder"):
        load_autoencoder(tmp_path / "broken.safetensors")
