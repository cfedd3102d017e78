"""Activation edits in a real engine, on both runners, against the same model in transformers."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guard.interventions.edits import edit_rows
from guard.kernels.edit_formula import EditRow, edited
from guard.packs.fingerprint import model_fingerprint
from guard.site import Site

pytestmark = pytest.mark.vllm
HERE = Path(__file__).parent
TOLERANCE = 1e-3
ALL_SITES = 6
# (rows by site, strength, phase)
AppliedLane = tuple[dict[Site, EditRow], float, str]


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[name] = module
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


cases = _load("cases")
edit_cases = _load("edit_cases")


@pytest.fixture(scope="session", params=("v1", "v2"))
def edits(request: pytest.FixtureRequest, engine_results: Any) -> dict[str, Any]:
    """What the guarded engine observed of edits; stock vLLM has filled the compile cache before it."""
    engine_results("stock", request.param)
    return engine_results("guarded", request.param)["edits"]  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def rows(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[Site, EditRow]]:
    """Rows of every pack of the scenarios, by its name; `tenant-N` for the packs of tenants."""
    folder, fingerprint = tmp_path_factory.mktemp("packs"), model_fingerprint(tiny_model)
    found = {name: edit_rows(pack) for name, (_, pack) in edit_cases.method_packs(folder, fingerprint).items()}
    for tenant in range(edit_cases.TENANTS):
        found[f"tenant-{tenant}"] = edit_rows(edit_cases.tenant_pack(folder, fingerprint, tenant)[1])
    return found


@pytest.fixture(scope="session")
def reference(tiny_model: Path) -> Any:
    """Token ids, lanes and prompt length -> logprobs [vocab] after the last token, in transformers with hooks."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()

    @torch.inference_mode()
    def logprobs(ids: list[int], lanes: Sequence[AppliedLane], prompt_length: int | None = None) -> Tensor:
        with _hooked(model, lanes, prompt_length or len(ids)):
            return model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)  # type: ignore[no-any-return]

    return logprobs


@contextlib.contextmanager
def _hooked(model: Any, lanes: Sequence[AppliedLane], prompt_length: int) -> Iterator[None]:
    handles = []
    for site in sorted({site for rows, _, _ in lanes for site in rows}):
        layer = model.model.layers[site.layer]
        places = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
        module = layer if site.place == "resid_post" else getattr(layer, places[site.place])
        handles.append(module.register_forward_hook(_hook(site, lanes, prompt_length)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(site: Site, lanes: Sequence[AppliedLane], prompt_length: int) -> Any:
    def hook(module: Any, given: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        in_prompt = torch.arange(hidden.shape[1]) < prompt_length
        for rows, strength, phase in lanes:
            if site in rows:
                here = {"prompt": in_prompt, "generation": ~in_prompt}.get(phase, torch.ones_like(in_prompt))
                hidden = torch.where(here[None, :, None], edited(hidden, rows[site], strength), hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return hook


def step(seen: dict[str, Any], index: int = 0) -> dict[int, float]:
    """Top logprobs of one generated token."""
    return {int(token): value for token, value in seen["logprobs"][0][index].items()}


def matches(seen: dict[str, Any], expected: Tensor, index: int = 0) -> bool:
    """Whether one step's logprobs are the expected ones."""
    return all(
        math.isclose(value, float(expected[token]), abs_tol=TOLERANCE, rel_tol=TOLERANCE)
        for token, value in step(seen, index).items()
    )


def edited_tokens(observed: dict[str, Any]) -> int:
    """Edited tokens of a counted request; the kernel's count and the schedule's must agree."""
    moved = observed["moved"]
    assert moved["edited_tokens"] == moved["expected_edited_tokens"]
    return int(moved["edited_tokens"])


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("name", ["steer", "map", "subspace", "clamp", "guardrail"])
def test_every_method_changes_the_answer_as_hooks_in_transformers_do(
    edits: dict[str, Any], rows: Any, reference: Any, name: str, strength: float
) -> None:
    observed = edits["methods"][f"{name}@{strength}"]
    assert matches(observed["seen"], reference(edit_cases.EDITED, [(rows[name], strength, "both")]))
    assert not matches(observed["seen"], reference(edit_cases.EDITED, []))
    # four tokens were generated, the last of which was not read again
    assert edited_tokens(observed) == len(rows[name]) * (len(edit_cases.EDITED) + 3)


def test_lanes_apply_one_after_the_other(edits: dict[str, Any], rows: Any, reference: Any) -> None:
    lanes = [(rows[name], 0.5, "both") for name in edit_cases.LANES]
    observed = edits["methods"]["lanes"]
    assert matches(observed["seen"], reference(edit_cases.EDITED, lanes))
    assert edited_tokens(observed) == sum(len(row) for row, _, _ in lanes) * (len(edit_cases.EDITED) + 3)


def test_a_prompt_computed_in_chunks_is_edited_like_a_whole_one(
    edits: dict[str, Any], rows: Any, reference: Any
) -> None:
    lanes = [(rows[name], 0.5, "both") for name in edit_cases.LANES]
    observed = edits["methods"]["chunked"]
    assert matches(observed["seen"], reference(edit_cases.EDITED_LONG, lanes))
    assert edited_tokens(observed) == sum(len(row) for row, _, _ in lanes) * (len(edit_cases.EDITED_LONG) + 3)


def test_a_request_without_edits_is_counted_nowhere(edits: dict[str, Any], reference: Any) -> None:
    observed = edits["methods"]["none"]
    assert edited_tokens(observed) == 0
    assert matches(observed["seen"], reference(edit_cases.EDITED, []))


def test_edits_and_corruption_act_in_one_request(edits: dict[str, Any]) -> None:
    observed = edits["methods"]["corrupted"]
    assert observed["moved"]["corrupted_tokens"] == 4
    assert edited_tokens(observed) == len(edit_cases.EDITED) + 3
    assert step(observed["seen"]) != step(edits["methods"]["steer@1.0"]["seen"])


@pytest.mark.parametrize(("phase", "tokens"), [("prompt", 40), ("generation", 3), ("both", 43)])
def test_an_edit_acts_in_its_phase_only(
    edits: dict[str, Any], rows: Any, reference: Any, phase: str, tokens: int
) -> None:
    observed = edits["phases"][phase]
    lanes = [(rows["steer"], 1.0, phase)]
    answer = observed["seen"]["tokens"][0]
    for index in range(len(answer)):
        ids = edit_cases.EDITED + answer[:index]
        assert matches(observed["seen"], reference(ids, lanes, len(edit_cases.EDITED)), index)
    assert edited_tokens(observed) == tokens


def test_cached_blocks_are_shared_under_the_same_edit_only(edits: dict[str, Any]) -> None:
    cached = edits["cached"]
    assert cached["same"]["seen"]["cached_tokens"] > 0
    assert step(cached["same"]["seen"]).keys() == step(cached["first"]["seen"]).keys()
    assert edited_tokens(cached["same"]) == edited_tokens(cached["first"]) - cached["same"]["seen"]["cached_tokens"]
    for other in ("first", "other_strength", "no_plan"):
        assert cached[other]["seen"]["cached_tokens"] == 0
    assert edited_tokens(cached["no_plan"]) == 0


def test_preempted_requests_are_edited_again_like_before(edits: dict[str, Any]) -> None:
    seen = edits["preempted"]
    assert seen["preemptions"] > 0
    for alone, together in zip(seen["alone"], seen["together"], strict=True):
        assert together["tokens"] == alone["tokens"]
    assert edited_tokens(seen) > 0


def test_one_batch_holds_every_pack_and_an_untouched_request(edits: dict[str, Any], rows: Any, reference: Any) -> None:
    for name, seen in edits["mixed"].items():
        lanes = [] if name == "none" else [(rows[name], 1.0, "both")]
        assert matches(seen, reference(cases.PROMPT_ALONE, lanes)), name


def test_every_choice_of_a_request_is_edited(edits: dict[str, Any]) -> None:
    observed = edits["four"]
    assert len(observed["seen"]["tokens"]) == 4
    # one prompt, computed once or found in the cache by the other choices, and three tokens of each choice
    assert edited_tokens(observed) >= len(edit_cases.EDITED) + 4 * 3


def test_a_request_for_a_pack_that_is_not_resident_may_only_end(edits: dict[str, Any]) -> None:
    denied = edits["not_resident"]["denied"]
    assert denied["moved"]["edited_tokens"] == 0
    assert denied["moved"]["unresolved_rows"] == 1
    assert set(denied["seen"]["tokens"][0]) <= {1}
    assert edited_tokens(edits["not_resident"]["after"]) > 0


def test_packs_come_and_go_under_running_requests(edits: dict[str, Any]) -> None:
    swapped = edits["swapped"]
    assert swapped["during"]["tokens"] == swapped["alone"]["tokens"]
    assert edited_tokens(swapped) == 30 + 119


def test_more_tenants_than_slots_wait_for_each_other_and_get_their_own_edit(
    edits: dict[str, Any], rows: Any, reference: Any
) -> None:
    tenants = edits["tenants"]
    assert tenants["resident"] <= cases.EDIT_SLOTS
    for index, seen in enumerate(tenants["seen"]):
        name = f"tenant-{index % edit_cases.TENANTS}"
        assert matches(seen, reference(edit_cases.EDITED, [(rows[name], 1.0, "both")])), name
    assert edited_tokens(tenants) > 0


def test_draft_tokens_are_edited_and_counted(engine_results: Any, rows: Any, reference: Any) -> None:
    drafted = engine_results("guarded", "v2", "--ngram")["edits"]
    observed, lanes = drafted["counted"], [(rows["steer"], 1.0, "both")]
    answer = observed["seen"]["tokens"][0]
    for index in (0, 5, 11, 23):
        assert matches(observed["seen"], reference(drafted["ids"] + answer[:index], lanes), index)
    assert edited_tokens(observed) >= 40 + 23


def test_layers_are_compiled_once_without_graph_breaks(engine_results: Any) -> None:
    guarded, stock = (engine_results(kind, "v1")["compiled"] for kind in ("guarded", "stock"))
    assert guarded["graph_breaks"] == 0
    assert guarded["recompiles"] == stock["recompiles"]
    assert guarded["graphs"] == stock["graphs"]


def test_the_self_test_covers_every_site_and_passes_with_a_warm_compile_cache(engine_results: Any) -> None:
    assert engine_results("guarded", "v1")["selftest"]["sites"] == ALL_SITES
    assert engine_results("guarded", "v1", "--again")["selftest"]["sites"] == ALL_SITES


@pytest.mark.parametrize("method", ["steer", "linear-act"])
def test_what_was_fitted_on_the_bundled_model_is_what_is_served(engine_results: Any, method: str) -> None:
    seen = engine_results("guarded", "v1", "--fitted")[method]
    for token, served in seen["served"].items():
        assert math.isclose(served, seen["fitted"][token], rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    assert any(abs(seen["fitted"][token] - seen["unedited"][token]) > 10 * TOLERANCE for token in seen["served"])
