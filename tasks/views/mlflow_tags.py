"""The tags of MLflow's runs, a night's and a trial's, with the notes that head their pages."""

from __future__ import annotations

from tasks.records import TRAIN, FreshRun, NightState, RunResult, Trial
from tasks.text import counted, in_markdown, numbered, score, short_commit, shortened, unlinked
from tasks.views import certificates, certified_text, fresh_scores, search_yield

LONGEST_QUOTE = 800  # characters; a note of these stays below MLflow's limit, so that none is cut


def night_tags(state: NightState) -> dict[str, str | None]:
    """Those that change with each trial; None is not known yet."""
    header, baseline, program = state.header, state.baseline, state.header.program
    done = f"{counted(len(state.candidates), 'trial')}, {len(state.keeps)} kept"
    if placebos := len(state.placebos):
        done += f", {counted(placebos, 'placebo')}"
    end = in_markdown(state.finished or state.stopped or "Not finished.")
    result = " ".join(filter(None, (f"{done}.", certificates.sentence(state), end)))
    return {
        "profile": header.profile,
        "proposer": header.proposer,
        "isolation": header.isolation,
        "model": header.model,
        "contenders": unlinked(", ".join(c.name for c in header.contenders)) or None,
        "program": program.name if program else None,
        "program_sha256": program.sha256[:12] if program else None,
        "champion": state.champion,
        "hardware": baseline.hardware if baseline else None,
        "dataset": baseline.dataset if baseline else None,
        **certified_tags(state),
        "mlflow.source.name": "nightly-research",
        "mlflow.source.git.commit": state.champion,
        "mlflow.note.content": "\n\n".join(filter(None, (result, certified_text.scores(state)))),
    }


def certified_tags(state: NightState) -> dict[str, str]:
    """Which trials' changes are certified, and where they are; empty for an uncertified night."""
    if (found := state.certification) is None:
        return {}
    tags = {"certified_commit": found.tip or "-"}
    for certificate in ("certified", "not_shown", "open"):
        claims = [claim for claim in found.claims if claim.certificate == certificate]
        tags[certificate] = " ".join(str(n) for claim in claims for n in claim.trials) or "-"
    return tags


def baseline_id(state: NightState, run: RunResult) -> str:
    """`nov21:baseline:1`; on the second hardware of a night `nov21:baseline-2:1`."""
    other = sum(each.baseline is not None for each in state.remeasurements)
    return f"{state.header.tag}:baseline{f'-{other + 1}' if other else ''}:{run.seed}"


def trial_id(state: NightState, trial: Trial) -> str:
    return f"{state.header.tag}:{trial.number}"


def fresh_id(state: NightState, index: int) -> str:
    """Of a fresh run, by its place in the ledger: files may share a seed."""
    return f"{state.header.tag}:fresh:{index}"


def baseline_tags(state: NightState, run: RunResult) -> dict[str, str]:
    commit = state.start_commit or "-"
    result = "no score" if run.val_bpb is None else f"{score(run.val_bpb)} bits per byte"
    return {
        "trial_id": baseline_id(state, run),
        "commit": commit,
        "verdict": "baseline",
        "reason": f"what every trial is compared with, trained with seed {run.seed}",
        "status": run.status,
        "isolation": run.isolation,
        "seeds": str(run.seed),
        "mlflow.source.name": TRAIN,
        "mlflow.source.git.commit": commit,
        "mlflow.note.content": (
            f"The `{TRAIN}` that the night started with, trained with seed {run.seed} "
            f"({run.status}, {result}). Every trial is compared with the mean over the seeds.\n\n"
            f"The file: `git show {commit}:{TRAIN}`."
        ),
    }


def fresh_tags(state: NightState, index: int) -> dict[str, str]:
    run = state.all_fresh_runs[index]
    goal = {"certification": "for the certification", "end": "for the night's end"}[run.purpose]
    tags = {
        "trial_id": fresh_id(state, index),
        "commit": run.champion,
        "verdict": "fresh",
        "reason": f"{goal}: {unlinked(run.reason)}",
        "status": run.status,
        "seeds": str(run.seed),
        "purpose": run.purpose,
        "left_out": " ".join(map(str, run.left_out)) or "-",
        "mlflow.source.name": TRAIN,
        "mlflow.source.git.commit": run.champion,
        "mlflow.note.content": f"A run {goal}: {fresh_file(state, run)}, seed {run.seed}.",
        "unusual": unlinked(run.unusual or "-"),
    }
    return tags | ({"quarantined": str(len(run.quarantined))} if run.quarantined else {})


def fresh_file(state: NightState, run: FreshRun) -> str:
    """What a fresh run has trained, in words."""
    if fresh_scores.changes(state, run) == set():
        return "baseline"
    without = f" without {numbered(run.left_out)}" if run.left_out else ""
    return f"champion {short_commit(run.champion)}{without}"


def trial_tags(state: NightState, trial: Trial) -> dict[str, str]:
    commit = trial.commit or "-"
    known = {
        "contender": trial.idea.contender and unlinked(trial.idea.contender),
        "kind": trial.idea.kind,
        "outcome": trial.idea.outcome,
        "search": trial.idea.search if trial.idea.search != "proposal" else None,
        "built_on": " ".join(map(str, trial.idea.built_on)),
        "fixes": str(trial.fixes) if trial.fixes else None,
        "grown": trial.grown,
        # Of the champion, run again beside this trial.
        "champion_seeds": " ".join(map(str, trial.champion_seeds)),
        "quarantined": str(len(trial.quarantined)) if trial.quarantined else None,
    }
    return {
        "trial_id": trial_id(state, trial),
        "commit": commit,
        "verdict": verdict(trial),
        "reason": unlinked(trial.reason),
        "status": trial.status,
        "isolation": trial.isolation,
        "proposer": trial.idea.proposer,
        "unusual": unlinked(trial.unusual or "-"),
        "seeds": " ".join(map(str, trial.seeds)),
        **{name: value for name, value in known.items() if value},
        "mlflow.source.name": TRAIN,
        "mlflow.source.git.commit": commit,
        "mlflow.note.content": _note(state, trial),
    }


def verdict(trial: Trial) -> str:
    return "placebo" if trial.placebo else trial.verdict


def _note(state: NightState, trial: Trial) -> str:
    """Markdown: what was tried and why, the verdict, and where the patch is."""
    idea = trial.idea
    result = "no score" if trial.val_bpb is None else f"{score(trial.val_bpb)} bits per byte"
    words = {
        "Why it should help": idea.hypothesis,
        "Expected": idea.expected,
        "Why a stand-in proposed it": idea.stands_in,
        "Note": idea.note,
        "How it came about": search_yield.origin(idea),
        "Chosen": search_yield.choice(idea),
        "Much larger than its champion": trial.grown,
    }
    refs = f"refs/trials/{state.header.tag}/{trial.number}"
    paragraphs = [
        f"{_quote(idea.summary)}, proposed by {idea.proposer}: **{verdict(trial)}** "
        f"({trial.status}, {result}).",
        _quote(trial.reason),
        *(f"{name}: {_quote(text)}" for name, text in words.items() if text),
        f"The patch: `git show {trial.commit or '-'}`, also {refs}.",
    ]
    return "\n\n".join(paragraphs)


def _quote(text: str) -> str:
    """A proposer's or a candidate's words as code, so that none of them is Markdown."""
    words = unlinked(text).replace("`", "'")
    return f"`{shortened(words, LONGEST_QUOTE)}`"
