"""A tenant without verdicts leaves log lines, but not one for each of its requests."""

from __future__ import annotations

from structlog.testing import capture_logs

from guard.service.unknown_verdicts import PAUSE_S, TENANTS_KEPT, UnknownVerdicts


def test_the_first_is_told_and_the_rest_are_counted_until_the_next_line() -> None:
    now_s = 0.0
    verdicts = UnknownVerdicts(lambda: now_s)
    with capture_logs() as lines:
        for number in range(5):
            verdicts.report(7, "timeout", f"r{number}", closed=True)
        verdicts.report(8, "", "other", closed=False)
        now_s = PAUSE_S
        verdicts.report(7, "error", "late", closed=True)
    assert [(line["tenant"], line["reason"], line["request_id"], line["more_since_last_line"]) for line in lines] == [
        (7, "timeout", "r0", 0), (8, "error", "other", 0), (7, "error", "late", 4),
    ]


def test_many_tenants_do_not_take_memory_without_end() -> None:
    verdicts = UnknownVerdicts(lambda: 0.0)
    with capture_logs():
        for tenant in range(3 * TENANTS_KEPT):
            verdicts.report(tenant, "timeout", "r", closed=True)
    assert len(verdicts._seen) == TENANTS_KEPT
