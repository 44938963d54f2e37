"""The example night of configs/examples: its patches fit today's train.py, one after the other."""

import dataclasses
from pathlib import Path

import configs
from tasks.proposers import proposal
from tasks.proposers.replay import ReplayProposer
from tasks.records import TRAIN, Candidate, NightSoFar

ROOT = Path(__file__).resolve().parents[2]
FOLDER = configs.FOLDER / "examples" / "structural-night"
BUILT_ON = (1, 3, 7)  # the trials whose changes later patches need


def test_the_patches_of_the_example_night_fit_todays_train_py():
    baseline = Candidate.parse((ROOT / TRAIN).read_text(encoding="utf-8"))
    night = NightSoFar("t", 1, 1, baseline, 1.7, 1.7, baseline.knobs, (), {str(baseline.digest): 0})
    proposer, summaries = ReplayProposer(FOLDER), []
    while (proposed := proposal.ask(proposer, night)) is not None:
        assert proposed.problem is None, proposed.problem
        summaries.append(proposed.idea.summary)
        champion = proposed.candidate if night.next_trial in BUILT_ON else night.champion
        seen = {**night.seen, str(proposed.candidate.digest): night.next_trial}
        night = dataclasses.replace(
            night, next_trial=night.next_trial + 1, champion=champion, seen=seen
        )
    assert len(summaries) == 9
    assert summaries[0] == "Start from counted bigrams and learn the residual"
