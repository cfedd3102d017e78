"""A dossier from what the served model says: facts that pass the contrast, and questions made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from guard.classifiers.normalize import SEPARATOR, mask_form
from guard.classifiers.phrases import MAXIMUM_CHARACTERS, MINIMUM_CHARACTERS, acceptable
from guard.classifiers.target_kinds import kind_of
from guard.policy import Kind, Target
from guard.service.dossier.asking import Served
from guard.service.dossier.confirming import answered_with
from guard.service.dossier.contrast import LIMITS, Finding, Limits, findings, is_known
from guard.service.dossier.dossier import Dossier, Row, sorted_rows
from guard.service.dossier.interview import DEPTH, Depth, Interview, Steps, interview
from guard.service.dossier.mentions import common, is_date, is_name, is_role, mentions
from guard.service.dossier.templates import TEMPLATES
from guard.service.dossier.twin_answers import TwinAnswers
from guard.service.dossier.twins import FRAMED

MAX_INDIRECT = 24
MAX_NEIGHBOURS = 5
MAX_ROWS = 60
# templates that are also asked about a neighbour
NEIGHBOUR_QUESTIONS = 4


async def dossier_from_model(
    served: Served, name: str, kind: Kind, known: TwinAnswers, steps: Steps, *, depth: Depth = DEPTH,
    limits: Limits = LIMITS,
) -> Dossier:
    """Ask the model, take out what it says of made-up names as readily, and ask back about what remains.

    Where nothing is sure enough to come from knowledge, the dossier is the name alone. Raises ConfigurationError when
    the server fails.
    """
    heard = await interview(served, name, kind, known, steps, depth)
    found = findings(name, heard.about, heard.twins, limits, terms=kind in FRAMED)
    if not is_known(name, found, limits):
        return Dossier(name, kind, known=False)
    asked_back = _indirect(found, heard) | _other_names(name, found, heard)
    confirmed = await answered_with(served, name, kind, list(asked_back), steps)
    return Dossier(name, kind, sorted_rows(_rows(name, kind, heard, found, asked_back, confirmed)))


def _rows(
    name: str, kind: Kind, heard: Interview, found: Sequence[Finding], asked_back: dict[str, Finding],
    confirmed: frozenset[str],
) -> Iterator[Row]:
    aliases = set()
    for question, finding in asked_back.items():
        if heard.templates[finding.question].fact == "alias" and (
            question in confirmed or _longer_form(name, finding.phrase)
        ):
            aliases.add(mask_form(finding.phrase))
            yield Row("aliases", finding.phrase, _evidence(finding))
    facts = [finding for finding in found if heard.templates[finding.question].fact != "similar"]
    for finding in facts[:MAX_ROWS]:
        if mask_form(finding.phrase) not in aliases and forbiddable(finding.phrase):
            yield Row("forbid", finding.phrase, _evidence(finding))
        if finding.statement:
            yield Row("answers", finding.statement, finding.phrase)
    for template in heard.templates.values():
        if template.fact != "similar":
            yield Row("examples", template.question(name), "direct")
    for question in asked_back:
        if question in confirmed:
            yield Row("examples", question, "the model answers it with the name")
    for neighbour in _neighbours(name, kind, heard, found):
        for template in TEMPLATES[kind][:NEIGHBOUR_QUESTIONS]:
            yield Row("neighbours", template.question(neighbour))


def forbiddable(phrase: str) -> bool:
    """Whether a phrase is a name, title or full date, neither very short nor made of very common words."""
    form = mask_form(phrase)
    if is_date(phrase):
        return len(form) > MINIMUM_CHARACTERS + 1
    long_enough = MINIMUM_CHARACTERS <= len(form.replace(SEPARATOR, "")) and len(form) <= MAXIMUM_CHARACTERS
    return long_enough and not is_role(phrase) and acceptable(phrase) and not common(phrase)


def _indirect(found: Sequence[Finding], heard: Interview) -> dict[str, Finding]:
    """Questions about found names and titles that do not name the target, the strongest facts first."""
    questions: dict[str, Finding] = {}
    for finding in found:
        if is_name(finding.phrase) and not common(finding.phrase):
            patterns = (pattern for text in finding.questions for pattern in heard.templates[text].indirect)
            # "Who led the Mongol Empire?", if that is how the model speaks of it
            article = "the " if f" the {finding.phrase}" in finding.statement else ""
            for pattern in patterns:
                questions.setdefault(pattern.replace("{phrase}", article + finding.phrase), finding)
    return dict(list(questions.items())[:MAX_INDIRECT])


def _other_names(name: str, found: Sequence[Finding], heard: Interview) -> dict[str, Finding]:
    """A question by each possible alias. The name with a word after it is no other name."""
    own = mask_form(name)
    return {
        f"Who or what is {finding.phrase}?": finding
        for finding in found
        if heard.templates[finding.question].fact == "alias"
        and is_name(finding.phrase) and not common(finding.phrase) and own not in mask_form(finding.phrase)
    }


def _longer_form(name: str, phrase: str) -> bool:
    """Whether `phrase` is `name` with words in between: "John Davison Rockefeller"."""
    own, words = mask_form(name).split(SEPARATOR), mask_form(phrase).split(SEPARATOR)
    return len(own) > 1 and len(words) > len(own) and words[0] == own[0] and words[-1] == own[-1] \
        and set(own) - {word for word in own if len(word) == 1} <= set(words)


def _neighbours(name: str, kind: Kind, heard: Interview, found: Iterable[Finding]) -> list[str]:
    """Names of the same kind that the model gives where it is asked for similar ones, the most frequent first.

    What is a fact about the target is no neighbour.
    """
    facts = {mask_form(f.phrase) for f in found if heard.templates[f.question].fact != "similar"}
    own = set(mask_form(name).split(SEPARATOR))
    counts: dict[str, tuple[str, int]] = {}
    for text, template in heard.templates.items():
        if template.fact != "similar":
            continue
        for answer in heard.about[text]:
            for form, phrase in {mask_form(p): p for p in mentions(answer) if is_name(p)}.items():
                words = form.split(SEPARATOR)
                if len(words) < 2 or own & set(words) or form in facts or common(phrase):
                    continue
                if kind_of(Target(name=phrase)) == kind or kind in FRAMED:
                    counts[form] = (phrase, counts.get(form, (phrase, 0))[1] + 1)
    best = sorted(counts.values(), key=lambda pair: (-pair[1], pair[0]))
    return [phrase for phrase, _ in best[:MAX_NEIGHBOURS]]


def _evidence(finding: Finding) -> str:
    return f"{round(100 * finding.share)} % of draws, log-odds {finding.log_odds:.1f}"
