"""Branch `autoresearch/<tag>-certified`: the baseline and the changes that are shown to help.

One commit a change, as it stands once the others are left out, with what fresh runs say of it in
its trailers. Plumbing only, as in champion.py. The same evidence gives the same commits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path

from tasks.errors import UsageError
from tasks.history import champion, git_plumbing
from tasks.records import TRAIN, Certification, Claim, NightState


def name(tag: str) -> str:
    return f"autoresearch/{tag}{champion.CERTIFIED}"


def commit(
    root: Path, state: NightState, files: Mapping[int, str], certification: Certification
) -> str:
    """Commits the certified changes onto the baseline, in order; returns the last commit.

    `files` has the train.py of each, by the number of its trial. No ref is changed.
    """
    trials = {trial.number: trial for trial in state.trials}
    claims = {number: claim for claim in certification.claims for number in claim.trials}
    date = datetime.fromisoformat(state.header.began)
    parent = str(state.start_commit)
    for number, source in files.items():
        trailers = {"Trial-Id": f"{state.header.tag}:{number}"}
        trailers |= _evidence(claims[number], certification)
        message = champion.message_of(trials[number], trailers)
        tree = git_plumbing.tree_with(root, parent, TRAIN, source)
        arguments = ("commit-tree", "--no-gpg-sign", tree, "-p", parent, "-m", message)
        parent = git_plumbing.run(root, *arguments, date=date)
    return parent


def _evidence(claim: Claim, certification: Certification) -> dict[str, str]:
    assert claim.gain is not None
    assert claim.z is not None
    together = {"Together-With-Trials": " ".join(map(str, claim.trials))}
    return {
        **(together if len(claim.trials) > 1 else {}),
        "Gain": f"{claim.gain:.6f}",
        "Z": f"{claim.z:.2f}",
        "Runs": f"{certification.whole_runs} with, {claim.runs} without",
        "Certified-Against": certification.champion,
    }


def move(root: Path, tag: str, new: str | None, earlier: Collection[str]) -> None:
    """Moves the branch to `new`, from one of the `earlier` commits or from nowhere.

    None removes it. Raises UsageError like `check`, or if a worktree has it checked out; nothing is
    changed then.
    """
    at = champion.tip(root, f"{tag}{champion.CERTIFIED}")
    if at == new:
        return
    check(root, tag, earlier)
    champion.check_not_checked_out(root, f"{tag}{champion.CERTIFIED}")
    ref = f"refs/heads/{name(tag)}"
    if new is None:
        git_plumbing.run(root, "update-ref", "-m", "nothing is certified", "-d", ref, str(at))
    else:
        # "": the ref must not exist yet.
        git_plumbing.run(root, "update-ref", "-m", "certified", ref, new, at or "")


def check(root: Path, tag: str, known: Collection[str]) -> None:
    """Raises UsageError if the branch exists and is at none of the `known` commits."""
    at = champion.tip(root, f"{tag}{champion.CERTIFIED}")
    if at is not None and at not in known:
        raise UsageError(
            f"{name(tag)} is at {at}, where no certification has put it. Give that work another "
            f"name, `git branch -m {name(tag)} NEW-NAME`, and repeat the command: every run so far "
            "is on record"
        )
