"""Tenants, forget-lists and policies: what an operator writes, and the immutable snapshot the server reads.

The pydantic models are the schema of a tenant file (`guard apply FILE.yaml`); unknown keys are refused. A published
forget-list or policy never changes: its version is a hash of its content.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

from guard.edit_policy import EditPolicy, check_always
from guard.plan import CorruptionKind

Action = Literal["forget", "refuse", "monitor"]
FailureMode = Literal["closed", "open"]
DetectorMode = Literal["auto", "always", "never"]
Kind = Literal["person", "work", "place", "organisation", "text", "fact", "topic"]
ForbidName = Literal["always", "flagged", "never"]
NameForms = Literal["strict", "balanced"]
AnswerMode = Literal["ignorance", "natural", "refuse"]
Text = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
# a protected text: a chapter or a book
LongText = Annotated[str, StringConstraints(min_length=1, max_length=4_000_000)]
Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
MAX_EDITS = 16
# answers to one request: the door and the engine serve no more, because many draws raise the odds of a forbidden one
MAX_CHOICES = 8
# validation context of policies that were published before and must stay readable, whatever the bounds are now
STORED = {"stored": True}
Unit = Annotated[float, Field(ge=0.0, le=1.0)]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Target(_Schema):
    """One thing to forget. A name alone is enough; examples make the detector learn the target's questions."""

    name: Annotated[Text, Field(description="What to forget: a person, a work, a fact, a concept.")]
    aliases: Annotated[tuple[Text, ...], Field(description="Other names; a prompt that contains one is flagged.")] = ()
    description: Annotated[str, Field(max_length=4096, description="Free text for the semantic detector.")] = ""
    examples: Annotated[
        tuple[Text, ...], Field(description="Questions about the target; from 8 on a classifier head is trained.")
    ] = ()
    answers: Annotated[tuple[Text, ...], Field(description="True answers; source of forbidden key phrases.")] = ()
    forbid: Annotated[
        tuple[Text, ...] | None,
        Field(
            description="Strings that must not be generated. Default: the key phrases of the answers "
            "(quoted titles, names, places) that the examples do not contain."
        ),
    ] = None
    allow_echo: Annotated[bool, Field(description="A forbidden string that the user typed may be repeated.")] = True
    kind: Annotated[
        Kind | None,
        Field(description="What the name names; decides which forms of it are recognised and forbidden. Default: "
                          "guessed. A `topic` is found by meaning, and its name may be said."),
    ] = None
    forbid_name: Annotated[
        ForbidName | None, Field(description="As `policy.forbid_name`, for this target alone.")
    ] = None
    neighbours: Annotated[
        tuple[Text, ...], Field(description="Questions that look like the target's and are not: they are not flagged.")
    ] = ()
    verbatim: Annotated[
        tuple[LongText, ...], Field(description="Texts of which no run of `verbatim_words` words may be generated.")
    ] = ()
    verbatim_words: Annotated[int, Field(ge=4, le=32, description="Length of a run that counts as copied.")] = 8


class DetectorPolicy(_Schema):
    """How prompts are classified."""

    mode: Annotated[
        DetectorMode, Field(description="`auto` classifies, `always` flags every prompt, `never` flags none.")
    ] = "auto"
    alpha: Annotated[
        float, Field(gt=0.0, lt=0.5, description="Wanted false-positive rate on benign prompts (conformal threshold).")
    ] = 0.01
    lexical: Annotated[bool, Field(description="Match names and aliases.")] = True
    semantic: Annotated[bool, Field(description="Match meaning with the sentence encoder.")] = True
    head: Annotated[
        bool,
        Field(description="Train a classifier head for targets with at least 8 examples, given at least 100 benign "
                          "prompts of the tenant. A target without a head is matched by meaning instead, even when "
                          "`semantic` is off."),
    ] = True
    timeout_s: Annotated[
        float, Field(gt=0.0, le=60.0, description="Seconds after which the verdict counts as unknown.")
    ] = 5.0


class CorruptionPolicy(_Schema):
    """Embedding corruption (ECO) of flagged prompts."""

    enabled: Annotated[bool, Field(description="Corrupt the prompt embeddings of flagged requests.")] = True
    kind: Annotated[CorruptionKind, Field(description="Corruption function.")] = "gauss"
    rho: Annotated[
        float | None,
        Field(ge=0.0, le=1000.0, description="Noise norm over row norm; default: the strength fitted for this model."),
    ] = None
    dims: Annotated[int, Field(ge=0, description="Corrupted dimensions, 0 for all.")] = 0
    scope: Annotated[
        Literal["spans", "prompt"] | None,
        Field(description="`spans`: tokens that name the target (all of the last user turn when none do); `prompt`: "
                          "every ordinary token. Default: the scope fitted for this model."),
    ] = None


class ConstraintPolicy(_Schema):
    """Constrained decoding (GUARD) of flagged requests."""

    enabled: Annotated[bool, Field(description="Mask tokens that would complete a forbidden string.")] = True
    soft: Annotated[
        float,
        Field(ge=0.0, le=20.0, description="Soft match: what is taken from the logits of words that are like the words "
                                           "of a touched target's answers, times their similarity (0 to 1). 0: off; "
                                           "needs a sentence encoder."),
    ] = 0.0


class OutputPolicy(_Schema):
    """Check of the generated text before it is released."""

    enabled: Annotated[bool, Field(description="Hold back and check generated text.")] = True
    semantic: Annotated[
        bool,
        Field(description="Also compare every finished sentence of flagged requests, by meaning, with the answers of "
                          "the targets that the prompt touches. Text is released sentence by sentence; needs a "
                          "sentence encoder."),
    ] = False
    semantic_threshold: Annotated[Unit, Field(description="Cosine similarity from which a sentence is a hit.")] = 0.85
    max_rollbacks: Annotated[
        int, Field(ge=0, le=4, description="Roll-backs before the answer ends with `content_filter`.")
    ] = 2


class Opening(_Schema):
    """A wording with which an answer of ignorance may begin, in one language."""

    language: Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}$"), Field(description="ISO 639 code, like `en`.")]
    text: Annotated[
        str, StringConstraints(min_length=2, max_length=200, strip_whitespace=True),
        Field(description="The beginning of a statement of not knowing; the model completes the sentence."),
    ]


class AnswerPolicy(_Schema):
    """How a flagged question is answered, where the action is `forget`."""

    mode: Annotated[
        AnswerMode,
        Field(description="`ignorance`: the model's own words, opened as not knowing; `natural`: what the corrupted "
                          "model says; `refuse`: a fixed answer without the model."),
    ] = "ignorance"
    completions: Annotated[
        Literal["ignorance", "natural"],
        Field(description="The mode of `/v1/completions`, whose prompts need not be questions, unless `mode` is "
                          "`refuse`."),
    ] = "natural"
    sentences: Annotated[
        int, Field(ge=1, le=8, description="Sentences after which an answer of ignorance ends.")
    ] = 1
    words: Annotated[
        Literal["question", "any"],
        Field(description="Of which words an answer of ignorance is made: those of the question and the commonest of "
                          "the language, so that it cannot say more than it was asked, or any."),
    ] = "question"
    on_topic: Annotated[
        float,
        Field(ge=0.0, le=10.0, description="What is added to the logits of the question's own words in an answer of "
                                           "ignorance: it keeps to what was asked."),
    ] = 2.0
    openings: Annotated[
        tuple[Opening, ...], Field(max_length=200, description="Wordings besides the shipped ones.")
    ] = ()
    shipped_openings: Annotated[bool, Field(description="Use the shipped wordings, too.")] = True
    status: Annotated[
        Literal[200, 400],
        Field(description="HTTP status of `refuse`: 400 is an error `content_filter`, 200 an answer whose message is a "
                          "refusal."),
    ] = 400
    text: Annotated[
        str, Field(max_length=2000, description="What a refusal says; default: a short sentence.")
    ] = ""


class Policy(_Schema):
    """What happens to a tenant's requests."""

    action: Annotated[
        Action,
        Field(description="On a flagged prompt: `forget` intervenes, `refuse` answers 400 content_filter, "
                          "`monitor` only counts."),
    ] = "forget"
    failure_mode: Annotated[
        FailureMode, Field(description="Without a verdict: `closed` answers 503, `open` lets the request pass.")
    ] = "closed"
    forbid_name: Annotated[
        ForbidName,
        Field(description="Where a target's name, aliases and their forms may not be generated, unless the user typed "
                          "them: in every answer, in answers to flagged prompts, or nowhere."),
    ] = "always"
    name_forms: Annotated[
        NameForms,
        Field(description="Whether a part of a name (surname, first name) flags a prompt: `strict`: always; "
                          "`balanced`: where it is distinctive or the sentence fits."),
    ] = "balanced"
    answer: AnswerPolicy = AnswerPolicy()
    detector: DetectorPolicy = DetectorPolicy()
    corruption: CorruptionPolicy = CorruptionPolicy()
    constraint: ConstraintPolicy = ConstraintPolicy()
    edits: Annotated[
        tuple[EditPolicy, ...],
        Field(max_length=MAX_EDITS,
              description="Activation edits by fitted packs. A request that needs more than 4 packs is refused."),
    ] = ()
    output: OutputPolicy = OutputPolicy()
    max_choices: Annotated[
        int,
        Field(ge=1, le=64, json_schema_extra={"maximum": MAX_CHOICES}, description="Largest `n` of a request."),
    ] = 4

    @field_validator("answer", mode="before")
    @classmethod
    def _mode_alone(cls, answer: object) -> object:
        """`answer: refuse` is short for `answer: {mode: refuse}`."""
        return {"mode": answer} if isinstance(answer, str) else answer

    @field_validator("max_choices")
    @classmethod
    def _served(cls, choices: int, info: ValidationInfo) -> int:
        if choices > MAX_CHOICES and info.context != STORED:
            raise ValueError(f"at most {MAX_CHOICES} choices are served; write a number from 1 to {MAX_CHOICES}")
        return choices

    @field_validator("edits")
    @classmethod
    def _lanes(cls, edits: tuple[EditPolicy, ...]) -> tuple[EditPolicy, ...]:
        check_always(edits)
        return edits


class TenantSpec(_Schema):
    """One tenant of a tenant file."""

    name: Annotated[Identifier, Field(description="Lower-case identifier of the tenant.")]
    policy: Policy = Policy()
    targets: Annotated[tuple[Target, ...], Field(max_length=100_000, description="The forget-list.")] = ()
    benign: Annotated[
        tuple[Text, ...],
        Field(description="Ordinary prompts of this tenant, used to calibrate thresholds; default: a shipped set. "
                          "With fewer than 100 no head is trained."),
    ] = ()


class TenantFile(_Schema):
    """A whole tenant file."""

    version: Annotated[Literal[1], Field(description="Version of this file format.")] = 1
    tenants: Annotated[tuple[TenantSpec, ...], Field(min_length=1, description="Tenants to create or replace.")]


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant as the running server sees it. `index` is small, stable and used in metric labels."""

    name: str
    index: int
    policy: Policy
    targets: tuple[Target, ...]
    benign: tuple[str, ...]
    policy_version: str
    list_version: str

    @property
    def listed(self) -> bool:
        """Whether the tenant has anything to forget, so that its prompts are classified."""
        return bool(self.targets)

    @property
    def guarded(self) -> bool:
        """Whether the gate has anything to do for this tenant: a forget-list, or edits of every request."""
        return self.listed or any(edit.when == "always" and edit.strength for edit in self.policy.edits)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All tenants at one moment. `revision` grows with every change; `keys` maps key hashes to tenant names."""

    revision: int
    tenants: dict[str, Tenant] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


def tenant_of(spec: TenantSpec, index: int) -> Tenant:
    """Give a tenant its versions: 16 hex characters of the SHA-256 of policy + list, and of the list alone.

    What is as if never set is left out, so that a new field changes no version.
    """
    written = (target.model_dump_json(exclude_defaults=True) for target in spec.targets)
    list_version = hashlib.sha256(("\n".join(written) + "\x1e" + "\n".join(spec.benign)).encode()).hexdigest()[:16]
    policy = spec.policy.model_dump_json(exclude_defaults=True)
    policy_version = hashlib.sha256((policy + list_version).encode()).hexdigest()[:16]
    return Tenant(spec.name, index, spec.policy, spec.targets, spec.benign, policy_version, list_version)
