"""Certifications with made-up scores: real ledger and git, but no box and no flow.

What is run, what is claimed, where the branch is, and that a process which dies at any step changes
none of that. tests/night/test_certified_night.py has the same with real runs and `kill -9`.
"""

import contextlib
import dataclasses
import logging
import os
import subprocess
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from configs import Budget, Rule
from flows.night import certification_steps, fresh_run, interruption, quarantine, remeasurement
from flows.night.certification_steps import Limits
from flows.night.session import Session
from tasks.errors import UsageError
from tasks.history import certified_branch, champion, night_budget
from tasks.history.ledger import Ledger
from tasks.records import Candidate, Conditions
from tasks.views import certificates
from tests.synthetic_night import make_run
from tests.trials import baseline_event, keep, make_baseline, make_trial, night_event

TAG = "nov21"
STRICT = Rule(false_discovery_rate=0.005)  # a change of nothing is next to never certified
LUCK = 0.0003  # bits per byte by which runs of one file differ: less than the least sd
BUDGET = Budget(kind="flops", amount=1.0)
SLOWER = {"another CPU": 0.1}  # bits per byte
LINES = "".join(f"    line_{n} = {n}\n" for n in range(40))
BASE = f"def load_model(path, device):\n    pass\n\n\ndef main():\n{LINES}"


class Died(BaseException):
    """The process is gone."""


@dataclasses.dataclass
class World:
    """A night of a few keeps, each a changed line of main(), and what a run of a file scores."""

    root: Path
    folder: Path
    gains: dict[str, float]  # by what a line becomes
    crashes: Callable[[str], bool] = lambda source: False
    trained: list[int] = dataclasses.field(default_factory=list)  # seeds
    hardware: str = "a CPU"
    budget: Budget = BUDGET
    conditions: Callable[[], Conditions | None] = lambda: None  # of the next run

    @property
    def night(self) -> Any:
        profile = types.SimpleNamespace(verdict=STRICT, budget=self.budget)
        bench = types.SimpleNamespace(profile=profile)
        baseline = types.SimpleNamespace(hardware=self.hardware)
        return types.SimpleNamespace(
            tag=TAG, folder=self.folder, root=self.root, bench=bench, baseline=baseline
        )

    def train(self, what: str, candidate: Candidate, bench: object, seed: int, **how: Any) -> Any:
        self.trained.append(seed)
        if self.crashes(candidate.source):
            return make_run(status="train_crashed", reason="boom", val_bpb=None, seed=seed)
        gain = sum(gain for text, gain in self.gains.items() if text in candidate.source)
        luck = (seed % 3 - 1) * LUCK
        luck += SLOWER.get(self.hardware, 0.0)
        return make_run(val_bpb=1.6 - gain + luck, seed=seed, conditions=self.conditions())

    def open(self) -> Any:
        return Ledger.open(self.folder / "ledger.jsonl")

    def session(self, book: Ledger) -> Session:
        return Session(self.folder, book, types.SimpleNamespace(enter=lambda phase: None))  # type: ignore[arg-type]

    def at_end(self) -> bool:
        with self.open() as book:
            return certification_steps.at_end(self.night, self.session(book))

    def certify(self, runs: int) -> bool:
        with self.open() as book:
            held = self.session(book)
            if not certification_steps.measure_again(self.night, held):
                return False
            made = certification_steps.made(book.state)
            return certification_steps.certify(self.night, held, Limits(made + runs, None))

    @property
    def state(self) -> Any:
        with self.open() as book:
            return book.state

    @property
    def runs(self) -> list[tuple[str, tuple[int, ...], int]]:
        return [(run.purpose, run.left_out, run.seed) for run in self.state.fresh_runs]

    @property
    def branch(self) -> str | None:
        return champion.tip(self.root, f"{TAG}-certified")


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Makes a world from the changes of its keeps: (line that is changed, what it becomes)."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for module in (certification_steps, fresh_run, quarantine, remeasurement):
        monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("test"))

    def make(
        *changes: tuple[str, str],
        gains: dict[str, float],
        conditions: tuple[Conditions, ...] = (),
        recorded: Mapping[str, Any] = MappingProxyType({}),  # with each keep
        **settings: Any,
    ) -> World:
        root, folder = tmp_path / "checkout", tmp_path / "nights" / TAG
        (root / "trainer").mkdir(parents=True)
        (root / "trainer" / "train.py").write_text(BASE)
        git(root, "init", "-q", "-b", "main")
        git(root, "add", "-A")
        git(root, "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-qm", "start")
        start = champion.start_branch(root, TAG, git(root, "rev-parse", "HEAD"), BASE, "baseline")
        world = World(root, folder, gains)
        settings = {"certify_share": 0.5, "end_runs": 2, **settings}
        with Ledger.create(folder / "ledger.jsonl") as book:
            header = night_event(tag=TAG, trials=len(changes) + 1, settings={"night": settings})
            book.append("night", **header)
            scores = (1.599, 1.6, 1.601)
            measured = baseline_event(start_commit=start, scores=scores, conditions=conditions)
            book.append("baseline", **measured)
            parent, source = start, BASE
            for number, (old, new) in enumerate(changes, 1):
                assert source.count(old) == 1
                source = source.replace(old, new)
                fields = {"summary": new.strip(), "scores": (1.5,) * 4, **recorded}
                trial = keep(number, 1.5, parent=parent, **fields)
                parent = decide(root, book, trial, source)
                champion.advance(root, TAG, parent, trial.parent)
            last = make_trial(len(changes) + 1, parent=parent, scores=(1.7,))
            decide(root, book, last, source.replace("line_39 = 39", "line_39 = 0"))
        for module in (fresh_run, remeasurement):
            monkeypatch.setattr(module, "train_candidate", world.train)
        elsewhere = make_baseline(
            hardware="another CPU", start_commit=start, scores=(1.699, 1.7, 1.701)
        )
        monkeypatch.setattr(remeasurement, "baseline_event", lambda night, start: elsewhere)
        return world

    return make


def decide(root: Path, book: Ledger, trial: Any, source: str) -> str:
    book.append("started", trial=trial.number, proposer="tpe", summary="", parent=trial.parent)
    book.append("decided", trial=dataclasses.asdict(trial))
    commit = champion.commit_candidate(root, TAG, trial, source)
    book.append("applied", trial=trial.number, commit=commit)
    return commit


def line(number: int, becomes: str) -> tuple[str, str]:
    """A keep's change: a line of main(), and what it becomes."""
    return f"    line_{number} = {number}\n", f"    {becomes}\n"


GOOD, NULL, ALSO = line(3, "good()"), line(15, "null()"), line(30, "also_good()")
GAINS = {"also_good()": 0.02, " good()": 0.03}


def test_what_helps_is_certified_and_what_does_not_is_named_as_not_shown(made):
    world = made(GOOD, NULL, ALSO, gains=GAINS)
    assert world.at_end()
    found = world.state.certification
    assert found.certified == (1, 3)
    claim = next(claim for claim in found.claims if claim.trials == (2,))
    assert claim.certificate != "certified"
    assert found.champion == world.state.champion
    assert found.whole_runs >= 1
    sources = [
        champion.source_at(world.root, f"autoresearch/{TAG}-certified{up}") for up in ("", "~1")
    ]
    assert sources == [BASE.replace(*GOOD).replace(*ALSO), BASE.replace(*GOOD)]
    assert git(world.root, "rev-parse", f"{world.branch}~2") == world.state.start_commit


def test_each_certified_commit_has_its_evidence(made):
    world = made(GOOD, NULL, gains=GAINS)
    world.at_end()
    claim = world.state.certification.claims[0]
    assert champion.trailers(world.root, world.branch) == {
        "Trial-Id": f"{TAG}:1",
        "Gain": f"{claim.gain:.6f}",
        "Z": f"{claim.z:.2f}",
        "Runs": f"{world.state.certification.whole_runs} with, {claim.runs} without",
        "Certified-Against": world.state.champion,
    }
    assert git(world.root, "log", "-1", "--format=%an", world.branch) == "nightly-research"


def test_every_run_has_a_seed_of_its_own_that_no_trial_has(made):
    world = made(GOOD, NULL, gains=GAINS)
    world.at_end()
    seeds = [seed for _, _, seed in world.runs]
    assert seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    assert seeds[0] > max(seed for trial in world.state.trials for seed in trial.seeds)


def test_the_end_runs_each_different_file_in_turn(made):
    world = made(GOOD, NULL, gains=GAINS)
    world.at_end()
    ends = [left_out for purpose, left_out, _ in world.runs if purpose == "end"]
    assert ends == [(1, 2), (), (2,)] * 2


def test_the_end_runs_the_champion_once_a_round_where_all_of_it_is_certified(made):
    world = made(GOOD, gains=GAINS)
    world.at_end()
    assert world.state.certification.certified == (1,)
    ends = [left_out for purpose, left_out, _ in world.runs if purpose == "end"]
    assert ends == [(1,), ()] * 2


def test_nothing_certified_makes_no_branch(made):
    world = made(NULL, gains={})
    world.at_end()
    assert world.state.certification.tip is None
    assert world.branch is None
    assert "Merge nothing yet" in certificates.text(world.state)


def test_a_night_that_cannot_give_each_change_a_run_makes_none(made):
    world = made(GOOD, NULL, gains=GAINS, certify_share=0.25)  # of 9 runs of trials: 3
    assert world.at_end()
    assert world.runs == []
    assert world.state.certification is None
    assert "2 changes were kept and none is certified" in str(night_budget.uncertified(world.state))


def test_certification_has_its_share_of_the_runs(made):
    world = made(GOOD, NULL, gains={}, certify_share=0.4)  # of 9 runs of trials: 6
    world.at_end()
    assert sum(purpose == "certification" for purpose, _, _ in world.runs) <= 6


def test_changes_that_do_not_run_without_one_another_stand_or_fall_together(made):
    world = made(GOOD, NULL, ALSO, gains=GAINS)
    # The null change needs the good one.
    world.crashes = lambda source: "null()" in source and " good()" not in source
    world.at_end()
    assert {claim.trials for claim in world.state.certification.claims} == {(1, 2), (3,)}
    assert world.state.certification.certified == (1, 2, 3)


def test_what_is_certified_must_run_without_the_rest(made):
    world = made(GOOD, NULL, ALSO, line(35, "other_null()"), gains=GAINS)
    # Each null change can be taken out alone, but not both.
    world.crashes = lambda source: (
        "also_good()" in source
        and "null()" not in source.replace("other_null()", "other()")
        and "other_null()" not in source
    )
    world.at_end()
    found = world.state.certification
    assert found.certified == (1,)
    assert "does not run without" in next(c.reason for c in found.claims if c.trials == (3,))
    assert champion.source_at(world.root, world.branch) == BASE.replace(*GOOD)


def test_evidence_of_several_certifications_adds_up(made):
    world = made(GOOD, NULL, gains=GAINS)
    assert world.certify(3)
    first = world.runs
    assert world.certify(3)
    assert world.runs[: len(first)] == first
    assert len(world.runs) > len(first)
    scored = [left_out for _, left_out, _ in world.runs]
    assert world.state.certification.whole_runs == scored.count(())
    assert [claim.runs for claim in world.state.certification.claims] == [
        scored.count((1,)),
        scored.count((2,)),
    ]


def test_a_request_to_stop_ends_it_after_the_run_and_it_goes_on_from_there(made, monkeypatch):
    world = made(GOOD, NULL, gains=GAINS)
    whole = made_alone(world)
    reached = iter(["trained"])

    def stop(step: str) -> None:
        if step == next(reached, None):
            interruption.request(world.folder, "./run stop")

    monkeypatch.setattr(interruption, "reached", stop)
    assert not world.at_end()
    assert len(world.runs) == 1
    (world.folder / interruption.REQUEST).unlink()
    assert world.at_end()
    assert told(world) == whole


def test_a_process_that_dies_at_any_step_loses_nothing_and_does_nothing_twice(made, monkeypatch):
    world = made(GOOD, NULL, gains=GAINS)
    whole = made_alone(world)
    died = set()

    def die_at_each_step_once(step: str) -> None:
        place = step, (world.folder / "ledger.jsonl").stat().st_size
        if place not in died:
            died.add(place)
            raise Died(step)

    monkeypatch.setattr(interruption, "reached", die_at_each_step_once)
    world.trained.clear()
    for _ in range(100):
        with contextlib.suppress(Died):
            assert world.at_end()
            break
    assert {step for step, _ in died} == {"trained", "fresh", "certified", "pointed"}
    assert len(died) > 2 * len(world.runs)
    assert told(world) == whole
    # Only the run in flight is made again, with its seed.
    assert sorted(set(world.trained)) == sorted(seed for _, _, seed in world.runs)


def made_alone(world: World) -> tuple[object, ...]:
    """What an undisturbed certification leaves; then all of it is undone."""
    ledger = world.folder / "ledger.jsonl"
    before = ledger.read_bytes()
    assert world.at_end()
    whole = told(world)
    ledger.write_bytes(before)
    git(world.root, "update-ref", "-d", f"refs/heads/autoresearch/{TAG}-certified")
    return whole


def told(world: World) -> tuple[object, ...]:
    return world.runs, world.state.certification, world.branch


def test_a_branch_that_somebody_moved_is_left_alone_and_every_run_is_kept(made):
    world = made(GOOD, gains=GAINS)
    git(world.root, "branch", f"autoresearch/{TAG}-certified", "main")
    with pytest.raises(UsageError, match=rf"git branch -m autoresearch/{TAG}-certified NEW-NAME"):
        world.at_end()
    assert world.branch == git(world.root, "rev-parse", "main")
    before = world.runs
    git(world.root, "branch", "-m", f"autoresearch/{TAG}-certified", "mine")
    assert world.at_end()
    assert world.runs[: len(before)] == before
    assert world.branch == world.state.certification.tip


def test_a_branch_that_is_checked_out_is_not_moved(made, tmp_path):
    world = made(GOOD, NULL, gains={**GAINS, " null()": 0.001})
    world.certify(3)
    place, at = tmp_path / "other", world.branch
    git(world.root, "worktree", "add", "-q", str(place), f"autoresearch/{TAG}-certified")
    with pytest.raises(UsageError, match="is checked out in"):
        world.certify(3)
    assert world.branch == at
    git(world.root, "worktree", "remove", str(place))
    world.certify(4)
    assert world.branch == world.state.certification.tip != at


def test_a_branch_whose_certificates_are_gone_is_removed(made):
    world = made(GOOD, gains=GAINS)
    world.certify(4)
    with pytest.raises(UsageError):
        certified_branch.check(world.root, TAG, [])
    certified_branch.move(world.root, TAG, None, [world.branch])
    assert world.branch is None


def test_another_certification_at_the_end_waits_for_another_champion(made):
    world = made(GOOD, NULL, gains=GAINS)
    world.at_end()
    before = told(world)
    assert world.at_end()
    assert told(world) == before


def test_hours_end_the_runs_in_time(made):
    world = made(GOOD, gains=GAINS)
    with world.open() as book:
        held = world.session(book)
        longest = night_budget.longest_run(book.state)
        limits = Limits(9, book.used_seconds() + longest - 1)
        certification_steps.certify(world.night, held, limits)
        assert [run.purpose for run in book.state.fresh_runs] == []
        assert book.state.certification.claims[0].certificate == "open"


def test_on_other_hardware_which_is_made_up_no_evidence_from_before_counts(made):
    world = made(GOOD, NULL, gains=GAINS)
    world.certify(3)
    before = world.state.fresh_runs
    world.hardware = "another CPU"
    assert world.certify(3)
    state = world.state
    assert state.earlier_fresh_runs[: len(before)] == before
    again = state.earlier_fresh_runs[len(before) :]
    assert {run.purpose for run in again} == {"remeasurement"}
    assert {run.hardware for run in (*again, *state.fresh_runs)} == {"another CPU"}
    assert state.baseline.hardware == "another CPU"
    scored = [left_out for _, left_out, _ in world.runs]
    assert state.certification.whole_runs == scored.count(())
    assert [claim.runs for claim in state.certification.claims] == [
        scored.count((1,)),
        scored.count((2,)),
    ]
    # A worse score for all of them is nobody's gain.
    assert all(abs(claim.gain or 0.0) < 0.05 for claim in state.certification.claims)
    seeds = [run.seed for run in state.all_fresh_runs if run.purpose != "remeasurement"]
    assert seeds == list(range(seeds[0], seeds[0] + len(seeds)))


def test_what_the_search_has_seen_counts_until_the_hardware_is_another(made):
    world = made(GOOD, gains=GAINS, recorded={"noise_sd": 0.01, "noise_df": 8})
    world.certify(3)
    (claim,) = world.state.certification.claims
    assert claim.reason.endswith("with the search's runs too")
    world.hardware = "another CPU"
    world.certify(3)
    (claim,) = world.state.certification.claims
    assert claim.reason.endswith("with")


def test_a_night_that_resumes_in_its_certification_on_hardware_that_is_made_up_begins_it_again(
    made, monkeypatch
):
    world = made(GOOD, NULL, gains=GAINS)
    stop_after(world, monkeypatch, "fresh", 2)
    assert not world.at_end()
    world.hardware = "another CPU"
    # While the champion is measured, it can be stopped as well.
    stop_after(world, monkeypatch, "measured_afresh", 2)
    assert not world.at_end()
    assert [run.purpose for run in world.state.fresh_runs] == [
        *["certification"] * 2,
        *["remeasurement"] * 2,
    ]
    stop_after(world, monkeypatch, "", 1)
    assert world.at_end()
    state = world.state
    assert state.certification.certified == (1,)
    assert {run.hardware for run in state.fresh_runs} == {"another CPU"}
    assert [run.purpose for run in state.earlier_fresh_runs] == [
        *["certification"] * 2,
        *["remeasurement"] * 3,
    ]


def stop_after(world: World, monkeypatch, step: str, times: int) -> None:
    """Asks once for an end, when this step is reached so many times."""
    (world.folder / interruption.REQUEST).unlink(missing_ok=True)
    reached = []

    def count(name: str) -> None:
        reached.append(name)
        if name == step and reached.count(step) == times:
            interruption.request(world.folder, "./run stop")

    monkeypatch.setattr(interruption, "reached", count)


def test_a_night_without_time_for_it_does_not_begin_again_on_hardware_that_is_made_up(
    made, monkeypatch
):
    world = made(GOOD, NULL, gains=GAINS)
    stop_after(world, monkeypatch, "fresh", 2)
    assert not world.at_end()
    stop_after(world, monkeypatch, "", 1)
    with world.open() as book:
        book.append("resumed", trials=None, hours=1e-3)
    before = world.runs
    world.hardware = "another CPU"
    assert world.at_end()
    assert world.runs == before
    assert world.state.certification is None


def test_a_night_certified_before_it_resumes_on_hardware_that_is_made_up_makes_no_more_runs(
    made, monkeypatch
):
    world = made(GOOD, NULL, gains=GAINS)
    stop_after(world, monkeypatch, "certified", 1)
    assert not world.at_end()
    (world.folder / interruption.REQUEST).unlink()
    before = told(world)
    world.hardware = "another CPU"
    assert world.at_end()
    assert told(world) == before


QUIET = Conditions(20.0, cpu_used=20.0, cpu_waited=0.0, cpu_others=0.0, cpu_stolen=0.0)
BUSY = dataclasses.replace(QUIET, cpu_waited=30.0, cpu_others=60.0)


def test_a_fresh_run_that_a_made_up_machine_disturbs_is_made_again_with_its_seed(made):
    world = made(GOOD, gains=GAINS, conditions=(QUIET, QUIET))
    world.budget = Budget(kind="seconds", amount=20)
    machine = iter([BUSY, QUIET])
    world.conditions = lambda: next(machine)
    with world.open() as book:
        certification_steps.certify(world.night, world.session(book), Limits(1, None))
    (run,) = world.state.fresh_runs
    assert world.trained == [run.seed] * 2
    assert run.conditions == QUIET
    (aside,) = run.quarantined
    assert (aside.seed, aside.of, aside.status) == (run.seed, "champion", "ok")
    assert "its threads waited 1.50 s a second" in aside.disturbance
    assert run.unusual is None


def test_on_a_made_up_machine_that_stays_busy_a_fresh_run_counts_and_is_usual_from_then_on(made):
    world = made(GOOD, gains=GAINS, conditions=(QUIET, QUIET))
    world.budget = Budget(kind="seconds", amount=20)
    world.conditions = lambda: BUSY
    world.certify(2)
    first, second = world.state.fresh_runs
    assert len(first.quarantined) == 2
    assert "a run counts although its threads waited" in first.unusual
    assert second.quarantined == ()
