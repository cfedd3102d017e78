"""The vectors of a list's texts, encoded a few at a time, so that requests get the encoder in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from guard.classifiers.build_queue import Work
from guard.classifiers.encoder import Encoder

Vectors = np.ndarray[Any, np.dtype[np.float32]]
_MOST_TEXTS = 32
# a slice takes 10 to 20 ms of one core, for which a request's texts may have to wait; every text costs about as much as
# so many characters before it is read
_MOST_CHARACTERS = 240
_CHARACTERS_PER_TEXT = 16


def encode_in_slices(encoder: Encoder, texts: Sequence[str]) -> Work[Vectors]:
    """Unit vectors [n, dimensions] of `texts`, also kept on disk. Raises DetectorError on NaN."""
    # texts of like length go together: a batch costs what its longest text costs
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    vectors = np.zeros((len(texts), encoder.dimensions), np.float32)
    for slice_of in _slices(texts, order):
        vectors[slice_of] = encoder.encode([texts[number] for number in slice_of], store=True)
        yield
    return vectors


def _slices(texts: Sequence[str], order: Sequence[int]) -> Iterator[list[int]]:
    slice_of: list[int] = []
    for number in order:
        cost = (len(slice_of) + 1) * (len(texts[number]) + _CHARACTERS_PER_TEXT)
        if slice_of and (cost > _MOST_CHARACTERS or len(slice_of) == _MOST_TEXTS):
            yield slice_of
            slice_of = []
        slice_of.append(number)
    if slice_of:
        yield slice_of
