"""A checkout whose train.py is the stub: whole nights through the real command line, boxes and judge, a second a trial."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.checkouts import Checkout

PROFILE = "tests/profiles/stub.toml"


class StubCheckout(Checkout):
    """A checkout with tests/faults/stub_train.py committed as trainer/train.py, and boxes that have the stub of torch.

    `environment()` holds all that this takes, for commands as for servers, workers and what they start.
    """

    def __init__(self, folder: Path, api: str | None = None) -> None:
        super().__init__(folder, api)
        shutil.copy(folder / "tests" / "faults" / "stub_train.py", folder / "trainer" / "train.py")
        self.git("-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-qam", "stub")

    def environment(self, **changes: str) -> dict[str, str]:
        path = f"{self.folder / 'tests' / 'faults' / 'site'}:{self.folder}"
        return super().environment(**{"PYTHONPATH": path, **changes})
