"""Whether a finished night adds up: every trial exactly once in ledger, git, MLflow and
results.tsv, and nothing left over.

Reads with plain means (git's command line, the ledger's lines, MLflow's client) and none of the
night's own code, so that a mistake there is not made here again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.boxes import live_boxes
from tests.checkouts import Checkout, our_pids

# Of a trial that was proposed and never run.
WAITING_FILES = {"train.py", "patch.diff", "proposal.json"}
TRIAL_FILES = {*WAITING_FILES, "run.log", "judge.log", "result.json"}
# MLflow's page shows no file whose name ends in .diff.
ARTIFACTS = {name.replace(".diff", ".diff.txt") for name in TRIAL_FILES}
NIGHT_FILES = {"report.md", "progress.png", "results.tsv"}

Event = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class UserTree:
    """What of a checkout is its user's, and no night's."""

    status: str
    head: str
    index: str  # sha256
    refs: str  # but for the nights' own

    @classmethod
    def of(cls, checkout: Checkout) -> UserTree:
        refs = checkout.git("for-each-ref").splitlines()
        return cls(
            status=checkout.git("--no-optional-locks", "status", "--porcelain"),
            head=checkout.git("rev-parse", "HEAD") + checkout.git("symbolic-ref", "-q", "HEAD"),
            index=hashlib.sha256((checkout.folder / ".git" / "index").read_bytes()).hexdigest(),
            refs="\n".join(
                line for line in refs if "refs/trials/" not in line and "/autoresearch/" not in line
            ),
        )


def complaints(
    checkout: Checkout,
    tag: str,
    planned: int,
    before: UserTree,
    standing: frozenset[int] = frozenset(),
) -> list[str]:
    """Everything that does not add up about a night that was planned for so many trials and is
    over; empty if all does.

    `before` is the user's tree as it was before the night, `standing` the pids of servers and
    workers that live on.
    """
    events = checkout.ledger(tag)
    return [
        *_ledger(events, planned),
        *_git(checkout, tag, events),
        *_files(checkout, tag, events),
        *_calls(checkout, tag, events),
        *_ideas(checkout, tag, events),
        *_mlflow(checkout, tag, events),
        *_processes(checkout.home, standing),
        *(
            []
            if UserTree.of(checkout) == before
            else [f"user's tree: {UserTree.of(checkout)}, was {before}"]
        ),
    ]


def decided(events: list[Event]) -> dict[int, Event]:
    """The trials as they were first decided, by number."""
    found: dict[int, Event] = {}
    for event in events:
        if event["event"] == "decided":
            found.setdefault(event["trial"]["number"], event["trial"])
    return found


def applied(events: list[Event]) -> dict[int, str]:
    """The commits of the trials, by number."""
    return {event["trial"]: event["commit"] for event in events if event["event"] == "applied"}


def start_commit(events: list[Event]) -> str | None:
    return next((event["start_commit"] for event in events if event["event"] == "baseline"), None)


def _ledger(events: list[Event], planned: int) -> Iterator[str]:
    """Decided and applied take turns, 1 to N; each trial was started before and never after; one
    night, one end."""
    names = [event["event"] for event in events]
    for name in ("night", "baseline", "finished"):
        if names.count(name) != 1:
            yield f"ledger: {names.count(name)} events {name!r}"
    last = max(
        (i for i, name in enumerate(names) if name in ("started", "decided", "applied")), default=-1
    )
    if "finished" in names and names.index("finished") < last:
        yield "ledger: a trial after the event 'finished'"
    steps = [
        (
            event["event"],
            event["trial"]["number"] if event["event"] == "decided" else event["trial"],
        )
        for event in events
        if event["event"] in ("decided", "applied")
    ]
    wanted = [(name, k) for k in range(1, planned + 1) for name in ("decided", "applied")]
    if steps != wanted:
        yield f"ledger: decided and applied are {steps}, not those of 1 to {planned} in turn"
    champion, open_trial = start_commit(events), None
    for event in events:
        if event["event"] == "started":
            open_trial = event["trial"]
            if event["parent"] != champion:
                yield f"ledger: trial {open_trial} was started on {event['parent']}, the champion was {champion}"
        elif event["event"] == "decided":
            if open_trial != event["trial"]["number"]:
                yield f"ledger: trial {event['trial']['number']} was decided, but {open_trial} was the one started"
            open_trial = None
        elif (
            event["event"] == "applied"
            and decided(events).get(event["trial"], {}).get("verdict") == "keep"
        ):
            champion = event["commit"]


def _git(checkout: Checkout, tag: str, events: list[Event]) -> Iterator[str]:
    """refs/trials, each with its commit, parent and trailer; and the branch: the start and the
    keeps in order."""
    trials, commits = decided(events), applied(events)
    lines = checkout.git(
        "for-each-ref", "--format=%(refname) %(objectname)", f"refs/trials/{tag}"
    ).splitlines()
    refs = dict(line.split() for line in lines)
    wanted = {f"refs/trials/{tag}/{k}": commit for k, commit in commits.items()}
    if refs != wanted:
        yield f"git: refs {refs}, the ledger has {wanted}"
    for k, commit in commits.items():
        if checkout.git("cat-file", "-t", commit).strip() != "commit":
            yield f"git: trial {k} has no commit {commit}"
        trailer = checkout.git(
            "log", "-1", "--format=%(trailers:key=Trial-Id,valueonly)", commit
        ).strip()
        if trailer != f"{tag}:{k}":
            yield f"git: trial {k} has the trailer Trial-Id {trailer!r}"
        parents = checkout.git("log", "-1", "--format=%P", commit).split()
        if parents != [trials[k]["parent"]]:
            yield f"git: trial {k} has the parents {parents}, the ledger {trials[k]['parent']}"
    keeps = [
        commits[k]
        for k, trial in sorted(trials.items())
        if trial["verdict"] == "keep" and k in commits
    ]
    branch = checkout.git(
        "for-each-ref", "--format=%(objectname)", f"refs/heads/autoresearch/{tag}"
    ).strip()
    found = (
        checkout.git("rev-list", "--reverse", f"{start_commit(events)}^..{branch}").split()
        if branch
        else []
    )
    if found != [start_commit(events), *keeps]:
        yield f"git: the branch is {found}, the start and the keeps are {[start_commit(events), *keeps]}"
    if locks := sorted(path.name for path in (checkout.folder / ".git").rglob("*.lock")):
        yield f"git: lock files {locks}"


def _files(checkout: Checkout, tag: str, events: list[Event]) -> Iterator[str]:
    """results.tsv row by row, the night's and the trials' files, and no half-written one."""
    folder, trials, commits = checkout.home / "nights" / tag, decided(events), applied(events)
    if missing := NIGHT_FILES - {path.name for path in folder.iterdir()}:
        yield f"files: {sorted(missing)} are missing"
    if (folder / "results.tsv").is_file():
        rows = [line.split("\t") for line in (folder / "results.tsv").read_text().splitlines()]
        column = [row[0] for row in rows[1:]]
        wanted = [
            str(commit)[:7]
            for commit in (start_commit(events), *(commits.get(k) for k in sorted(trials)))
        ]
        if column != wanted:
            yield f"results.tsv: the commits are {column}, not {wanted}"
    numbers = sorted(int(path.name) for path in (folder / "trials").iterdir())
    if numbers and numbers[-1] == len(trials) + 1:
        waiting = {path.name for path in (folder / "trials" / str(numbers.pop())).iterdir()}
        if waiting != WAITING_FILES:
            yield f"files: the trial that waits has {sorted(waiting)}"
    if numbers != sorted(trials):
        yield f"files: folders of the trials {numbers}, decided are {sorted(trials)}"
    for k in sorted(set(numbers) & set(trials)):
        names = {path.name for path in (folder / "trials" / str(k)).iterdir()} - {"attempts"}
        if names != TRIAL_FILES:
            yield f"files: trial {k} has {sorted(names)}"
        elif (
            json.loads((folder / "trials" / str(k) / "result.json").read_text())["trial"]
            != trials[k]
        ):
            yield f"files: trial {k}: result.json is of another trial than the ledger's"
    if parts := [str(path) for path in checkout.home.glob("nights/**/.*.part")]:
        yield f"files: half-written {parts}"
    if left := os.listdir(checkout.home / "boxes"):
        yield f"files: left in boxes/: {left}"


def _calls(checkout: Checkout, tag: str, events: list[Event]) -> Iterator[str]:
    """Requests to language models: as many and as dear in the ledger as in their own file, each
    under one id."""
    path = checkout.home / "nights" / tag / "llm_calls.jsonl"
    calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if len({call["id"] for call in calls}) != len(calls):
        yield "calls: an id is there twice"
    for k, trial in decided(events).items():
        its_own = [call for call in calls if call["trial"] == k]
        tokens = [
            sum(call[name] or 0 for call in its_own)
            for name in ("prompt_tokens", "completion_tokens")
        ]
        told = trial["usage"]
        if (told["calls"], told["prompt_tokens"], told["completion_tokens"]) != (
            len(its_own),
            *tokens,
        ):
            yield f"calls: trial {k} has {len(its_own)} calls with {tokens} tokens, the ledger {told}"


def ids_of(lines: list[Event]) -> list[str]:
    """The ids of all ideas in these lines of ideas.jsonl."""
    calls = [line["ideas"] for line in lines if line["event"] == "ideas"]
    return [each["idea"]["queued"] for call in calls for each in call]


def _ideas(checkout: Checkout, tag: str, events: list[Event]) -> Iterator[str]:
    """Each idea of the queue is run once, dropped for a reason, or waits; each choice is one of
    ideas that were there to be chosen."""
    path = checkout.home / "nights" / tag / "ideas.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    made = ids_of(lines)
    dropped = {line["id"]: line["reason"] for line in lines if line["event"] == "dropped"}
    if len(set(made)) != len(made):
        yield f"ideas: an id is there twice: {made}"
    if not (dropped.keys() <= set(made) and all(dropped.values())):
        yield f"ideas: dropped are {dropped}, made were {made}"
    run: list[str] = []
    for k, trial in sorted(decided(events).items()):
        queued, choice = trial["idea"]["queued"], trial["idea"]["choice"]
        if queued is None:
            if choice:
                yield f"ideas: trial {k} was chosen from {choice} and did not wait"
            continue
        chosen = [each["idea"] for each in choice]
        if chosen[:1] != [queued]:
            yield f"ideas: trial {k} is idea {queued}, chosen from {chosen}"
        if gone := set(chosen) & {*run} | set(chosen) - {*made}:
            yield f"ideas: trial {k} was chosen from {sorted(gone)}, which did not wait"
        run.append(queued)
    if twice := {id for id in run if run.count(id) > 1 or id in dropped}:
        yield f"ideas: {sorted(twice)} were run twice, or run and dropped"


def _mlflow(checkout: Checkout, tag: str, events: list[Event]) -> Iterator[str]:
    """One parent run, ended, on the champion; one child for each trial, each seed of the baseline
    and each fresh run, ended, with its score."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{checkout.home}/mlflow.db")
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = list(client.search_runs(everywhere, max_results=10_000))
    parents = [run for run in runs if run.data.tags.get("night") == tag]
    if len(parents) != 1:
        yield f"MLflow: {len(parents)} parent runs"
        return
    trials, commits = decided(events), applied(events)
    keeps = [commits.get(k) for k, trial in sorted(trials.items()) if trial["verdict"] == "keep"]
    figures = parents[0].data.metrics
    facts = (
        parents[0].info.status,
        parents[0].data.tags.get("champion"),
        figures.get("trials"),
        figures.get("kept"),
    )
    if facts != ("FINISHED", keeps[-1] if keeps else start_commit(events), len(trials), len(keeps)):
        yield f"MLflow: the parent run has status, champion, trials, kept = {facts}"
    if missing := NIGHT_FILES - {
        artifact.path for artifact in client.list_artifacts(parents[0].info.run_id)
    }:
        yield f"MLflow: the parent run lacks the artifacts {sorted(missing)}"
    children = [
        run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id
    ]
    ids = sorted(run.data.tags.get("trial_id", "?") for run in children)
    seeds: list[int] = next(
        (event["seeds"] for event in events if event["event"] == "baseline"), []
    )
    fresh = {
        f"{tag}:fresh:{i}": event["run"]
        for i, event in enumerate(event for event in events if event["event"] == "fresh")
        if event["run"]["purpose"] != "remeasurement"
    }
    wanted = sorted(
        [*(f"{tag}:{k}" for k in trials), *(f"{tag}:baseline:{seed}" for seed in seeds), *fresh]
    )
    if ids != wanted:
        yield f"MLflow: the child runs are {ids}, not {wanted}"
    for run in children:
        trial_id = run.data.tags.get("trial_id", "?")
        if run.info.status not in ("FINISHED", "FAILED"):
            yield f"MLflow: {trial_id} is {run.info.status}"
        if run_apart := fresh.get(trial_id):
            scores = {name: run_apart[name] for name in ("val_bpb", "holdout_bpb")}
            if scores != {name: run.data.metrics.get(name) for name in scores}:
                yield f"MLflow: {trial_id} has not the scores {scores}"
            continue
        k = int(trial_id.rpartition(":")[2])
        if ":baseline:" in trial_id or k not in trials:
            continue
        tags, val_bpb = run.data.tags, run.data.metrics.get("val_bpb")
        told = (run.info.status, tags.get("commit"), tags.get("verdict"), val_bpb)
        status = "FINISHED" if trials[k]["status"] == "ok" else "FAILED"
        verdict = "placebo" if trials[k]["placebo"] else trials[k]["verdict"]
        if told != (status, commits.get(k), verdict, trials[k]["val_bpb"]):
            yield f"MLflow: {trial_id} has status, commit, verdict, val_bpb = {told}"
        if missing := ARTIFACTS - {
            artifact.path for artifact in client.list_artifacts(run.info.run_id)
        }:
            yield f"MLflow: {trial_id} lacks the artifacts {sorted(missing)}"


def _processes(home: Path, standing: frozenset[int]) -> Iterator[str]:
    """Live processes that name the state folder, in their arguments or environment, and those of
    its boxes."""
    left = {pid: said for pid, said in our_pids(home).items() if pid not in standing}
    yield from (f"process {pid} is left: {said}" for pid, said in left.items())
    boxes = {process.pid for process in live_boxes(home)}
    yield from (f"process {pid} of a box is left" for pid in boxes - left.keys())
