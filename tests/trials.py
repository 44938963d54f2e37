"""Trials, and nights made of them, for tests of what is told about nights."""

import dataclasses
from pathlib import Path

import configs
from tasks.history.llm_calls import CallLog
from tasks.records import (
    BaselineEvent,
    Candidate,
    FreshRun,
    Idea,
    NightHeader,
    NightState,
    Proposal,
    Trial,
)
from tasks.usage import Call

COMMIT = "0123456789abcdef0123456789abcdef01234567"
IDEA_FIELDS = {field.name for field in dataclasses.fields(Idea)}


def make_header(**changes) -> NightHeader:
    """A night's first event; `settings` may also be a table of changes to the laptop profile."""
    settings = changes.pop("settings", {})
    if not isinstance(settings, configs.Profile):
        settings = _changed(configs.load("laptop"), settings)
    fields = {
        "tag": "nov21",
        "began": "2026-11-21T22:00:00+00:00",
        "profile": "laptop",
        "settings": settings,
        "proposer": "tpe",
        "patches": None,
        "seed": 1,
        "trials": 4,
        "hours": None,
        "head": "f" * 40,
        "branch": "main",
        "dirty": False,
        "train_dirty": False,
        "isolation": "bwrap",
        "flow_run": "run-1",
        "deployment": None,
        "program": None,
    }
    return NightHeader(**{**fields, **changes})


def _changed(profile: configs.Profile, tables: dict) -> configs.Profile:
    whole = profile.model_dump()
    for name, table in tables.items():
        whole[name] = {**whole[name], **table} if isinstance(table, dict) else table
    return configs.Profile(**whole)


def make_baseline(**changes) -> BaselineEvent:
    fields = {
        "val_bpb": 1.65,
        "scores": (1.64, 1.65, 1.66),
        "seeds": (1, 2, 3),
        "sd": 0.01,
        "audit_gaps": (0.0, 0.0, 0.0),
        "audit_allowed": {"gap": 1e-4, "position": 1e-2},
        "hardware": "a CPU",
        "dataset": "d5",
        "facts": {"dataset": "d5"},
        "wall_seconds": 100.0,
        "seconds": 20.0,
        "peak_memory_bytes": None,
        "knobs": {"DEPTH": 3},
        "start_commit": "abcdef" * 7,
    }
    return BaselineEvent(**{**fields, **changes})


def night_event(**changes) -> dict:
    """The fields of the event `night`, as JSON has them."""
    return make_header(**changes).to_json()


def baseline_event(**changes) -> dict:
    """The fields of the event `baseline`, as JSON has them."""
    return dataclasses.asdict(make_baseline(**changes))


def make_fresh_run(**changes) -> FreshRun:
    """A run of the champion for a certification."""
    fields = {
        "purpose": "certification",
        "champion": "c1",
        "left_out": (),
        "seed": 10_001,
        "status": "ok",
        "reason": "trained and scored",
        "val_bpb": 1.6,
    }
    return FreshRun(**{**fields, **changes})


def make_proposal(source: str, summary: str = "", proposer: str = "tpe", **idea) -> Proposal:
    problem = idea.pop("problem", None)
    return Proposal(Candidate.parse(source), Idea(summary, proposer, **idea), problem)


def make_trial(number: int = 1, **changes) -> Trial:
    """A trial as it is decided: git has not got it yet. Fields of its idea are taken as well."""
    idea = {name: changes.pop(name) for name in IDEA_FIELDS & changes.keys()}
    fields = {
        "number": number,
        "idea": Idea(**{"summary": "DEPTH 3 -> 2", "proposer": "tpe", **idea}),
        "status": "ok",
        "verdict": "discard",
        "reason": "not better",
        "z": 0.125,
        "val_bpb": 1.66,
        "scores": (1.66,),
        "seeds": (1,),
        "knobs": {"DEPTH": 2, "ADAM_BETAS": (0.8, 0.95)},
        "digest": "ab",
        "parent": "c0",
        "commit": None,
        "peak_memory_bytes": 3 * 2**29,
    }
    return Trial(**{**fields, **changes})


def keep(number: int = 1, score: float = 1.6, **changes) -> Trial:
    fields = {"verdict": "keep", "reason": "better", "z": 4.0, "val_bpb": score, "scores": (score,)}
    return make_trial(number, **{**fields, **changes})


def crash(number: int = 1, **changes) -> Trial:
    failed = {
        "status": "train_crashed",
        "val_bpb": None,
        "z": None,
        "scores": (),
        "peak_memory_bytes": None,
    }
    return make_trial(number, **{**failed, "reason": "RuntimeError: boom", **changes})


def make_state(*trials: Trial, header=None, **changes) -> NightState:
    """A night with these trials, all in git; `header` changes parts of its first event."""
    scores = next(
        (trial.scores for trial in reversed(trials) if trial.verdict == "keep"), (1.64, 1.65, 1.66)
    )
    fields = {
        "header": make_header(**(header or {})),
        "baseline": make_baseline(),
        "trials": tuple(
            dataclasses.replace(trial, commit=trial.commit or COMMIT) for trial in trials
        ),
        "pending": None,
        "in_flight": None,
        "champion": "abcdef" * 7,
        "champion_scores": scores,
        "groups": (),
        "champion_repeats": (1.64, 1.65, 1.66),
        "finished": "all trials are done",
        "updated": "2026-11-22T06:04:59+00:00",
    }
    return NightState(**{**fields, **changes})


def write_calls(path: Path, *calls: Call) -> None:
    log = CallLog(path)
    for call in calls:
        log.append(call)


def make_call(trial: int = 1, number: int = 1, **changes) -> Call:
    fields = {
        "id": f"{trial}.{number}",
        "trial": trial,
        "purpose": "propose",
        "time": "2026-11-21T22:05:00+00:00",
        "seconds": 12.25,
        "endpoint": "http://127.0.0.1:1/v1",
        "model": "m1",
        "messages": ({"role": "user", "content": "the prompt"},),
        "answer": "the answer",
        "outcome": "ok",
        "error": None,
        "prompt_tokens": 10_000,
        "cached_tokens": 4_000,
        "completion_tokens": 500,
        "estimated": False,
        "dollars": 0.025,
    }
    return Call(**{**fields, **changes})
