"""One FAISS index per process for the texts of all forget-lists; every search sees one list only.

A list owns a contiguous block of ids, so that the filter is a range check. Inner product of unit vectors, float32.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from guard.errors import DetectorError

Vectors = np.ndarray[Any, np.dtype[np.float32]]
_NEIGHBOURS = 48


@dataclass(frozen=True, slots=True)
class Block:
    """Ids `start`..`end` of one list; `owners[i]` is the target of vector start + i."""

    start: int
    end: int
    owners: np.ndarray[Any, np.dtype[np.int64]]


class NeighbourIndex:
    """Thread-safe: one operation at a time."""

    def __init__(self, dimensions: int) -> None:
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(dimensions))
        self._dimensions = dimensions
        self._next_id = 0
        self._lock = threading.Lock()

    def add(self, vectors: Vectors, owners: np.ndarray[Any, Any]) -> Block:
        """Add the vectors [n, dimensions] of one list; `owners` [n] are target indices. Raises DetectorError."""
        if vectors.ndim != 2 or vectors.shape[1] != self._dimensions or len(owners) != len(vectors):
            raise DetectorError(f"an index of {self._dimensions} dimensions cannot take vectors {vectors.shape}")
        with self._lock:
            start, self._next_id = self._next_id, self._next_id + len(vectors)
            ids = np.arange(start, self._next_id, dtype=np.int64)
            self._index.add_with_ids(np.ascontiguousarray(vectors, np.float32), ids)
        return Block(start, start + len(vectors), np.asarray(owners, np.int64))

    def remove(self, block: Block) -> None:
        """Forget a list's vectors."""
        with self._lock:
            self._index.remove_ids(faiss.IDSelectorRange(block.start, block.end))

    def nearest(self, queries: Vectors, block: Block) -> list[dict[int, float]]:
        """For each query [q, dimensions]: the nearest targets of the list with their best inner product."""
        count = min(_NEIGHBOURS, block.end - block.start)
        if count <= 0 or not len(queries):
            return [{} for _ in queries]
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorRange(block.start, block.end))  # type: ignore[call-arg]
        with self._lock:
            scores, ids = self._index.search(np.ascontiguousarray(queries, np.float32), count, params=parameters)
        results: list[dict[int, float]] = []
        for row_scores, row_ids in zip(scores, ids, strict=True):
            best: dict[int, float] = {}
            for score, index in zip(row_scores.tolist(), row_ids.tolist(), strict=True):
                if index >= 0:
                    # rows come best first, so the first score of a target is its best
                    best.setdefault(int(block.owners[index - block.start]), float(score))
            results.append(best)
        return results

    def __len__(self) -> int:
        return int(self._index.ntotal)
