"""Which strings and meanings the answer to one prompt is compared with."""

from __future__ import annotations

from guard.engine.admission import OutputCheck
from guard.planner import Decision, text_start
from guard.policy import Tenant
from guard.sentences import unfinished
from guard.service.residency.list_files import CompiledList
from guard.stream import OutputMatcher, PatternSet
from guard.verdict import DecodedPrompt, Verdict

_NO_PATTERNS = PatternSet.compile(())


def output_check(
    tenant: Tenant, decision: Decision, verdict: Verdict, compiled: CompiledList | None, exempt: frozenset[int],
    prompt: DecodedPrompt,
) -> OutputCheck | None:
    """Flagged (or unknown) prompts are compared with all patterns, others with those named in the list itself.

    Answers to flagged prompts are also compared by meaning, where the policy says so, with the targets of the verdict.
    `exempt` are indices into the list's patterns. None: there is nothing to compare with.
    """
    policy = tenant.policy.output
    if not policy.enabled or decision.action == "monitor":
        return None
    targets: tuple[int, ...] = ()
    if policy.semantic and decision.action == "forget":
        targets = tuple(hit.target for hit in verdict.hits if tenant.targets[hit.target].answers)
    patterns, allowed = _NO_PATTERNS, exempt
    if compiled is not None:
        patterns = compiled.patterns
        if decision.action == "pass":
            patterns, allowed = compiled.explicit_patterns, compiled.explicit_exempt(exempt)
    if len(allowed) == len(patterns.patterns) and not targets:
        return None
    start = text_start(prompt)
    seed = prompt.text[prompt.offsets[start][0] :] if start < len(prompt.offsets) else ""
    return OutputCheck(
        OutputMatcher(patterns, allowed, seed), policy.max_rollbacks, targets, unfinished(seed) if targets else ""
    )
