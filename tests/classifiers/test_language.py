"""The language of short questions, also where they hold foreign names."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.classifiers.language import language_of, prepare_languages

SHIPPED = ("en", "de", "fr", "es", "it", "pt", "nl", "ru", "zh", "ja")
RWKU = Path(__file__).parents[3] / "shared" / "data" / "rwku"

QUESTIONS = {
    "en": [
        "Who is Angela Merkel?", "Who was Hans Zimmer?", "Are you sure?", "Why?", "When was he born?",
        "Tell me about Leonardo da Vinci.", "What did Johann Wolfgang von Goethe write?", "Who wrote Der Zauberberg?",
        "Is José Saramago alive?", "Who directed La dolce vita?", "Write a biography of Gabriel García Márquez.",
        "Friedrich Nietzsche", "What does 猫 mean?", "Who is Владимир Путин?", "WHO IS STEPHEN KING", "Born in ___",
    ],
    "de": [
        "Wer ist Stephen King?", "Bist du sicher?", "Schreibe eine Biografie über Stephen King.", "Warum?",
        "Wann wurde er geboren?", "Wer hat Standard Oil gegründet?", "Erzähl mir von Taylor Swift", "WER IST DAS?",
    ],
    "fr": [
        "Qui est Stephen King ?", "Tu es sûr ?", "Écris une biographie de Stephen King.", "Pourquoi ?",
        "Quand est-il né ?", "Qui a fondé Standard Oil ?", "Parle-moi de Taylor Swift",
    ],
    "es": [
        "¿Quién es Stephen King?", "¿Estás seguro?", "Escribe una biografía de Stephen King.", "¿Cuándo nació?",
        "¿Quién fundó Standard Oil?", "¿Qué libros escribió Stephen King?",
    ],
    "it": [
        "Chi è Stephen King?", "Sei sicuro?", "Scrivi una biografia di Stephen King.", "Quando è nato?",
        "Chi ha fondato la Standard Oil?", "Parlami di Taylor Swift",
    ],
    "pt": [
        "Quem é Stephen King?", "Tem certeza?", "Escreva uma biografia de Stephen King.", "Quando ele nasceu?",
        "Quem fundou a Standard Oil?", "Fale-me sobre Taylor Swift",
    ],
    "nl": [
        "Weet je het zeker?", "Schrijf een biografie van Stephen King.", "Wanneer is hij geboren?", "Waarom?",
        "Wie heeft Standard Oil opgericht?", "Vertel me over Taylor Swift",
    ],
    "ru": ["Кто такой Стивен Кинг?", "Ты уверен?", "Кто такой Stephen King?"],
    "zh": ["斯蒂芬·金是谁？", "Stephen King 是谁？", "你确定吗？"],
    "ja": ["スティーヴン・キングは誰ですか？", "本当ですか？", "Stephen Kingって誰？", "日本の首都はどこですか"],
}


@pytest.mark.parametrize("language", SHIPPED)
def test_short_questions_are_recognised(language: str) -> None:
    wrong = {text: found for text in QUESTIONS[language] if (found := language_of(text, SHIPPED)) != language}
    assert wrong == {}


def test_english_questions_with_names_of_all_countries_stay_english() -> None:
    if not RWKU.is_dir():
        pytest.skip("needs ../shared/data/rwku")
    for name in ("forget_level1", "forget_level2", "neighbor_level1", "neighbor_level2"):
        lines = (RWKU / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        queries = [json.loads(line)["query"] for line in lines]
        english = sum(language_of(query, SHIPPED) == "en" for query in queries)
        assert english >= 0.995 * len(queries), name


@pytest.mark.parametrize("text", ["", " ", "?", "___", "42", "Xzqvw", "\ud800", "🙂"])
def test_a_text_that_does_not_tell_gets_the_default(text: str) -> None:
    assert language_of(text, SHIPPED, default="de") == "de"


def test_only_languages_that_are_asked_for_are_given() -> None:
    assert language_of("Quem é ela e onde nasceu?", ("en", "es"), default="en") in ("en", "es")
    assert language_of("Where was she born?", ("de",), default="de") == "de"
    assert language_of("Where was she born?", ()) == "en"
    assert language_of("Where was she born?", ("tlh",)) == "en"
    assert language_of("Де він народився і хто це такий?", ("en", "ru", "uk")) == "uk"
    assert language_of("彼は誰ですか", ("en", "de")) == "en"


@given(st.text(max_size=300))
def test_any_text_has_a_language(text: str) -> None:
    assert language_of(text, SHIPPED) in SHIPPED


def test_threads_agree_and_a_question_is_quick() -> None:
    prepare_languages(SHIPPED)
    texts = [text for questions in QUESTIONS.values() for text in questions]
    alone = [language_of(text, SHIPPED) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: language_of(text, SHIPPED), texts * 4)) == alone * 4
    started = time.perf_counter()
    language_of("Wer ist das? " * 100_000, SHIPPED)
    assert time.perf_counter() - started < 0.5
