"""Output tokens per second through the guard, as ratios to the same vLLM without it, in one run.

    python bench/throughput.py --out bench/results/throughput.json

Both servers are started fresh with the same flags and asked alternately, so that drift of the machine falls on
both; the figures are medians over the repeats. Models: the bundled one, and a 0.5B-parameter Llama shape with
dummy weights. Loads: `open` (a tenant with an empty list) and `flagged` (every request is corrupted and constrained).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from transformers import LlamaConfig

from guard.demo.corpus import author_rows

DEMO = Path(__file__).parents[1] / "guard/demo"
FLAGS = ["--max-model-len", "1024", "--max-num-seqs", "32", "--no-enable-prefix-caching"]
READY_S = 400


def half_billion_shape(folder: Path) -> Path:
    """A model folder in the shape of a 0.5B Llama (hidden 896, 24 layers), without weights."""
    config = LlamaConfig(
        vocab_size=4096, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=False, eos_token_id=1, pad_token_id=0,
        bos_token_id=None, architectures=["LlamaForCausalLM"], dtype="bfloat16",
    )  # fmt: skip
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        if (DEMO / "model" / name).exists():
            shutil.copy(DEMO / "model" / name, folder / name)
    return folder


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], port: int, health: str, log: Path) -> Iterator[str]:
    """Run a server until the block ends; yields its URL once `health` answers 200."""
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("w") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.time() + READY_S
        while True:
            if process.poll() is not None or time.time() > deadline:
                raise SystemExit(f"server did not start, see {log}:\n{log.read_text()[-2000:]}")
            try:
                if httpx.get(url + health, timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(1)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


async def load(url: str, key: str, model: str, questions: list[str], max_tokens: int) -> float:
    """Ask all questions at once (greedy chat); returns output tokens per second."""
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=900) as client:

        async def ask(question: str) -> int:
            body = {"model": model, "messages": [{"role": "user", "content": question}]}
            body |= {"temperature": 0, "max_tokens": max_tokens}
            response = await client.post("/v1/chat/completions", json=body)
            response.raise_for_status()
            return int(response.json()["usage"]["completion_tokens"])

        started = time.perf_counter()
        counts = await asyncio.gather(*(ask(question) for question in questions))
        return sum(counts) / (time.perf_counter() - started)


def tenant_keys(home: Path) -> dict[str, str]:
    """Publish the demo's tenants into `home` and create one key each."""
    guard = [sys.executable, "-m", "guard.service.cli.main"]
    environment = os.environ | {"GUARD_HOME": str(home)}
    subprocess.run([*guard, "apply", str(DEMO / "tenants.yaml")], check=True, env=environment, capture_output=True)
    keys = {}
    for name in ("open", "acme"):
        made = subprocess.run(
            [*guard, "key", "create", name], check=True, env=environment, capture_output=True, text=True
        )
        found = re.search(r"gk_\S+", made.stdout)
        if not found:
            raise SystemExit("`guard key create` printed no key")
        keys[name] = found.group()
    return keys


def measure(model: Path, flags: list[str], repeats: int, concurrency: int, max_tokens: int) -> dict[str, Any]:
    """Start both servers on `model` and alternate between them."""
    questions = [row["question"] for row in author_rows(20, 29)][:concurrency]
    forgotten = [row["question"] for row in author_rows(190, 199)][:concurrency]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder) / "home"
        home.mkdir()
        keys = tenant_keys(home)
        os.environ["GUARD_HOME"] = str(home)
        ports = free_port(), free_port()
        common = ["--served-model-name", "bench", "--host", "127.0.0.1", *FLAGS, *flags]
        # not `vllm serve`: its command line looks for a distribution called vllm, the CPU build is called vllm-cpu
        bare_command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *common]
        bare = stack.enter_context(
            running([*bare_command, "--port", str(ports[0])], ports[0], "/health", Path(folder) / "bare.log")
        )
        guard_command = [sys.executable, "-m", "guard.service.cli.main", "serve", str(model), *common]
        guarded = stack.enter_context(
            running([*guard_command, "--port", str(ports[1])], ports[1], "/readyz", Path(folder) / "guard.log")
        )
        loads = {
            "bare": (bare, "none", questions),
            "open": (guarded, keys["open"], questions),
            "bare_flagged": (bare, "none", forgotten),
            "flagged": (guarded, keys["acme"], forgotten),
        }
        speeds: dict[str, list[float]] = {name: [] for name in loads}
        for repeat in range(repeats + 1):
            for name, (url, key, asked) in loads.items():
                speed = asyncio.run(load(url, key, "bench", asked, max_tokens))
                if repeat:  # the first round warms both up
                    speeds[name].append(speed)
    ratio = {
        "open": [o / b for o, b in zip(speeds["open"], speeds["bare"], strict=True)],
        "flagged": [f / b for f, b in zip(speeds["flagged"], speeds["bare_flagged"], strict=True)],
    }
    return {
        "tokens_per_s": {name: round(median(values), 1) for name, values in speeds.items()},
        "ratio": {name: round(median(values), 4) for name, values in ratio.items()},
        "ratio_all": {name: [round(v, 4) for v in values] for name, values in ratio.items()},
        "concurrency": concurrency,
        "max_tokens": max_tokens,
        "repeats": repeats,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--models", nargs="*", default=["bundled", "half_billion"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    if "bundled" in arguments.models:
        report["bundled"] = measure(DEMO / "model", [], arguments.repeats, arguments.concurrency, 160)
    if "half_billion" in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            shape = half_billion_shape(Path(folder))
            flags = ["--load-format", "dummy"]
            report["half_billion"] = measure(shape, flags, arguments.repeats, max(1, arguments.concurrency // 2), 32)
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
