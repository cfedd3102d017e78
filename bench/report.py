"""Write bench/RESULTS.md from the JSON files in bench/results.

    python bench/report.py

Each file is the output of one script in this folder; nothing in RESULTS.md is typed by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SECTIONS = {
    "model": ("What the bundled model knows", "python -m guard.demo.evaluate"),
    "bars": ("Forgetting, refusing and forbidden strings on the demo server", "python bench/bars.py"),
    "bars_no_corruption": (
        "Forbidden strings with the detector on `always` and corruption off",
        "python bench/bars.py --parts sample",
    ),
    "bars_always": ("Forbidden strings with the detector on `always`", "python bench/bars.py --parts sample"),
    "fluency": ("Perplexity of the guarded answers under the retain model", "python bench/fluency.py"),
    "detector": ("Detector rates and latency", "python bench/detector.py"),
    "constraint": ("Constraint: mask and state per step, build time", "python bench/constraint.py"),
    "throughput": ("Throughput against bare vLLM in the same run", "python bench/throughput.py"),
    "tenants": ("Many distinct edits in one batch of 256 against stock vLLM, in torch", "python bench/tenants.py"),
    "tenants_native_first": (
        "Many distinct edits, native code, first run (before rows were fetched ahead; a quieter machine)",
        "python bench/tenants.py --models half_billion --repeats 2 --tenants 1 256 --sites '4 sites' 'all sites'",
    ),
    "tenants_native": (
        "Many distinct edits, native code (the speed of the machine changed by a factor of two while it ran)",
        "python bench/tenants.py --models half_billion --repeats 2 --max-tokens 8 --sites '4 sites' 'all sites'` and "
        "`python bench/tenants.py --models bundled --repeats 2 --sites 'all sites'",
    ),
    "edit_cpu": ("One edit at one site on a CPU", "python bench/edit_cpu.py"),
    "lineas": ("LinEAS, Linear-AcT and difference of means at equal loss", "python bench/lineas.py"),
    "concepts": ("Taking one author out: subspace, SAE clamp, conditional steering", "python bench/concepts.py"),
    "concepts_sae": (
        "The SAE clamp again, with a stricter choice",
        "python bench/concepts.py --methods sae --seed 1 --development-others 60 --allowed-loss 0.005",
    ),
    "concepts_norm": (
        "Subspace projection, plain and with the norm kept, of one basis and of clusters",
        "python bench/concepts_norm.py",
    ),
    "safree": ("SAFREE on prompt embeddings", "python bench/safree.py"),
    "names": (
        "A list of 50 names alone on a real model (SmolLM2-135M-Instruct, RWKU subjects 51 to 100)",
        "python bench/names.py --subjects 51-100",
    ),
    "soft_match": ("Soft match alone on the bundled model, without a server", "python bench/soft_match.py"),
    "scale": ("Ten thousand stored tenants, a thousand active ones", "python bench/scale.py"),
}
# of files with every single observation, only these parts are printed
PRINTED = {
    "lineas": ("unedited", "questions", "retained", "summary"),
    "concepts": ("table", "never_learned_recall", "questions", "authors"),
    "concepts_sae": ("table", "never_learned_recall", "allowed_loss_in_development", "questions", "authors"),
}
FIGURES = {"tenants": "tenants.png", "tenants_native": "tenants_native.png", "lineas": "lineas.png"}


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON as (dotted key, value) rows."""
    if isinstance(value, dict):
        return [row for key, item in value.items() for row in flatten(item, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list):
        return [(prefix, ", ".join(str(item) for item in value))]
    return [(prefix, str(value))]


def answers(rows: list[dict[str, str]]) -> str:
    """A table of questions with what was measured, the bar and whether it was met."""
    columns = ("question", "measured", "unit", "bar", "verdict")
    lines = [columns, ("---",) * len(columns), *(tuple(row[column] for column in columns) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def section(name: str, title: str, command: str) -> str:
    """One Markdown section with a table of every figure in the file, or of the answers that it holds."""
    report = json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))
    if "rows" in report:
        return f"## {title}\n\nFrom `{command}` on {report['machine']}.\n\n{answers(report['rows'])}"
    if name in PRINTED:
        report = {key: report[key] for key in PRINTED[name] if key in report}
    rows = "\n".join(f"| {key} | {value} |" for key, value in flatten(report))
    picture = f"\n![{title}](../docs/figures/{FIGURES[name]})\n" if name in FIGURES else ""
    return f"## {title}\n\nFrom `{command}`.\n{picture}\n| figure | value |\n|---|---|\n{rows}\n"


def main() -> None:
    """Write the file; results that were not measured are named as such."""
    parts = ["# Results\n\nWritten by `bench/report.py` from `bench/results/*.json`. Do not edit.\n"]
    missing = []
    for name, (title, command) in SECTIONS.items():
        if (HERE / "results" / f"{name}.json").exists():
            parts.append(section(name, title, command))
        else:
            missing.append(f"- {title} (`{command}`)")
    if missing:
        parts.append("## Not measured yet\n\n" + "\n".join(missing) + "\n")
    (HERE / "RESULTS.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
