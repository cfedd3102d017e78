"""The guard's series: complete, on one registry, without names or texts in labels."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from guard.metrics import SERIES, Metrics

CLOSED_LABELS = {"tenant", "action", "phase", "reason", "stage", "part", "kind", "name", "result", "le"}


def test_every_series_is_registered_under_its_name() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    found = {f"{family.name}_total" if family.type == "counter" else family.name for family in registry.collect()}
    assert found == set(SERIES)


def test_every_description_is_shown() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    page = generate_latest(registry).decode()
    for text in SERIES.values():
        assert text in page


def test_labels_are_from_a_closed_set() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.requests.labels("3", "forget", "input").inc()
    with metrics.stage("detect"):
        pass
    labels = {label for family in registry.collect() for sample in family.samples for label in sample.labels}
    assert labels <= CLOSED_LABELS


def test_alerted_series_exist_before_their_first_event() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    for name in (
        "guard_unguarded_total",
        "guard_detector_unknown_total",
        "guard_filtered_total",
        "guard_rollbacks_total",
    ):
        assert registry.get_sample_value(name) == 0.0
    assert registry.get_sample_value("guard_enforcement_expected_total", {"kind": "corruption"}) == 0.0


def test_a_stage_is_timed_even_when_it_fails() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    try:
        with metrics.stage("plan"):
            raise ValueError
    except ValueError:
        pass
    assert registry.get_sample_value("guard_stage_latency_seconds_count", {"stage": "plan"}) == 1.0
