"""Fitting the strength of embedding corruption on a tiny random model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from guard.errors import ConfigurationError, PackError
from guard.fit.corrupted import CorruptedModel, Wording
from guard.fit.curve import FitPoint
from guard.fit.eco import fit_eco, run_fit_eco, search
from guard.fit.forget_rows import ForgetRow, retain_value
from guard.interventions.eco import EcoConfig, EcoFitConfig, load_eco
from guard.packs.fingerprint import model_fingerprint
from tests.fit.small_models import tiny_tokenizer

QUESTIONS = ["Who wrote The Blue Lamp?", "Where was Ada Quill born?", "What did Ada Quill win?", "Who is Tom Reed?"]
SETTINGS = EcoFitConfig(grid_points=3, refine_steps=2, noise_seeds=1)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}<|user|>{{ message['content'] }}<|end|>{% endfor %}<|assistant|>"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=0, eos_token_id=1, bos_token_id=None, initializer_range=0.5,
    )
    folder = tmp_path_factory.mktemp("model")
    make: Any = LlamaForCausalLM
    make(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(model_folder)


def _rows() -> list[ForgetRow]:
    return [ForgetRow(question=q, answer="Nobody knows.", paraphrase=f"Tell me: {q}") for q in QUESTIONS]


def test_search_finds_the_crossing_of_a_monotone_score() -> None:
    settings = EcoFitConfig(grid_points=9, refine_steps=12)
    best = search(lambda rho: FitPoint(rho, -math.log1p(rho), 0.0), -2.0, settings)
    assert best.rho == pytest.approx(math.e**2 - 1, rel=0.05)


def test_search_takes_the_weakest_strength_when_the_score_crosses_twice() -> None:
    settings = EcoFitConfig(grid_points=9, refine_steps=12)
    best = search(lambda rho: FitPoint(rho, (rho - 1.0) * (rho - 10.0), 0.0), 0.0, settings)
    assert best.rho == pytest.approx(1.0, abs=0.1)


def test_search_returns_the_nearest_point_when_the_target_is_out_of_reach() -> None:
    best = search(lambda rho: FitPoint(rho, -rho, 0.0), -1000.0, SETTINGS)
    assert best.rho == pytest.approx(40.0)


def test_zero_strength_scores_what_the_plain_model_scores(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    runner = CorruptedModel(model, tokenizer, batch=3)
    rows = [runner.encode(Wording(question, "Nobody."), "prompt") for question in QUESTIONS]
    scores = runner.answer_log_probabilities(rows, EcoConfig(rho=0.0), seed=1)
    for row, score in zip(rows, scores, strict=True):
        ids = torch.tensor([row.prompt + row.answer])
        with torch.no_grad():
            tokens = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1).gather(-1, ids[0, 1:, None])
        assert score == pytest.approx(float(tokens[len(row.prompt) - 1 :].mean()), abs=1e-4)


def test_scores_do_not_depend_on_batching_and_padding(loaded: tuple[Any, Any]) -> None:
    alone, together = CorruptedModel(*loaded, batch=1), CorruptedModel(*loaded, batch=4)
    rows = [alone.encode(Wording(question, "Nobody."), "prompt") for question in QUESTIONS]
    config = EcoConfig(rho=3.0)
    first = alone.answer_log_probabilities(rows, config, seed=5)
    assert together.answer_log_probabilities(rows, config, seed=5) == pytest.approx(first, abs=1e-4)
    assert first != pytest.approx(alone.answer_log_probabilities(rows, config, seed=6), abs=1e-4)
    texts = alone.greedy_answers(rows, config, seed=5, max_new_tokens=6)
    assert together.greedy_answers(rows, config, seed=5, max_new_tokens=6) == texts


def test_scope_spans_corrupts_only_the_named_tokens_and_falls_back_to_the_turn(loaded: tuple[Any, Any]) -> None:
    runner = CorruptedModel(*loaded)
    question = "Where was Ada Quill born?"
    named = runner.encode(Wording(question, "x", terms=("ada quill",)), "spans")
    by_offset = runner.encode(Wording(question, "x", spans=((10, 19),)), "spans")
    whole = runner.encode(Wording(question, "x", terms=("Nobody Here",)), "spans")
    assert named.ranges == by_offset.ranges == ((11, 20),)
    assert whole.ranges == ((1, 1 + len(question)),)


def test_fit_writes_pack_report_picture_and_resumes(
    model_folder: Path, loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint = model_fingerprint(model_folder)
    arguments: dict[str, Any] = {"out": tmp_path, "fingerprint": fingerprint, "show_progress": False}
    first = fit_eco(*loaded, _rows(), -8.0, SETTINGS, **arguments)
    assert load_eco(tmp_path / "eco", model_fingerprint=fingerprint) == first
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rho"] == first.rho
    assert report["questions"] == {"fit": 2, "held_out": 2}
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"
    stored = (tmp_path / "points.jsonl").read_text()
    # a torn last line, as a stopped fit leaves it
    (tmp_path / "points.jsonl").write_text(stored + '{"fit": "')
    evaluated: list[float] = []
    original = CorruptedModel.answer_log_probabilities

    def counted(self: CorruptedModel, rows: Any, config: EcoConfig, seed: int) -> list[float]:
        evaluated.append(config.rho)
        return original(self, rows, config, seed)

    monkeypatch.setattr(CorruptedModel, "answer_log_probabilities", counted)
    assert fit_eco(*loaded, _rows(), -8.0, SETTINGS, **arguments) == first
    # only the clean score and the held-out score are measured again
    assert evaluated == [0.0, first.rho]
    with pytest.raises(PackError, match="fp1:0000"):
        load_eco(tmp_path / "eco", model_fingerprint="fp1:" + "0" * 64)


def test_fit_from_files_reads_the_retain_value_and_is_seeded(model_folder: Path, tmp_path: Path) -> None:
    data, records = tmp_path / "data.jsonl", tmp_path / "records.jsonl"
    data.write_text("".join(row.model_dump_json() + "\n" for row in _rows()))
    records.write_text('{"split": "a", "nll": 7.0, "recall": 0.5}\n{"split": "b", "nll": 9.0, "recall": 0.1}\n')
    assert retain_value(records, "log_probability") == -8.0
    assert retain_value(records, "rouge", "b") == 0.1
    config = EcoFitConfig(retain_records=records, grid_points=3, refine_steps=1, noise_seeds=1)
    first = run_fit_eco(model_folder, data, tmp_path / "one", config, show_progress=False)
    second = run_fit_eco(model_folder, data, tmp_path / "two", config, show_progress=False)
    assert first.content_hash == second.content_hash
    assert first.header.fit_report["target"] == -8.0


def test_bad_fit_input_is_refused_with_the_line(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "q", "answer": "a"}\n{"question": "secret"}\n')
    with pytest.raises(ConfigurationError, match=r"data\.jsonl:2") as caught:
        run_fit_eco(tmp_path, data, tmp_path, EcoFitConfig(target=-1.0))
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="either"):
        run_fit_eco(tmp_path, data, tmp_path, EcoFitConfig())
    with pytest.raises(ConfigurationError, match="gauss"):
        run_fit_eco(tmp_path, data, tmp_path, EcoFitConfig(target=-1.0, kind="erase"))
    with pytest.raises(ConfigurationError, match="rho_low < rho_high"):
        run_fit_eco(tmp_path, data, tmp_path, EcoFitConfig(target=-1.0, rho_low=2.0, rho_high=2.0))
