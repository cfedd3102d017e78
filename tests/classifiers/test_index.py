"""The nearest targets of one list."""

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


def test_each_vector_is_nearest_to_itself() -> None:
    vectors = unit(20, 16, seed=2)
    for number, best in enumerate(NeighbourIndex(vectors, np.arange(100, 120)).nearest(vectors)):
        assert best[100 + number] == pytest.approx(1.0, abs=1e-5)


def test_scores_are_the_best_inner_product_per_target() -> None:
    vectors = unit(30, 8)
    query = unit(1, 8, seed=9)
    (best,) = NeighbourIndex(vectors, np.arange(30) // 10).nearest(query)
    products = (vectors @ query[0]).reshape(3, 10).max(axis=1)
    assert best == pytest.approx({target: float(products[target]) for target in range(3)}, abs=1e-5)


def test_many_queries_score_as_one_does() -> None:
    index = NeighbourIndex(unit(200, 32), np.arange(200))
    queries = unit(64, 32, seed=5)
    assert index.nearest(queries) == [index.nearest(query[None])[0] for query in queries]


def test_no_queries_and_empty_lists_are_fine() -> None:
    empty = NeighbourIndex(np.zeros((0, 8), np.float32), np.zeros(0))
    assert empty.nearest(unit(2, 8)) == [{}, {}] and len(empty) == 0
    assert NeighbourIndex(unit(3, 8), np.zeros(3)).nearest(np.zeros((0, 8), np.float32)) == []


@pytest.mark.parametrize(("shape", "owners"), [((8,), 8), ((3, 8), 2)])
def test_vectors_without_owners_are_refused(shape: tuple[int, ...], owners: int) -> None:
    with pytest.raises(DetectorError, match="one owner for each"):
        NeighbourIndex(unit(*shape), np.zeros(owners))


def test_queries_of_another_length_are_refused() -> None:
    with pytest.raises(DetectorError, match="8 dimensions"):
        NeighbourIndex(unit(3, 8), np.zeros(3)).nearest(unit(1, 7))
