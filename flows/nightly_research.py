"""The night: prepare, measure the baseline, then propose, train, judge, keep or discard, until trials or hours are over.

Git and the ledger are the truth; Prefect and MLflow are views of it. The order for a trial: ledger `started`, its runs,
ledger `decided` (the commit point), git, ledger `applied`, MLflow. So a night that was killed goes on where it stopped.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import json
import statistics
import time
from datetime import datetime
from pathlib import Path

from prefect import flow, get_run_logger

from configs import knobs
from flows import server, views
from flows.gpu_trial import run_trial
from flows.opening import Night, base_source, baseline_event, new_header, open_night
from tasks import champion, ledger, proposal, verdict
from tasks.baseline import caps_after, unusual
from tasks.records import FileRef, NightSoFar, NightState, Proposal, RunResult, Trial, UsageError, Verdict


@flow(name="nightly-research")
def nightly_research(
    tag: str | None = None,
    profile: str = "laptop",
    trials: int | None = None,
    hours: float | None = None,
    proposer: str | None = None,
    patches: str | None = None,
    seed: int = 1,
    allow_unsandboxed: bool = False,
) -> str:
    """Runs a research night and returns its tag.

    Args:
        tag: the night's name; its branch is autoresearch/TAG. Default: today, as in nov21.
        profile: a name from configs/ or the path of a .toml file.
        trials: end after this many trials. Without trials and hours, the profile's.
        hours: start no trial after this many hours.
        proposer: tpe or replay. Default: the profile's.
        patches: replay only: the folder of patches.
        seed: first training seed of every candidate, and the proposer's.
        allow_unsandboxed: go on without a sandbox where none can be made; every trial says so.

    Raises:
        NightlyError: a subclass says who must act; the text has the value, the limit and the remedy.
    """
    header = new_header(tag, profile, trials, hours, proposer, patches, seed, allow_unsandboxed)
    views.name_flow_run(header["tag"])
    night = open_night(header, base_source(server.ROOT, header))
    with ledger.Ledger.create(night.folder / "ledger.jsonl") as book:
        FileRef.write(night.folder / "base.py", night.base.encode())
        book.append("night", **header, dataset=night.dataset.fingerprint)
        return go_on(night, book)


@flow(name="resume-night", flow_run_name="resume {tag}")
def resume_night(tag: str) -> str:
    """Goes on with an interrupted night: finishes what was decided, runs again only the trial that was in flight."""
    path = server.state_home() / "nights" / tag / "ledger.jsonl"
    with ledger.Ledger.open(path) as book:
        state = ledger.fold(book.events())
        if state.finished:
            raise UsageError(f"night {tag} is finished ({state.finished}); start a new one with another --tag")
        champion.check_not_checked_out(server.ROOT, tag)
        (path.parent / "stop").unlink(missing_ok=True)
        night = open_night(state.header, (path.parent / "base.py").read_text(encoding="utf-8"))
        return go_on(night, book)


def go_on(night: Night, book: ledger.Ledger) -> str:
    """The loop, from wherever the ledger says the night is, to its end and its report."""
    state = ledger.fold(book.events())
    if not state.champion:
        title = f"night {night.tag}: train.py with the knobs of profile {night.profile.name}"
        commit = champion.start_branch(night.root, night.tag, state.header["head"], night.base, title)
        book.append("baseline", **baseline_event(night), start_commit=commit)
    views.show_baseline(night, ledger.fold(book.events()))
    while (reason := why_over(night, state := ledger.fold(book.events()))) is None:
        if state.pending:  # killed between `decided` and `applied`
            apply_verdict(night, book, state.pending)
        elif not one_trial(night, book, state):
            reason = f"the proposer {night.proposer.name} has nothing left to propose"
            break
    book.append("finished", reason=reason)
    get_run_logger().info(f"night {night.tag} is over: {reason}")
    views.show_end(night, ledger.fold(book.events()))
    return night.tag


def why_over(night: Night, state: NightState) -> str | None:
    """Why the night ends now, or None."""
    trials, hours = state.header["trials"], state.header["hours"]
    if state.pending:
        return None
    if trials and len(state.trials) >= trials:
        return f"all {trials} trials are done"
    if hours and time.time() - datetime.fromisoformat(state.header["began"]).timestamp() >= hours * 3600:
        return f"the {hours:g} hours are over"
    return "stopped by ./run stop" if (night.folder / "stop").exists() else None


def one_trial(night: Night, book: ledger.Ledger, state: NightState) -> bool:
    """Proposes and takes one trial to its end. False when nothing was proposed."""
    log, number, parent = get_run_logger(), len(state.trials) + 1, state.champion
    assert parent is not None
    current = champion.source_at(night.root, parent)
    proposed = proposal.propose_patch(night.proposer, so_far(night, state, current), seen(night, state))
    if proposed is None:
        return False
    folder = night.folder / "trials" / str(number)
    keep_proposal(folder, current, proposed)
    book.append("started", trial=number, proposer=proposed.proposer, summary=proposed.summary, parent=parent)
    log.info(f"trial {number}: {proposed.summary}")
    runs, decided = run_and_judge(night, state, current, proposed)
    trial = trial_of(night, number, parent, proposed, runs, decided)
    keep_runs(folder, runs, trial)
    book.append("decided", trial=dataclasses.asdict(trial))
    apply_verdict(night, book, trial)
    score = "no score" if trial.val_bpb is None else f"{trial.val_bpb:.6f}"
    log.info(f"trial {number}: {trial.verdict} ({score}): {trial.reason}")
    return True


def run_and_judge(night: Night, state: NightState, current: str, proposed: Proposal) -> tuple[tuple[RunResult, ...], Verdict]:
    if proposed.problem:
        return (), verdict.failed("rejected_patch", proposed.problem)
    return run_trial(
        len(state.trials) + 1,
        proposed.source,
        lines_added=code_lines(proposed.source) - code_lines(current),
        champion_scores=state.champion_scores,
        sd=verdict.pooled_sd(state.groups),
        profile=night.profile,
        dataset=night.dataset,
        home=night.home,
        seed=night.seed,
        caps=caps_after(night.baseline),
        isolation=night.isolation,
    )


def apply_verdict(night: Night, book: ledger.Ledger, trial: Trial) -> None:
    """Git, then ledger `applied`, then the views: each may be done again after a kill and then changes nothing."""
    source = (night.folder / "trials" / str(trial.number) / "train.py").read_bytes().decode("utf-8", "surrogatepass")
    commit = champion.commit_candidate(night.root, night.tag, trial, source)
    if trial.verdict == "keep":
        champion.advance(night.root, night.tag, commit, trial.parent)
    book.append("applied", trial=trial.number, commit=commit)
    views.show_trial(night, ledger.fold(book.events()))


def so_far(night: Night, state: NightState, current: str) -> NightSoFar:
    assert state.champion_bpb is not None
    return NightSoFar(
        tag=night.tag,
        seed=night.seed,
        next_trial=len(state.trials) + 1,
        champion=current,
        champion_bpb=state.champion_bpb,
        baseline_bpb=night.baseline.val_bpb,
        baseline_knobs=dict(knobs.read(night.base)),
        trials=state.trials,
    )


def seen(night: Night, state: NightState) -> dict[str, int]:
    """Every code that was measured so far, by AST, and its trial; 0 is the baseline."""
    earlier = {trial.ast_sha256: trial.number for trial in reversed(state.trials) if trial.ast_sha256}
    return {**earlier, str(knobs.ast_sha256(night.base)): 0}


def code_lines(source: str) -> int:
    """Lines of code in a normal form: comments, blank lines and formatting neither cost nor earn anything."""
    return len(ast.unparse(ast.parse(source)).splitlines())


def trial_of(
    night: Night, number: int, parent: str, proposed: Proposal, runs: tuple[RunResult, ...], decided: Verdict
) -> Trial:
    scores = tuple(run.val_bpb for run in runs if run.val_bpb is not None)
    whole = bool(runs) and len(scores) == len(runs)
    return Trial(
        number=number,
        proposer=proposed.proposer,
        summary=proposed.summary,
        status=runs[-1].status if runs else "rejected_patch",
        verdict=decided.decision,
        reason=decided.reason,
        z=decided.z,
        val_bpb=statistics.fmean(scores) if whole else None,
        scores=scores,
        seeds=tuple(run.seed for run in runs),
        knobs=dict(knobs.read(proposed.source)),
        ast_sha256=knobs.ast_sha256(proposed.source),
        parent=parent,
        commit=None,
        seconds=statistics.fmean(run.seconds or 0.0 for run in runs) if whole else None,
        peak_memory_bytes=max((run.peak_memory_bytes or 0 for run in runs), default=0) or None,
        isolation=night.isolation,
        audit_gap=max((run.audit_gap for run in runs if run.audit_gap is not None), default=None),
        unusual=next((found for run in runs if (found := unusual(night.baseline, run))), None),
    )


def keep_proposal(folder: Path, current: str, proposed: Proposal) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    old, new = (text.splitlines(keepends=True) for text in (current, proposed.source))
    patch = "".join(difflib.unified_diff(old, new, f"a/{champion.TRAIN}", f"b/{champion.TRAIN}"))
    FileRef.write(folder / "train.py", proposed.source.encode("utf-8", "surrogatepass"))
    FileRef.write(folder / "patch.diff", patch.encode("utf-8", "surrogatepass"))


def keep_runs(folder: Path, runs: tuple[RunResult, ...], trial: Trial) -> None:
    logs = [f"--- seed {run.seed}: {run.status}: {run.reason}\n{run.log}" for run in runs]
    FileRef.write(folder / "run.log", "\n".join(logs).encode("utf-8", "replace"))
    withheld = [f"--- seed {run.seed}: what the scoring boxes printed; no proposer sees it\n{run.judge_log}" for run in runs]
    FileRef.write(folder / "judge.log", "\n".join(withheld).encode("utf-8", "replace"))
    logs_apart = ("log", "judge_log")
    shown = [{name: value for name, value in dataclasses.asdict(run).items() if name not in logs_apart} for run in runs]
    result = {"trial": dataclasses.asdict(trial), "runs": shown}
    FileRef.write(folder / "result.json", json.dumps(result, indent=1).encode())
