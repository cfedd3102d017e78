"""The shipped benign prompts: the negatives of every detector, and its calibration set where a tenant gives none.

Sources, all under Apache-2.0: MT-bench and Vicuna-bench questions (lm-sys/FastChat), seed tasks of self-instruct.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

DATA = Path(__file__).parent / "data" / "benign.jsonl"


@lru_cache(maxsize=1)
def shipped_benign() -> tuple[str, ...]:
    """All shipped benign prompts, in file order."""
    lines = DATA.read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line)["text"] for line in lines if line.strip())
