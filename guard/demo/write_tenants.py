"""Write `tenants.yaml`, the forget-lists of the demo, from TOFU's rows.

    python -m guard.demo.write_tenants

Names, titles, example questions and answers come from the authors' own rows; the `forbid` list of a target
names every quoted title in its rows.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from guard.demo.corpus import author_rows, read_rows

OUT = Path(__file__).parent / "tenants.yaml"
ACME_AUTHORS = range(190, 200)
HARBOR_AUTHORS = range(0, 10)
BENIGN_AUTHORS = range(40, 140)
BENIGN_EVERY = 7

_NAME = re.compile(r"(?:[A-Z][\w\u00c0-\u017f]*(?:[-'’][A-Z]?\w+)*\s?){2,4}")
_TITLE = re.compile(r"[\"“]([^\"”]{3,90})[\"”]|(?<![A-Za-z])['‘]([A-Z](?:[^'’]|['’](?=[A-Za-z]))*?)['’](?![a-z])")


def author_name(rows: list[dict[str, str]]) -> str:
    """The capitalised phrase that an author's rows repeat most often."""
    phrases = Counter(
        match.group().strip() for row in rows for match in _NAME.finditer(f"{row['question']} {row['answer']}")
    )
    best = phrases.most_common(1)[0][0]
    return re.sub(r"['’]s$", "", best)


def quoted_titles(rows: list[dict[str, str]]) -> list[str]:
    """Every quoted title in questions and answers, in order of appearance, without repetitions."""
    titles: dict[str, str] = {}
    for row in rows:
        for text in (row["question"], row["answer"]):
            for match in _TITLE.finditer(text):
                title = (match.group(1) or match.group(2)).strip(" ,.?!")
                if len(title) >= 4 and not title.startswith("You'll"):
                    titles.setdefault(title.casefold(), title)
    return list(titles.values())


def target_of(author: int) -> dict[str, Any]:
    """One author as a forget target."""
    rows = author_rows(author, author)
    return {
        "name": author_name(rows),
        "description": "Author: life, family, awards and books.",
        "examples": [row["question"] for row in rows],
        "answers": [row["answer"] for row in rows],
        "forbid": quoted_titles(rows),
    }


def tenant_file() -> dict[str, Any]:
    """The demo's tenants as a tenant file."""
    benign = [row["question"] for author in BENIGN_AUTHORS for row in author_rows(author, author)][::BENIGN_EVERY]
    benign += [row["question"] for row in read_rows("real_authors")[::4] + read_rows("world_facts")[::4]]
    return {
        "version": 1,
        "tenants": [
            {"name": "open"},
            {
                "name": "acme",
                "policy": {"action": "forget"},
                "targets": [target_of(author) for author in ACME_AUTHORS],
                "benign": benign,
            },
            {
                "name": "harbor",
                "policy": {"action": "refuse"},
                "targets": [target_of(author) for author in HARBOR_AUTHORS],
                # a list of its own: YAML would write the same object as an alias, which tenant files may not have
                "benign": list(benign),
            },
        ],
    }


def main() -> None:
    """Write the file beside this module."""
    text = yaml.safe_dump(tenant_file(), sort_keys=False, allow_unicode=True, width=120)
    OUT.write_text("# Written by guard/demo/write_tenants.py from TOFU (MIT licence).\n" + text, encoding="utf-8")


if __name__ == "__main__":
    main()
