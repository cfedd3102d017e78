"""Where the edit op is put into a model, what it does to what layers return, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("vllm", reason="vLLM is not installed")

from guard.engine import ops
from guard.engine.edit_sites import is_steered, wrap_sites
from guard.errors import EngineMismatchError
from guard.kernels.edit import EditBank
from guard.kernels.edit_formula import EditRow
from guard.site import Site, parse_sites

WIDTH, TOKENS, LAYERS = 16, 5, 3
CPU = torch.device("cpu")


class FusedNorm(nn.Module):
    """Returns (normed, residual), as vLLM's fused norms do."""

    def forward(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = hidden + residual
        return total / total.norm(dim=-1, keepdim=True), total


class Layer(nn.Module):
    """Returns its two parts of the stream, or one tensor, or a tuple with nothing or something else in it."""

    def __init__(self, returns: str = "pair") -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = FusedNorm(), FusedNorm()
        self.returns = returns

    def forward(self, hidden: Tensor, residual: Tensor) -> Any:
        normed, residual = self.input_layernorm(hidden, residual)
        normed, residual = self.post_attention_layernorm(normed * 2, residual)
        hidden = normed * 3
        other = torch.zeros(2)
        return {
            "pair": (hidden, residual), "none": (hidden + residual, None), "tensor": hidden + residual,
            "other": (hidden, other), "three_dimensions": (hidden + residual)[None],
        }[self.returns]


class Model(nn.Module):
    """Decoder layers one after another."""

    def __init__(self, returns: str = "pair") -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(returns) for _ in range(LAYERS))

    def forward(self, hidden: Tensor) -> Tensor:
        residual = torch.zeros_like(hidden)
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        return hidden + residual


def install(sites: tuple[Site, ...], *marked: int) -> ops.EngineBuffers:
    """Buffers with one slot that adds 1 everywhere at every site, carried by the tokens `marked`."""
    ops.register()
    bank = EditBank.empty(len(sites), 2, WIDTH, 16)
    for index in range(len(sites)):
        bank.set(index, 1, EditRow(shift=torch.ones(WIDTH)))
    buffers = ops.EngineBuffers.allocate(8, 4, CPU, bank)
    ops.install(buffers)
    buffers.token_lane[0, list(marked)] = 1
    buffers.token_strength.fill_(1.0)
    ops.mark_lanes(bool(marked))
    return buffers


@pytest.fixture(autouse=True)
def no_buffers_left() -> Iterator[None]:
    """The process has one set of buffers."""
    yield
    ops.install(None)  # type: ignore[arg-type]


def stock_and_steered(returns: str, place: str, *marked: int) -> tuple[Any, Any, ops.EngineBuffers]:
    """What one layer returns without and with the op at `place`."""
    torch.manual_seed(0)
    model, inputs = Model(returns), (torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, WIDTH))
    stock = model.layers[0](*(each.clone() for each in inputs))
    sites = (Site(0, place),)  # type: ignore[arg-type]
    wrap_sites(model, sites, CPU)
    buffers = install(sites, *marked)
    return stock, model.layers[0](*(each.clone() for each in inputs)), buffers


def test_a_layer_with_two_parts_has_its_first_part_edited() -> None:
    stock, steered, buffers = stock_and_steered("pair", "resid_post", 1, 3)
    expected = stock[0].clone()
    expected[[1, 3]] += 1
    torch.testing.assert_close(steered[0], expected)
    assert torch.equal(steered[1], stock[1])
    assert buffers.edits is not None
    assert buffers.edits.counts.tolist() == [[0, 2]]


@pytest.mark.parametrize("returns", ["none", "tensor", "three_dimensions"])
def test_a_layer_that_returns_the_whole_stream_is_edited(returns: str) -> None:
    stock, steered, _ = stock_and_steered(returns, "resid_post", 0)
    before, after = (each[0] if isinstance(each, tuple) else each for each in (stock, steered))
    difference = (after - before).reshape(TOKENS, WIDTH)
    torch.testing.assert_close(difference[0], torch.ones(WIDTH))
    assert not bool(difference[1:].any())


def test_a_layer_that_returns_something_else_is_refused() -> None:
    with pytest.raises(EngineMismatchError, match="no residual stream"):
        stock_and_steered("other", "resid_post", 0)


@pytest.mark.parametrize("place", ["attn_norm", "mlp_norm"])
def test_a_fused_norm_has_its_normed_output_edited_and_not_the_stream(place: str) -> None:
    torch.manual_seed(0)
    model, inputs = Model(), (torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, WIDTH))
    layer: Any = model.layers[0]
    norm = layer.input_layernorm if place == "attn_norm" else layer.post_attention_layernorm
    stock = norm(*inputs)
    sites = (Site(0, place),)  # type: ignore[arg-type]
    wrap_sites(model, sites, CPU)
    install(sites, 2)
    steered = norm(*inputs)
    torch.testing.assert_close((steered[0] - stock[0])[2], torch.ones(WIDTH))
    assert not bool((steered[0] - stock[0])[[0, 1, 3, 4]].any())
    assert torch.equal(steered[1], stock[1])


def test_tokens_without_a_lane_keep_their_bits_at_all_sites() -> None:
    model = Model()
    hidden = torch.randn(TOKENS, WIDTH)
    expected = model(hidden.clone())
    sites = parse_sites("all", LAYERS)
    assert wrap_sites(model, sites, CPU) == sites
    install(sites, 4)
    found = model(hidden.clone())
    assert torch.equal(found[:4], expected[:4])
    assert not torch.equal(found[4], expected[4])


def test_layers_of_one_class_share_one_wrapped_class_and_keep_their_parameters() -> None:
    model = Model()
    names = [name for name, _ in model.named_parameters()]
    wrap_sites(model, parse_sites("*.resid_post", LAYERS), CPU)
    assert len({type(layer) for layer in model.layers}) == 1
    assert all(is_steered(layer) for layer in model.layers)
    assert [name for name, _ in model.named_parameters()] == names
    assert not any("guard" in name for name in model.state_dict())


def test_the_compiled_layers_read_the_lanes_of_every_step_in_one_graph() -> None:
    model = Model()
    sites = parse_sites("*.resid_post", LAYERS)
    wrap_sites(model, sites, CPU)
    buffers = install(sites)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    hidden = torch.randn(TOKENS, WIDTH)
    plain = compiled(hidden.clone())
    buffers.token_lane[0, 0] = 1
    ops.mark_lanes(True)
    edited = compiled(hidden.clone())
    assert not torch.equal(edited[0], plain[0])
    assert torch.equal(edited[1:], plain[1:])
    torch.testing.assert_close(edited, model(hidden.clone()))


def test_a_layer_is_not_wrapped_twice() -> None:
    model = Model()
    wrap_sites(model, (Site(0, "resid_post"),), CPU)
    with pytest.raises(EngineMismatchError, match="wrapped already"):
        wrap_sites(model, (Site(0, "resid_post"),), CPU)


def test_a_layer_without_a_known_norm_is_refused_with_the_site() -> None:
    model = Model()
    for layer in model.layers:
        del layer.input_layernorm
    with pytest.raises(EngineMismatchError, match=r"1\.attn_norm"):
        wrap_sites(model, (Site(1, "attn_norm"),), CPU)
