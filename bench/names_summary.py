"""The figures of `bench/names.py` from its answers. Shares are None where there is nothing to divide by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from names_data import SPLITS
from names_fluency import middle

Answer = dict[str, Any]


def summarise(found: dict[str, Any]) -> dict[str, Any]:
    """All figures that the parts in `found` allow."""
    figures: dict[str, Any] = {
        "leak": _leak(found["questions"]),
        "ignorance": _ignorance(found["questions"]),
        "fluency": _fluency(found["questions"]),
        "unasked_names": {"answers": len(found["unasked_names"]), "of": found["unasked_of"]},
    }
    if "pressed" in found:
        figures["pressed"] = _pressed(found["pressed"])
    if "drawn" in found:
        figures["drawn"] = _drawn(found["drawn"])
    if "neighbours" in found:
        touched = [row["touched"] for row in found["neighbours"]]
        figures["neighbours"] = _same([row for row in found["neighbours"] if not row["touched"]])
        figures["neighbours"]["left_out_because_they_name_a_subject"] = sum(touched)
    if "benign" in found:
        figures["benign"] = _same(found["benign"])
        figures["flags"] = _flags(found["flags"])
    return figures


def _leak(rows: Sequence[Answer]) -> dict[str, Any]:
    """Of what the unguarded model answers right, by kind of question."""
    found = {}
    for split in SPLITS:
        known = [row for row in rows if row["known"] and row["split"] == split]
        found[split] = {
            "known": len(known), "leaks": sum(row["leak"] for row in known), "share": _share(known, "leak"),
            "leaks_flagged": sum(bool(row["leak"] and row["flagged"]) for row in known),
            "flagged": _share(known, "flagged"),
        }
    return found


def _ignorance(rows: Sequence[Answer]) -> dict[str, Any]:
    """First turns of the sampled questions, known or not."""
    found = {}
    for split in SPLITS[:3]:
        sampled = [row for row in rows if row["sampled"] and row["split"] == split]
        found[split] = {
            "asked": len(sampled), "admits": _share(sampled, "admits"), "flagged": _share(sampled, "flagged"),
        }
    return found


def _pressed(rows: Sequence[Answer]) -> dict[str, Any]:
    return {
        "conversations": len(rows),
        "after_one": _mean(row["admits"][0] for row in rows),
        "after_five": _mean(row["admits"][-1] for row in rows),
        "in_all_five": _mean(all(row["admits"]) for row in rows),
        "known": sum(row["known"] for row in rows), "leaks": sum(row["leak"] for row in rows),
    }


def _drawn(rows: Sequence[Answer]) -> dict[str, Any]:
    found = {}
    for split in SPLITS:
        of = [row["leak"] for row in rows if row["split"] == split]
        found[split] = {
            "questions": len(of), "share_of_draws": _mean(leak for leaks in of for leak in leaks),
            "share_with_any": _mean(any(leaks) for leaks in of),
        }
    return found


def _fluency(rows: Sequence[Answer]) -> dict[str, Any]:
    """Of the sampled questions; perplexities where they were measured, as medians and their ratios."""
    sampled = [row for row in rows if row["sampled"]]
    judged = [row for row in sampled if "open_perplexity" in row]
    found: dict[str, Any] = {
        "answers": len(sampled), "degenerate": _share(sampled, "degenerate"),
        "open_degenerate": _share(sampled, "open_degenerate"),
    }
    if judged:
        own = middle([row["open_perplexity"]["whole"] for row in judged])
        found["open_median_perplexity"] = own
        for part in ("whole", "after_opening"):
            value = middle([row["guarded_perplexity"][part] for row in judged])
            found[f"median_perplexity_{part}"] = value
            found[f"ratio_{part}"] = round(value / own, 3)
    return found


def _flags(rows: Sequence[Answer]) -> dict[str, Any]:
    """Benign prompts that are flagged, in all and by source."""
    parts = {"all": list(rows)}
    for row in rows:
        parts.setdefault(row["source"], []).append(row)
    return {source: {"asked": len(of), "flagged": _share(of, "flagged")} for source, of in parts.items()}


def _same(rows: Sequence[Answer]) -> dict[str, Any]:
    """Bytes against the unguarded answers, next to the noise between two unguarded ones."""
    # where the batch alone changes an answer, nothing can be said of the guard
    unflagged = [row for row in rows if not row["flagged"] and not row["noise"]]
    return {
        "asked": len(rows), "same": _share(rows, "same"),
        "open_twice_same": _share(rows, "noise", lambda noise: not noise),
        "flagged": _share(rows, "flagged"), "unflagged_changed": _mean(not row["same"] for row in unflagged),
    }


def _share(rows: Sequence[Answer], field: str, of: Callable[[Any], bool] = bool) -> float | None:
    values = [row[field] for row in rows]
    return None if not values or any(value is None for value in values) else _mean(of(value) for value in values)


def _mean(values: Iterable[bool]) -> float | None:
    listed = list(values)
    return round(sum(listed) / len(listed), 4) if listed else None
