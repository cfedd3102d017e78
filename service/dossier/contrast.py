"""Which phrases a model says of a name and not as readily of made-up ones.

Per question: said in a of n draws about the name and in b of m draws about its twins, the smoothed log-odds are

    ln((a + s) / (n - a + s)) - ln((b + s) / (m - b + s)),    s = 0.5

(the Haldane-Anscombe correction; Monroe et al., "Fightin' Words", 2008, with a flat prior). b counts what twins were
told in answer to any question where that is more, so that a model's favourite city or award does not pass.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rapidfuzz import fuzz

from guard.classifiers.normalize import SEPARATOR, mask_form
from guard.service.dossier.mentions import is_date, mentions

SMOOTHING = 0.5
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
MAX_STATEMENT = 240
_STATEMENT_WORDS = 4
# similarity in percent from which one word is a misspelling of another
_SAME = 80.0
_ALIKE = 75.0


@dataclass(frozen=True, slots=True)
class Limits:
    """From when a phrase counts, and from when a name is known. Chosen on RWKU subjects 1-50 and made-up names.

    `draws`: draws of one question that say it; `log_odds`: against twins. A model makes something up about any name and
    keeps to it, so a name is known only if one phrase reaches `known_log_odds`, or if there are `known_phrases`; dates
    and variations of the name do not count.
    """

    draws: int = 2
    log_odds: float = 2.0
    known_log_odds: float = 3.2
    known_phrases: int = 5


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Finding:
    """A phrase that passed at `questions`, the best of them first.

    `share` is of the draws of that one, `said` counts all draws.
    """

    phrase: str
    questions: tuple[str, ...]
    share: float
    said: int
    log_odds: float
    statement: str

    @property
    def question(self) -> str:
        """The question at which the phrase stands out most."""
        return self.questions[0]


Answers = Mapping[str, Sequence[str]]


def findings(
    name: str, about: Answers, twins: Mapping[str, Answers], limits: Limits = LIMITS, *,
    terms: bool = False,
) -> tuple[Finding, ...]:
    """Phrases of `about` (answers to each question about `name`) that pass, best first.

    `twins`: the same by made-up name. Questions are keys that are the same for all names. `terms`: rare lower-case
    words count as phrases, too (topics and facts).
    """
    own = mask_form(name)
    forms = {question: [_padded(text) for text in texts] for question, texts in about.items()}
    others = {
        question: [_padded(text) for answers in twins.values() for text in answers.get(question, ())]
        for question in about
    }
    pooled = [form for texts in others.values() for form in texts]
    best: dict[str, Finding] = {}
    for question, texts in about.items():
        for form, written in _candidates(texts, limits.draws, terms).items():
            if _of_name(form, own):
                continue
            said = _holding(form, forms[question])
            odds = min(
                log_odds(said, len(texts), _holding(form, others[question]), len(others[question])),
                log_odds(said, len(texts), _holding(form, pooled), len(pooled)),
            )
            if odds < limits.log_odds:
                continue
            before = best.get(form)
            if before is not None and before.log_odds >= odds:
                best[form] = replace(before, questions=(*before.questions, question))
                continue
            everywhere = sum(_holding(form, each) for each in forms.values())
            also = before.questions if before else ()
            best[form] = Finding(
                written, (question, *also), said / len(texts), everywhere, odds, statement_of(written, texts)
            )
    return tuple(sorted(best.values(), key=lambda found: (-found.log_odds, -found.said, found.phrase)))


def is_known(name: str, found: Sequence[Finding], limits: Limits = LIMITS) -> bool:
    """Whether findings show knowledge of `name`, and not what a model makes up about any."""
    own = mask_form(name).split(SEPARATOR)
    telling = [each for each in found if not is_date(each.phrase) and not _varies(mask_form(each.phrase), own)]
    sure = any(each.log_odds >= limits.known_log_odds for each in telling)
    return sure or len(telling) >= limits.known_phrases


def log_odds(a: int, n: int, b: int, m: int) -> float:
    """Smoothed log-odds ratio of a of n against b of m, in nats."""
    return math.log((a + SMOOTHING) / (n - a + SMOOTHING)) - math.log((b + SMOOTHING) / (m - b + SMOOTHING))


def statement_of(phrase: str, texts: Sequence[str]) -> str:
    """The shortest sentence of `texts` that says `phrase` and more than it, if it can be one of some words.

    Empty when there is none.
    """
    form = _padded(phrase)
    found = [
        sentence.strip(" -*•,;:\t") for text in texts for sentence in _SENTENCE.split(text)
        if form in _padded(sentence) and len(_padded(sentence)) > len(form) and len(sentence) <= MAX_STATEMENT
    ]
    return min(found, key=lambda sentence: (len(sentence.split()) < _STATEMENT_WORDS, len(sentence)), default="")


def _candidates(texts: Sequence[str], draws: int, terms: bool) -> dict[str, str]:
    """Mask form -> as written, of what at least `draws` of `texts` mention."""
    written: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for text in texts:
        here = {mask_form(phrase): phrase for phrase in mentions(text, terms=terms)}
        counts.update(here.keys())
        for form, phrase in here.items():
            written.setdefault(form, phrase)
    return {form: written[form] for form, count in counts.items() if form and count >= draws}


def _of_name(form: str, name: str) -> bool:
    """Whether a phrase holds the whole name, says nothing but it or a misspelling, or ends in its beginning."""
    own = name.split(SEPARATOR)
    words = form.split(SEPARATOR)
    whole = f"{SEPARATOR}{name}{SEPARATOR}" in f"{SEPARATOR}{form}{SEPARATOR}"
    cut = len(own) > 2 and len(words) > 2 and words[-2:] == own[:2]
    return whole or cut or all(any(fuzz.ratio(word, part) >= _SAME for part in own) for word in words)


def _varies(form: str, own: Sequence[str]) -> bool:
    """Whether a phrase has a word of the name, or one that is spelled much like it: "Elena Trenvik" for another."""
    return any(fuzz.ratio(word, part) >= _ALIKE for part in own for word in form.split(SEPARATOR))


def _holding(form: str, texts: Sequence[str]) -> int:
    padded = f"{SEPARATOR}{form}{SEPARATOR}"
    return sum(padded in text for text in texts)


def _padded(text: str) -> str:
    return f"{SEPARATOR}{mask_form(text)}{SEPARATOR}"
