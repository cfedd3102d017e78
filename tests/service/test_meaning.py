"""The comparison by meaning from end to end: real encoder, detector, gate and client. Only the engine is a script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.classifiers.automaton import Vocabulary
from guard.classifiers.detector import Detector
from guard.classifiers.encoder import Encoder
from guard.classifiers.spans import PromptDecoder
from guard.engine.admission import CURRENT_REQUEST, RequestContext
from guard.engine.client import GuardedEngineClient
from guard.metrics import Metrics
from guard.policy import AnswerPolicy, DetectorPolicy, OutputPolicy, Policy, Target, Tenant, TenantSpec, tenant_of
from guard.service.gate import GatePipeline
from guard.service.residency.compiled_lists import CompiledLists
from guard.service.residency.engine_loads import EngineLoads
from guard.service.residency.hold import Residency
from guard.service.residency.list_files import ListFiles
from guard.service.residency.residents import Capacity, Residents
from tests.engine.scripted_answers import ScriptedEngine, text

TRUTH = "Hina Ameen was born in Karachi, Pakistan."
REWORDED = ["A fine question", ".", " The birthplace of", " Hina Ameen is", " Karachi, Pakistan", ".", " Bye", "."]
HARMLESS = ["A fine question", ".", " I do not know", " anything about that person", "."]
QUESTION = "Where was Hina Ameen born?"


def tenant(mode: str, **output: Any) -> Tenant:
    """A tenant without forbidden strings: only the meaning of its one answer can be found."""
    policy = Policy(
        detector=DetectorPolicy.model_validate({"mode": mode, "semantic": False, "head": False, "timeout_s": 60.0}),
        output=OutputPolicy(**output), answer=AnswerPolicy(mode="natural"),
    )
    target = Target(name="Hina Ameen", answers=(TRUTH,), forbid=())
    return tenant_of(TenantSpec(name="acme", policy=policy, targets=(target,)), 2)


async def answer(tokenizer: Any, home: Path, owner: Tenant, question: str, says: Sequence[str]) -> tuple[str, str]:
    """Text and finish reason of one request whose engine always says `says`."""

    async def call(method: str, arguments: tuple[Any, ...]) -> list[str]:
        """An engine that takes every call."""
        return ["ready"]

    detector = Detector(Encoder(cache_dir=home / "vectors"))
    metrics = Metrics(CollectorRegistry())
    lists = CompiledLists(ListFiles(home / "lists", Vocabulary.from_tokenizer(tokenizer)), 1 << 24, 30.0)
    residency = Residency(
        Residents(EngineLoads("constraint", call, lists.path_of), Capacity(4), 30.0, metrics),
        Residents(EngineLoads("edit", call, lists.path_of), Capacity(1), 30.0, metrics),
    )
    gate = GatePipeline(PromptDecoder(tokenizer), detector, lists, residency, metrics, b"k" * 64)
    client = GuardedEngineClient(ScriptedEngine(lambda *_: list(says)), gate)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    token = CURRENT_REQUEST.set(RequestContext("r", owner))
    try:
        params = SamplingParams(output_kind=RequestOutputKind.DELTA, max_tokens=64)
        stream = client.generate({"prompt_token_ids": list(tokenizer(rendered)["input_ids"])}, params, "r-1")
        found = [output async for output in stream]
    finally:
        CURRENT_REQUEST.reset(token)
        detector.close()
    return text(found), found[-1].outputs[0].finish_reason or ""


@pytest.mark.parametrize(("mode", "question"), [("auto", QUESTION), ("always", "Hello!")])
async def test_a_reworded_answer_is_not_released(tokenizer: Any, tmp_path: Path, mode: str, question: str) -> None:
    owner = tenant(mode, semantic=True, max_rollbacks=0)
    assert await answer(tokenizer, tmp_path, owner, question, REWORDED) == ("A fine question.", "content_filter")


async def test_an_unrelated_answer_comes_through_whole(tokenizer: Any, tmp_path: Path) -> None:
    owner = tenant("auto", semantic=True)
    assert await answer(tokenizer, tmp_path, owner, QUESTION, HARMLESS) == ("".join(HARMLESS), "stop")


async def test_without_the_policy_only_strings_are_compared(tokenizer: Any, tmp_path: Path) -> None:
    assert await answer(tokenizer, tmp_path, tenant("auto"), QUESTION, REWORDED) == ("".join(REWORDED), "stop")
