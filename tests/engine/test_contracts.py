"""vLLM's internals that the guard overrides or reads: a failure here names what has changed."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.llama import LlamaDecoderLayer
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.request import Request
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2
from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1
from vllm.v1.worker.gpu_worker import Worker


def parameters(function: Any) -> list[str]:
    """Names of the parameters."""
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("owner", "name", "expected"),
    [
        (EngineCore, "preprocess_add_request", ["self", "request"]),
        (RunnerV1, "_update_states", ["self", "scheduler_output"]),
        (RunnerV1, "_prepare_inputs", ["self", "scheduler_output", "num_scheduled_tokens"]),
        (RunnerV2, "add_requests", ["self", "scheduler_output"]),
        (RunnerV2, "_remove_request", ["self", "req_id"]),
        (RunnerV2, "prepare_inputs",
         ["self", "scheduler_output", "batch_req_state", "batch_desc", "num_active_loras"]),
        (Scheduler, "add_request", ["self", "request"]),
        (Scheduler, "_free_request", ["self", "request", "delay_free_blocks"]),
        (VocabParallelEmbedding, "forward", ["self", "input_"]),
        (CPUWorker, "init_device", ["self"]),
        (LlamaDecoderLayer, "forward", ["self", "positions", "hidden_states", "residual"]),
        (RMSNorm, "forward", ["self", "args", "kwargs"]),
    ],
)
def test_an_overridden_method_has_the_known_parameters(owner: type, name: str, expected: list[str]) -> None:
    assert parameters(getattr(owner, name)) == expected, f"{owner.__name__}.{name} has changed in this vLLM"


@pytest.mark.parametrize(
    ("owner", "name", "first"),
    [
        (RunnerV1, "_dummy_run", "num_tokens"), (RunnerV1, "_model_forward", "input_ids"),
        (RunnerV2, "_dummy_run", "num_tokens"), (RunnerV2, "execute_model", "scheduler_output"),
        (Worker, "load_model", "load_dummy_weights"),
    ],
)
def test_a_forwarded_method_still_exists(owner: type, name: str, first: str) -> None:
    assert parameters(getattr(owner, name))[1] == first, f"{owner.__name__}.{name} has changed in this vLLM"


@pytest.mark.parametrize(
    "name",
    ["request_id", "prompt_token_ids", "sampling_params", "pooling_params", "cache_salt", "prompt_embeds", "resumable"],
)
def test_the_engine_request_has_the_fields_that_the_gate_reads(name: str) -> None:
    assert name in EngineCoreRequest.__annotations__, f"EngineCoreRequest.{name} is gone in this vLLM"


@pytest.mark.parametrize(
    "name",
    ["idx_mapping", "idx_mapping_np", "num_reqs", "query_start_loc", "positions", "num_tokens_after_padding",
     "num_computed_tokens_np", "num_scheduled_tokens"],
)
def test_the_v2_batch_has_the_fields_that_the_runner_reads(name: str) -> None:
    assert name in InputBatch.__annotations__, f"InputBatch.{name} is gone in this vLLM"


def test_new_requests_carry_sampling_params() -> None:
    assert {"req_id", "sampling_params"} <= set(NewRequestData.__annotations__)
    assert {"scheduled_new_reqs", "num_scheduled_tokens"} <= set(SchedulerOutput.__annotations__)


def test_a_raise_in_the_gate_is_answered_and_not_fatal() -> None:
    from vllm.v1.engine.core import EngineCoreProc

    source = inspect.getsource(EngineCoreProc.process_input_sockets)
    assert "preprocess_add_request" in source
    assert "_handle_request_preproc_error" in source


def test_requests_are_built_behind_the_place_where_the_gate_stands() -> None:
    # unwrapped: another test may have put the gate in front of it
    source = inspect.getsource(inspect.unwrap(EngineCore.preprocess_add_request))
    assert "Request.from_engine_core_request(request, self.request_block_hasher)" in source


def test_the_salt_is_hashed_when_the_request_is_built() -> None:
    init_none_hash(sha256)
    hasher = get_request_block_hasher(2, sha256)

    def built(salt: str | None) -> Request:
        asked = EngineCoreRequest(
            request_id="r", prompt_token_ids=[5, 6, 7, 8], mm_features=None, sampling_params=SamplingParams(),
            pooling_params=None, arrival_time=0.0, lora_request=None, cache_salt=salt, data_parallel_rank=None,
        )
        return Request.from_engine_core_request(asked, hasher)

    one, two, again = built("one"), built("two"), built("one")
    assert len(one.block_hashes) == 2, "hashes are computed later in this vLLM: the gate must force the salt there"
    assert set(one.block_hashes).isdisjoint(two.block_hashes)
    assert one.block_hashes == again.block_hashes
    assert set(one.block_hashes).isdisjoint(built(None).block_hashes)


def test_the_asynchronous_scheduler_is_a_scheduler() -> None:
    assert issubclass(AsyncScheduler, Scheduler)


def test_the_v1_forward_goes_through_the_method_that_unmarks() -> None:
    assert "self._model_forward(" in inspect.getsource(RunnerV1.execute_model)
    assert "self._prepare_inputs(" in inspect.getsource(RunnerV1.execute_model)
    assert "self._bookkeeping_sync(" in inspect.getsource(RunnerV1.sample_tokens)


def test_the_v1_runner_rewinds_discarded_samples_by_an_offset_that_cpu_generators_lack() -> None:
    source = inspect.getsource(RunnerV1._bookkeeping_sync)
    assert "self.input_batch.generators.get(" in source, "vLLM handles discarded seeded samples in another way now"
    assert "discard_request_mask" in source


def test_the_v2_forward_prepares_inputs_and_adds_requests_in_one_place() -> None:
    source = inspect.getsource(RunnerV2.execute_model)
    assert "self.prepare_inputs(" in source
    assert "self.add_requests(" in source
    assert "self._remove_request(" in inspect.getsource(RunnerV2.finish_requests)
