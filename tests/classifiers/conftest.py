"""The real sentence encoder, loaded once for all tests of the classifiers, with one cache on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from guard.classifiers.encoder import Encoder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """The local encoder; tests that count encoded texts look at the difference."""
    return Encoder(cache_dir=tmp_path_factory.mktemp("vectors"))


@pytest.fixture(scope="module")
def bench(encoder: Encoder) -> Iterator[Any]:
    """A detector shared by the tests of one file that do not break it; a `detector_bench.Bench`."""
    # imported here: it loads torch and transformers, which most tests of this folder do without
    from tests.classifiers.detector_bench import Bench

    made = Bench(encoder)
    yield made
    made.close()
