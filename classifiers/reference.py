"""Pronouns and definite nouns of one turn, and what in the same turn they may stand for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from guard.classifiers.follow_up_words import Word, Words

# words with a topic before a pronoun that are enough for it to stand for one of them
_ENOUGH_FOR_THING = 3
_ENOUGH_FOR_PERSON = 12
_SENTENCE_END = ".!?:;\n。？！…"
_OPENING = " \t\"'“”‘’«»„(¿¡*-"
_INITIAL = re.compile(r"(?:^|[\s.(])[^\W\d_a-z]\.$")
_QUOTED = re.compile(r"""["“„«]([^"“”„«»\n]{1,80})["”“»]|(?<!\w)['‘]([^'\n‘]{1,80})['’](?!\w)""")
# own material: what stands in a line of its own or after a colon
_MATERIAL = re.compile(r"[:\n]\s*(?=\S)")
_INDEFINITE = frozenset(
    "a an ein eine einen einem einer un une una uno um uma een someone somebody everyone people".split()
)
_BEFORE_SUBJECTS = frozenset(
    "is was did does do has had have are were will would can could should and when if by".split()
)
_AUXILIARIES = frozenset("is was did does do has had can could will would should must might".split())
_JOINING = frozenset("and but or while when before after because that who".split())
_JOINS = re.compile(rf"[,;.!?\n]|\b(?:{'|'.join(sorted(_JOINING))})\b")
# words between an article and its noun: "the very first book"
_MAX_BETWEEN = 3
_AFTER_SUBJECTS = frozenset(
    "is was has had are were will would did does can made won wrote became began sold left took grew went".split()
)
_PUT_ASIDE = frozenset(
    "ignore ignoring forget forgetting regarding concerning besides unlike except leave skip".split()
)
_SAYS_WHICH = frozenset(
    "of who that which in from by named called with whose between behind von des der die das dessen deren wie für "
    "de du d qui que di del della che da do van".split()
)


class Utterance:
    """One turn in a language whose words are written apart, read once."""

    def __init__(self, text: str, found: Sequence[Word], words: Words, *, german: bool) -> None:
        self._text, self._found, self._words = text, found, words
        self._folded = [word.folded for word in found]
        self._quoted = [match.span() for match in _QUOTED.finditer(text)]
        self.topics = [words.has_topic(word) for word in self._folded]
        self.names = self._find_names(german)

    def has_unbound(self) -> bool:
        """Whether a pronoun or a definite noun has nothing in the turn that it can stand for."""
        line = " ".join(self._folded)
        idle, pointers = _word_numbers(line, self._words.idle), _word_numbers(line, self._words.pointers)
        material = self._material_after()
        for index, word in enumerate(self._folded):
            if index in idle or self._in_title(index):
                continue
            if word in self._words.person:
                unbound = not self._names_a_subject(index) and sum(self.topics[:index]) < _ENOUGH_FOR_PERSON
            elif self._found[index].start < material:
                unbound = False
            elif word in self._words.thing or index in pointers:
                unbound = not self._introduces(index)
            else:
                unbound = self._definite(index) and sum(self.topics[:index]) < _ENOUGH_FOR_THING
            if unbound:
                return True
        return False

    def is_remark(self) -> bool:
        """Whether the turn neither asks nor names anything, and has one word with a topic at most."""
        asks = any(mark in self._text for mark in "?？") or any(word in _INDEFINITE for word in self._folded)
        return not asks and not any(self.names) and sum(self.topics) <= 1 and not self._material_after()

    def says(self, pattern: re.Pattern[str]) -> bool:
        """Whether the turn holds one of the phrases, outside of those that mean nothing."""
        line = " ".join(self._folded)
        return bool(_word_numbers(line, pattern) - _word_numbers(line, self._words.idle))

    def _introduces(self, index: int) -> bool:
        """Whether something before this word is new to the conversation."""
        topics = sum(self.topics[:index])
        indefinite = any(other in _INDEFINITE for other in self._folded[:index])
        return any(self.names[:index]) or topics >= _ENOUGH_FOR_THING - indefinite

    def _find_names(self, german: bool) -> list[bool]:
        """Which words are names of the turn's own: capitalised where the sentence does not ask for it, or quoted."""
        if self._text.isupper() or self._text.istitle():
            return [False] * len(self._found)
        first = [self._begins_sentence(word.start) for word in self._found]
        capital = [self._capital(index) and self.topics[index] for index in range(len(self._found))]
        # "Kid" names nobody, "The Kid Laroi" does
        for index in range(len(capital) - 1):
            if capital[index + 1] and not first[index + 1] and self._capital(index) and not first[index]:
                capital[index] = True
        names = []
        for index, is_capital in enumerate(capital):
            later = index + 1 < len(capital) and capital[index + 1] and not first[index + 1]
            if self._in_title(index):
                names.append(True)
            elif first[index]:
                names.append(is_capital and (later or self._is_subject(index)))
            else:
                # German writes all nouns so: a name is two of them
                names.append(is_capital and (not german or later or (index > 0 and capital[index - 1])))
        return names

    def _capital(self, index: int) -> bool:
        return self._text[self._found[index].start].isupper()

    def _is_subject(self, index: int) -> bool:
        if self._folded[index].endswith("'s"):
            return True
        following = self._folded[index + 1] if index + 1 < len(self._folded) else ""
        return following in _AFTER_SUBJECTS or (len(following) > 4 and following.endswith("ed"))

    def _begins_sentence(self, start: int) -> bool:
        before = self._text[:start].rstrip(_OPENING)
        return not before or (before[-1] in _SENTENCE_END and not _INITIAL.search(before))

    def _in_title(self, index: int) -> bool:
        """Whether a word stands capitalised in quotation marks of which no word before was a sentence."""
        word = self._found[index]
        for start, end in self._quoted:
            if start < word.start and word.end < end:
                letters = self._text[word.start : word.end]
                return letters[0].isupper() and not (letters.isupper() and len(letters) > 1) and start > 0
        return False

    def _definite(self, index: int) -> bool:
        """Whether this word is a noun like "book" after an article, with nothing after it that says which."""
        if self._folded[index].removesuffix("'s") not in self._words.nouns:
            return False
        first = index - 1
        while first > index - 1 - _MAX_BETWEEN and first > 0 and self._is_plain(first):
            first -= 1
        if first < 0 or self._folded[first] not in self._words.articles:
            return False
        # "the Four Books"
        if self._capital(index) and self._capital(index - 1) and index - 1 > first:
            return False
        if index + 1 == len(self._folded):
            return not self._named_nearby(index)
        following = self._folded[index + 1]
        # "did the marriage end": what follows is the verb
        asked = first > 0 and self._folded[first - 1] in _AUXILIARIES
        says_which = self._capital(index + 1) or (self._words.has_topic(following) and not asked)
        says_which = says_which or following in _SAYS_WHICH
        if any(mark in self._gap(index, index + 1) for mark in _SENTENCE_END):
            return not self._named_nearby(index)
        return not says_which and not self._named_nearby(index)

    def _named_nearby(self, index: int) -> bool:
        """Whether the clause has a name that says which one a noun means."""
        for step in (-1, 1):
            number = index + step
            while 0 <= number < len(self._found) and not _JOINS.search(self._gap(*sorted((number - step, number)))):
                if self._folded[number] in _JOINING:
                    break
                if self.names[number]:
                    return True
                number += step
        return False

    def _gap(self, first: int, second: int) -> str:
        return self._text[self._found[first].end : self._found[second].start]

    def _is_plain(self, index: int) -> bool:
        word = self._folded[index]
        return not (self.names[index] or word in self._words.articles or word in _SAYS_WHICH)

    def _names_a_subject(self, index: int) -> bool:
        """Whether a name stands where a pronoun after it may mean it: not "in France", not "ignore France"."""
        for number in range(index):
            if not self.names[number] or self._goes_on(number) or self._in_title(number):
                continue
            # "Which team of Paris did he": the verb asks for another subject
            between = self._text[self._found[number].end : self._found[index].start].casefold()
            if index and self._folded[index - 1] in _AUXILIARIES and not _JOINS.search(between):
                continue
            before = self._folded[number - 1] if number else ""
            if before in self._words.articles and number > 1:
                before = self._folded[number - 2]
            owner = any(self._folded[n].endswith("'s") and self.names[n] for n in range(number, index))
            if not before or owner or before in _BEFORE_SUBJECTS:
                return True
            if before not in self._words.small | self._words.nouns | _PUT_ASIDE:
                return True
        return False

    def _goes_on(self, index: int) -> bool:
        """Whether the name begins before this word: "Dragon" of "Enter the Dragon"."""
        if index and self.names[index - 1]:
            return True
        middle = index > 1 and self._folded[index - 1] in self._words.articles | {"of", "and", "for"}
        return middle and self.names[index - 2]

    def _material_after(self) -> int:
        """Where the turn's own material begins, 0 where there is none: what "the list" before it means."""
        places = [match.end() for match in _MATERIAL.finditer(self._text)]
        for place in reversed(places):
            own = [n for n, word in enumerate(self._found) if word.start >= place and (self.topics[n] or self.names[n])]
            if own:
                return place
        return 0


def _word_numbers(line: str, pattern: re.Pattern[str]) -> set[int]:
    numbers: set[int] = set()
    for match in pattern.finditer(line):
        first = line.count(" ", 0, match.start())
        numbers.update(range(first, first + match.group().count(" ") + 1))
    return numbers
