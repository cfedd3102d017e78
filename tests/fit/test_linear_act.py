"""Linear-AcT: the closed form, the order of the sites, checkpoints and packs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.errors import ConfigurationError
from guard.fit.checkpoint import Checkpoint
from guard.fit.hooks import edits
from guard.fit.linear_act import fit_linear_act
from guard.fit.steering_fit import SteeringFit
from guard.fit.transport import paired, sorted_regression, transport_cost
from guard.interventions.edits import edit_rows
from guard.interventions.linear_act import LinearActConfig
from guard.packs.format import load_pack
from guard.site import Site
from tests.fit.small_models import labelled_words, loaded_llama

CONFIG = LinearActConfig(sites="*.attn_norm,*.mlp_norm")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 40))
def test_the_map_is_least_squares_of_sorted_pairs_in_every_channel(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(count, 3, generator=generator)
    target = 2.0 * torch.randn(count, 3, generator=generator) + 1.0
    weight, bias = sorted_regression(source, target)
    for channel in range(3):
        a, b = np.sort(source[:, channel].double().numpy()), np.sort(target[:, channel].double().numpy())
        expected, *_ = np.linalg.lstsq(np.stack([a, np.ones(count)], axis=1), b, rcond=None)
        np.testing.assert_allclose([weight[channel], bias[channel]], expected, rtol=1e-4, atol=1e-4)


def test_a_constant_channel_is_moved_without_being_stretched() -> None:
    source, target = torch.full((5, 1), 2.0), torch.arange(5.0).unsqueeze(-1)
    weight, bias = sorted_regression(source, target)
    assert (float(weight), float(bias)) == (1.0, 0.0)
    weight, bias = sorted_regression(torch.zeros(5, 1), target)
    assert (float(weight), float(bias)) == (1.0, 2.0)


def test_an_affine_change_is_found_exactly_and_leaves_no_cost() -> None:
    source = torch.randn(20, 4)
    target = (source * torch.tensor([2.0, 0.5, 1.0, 3.0]) - 1.0)[torch.randperm(20)]
    weight, bias = sorted_regression(source, target)
    torch.testing.assert_close(weight, torch.tensor([2.0, 0.5, 1.0, 3.0]))
    assert float(transport_cost(source * weight + bias, target)) < 1e-8 < float(transport_cost(source, target))


def test_each_site_is_fitted_on_what_the_maps_before_leave(tmp_path: Path) -> None:
    loaded, texts = loaded_llama(), labelled_words()
    pack = fit_linear_act(loaded, texts, CONFIG, out=tmp_path, show_progress=False)
    rows = edit_rows(pack)
    assert list(rows) == [Site(layer, place) for layer in range(3) for place in ("attn_norm", "mlp_norm")]
    fit = SteeringFit(loaded, texts, CONFIG, method="linear-act", out=tmp_path, show_progress=False)
    site = Site(1, "mlp_norm")
    with edits(loaded.model, {before: row for before, row in rows.items() if before < site}):
        source = fit.states(fit.texts.source)[site]
    weight, bias = sorted_regression(*paired(source, fit.states(fit.texts.target)[site], CONFIG.seed))
    torch.testing.assert_close(pack.tensors[f"{site}/weight"], weight)
    torch.testing.assert_close(pack.tensors[f"{site}/bias"], bias)


def test_at_once_fits_on_the_unchanged_model(tmp_path: Path) -> None:
    loaded, texts = loaded_llama(), labelled_words()
    config = CONFIG.model_copy(update={"order": "at_once"})
    pack = fit_linear_act(loaded, texts, config, out=tmp_path, show_progress=False)
    fit = SteeringFit(loaded, texts, config, method="linear-act", out=tmp_path, show_progress=False)
    site = Site(2, "attn_norm")
    states = fit.states(fit.texts.source)[site], fit.states(fit.texts.target)[site]
    torch.testing.assert_close(pack.tensors[f"{site}/weight"], sorted_regression(*paired(*states, config.seed))[0])


def test_a_resumed_fit_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, texts = loaded_llama(), labelled_words()
    whole = fit_linear_act(loaded, texts, CONFIG, out=tmp_path / "whole", show_progress=False)
    saved, save = [0], Checkpoint.save

    def stopping(self: Checkpoint, state: dict[str, torch.Tensor]) -> None:
        save(self, state)
        saved[0] += 1
        if saved[0] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit_linear_act(loaded, texts, CONFIG, out=tmp_path / "parts", show_progress=False)
    resumed = fit_linear_act(loaded, texts, CONFIG, out=tmp_path / "parts", show_progress=False)
    assert saved[0] == 6
    assert resumed.content_hash == whole.content_hash
    assert load_pack(tmp_path / "parts" / "linear-act").content_hash == whole.content_hash


def test_the_state_of_another_fit_is_not_taken_over(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "state.safetensors", "first").save({"a": torch.ones(2)})
    assert Checkpoint(tmp_path / "state.safetensors", "second").load() == {}
    assert torch.equal(Checkpoint(tmp_path / "state.safetensors", "first").load()["a"], torch.ones(2))
    (tmp_path / "state.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(ConfigurationError, match="remove it"):
        Checkpoint(tmp_path / "state.safetensors", "first").load()
