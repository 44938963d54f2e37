"""A checkout whose train.py is the stub: whole nights through the real command line, boxes and
judge, at a second a trial."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.checkouts import AUTHOR, Checkout
from tests.warm_python import WarmPython

PROFILE = "tests/profiles/stub.toml"


class StubCheckout(Checkout):
    """A checkout with tests/faults/stub_train.py committed as trainer/train.py.

    Its boxes have the stub of torch: `environment()` holds all that this takes, for commands as
    for servers, workers and what they start. `store` is an MLflow store to begin with: making a
    new one takes longer than a night.
    """

    def __init__(
        self,
        folder: Path,
        *,
        warm: WarmPython | None = None,
        api: str | None = None,
        store: Path | None = None,
    ) -> None:
        super().__init__(folder, warm=warm, api=api)
        self.home.mkdir(mode=0o755)
        if store:
            shutil.copy(store, self.home / "mlflow.db")
        shutil.copy(folder / "tests" / "faults" / "stub_train.py", folder / "trainer" / "train.py")
        self.git(*AUTHOR, "commit", "-qam", "stub")

    def environment(self, **changes: str) -> dict[str, str]:
        path = f"{self.folder / 'tests' / 'faults' / 'site'}:{self.folder}"
        return super().environment(**{"PYTHONPATH": path, **changes})
