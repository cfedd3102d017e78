"""A trained head tells a list's prompts from benign ones, the same way every time."""

from __future__ import annotations

import numpy as np
import pytest

from guard.classifiers.build_queue import finish
from guard.classifiers.head import out_of_fold_scores, train_head
from guard.errors import DetectorError


def cluster(centre: int, count: int, seed: int, dimensions: int = 24) -> np.ndarray:
    """Unit vectors around one axis."""
    vectors = np.random.default_rng(seed).normal(scale=0.15, size=(count, dimensions)).astype(np.float32)
    vectors[:, centre] += 1.0
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


POSITIVES = np.concatenate([cluster(0, 10, 1), cluster(1, 10, 2)])
OWNERS = [4] * 10 + [7] * 10
NEGATIVES = np.concatenate([cluster(axis, 20, 10 + axis) for axis in range(2, 8)])


def test_unseen_prompts_of_a_target_score_above_unseen_benign_ones() -> None:
    head = finish(train_head(POSITIVES, OWNERS, NEGATIVES))
    scores, owners = head.scores(np.concatenate([cluster(0, 30, 50), cluster(1, 30, 51)]))
    benign, _ = head.scores(np.concatenate([cluster(axis, 30, 60 + axis) for axis in range(2, 8)]))
    assert np.quantile(scores, 0.05) > np.quantile(benign, 0.95)
    assert np.mean(owners == [4] * 30 + [7] * 30) >= 0.95


def test_training_is_deterministic() -> None:
    first, second = (finish(train_head(POSITIVES, OWNERS, NEGATIVES)) for _ in range(2))
    np.testing.assert_array_equal(first.weights, second.weights)


def test_out_of_fold_scores_are_not_those_of_the_training_prompts() -> None:
    scores = finish(out_of_fold_scores(POSITIVES, OWNERS, NEGATIVES, np.arange(len(NEGATIVES))))
    seen, _ = finish(train_head(POSITIVES, OWNERS, NEGATIVES)).scores(NEGATIVES)
    assert np.isfinite(scores).all()
    assert scores.mean() > seen.mean()


def test_one_group_of_benign_prompts_is_never_split_over_folds() -> None:
    # two copies of each vector in one group: a split would let a fold see its own copy
    doubled = np.concatenate([NEGATIVES, NEGATIVES])
    groups = np.tile(np.arange(len(NEGATIVES)), 2)
    scores = finish(out_of_fold_scores(POSITIVES, OWNERS, doubled, groups))
    np.testing.assert_allclose(scores[: len(NEGATIVES)], scores[len(NEGATIVES) :], atol=1e-5)


@pytest.mark.parametrize(
    ("positives", "owners", "negatives"),
    [(POSITIVES[:0], [], NEGATIVES), (POSITIVES, OWNERS, NEGATIVES[:0]), (POSITIVES, OWNERS[:3], NEGATIVES)],
)
def test_a_head_without_material_is_refused(positives: np.ndarray, owners: list[int], negatives: np.ndarray) -> None:
    with pytest.raises(DetectorError, match="needs examples"):
        finish(train_head(positives, owners, negatives))
