"""The real sentence encoder, loaded once for all tests of the classifiers, with one cache on disk."""

from __future__ import annotations

import pytest

from guard.classifiers.encoder import Encoder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """The local encoder; tests that count encoded texts look at the difference."""
    return Encoder(cache_dir=tmp_path_factory.mktemp("vectors"))
