import pytest

from tests.attacks.controls import CONTROLS
from tests.attacks.suite import ControlTests


@pytest.mark.slow
class TestControls(ControlTests):
    CANDIDATES = CONTROLS
