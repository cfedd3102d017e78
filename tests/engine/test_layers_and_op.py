"""The op in a compiled model and the wrapping of the embedding."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from guard.engine import layers, ops
from guard.errors import EngineMismatchError

WIDTH, TOKENS = 32, 9


class Embedding(VocabParallelEmbedding):
    """The look-up alone: vLLM's constructor needs its process groups."""

    def __init__(self, width: int = WIDTH) -> None:
        nn.Module.__init__(self)
        self.embedding_dim = width
        self.params_dtype = torch.float32
        self.weight = nn.Parameter(torch.randn(20, width), requires_grad=False)

    def forward(self, input_: Tensor) -> Tensor:
        return nn.functional.embedding(input_, self.weight)


class Model(nn.Module):
    """An embedding, decoder layers and a vision tower."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.embed_tokens = Embedding(width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.vision_tower = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(5))})

    def forward(self, ids: Tensor) -> Tensor:
        hidden: torch.Tensor = self.embed_tokens(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


@pytest.fixture
def buffers() -> Iterator[ops.EngineBuffers]:
    """Fresh buffers of this process."""
    ops.register()
    made = ops.EngineBuffers.allocate(16, 4, torch.device("cpu"))
    ops.install(made)
    yield made
    ops.install(None)  # type: ignore[arg-type]


def test_the_compiled_model_reads_the_buffers_of_every_step(buffers: ops.EngineBuffers) -> None:
    torch.manual_seed(0)
    model = Model().eval()
    ids = torch.arange(TOKENS)
    with torch.inference_mode():
        plain = model(ids)
        layers.wrap_embedding(model, WIDTH, torch.device("cpu"))
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(ids), plain)
        buffers.corruption.set(1, kind="gauss", rho=2.0, seed=3)
        buffers.token_slot[2:5] = 1
        changed = compiled(ids)
        assert torch.equal(changed[:2], plain[:2])
        assert torch.equal(changed[5:], plain[5:])
        assert (changed[2:5] != plain[2:5]).any(dim=1).all()
        assert int(buffers.corruption.counts[1]) == 3
        buffers.clear_step()
        assert torch.equal(compiled(ids), plain)


def test_wrapping_keeps_parameter_names_and_happens_once(buffers: ops.EngineBuffers) -> None:
    model = Model()
    names = list(model.state_dict())
    assert layers.wrap_embedding(model, WIDTH, torch.device("cpu")) == "embed_tokens"
    assert list(model.state_dict()) == names
    assert isinstance(model.embed_tokens, Embedding)
    with pytest.raises(EngineMismatchError, match="wrapped already"):
        layers.wrap_embedding(model, WIDTH, torch.device("cpu"))


def test_a_model_without_or_with_two_token_embeddings_is_refused() -> None:
    with pytest.raises(EngineMismatchError, match="one token embedding"):
        layers.wrap_embedding(Model(), WIDTH + 1, torch.device("cpu"))
    model = Model()
    model.second = Embedding()
    with pytest.raises(EngineMismatchError, match="second"):
        layers.wrap_embedding(model, WIDTH, torch.device("cpu"))


def test_decoder_layers_are_found_outside_other_towers() -> None:
    assert layers.find_decoder_layers(Model()) == ("layers.0", "layers.1", "layers.2")
    with pytest.raises(EngineMismatchError, match="decoder layers"):
        layers.find_decoder_layers(nn.Linear(2, 2))


def test_a_batched_hidden_state_is_edited_in_place_and_a_strided_one_is_refused(buffers: ops.EngineBuffers) -> None:
    buffers.corruption.set(2, kind="flip_sign")
    buffers.token_slot[1] = 2
    hidden = torch.ones(1, 4, WIDTH)
    torch.ops.guard.corrupt(hidden, torch.zeros(1, dtype=torch.int32))
    assert hidden[0, 1].eq(-1).all()
    assert hidden[0, [0, 2, 3]].eq(1).all()
    with pytest.raises(RuntimeError):
        torch.ops.guard.corrupt(torch.ones(4, 2, WIDTH).transpose(0, 1), torch.zeros(1, dtype=torch.int32))


def test_the_op_fails_without_buffers(buffers: ops.EngineBuffers) -> None:
    ops.install(None)  # type: ignore[arg-type]
    with pytest.raises(EngineMismatchError):
        torch.ops.guard.corrupt(torch.ones(2, WIDTH), torch.zeros(1, dtype=torch.int32))
    with pytest.raises(EngineMismatchError):
        ops.installed()
