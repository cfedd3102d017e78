"""Which vLLM the guard works with, what it forces, and what it refuses at start because it would go round the guard.

Everything here fails closed with a `ConfigurationError` that names the flag, the reason and the way out. Flags are
checked in the API process (`check_arguments`) and, on the final configuration, again in every worker (`check_config`).
"""

from __future__ import annotations

import hashlib
import os
from argparse import Namespace
from collections.abc import Mapping
from copy import copy
from dataclasses import asdict, dataclass
from typing import Any

import vllm

from guard import __version__
from guard.engine.flags import (
    CONFIG_KEY,
    FORBIDDEN_ENVIRONMENT,
    FORCED,
    FORCED_ENVIRONMENT,
    LIMITS,
    LOGITS_PROCESSOR,
    MIN_SHUTDOWN_TIMEOUT_S,
    REFUSED,
    REFUSED_DRAFTERS,
    SCHEDULER,
    WORKER,
    flag_of,
)
from guard.engine.ops import SCHEMAS
from guard.errors import ConfigurationError, EngineMismatchError

SUPPORTED_VERSIONS = ((0, 32),)
EMBEDDING_SITE = "embedding"
# no model has it: packs of users are refused by an engine whose model has no fingerprint
NO_FINGERPRINT = "fp1:" + "0" * 64


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
    return {
        **dict.fromkeys(FORBIDDEN_ENVIRONMENT, "0"),
        **{name: value for name, (value, _) in FORCED_ENVIRONMENT.items()},
    }


def forced_arguments(arguments: Namespace, edits: EditSettings | None = None) -> dict[str, Any]:
    """Arguments that the launcher overwrites, by attribute name of vLLM's parsed arguments.

    Call `check_arguments` first: it refuses conflicting choices of the user instead of hiding them.
    """
    tensor_parallel = getattr(arguments, "tensor_parallel_size", 1)
    pipeline_parallel = getattr(arguments, "pipeline_parallel_size", 1)
    config = {**_mapping(getattr(arguments, "additional_config", None)),
              **additional_config(tensor_parallel, pipeline_parallel, edits)}
    return {
        # copies: vLLM may add to a list
        **{name: copy(value) for name, (value, _) in FORCED.items()},
        "additional_config": config,
        "shutdown_timeout": max(MIN_SHUTDOWN_TIMEOUT_S, int(getattr(arguments, "shutdown_timeout", 0) or 0)),
    }


def check_arguments(arguments: Namespace, environment: Mapping[str, str] | None = None) -> None:
    """Refuse vLLM arguments and environment variables that would go round the guard. Raises ConfigurationError."""
    check_version()
    check_environment(os.environ if environment is None else environment)
    for name, reason in REFUSED.items():
        if getattr(arguments, name, None):
            raise ConfigurationError(f"{flag_of(name)} cannot be used with the guard: {reason}; remove it")
    for name, (limit, reason) in LIMITS.items():
        value = getattr(arguments, name, None)
        if value is not None and value > limit:
            raise ConfigurationError(f"{flag_of(name)} {value} cannot be used with the guard: {reason}")
    for name in ("worker_cls", "scheduler_cls"):
        if getattr(arguments, name, None) not in (None, "auto", FORCED[name][0]):
            raise ConfigurationError(f"{flag_of(name)} is set by the guard; remove it")
    if getattr(arguments, "logits_processors", None) not in (None, [], [LOGITS_PROCESSOR]):
        raise ConfigurationError("--logits-processors is set by the guard: another processor could undo its mask")
    if getattr(arguments, "runner", "auto") not in ("auto", "generate"):
        raise ConfigurationError(f"--runner {arguments.runner} is not supported: the guard checks generation only")
    if CONFIG_KEY in _mapping(getattr(arguments, "additional_config", None)):
        raise ConfigurationError(f"--additional-config: the key {CONFIG_KEY!r} is set by the guard; remove it")


def check_environment(environment: Mapping[str, str]) -> None:
    """Refuse environment variables that open doors past the guard. Raises ConfigurationError."""
    for name, reason in FORBIDDEN_ENVIRONMENT.items():
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
    if speculative.method in REFUSED_DRAFTERS:
        raise ConfigurationError(f"--speculative-config: method {speculative.method!r} is not supported by the guard")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
