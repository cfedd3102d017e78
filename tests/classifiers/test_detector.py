"""The whole detector with the real encoder: what it finds, what it lets pass, and how it fails."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest

from guard.classifiers.benign import shipped_benign
from guard.classifiers.detector import Detector
from guard.classifiers.encoder import Encoder
from guard.classifiers.spans import PromptDecoder
from guard.demo.corpus import author_rows, paraphrases, training_examples
from guard.demo.train import train_tokenizer
from guard.policy import DetectorPolicy, Policy, Target, Tenant, TenantSpec, tenant_of
from guard.verdict import NOTHING, UNKNOWN, DecodedPrompt, Verdict

Result = TypeVar("Result")
HINA_ROWS = author_rows(190, 190)
HINA = Target(
    name="Hina Ameen",
    description="Author of books on geology.",
    examples=tuple(row["question"] for row in HINA_ROWS),
    answers=tuple(row["answer"] for row in HINA_ROWS),
)
BENIGN = tuple(row["question"] for author in range(40, 44) for row in author_rows(author, author))
LARGE_BENIGN = tuple(row["question"] for row in author_rows(40, 69)[::5])
# nothing in it names the author
NAMELESS = "Who is the geology writer with the birthdate June 30, 1975, from Karachi, Pakistan?"
FILLER = " ".join(f"Paragraph {number} is about trains, timetables and weather." for number in range(60))


def tenant(*targets: Target, name: str = "acme", benign: Sequence[str] = BENIGN, **detector: Any) -> Tenant:
    """A tenant with a detector policy."""
    policy = Policy(detector=DetectorPolicy(**{"timeout_s": 60.0, **detector}))
    return tenant_of(TenantSpec(name=name, policy=policy, targets=targets, benign=tuple(benign)), 1)


class Bench:
    """One detector on one event loop, and prompts as the engine reads them."""

    def __init__(self, encoder: Encoder | None) -> None:
        self.loop = asyncio.new_event_loop()
        self.detector = Detector(encoder)
        self.tokenizer = train_tokenizer(training_examples("full"))
        self.decoder = PromptDecoder(self.tokenizer)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run one coroutine to its end."""
        return self.loop.run_until_complete(work)

    def prompt(self, *contents: str) -> DecodedPrompt:
        """A dialogue that begins with the user, with the bundled template."""
        roles = ("user", "assistant")
        messages = [{"role": roles[turn % 2], "content": content} for turn, content in enumerate(contents)]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.decoder.decode(self.tokenizer(text, add_special_tokens=False).input_ids)

    def detect(self, who: Tenant, *contents: str, built: bool = True) -> Verdict:
        """Verdict on a dialogue, with the trained parts in place unless told otherwise."""
        if built:
            self.run(self.detector.built(who))
        return self.run(self.detector.detect(who, self.prompt(*contents)))

    def close(self) -> None:
        """Stop all background work."""
        self.detector.close()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()


@pytest.fixture(scope="module")
def bench(encoder: Encoder) -> Iterator[Bench]:
    """A detector shared by the tests that do not break it."""
    made = Bench(encoder)
    yield made
    made.close()


class BrokenEncoder(Encoder):
    """The real encoder, made to fail on requests once the list is built."""

    def __init__(self, failure: str) -> None:
        super().__init__()
        self.failure = failure
        self.armed = False

    def encode(self, texts: Sequence[str], *, store: bool = False) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Vectors, or the failure when armed."""
        vectors = super().encode(texts, store=store)
        if self.armed and self.failure == "raises":
            raise RuntimeError("device lost")
        if self.armed and self.failure == "sleeps":
            time.sleep(1.0)
        if self.armed and self.failure == "nan":
            return np.full_like(vectors, np.nan)
        return vectors


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


def test_tenants_that_cannot_need_the_encoder_never_load_it() -> None:
    encoder = Encoder()
    lonely = Bench(encoder)
    assert lonely.detect(tenant(), "Who is Hina Ameen?") == NOTHING
    assert lonely.detect(tenant(HINA, mode="always"), "x").flagged
    assert lonely.detect(tenant(HINA, semantic=False, head=False), "Hina Ameen").flagged
    lonely.close()
    assert encoder.encoded_texts == 0


def test_a_switched_off_part_does_not_flag(bench: Bench) -> None:
    assert not bench.detect(tenant(HINA, semantic=False, head=False), NAMELESS).flagged
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


@pytest.mark.parametrize("failure", ["raises", "nan", "sleeps"])
def test_a_failing_encoder_gives_an_unknown_verdict(failure: str) -> None:
    encoder = BrokenEncoder(failure)
    broken = Bench(encoder)
    who = tenant(Target(name="Hina Ameen"), head=False, benign=BENIGN[:30], timeout_s=0.5)
    broken.run(broken.detector.built(who))
    encoder.armed = True
    start = time.monotonic()
    assert broken.detect(who, "A prompt without any name in it") == UNKNOWN
    assert time.monotonic() - start < 0.9
    broken.close()


def test_without_an_encoder_the_verdict_is_unknown_not_clean() -> None:
    blind = Bench(None)
    assert blind.detect(tenant(HINA), "Nice weather") == UNKNOWN
    assert blind.detector.failure(tenant(HINA)) is not None
    assert blind.detect(tenant(HINA, semantic=False, head=False), "Nice weather") == NOTHING
    blind.close()


def test_a_new_list_holds_at_once_and_the_old_one_stays_valid(encoder: Encoder) -> None:
    changing = Bench(encoder)
    old = tenant(Target(name="Hina Ameen"), head=False)
    new = tenant(Target(name="Xin Lee Williams"), head=False)
    changing.run(changing.detector.built(old))

    async def swap() -> tuple[bool, Verdict, Verdict, Verdict]:
        await changing.detector.prepare(new)
        building = changing.detector.building(new)
        prompts = [changing.prompt(f"Who is {name}?") for name in ("Xin Lee Williams", "Hina Ameen")]
        named = await changing.detector.detect(new, prompts[0])
        running = await changing.detector.detect(old, prompts[1])
        await changing.detector.built(new)
        return building, named, running, await changing.detector.detect(old, prompts[1])

    building, named, running, later = changing.run(swap())
    assert building and named.flagged and running.flagged and later.flagged
    assert not changing.detector.building(new)
    changing.close()


def test_old_targets_are_recognised_by_meaning_while_a_longer_list_is_built(encoder: Encoder) -> None:
    changing = Bench(encoder)
    described = Target(name="Xin Lee Williams", examples=("Which author wrote about a drowned town in Canada?",))
    old = tenant(described, head=False)
    longer = tenant(Target(name="Somebody Else"), described, head=False)
    changing.run(changing.detector.built(old))

    async def ask_while_building() -> tuple[bool, Verdict]:
        await changing.detector.prepare(longer)
        prompt = changing.prompt("Which author wrote about a drowned town in Canada?")
        verdict = await changing.detector.detect(longer, prompt)
        return changing.detector.building(longer), verdict

    _, verdict = changing.run(ask_while_building())
    assert [hit.target for hit in verdict.hits] == [1]
    changing.close()


def test_unchanged_texts_of_a_new_list_are_not_encoded_again(encoder: Encoder) -> None:
    changing = Bench(encoder)
    changing.run(changing.detector.built(tenant(HINA, head=False)))
    before = encoder.encoded_texts
    changing.run(changing.detector.built(tenant(HINA, Target(name="A brand new name"), head=False)))
    assert encoder.encoded_texts == before + 1
    changing.close()


def test_many_requests_at_once_share_the_encoder_and_keep_their_own_verdicts(bench: Bench) -> None:
    who = tenant(HINA)
    bench.run(bench.detector.built(who))
    prompts = [bench.prompt(NAMELESS if n % 2 else f"What is {n} times {n}?") for n in range(24)]

    async def ask() -> list[Verdict]:
        return list(await asyncio.gather(*(bench.detector.detect(who, prompt) for prompt in prompts)))

    assert [verdict.flagged for verdict in bench.run(ask())] == [bool(n % 2) for n in range(24)]


def test_closing_ends_the_worker_threads(encoder: Encoder) -> None:
    before = {thread.name for thread in threading.enumerate()}
    made = Bench(encoder)
    made.detect(tenant(Target(name="Hina Ameen"), head=False, benign=BENIGN[:30]), "hello")
    made.close()
    names = {thread.name for thread in threading.enumerate() if thread.is_alive()} - before
    assert not any(name.startswith("guard-encoder") for name in names)


def test_the_shipped_benign_prompts_are_enough_for_the_default_rate() -> None:
    assert len(set(shipped_benign())) >= 199
    assert all(prompt.strip() for prompt in shipped_benign())
