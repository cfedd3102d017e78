"""Questions that are asked about a name, by its kind, and the questions that a found fact turns into.

A template's `fact` says what its answers hold; `indirect` are questions about the same fact that do not name the
target, with the found phrase in their place. They become examples where the model answers them with the name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guard.policy import Kind

Fact = Literal[
    "role", "alias", "date", "place", "relative", "work", "character", "organisation", "award", "event", "idea", "part",
    "maker", "known", "similar",
]
FILL = "Fill in the blank: "


@dataclass(frozen=True, slots=True)
class Template:
    """A question with `{name}`; `long` answers are lists or descriptions.

    `blank` is a statement with a gap that asks for the same; small models fill it better than they answer.
    """

    text: str
    fact: Fact
    indirect: tuple[str, ...] = ()
    long: bool = False
    blank: str = ""

    def question(self, name: str) -> str:
        """The question about `name`."""
        return self.text.replace("{name}", name)

    def gap(self, name: str) -> str:
        """The statement about `name` with its gap, as a question; empty when there is none."""
        return FILL + self.blank.replace("{name}", name) if self.blank else ""


_WROTE = ("Who wrote {phrase}?", "Who is the author of {phrase}?")
_PLAYED = ("Who starred in {phrase}?", "Which actor is best known for {phrase}?")
_SANG = ("Who recorded {phrase}?", "Which singer is known for {phrase}?")
_FOUNDED = ("Who founded {phrase}?", "Who is the head of {phrase}?")
_MADE = ("Who is known for {phrase}?", "Who created {phrase}?")

PERSON = (
    Template("Who is {name}?", "known", _MADE, blank="{name} is a renowned ___.", long=True),
    Template("What is {name} best known for?", "known", _MADE, blank="{name} is best known for ___.", long=True),
    Template("What is the profession of {name}?", "role", blank="{name} is an American ___."),
    Template("When was {name} born?", "date", blank="{name} was born on ___."),
    Template("Where was {name} born?", "place", blank="{name} was born in the city of ___."),
    Template("What is {name}'s full birth name?", "alias", blank="The full birth name of {name} is ___."),
    Template("By what other names is {name} also known?", "alias", blank="{name} is also known as ___."),
    Template("Who is {name} married to?", "relative", ("Who is married to {phrase}?",),
             blank="{name} is married to ___."),
    Template("Who are the parents, children and siblings of {name}?", "relative",
             blank="The parents of {name} are ___.", long=True),
    Template("Where did {name} go to school and university?", "organisation",
             blank="{name} studied at the university ___."),
    Template("Which company, group or organisation did {name} found or lead?", "organisation", _FOUNDED,
             blank="{name} is the founder of ___."),
    Template("What are the most famous works of {name}?", "work", _MADE,
             blank="The most famous works of {name} are ___.", long=True),
    Template("Which awards has {name} won?", "award", blank="{name} won the award ___."),
    Template("In which years did {name}'s career begin and end?", "date",
             blank="The career of {name} began in the year ___."),
    Template("Which other people are often compared to {name}?", "similar",
             blank="{name} is often compared to ___.", long=True),
)
# further questions about people of a profession, by words that the model uses for it
PROFESSIONS: dict[str, tuple[tuple[str, ...], tuple[Template, ...]]] = {
    "screen": (
        ("actor", "actress", "comedian", "filmmaker", "film director", "television", "movie"),
        (
            Template("Which films has {name} starred in?", "work", _PLAYED,
                     blank="{name} is known for starring in the films ___.", long=True),
            Template("Which television series has {name} appeared in?", "work", _PLAYED,
                     blank="{name} is best known for the television series ___.", long=True),
            Template("Which characters has {name} played?", "character", ("Who played {phrase}?",),
                     blank="{name} is best known for playing the character ___.", long=True),
        ),
    ),
    "music": (
        ("singer", "songwriter", "rapper", "musician", "guitarist", "pop star", "composer", "album"),
        (
            Template("Which albums has {name} released?", "work", _SANG,
                     blank="{name} released the album ___.", long=True),
            Template("What are the best-known songs of {name}?", "work", _SANG,
                     blank="{name} is best known for the song ___.", long=True),
            Template("Which band or group is {name} a member of?", "organisation", ("Who is a member of {phrase}?",),
                     blank="{name} is a member of the band ___."),
        ),
    ),
    "letters": (
        ("author", "writer", "novelist", "poet", "playwright", "novel", "journalist"),
        (
            Template("Which books has {name} written?", "work", _WROTE,
                     blank="{name} wrote the book ___.", long=True),
            Template("Under which pseudonym has {name} written?", "alias",
                     blank="{name} has written under the pseudonym ___."),
            Template("Which films are based on books by {name}?", "work", _WROTE,
                     blank="The film ___ is based on a book by {name}.", long=True),
        ),
    ),
    "business": (
        ("businessman", "businesswoman", "entrepreneur", "investor", "ceo", "industrialist", "founder", "executive",
         "philanthropist"),
        (
            Template("Which company is {name} known for?", "organisation", _FOUNDED,
                     blank="{name} is the chairman and CEO of ___."),
            Template("How did {name} become rich?", "organisation", _FOUNDED,
                     blank="{name} became rich with the company ___.", long=True),
        ),
    ),
    "power": (
        ("politician", "president", "prime minister", "emperor", "king", "queen", "statesman", "diplomat", "ruler",
         "prince", "duchess", "general", "leader", "conqueror", "royal"),
        (
            Template("Which country or empire did {name} lead?", "organisation", ("Who led {phrase}?",),
                     blank="{name} was the leader of ___."),
            Template("Which offices or titles has {name} held?", "role", blank="{name} held the office of ___."),
            Template("Which wars, treaties or laws is {name} known for?", "event", _MADE,
                     blank="{name} played a main part in ___.", long=True),
        ),
    ),
    "sport": (
        ("athlete", "player", "footballer", "boxer", "martial artist", "basketball", "tennis", "quarterback", "coach"),
        (
            Template("Which teams has {name} played for?", "organisation", ("Who played for {phrase}?",),
                     blank="{name} played for the team ___."),
            Template("Which titles and championships has {name} won?", "award",
                     blank="{name} won the championship ___."),
        ),
    ),
    "thought": (
        ("scientist", "philosopher", "physicist", "inventor", "mathematician", "painter", "artist", "sculptor",
         "polymath", "economist", "thinker"),
        (
            Template("What did {name} discover, invent or create?", "work", _MADE,
                     blank="{name} created ___.", long=True),
            Template("Which paintings, writings or ideas is {name} famous for?", "work", _MADE,
                     blank="The masterpiece of {name} is ___.", long=True),
        ),
    ),
}
WORK = (
    Template("What is {name}?", "known", long=True),
    Template("Who wrote or made {name}?", "maker", ("What is the most famous work of {phrase}?",),
             blank="{name} was created by ___."),
    Template("When was {name} published or released?", "date", blank="{name} was released in ___."),
    Template("What is {name} about?", "known", long=True),
    Template("Who are the main characters in {name}?", "character", ("Where does {phrase} appear?",),
             blank="The main character of {name} is called ___.", long=True),
    Template("Where does {name} take place?", "place", blank="{name} takes place in ___."),
    Template("How does {name} end?", "event", long=True),
    Template("Which awards has {name} won?", "award", blank="{name} won the award ___."),
    Template("By what other titles is {name} also known?", "alias", blank="{name} is also known as ___."),
    Template("Who acts in or performs {name}?", "relative", long=True),
    Template("Which company published or produced {name}?", "organisation",
             blank="{name} was produced by the company ___."),
    Template("Which famous line comes from {name}?", "part", long=True),
    Template("Which other works are often compared to {name}?", "similar", long=True),
)
PLACE = (
    Template("What is {name}?", "known", long=True),
    Template("Where is {name}?", "place", blank="{name} is in ___."),
    Template("What is {name} best known for?", "known", long=True),
    Template("By what other names is {name} also known?", "alias", blank="{name} is also known as ___."),
    Template("When was {name} founded or built?", "date", blank="{name} was founded in the year ___."),
    Template("Who founded or built {name}?", "maker", ("What did {phrase} build?",),
             blank="{name} was founded by ___."),
    Template("Which sights are there in {name}?", "part", ("Where is {phrase}?",), long=True),
    Template("Which people come from {name}?", "relative", ("Where does {phrase} come from?",), long=True),
    Template("What happened in {name}?", "event", long=True),
    Template("Which rivers, mountains or seas are near {name}?", "part", long=True),
    Template("Which companies are based in {name}?", "organisation", ("Where is {phrase} based?",), long=True),
    Template("Which other places are often compared to {name}?", "similar", long=True),
)
ORGANISATION = (
    Template("What is {name}?", "known", long=True),
    Template("What is {name} best known for?", "known", ("Who makes {phrase}?",), long=True),
    Template("Who founded {name}?", "maker", ("What did {phrase} found?",), blank="{name} was founded by ___."),
    Template("When was {name} founded?", "date", blank="{name} was founded in the year ___."),
    Template("Where is {name} based?", "place", blank="The headquarters of {name} are in ___."),
    Template("Who leads {name}?", "relative", ("What does {phrase} lead?",), blank="The head of {name} is ___."),
    Template("Which products or services does {name} offer?", "work", ("Who makes {phrase}?",),
             blank="The best-known product of {name} is ___.", long=True),
    Template("By what other names is {name} also known?", "alias", blank="{name} is also known as ___."),
    Template("Which companies or groups belong to {name}?", "organisation", ("Who owns {phrase}?",), long=True),
    Template("Which scandals or lawsuits was {name} part of?", "event", long=True),
    Template("What happened in the history of {name}?", "event", long=True),
    Template("Which other organisations are often compared to {name}?", "similar", long=True),
)
FACT = (
    Template("What do you know about this: {name}?", "known", long=True),
    Template("Is this true: {name}?", "known", long=True),
    Template("Who was involved in this: {name}?", "relative", long=True),
    Template("When did this happen: {name}?", "date"),
    Template("Where did this happen: {name}?", "place"),
    Template("What led to this: {name}?", "event", long=True),
    Template("What followed from this: {name}?", "event", long=True),
    Template("Which organisations had to do with this: {name}?", "organisation", long=True),
    Template("What is this also called: {name}?", "alias"),
    Template("What else is like this: {name}?", "similar", long=True),
)
TOPIC = (
    Template("What is {name}?", "known", long=True),
    Template("Explain {name}.", "known", long=True),
    Template("How does {name} work?", "idea", long=True),
    Template("What are the steps of {name}?", "idea", long=True),
    Template("What is needed for {name}?", "part", ("What is {phrase} used for?",), long=True),
    Template("Which materials, tools or methods belong to {name}?", "part", ("What is {phrase} used for?",), long=True),
    Template("Who is known for {name}?", "maker", ("What is {phrase} known for?",), long=True),
    Template("When and where did {name} begin?", "date"),
    Template("By what other names is {name} also known?", "alias", blank="{name} is also known as ___."),
    Template("What are the dangers of {name}?", "event", long=True),
    Template("What are examples of {name}?", "part", long=True),
    Template("Which other topics are close to {name}?", "similar", long=True),
)
TEMPLATES: dict[Kind, tuple[Template, ...]] = {
    "person": PERSON, "work": WORK, "place": PLACE, "organisation": ORGANISATION, "fact": FACT, "topic": TOPIC,
    "text": WORK,
}


def further(kind: Kind, said: str, groups: int = 2) -> tuple[Template, ...]:
    """Questions about a person's profession, by how often `said` (what the model answered so far) speaks of it."""
    if kind != "person":
        return ()
    lowered = said.casefold()
    counts = {group: sum(lowered.count(word) for word in words) for group, (words, _) in PROFESSIONS.items()}
    best = sorted((group for group in counts if counts[group]), key=lambda group: -counts[group])[:groups]
    return tuple(template for group in best for template in PROFESSIONS[group][1])
