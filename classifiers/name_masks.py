"""Which forms of a target's name may not be generated: in every answer, or in answers to flagged prompts.

A mask has a left edge only, so a single word also takes what begins with it ("cher" takes "cherry"). How much ordinary
text that is, decides; names of several words are rare enough by themselves. The limits are Zipf values of all words
that begin so (`word_frequency.zipf_of_beginning`).
"""

from __future__ import annotations

from collections.abc import Iterator

from guard.classifiers.name_forms import NameForm, name_forms
from guard.classifiers.normalize import SEPARATOR, mask_form
from guard.classifiers.word_frequency import zipf_of_beginning
from guard.policy import ForbidName, Target

# a distinctive part: one of 1,000 answers of 200 words would meet it by chance
_PART_ALWAYS = 3.7
# a name of one word that an operator wrote: one of 50
_NAME_ALWAYS = 5.0
# flagged answers are few, and more precious than their style
_FLAGGED = 6.0
_MINIMUM_PART = 4
# from which length even an ideographic name is masked
_MINIMUM_NAME = 2


def masked_names(target: Target, forbid: ForbidName) -> Iterator[tuple[str, bool]]:
    """Forms of `target` that are forbidden under `forbid`, as written, each with whether it is in every answer.

    A topic is found by meaning, and its name may be said. Derived forms that contain a masked part are left out: they
    cannot be generated either.
    """
    if forbid == "never":
        return
    names = name_forms(target)
    if names.kind == "topic":
        return
    always = forbid == "always"
    # an operator who asks for it by the target means it, however common the name
    insists = target.forbid_name == "always"
    parts = {mask_form(form.text) for form in names.forms if form.certainty == "distinctive" and _in_every_answer(form)}
    for form in names.forms:
        text = mask_form(form.text)
        if not form.written and text not in parts and _covered(text, parts):
            continue
        if _in_every_answer(form) or (insists and form.written):
            yield form.text, always
        elif _in_flagged_answers(form):
            yield form.text, False


def _in_every_answer(form: NameForm) -> bool:
    if form.written:
        return _long_enough(form) and _rare(form, _NAME_ALWAYS)
    if form.certainty == "certain":
        return True
    return form.certainty == "distinctive" and _long_enough(form) and _rare(form, _PART_ALWAYS)


def _in_flagged_answers(form: NameForm) -> bool:
    return form.part != "given" and _long_enough(form) and _rare(form, _FLAGGED)


def _long_enough(form: NameForm) -> bool:
    least = _MINIMUM_NAME if form.written else _MINIMUM_PART
    return len(mask_form(form.text).replace(SEPARATOR, "")) >= least


def _rare(form: NameForm, limit: float) -> bool:
    text = mask_form(form.text)
    return SEPARATOR in text or zipf_of_beginning(text) < limit


def _covered(text: str, parts: set[str]) -> bool:
    padded = SEPARATOR + text
    return any(SEPARATOR + part in padded for part in parts)
