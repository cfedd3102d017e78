"""One-sided split conformal thresholds.

With n benign scores exchangeable with future benign scores, flagging only above the k-th smallest of them,
k = ceil((n + 1)(1 - alpha)), keeps the false-positive rate at or below alpha (marginally over calibration sets). That
needs n >= 1/alpha - 1. With fewer scores the largest one is the threshold, and the rate that holds is 1 / (n + 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from guard.errors import DetectorError


@dataclass(frozen=True, slots=True)
class Threshold:
    """Flag above `value`. `alpha` is the false-positive bound that really holds, `wanted` the one asked for.

    `ceiling` is the largest score there can be; it scales calibrated scores.
    """

    value: float
    alpha: float
    wanted: float
    calibration_size: int
    ceiling: float = 1.0

    @property
    def guaranteed(self) -> bool:
        """Whether there were enough benign scores for the wanted rate."""
        return self.alpha <= self.wanted

    def calibrated(self, score: float) -> float:
        """Map a raw score to [0, 1], increasing, with the threshold at 0.5. NaN raises DetectorError."""
        if math.isnan(score):
            raise DetectorError("the detector gave NaN as a score")
        if score <= self.value:
            return max(0.0, 0.5 - (self.value - score) / (2.0 * (1.0 + abs(self.value))))
        room = max(self.ceiling - self.value, 1e-6)
        return min(1.0, 0.5 + 0.5 * (score - self.value) / room)

    def exceeded(self, score: float) -> bool:
        """Whether `score` counts as a hit; NaN raises DetectorError."""
        if math.isnan(score):
            raise DetectorError("the detector gave NaN as a score")
        return score > self.value


def conformal_threshold(benign_scores: np.ndarray[Any, Any], alpha: float, ceiling: float = 1.0) -> Threshold:
    """Threshold for false-positive rate `alpha` from scores [n] of benign prompts.

    Raises DetectorError for no scores, NaN, or alpha outside (0, 1).
    """
    scores = np.sort(np.asarray(benign_scores, dtype=np.float64).ravel())
    if not 0.0 < alpha < 1.0:
        raise DetectorError(f"alpha must lie in (0, 1), got {alpha}")
    if scores.size == 0 or np.isnan(scores).any():
        raise DetectorError(f"calibration needs benign scores without NaN, got {scores.size}")
    # the small slack keeps 0.01 * 100 from rounding up to one rank more
    rank = math.ceil((scores.size + 1) * (1.0 - alpha) - 1e-9)
    holds = alpha if rank <= scores.size else 1.0 / (scores.size + 1)
    value = float(scores[min(rank, scores.size) - 1])
    return Threshold(value, holds, alpha, int(scores.size), ceiling)
