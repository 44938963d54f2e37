"""What the judge costs: seconds of each part beside a laptop trial, and the whole as a share of a
300 s trial.

The parts are taken one after the other from one checkpoint, so nothing hides behind anything else.
Then whole runs, audited and not in turns, give what is left of it where boxes warm up while others
work.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import configs
from configs import knobs
from flows import state_home
from flows.command_line import server
from flows.preparation import prepare
from tasks.judge import audit, protocol, scoring
from tasks.judge.box import open_box
from tasks.judge.bwrap import BoxSpec, Gate
from tasks.records import Bench, Candidate, Dataset, RunResult
from tasks.trial import baseline, experiment

GPU_TRIAL_SECONDS = 300.0
TARGETS = {"unaudited": 0.04, "audited": 0.08}  # of a 300 s trial, outside start-up and training


def run(repeats: int) -> bool:
    """Prints the table; False when a target is missed."""
    profile, home = configs.load("laptop"), state_home.locate()
    with server.prefect_api(home):
        dataset = prepare(profile)
    source = knobs.write(
        (state_home.ROOT / "trainer" / "train.py").read_text(encoding="utf-8"), profile.train
    )
    overheads: dict[str, list[float]] = {"unaudited": [], "audited": []}
    parts: dict[str, list[float]] = {}
    trial_seconds = []
    for _ in range(repeats):
        for kind, seconds in overheads.items():
            with tempfile.TemporaryDirectory() as kept:
                run, wall, spec = _whole_run(
                    source, profile, dataset, home, kind == "audited", Path(kept)
                )
                assert run.seconds is not None, f"{run.status}: {run.reason}"
                assert run.startup_seconds is not None
                seconds.append(wall - run.seconds - run.startup_seconds)
                trial_seconds.append(wall)
                if kind == "audited":
                    for part, took in _parts(spec, profile, dataset, Path(kept)).items():
                        parts.setdefault(part, []).append(took)
    return _print(parts, overheads, statistics.median(trial_seconds), repeats)


def _whole_run(
    source: str, profile: configs.Profile, dataset: Dataset, home: Path, audited: bool, kept: Path
) -> tuple[RunResult, float, BoxSpec]:
    """One run and its wall seconds; its checkpoint and code are copied to `kept`, for a box like
    its own."""
    finish, specs, module = protocol.finish, [], vars(experiment)

    def finish_and_keep(box: Any, begun: Any, checkpoint: Path, **limits: int) -> Any:
        trained = finish(box, begun, checkpoint, **limits)
        shutil.copytree(checkpoint.parent, kept / "checkpoint")
        shutil.copytree(checkpoint.parent.parent / "code", kept / "code")
        return trained

    def open_and_note(spec: BoxSpec) -> Any:
        specs.append(spec)
        return open_box(spec)

    protocol.finish, module["open_box"] = finish_and_keep, open_and_note
    profile = profile.model_copy(update={"audit": profile.audit.model_copy(update={"share": 0.0})})
    try:
        began = time.monotonic()
        run = experiment.run_experiment(
            Candidate.parse(source),
            Bench(profile, dataset, home, "bwrap", baseline.first_caps(profile)),
            seed=1,
            worth_audit=lambda claimed: audited,
        )
        wall = time.monotonic() - began
    finally:
        protocol.finish, module["open_box"] = finish, open_box
    kept.chmod(0o755)
    return run, wall, replace(specs[0], code=kept / "code")


def _parts(
    spec: BoxSpec, profile: configs.Profile, dataset: Dataset, kept: Path
) -> dict[str, float]:
    """Seconds of each part of claims and audit, cold and one after the other."""
    validation = scoring.Validation(Path(dataset.public), Path(dataset.validation))
    limit, took, clock = 120.0, {}, time.monotonic
    for role, phase in (("claim", "eval_startup"), ("audit", "audit_startup")):
        gate = Gate.closed(kept / f"{role}-gate", kept / "checkpoint")
        began = clock()
        with open_box(replace(spec, role=role, gate=gate)) as box:  # type: ignore[arg-type]
            wire = scoring.await_warm(box, limit)
            shape = scoring.load(box, wire, gate, phase, limit)
            took[f"{role} box: start, import of torch, checkpoint"] = clock() - began
            rows = validation.rows(shape)
            began = clock()
            if role == "claim":
                scoring.claim(box, wire, shape, rows, limit)
                took["claims of all rows"] = clock() - began
            else:
                questions = audit.draw(
                    validation.scored(shape, rows).astype(np.float32),
                    profile.audit.positions,
                    shape.batch_rows,
                    np.random.default_rng(),
                )
                audit.ask(
                    box, wire, shape, rows, validation.bos[shape.vocab_size], questions, limit
                )
                took[f"answers at {questions.positions.size} positions"] = clock() - began
            began = clock()
        took["end of a box"] = clock() - began
        gate.folder.chmod(0o755)
    began = clock()
    with open_box(
        replace(spec, role="probe", gate=Gate.closed(kept / "probe-gate", kept / "checkpoint")),
        ["-c", ""],
    ) as box:
        box.process.wait()
    (kept / "probe-gate").chmod(0o755)
    return {"an empty box: start of Python, and its end": clock() - began, **took}


def _print(
    parts: dict[str, list[float]], overheads: dict[str, list[float]], trial: float, repeats: int
) -> bool:
    print(
        f"\n| what, median of {repeats} | seconds | of a laptop trial ({trial:.0f} s) | of a 300 s trial |"
        "\n| --- | --- | --- | --- |"
    )
    print("| *parts, one after the other* | | | |")
    for part, seconds in parts.items():
        _row(part, statistics.median(seconds), trial)
    print("| *whole runs: all but start-up and training* | | | |")
    met = True
    for kind, seconds in overheads.items():
        share = _row(f"{kind} run", statistics.median(seconds), trial)
        met &= share < TARGETS[kind]
    serial = sum(
        statistics.median(seconds)
        for part, seconds in parts.items()
        if not part.startswith("an empty")
    )
    print(
        f"\nwarming boxes up beside other work: an audited run spends {statistics.median(overheads['audited']):.1f} s"
    )
    print(f"on judging where its parts take {serial:.1f} s one after the other")
    print("targets (unaudited < 4%, audited < 8% of 300 s): " + ("met" if met else "MISSED"))
    return met


def _row(what: str, seconds: float, trial: float) -> float:
    share = seconds / GPU_TRIAL_SECONDS
    print(f"| {what} | {seconds:.2f} | {seconds / trial:.1%} | {share:.1%} |")
    return share
