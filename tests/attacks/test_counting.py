import pytest

from tests.attacks import room_counting
from tests.attacks.suite import AttackTests


@pytest.mark.slow
class TestAttacks(AttackTests):
    CANDIDATES = room_counting.ATTACKS
