"""Cost of many distinct edits in one batch, as ratios to stock vLLM in the same run.

    python bench/tenants.py --out bench/results/tenants.json --figure docs/figures/tenants.png

One batch of 256 requests in which K tenants (0, 1, 8, 32, 64, 128, 256) each have an edit of their own: a clamp of 16
features at 1 site, 4 sites or all sites. The strength is zero, so that the guarded engine writes the same tokens for
every K (checked; whether stock vLLM in bfloat16 writes them too is reported).
The engines are asked in turn, so that drift of the machine falls on all; figures are medians of the ratios to the stock
run next to them. On a machine whose speed changes from second to second these need many repeats; `quiet_tpot_ratio`
therefore compares steps that were disturbed little: the lower quartile of the times between two tokens of a run, to
that of the stock run next to it, median over the repeats.
Models: the bundled one, and a 0.5B-parameter Llama shape with dummy weights. A model that is measured alone
(`--models`) replaces its part of the output file and leaves the other's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Self

from throughput import DEMO, half_billion_shape

HERE = Path(__file__).parent
TENANTS = (0, 1, 8, 32, 64, 128, 256)
SITES = {"1 site": "4.resid_post", "4 sites": "auto", "all sites": "all"}
# what the design asks for: (sites, tenants) -> smallest ratio of output tokens per second
BARS = {("4 sites", 1): 0.95, ("4 sites", 256): 0.90, ("all sites", 256): 0.80}


class Engine:
    """A running `tenants_engine.py`."""

    def __init__(self, model: Path, sites: str, batch: int, dummy: bool, log: Path) -> None:
        environment = os.environ | {
            "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_PLUGINS": "", "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_USE_V2_MODEL_RUNNER": "0",
        }
        weights = "dummy" if dummy else "real"
        command = [sys.executable, str(HERE / "tenants_engine.py"), str(model), sites, str(batch), weights]
        self._log = log.open("w")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment,
        )
        self.name = log
        self._answer()

    def ask(self, tenants: int, max_tokens: int) -> dict[str, Any]:
        """Run one batch."""
        if self._process.stdin is None:
            raise SystemExit("the engine has no input")
        self._process.stdin.write(json.dumps({"tenants": tenants, "max_tokens": max_tokens}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        while self._process.stdout is not None and (line := self._process.stdout.readline()):
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"the engine ended, see {self.name}:\n{self.name.read_text()[-3000:]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()


def measure(
    model: Path, dummy: bool, batch: int, max_tokens: int, repeats: int, tenant_counts: Sequence[int],
    site_sets: Sequence[str], results: dict[str, Any], keep: Callable[[], None],
) -> None:
    """The chosen site sets and tenant counts on one model, into `results`; `keep` is called after each site set."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bare = stack.enter_context(Engine(model, "bare", batch, dummy, folder / "bare.log"))
        bare.ask(0, max_tokens)
        for name in site_sets:
            with Engine(model, SITES[name], batch, dummy, folder / "guarded.log") as guarded:
                unedited = guarded.ask(0, max_tokens)["digest"]
                for tenants in tenant_counts:
                    results[f"{name}/{tenants}"] = compare(
                        bare, guarded, tenants, max_tokens, repeats, unedited
                    )
                    print(name, tenants, results[f"{name}/{tenants}"], flush=True)
            keep()


def compare(
    bare: Engine, guarded: Engine, tenants: int, max_tokens: int, repeats: int, unedited: str
) -> dict[str, Any]:
    """Ratios of one case, stock and guarded in turn."""
    speed, latency, quiet, pairs = [], [], [], []
    for _ in range(repeats):
        stock, ours = bare.ask(0, max_tokens), guarded.ask(tenants, max_tokens)
        if ours["digest"] != unedited:
            raise SystemExit(f"{tenants} tenants: an edit of strength 0 changed the tokens")
        speed.append(ours["tokens_per_s"] / stock["tokens_per_s"])
        latency.append(ours["tpot_s"] / stock["tpot_s"])
        quiet.append(lower_quartile(ours["steps_s"]) / lower_quartile(stock["steps_s"]))
        pairs.append((round(stock["tokens_per_s"], 1), round(ours["tokens_per_s"], 1)))
    return {
        "tokens_per_s_ratio": round(median(speed), 4), "tpot_ratio": round(median(latency), 4), "pairs": pairs,
        "quiet_tpot_ratio": round(median(quiet), 4),
        "edited_tokens": ours["edited_tokens"], "same_tokens_as_stock": stock["digest"] == unedited,
    }


def lower_quartile(values: Sequence[float]) -> float:
    """The value that a quarter of the others lie below."""
    return sorted(values)[len(values) // 4]


def draw(report: dict[str, Any], path: Path) -> None:
    """Ratio against the number of tenants, one panel for each model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = report["models"]
    figure, panels = pyplot.subplots(1, len(models), figsize=(5 * len(models), 3.6), sharey=True, squeeze=False)
    for panel, (model, results) in zip(panels[0], models.items(), strict=True):
        for name in SITES:
            counts = [tenants for tenants in TENANTS if f"{name}/{tenants}" in results]
            values = [results[f"{name}/{tenants}"]["tokens_per_s_ratio"] for tenants in counts]
            (line,) = panel.plot([max(tenants, 0.5) for tenants in counts], values, marker="o", label=name)
            undisturbed = [1.0 / results[f"{name}/{tenants}"]["quiet_tpot_ratio"] for tenants in counts]
            panel.plot([max(tenants, 0.5) for tenants in counts], undisturbed, linestyle="--", color=line.get_color())
        panel.set(xscale="log", xlabel="distinct tenants in a batch of 256", title=model, ylim=(0, 1.3))
        panel.set_xticks([max(tenants, 0.5) for tenants in TENANTS], [str(tenants) for tenants in TENANTS])
        panel.minorticks_off()
        panel.axhline(1.0, color="grey", linewidth=0.5)
    panels[0][0].set_ylabel("output tokens/s, ratio to stock vLLM\n(dashed: of undisturbed steps)")
    panels[0][0].legend(loc="lower left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=("bundled", "half_billion"), default=["bundled", "half_billion"])
    parser.add_argument("--tenants", nargs="+", type=int, choices=TENANTS, default=list(TENANTS))
    parser.add_argument("--sites", nargs="+", choices=list(SITES), default=list(SITES))
    parser.add_argument("--max-tokens", type=int, default=24, help="output tokens of a request")
    chosen = parser.parse_args()
    report: dict[str, Any] = {"models": {}, "runs": {}}
    if chosen.out.exists():
        earlier = json.loads(chosen.out.read_text(encoding="utf-8"))
        # a model without a run was measured by an earlier form of this script
        runs = earlier.get("runs", {})
        for part in report:
            report[part] = {name: value for name, value in earlier.get(part, {}).items() if name in runs}
    report |= {
        "batch": chosen.batch, "rank": 16, "machine": f"{platform.machine()}, {os.cpu_count()} cores, CPU build",
        "bars": {f"{sites}/{tenants}": bar for (sites, tenants), bar in BARS.items()},
    }

    def keep() -> None:
        chosen.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.models:
            dummy = name == "half_billion"
            model = half_billion_shape(Path(folder)) if dummy else DEMO / "model"
            report["models"][name] = {}
            report["runs"][name] = {"repeats": chosen.repeats, "output_tokens": chosen.max_tokens}
            measure(
                model, dummy, chosen.batch, chosen.max_tokens, chosen.repeats, chosen.tenants, chosen.sites,
                report["models"][name], keep,
            )
    if chosen.figure:
        draw(report, chosen.figure)


if __name__ == "__main__":
    main()
