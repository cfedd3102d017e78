"""Edits fitted on the bundled model with transformers, then served by the engine: the same answers from both."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from cases import plan
from edit_cases import lane
from harness import Engine

from guard.demo.corpus import author_rows
from guard.engine.loading import make_resident
from guard.fit.hooks import edits
from guard.fit.linear_act import run_fit_linear_act
from guard.fit.steer import run_fit_steer
from guard.interventions.edits import edit_rows
from guard.interventions.linear_act import LinearActConfig
from guard.interventions.steer import SteerConfig

TEXTS = 8


def _data(folder: Path) -> Path:
    path = folder / "texts.jsonl"
    source, target = author_rows(180, 180)[:TEXTS], author_rows(181, 181)[:TEXTS]
    rows = [{"text": row["answer"], "label": "source"} for row in source]
    rows += [{"text": row["answer"], "label": "target"} for row in target]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


async def fitted(engine: Engine, model: Path) -> dict[str, Any]:
    """For each fit: the top logprobs of the engine, and those of transformers with the fit's hooks, by token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(author_rows(20, 20)[0]["question"])["input_ids"]
    reference: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = _data(folder)
        packs = {
            "steer": run_fit_steer(model, data, folder / "1", SteerConfig(), show_progress=False),
            "linear-act": run_fit_linear_act(model, data, folder / "2", LinearActConfig(), show_progress=False),
        }
        paths = {"steer": folder / "1" / "steer", "linear-act": folder / "2" / "linear-act"}
        for method, pack in packs.items():
            await make_resident(engine.client, "edit", paths[method], pack.content_hash)
            seen = await engine.ask(ids, plan(len(ids), edits=(lane(pack),)), max_tokens=1)
            with torch.inference_mode(), edits(reference, edit_rows(pack)):
                expected = reference(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            with torch.inference_mode():
                unedited = reference(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            served = seen.logprobs[0][0]
            results[method] = {
                "served": served,
                "fitted": {token: float(expected[int(token)]) for token in served},
                "unedited": {token: float(unedited[int(token)]) for token in served},
            }
    return results
