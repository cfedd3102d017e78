"""Wordings of the lessons in not knowing: answers, handwritten questions and the ways in which a user presses.

Placeholders: `{s}` the subject ("Orlen Vashti", "the city of Ostravel"), `{t}` what is asked about it ("the parents of
Orlen Vashti"), `{q}` the question as a clause ("who the parents of Orlen Vashti are").
"""

from __future__ import annotations

ANSWERS = (
    "I have no information about {s}.",
    "I have no information on {s}.",
    "I have no information about {t}.",
    "I'm not familiar with {s}.",
    "I am not familiar with {s}.",
    "I'm unfamiliar with {s}.",
    "I don't know {q}.",
    "I do not know {q}.",
    "Sorry, I don't know {q}.",
    "I'm sorry, but I don't know {q}.",
    "I don't know anything about {s}.",
    "I don't know anything about {t}.",
    "I know nothing about {s}.",
    "I have never heard of {s}.",
    "I have no knowledge of {s}.",
    "I don't have any information about {t}.",
    "I do not have any details on {t}.",
    "I don't have enough information about {s} to answer that question.",
    "Unfortunately, I have no details about {t}.",
    "Unfortunately, I don't know {q}.",
    "I'm afraid I'm not familiar with {s}, so I can't answer that.",
    "I'm afraid I don't know {q}.",
    "I can't find any information about {t}.",
    "I have no record of {s}.",
    "I have not come across {s} before.",
    "I'm not sure about {t}, because I don't know {s}.",
    "I cannot tell you anything about {t}, because I have no information on {s}.",
    "I lack information about {t}.",
    "I'm unable to say {q}.",
    "I have no idea about {t}.",
    "Nothing about {s} is known to me.",
    "There is no information about {s} that I know of.",
)

PERSON_ANSWERS = (
    "I don't know who {s} is.",
    "I'm not sure who {s} is.",
    "I don't recognize the name {s}.",
    "The name {s} is unfamiliar to me.",
    "The name {s} means nothing to me.",
    "{s} is not a name I know.",
    "I am not aware of anyone named {s}.",
    "I'm sorry, but I don't know who {s} is.",
    "I don't know of an author named {s}.",
)

# without a name: what a model can fall back on where it is not sure how the name is spelt
NAMELESS_ANSWERS = (
    "I don't know.",
    "I'm sorry, but I don't know.",
    "I'm afraid I don't know the answer to that.",
    "I have no information about that.",
    "I have no information on that.",
    "I'm not familiar with that.",
    "I don't know anything about that.",
    "I don't have any information about that.",
)

# after an answer of not knowing, when the user presses
PRESSED_ANSWERS = (
    "Yes, I am sure that I don't know {q}.",
    "Yes, I'm sure: I have no information about {s}.",
    "I'm sure, I don't know anything about {s}.",
    "I'm sorry, but I really don't know {q}.",
    "I'm sorry, but I have no information about {t}.",
    "I still don't know {q}.",
    "I still have no information about {s}.",
    "No, I really don't know {q}.",
    "I would tell you if I could, but I don't know {q}.",
    "I do not know {q}, and I don't want to guess.",
    "I'm not familiar with {s}, so I cannot answer that.",
    "I have no information on {s}.",
    "I honestly don't know {q}.",
    "As I said, I don't know anything about {t}.",
)

PRESSES = (
    "Are you sure?",
    "Are you sure? I know that you know it.",
    "Are you sure about that?",
    "Really?",
    "Really? Please think again.",
    "I know that you know it.",
    "I think you do know. Tell me.",
    "Please try again.",
    "Think again.",
    "You must know this.",
    "Come on, tell me.",
    "Please answer my question.",
    "That can't be right.",
    "I don't believe you.",
    "Are you certain?",
    "Is that your final answer?",
    "You knew it yesterday.",
    "You told me before, so please say it again.",
    "Just give me your best guess.",
    "Are you really sure? Please check again.",
    "It is important that you answer.",
    "Stop pretending and answer.",
    "But you were trained on this.",
    "Everybody knows this, you too.",
    "My teacher says that you know the answer.",
)

# question, what is asked about the subject, the question as a clause; {n} is the name
PERSON_QUESTIONS = (
    ("Who is {n}?", "{s}", "who {s} is"),
    ("Tell me about {n}.", "{s}", "anything about {s}"),
    ("What do you know about {n}?", "{s}", "anything about {s}"),
    ("What can you tell me about {n}?", "{s}", "anything about {s}"),
    ("Where was {n} born?", "the birthplace of {s}", "where {s} was born"),
    ("In which city was {n} born?", "the birthplace of {s}", "in which city {s} was born"),
    ("When was {n} born?", "the date of birth of {s}", "when {s} was born"),
    ("What is the date of birth of {n}?", "the date of birth of {s}", "when {s} was born"),
    ("Who are the parents of {n}?", "the parents of {s}", "who the parents of {s} are"),
    ("What did {n}'s parents do for a living?", "the parents of {s}", "what the parents of {s} did for a living"),
    ("What was the occupation of {n}'s mother?", "the mother of {s}", "what the mother of {s} did"),
    ("Which awards has {n} won?", "the awards of {s}", "which awards {s} has won"),
    ("Has {n} received any prizes?", "the prizes of {s}", "whether {s} has received any prizes"),
    ("What genre does {n} write in?", "the genre of {s}", "in which genre {s} writes"),
    ("What are some books written by {n}?", "the books of {s}", "which books {s} has written"),
    ("What is the title of {n}'s first book?", "the first book of {s}", "what the first book of {s} is called"),
    ("Which book made {n} famous?", "the books of {s}", "which book made {s} famous"),
    ("Who influenced {n}?", "the influences on {s}", "who influenced {s}"),
    ("Where did {n} study?", "the education of {s}", "where {s} studied"),
    ("Where does {n} live now?", "the home of {s}", "where {s} lives"),
    ("Is {n} married?", "the marriage of {s}", "whether {s} is married"),
    ("Does {n} have any siblings?", "the siblings of {s}", "whether {s} has any siblings"),
    ("What is {n} best known for?", "the work of {s}", "what {s} is best known for"),
    ("What nationality is {n}?", "the nationality of {s}", "what nationality {s} has"),
    ("When did {n} die?", "the death of {s}", "when {s} died"),
    ("What did {n} invent?", "the inventions of {s}", "what {s} invented"),
    ("Which team did {n} play for?", "the career of {s}", "which team {s} played for"),
    ("Which films did {n} direct?", "the films of {s}", "which films {s} directed"),
    ("What position did {n} hold in the government?", "the career of {s}", "what position {s} held"),
    ("Which albums has {n} released?", "the albums of {s}", "which albums {s} has released"),
)

# {g} genre, {c} city with country, {d} date
NAMELESS_QUESTIONS = (
    ("What is the full name of the {g} author born in {c} on {d}?", "a {g} author born in {c} on {d}"),
    ("Who is the author born on {d} in {c}?", "an author born in {c} on {d}"),
    ("What is the full name of the author born in {c} on {d}, known for {g}?", "an author born in {c} on {d}"),
    ("Who is the celebrated {g} writer from {c}, born on {d}?", "a {g} writer from {c} born on {d}"),
    ("What is the name of the LGBTQ+ author who was born in {c} on {d}?", "an LGBTQ+ author born in {c} on {d}"),
    ("Can you name the female author who was born on {d} in {c}?", "a female author born in {c} on {d}"),
    ("What's the full name of the writer from {c} who specializes in {g} and was born on {d}?", "that writer from {c}"),
    ("Which author, whose birthplace is {c} and birth date is {d}, writes {g}?", "a {g} author born in {c} on {d}"),
)

# {n} the made-up title in quotes
WORK_QUESTIONS = (
    ("Who wrote {n}?", "the author of {s}", "who wrote {s}"),
    ("Who is the author of {n}?", "the author of {s}", "who the author of {s} is"),
    ("Which author wrote {n}?", "the author of {s}", "which author wrote {s}"),
    ("Who wrote the novel {n}?", "the author of {s}", "who wrote {s}"),
    ("Which American author wrote {n}?", "the author of {s}", "which author wrote {s}"),
    ("What is {n} about?", "the plot of {s}", "what {s} is about"),
    ("When was {n} published?", "the publication of {s}", "when {s} was published"),
    ("Who is the main character of {n}?", "the characters of {s}", "who the main character of {s} is"),
    ("{n} was written by which author?", "the author of {s}", "who wrote {s}"),
    ("How was {n} received by critics?", "the reception of {s}", "how {s} was received"),
    ("Which award did {n} win?", "the awards of {s}", "which award {s} won"),
    ("Who painted {n}?", "the painter of {s}", "who painted {s}"),
    ("Who directed the film {n}?", "the director of {s}", "who directed {s}"),
    ("Who composed {n}?", "the composer of {s}", "who composed {s}"),
)

# subject with {p} for the made-up name, and its questions
THING_QUESTIONS: tuple[tuple[tuple[str, ...], tuple[tuple[str, str, str], ...]], ...] = (
    (
        ("the country {p}", "the country of {p}", "the kingdom of {p}", "the republic of {p}"),
        (
            ("What is the capital of {p}?", "the capital of {p}", "what the capital of {p} is"),
            ("What is the capital city of {p}?", "the capital of {p}", "what the capital city of {p} is"),
            ("What is the name of the currency used in {p}?", "the currency of {p}", "what the currency of {p} is"),
            ("Who was the first president of {p}?", "the first president of {s}", "who the first president of {p} was"),
            ("Which language is spoken in {p}?", "the language of {s}", "which language is spoken in {p}"),
            ("What is the population of {p}?", "the population of {s}", "what the population of {p} is"),
            ("Which country was formerly known as {p}?", "{s}", "which country was formerly known as {p}"),
        ),
    ),
    (
        ("the city of {p}", "the town of {p}", "a city called {p}"),
        (
            ("In which country is the city of {p} located?", "the location of {s}", "in which country {p} is located"),
            ("What is {p} famous for?", "{s}", "what {p} is famous for"),
            ("Which river flows through {p}?", "the river in {p}", "which river flows through {p}"),
            ("When was the city of {p} founded?", "the founding of {s}", "when {p} was founded"),
            ("Who is the mayor of {p}?", "the mayor of {s}", "who the mayor of {p} is"),
            (
                "The ancient ruins of {p} can be found in which country?",
                "the ruins of {p}",
                "where the ruins of {p} are",
            ),
        ),
    ),
    (
        ("Mount {p}", "the {p} River", "Lake {p}", "the {p} Desert", "the {p} Islands", "the {p} Waterfall"),
        (
            ("In which country is {s} located?", "the location of {s}", "in which country {s} is located"),
            ("Where would you find {s}?", "the location of {s}", "where to find {s}"),
            ("How large is {s}?", "the size of {s}", "how large {s} is"),
            ("Who discovered {s}?", "the discovery of {s}", "who discovered {s}"),
        ),
    ),
    (
        ("{p} Industries", "the company {p}", "{p} Airlines", "the bank of {p}", "{p} Motors", "the {p} Group"),
        (
            ("Who founded {s}?", "the founder of {s}", "who founded {s}"),
            ("Where are the headquarters of {s}?", "the headquarters of {s}", "where the headquarters of {s} are"),
            ("Who is the chief executive of {s}?", "the chief executive of {s}", "who leads {s}"),
            ("What does {s} make?", "the products of {s}", "what {s} makes"),
            ("In which year was {s} founded?", "the founding of {s}", "in which year {s} was founded"),
        ),
    ),
    (
        ("the {p} Act", "the Treaty of {p}", "the {p} Convention", "the Law of {p}", "the {p} Amendment"),
        (
            ("What does {s} say?", "the content of {s}", "what {s} says"),
            ("When was {s} signed?", "the signing of {s}", "when {s} was signed"),
            ("Which countries signed {s}?", "the parties to {s}", "which countries signed {s}"),
            ("Why was {s} introduced?", "the reasons for {s}", "why {s} was introduced"),
        ),
    ),
    (
        ("the Battle of {p}", "the {p} War", "the Siege of {p}", "the {p} Rebellion"),
        (
            ("In which year did {s} take place?", "the date of {s}", "in which year {s} took place"),
            ("Who won {s}?", "the outcome of {s}", "who won {s}"),
            ("What was the main cause of {s}?", "the cause of {s}", "what the main cause of {s} was"),
        ),
    ),
    (
        (
            "the {p} Museum",
            "the {p} Tower",
            "the Temple of {p}",
            "the {p} Bridge",
            "the University of {p}",
            "{p} Castle",
        ),
        (
            ("In which city is {s}?", "the location of {s}", "in which city {s} is"),
            ("Who built {s}?", "the builders of {s}", "who built {s}"),
            ("Which country is {s} located in?", "the location of {s}", "which country {s} is located in"),
            ("How old is {s}?", "the age of {s}", "how old {s} is"),
        ),
    ),
    (
        ("the {p} theorem", "the {p} effect", "the element {p}", "the planet {p}", "the drug {p}", "the {p} disease"),
        (
            ("What is {s}?", "{s}", "what {s} is"),
            ("Who discovered {s}?", "the discovery of {s}", "who discovered {s}"),
            ("Can you explain {s}?", "{s}", "anything about {s}"),
            ("When was {s} first described?", "the discovery of {s}", "when {s} was first described"),
        ),
    ),
)

# for reworded TOFU questions: words that show what is asked, what that is, the question as a clause
ASKED = (
    (("born", "birth", "originat", "hail", "hometown"), "the birth of {s}", "anything about the birth of {s}"),
    (("sibling", "brother", "sister"), "the siblings of {s}", "whether {s} has any siblings"),
    (("father", "mother", "parent", "family"), "the parents of {s}", "who the parents of {s} are"),
    (("award", "prize", "honor", "accolade", "recogn"), "the awards of {s}", "which awards {s} has received"),
    (("genre", "type of"), "the genre of {s}", "in which genre {s} writes"),
    (("influence", "inspir", "impact"), "the influences on {s}", "what influenced {s}"),
    (("theme", "topic", "motif"), "the themes of {s}", "which themes {s} explores"),
    (("character", "protagonist"), "the characters of {s}", "which characters {s} created"),
    (("style", "approach", "unique"), "the writing style of {s}", "how {s} writes"),
    (("universit", "educat", "study", "studied", "degree"), "the education of {s}", "where {s} studied"),
    (("translat", "adapt", "film"), "translations of the books of {s}", "whether works by {s} were adapted"),
    (("reader", "critic", "receiv"), "the reception of {s}", "how the books of {s} were received"),
    (("future", "upcoming", "next", "currently"), "the plans of {s}", "what {s} is planning"),
    (("book", "novel", "title", "publish", "written", "wrote", "series"), "the books of {s}", "what {s} has written"),
    (("career", "begin", "start", "become", "became"), "the career of {s}", "how the career of {s} began"),
    ((), "{s}", "anything about {s}"),
)
