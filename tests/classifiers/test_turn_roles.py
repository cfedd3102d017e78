"""Whose turn a piece of a prompt is, for the templates of several model families."""

from __future__ import annotations

from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from guard.classifiers.spans import PromptDecoder
from guard.demo.corpus import training_examples
from guard.demo.train import train_tokenizer

_REFUSE_OTHERS = "{% else %}{{ raise_exception('unknown role') }}{% endif %}{% endfor %}"
_SYSTEM_FIRST = (
    "{% if messages[0]['role'] == 'system' %}{% set lead = messages[0]['content'] %}{% set messages = messages[1:] %}"
    "{% else %}{% set lead = '' %}{% endif %}"
)
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
        "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "instruction tags": (
        _SYSTEM_FIRST + "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>[INST] "
        "{% if loop.first and lead %}<<SYS>>\n{{ lead }}\n<</SYS>>\n\n{% endif %}{{ m['content'] }} [/INST]"
        "{% elif m['role'] == 'assistant' %} {{ m['content'] }} <|im_end|>" + _REFUSE_OTHERS
    ),
    "role between tokens": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}<|im_end|>\n\n{% if m['role'] == 'system' %}Today: 26 July"
        "\n\n{% endif %}{{ m['content'] }}<|end|>{% endfor %}<|im_start|>assistant<|im_end|>\n\n"
    ),
    "no special tokens": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}\n\n{% elif m['role'] == 'user' %}"
        "### Human:\n{{ m['content'] }}\n\n{% elif m['role'] == 'assistant' %}### Assistant:\n{{ m['content'] }}\n\n"
        + _REFUSE_OTHERS + "### Assistant:\n"
    ),
}
DIALOGUE = [("system", "Be brief."), ("user", "Who is Hina Ameen?"), ("assistant", "A writer."), ("user", "Her books?")]


@lru_cache(maxsize=8)
def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """The bundled tokenizer, with its own template or one of `TEMPLATES`."""
    own = train_tokenizer(training_examples("full"))
    if template == "bundled":
        return own
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(own.backend_tokenizer.to_str()), eos_token="<|im_end|>"
    )
    other.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|end|>"]})
    other.chat_template = TEMPLATES[template]
    return other


@lru_cache(maxsize=8)
def decoder(template: str) -> PromptDecoder:
    """Decoder of `tokenizer`."""
    return PromptDecoder(tokenizer(template))


def read(template: str, dialogue: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Roles and contents as the decoder tells them from the rendered dialogue."""
    messages = [{"role": role, "content": content} for role, content in dialogue]
    text = str(tokenizer(template).apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return read_text(template, text)


def read_text(template: str, text: str) -> list[tuple[str, str]]:
    """Roles and contents that the decoder finds in a text."""
    prompt = decoder(template).decode(tokenizer(template)(text, add_special_tokens=False).input_ids)
    return [(turn.role, prompt.text[turn.start : turn.end].strip()) for turn in decoder(template).turn_roles(prompt)]


@pytest.mark.parametrize("template", ["bundled", *TEMPLATES])
def test_roles_are_read_back_from_the_rendered_dialogue(template: str) -> None:
    assert read(template, DIALOGUE) == DIALOGUE
    assert read(template, DIALOGUE[1:]) == DIALOGUE[1:]
    assert read(template, DIALOGUE[1:2]) == DIALOGUE[1:2]


@pytest.mark.parametrize("template", ["bundled", *TEMPLATES])
def test_contents_that_begin_with_new_lines_keep_their_role(template: str) -> None:
    found = read(template, [("user", "\n\nHello"), ("assistant", "\nHi"), ("user", "\n  And?")])
    assert found == [("user", "Hello"), ("assistant", "Hi"), ("user", "And?")]


@pytest.mark.parametrize("template", ["bundled", *TEMPLATES])
def test_a_prompt_without_the_template_is_one_turn_of_the_user(template: str) -> None:
    assert read_text(template, "Once upon a time") == [("user", "Once upon a time")]
    assert read_text(template, "") == []


@pytest.mark.parametrize("template", ["bundled", "chatml", "instruction tags"])
def test_an_empty_answer_is_no_turn(template: str) -> None:
    assert read(template, [("user", "One"), ("assistant", ""), ("user", "Two")]) == [("user", "One"), ("user", "Two")]


@pytest.mark.parametrize("template", ["chatml", "role between tokens"])
def test_the_output_of_a_tool_is_nobodys_words(template: str) -> None:
    dialogue = [*DIALOGUE[:3], ("tool", "found: nothing"), DIALOGUE[3]]
    assert read(template, dialogue) == [*DIALOGUE[:3], ("other", "found: nothing"), DIALOGUE[3]]


def test_a_system_text_that_the_template_dates_anew_is_still_the_systems() -> None:
    messages = [{"role": role, "content": content} for role, content in DIALOGUE]
    text = str(tokenizer("role between tokens").apply_chat_template(messages, tokenize=False))
    found = read_text("role between tokens", text.replace("26 July", "27 July"))
    assert [role for role, _ in found] == ["system", "user", "assistant", "user"]
    assert found[0][1].endswith("Be brief.")


def test_text_after_an_unknown_special_token_belongs_to_the_turn_before() -> None:
    text = "<|im_start|>user\nLook at <|end|> this<|im_end|>\n<|im_start|>assistant\n"
    assert read_text("chatml", text) == [("user", "Look at <|end|> this")]


def test_written_text_is_the_users_and_the_operators() -> None:
    messages = [{"role": role, "content": content} for role, content in DIALOGUE]
    text = str(tokenizer("bundled").apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    prompt = decoder("bundled").decode(tokenizer("bundled")(text, add_special_tokens=False).input_ids)
    written = [prompt.text[start:end] for start, end in decoder("bundled").written_spans(prompt)]
    assert written == ["Be brief.", "Who is Hina Ameen?", "Her books?"]


CONTENT = st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).filter(
    lambda text: bool(text.strip()) and "<" not in text
)


@given(st.lists(CONTENT, min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_contents_are_told_apart(contents: list[str]) -> None:
    dialogue = [(("user", "assistant")[turn % 2], content) for turn, content in enumerate(contents)]
    assert read("bundled", dialogue) == [(role, content.strip()) for role, content in dialogue]


@given(st.lists(st.sampled_from(["<|im_start|>", "<|im_end|>", "user\n", "assistant\n", "x", "\n", " "]), max_size=30))
@settings(max_examples=200, deadline=None)
def test_turns_never_overlap_and_stay_inside_the_text(parts: list[str]) -> None:
    text = "".join(parts)
    prompt = decoder("chatml").decode(tokenizer("chatml")(text, add_special_tokens=False).input_ids)
    reached = 0
    for turn in decoder("chatml").turn_roles(prompt):
        assert reached <= turn.start < turn.end <= len(prompt.text)
        reached = turn.end
