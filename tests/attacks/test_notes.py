from pathlib import Path

import pytest

from tasks.records import Candidate
from tasks.trial import experiment
from tests.attacks import arena, room_notes, room_recall
from tests.attacks.suite import AttackTests
from tests.boxes import make_bench
from tests.faults.stub_torch import assemble_with_stub


@pytest.mark.slow
class TestAttacks(AttackTests):
    CANDIDATES = (*room_notes.ATTACKS, *room_recall.ATTACKS)


def test_a_note_that_arrives_fools_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a box the claims are believed: it is the box that stops these attacks."""
    monkeypatch.setattr(experiment, "assemble", assemble_with_stub)
    (attack,) = (one for one in room_notes.ATTACKS if one.name == "note-beside-the-harness")
    result = experiment.run_experiment(
        Candidate.parse("import os\n" + arena.edited(attack.edits)),
        make_bench(
            arena.make_dataset(tmp_path / "data"),
            tmp_path / "state",
            arena.make_profile(),
            arena.CAPS,
            isolation="none",
        ),
        seed=1,
        worth_audit=lambda claimed: True,
    )
    assert (result.status, result.audit_gap) == ("ok", 0.0)
