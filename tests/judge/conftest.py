"""What the tests of boxes share."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for one box; its gate is opened at the end, or pytest could not remove it."""
    yield tmp_path
    for gate in (*tmp_path.glob("gate"), *tmp_path.glob("boxes/*/*-gate")):
        gate.chmod(0o755)
