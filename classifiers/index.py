"""The vectors of one forget-list, and which of its targets are nearest to a prompt.

A FAISS index for each list: an index shared by all tenants would be searched, grown and compacted as a whole. Inner
product of unit vectors, float32, exact.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from guard.errors import DetectorError

Vectors = np.ndarray[Any, np.dtype[np.float32]]
_NEIGHBOURS = 48


class NeighbourIndex:
    """Immutable. `nearest` may be called from any thread."""

    def __init__(self, vectors: Vectors, owners: np.ndarray[Any, Any]) -> None:
        """Vectors [n, d] of one list; `owners` [n] are target indices, sorted. Raises DetectorError."""
        if vectors.ndim != 2 or len(owners) != len(vectors):
            raise DetectorError(f"an index needs one owner for each vector, got {vectors.shape} and {len(owners)}")
        self._owners = np.asarray(owners, np.int32)
        if (np.diff(self._owners) < 0).any():
            raise DetectorError("the owners of an index must be sorted")
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(np.ascontiguousarray(vectors, np.float32))

    def nearest(self, queries: Vectors) -> list[dict[int, float]]:
        """For each query [q, d]: the nearest targets of the list with their best inner product.

        Raises DetectorError when the queries have another length.
        """
        count = min(_NEIGHBOURS, len(self))
        if count <= 0 or not len(queries):
            return [{} for _ in queries]
        if queries.ndim != 2 or queries.shape[1] != self._index.d:
            raise DetectorError(f"an index of {self._index.d} dimensions cannot search for {queries.shape}")
        scores, rows = self._index.search(np.ascontiguousarray(queries, np.float32), count)
        results: list[dict[int, float]] = []
        for query_scores, query_rows in zip(scores, rows, strict=True):
            best: dict[int, float] = {}
            for score, row in zip(query_scores.tolist(), query_rows.tolist(), strict=True):
                if row >= 0:
                    # rows come best first, so the first score of a target is its best
                    best.setdefault(int(self._owners[row]), float(score))
            results.append(best)
        return results

    def similarity(self, queries: Vectors, target: int) -> Vectors:
        """For each query [q, d]: the best inner product [q] with a vector of `target`; -1 where it has none."""
        first, last = self._rows(target)
        if first == last:
            return np.full(len(queries), -1.0, np.float32)
        vectors = np.stack([self._index.reconstruct(row) for row in range(first, last)])
        best: Vectors = (queries @ vectors.T).max(axis=1)
        return best

    def knows(self, target: int) -> bool:
        """Whether `target` has a vector."""
        first, last = self._rows(target)
        return last > first

    def _rows(self, target: int) -> tuple[int, int]:
        first, last = np.searchsorted(self._owners, [target, target + 1])
        return int(first), int(last)

    def __len__(self) -> int:
        return int(self._index.ntotal)
