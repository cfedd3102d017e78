"""Which strings and meanings the answer to one prompt is compared with."""

from __future__ import annotations

from guard.engine.admission import IgnoranceEnd, OutputCheck
from guard.planner import Decision, text_start
from guard.policy import Tenant
from guard.sentences import unfinished
from guard.service.residency.list_files import CompiledList
from guard.stream import OutputMatcher, PatternSet
from guard.verdict import DecodedPrompt, Verdict

_NO_PATTERNS = PatternSet.compile(())


def flagged_check(
    tenant: Tenant, compiled: CompiledList, exempt: frozenset[int], prompt: DecodedPrompt, text: str,
    end: IgnoranceEnd | None,
) -> OutputCheck:
    """What the rest of an answer is compared with after it has named a target; `text` of it was said."""
    seed = _seed(prompt) + text
    return OutputCheck(OutputMatcher(compiled.patterns, exempt, seed), tenant.policy.output.max_rollbacks, end=end)


def output_check(
    tenant: Tenant, decision: Decision, verdict: Verdict, compiled: CompiledList | None, exempt: frozenset[int],
    prompt: DecodedPrompt, end: IgnoranceEnd | None = None,
) -> OutputCheck | None:
    """Flagged (or unknown) prompts are compared with all patterns, others with those that no answer may contain.

    An answer that names a target although its prompt did not belongs to a flagged prompt from then on. Answers to
    flagged prompts are also compared by meaning, where the policy says so, with the targets of the verdict. `exempt`
    are indices into the list's patterns. None: there is nothing to compare with, and no end to look for.
    """
    policy = tenant.policy.output
    if not policy.enabled or decision.action == "monitor":
        return OutputCheck(OutputMatcher(_NO_PATTERNS), 0, end=end) if end is not None else None
    targets: tuple[int, ...] = ()
    if policy.semantic and decision.action == "forget":
        targets = tuple(hit.target for hit in verdict.hits if tenant.targets[hit.target].answers)
    patterns, allowed, names = _NO_PATTERNS, exempt, frozenset[int]()
    if compiled is not None:
        patterns = compiled.patterns
        if decision.action == "pass":
            patterns, allowed = compiled.always_patterns, compiled.in_always(exempt)
            names = compiled.in_always(compiled.names)
    if len(allowed) == len(patterns.patterns) and not targets and end is None:
        return None
    seed = _seed(prompt)
    return OutputCheck(
        OutputMatcher(patterns, allowed, seed), policy.max_rollbacks, targets, unfinished(seed) if targets else "",
        names, end,
    )


def _seed(prompt: DecodedPrompt) -> str:
    """Text of the prompt with which the answer is one text."""
    start = text_start(prompt)
    return prompt.text[prompt.offsets[start][0] :] if start < len(prompt.offsets) else ""
