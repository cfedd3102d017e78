"""The digest of a file is that of its bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from guard.errors import ConfigurationError
from guard.packs.file_digest import file_digest


@pytest.mark.parametrize("content", [b"", b"x\n", b"x\r\n", b"ab" * (1 << 20) + b"c"], ids=len)
def test_the_digest_is_that_of_all_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="none cannot be read: No such file"):
        file_digest(tmp_path / "none")
