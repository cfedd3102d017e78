"""Which vLLM the guard works with, what it forces, and what it refuses at start because it would go round the guard.

Everything here fails closed with a `ConfigurationError` that names the flag, the reason and the way out. Flags are
checked in the API process (`check_arguments`) and, on the final configuration, again in every worker (`check_config`).
"""

from __future__ import annotations

import hashlib
import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import vllm

from guard import __version__
from guard.engine.ops import SCHEMAS
from guard.errors import ConfigurationError, EngineMismatchError
from guard.policy import MAX_CHOICES

SUPPORTED_VERSIONS = ((0, 32),)
WORKER = "guard.engine.worker.GuardWorker"
SCHEDULER = "guard.engine.scheduler.GuardScheduler"
LOGITS_PROCESSOR = "guard.engine.logits:GuardLogitsProcessor"
CONFIG_KEY = "guard"
EMBEDDING_SITE = "embedding"
# no model has it: packs of users are refused by an engine whose model has no fingerprint
NO_FINGERPRINT = "fp1:" + "0" * 64
MIN_SHUTDOWN_TIMEOUT_S = 30

# attribute of the parsed arguments -> why a truthy value is refused
_REFUSED: dict[str, str] = {
    "grpc": "the gRPC server has no gate",
    "grpc_port": "the gRPC server has no gate",
    "headless": "the guard needs its own API process",
    "enable_prompt_embeds": "prompts without token ids cannot be classified",
    "enable_mm_embeds": "prompts without token ids cannot be classified",
    "enable_scale_out": "its routes take token ids past the gate",
    "tokens_only": "its routes take token ids past the gate",
    "enable_elastic_ep": "ranks that join later are not self-tested",
    "trust_request_chat_template": "a client could rewrite the prompt after it is checked",
    "trust_request_mm_kwargs": "a client could rewrite the prompt after it is checked",
    "enable_trace_replay": "replayed tokens overwrite constrained ones",
    "enable_tokenizer_info_endpoint": "it shows the server's templates to every client",
    "enable_log_outputs": "answers would be written to the log",
    "enable_log_requests": "prompts would be written to the log",
    "tool_server": "built-in tools generate past the gate",
    "enable_return_routed_experts": "it returns what the output check cannot read",
    "return_sampling_mask": "it returns what the output check cannot read",
    "kv_transfer_config": "caches of other engines are not separated by tenant",
    "ec_transfer_config": "caches of other engines are not separated by tenant",
    "kv_offloading_size": "offloaded caches are not separated by tenant",
    "kv_events_config": "it publishes prompts of all tenants",
    "enable_dbo": "microbatches split the rows that the guard marks",
    "ubatch_size": "microbatches split the rows that the guard marks",
    "kv_sharing_fast_prefill": "later layers see other rows than the guard marks",
    "enable_sleep_mode": "sleeping drops the guard's device memory",
    "enable_hc_sp": "sequence parallelism splits the rows that the guard marks",
    "weight_transfer_config": "interventions are fitted to one set of weights",
    "diffusion_config": "diffusion decoding has no constrained sampling",
    "mm_encoder_only": "there is nothing to guard",
    "skip_tokenizer_init": "the guard reads prompts as text",
    "worker_extension_cls": "it adds unguarded calls to the workers",
    "api_key": "the guard has keys of its own (`guard key create`)",
}
# attribute -> largest number that is served
_LIMITS: dict[str, tuple[int, str]] = {
    "data_parallel_size": (1, "only the first engine would be self-tested; start one server per replica"),
    "api_server_count": (1, "the guard runs one API process; start one server per replica"),
    "prefill_context_parallel_size": (1, "prompt rows would be split over ranks"),
    "decode_context_parallel_size": (1, "it is untested with the guard"),
    "nnodes": (1, "other nodes would need the guard's ticket key"),
}
_OURS: dict[str, str] = {"worker_cls": WORKER, "scheduler_cls": SCHEDULER}
_REFUSED_DRAFTERS = ("suffix", "medusa", "mlp_speculator", "custom_class")
_FORBIDDEN_ENVIRONMENT: dict[str, str] = {
    "VLLM_SERVER_DEV_MODE": "development routes call the engine directly",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "any client could change adapters",
    "VLLM_ENABLE_RESPONSES_API_STORE": "stored responses are shared by all tenants",
    "VLLM_ENABLE_COHERE_API": "its routes are not checked",
    "VLLM_USE_RUST_FRONTEND": "the Rust front end does not pass the gate",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "answers would be written to the log",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "it allows code in engine calls",
}
_FORCED_ENVIRONMENT: dict[str, str] = {
    **dict.fromkeys(_FORBIDDEN_ENVIRONMENT, "0"),
    "VLLM_MAX_N_SEQUENCES": str(MAX_CHOICES),
    "VLLM_MAX_COMPLETION_PROMPTS": "8",
    "VLLM_PLUGINS": "",
}


@dataclass(frozen=True, slots=True)
class EditSettings:
    """Where activation edits can apply and what can be resident; all but `max_lists` are part of the engine's identity.

    `sites` as in `guard.site.parse_sites`; `max_slots` resident packs; `max_rank` rows of a low rank, 16 or 32;
    `fingerprint` of the served model, which every pack must carry; `max_lists` resident forget-lists.
    """

    sites: str = "auto"
    max_slots: int = 64
    max_rank: int = 16
    fingerprint: str = NO_FINGERPRINT
    max_lists: int = 1024


def check_version() -> None:
    """Raise EngineMismatchError unless the installed vLLM is one that the guard is tested with."""
    numbers = tuple(int(part) for part in vllm.__version__.split("+")[0].split(".")[:2] if part.isdigit())
    if numbers not in SUPPORTED_VERSIONS:
        known = ", ".join(".".join(map(str, version)) for version in SUPPORTED_VERSIONS)
        raise EngineMismatchError(f"vLLM {vllm.__version__} is not supported; install one of {known}")


def engine_digest(tensor_parallel: int = 1, pipeline_parallel: int = 1, edits: EditSettings | None = None) -> str:
    """Identity (32 hex characters) of what the guard adds to the compiled model.

    It goes into vLLM's configuration, because vLLM would otherwise load a compiled model of the same configuration that
    was built without the guard's ops.
    """
    settings = edits or EditSettings()
    parts = (
        __version__, *SCHEMAS, EMBEDDING_SITE, settings.sites, str(settings.max_slots), str(settings.max_rank),
        settings.fingerprint, str(tensor_parallel), str(pipeline_parallel),
    )
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:32]


def additional_config(
    tensor_parallel: int = 1, pipeline_parallel: int = 1, edits: EditSettings | None = None,
) -> dict[str, Any]:
    """The value of `--additional-config` that every guarded engine must carry."""
    settings = edits or EditSettings()
    digest = engine_digest(tensor_parallel, pipeline_parallel, settings)
    return {CONFIG_KEY: {"version": __version__, "edits": asdict(settings), "digest": digest}}


def edit_settings(config: Any) -> EditSettings:
    """The settings that a final `VllmConfig` carries. Raises EngineMismatchError when they are missing or damaged."""
    found = _mapping(_mapping(config.additional_config).get(CONFIG_KEY)).get("edits")
    try:
        return EditSettings(**_mapping(found))
    except TypeError as error:
        raise EngineMismatchError("the engine's configuration holds no settings of edits; use `guard serve`") from error


def forced_environment() -> dict[str, str]:
    """Environment variables that the launcher sets before vLLM is imported and the engine is started."""
    return dict(_FORCED_ENVIRONMENT)


def forced_arguments(arguments: Namespace, edits: EditSettings | None = None) -> dict[str, Any]:
    """Arguments that the launcher overwrites, by attribute name of vLLM's parsed arguments.

    Call `check_arguments` first: it refuses conflicting choices of the user instead of hiding them.
    """
    tensor_parallel = getattr(arguments, "tensor_parallel_size", 1)
    pipeline_parallel = getattr(arguments, "pipeline_parallel_size", 1)
    config = {**_mapping(getattr(arguments, "additional_config", None)),
              **additional_config(tensor_parallel, pipeline_parallel, edits)}
    return {
        **_OURS,
        "logits_processors": [LOGITS_PROCESSOR],
        "additional_config": config,
        "logprobs_mode": "processed_logprobs",
        "prefix_caching_hash_algo": "sha256",
        "fingerprint_mode": "none",
        "disable_fastapi_docs": True,
        "enable_offline_docs": False,
        "language_model_only": True,
        "shutdown_timeout": max(MIN_SHUTDOWN_TIMEOUT_S, int(getattr(arguments, "shutdown_timeout", 0) or 0)),
    }


def check_arguments(arguments: Namespace, environment: Mapping[str, str] | None = None) -> None:
    """Refuse vLLM arguments and environment variables that would go round the guard. Raises ConfigurationError."""
    check_version()
    check_environment(os.environ if environment is None else environment)
    for name, reason in _REFUSED.items():
        if getattr(arguments, name, None):
            raise ConfigurationError(f"{_flag(name)} cannot be used with the guard: {reason}; remove it")
    for name, (limit, reason) in _LIMITS.items():
        value = getattr(arguments, name, None)
        if value is not None and value > limit:
            raise ConfigurationError(f"{_flag(name)} {value} cannot be used with the guard: {reason}")
    for name, ours in _OURS.items():
        if getattr(arguments, name, None) not in (None, "auto", ours):
            raise ConfigurationError(f"{_flag(name)} is set by the guard; remove it")
    if getattr(arguments, "logits_processors", None) not in (None, [], [LOGITS_PROCESSOR]):
        raise ConfigurationError("--logits-processors is set by the guard: another processor could undo its mask")
    if getattr(arguments, "runner", "auto") not in ("auto", "generate"):
        raise ConfigurationError(f"--runner {arguments.runner} is not supported: the guard checks generation only")
    if CONFIG_KEY in _mapping(getattr(arguments, "additional_config", None)):
        raise ConfigurationError(f"--additional-config: the key {CONFIG_KEY!r} is set by the guard; remove it")


def check_environment(environment: Mapping[str, str]) -> None:
    """Refuse environment variables that open doors past the guard. Raises ConfigurationError."""
    for name, reason in _FORBIDDEN_ENVIRONMENT.items():
        if environment.get(name, "").strip().lower() not in ("", "0", "false"):
            raise ConfigurationError(f"{name} cannot be used with the guard: {reason}; unset it")


def check_config(config: Any) -> None:
    """Check the final `VllmConfig` in a worker: nothing refused came in by another way, and the digest is ours.

    Raises ConfigurationError, or EngineMismatchError when the engine was configured by another version of the guard.
    """
    check_version()
    check_environment(os.environ)
    parallel, scheduler, model = config.parallel_config, config.scheduler_config, config.model_config
    expected = engine_digest(
        parallel.tensor_parallel_size, parallel.pipeline_parallel_size, edit_settings(config)
    )
    found = _mapping(config.additional_config).get(CONFIG_KEY)
    if not isinstance(found, Mapping) or found.get("digest") != expected:
        raise EngineMismatchError(
            f"the engine's configuration lacks the guard's digest {expected}; start it with `guard serve`"
        )
    refused = {
        "--data-parallel-size": parallel.data_parallel_size > 1,
        "--prefill-context-parallel-size": getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "--enable-dbo": bool(parallel.use_ubatching),
        "--kv-sharing-fast-prefill": bool(config.cache_config.kv_sharing_fast_prefill),
        "--kv-transfer-config": config.kv_transfer_config is not None,
        "--enable-prompt-embeds": bool(model.enable_prompt_embeds),
        "--enable-sleep-mode": bool(model.enable_sleep_mode),
        "--runner": model.runner_type != "generate",
        "--scheduler-cls": scheduler.scheduler_cls != SCHEDULER,
        "--worker-cls": parallel.worker_cls != WORKER,
        "--logits-processors": list(model.logits_processors or []) != [LOGITS_PROCESSOR],
        "--logprobs-mode": str(model.logprobs_mode) != "processed_logprobs",
    }
    for flag, wrong in refused.items():
        if wrong:
            raise ConfigurationError(f"{flag} has a value that cannot be used with the guard; use `guard serve`")
    _check_drafter(config)


def compile_counters() -> dict[str, int]:
    """What torch.compile has done in this process: graphs traced, breaks, recompilations, Inductor builds."""
    from torch._dynamo.utils import counters

    return {
        "graphs": int(counters["stats"]["unique_graphs"]),
        "graph_breaks": sum(int(count) for count in counters["graph_break"].values()),
        "recompiles": sum(int(count) for count in counters["recompiles"].values()),
        "inductor_builds": int(counters["inductor"]["fxgraph_cache_miss"]),
    }


def _check_drafter(config: Any) -> None:
    speculative = config.speculative_config
    if speculative is None:
        return
    if not config.use_v2_model_runner:
        raise ConfigurationError(
            "--speculative-config needs Model Runner V2 with the guard: the V1 runner drops constraints from drafts"
        )
    if speculative.method in _REFUSED_DRAFTERS:
        raise ConfigurationError(f"--speculative-config: method {speculative.method!r} is not supported by the guard")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
