"""Conformal thresholds keep the promised false-positive rate, or say that they cannot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.classifiers.calibrate import Threshold, conformal_threshold
from guard.errors import DetectorError


@pytest.mark.parametrize(("size", "alpha"), [(99, 0.01), (199, 0.05), (341, 0.005), (19, 0.05)])
def test_the_mean_false_positive_rate_stays_below_alpha(size: int, alpha: float) -> None:
    generator = np.random.default_rng(3)
    rates = []
    for _ in range(1500):
        scores = generator.normal(size=size + 400)
        threshold = conformal_threshold(scores[:size], alpha)
        rates.append(np.mean(scores[size:] > threshold.value))
    standard_error = np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) <= alpha + 3 * standard_error
    # and it is not simply never flagging
    assert np.mean(rates) >= 0.4 * alpha


def test_the_threshold_is_the_conformal_rank() -> None:
    threshold = conformal_threshold(np.arange(1, 100), 0.05)
    assert threshold.value == 95 and threshold.guaranteed


def test_just_enough_scores_are_enough() -> None:
    assert conformal_threshold(np.arange(99), 0.01).guaranteed
    assert not conformal_threshold(np.arange(98), 0.01).guaranteed


def test_too_few_scores_give_the_largest_and_the_rate_that_holds() -> None:
    threshold = conformal_threshold(np.array([0.1, 0.4, 0.2]), 0.01)
    assert threshold.value == pytest.approx(0.4)
    assert threshold.alpha == pytest.approx(0.25) and not threshold.guaranteed


@pytest.mark.parametrize("scores", [[], [0.1, float("nan")]])
def test_missing_and_nan_scores_are_refused(scores: list[float]) -> None:
    with pytest.raises(DetectorError, match="benign scores"):
        conformal_threshold(np.array(scores), 0.01)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0])
def test_an_impossible_rate_is_refused(alpha: float) -> None:
    with pytest.raises(DetectorError, match="alpha"):
        conformal_threshold(np.array([0.1]), alpha)


@given(st.floats(-30, 30), st.floats(-5, 5), st.floats(0.1, 20))
def test_calibrated_scores_have_the_threshold_at_one_half(score: float, value: float, room: float) -> None:
    threshold = Threshold(value, 0.01, 0.01, 100, value + room)
    calibrated = threshold.calibrated(score)
    assert 0.0 <= calibrated <= 1.0
    assert (calibrated >= 0.5) if threshold.exceeded(score) else (calibrated <= 0.5)
    assert threshold.calibrated(value) == 0.5


def test_nan_is_never_a_score() -> None:
    threshold = Threshold(0.5, 0.01, 0.01, 100)
    with pytest.raises(DetectorError):
        threshold.calibrated(float("nan"))
    with pytest.raises(DetectorError):
        threshold.exceeded(float("nan"))
