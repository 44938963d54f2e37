import pytest

from tests.attacks import room_lying
from tests.attacks.suite import AttackTests


@pytest.mark.slow
class TestAttacks(AttackTests):
    CANDIDATES = room_lying.ATTACKS
