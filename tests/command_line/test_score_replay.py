"""What a replay says: reproduced, not reproduced, stopped or other hardware, with its exit code."""

import json

import pytest

import configs
from flows.command_line.recorded_score import RecordedScore
from flows.command_line.score_replay import EXIT_CODES, ScoreReplay
from tasks.errors import UsageError
from tasks.noise import Noise
from tasks.trial import hardware
from tests.synthetic_night import make_run

LAPTOP = configs.load("laptop")
HERE = hardware.label(LAPTOP.device, LAPTOP.threads)


def make_recorded(**changes) -> RecordedScore:
    fields = {
        "commit": "0123456789abcdef",
        "trial": "nov21:3",
        "source": "DEPTH = 3\n",
        "val_bpb": 1.6,
        "seeds": (1, 2),
        "profile": LAPTOP,
        "metric": "1",
        "noise": Noise(0.005, 8),
        "hardware": HERE,
        "changed": (),
        "notes": (),
        "contradictions": (),
    }
    return RecordedScore(**{**fields, **changes})


def replayed(recorded: RecordedScore, *scores: float, fresh: int | None = None) -> ScoreReplay:
    done = ScoreReplay.plan(recorded, fresh)
    for seed, score in zip(done.seeds, scores, strict=True):
        done = done.after(make_run(seed=seed, val_bpb=score, metric_version=1))
    return done


def told(done: ScoreReplay) -> tuple[str, int, str]:
    """Outcome and exit code, and what is said of it."""
    assert json.loads(json.dumps(done.to_json()))["outcome"] == done.outcome
    text = done.text()
    assert text.startswith(f"{done.outcome}: ")
    return done.outcome, EXIT_CODES[done.outcome], text


def test_the_same_seeds_give_the_same_score():
    outcome, code, text = told(replayed(make_recorded(), 1.59, 1.61))
    assert (outcome, code) == ("reproduced", 0)
    assert text.splitlines() == [
        "reproduced: the same seeds gave the same score, to the last digit",
        "recorded 1.600000, replayed 1.600000: seeds 1 2, profile laptop",
    ]


def test_a_forged_score_within_the_noise_is_found_by_the_same_seeds():
    outcome, code, text = told(replayed(make_recorded(val_bpb=1.599), 1.59, 1.61))
    assert (outcome, code) == ("not reproduced", 3)
    assert "the same seeds on the same CPU gave a score that is worse by 0.001000" in text


def test_fresh_seeds_are_judged_by_the_noise():
    outcome, code, text = told(replayed(make_recorded(), 1.601, 1.604, 1.599, fresh=3))
    assert (outcome, code) == ("reproduced", 0)
    assert text.splitlines() == [
        "reproduced: the replay is worse by 0.001333 bits per byte, 0.3 standard errors: no more "
        "than chance explains in 99 of 100 replays",
        "recorded 1.600000, replayed 1.601333: recorded with seeds 1 2, replayed with "
        "seeds 1000001 1000002 1000003, profile laptop",
        "sd of one run: recorded 0.005000 (df 8), in the replay 0.002517 (df 2)",
        "9 of 10 such replays would detect a difference of 0.0187 bits per byte",
    ]
    assert told(replayed(make_recorded(), 1.63, 1.64, 1.62, fresh=3))[:2] == ("not reproduced", 3)


def test_the_same_seeds_with_another_harness_are_judged_by_the_noise():
    changed = make_recorded(changed=("trainer/harness.py",))
    _, code, text = told(replayed(changed, 1.592, 1.612))
    assert code == 0
    assert "note: trainer/harness.py changed since" in text


def test_a_budget_of_seconds_is_judged_by_the_noise():
    budget = LAPTOP.budget.model_copy(update={"kind": "seconds"})
    timed = make_recorded(profile=LAPTOP.model_copy(update={"budget": budget}))
    assert told(replayed(timed, 1.592, 1.612))[:2] == ("reproduced", 0)


@pytest.mark.parametrize("recorded", ["0" * 16 + " another CPU, 1 thread, torch 2.9.0", None])
def test_on_other_hardware_nothing_is_compared(recorded):
    done = replayed(make_recorded(hardware=recorded), 1.9, 1.9)
    outcome, code, text = told(done)
    assert (outcome, code) == ("other hardware", 4)
    assert "recorded 1.600000, replayed 1.900000" in text
    assert f"recorded on: {recorded or 'unknown'}\nreplayed on: {HERE}" in text
    assert "standard errors" not in text
    assert done.to_json()["equality"] is None


def test_a_description_is_enough_for_an_older_commit():
    description = hardware.describe(LAPTOP.device, LAPTOP.threads)
    outcome, _, text = told(replayed(make_recorded(hardware=description), 1.602, 1.6))
    assert outcome == "reproduced"
    assert "standard errors" in text


def test_another_python_on_the_same_machine_is_other_hardware_and_says_so():
    other = f"{'0' * 16} {hardware.describe(LAPTOP.device, LAPTOP.threads)}"
    outcome, _, text = told(replayed(make_recorded(hardware=other), 1.6, 1.6))
    assert outcome == "other hardware"
    assert "of the same description with another system or Python" in text


def test_what_the_ledger_denies_is_not_reproduced_even_if_it_is_measured():
    denied = make_recorded(contradictions=("the commit says Seeds: 1 2, ... says 1",))
    outcome, code, text = told(replayed(denied, 1.6, 1.6))
    assert (outcome, code) == ("not reproduced", 3)
    assert "the commit is not as its night recorded it\nbut the commit says Seeds: 1 2" in text


def test_a_run_that_is_stopped_ends_it():
    done = ScoreReplay.plan(make_recorded(), None)
    stopped = make_run(seed=1, val_bpb=None, status="train_crashed", reason="boom")
    outcome, code, text = told(done.after(stopped))
    assert (outcome, code, text) == ("stopped", 3, "stopped: seed 1: train_crashed: boom")


def test_one_run_without_known_noise_is_refused_before_it_is_made():
    unknown = make_recorded(noise=None)
    with pytest.raises(UsageError, match="one run cannot show it: use --seeds 3"):
        ScoreReplay.plan(unknown, 1)
    assert told(replayed(unknown, 1.601, 1.604, 1.599, fresh=3))[0] == "reproduced"
