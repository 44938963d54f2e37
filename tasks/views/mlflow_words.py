"""What MLflow's runs say in words: the tags of a night's run and of a trial's, and the notes that head their pages."""

from __future__ import annotations

from tasks.records import TRAIN, NightState, Trial
from tasks.text import one_line

LONGEST_QUOTE = (
    800  # characters; a whole note stays below what MLflow takes, so no quote loses its end
)


def night_words(state: NightState) -> dict[str, str | None]:
    """Those that change with each trial. None: not known yet."""
    header, baseline, program = state.header, state.baseline, state.header.program
    kept = sum(trial.verdict == "keep" for trial in state.trials)
    return {
        "profile": header.profile,
        "proposer": header.proposer,
        "isolation": header.isolation,
        "model": header.model,
        "program": program.name if program else None,
        "program_sha256": program.sha256[:12] if program else None,
        "champion": state.champion,
        "hardware": baseline.hardware if baseline else None,
        "dataset": baseline.dataset if baseline else None,
        "mlflow.source.name": "nightly-research",
        "mlflow.source.git.commit": state.champion,
        "mlflow.note.content": f"{len(state.trials)} trials, {kept} kept. {state.finished or state.stopped or 'Not finished.'}",
    }


def trial_words(state: NightState, trial: Trial) -> dict[str, str]:
    tag, commit = state.header.tag, trial.commit or "-"
    score = "no score" if trial.val_bpb is None else f"{trial.val_bpb:.6f} bits per byte"
    told = {
        "Why it should help": trial.idea.hypothesis,
        "Expected": trial.idea.expected,
        "Why a stand-in": trial.idea.stands_in,
        "Note": trial.idea.note,
    }
    paragraphs = [
        f"{_quote(trial.idea.summary)}, proposed by {trial.idea.proposer}: **{trial.verdict}** ({trial.status}, {score}).",
        _quote(trial.reason),
        *(f"{name}: {_quote(text)}" for name, text in told.items() if text),
        f"The patch: `git show {commit}`, also refs/trials/{tag}/{trial.number}.",
    ]
    known = {
        "kind": trial.idea.kind,
        "outcome": trial.idea.outcome,
        "fixes": trial.fixes and str(trial.fixes),
    }
    return {
        "trial_id": f"{tag}:{trial.number}",
        "commit": commit,
        **{name: getattr(trial, name) for name in ("verdict", "reason", "status", "isolation")},
        "proposer": trial.idea.proposer,
        "unusual": trial.unusual or "-",
        "seeds": " ".join(map(str, trial.seeds)),
        **{name: value for name, value in known.items() if value},
        "mlflow.source.name": TRAIN,
        "mlflow.source.git.commit": commit,
        "mlflow.note.content": "\n\n".join(paragraphs),
    }


def _quote(text: str) -> str:
    """A proposer's or a candidate's words as code: a note is Markdown, and what they say must be none."""
    words = one_line(text).replace("`", "'")
    return f"`{words[:LONGEST_QUOTE]}`"
