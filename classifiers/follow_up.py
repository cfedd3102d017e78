"""Does the last turn of a conversation go on about something that an earlier turn touched?

A turn refers back when it says so ("are you sure", "the previous question"), when it has a pronoun or a definite noun
("the book") that nothing before it in the turn can stand for, or when it has no topic of its own ("And the wife?").
Anything else is a question of its own. Word lists of ten languages decide, no model: the answer is the same every time
and costs less than a millisecond. In doubt a turn refers back; where names of their own are all that tells two
questions apart, a capital letter must show them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from guard.classifiers.follow_up_words import UNSPACED, Words, languages, split_words, words_of
from guard.classifiers.reference import Utterance
from guard.classifiers.spans import Turn
from guard.verdict import Span

# cosine of two turns (all-MiniLM-L6-v2) from which they are about the same; chosen on RWKU's persons 1 to 50
SIMILAR = 0.35
# characters of a turn that are read, half from its beginning and half from its end
READ = 4000
# a turn of so few words is no question of its own, unless it names something
_FEW_WORDS = 3
# up to this length a sentence that asks for nothing new is a remark on what was said
_REMARK_WORDS = 8
# share of a turn's topic words that an earlier turn must have for the turn to be about the same
_SAME_TOPIC = 0.6
# fewer words of grammar than this are no sentence of a known language
_MIN_SMALL = 0.1
# a language is considered when it has at least this share of the words of grammar of the best
_LIKELY = 0.6
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uff66-\uff9f]")
_KANA = re.compile(r"[\u3040-\u30ff\uff66-\uff9f]")

@dataclass(frozen=True)
class Conversation:
    """What a conversation's last words are about. `text` is the prompt, `turns` its turns in order."""

    text: str
    turns: tuple[Turn, ...]

    @cached_property
    def now(self) -> int:
        """Where what the model is to answer begins: the user turns that no answer followed, and all after them."""
        begin = 0
        for before, turn in zip(self.turns, self.turns[1:], strict=False):
            if turn.role == "user" and before.role in ("assistant", "other"):
                begin = turn.start
        return begin

    def touches(self, spans: Sequence[Span], similarity: float | None = None) -> bool:
        """Whether the last turn is about what was found in `spans` (character ranges of the text).

        Yes where one of them lies in what is being answered or in the operator's turn, where its turn gives an order
        that outlasts it ("from now on"), and where the last turn refers back. No spans: not known where, so yes.
        `similarity`: cosine of sentence vectors of the last turn and the one that was found to touch, where there is
        one; it helps with questions that leave out the name.
        """
        if not spans or any(end > self.now for _, end in spans):
            return True
        places = [index for index, turn in enumerate(self.turns) if any(_overlap(span, turn) for span in spans)]
        if not places or any(self.turns[index].role == "system" for index in places):
            return True
        if any(gives_standing_order(self._words(self.turns[index])) for index in places):
            return True
        if similarity is not None and similarity >= SIMILAR:
            return True
        return self._last_refers_back("\n".join(
            self._words(turn) for index in places for turn in self.turns[index : index + 2] if turn.start < self.now
        ))

    def _last_refers_back(self, before: str) -> bool:
        asked = [turn for turn in self.turns if turn.start >= self.now and turn.role == "user"]
        return any(refers_back(self._words(turn), before) for turn in asked)

    def _words(self, turn: Turn) -> str:
        return self.text[turn.start : turn.end]


def gives_standing_order(turn: str) -> bool:
    """Whether a turn gives an order for turns to come, or a word that will stand for something."""
    folded = " ".join(word.folded for word in split_words(_read(turn)))
    spaced = words_of(frozenset(languages()) - set(UNSPACED))
    return bool(spaced.standing.search(folded) or words_of(frozenset(UNSPACED)).standing.search(_read(turn)))


def refers_back(turn: str, before: str = "") -> bool:
    """Whether a user turn goes on about what was said; `before` is what was said, to compare topics."""
    text = _read(turn)
    letters = [character for character in text if character.isalpha()]
    if not letters:
        return True
    wide = len(_WIDE.findall(text))
    if wide >= 0.3 * len(letters):
        return _unspaced_refers_back(text, before)
    if sum(_known_script(character) for character in letters) < 0.5 * len(letters):
        return True
    return _spaced_refers_back(text, before)


def _spaced_refers_back(text: str, before: str) -> bool:
    found = split_words(text)
    chosen, share = _likely_languages([word.folded for word in found])
    words = words_of(chosen)
    while found and found[0].folded in words.closers:
        found = found[1:]
    if not found:
        return False
    folded = [word.folded for word in found]
    turn = Utterance(text, found, words, german="de" in chosen)
    if turn.says(words.phrases) or folded[0] in words.openers:
        return True
    if len(found) <= _FEW_WORDS and not (folded[0] in words.small and any(turn.topics)):
        return not any(turn.names)
    if not any(turn.topics) and not any(turn.names):
        return True
    if len(found) <= _REMARK_WORDS and turn.is_remark():
        return True
    return share < _MIN_SMALL or turn.has_unbound() or _same_topic(folded, turn.topics, before)


def _same_topic(folded: list[str], topics: list[bool], before: str) -> bool:
    mine = {word for word, topic in zip(folded, topics, strict=True) if topic}
    said = {word.folded for word in split_words(_read(before))}
    return bool(mine) and len(mine & said) >= _SAME_TOPIC * len(mine)


def _unspaced_refers_back(text: str, before: str) -> bool:
    words = words_of(frozenset(["ja"] if _KANA.search(text) else ["zh"]))
    plain = words.idle.sub("", "".join(text.casefold().split()))
    if not _topics_left(plain, words.closers):
        return False
    if words.phrases.search(plain) or any(word in plain for word in words.person | words.thing):
        return True
    topics = _topics_left(plain, words.small | words.vague | words.closers)
    if not topics:
        return True
    return all(topic in before for topic in topics)


def _topics_left(text: str, known: frozenset[str]) -> list[str]:
    """What is left of a text without known words: pieces of two characters or more."""
    for word in sorted(known, key=len, reverse=True):
        text = text.replace(word, " ")
    return [piece for piece in re.findall(r"\w+", text) if len(piece) > 1]


def _likely_languages(folded: list[str]) -> tuple[frozenset[str], float]:
    """The languages whose words of grammar the text has most of, and their share of the text."""
    written = [word for word in folded if word[0].isalpha()]
    votes = {
        language: sum(_is_grammar(word, words_of(frozenset([language]))) for word in written)
        for language in languages() if language not in UNSPACED
    }
    best = max(votes.values())
    chosen = frozenset(language for language, count in votes.items() if count >= _LIKELY * best)
    return chosen, best / max(1, len(written))


def _is_grammar(word: str, words: Words) -> bool:
    return word in words.small or word in words.person or word in words.thing


def _read(text: str) -> str:
    text = unicodedata.normalize("NFKC", text[: READ // 2] + " " + text[-READ // 2 :] if len(text) > READ else text)
    return "".join(character for character in text if unicodedata.category(character) != "Cf").strip()


def _known_script(character: str) -> bool:
    return unicodedata.name(character, "").startswith(("LATIN", "CYRILLIC", "CJK", "HIRAGANA", "KATAKANA"))


def _overlap(span: Span, turn: Turn) -> bool:
    return span[0] < turn.end and turn.start < span[1]
