"""Every search sees one list only."""

from __future__ import annotations

import numpy as np
import pytest

from guard.classifiers.index import NeighbourIndex
from guard.errors import DetectorError


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    """Random unit vectors."""
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    unit_vectors: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit_vectors


def test_a_search_never_returns_another_lists_vectors() -> None:
    index = NeighbourIndex(16)
    mine, theirs = unit(20, 16, seed=1), unit(20, 16, seed=2)
    first = index.add(mine, np.arange(20))
    second = index.add(theirs, np.arange(100, 120))
    for best in index.nearest(theirs, first):
        assert set(best) <= set(range(20))
        assert max(best.values()) < 0.999
    for number, best in enumerate(index.nearest(theirs, second)):
        assert best[100 + number] == pytest.approx(1.0, abs=1e-5)


def test_scores_are_the_best_inner_product_per_target() -> None:
    index = NeighbourIndex(8)
    vectors = unit(30, 8)
    owners = np.arange(30) // 10
    block = index.add(vectors, owners)
    query = unit(1, 8, seed=9)
    (best,) = index.nearest(query, block)
    products = (vectors @ query[0]).reshape(3, 10).max(axis=1)
    assert best == pytest.approx({target: float(products[target]) for target in range(3)}, abs=1e-5)


def test_removed_lists_leave_the_others_intact() -> None:
    index = NeighbourIndex(8)
    first = index.add(unit(5, 8, seed=1), np.zeros(5))
    vectors = unit(5, 8, seed=2)
    second = index.add(vectors, np.arange(5))
    index.remove(first)
    assert len(index) == 5
    assert index.nearest(vectors, first) == [{}] * 5
    assert [max(best, key=best.__getitem__) for best in index.nearest(vectors, second)] == list(range(5))


def test_no_queries_and_empty_lists_are_fine() -> None:
    index = NeighbourIndex(8)
    block = index.add(np.zeros((0, 8), np.float32), np.zeros(0))
    assert index.nearest(unit(2, 8), block) == [{}, {}]
    assert index.nearest(np.zeros((0, 8), np.float32), block) == []


@pytest.mark.parametrize("shape", [(3, 7), (8,)])
def test_vectors_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DetectorError, match="8 dimensions"):
        NeighbourIndex(8).add(unit(*shape), np.zeros(3))
