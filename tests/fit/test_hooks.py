"""Edits and recordings at the sites of transformers models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from guard.errors import ConfigurationError
from guard.fit.activations import collect, encode, mean_pooled, padded
from guard.fit.hooks import decoder_layers, edits, recorded, site_module
from guard.kernels.edit_formula import EditRow, edited
from guard.plan import Phase
from guard.site import Site
from tests.fit.small_models import tiny_gpt2, tiny_llama, tiny_tokenizer

IDS = torch.tensor([[5, 9, 30, 77, 41], [8, 100, 3, 6, 12]])
PLACES = [Site(1, "resid_post"), Site(1, "attn_norm"), Site(1, "mlp_norm")]


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_llama()


def _row(width: int = 16) -> EditRow:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return EditRow(
        scale=0.3 * draw(width), shift=draw(width), read=draw(2, width), write=draw(2, width), bias=draw(2),
        gain=draw(2), offset=draw(2), threshold=torch.zeros(2),
    )


def _outputs(model: Any, site: Site) -> Tensor:
    """Output of the site's module, by a hook of the test's own."""
    kept: list[Tensor] = []
    handle = site_module(model, site).register_forward_hook(
        lambda module, inputs, output: kept.append(output if isinstance(output, Tensor) else output[0])
    )
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    handle.remove()
    return kept[0]


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=IDS, use_cache=False).logits
    return logits


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("site", PLACES, ids=str)
def test_an_edit_is_the_formula_at_its_site_and_leaves_with_its_context(make: Any, site: Site) -> None:
    model = make()
    before, logits = _outputs(model, site), _logits(model)
    with edits(model, {site: _row()}, strength=0.7):
        assert torch.equal(_outputs(model, site), edited(before, _row(), 0.7))
        assert not torch.allclose(_logits(model), logits)
    assert torch.equal(_logits(model), logits)


def test_the_sites_are_the_outputs_that_the_layer_itself_works_with(llama: Any) -> None:
    layer = decoder_layers(llama)[1]
    assert site_module(llama, Site(1, "resid_post")) is layer
    assert site_module(llama, Site(1, "attn_norm")) is layer.input_layernorm
    assert site_module(llama, Site(1, "mlp_norm")) is layer.post_attention_layernorm
    gpt = tiny_gpt2()
    assert site_module(gpt, Site(1, "attn_norm")) is gpt.transformer.h[1].ln_1
    assert site_module(gpt, Site(1, "mlp_norm")) is gpt.transformer.h[1].ln_2


def test_an_edit_is_removed_when_the_pass_fails(llama: Any) -> None:
    logits = _logits(llama)
    with pytest.raises(RuntimeError, match="stopped"), edits(llama, {PLACES[0]: _row()}):
        raise RuntimeError("stopped")
    assert torch.equal(_logits(llama), logits)


def test_tokens_outside_the_positions_keep_their_activation(llama: Any) -> None:
    site = Site(2, "resid_post")
    before = _outputs(llama, site)
    positions = torch.tensor([[False, True, True, False, False], [False, False, False, False, True]])
    with edits(llama, {site: _row()}, positions=positions):
        after = _outputs(llama, site)
    assert torch.equal(after[~positions], before[~positions])
    torch.testing.assert_close(after[positions], edited(before[positions], _row()))
    with pytest.raises(ConfigurationError, match="positions"), edits(llama, {site: _row()}, positions=positions[:, :3]):
        _logits(llama)


def test_each_text_of_a_batch_can_have_its_strength(llama: Any) -> None:
    site = Site(0, "resid_post")
    before = _outputs(llama, site)
    with edits(llama, {site: _row()}, strength=torch.tensor([[0.0], [2.0]])):
        after = _outputs(llama, site)
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1], edited(before[1], _row(), 2.0))


@pytest.mark.parametrize(("phase", "widths"), [("prompt", {5}), ("generation", {1}), ("both", {1, 5})])
def test_phases_separate_the_prompt_from_what_is_generated(llama: Any, phase: Phase, widths: set[int]) -> None:
    site = Site(1, "resid_post")
    changed: set[int] = set()

    def compare(module: Any, inputs: Any, output: Tensor) -> None:
        if not torch.equal(before[site], after[site]):
            changed.add(output.shape[1])

    with (
        recorded(llama, [site]) as before, edits(llama, {site: _row()}, phase=phase), recorded(llama, [site]) as after
    ):
        handle = site_module(llama, site).register_forward_hook(compare)
        llama.generate(input_ids=IDS, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
        handle.remove()
    assert changed == widths


def test_gradients_reach_rows_and_earlier_layers(llama: Any) -> None:
    shift = torch.zeros(16, requires_grad=True)
    site, later = Site(0, "mlp_norm"), Site(2, "resid_post")
    with edits(llama, {site: EditRow(shift=shift)}), recorded(llama, [later]) as seen:
        llama(input_ids=IDS, use_cache=False)
    seen[later].square().sum().backward()
    assert shift.grad is not None and float(shift.grad.abs().sum()) > 0.0


def test_unknown_sites_and_other_widths_are_refused(llama: Any) -> None:
    with pytest.raises(ConfigurationError, match="layers 0..2"):
        site_module(llama, Site(3, "resid_post"))
    with pytest.raises(ConfigurationError, match="width 8"), edits(llama, {Site(0, "resid_post"): _row(8)}):
        pass
    with pytest.raises(ConfigurationError, match="no decoder layers"):
        decoder_layers(torch.nn.Linear(2, 2))


def test_padding_and_order_do_not_change_what_is_collected(llama: Any) -> None:
    tokenizer, texts = tiny_tokenizer(), ["A long text about ships.", "Hi", "A cat"]
    sites = [Site(0, "attn_norm"), Site(2, "resid_post")]
    together = collect(llama, tokenizer, texts, sites, prompts=["<|user|>Q<|end|>"] * 3, batch=3)
    alone = [collect(llama, tokenizer, [text], sites, prompts=["<|user|>Q<|end|>"], batch=1) for text in texts]
    for site in sites:
        expected = torch.cat([states[site] for states in alone])
        torch.testing.assert_close(together[site], expected, rtol=1e-4, atol=1e-5)


def test_pooling_counts_the_tokens_of_the_text_only(llama: Any) -> None:
    tokenizer, site = tiny_tokenizer(), Site(1, "resid_post")
    texts, prompts = ["abcd", "xy"], ["<|user|>", "<|user|>ab"]
    tokens = collect(llama, tokenizer, texts, [site], prompts=prompts, pooling="tokens")[site]
    assert tokens.shape == (6, 16)
    mean = collect(llama, tokenizer, texts, [site], prompts=prompts, pooling="mean")[site]
    torch.testing.assert_close(mean, torch.stack([tokens[:4].mean(dim=0), tokens[4:].mean(dim=0)]))
    last = collect(llama, tokenizer, texts, [site], prompts=prompts, pooling="last")[site]
    torch.testing.assert_close(last, tokens[[3, 5]])
    batch = padded(encode(tokenizer, texts, prompts=prompts), [0, 1], torch.device("cpu"))
    with recorded(llama, [site]) as seen:
        llama(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
    torch.testing.assert_close(mean_pooled(seen[site], batch.counted), mean, rtol=1e-4, atol=1e-5)


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="text 2 has no tokens"):
        encode(tiny_tokenizer(), ["a", ""])
