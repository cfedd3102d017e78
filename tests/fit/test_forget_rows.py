"""The data of a corruption's fit: what a line may hold, and how a wrong one is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guard.errors import ConfigurationError
from guard.fit.forget_rows import ForgetRow, read_forget_rows, retain_value
from guard.interventions.eco import Metric

GOOD = '{"question": "Who is Ada?", "answer": "A writer."}\n'
TEXT = st.text(st.characters(codec="utf-8")) | st.sampled_from(["a\u2028b", "a\u2029", "\x85"])


def written(folder: Path, text: str) -> Path:
    path = folder / "data.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("names", "read"), [
    ({}, None), ({"paraphrase": "a"}, "a"), ({"paraphrased_question": "b"}, "b"),
    ({"paraphrase": "a", "paraphrased_question": "b"}, "a"), ({"paraphrase": None, "paraphrased_question": "b"}, None),
])
def test_a_paraphrase_has_either_of_two_names(names: dict[str, Any], read: str | None, tmp_path: Path) -> None:
    line = json.dumps({"question": "Who?", "answer": "Ada", "spans": [[0, 3]], "terms": ["Ada"], "more": 1, **names})
    found = read_forget_rows(written(tmp_path, f"{line}\n\n  \n{GOOD}"))
    assert found[0] == ForgetRow(question="Who?", answer="Ada", paraphrase=read, spans=((0, 3),), terms=("Ada",))
    assert len(found) == 2


@pytest.mark.parametrize("line", [
    "{", "[]", "3", '{"question": "secret"}', '{"question": "secret", "answer": null}',
    '{"question": "secret", "answer": "a", "spans": [[0]]}', '{"question": "secret", "answer": "\\ud800"}',
])
def test_a_wrong_line_is_named_and_not_shown(line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_forget_rows(written(tmp_path, f"{GOOD}\n{line}\n"))
    assert str(caught.value) == "data.jsonl:3: needs `question` and `answer` (strings)"


def test_one_question_and_a_file_that_is_not_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least 2 questions, got 1"):
        read_forget_rows(written(tmp_path, GOOD))
    (tmp_path / "data.jsonl").write_bytes(b"\xff")
    for name in ("data.jsonl", "none.jsonl"):
        with pytest.raises(ConfigurationError, match=f"{name}: cannot be read"):
            read_forget_rows(tmp_path / name)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=TEXT, answer=TEXT, escaped=st.booleans())
def test_any_text_is_read_as_it_was_written(question: str, answer: str, escaped: bool, tmp_path: Path) -> None:
    row = {"question": question, "answer": answer}
    found = read_forget_rows(written(tmp_path, json.dumps(row, ensure_ascii=escaped) + "\n" + GOOD))
    assert (found[0].question, found[0].answer) == (question, answer)


@pytest.mark.parametrize(("metric", "split", "value"), [
    ("log_probability", None, -2.0), ("log_probability", "a", -1.0), ("rouge", None, 0.25), ("rouge", "b", 0.25),
])
def test_the_retain_value_is_the_mean_over_the_records_of_a_split(
    metric: Metric, split: str | None, value: float, tmp_path: Path
) -> None:
    records = [{"nll": 1.0, "split": "a"}, {"nll": 3.0, "recall": 0.25, "split": "b", "output": "x"}]
    path = written(tmp_path, "\n".join(map(json.dumps, records)))
    assert retain_value(path, metric, split) == value


@pytest.mark.parametrize(("text", "reason"), [
    ('{"nll": 1.0}\n{"nll": "low"}', r"data\.jsonl:2: needs numbers"), ('{"nll": 1.0}\n{', r"data\.jsonl:2: needs"),
    ('{"recall": 1.0}', "no record has the field nll"), ("", "no record has the field nll"),
])
def test_records_without_a_score_are_refused(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        retain_value(written(tmp_path, text), "log_probability")
