"""What is told of a candidate before it is run, and of those that were."""

import dataclasses

from tasks.history import night_folder, trial_folder
from tasks.records import Candidate, Estimate, Idea, NightSoFar
from tasks.search import features
from tasks.search.surrogate import Features
from tests.trials import crash, keep, make_proposal, make_trial

BASE = """DEPTH = 3
WIDTH: int = 64


def load_model(path, device):
    return DEPTH


class Attention:
    heads = 4


def main():
    print(DEPTH)
"""
NIGHT = NightSoFar("t", 1, 5, Candidate.parse(BASE), 1.6, 1.6, {}, ())


def parts(*changes: tuple[str, str]) -> tuple[int, set[str]]:
    source = BASE
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    found = features.of_idea(BASE, source, Idea("x", "llm", kind="systems"))
    assert found.kind == "systems"
    return found.lines, set(found.parts)


def test_a_patch_touches_the_knobs_functions_and_classes_whose_lines_it_changes():
    assert parts(("DEPTH = 3", "DEPTH = 4")) == (2, {"DEPTH"})
    assert parts(("heads = 4", "heads = 8"), ("int = 64", "int = 32")) == (
        4,
        {"Attention", "WIDTH"},
    )
    assert parts(("    print(DEPTH)\n", "    print(DEPTH)\n    print(1)\n")) == (1, {"main"})


def test_the_record_is_what_trials_gained_on_the_file_that_they_were_made_of(tmp_path):
    changed = BASE.replace("heads = 4", "heads = 8")
    for number, source in ((1, changed), (3, changed.replace("DEPTH = 3", "DEPTH = 4"))):
        proposed = make_proposal(source)
        trial_folder.write_proposal(tmp_path / "trials" / str(number), BASE, proposed, "c0")
    (tmp_path / night_folder.BASE).write_text(BASE)
    own = Estimate(0.02, 0.01)
    llm = {"proposer": "llm"}
    trials = (
        keep(1, 1.5, kind="architecture", estimate=own, queued="1.2", commit="c1", **llm),
        crash(2, kind="systems", wall_seconds=9.0, parent="c1", **llm),
        make_trial(3, val_bpb=1.46, search="archive", built_on=(1,), queued="1.1", **llm),
        make_trial(4, search="stack", val_bpb=1.4),
        make_trial(5, status="rejected_patch", val_bpb=None),
        make_trial(9, val_bpb=1.66, scores=(1.65, 1.67), parent="c1"),
    )
    to_beat = {1: 1.6, 3: 1.4, 4: 1.5, 9: 1.5}
    night = dataclasses.replace(NIGHT, trials=trials, to_beat=to_beat, folder=tmp_path)
    kept, crashed, built, other = features.tried(night)
    assert kept.features == Features("architecture", 2, frozenset({"Attention"}), own)
    assert round(kept.gain or 0, 9) == 0.1
    assert (crashed.gain, crashed.seconds, crashed.features.parts) == (None, 9.0, frozenset())
    assert round(built.gain or 0, 9) == 0.04  # on trial 1, not on the champion
    assert built.features == Features("llm", 2, frozenset({"DEPTH"}), is_stale=True)
    assert (round(other.gain or 0, 9), other.runs, other.features.kind) == (-0.16, 2, "tpe")
