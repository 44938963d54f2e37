"""A night's state machine: where each sequence of events leads, and which cannot be."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.errors import NightlyError
from tasks.history import ledger
from tasks.history.ledger import Ledger
from tasks.history.night_state import FORMAT, fold
from tasks.records import Certification, Claim, Conditions, Quarantined, Trial
from tests.trials import baseline_event, make_fresh_run, make_trial, night_event


def events(*rest: tuple[str, dict], **header) -> list[dict]:
    """A night with its baseline, and what follows, as a reader gets it."""
    night = {"v": FORMAT, **night_event(**header)}
    all_events = [("night", night), ("baseline", baseline_event(start_commit="c0")), *rest]
    lines = [
        {"event": name, "time": f"t{i}", "used": float(i), **fields}
        for i, (name, fields) in enumerate(all_events)
    ]
    return json.loads(json.dumps(lines))


def decided(trial: Trial) -> tuple[str, dict]:
    return "decided", {"trial": dataclasses.asdict(trial)}


def applied(number: int) -> tuple[str, dict]:
    return "applied", {"trial": number, "commit": f"c{number}"}


def test_a_new_night_knows_its_header_only():
    state = fold(events()[:1])
    assert (state.header.tag, state.baseline, state.champion, state.champion_bpb) == (
        "nov21",
        None,
        None,
        None,
    )


def test_the_baseline_is_the_first_champion():
    state = fold(events())
    assert (state.champion, state.start_commit) == ("c0", "c0")
    assert state.champion_scores == (1.64, 1.65, 1.66)
    assert state.repeats == ((1.64, 1.65, 1.66),)
    assert state.champion_seeds == (1, 2, 3)
    assert state.champion_bpb == pytest.approx(1.65)


def test_a_trial_goes_from_in_flight_to_pending_to_applied():
    trial = make_trial(1)
    all_events = events(("started", {"trial": 1}), decided(trial), applied(1))
    states = [fold(all_events[:n]) for n in (3, 4, 5)]
    assert [(s.in_flight, s.pending, s.trials) for s in states] == [
        (1, None, ()),
        (None, trial, ()),
        (None, None, (dataclasses.replace(trial, commit="c1"),)),
    ]


def test_a_keep_makes_the_champion_and_a_discard_does_not():
    keep = make_trial(1, verdict="keep", scores=(1.5, 1.7), seeds=(1, 2))
    state = fold(events(decided(keep), applied(1), decided(make_trial(2)), applied(2)))
    assert (state.champion, state.champion_scores, state.start_commit) == ("c1", (1.5, 1.7), "c0")
    assert state.champion_bpb == pytest.approx(1.6)


def test_a_keep_is_no_champion_before_it_is_in_git():
    assert fold(events(decided(make_trial(1, verdict="keep")))).champion == "c0"


def test_scores_by_which_a_champion_was_chosen_are_not_fresh():
    fresh = {"champion_scores": (1.66,), "champion_seeds": (4,)}
    first, kept = make_trial(1, **fresh), make_trial(2, verdict="keep")
    third = make_trial(3, champion_scores=(1.5,), champion_seeds=(7,))
    sequence = [(decided(trial), applied(trial.number)) for trial in (first, kept, third)]
    all_events = events(*(event for pair in sequence for event in pair))
    states = [fold(all_events[:n]) for n in (4, 6, 8)]
    assert [s.champion_fresh for s in states] == [(1.64, 1.65, 1.66, 1.66), (), (1.5,)]


def test_fresh_runs_and_certifications_are_read_again_and_may_follow_the_end():
    run = make_fresh_run(left_out=(1, 3), holdout_bpb=1.7)
    claim = Claim((1, 3), "certified", 0.02, 3.1, 4, "shown to help")
    found = Certification("c1", (claim, Claim((2,), "open", None, None, 0, "no run yet")), 3, "c9")
    all_events = events(
        ("fresh", {"run": dataclasses.asdict(run)}),
        ("finished", {"reason": "all 3 trials are done"}),
        ("certified", {"certification": dataclasses.asdict(found)}),
    )
    state = fold(all_events)
    assert state.fresh_runs == (run,)
    assert state.certification == found
    assert found.certified == (1, 3)
    assert state.finished


def test_a_night_certifies_nothing_while_a_verdict_is_not_in_git():
    fresh = ("fresh", {"run": dataclasses.asdict(make_fresh_run())})
    with pytest.raises(NightlyError, match="fresh run before applying the last trial"):
        fold(events(decided(make_trial(1)), fresh))


def test_fresh_runs_of_the_champion_are_among_its_scores_until_another_is_kept():
    fresh = {"champion_scores": (1.66, 1.64), "champion_seeds": (4, 5)}
    first = make_trial(1, **fresh)
    second = make_trial(2, verdict="keep", scores=(1.5, 1.7), seeds=(1, 2), **fresh)
    all_events = events(decided(first), applied(1), decided(second), applied(2))
    discarded, kept = fold(all_events[:-2]), fold(all_events)
    assert discarded.champion_scores == (1.64, 1.65, 1.66, 1.66, 1.64)
    assert discarded.champion_seeds == (1, 2, 3, 4, 5)
    assert (kept.champion_scores, kept.champion_seeds) == ((1.5, 1.7), (1, 2))


def test_what_tells_the_noise_is_no_score_for_which_a_file_was_run_again():
    repeated = make_trial(1, scores=(1.5, 1.7, 1.8), seeds=(1, 2, 3), champion_scores=(1.63,))
    kept = make_trial(2, verdict="keep", scores=(1.4, 1.45), seeds=(1, 2), champion_scores=(1.6,))
    all_events = events(decided(repeated), applied(1), decided(kept), applied(2))
    assert fold(all_events[:-2]).repeats == ((1.7, 1.8), (1.64, 1.65, 1.66, 1.63))
    assert fold(all_events).repeats == ((1.7, 1.8), (1.64, 1.65, 1.66, 1.63, 1.6), (1.45,))


def test_a_trial_is_run_again_after_a_kill_and_counts_once():
    state = fold(
        events(
            ("started", {"trial": 1}), ("started", {"trial": 1}), decided(make_trial(1)), applied(1)
        )
    )
    assert len(state.trials) == 1


def test_the_end_has_its_reason_and_time():
    state = fold(events(("finished", {"reason": "all 2 trials are done"})))
    assert (state.finished, state.updated) == ("all 2 trials are done", "t2")


@pytest.mark.parametrize(
    "wrong",
    [
        [applied(1)],
        [decided(make_trial(1)), applied(2)],
        [decided(make_trial(1)), applied(1), applied(1)],
    ],
)
def test_an_application_without_its_decision_is_an_error(wrong):
    with pytest.raises(NightlyError, match="was not decided just before"):
        fold(events(*wrong))


def test_another_format_is_refused():
    (night,) = events()[:1]
    with pytest.raises(NightlyError, match=f"format {FORMAT - 1}, this version reads {FORMAT}"):
        fold([{**night, "v": FORMAT - 1}])


def test_a_ledger_without_its_first_line_is_refused():
    with pytest.raises(NightlyError, match="no event 'night'"):
        fold(events()[1:])


def test_a_stopped_night_says_why_and_whose_wish_it_was():
    wished = fold(events(("stopped", {"reason": "Ctrl-C", "failed": False})))
    failed = fold(events(("stopped", {"reason": "no box could be run", "failed": True})))
    assert (wished.stopped, wished.failed, wished.finished) == ("Ctrl-C", False, None)
    assert (failed.stopped, failed.failed) == ("no box could be run", True)


def test_a_trial_in_flight_survives_a_stop_and_is_run_again():
    state = fold(
        events(
            ("started", {"trial": 1}),
            ("stopped", {"reason": "Ctrl-C", "failed": False}),
            ("resumed", {}),
        )
    )
    assert (state.stopped, state.in_flight, len(state.trials)) == (None, 1, 0)


def test_a_decision_that_was_not_applied_survives_a_stop():
    state = fold(
        events(
            decided(make_trial(1)),
            ("stopped", {"reason": "SIGTERM", "failed": False}),
            ("resumed", {}),
        )
    )
    assert state.pending == make_trial(1)


def test_a_finished_night_resumes_with_more_trials():
    finished = ("finished", {"reason": "all 4 trials are done"})
    state = fold(events(finished, ("resumed", {"trials": 9}), trials=4, hours=None))
    assert (state.finished, state.header.trials, state.header.hours) == (None, 9, None)


def test_a_resumed_night_may_lose_a_limit():
    state = fold(events(("resumed", {"trials": None, "hours": 8.0}), trials=4, hours=None))
    assert (state.header.trials, state.header.hours) == (None, 8.0)


def test_used_seconds_are_the_last_events():
    lines = events(("started", {"trial": 1, "used": 12.5}))
    assert fold(lines).used_seconds == 12.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([decided(make_trial(2))], "decides trial 2 after 0 trials"),
        (
            [decided(make_trial(1)), applied(1), decided(make_trial(1))],
            "decides trial 1 after 1 trials",
        ),
        ([decided(make_trial(1)), decided(make_trial(1))], "before applying the last one"),
        (
            [decided(make_trial(1)), ("started", {"trial": 2})],
            "starts trial 2 before applying the last one",
        ),
        ([("night", {"v": FORMAT, **night_event(tag="nov22")})], "two events 'night'"),
        ([("dreamt", {})], "does not know"),
        ([("started", {})], "event 'started' of t2 is incomplete: 'trial'"),
        ([("decided", {"trial": {"scores": [], "seeds": [], "knobs": {}}})], "is incomplete"),
    ],
)
def test_events_that_cannot_follow_one_another_are_an_error(wrong, message):
    with pytest.raises(NightlyError, match=message):
        fold(events(*wrong))


def test_a_refused_event_is_not_written(tmp_path):
    path = tmp_path / "nov21" / "ledger.jsonl"
    with Ledger.create(path) as book:
        book.append("night", **night_event())
        with pytest.raises(NightlyError, match="was not decided"):
            book.append("applied", trial=1, commit="c1")
        book.append("started", trial=1)
    assert [event["event"] for event in ledger.read(path)] == ["night", "started"]


def test_a_live_state_is_what_the_next_process_reads(tmp_path):
    path = tmp_path / "nov21" / "ledger.jsonl"
    with Ledger.create(path) as book:
        for event in events(
            ("started", {"trial": 1}), decided(make_trial(1, verdict="keep")), applied(1)
        ):
            book.append(
                event.pop("event"),
                **{
                    name: value
                    for name, value in event.items()
                    if name not in ("time", "v", "used")
                },
            )
        assert fold(ledger.read(path)) == book.state
        assert book.state.champion == "c1"


def test_a_clock_that_jumps_moves_no_budget(tmp_path, monkeypatch):
    path: Path = tmp_path / "nov21" / "ledger.jsonl"

    class Jumped(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 11, 21, tzinfo=UTC) - timedelta(days=1)

    with Ledger.create(path) as book:
        book.append("night", **night_event())
        monkeypatch.setattr(ledger, "datetime", Jumped)
        book.append("started", trial=1)
    first, second = ledger.read(path)
    assert second["time"] < first["time"]
    assert 0 <= first["used"] <= second["used"] < 60


def test_a_night_that_goes_on_has_used_what_it_had(tmp_path):
    path = tmp_path / "nov21" / "ledger.jsonl"
    with Ledger.create(path) as book:
        book.append("night", **night_event())
        book.count_used(3600.0)
        book.append("stopped", reason="Ctrl-C", failed=False)
    with Ledger.open(path) as book:
        assert 3600.0 <= book.used_seconds() < 3700.0
        book.count_used(10.0)  # an older heartbeat takes nothing back
        assert book.used_seconds() >= 3600.0


def remeasured(**changes) -> tuple[str, dict]:
    """The event: the champion was measured again, on the same hardware."""
    fields = {
        "reason": "the machine has changed",
        "trials": 1,
        "hardware_before": "a CPU",
        "baseline_before": (1.64, 1.65, 1.66),
        "champion_before": (1.5,),
        "baseline": None,
        "scores": (1.7, 1.71, 1.72),
        "seeds": (7, 8, 9),
        "conditions": (dataclasses.asdict(Conditions(300.0, cpu_waited=2.0)),),
    }
    return "remeasured", {**fields, **changes}


FRESH = {
    "purpose": "remeasurement",
    "champion": "c1",
    "left_out": (),
    "seed": 7,
    "status": "ok",
    "reason": "",
    "val_bpb": 1.7,
}


def test_a_champion_that_is_measured_again_is_compared_by_those_runs_alone():
    kept = make_trial(1, verdict="keep", scores=(1.5, 1.51, 1.52), seeds=(1, 2, 3))
    before = [decided(kept), applied(1), ("fresh", {"run": FRESH})]
    state = fold(events(*before, remeasured()))
    assert (state.champion, state.champion_scores, state.champion_seeds) == (
        "c1",
        (1.7, 1.71, 1.72),
        (7, 8, 9),
    )
    assert state.champion_fresh == state.champion_repeats == state.champion_scores
    # What each spread says of the noise stays, and the shift between them is none of it.
    assert state.repeats == ((1.64, 1.65, 1.66), (), (1.51, 1.52), (1.7, 1.71, 1.72))
    assert state.usual == (Conditions(300.0, cpu_waited=2.0),)
    assert (state.fresh_runs, state.first_comparable) == ((), 2)
    assert state.baseline is not None
    assert state.baseline.hardware == "a CPU"


def test_fresh_runs_from_before_a_measurement_keep_their_places():
    again = [("fresh", {"run": FRESH}), remeasured(trials=0)]
    state = fold(events(*again, ("fresh", {"run": FRESH}), *again))
    assert (state.fresh_runs, len(state.earlier_fresh_runs)) == ((), 3)


def test_what_changes_all_night_long_becomes_usual():
    state = fold(events(*[remeasured(trials=0)] * 5))
    assert len(state.usual) == 3


def test_on_other_hardware_nothing_from_before_is_compared():
    base = baseline_event(hardware="b", scores=(1.74, 1.75, 1.76), val_bpb=1.75, start_commit="c0")
    kept = make_trial(1, verdict="keep", scores=(1.5, 1.51), seeds=(1, 2))
    state = fold(events(decided(kept), applied(1), remeasured(baseline=base)))
    assert state.repeats == ((1.74, 1.75, 1.76), (1.7, 1.71, 1.72))
    assert state.baseline is not None
    assert (state.baseline.hardware, state.baseline.val_bpb) == ("b", 1.75)
    alone = fold(events(remeasured(baseline=base, trials=0, scores=(1.74, 1.75, 1.76))))
    assert alone.repeats == ((1.74, 1.75, 1.76),)


def test_nothing_is_measured_again_between_a_decision_and_git():
    with pytest.raises(NightlyError, match="measures again before applying the last trial"):
        fold(events(decided(make_trial(1)), remeasured()))


def test_conditions_and_quarantined_runs_come_back_from_the_file():
    aside = Quarantined("candidate", 1, "others used 1.00 CPUs", "ok", 1.9)
    quiet = Conditions(300.0, held_back={"heat": 0.5})
    trial = make_trial(1, conditions=(quiet,), champion_conditions=(quiet,), quarantined=(aside,))
    state = fold(events(decided(trial), applied(1)))
    assert state.trials == (dataclasses.replace(trial, commit="c1"),)
    assert state.champion_conditions == state.usual == (quiet,)


def test_a_ledger_without_conditions_can_be_read():
    saved = dataclasses.asdict(make_trial(1))
    for name in ("conditions", "champion_conditions", "quarantined", "machine_change"):
        del saved[name]
    assert fold(events(("decided", {"trial": saved}))).pending == make_trial(1)
