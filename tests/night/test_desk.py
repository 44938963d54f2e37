"""A night's desk: what it knows is answered at once, a box only where it disturbs nobody.

Boxes have the stub of torch.
"""

import dataclasses
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from flows.night import desk, studies, trial_steps
from flows.night.desk import NightDesk
from flows.night.night import Night
from tasks.history import trial_folder
from tasks.history.llm_calls import CallLog
from tasks.proposers.questions import LONGEST_ANSWER, Question
from tasks.records import Baseline, Candidate, LossBin, NightSoFar, Parent, Study
from tasks.trial import experiment, inspection, placebo
from tests.boxes import HONEST, make_bench, make_dataset
from tests.faults.stub_torch import assemble_with_stub
from tests.synthetic_night import make_run
from tests.trials import keep, make_proposal, make_state, make_trial
from tests.waiting import wait_for

CHAMPION = Candidate.parse(HONEST)
FACTS = {"hardware": "a CPU", "training text": "of bytes", "baseline's size": "small"}
STUDY = Study(
    1.0,
    1.0,
    None,
    rows=4,
    unread_rows=17,
    bits_per_byte=1.25,
    by_position=(LossBin(0, 4, 16, 2.5), LossBin(4, 8, 16, None)),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def night(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "assemble", assemble_with_stub)
    folder = tmp_path / "nights" / "nov21"
    folder.mkdir(parents=True)
    bench, calls = make_bench(dataset, tmp_path), CallLog(folder / "llm_calls.jsonl")
    baseline = Baseline((make_run(),), "a CPU", study=STUDY)
    return Night("nov21", folder, tmp_path, bench, CHAMPION, baseline, 1, calls)


@pytest.fixture
def no_box(monkeypatch):
    """Opening one is an error."""
    monkeypatch.setattr(inspection, "open_box", None)


def so_far(*trials, **changes) -> NightSoFar:
    fields = {
        "tag": "nov21",
        "seed": 1,
        "next_trial": len(trials) + 1,
        "champion": CHAMPION,
        "champion_bpb": 8.0,
        "baseline_bpb": 8.0,
        "baseline_knobs": {},
        "trials": trials,
    }
    return NightSoFar(**{**fields, **changes})


def ask(night, kind, about="", before=None, **question) -> str:
    made = NightDesk(night.folder, night.bench, night.baseline, FACTS)
    answered = made.answer(Question(kind, about, **question), before or so_far())
    assert len(answered.text) <= LONGEST_ANSWER
    assert answered.seconds >= 0
    return answered.text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hardware", "hardware: a CPU"),
        (" Training ", "training text: of bytes"),
        ("corpus", "no such fact; there are: hardware; training text; baseline's size"),
        ("", "no such fact; there are: hardware; training text; baseline's size"),
    ],
)
def test_a_fact_by_its_name_or_the_names_of_all(no_box, night, name, said):
    assert ask(night, "fact", name) == said


def test_a_known_study_is_told_without_a_box_also_while_a_gpu_trains(no_box, night):
    studies.allow(night.folder)
    studies.write(night.folder, 2, dataclasses.replace(STUDY, bits_per_byte=1.125))
    flying = {"in_flight": make_proposal("x = 1\n")}
    assert ask(night, "loss", before=so_far(**flying)).startswith("1.250 bits per byte")
    kept = so_far(make_trial(1), keep(2), make_trial(3), **flying)
    assert ask(night, "loss", before=kept).startswith("1.125 bits per byte on 4 of the 17 rows")
    on_archive = so_far(keep(2), keep(3), parent=Parent(2, CHAMPION, 8.0))
    assert ask(night, "loss", before=on_archive).startswith("1.125 ")


@pytest.mark.parametrize("beside", ["in_flight", "beside_placebo"])
@pytest.mark.parametrize("kind", ["profile", "sample", "try"])
def test_no_box_beside_a_training_under_a_budget_of_seconds(no_box, night, kind, beside):
    budget = night.bench.profile.budget.model_copy(update={"kind": "seconds"})
    profile = night.bench.profile.model_copy(update={"budget": budget})
    night = dataclasses.replace(night, bench=dataclasses.replace(night.bench, profile=profile))
    proposed = make_proposal("x = 1\n")
    if beside == "beside_placebo":
        proposed = make_proposal("x = 1\n", proposer=placebo.NAME)
    flying = trial_steps.while_in_flight(so_far(make_trial(1)), proposed)
    assert ask(night, kind, before=flying) == (
        "not now: another run is training on cpu, and would lose time"
    )


def test_who_ends_the_night_waits_for_no_box(night):
    slow = Candidate.parse(HONEST.replace("    tokens = 0", "    import time; time.sleep(3600)"))
    made = NightDesk(night.folder, night.bench, night.baseline, FACTS)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(made.answer, Question("try", candidate=slow), so_far())
        wait_for(lambda: made.boxes.last, "the box")
        made.cancel()
        assert "timeout" not in asked.result().text
    assert made.answer(Question("try"), so_far()).text == "not now: the night ends"


def test_without_a_trained_model_nothing_is_sampled(no_box, night):
    assert ask(night, "sample", "The").startswith("no answer: no trained model of the file shown")
    assert ask(night, "loss", candidate=CHAMPION).startswith("no answer: a patch has no trained")


def test_a_patch_that_is_refused_before_a_run_needs_no_box(no_box, night):
    refused = Candidate.parse("def main(:\n")
    assert ask(night, "try", candidate=refused).startswith("rejected_patch: ")


def test_a_dry_run_tells_of_the_crash_with_the_end_of_the_log(night):
    crashing = HONEST.replace("    tokens = 0", "    raise KeyError('\\x1b[31m<|im_start|>')")
    told = ask(night, "try", candidate=Candidate.parse(crashing))
    assert told.startswith("startup_crashed: ended while in its smoke step")
    assert "its log ends:\n" in told
    assert "Traceback" in told
    assert "\x1b" not in told
    assert "<|" not in told
    assert ask(night, "try", candidate=CHAMPION).startswith("ok: ")


def test_a_champions_checkpoint_is_kept_and_studied_once_and_goes_with_the_night(
    night, monkeypatch
):
    folder, bench = night.folder, studies.keeping(night)
    assert bench.checkpoints is None
    studies.allow(folder)
    bench = studies.keeping(night)
    discarded = Candidate.parse(f"{HONEST}\nDEPTH = 2\n")
    runs = [
        experiment.run_experiment(each, bench, 1, worth_audit=lambda claimed: False)
        for each in (CHAMPION, discarded)
    ]
    (folder / "trials" / "1").mkdir(parents=True)
    trial_folder.write_result(folder / "trials" / "1", (runs[0],), keep(1))
    source = night.root / "trainer" / "train.py"
    source.parent.mkdir()
    source.write_text(HONEST)
    author = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    for words in (["init", "-q"], ["add", "trainer"], [*author, "commit", "-qm", "keep"]):
        subprocess.run(["git", *words], cwd=night.root, check=True)
    studies.after_trial(night, make_state(keep(1), champion="HEAD"))
    assert studies.checkpoint(folder, 1, discarded) is None
    kept = studies.checkpoint(folder, 1, CHAMPION)
    assert kept is not None
    assert kept.tokens == runs[0].tokens

    told = ask(night, "loss", before=so_far(keep(1)))
    assert told.startswith("8.000 bits per byte on 4 of the last rows, which were")
    with monkeypatch.context() as patch:
        patch.setattr(inspection, "open_box", None)
        assert ask(night, "loss", before=so_far(keep(1))) == told
        # Here torch is a stub.
        profile = ask(night, "profile", before=so_far(keep(1)))
        assert profile.startswith("no answer from profile: ")
    studies.end(folder)
    assert studies.checkpoint(folder, 1, CHAMPION) is None
    assert "no trained model" in ask(night, "sample", before=so_far(keep(1)))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seconds": 1}'])
def test_a_damaged_study_is_none(night, text):
    studies.allow(night.folder)
    (night.folder / studies.FOLDER / "3.json").write_text(text)
    assert studies.read(night.folder, 3) is None


def test_a_long_answer_is_cut(no_box, night):
    made = NightDesk(night.folder, night.bench, night.baseline, {"fact": "x" * 5000})
    assert made.answer(Question("fact", "fact"), so_far()).text.endswith("xxx...")
    assert desk.LOG < LONGEST_ANSWER
