"""The size of the cache on a CPU: what the model can use, within what is free, or one line that says what to change."""

from __future__ import annotations

import pytest

from guard.errors import ConfigurationError

pytest.importorskip("vllm", reason="vLLM is not installed")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from guard.engine import cache_size, serve  # noqa: E402
from guard.engine.cache_size import BLOCK_TOKENS, GIB, CacheNeeds, choose_size  # noqa: E402


def test_a_small_model_takes_what_a_full_batch_can_fill() -> None:
    needs = CacheNeeds(token_bytes=4096, longest=2048, batch=128 * 2048, weights=14 << 20)
    assert choose_size(needs, 13 * GIB) == GIB + BLOCK_TOKENS * 4096


def test_a_large_model_leaves_half_of_what_is_left_free() -> None:
    needs = CacheNeeds(token_bytes=128 << 10, longest=8192, batch=256 * 8192, weights=6 * GIB)
    assert choose_size(needs, 23 * GIB) == 7 * GIB


def test_where_little_is_free_one_longest_request_still_fits() -> None:
    needs = CacheNeeds(token_bytes=128 << 10, longest=8192, batch=256 * 8192, weights=6 * GIB)
    assert choose_size(needs, 8 * GIB) == (8192 + BLOCK_TOKENS) * (128 << 10)


def test_what_cannot_fit_names_the_length_that_would() -> None:
    needs = CacheNeeds(token_bytes=128 << 10, longest=131072, batch=131072, weights=6 * GIB)
    with pytest.raises(ConfigurationError, match="131072 tokens.*--max-model-len 16384 or less"):
        choose_size(needs, 8 * GIB)
    with pytest.raises(ConfigurationError, match="free memory"):
        choose_size(needs, 5 * GIB)


@given(
    token_bytes=st.integers(1, 1 << 20), longest=st.integers(1, 1 << 17), sequences=st.integers(1, 1024),
    weights=st.integers(0, 100 * GIB), workers=st.integers(1, 4), free=st.integers(0, 1024 * GIB),
)
def test_every_choice_holds_one_request_and_fits(
    token_bytes: int, longest: int, sequences: int, weights: int, workers: int, free: int
) -> None:
    needs = CacheNeeds(token_bytes, longest, longest * sequences, weights, workers)
    try:
        size = choose_size(needs, free)
    except ConfigurationError:
        return
    assert size >= longest * token_bytes
    assert size * workers + weights <= free


@pytest.mark.parametrize(
    "flags", [["--kv-cache-memory-bytes", "1G"], ["--gpu-memory-utilization", "0.92"], ["--num-gpu-blocks-override=9"]]
)
def test_a_flag_that_sizes_the_cache_is_left_alone(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cache_size.VARIABLE, raising=False)
    args = serve.build_arguments("somebody/else", flags, served_name=None, drain_timeout_s=30)
    assert not args.choose_cache
    assert args.gpu_memory_utilization == 0.92


def test_without_such_a_flag_the_guard_chooses_unless_the_variable_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache_size.VARIABLE, "")
    args = serve.build_arguments("somebody/else", [], served_name=None, drain_timeout_s=30)
    assert args.choose_cache
    assert args.gpu_memory_utilization == 0.92
    monkeypatch.setenv(cache_size.VARIABLE, "2")
    assert not serve.build_arguments("somebody/else", [], served_name=None, drain_timeout_s=30).choose_cache
