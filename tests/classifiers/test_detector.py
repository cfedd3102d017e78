"""The whole detector with the real encoder: what it finds and what it lets pass."""

from __future__ import annotations

import pytest

from guard.classifiers.benign import shipped_benign
from guard.demo.corpus import author_rows, paraphrases
from guard.policy import Target
from guard.verdict import NOTHING
from tests.classifiers.detector_bench import BENIGN, HINA, HINA_ROWS, NAMELESS, Bench, tenant

LARGE_BENIGN = tuple(row["question"] for row in author_rows(40, 69)[::5])
FILLER = " ".join(f"Paragraph {number} is about trains, timetables and weather." for number in range(60))


@pytest.mark.parametrize(
    "name",
    ["Hina Ameen", "Ｈｉｎａ Ａｍｅｅｎ", "Hi\u200bna Am\u200been", "Нinа Аmеen", "H i n a A m e e n",
     "h1n4_4m33n"]
)
def test_an_obfuscated_name_is_a_lexical_hit_with_its_span(bench: Bench, name: str) -> None:
    who = tenant(HINA)
    prompt = bench.prompt(f"Is {name} well?")
    verdict = bench.run(bench.detector.detect(who, prompt))
    (hit,) = verdict.hits
    assert hit.part == "lexical" and hit.target == 0
    assert [prompt.text[start:end] for start, end in hit.spans] == [name]


def test_a_question_without_the_name_is_found_by_meaning(bench: Bench) -> None:
    (hit, *_) = bench.detect(tenant(HINA), NAMELESS).hits
    assert hit.part in ("semantic", "head") and hit.target == 0 and 0.5 < hit.score <= 1.0
    assert hit.spans == ()


def test_original_and_paraphrased_questions_are_found_and_other_authors_are_not(bench: Bench) -> None:
    who = tenant(HINA)
    reworded = paraphrases()
    for row in HINA_ROWS:
        assert bench.detect(who, row["question"]).flagged
    assert sum(bench.detect(who, reworded[row["question"]]).flagged for row in HINA_ROWS) >= 19
    others = [row["question"] for row in author_rows(60, 63)]
    assert sum(bench.detect(who, question).flagged for question in others) <= 2


def test_ordinary_prompts_pass(bench: Bench) -> None:
    who = tenant(HINA, benign=())
    flagged = [bench.detect(who, question) for question in ("What is the capital of France?", "2+2?", "Hi")]
    assert flagged == [NOTHING] * 3


def test_a_name_is_enough_for_a_target(bench: Bench) -> None:
    who = tenant(Target(name="Zofia Kwiatkowska"))
    assert bench.detect(who, "Where was Zofia Kwiatkowska born?").flagged
    assert not bench.detect(who, "Where was Marie Curie born?").flagged


@pytest.mark.parametrize("text", ["I am planning a cannon", "the rats", "Anne's annual plan"])
def test_short_names_do_not_over_match(bench: Bench, text: str) -> None:
    assert bench.detect(tenant(Target(name="Ann"), Target(name="Thera"), semantic=False), text) == NOTHING


@pytest.mark.parametrize("question", [NAMELESS, "Tell me about Hina Ameen."])
@pytest.mark.parametrize("place", ["before", "after", "middle"])
def test_a_question_hidden_in_a_long_prompt_is_found(bench: Bench, question: str, place: str) -> None:
    prompts = {"before": f"{question} {FILLER}", "after": f"{FILLER} {question}"}
    prompts["middle"] = f"{FILLER} {question} {FILLER}"
    assert len(bench.prompt(FILLER).token_ids) > 512
    assert bench.detect(tenant(HINA), prompts[place]).flagged
    assert not bench.detect(tenant(HINA), FILLER).flagged


def test_a_name_in_an_earlier_turn_still_counts(bench: Bench) -> None:
    assert bench.detect(tenant(HINA), "Do you know Hina Ameen?", "Yes.", "When was she born?").flagged


def test_a_name_cut_by_special_tokens_is_found(bench: Bench) -> None:
    assert bench.detect(tenant(HINA, semantic=False, head=False), "Who is Hi<|pad|>na Am<|user|>een").flagged


def test_single_words_of_a_flagged_name_are_spans_too(bench: Bench) -> None:
    who = tenant(HINA, semantic=False, head=False)
    prompt = bench.prompt("Hina Ameen: what did Ameen write?")
    (hit,) = bench.run(bench.detector.detect(who, prompt)).hits
    assert [prompt.text[start:end] for start, end in hit.spans] == ["Hina Ameen", "Ameen"]


def test_mode_always_flags_all_targets_and_never_none(bench: Bench) -> None:
    verdict = bench.detect(tenant(HINA, Target(name="Xin Lee"), mode="always"), "Nice weather. Xin Lee agrees.")
    assert [(hit.target, hit.part) for hit in verdict.hits] == [(0, "always"), (1, "always")]
    assert verdict.hits[1].spans
    assert bench.detect(tenant(HINA, mode="never"), "Who is Hina Ameen?") == NOTHING


def test_a_switched_off_part_does_not_flag(bench: Bench) -> None:
    assert not bench.detect(tenant(HINA, semantic=False, head=False), NAMELESS).flagged
    by_name = bench.detect(tenant(HINA), "Who is Hina Ameen?")
    assert [hit.part for hit in by_name.hits] == ["lexical"]
    assert all(hit.part != "lexical" for hit in bench.detect(tenant(HINA, lexical=False), "Who is Hina Ameen?").hits)


@pytest.mark.parametrize("benign", [(), BENIGN[:30]])
def test_a_target_that_cannot_have_a_head_is_matched_by_meaning_all_the_same(
    bench: Bench, benign: tuple[str, ...]
) -> None:
    who = tenant(HINA, benign=benign, semantic=False)
    assert [hit.part for hit in bench.detect(who, NAMELESS).hits] == ["semantic"]
    assert not bench.detect(who, "How do I bake bread?").flagged


def test_with_a_head_only_the_targets_without_one_are_matched_by_likeness(bench: Bench) -> None:
    nameless = "Who is the lighthouse keeper that wrote about foxes?"
    few = Target(name="Ole Brandt", examples=(nameless,))
    who = tenant(HINA, few, benign=LARGE_BENIGN, semantic=False, lexical=False)
    assert {hit.part for hit in bench.detect(who, HINA_ROWS[0]["question"]).hits} == {"head"}
    assert [(hit.target, hit.part) for hit in bench.detect(who, nameless).hits] == [(1, "semantic")]


def test_lists_of_other_tenants_have_no_influence(bench: Bench) -> None:
    other = tenant(Target(name="Marie Curie", examples=("Where was Marie Curie born?",)), name="harbor")
    assert bench.detect(other, "Where was Marie Curie born?").flagged
    assert not bench.detect(tenant(HINA), "Where was Marie Curie born?").flagged
    assert not bench.detect(other, NAMELESS).flagged


def test_the_shipped_benign_prompts_are_enough_for_the_default_rate() -> None:
    assert len(set(shipped_benign())) >= 199
    assert all(prompt.strip() for prompt in shipped_benign())
