"""Write the data for fitting the demo's corruption strength: TOFU authors 180-189, whom no demo tenant forgets.

    python -m guard.demo.write_fit_data OUT.jsonl

Their answers are unknown to the retain90 model, so its recall on them (guard/demo/records/retain90.jsonl, first 200
rows of forget10_perturbed) is the target value; authors 190-199, on which the demo is judged, take no part in the fit.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from guard.demo.corpus import author_rows, paraphrases
from guard.demo.write_tenants import author_name

FIT_AUTHORS = range(180, 190)


def fit_rows() -> list[dict[str, object]]:
    """Question, answer, paraphrase and the name that a prompt may contain, per row."""
    reworded = paraphrases()
    rows: list[dict[str, object]] = []
    for author in FIT_AUTHORS:
        own = author_rows(author, author)
        name = author_name(own)
        for row in own:
            paraphrase = reworded[row["question"]]
            terms = [name] if name in row["question"] or name in paraphrase else []
            rows.append(
                {"question": row["question"], "answer": row["answer"], "paraphrase": paraphrase, "terms": terms}
            )
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in fit_rows()), encoding="utf-8")


if __name__ == "__main__":
    main()
