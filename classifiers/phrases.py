"""The strings that a tenant's answers must not contain.

Phrases: a target may list them. Otherwise they are the key phrases of its answers that its examples do not contain:
quoted titles and capitalised names of people, places and works; very short and very common words are left out, since
forbidding them would break ordinary text. Names: the target's own, in their forms (`name_masks`). Protected texts:
their runs of words (`verbatim`). Matching needs only a left word edge, so a string also covers its own inflections.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from guard.classifiers.name_masks import masked_names
from guard.classifiers.normalize import SEPARATOR, mask_form
from guard.classifiers.verbatim import verbatim_runs
from guard.policy import Target, Tenant

MINIMUM_CHARACTERS = 4
MAXIMUM_CHARACTERS = 512
_QUOTED = re.compile(
    r"[\"\u201c\u00ab]([^\"\u201c\u201d\u00ab\u00bb]{3,200})[\"\u201d\u00bb]"
    r"|(?<!\w)['\u2018]([^'\u2018\u2019\n]{3,120})['\u2019](?!\w)"
)
_WORD = r"[^\W\d_][\w'\u2019.-]*"
_CONNECTOR = r"(?:of|the|de|da|del|della|di|du|la|le|al|el|bin|ibn|van|von|der|den|and|in)"
_NAME = re.compile(rf"{_WORD}(?:[ ]{_CONNECTOR}(?:[ ]{_CONNECTOR})?(?=[ ]{_WORD})|[ ]{_WORD})*")
_SENTENCE_START = re.compile(r"(?:^|[.!?:;\n]['\"\u201d\u2019)]*)\s*$")
# words that open a sentence or are capitalised in ordinary text, and so name nothing
_COMMON = frozenset(
    """a about above according additionally after all also although among an and another any are as at award awards
    based be because been before being besides best book books born both but by can certainly chinese city college
    could critics despite did do does doctor due during each earlier early english even every family father few fiction
    finally first following for france french from furthermore genre german germany given god growing had has have
    having he her here hers him his historical history honor how however i if in indeed india indian initially instead
    interestingly into is it its italian january february march april may june july august september october november
    december monday tuesday wednesday thursday friday saturday sunday japan japanese later lgbtq life like literary
    literature love many most moreover mother mr mrs ms much my new no not notably novel novels novelist of off on once
    one only or other our out over overall own parents particularly perhaps prize professor quite readers regarding
    several science second she since so some spanish specifically still story such than that the their them then there
    therefore these they this those though three through throughout thus to today two under university unfortunately
    unlike until up upon us very was we were what when where whether which while who whose why will with within without
    woman women work works world would writer writing yes yet you your american british author authors chapter dr
    fantasy fame mystery romance thriller poetry crime memoir drama horror adventure biography psychology religion
    north south east west northern southern eastern western united states state kingdom great international national
    """.split()
)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A forbidden string in mask form, and the target it belongs to.

    `explicit` says that the operator listed it; `allow_echo` that it may be repeated when the user typed it; `name`
    that it is a form of the target's name; `always` that it is forbidden in every answer, not in flagged ones only.
    """

    text: str
    target_index: int
    allow_echo: bool
    explicit: bool
    name: bool = False
    always: bool = False


def forbidden_patterns(tenant: Tenant) -> tuple[Pattern, ...]:
    """All strings forbidden in answers to flagged prompts, sorted by mask form, each once.

    A string of several targets may be echoed only if all of them allow it, and is forbidden as widely as any asks.
    """
    found: dict[str, Pattern] = {}
    for index, target in enumerate(tenant.targets):
        for new in _of_target(tenant, index, target):
            old = found.get(new.text)
            found[new.text] = new if old is None else Pattern(
                new.text, old.target_index, old.allow_echo and new.allow_echo, old.explicit or new.explicit,
                old.name or new.name, old.always or new.always,
            )
    return tuple(found[text] for text in sorted(found))


def always_patterns(tenant: Tenant) -> tuple[Pattern, ...]:
    """Those of `forbidden_patterns` that are forbidden in every answer of the tenant.

    They are the strings that the operator listed, names under `forbid_name: always`, and protected texts.
    """
    return tuple(pattern for pattern in forbidden_patterns(tenant) if pattern.always)


def default_forbid(target: Target) -> tuple[str, ...]:
    """Forbidden strings of a target as written, in order, without repetition in mask form.

    A target's own `forbid` list is taken as it is; only strings without a letter or digit are dropped.
    """
    if target.forbid is not None:
        return _distinct(phrase for phrase in target.forbid)
    asked = SEPARATOR + SEPARATOR.join(mask_form(text) for text in (*target.examples, target.name, *target.aliases))
    found = [phrase for answer in target.answers for phrase in key_phrases(answer)]
    return _distinct(p for p in found if acceptable(p) and SEPARATOR + mask_form(p) not in asked)


def key_phrases(text: str) -> tuple[str, ...]:
    """Quoted titles and capitalised names of `text`, as written."""
    phrases = [_trim(match[1] or match[2]) for match in _QUOTED.finditer(text)]
    phrases = [phrase for phrase in phrases if phrase[:1].isupper() or phrase[:1].isdigit()]
    unquoted = _QUOTED.sub(lambda match: ". " + " " * (len(match[0]) - 2), text)
    for name in _names(unquoted):
        phrases.append(name)
    return tuple(phrases)


def acceptable(phrase: str) -> bool:
    """Whether a phrase found by `key_phrases` is specific enough to be forbidden."""
    form = mask_form(phrase)
    words = form.split(SEPARATOR)
    if not MINIMUM_CHARACTERS <= len(form.replace(SEPARATOR, "")) or len(form) > MAXIMUM_CHARACTERS:
        return False
    return any(len(word) >= MINIMUM_CHARACTERS and word not in _COMMON for word in words) and not all(
        word.isdigit() for word in words
    )


def _of_target(tenant: Tenant, index: int, target: Target) -> Iterator[Pattern]:
    """The patterns of one target; the same string may come more than once."""
    echo, explicit = target.allow_echo, target.forbid is not None
    for phrase in default_forbid(target):
        yield Pattern(mask_form(phrase), index, echo, explicit, always=explicit)
    for form, always in masked_names(target, target.forbid_name or tenant.policy.forbid_name):
        text = mask_form(form)
        if text and len(text) <= MAXIMUM_CHARACTERS:
            yield Pattern(text, index, echo, explicit=False, name=True, always=always)
    for text in target.verbatim:
        # a run that a text repeats is one pattern; the same target asks the same of it each time
        for run in dict.fromkeys(verbatim_runs(text, target.verbatim_words)):
            yield Pattern(run, index, echo, explicit=False, always=True)


def _names(text: str) -> list[str]:
    """Runs of capitalised words, with the small words inside names; a lone word that opens a sentence is dropped."""
    names: list[str] = []
    run: list[str] = []
    small: list[str] = []
    opens = False
    previous_end = 0
    for match in re.finditer(_WORD, text):
        word, gap = match[0].rstrip(".'\u2019-"), text[previous_end : match.start()]
        broken = previous_end == 0 or gap != " " or text[previous_end - 1] in ".!?" and len(run[-1:] and run[-1]) > 2
        if broken:
            names += _finish(run, opens)
            run, small = [], []
        if word[:1].isupper():
            if not run:
                opens = bool(_SENTENCE_START.search(text[: match.start()]))
            run += [*small, word] if run else [word]
            small = []
        elif run and re.fullmatch(_CONNECTOR, word) and len(small) < 2:
            small.append(word)
        else:
            names += _finish(run, opens)
            run, small = [], []
        previous_end = match.end() if word == match[0] else match.start() + len(word)
    return names + _finish(run, opens)


def _finish(run: list[str], opens: bool) -> list[str]:
    words = [re.sub(r"['\u2019]s$", "", word) for word in run]
    while words and mask_form(words[0]) in _COMMON:
        words, opens = words[1:], False
    while words and mask_form(words[-1]) in _COMMON:
        words = words[:-1]
    if not words or (opens and len(words) == 1):
        return []
    return [SEPARATOR.join(words)]


def _trim(phrase: str) -> str:
    return phrase.strip(" \t\n.,;:!?'\"\u2018\u2019\u201c\u201d")


def _distinct(phrases: object) -> tuple[str, ...]:
    kept: dict[str, str] = {}
    for phrase in phrases:  # type: ignore[attr-defined]
        form = mask_form(phrase)
        if form:
            kept.setdefault(form, phrase)
    return tuple(kept.values())
