"""How much memory the key-value cache takes on a CPU, where vLLM would take nearly all of a memory node.

Chosen is what all sequences that may run at once could fill, at most half of what is free after weights and the
server's own needs, at least one request of the longest length. Whoever sets VLLM_CPU_KVCACHE_SPACE or a flag that sizes
the cache is left alone, and told before anything slow when there is not that much.
"""

from __future__ import annotations

import dataclasses
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import structlog
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info

from guard.errors import ConfigurationError

GIB = 1 << 30
VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
# flags that size the cache, by attribute of the parsed arguments
FLAGS = ("kv_cache_memory_bytes", "gpu_memory_utilization", "num_gpu_blocks_override")
# for the processes themselves: libraries, compiling, activations, encoder, and the rest of the system
RESERVE_BYTES = 3 * GIB
BLOCK_TOKENS = 128

log = structlog.get_logger("guard.engine")


@dataclasses.dataclass(frozen=True, slots=True)
class CacheNeeds:
    """What a model asks of the cache of each worker.

    Bytes of one token, tokens of the longest request and of a full batch; bytes of all weights; workers that share the
    memory.
    """

    token_bytes: int
    longest: int
    batch: int
    weights: int
    workers: int = 1


def choose_size(needs: CacheNeeds, free: int) -> int:
    """Bytes of the cache of each worker, where `free` bytes are free now. Raises ConfigurationError when none fits."""
    least = _blocks(needs.longest) * needs.token_bytes
    room = (free - needs.weights) // needs.workers
    if least > room:
        fits = max(0, room // needs.token_bytes // BLOCK_TOKENS * BLOCK_TOKENS)
        advice = f"pass --max-model-len {fits} or less, or free memory" if fits else "free memory"
        raise ConfigurationError(
            f"not enough memory: {_gib(free)} GiB are free, the weights take {_gib(needs.weights)} GiB and the cache "
            f"for one request of {needs.longest} tokens {_gib(least)} GiB; {advice}"
        )
    comfortable = (free - needs.weights - RESERVE_BYTES) // needs.workers // 2
    return max(least, min(_blocks(needs.batch) * needs.token_bytes, comfortable))


def sized_by_user(args: Namespace, environment: Mapping[str, str] | None = None) -> bool:
    """Whether the user sized the cache, by the variable or a flag (None: not given)."""
    source = os.environ if environment is None else environment
    return bool(source.get(VARIABLE)) or any(getattr(args, name, None) is not None for name in FLAGS)


def free_memory() -> int:
    """Bytes that the workers can take now: of the whole system, of their memory node, within the cgroup's limit."""
    node = get_allowed_cpu_list()[0].numa_node
    return int(min(psutil.virtual_memory().available, get_memory_node_info(node).available_memory))


def needs_of(config: Any) -> CacheNeeds:
    """The needs of the model of a final `VllmConfig`, in the largest form: every layer keeps every token."""
    model, parallel = config.model_config, config.parallel_config
    kept = config.cache_config.cache_dtype
    size = 1 if "8" in str(kept) else model.dtype.itemsize
    # latent attention keeps one vector, others a key and a value for each head
    width = model.get_head_size() * (1 if model.use_mla else 2 * model.get_num_kv_heads(parallel))
    longest = int(model.max_model_len)
    return CacheNeeds(
        token_bytes=max(1, int(model.get_num_layers(parallel)) * width * size),
        longest=longest,
        batch=longest * int(config.scheduler_config.max_num_seqs),
        weights=_weights(Path(model.model)),
        workers=int(parallel.world_size),
    )


class SizedEngineArgs(AsyncEngineArgs):
    """vLLM's engine arguments; on a CPU the cache is sized once everything else is known."""

    choose_cache: bool = False

    def create_engine_config(self, *arguments: Any, **options: Any) -> Any:
        """The engine's configuration. Raises ConfigurationError when its cache does not fit."""
        config = super().create_engine_config(*arguments, **options)
        if current_platform.is_cpu():
            _size_cache(config, chosen=self.choose_cache)
        return config


def _size_cache(config: Any, *, chosen: bool) -> None:
    free, cache = free_memory(), config.cache_config
    if not chosen:
        asked = int(cache.kv_cache_memory_bytes or 0)
        if asked > free:
            raise ConfigurationError(
                f"not enough memory for the cache: {_gib(asked)} GiB are asked for and {_gib(free)} GiB are free; "
                f"lower {VARIABLE} or --kv-cache-memory-bytes, or leave both out"
            )
        return
    needs = needs_of(config)
    cache.kv_cache_memory_bytes = choose_size(needs, free)
    log.info(
        "cache_sized", gib=float(_gib(cache.kv_cache_memory_bytes)), free_gib=float(_gib(free)),
        tokens=cache.kv_cache_memory_bytes // needs.token_bytes, change_with=f"{VARIABLE} or --kv-cache-memory-bytes",
    )


def _weights(model: Path) -> int:
    return sum(file.stat().st_size for file in model.glob("*.safetensors")) if model.is_dir() else 0


def _blocks(tokens: int) -> int:
    # one block more than the tokens fill: vLLM keeps one for padding
    return (-(-tokens // BLOCK_TOKENS) + 1) * BLOCK_TOKENS


def _gib(count: int) -> str:
    return f"{count / GIB:.2f}"
