"""Fit the strength of embedding corruption: the smallest |M(rho) - v_r|, v_r being the score of a retain model.

M(rho) is the score of the forget answers after corrupted prompts: by default the mean log-probability per answer token
(smooth), on request ROUGE-L recall of greedy answers. Source: ECO, arXiv 2406.07933, section on the zeroth-order
search; here the distance to v_r is minimised instead of M itself, all strengths share their noise (common random
numbers), paraphrased wordings are scored where there are any, and half of the questions are held out of the search.

Search: a log-spaced grid, then bisection in log rho between the neighbours where M crosses v_r, or around the best
grid point when it never does. Every evaluated point is appended to points.jsonl, so that a stopped fit resumes.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from guard.errors import ConfigurationError
from guard.fit.corrupted import CorruptedModel, EncodedWording, Wording
from guard.fit.curve import FitPoint, draw_curve
from guard.fit.forget_rows import ForgetRow, read_forget_rows, retain_value, rouge_recall
from guard.fit.loaded_model import load_model, progress
from guard.interventions.eco import EcoConfig, EcoFitConfig, FitCurve, FittedCorruption, save_eco
from guard.interventions.fit_config import ModelDtype
from guard.packs.format import Pack, load_pack


def fit_eco(
    model: Any, tokenizer: Any, rows: Sequence[ForgetRow], target: float, settings: EcoFitConfig, *, out: Path,
    fingerprint: str, licence: str = "unknown", show_progress: bool = True,
) -> FittedCorruption:
    """Fit to the score `target`, write points.jsonl, report.json, report.png and the pack `eco/` into `out`.

    Raises GuardError.
    """
    _check(target, settings)
    out.mkdir(parents=True, exist_ok=True)
    runner = CorruptedModel(model, tokenizer)
    fit_rows, held_out = _split(rows, settings)
    data_digest = _digest([row.model_dump(mode="json") for row in rows])
    recorded = {**settings.model_dump(mode="json"), "target": target}
    identity = _digest([fingerprint, data_digest, recorded])
    measure = _Measure(runner, settings, fit_rows, held_out)
    with progress("fitting rho", settings.grid_points + settings.refine_steps, show=show_progress) as advance:
        points = _Points(out / "points.jsonl", identity, measure.point, advance)
        best = search(points.at, target, settings)
    evaluated = sorted(points.seen.values(), key=lambda point: point.rho)
    clean, held = measure.clean(), measure.held_out(best.rho)
    report: dict[str, Any] = {
        "target": target, "metric": settings.metric, "rho": best.rho, "score": best.score,
        "distance": abs(best.score - target), "clean_score": clean, "held_out": held,
        "crossed": min(p.score for p in evaluated) <= target <= max(p.score for p in evaluated),
        "questions": {"fit": len(fit_rows), "held_out": len(held_out)}, "settings": recorded,
        "points": [asdict(point) for point in evaluated], "model_fingerprint": fingerprint,
    }
    (out / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draw_curve(out / "report.png", evaluated, target, best, clean, settings.metric)
    config = EcoConfig(kind=settings.kind, rho=best.rho, dims=settings.dims, scope=settings.scope)
    kept = ("target", "metric", "score", "clean_score", "held_out", "crossed", "questions")
    brief = {key: report[key] for key in kept}
    curve = FitCurve(tuple(p.rho for p in evaluated), tuple(p.score for p in evaluated))
    return save_eco(
        out / "eco", config, model_fingerprint=fingerprint, fit_data_digest=data_digest, fit_report=brief, curve=curve,
        licence=licence,
    )


def run_fit_eco(
    model: Path, data: Path, out: Path, config: EcoFitConfig, *, device: str = "cpu", dtype: ModelDtype = "float32",
    licence: str = "unknown", show_progress: bool = True,
) -> Pack:
    """Fit from files: model folder, JSON Lines of question/answer/paraphrase/spans/terms, and v_r.

    v_r is `config.target`, or the mean over `config.retain_records`. Raises ConfigurationError or PackError.
    """
    target = config.target
    if (target is None) == (config.retain_records is None):
        raise ConfigurationError("give either a target value or the records of a retain model")
    if target is None:
        target = retain_value(config.retain_records or Path(), config.metric, config.records_split)
    # loading the model takes seconds; bad arguments fail before
    _check(target, config)
    rows = read_forget_rows(data)
    loaded = load_model(model, device=device, dtype=dtype)
    fit_eco(
        loaded.model, loaded.tokenizer, rows, target, config, out=out, fingerprint=loaded.fingerprint, licence=licence,
        show_progress=show_progress,
    )
    return load_pack(out / "eco", model_fingerprint=loaded.fingerprint)


def search(score_at: Callable[[float], FitPoint], target: float, settings: EcoFitConfig) -> FitPoint:
    """The evaluated point nearest to `target`: log-spaced grid, then `refine_steps` bisections in log rho."""
    step = (math.log(settings.rho_high) - math.log(settings.rho_low)) / (settings.grid_points - 1)
    grid = [score_at(settings.rho_low * math.exp(step * index)) for index in range(settings.grid_points)]
    seen = list(grid)

    def distance(point: FitPoint) -> float:
        return abs(point.score - target)

    # the first crossing: the weakest corruption that reaches the target
    crossing = next((i for i in range(len(grid) - 1) if grid[i].score >= target >= grid[i + 1].score), None)
    best_index = min(range(len(grid)), key=lambda i: (distance(grid[i]), grid[i].rho))
    if crossing is None:
        low, high = grid[max(0, best_index - 1)], grid[min(len(grid) - 1, best_index + 1)]
    else:
        low, high = grid[crossing], grid[crossing + 1]
    for _ in range(settings.refine_steps):
        if min(map(distance, seen)) <= settings.tolerance:
            break
        middle = score_at(math.sqrt(low.rho * high.rho))
        seen.append(middle)
        if crossing is not None:
            low, high = (middle, high) if middle.score >= target else (low, middle)
        else:
            low, high = (low, middle) if distance(low) <= distance(high) else (middle, high)
    return min(seen, key=lambda point: (distance(point), point.rho))


class _Points:
    """Evaluated points, kept in a JSON Lines file so that a stopped fit resumes."""

    def __init__(
        self, path: Path, identity: str, evaluate: Callable[[float], FitPoint], advance: Callable[[], object],
    ) -> None:
        self._path, self._identity, self._evaluate, self._advance = path, identity, evaluate, advance
        self._stored: dict[float, FitPoint] = {}
        # only the points of this call enter the report
        self.seen: dict[float, FitPoint] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                record = json.loads(line)
                if record.pop("fit") == identity:
                    point = FitPoint(**record)
                    self._stored[point.rho] = point
            except (ValueError, TypeError, KeyError, AttributeError):
                # a line cut short by a stopped fit is evaluated again
                continue

    def at(self, rho: float) -> FitPoint:
        rho = float(f"{rho:.6g}")
        if rho not in self._stored:
            self._stored[rho] = self._evaluate(rho)
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"fit": self._identity, **asdict(self._stored[rho])}) + "\n")
        self.seen[rho] = self._stored[rho]
        self._advance()
        return self._stored[rho]


class _Measure:
    """M(rho) on the fit rows, and both metrics on the held-out rows."""

    def __init__(
        self, runner: CorruptedModel, settings: EcoFitConfig, fit_rows: Sequence[ForgetRow],
        held_out: Sequence[ForgetRow],
    ) -> None:
        self._runner, self._settings = runner, settings
        self._fit = [runner.encode(_wording(row), settings.scope) for row in fit_rows]
        self._held = [runner.encode(_wording(row), settings.scope) for row in held_out]

    def point(self, rho: float) -> FitPoint:
        scores = [fmean(values) for values in self._per_seed(self._fit, rho, self._settings.metric)]
        return FitPoint(rho=rho, score=round(fmean(scores), 6), spread=round(max(scores) - min(scores), 6))

    def clean(self) -> float:
        return self.point(0.0).score

    def held_out(self, rho: float) -> dict[str, float]:
        return {
            name: round(fmean(fmean(values) for values in self._per_seed(self._held, rho, name)), 6)
            for name in ("log_probability", "rouge")
        }

    def _per_seed(self, rows: Sequence[EncodedWording], rho: float, metric: str) -> list[list[float]]:
        settings = self._settings
        config = EcoConfig(kind=settings.kind, rho=rho, dims=settings.dims, scope=settings.scope)
        # common random numbers: the seeds do not depend on rho
        seeds = [settings.seed + index for index in range(settings.noise_seeds)]
        if metric == "log_probability":
            return [self._runner.answer_log_probabilities(rows, config, seed) for seed in seeds]
        answers = [self._runner.greedy_answers(rows, config, seed) for seed in seeds]
        return [[rouge_recall(row.text, text) for row, text in zip(rows, texts, strict=True)] for texts in answers]


def _wording(row: ForgetRow) -> Wording:
    if row.paraphrase is None:
        return Wording(row.question, row.answer, row.terms, row.spans)
    # character ranges belong to the original wording
    terms = row.terms + tuple(row.question[start:end] for start, end in row.spans)
    return Wording(row.paraphrase, row.answer, terms)


def _split(rows: Sequence[ForgetRow], settings: EcoFitConfig) -> tuple[list[ForgetRow], list[ForgetRow]]:
    order = list(rows)
    random.Random(settings.seed).shuffle(order)  # noqa: S311 - a reproducible split, not a secret
    order = order[: settings.max_questions]
    held = min(len(order) - 1, max(1, round(len(order) * settings.held_out_share)))
    return order[held:], order[:held]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _check(target: float, settings: EcoFitConfig) -> None:
    if not math.isfinite(target):
        raise ConfigurationError(f"the target value must be finite, got {target}")
    if settings.kind != "gauss":
        raise ConfigurationError(f"only gauss has a strength to fit; {settings.kind} is used without a fit")
    if not settings.rho_low < settings.rho_high:
        raise ConfigurationError("the grid needs rho_low < rho_high")
