"""Start-up refusals: every way round the guard is named and ends the start."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from guard.engine import compat, flags
from guard.errors import ConfigurationError, EngineMismatchError


@pytest.fixture(scope="module")
def defaults() -> dict[str, Any]:
    """vLLM's own default arguments."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    found: dict[str, Any] = vars(make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", "any"]))
    return found


def test_the_default_arguments_are_accepted(defaults: dict[str, Any]) -> None:
    compat.check_arguments(Namespace(**defaults), {})


@pytest.mark.parametrize("name", sorted(flags.REFUSED))
def test_a_refused_flag_is_named(defaults: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigurationError, match="--" + name.replace("_", "-")):
        compat.check_arguments(Namespace(**{**defaults, name: True}), {})


@pytest.mark.parametrize("name", sorted(flags.REFUSED))
def test_a_refused_flag_exists_in_this_vllm(defaults: dict[str, Any], name: str) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = set(defaults) | set(AsyncEngineArgs.__dataclass_fields__)
    # only options of the routed-experts configuration are spelled as a flag of their own
    assert name in known, f"vLLM has no argument {name} any more; look for its successor"


@pytest.mark.parametrize("name", sorted(flags.LIMITS))
def test_a_number_above_its_limit_is_refused(defaults: dict[str, Any], name: str) -> None:
    assert name in defaults
    with pytest.raises(ConfigurationError, match="--" + name.replace("_", "-")):
        compat.check_arguments(Namespace(**{**defaults, name: 2}), {})


@pytest.mark.parametrize("name", sorted(flags.FORBIDDEN_ENVIRONMENT))
def test_a_forbidden_variable_is_named(defaults: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        compat.check_arguments(Namespace(**defaults), {name: "1"})
    compat.check_arguments(Namespace(**defaults), {name: "0"})


@pytest.mark.parametrize("name", sorted(compat.forced_environment()))
def test_a_forced_variable_is_known_to_vllm(name: str) -> None:
    import vllm.envs

    assert name in vllm.envs.environment_variables


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("worker_cls", "other.Worker"), ("scheduler_cls", "other.Scheduler"), ("logits_processors", ["other:P"]),
        ("runner", "pooling"), ("additional_config", {"guard": {}}),
    ],
)
def test_a_place_of_the_guard_cannot_be_taken(defaults: dict[str, Any], name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError):
        compat.check_arguments(Namespace(**{**defaults, name: value}), {})


def test_forced_arguments_are_arguments_of_vllm_and_keep_the_rest(defaults: dict[str, Any]) -> None:
    chosen = {**defaults, "additional_config": {"mine": 1}, "shutdown_timeout": 90}
    forced = compat.forced_arguments(Namespace(**chosen))
    assert set(forced) <= set(defaults)
    assert set(forced) == set(flags.FORCED) | set(flags.ADJUSTED)
    assert forced["additional_config"]["mine"] == 1
    assert forced["additional_config"]["guard"]["digest"] == compat.engine_digest()
    assert forced["shutdown_timeout"] == 90


def test_the_digest_depends_on_the_ranks() -> None:
    assert len({compat.engine_digest(), compat.engine_digest(2), compat.engine_digest(1, 2)}) == 3


@pytest.mark.parametrize("version", ["0.26.0", "0.31.2", "0.33.0", "1.0.0", "garbage"])
def test_another_vllm_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.engine.compat.vllm.__version__", version)
    with pytest.raises(EngineMismatchError, match="not supported"):
        compat.check_version()


def engine_config(**changes: Any) -> Any:
    """A final configuration with everything in order."""
    values: dict[str, Any] = {
        "data_parallel_size": 1, "prefill_context_parallel_size": 1, "use_ubatching": False,
        "worker_cls": flags.WORKER, "scheduler_cls": flags.SCHEDULER, "kv_sharing_fast_prefill": False,
        "kv_transfer_config": None, "enable_prompt_embeds": False, "enable_sleep_mode": False,
        "runner_type": "generate", "logits_processors": [flags.LOGITS_PROCESSOR],
        "logprobs_mode": "processed_logprobs",
        "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "additional_config": compat.additional_config(),
        "speculative_config": None, "use_v2_model_runner": False, **changes,
    }
    part = SimpleNamespace(**values)
    return SimpleNamespace(
        parallel_config=part, scheduler_config=part, model_config=part, cache_config=part, **values
    )


def test_a_configuration_in_order_is_accepted() -> None:
    compat.check_config(engine_config())
    drafter = SimpleNamespace(method="ngram")
    compat.check_config(engine_config(speculative_config=drafter, use_v2_model_runner=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"data_parallel_size": 2}, {"use_ubatching": True}, {"kv_sharing_fast_prefill": True},
        {"kv_transfer_config": object()}, {"enable_prompt_embeds": True}, {"runner_type": "pooling"},
        {"scheduler_cls": None}, {"logits_processors": None}, {"logprobs_mode": "raw_logprobs"},
        {"speculative_config": SimpleNamespace(method="ngram")},
        {"speculative_config": SimpleNamespace(method="medusa"), "use_v2_model_runner": True},
    ],
)
def test_a_wrong_final_configuration_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        compat.check_config(engine_config(**changes))


@pytest.mark.parametrize("found", [{}, {"guard": {"digest": "0" * 32}}, {"guard": "yes"}])
def test_an_engine_without_the_digest_is_refused(found: Any) -> None:
    with pytest.raises(EngineMismatchError, match="digest"):
        compat.check_config(engine_config(additional_config=found))
