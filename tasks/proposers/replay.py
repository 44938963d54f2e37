"""Proposals from existing patches, the k-th candidate from patch k.

The patches of a folder come in the order of their names:

    NN-name.diff, NN-name.patch   a unified diff of trainer/train.py against the champion
    NN-name.py                    a whole train.py

A first line that starts with "#" is the summary, otherwise the file's name is. The patches of a
past night are its candidates, kept or not: what each changed in its parent is merged into the
present champion, on another machine or with another budget.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from configs import knobs
from tasks.errors import UsageError
from tasks.history import champion
from tasks.proposers import three_way_merge
from tasks.records import TRAIN, Candidate, Idea, NightSoFar, Proposal
from tasks.text import one_line

SUFFIXES = (".diff", ".patch", ".py")


class PatchError(ValueError):
    """A patch that cannot be used; the text follows the patch's name."""


class Patch(NamedTuple):
    name: str
    summary: str
    note: str | None
    put_on: Callable[[str], str]  # champion's source -> the candidate's; raises PatchError


class PastNight(NamedTuple):
    root: Path  # the checkout that has its candidates
    tag: str


@dataclasses.dataclass(frozen=True)
class ReplayProposer:
    """Raises UsageError at once for a folder that is missing or has no patch."""

    source: Path | PastNight
    name: str = "replay"

    @classmethod
    def of(cls, patches: Path, root: Path) -> ReplayProposer:
        """Replays the folder `patches` or, without one, the night of that name in `root`."""
        tag = patches.name
        if patches.is_dir() or not champion.candidates(root, tag):
            return cls(patches)
        return cls(PastNight(root, tag))

    def __post_init__(self) -> None:
        if isinstance(self.source, PastNight):
            return
        if not self.source.is_dir():
            tag = self.source.name
            raise UsageError(
                f"replay: no folder of patches at {self.source}, and no night {tag!r} here; give "
                "either with --patches. To fetch a night from another machine: "
                f"`git fetch REMOTE 'refs/trials/{tag}/*:refs/trials/{tag}/*'`"
            )
        if not _of_folder(self.source):
            raise UsageError(
                f"replay: no patch in {self.source}; patches end in {', '.join(SUFFIXES)}"
            )

    def propose(self, night: NightSoFar) -> Proposal | None:
        """The patch for this trial, with a `problem` if it cannot be used; None after the last."""
        if isinstance(self.source, PastNight):
            patches = _of_night(self.source)
        else:
            patches = _of_folder(self.source)
        if night.turn > len(patches):
            return None
        patch = patches[night.turn - 1]
        candidate, problem = night.champion, None
        try:
            candidate = Candidate.parse(patch.put_on(night.champion.source))
        except PatchError as error:
            problem = f"{patch.name} {error}"
        return Proposal(candidate, Idea(patch.summary, self.name, note=patch.note), problem)


def _of_folder(folder: Path) -> list[Patch]:
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    return [
        Patch(f"patch {path.name}", _summary(path), None, functools.partial(_put_file_on, path))
        for path in files
    ]


def _put_file_on(path: Path, source: str) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise PatchError("is not UTF-8") from error
    return text if path.suffix == ".py" else apply(text, source)


def _of_night(night: PastNight) -> list[Patch]:
    """The patches of all trials but placebos, which have none."""
    patches = []
    for candidate in champion.candidates(*night):
        if candidate.trailers.get("Verdict") == champion.PLACEBO:
            continue
        verdict, z = (candidate.trailers.get(key, "-") for key in ("Verdict", "Z"))
        was = verdict if z == "-" else f"{verdict}, z {z}"
        note = one_line(f"replayed from night {night.tag}, trial {candidate.number} (was {was})")
        name = f"trial {candidate.number} of night {night.tag}"
        put_on = functools.partial(_merge_onto, night.root, candidate.commit)
        patches.append(Patch(name, one_line(candidate.subject), note, put_on))
    return patches


def _merge_onto(root: Path, commit: str, source: str) -> str:
    """`source` with what the candidate changed in its parent."""
    before, after = champion.source_at(root, f"{commit}^"), champion.source_at(root, commit)
    if after == before:
        raise PatchError("changed nothing")
    before, after = _with_knobs_of(source, before, after)
    merged = three_way_merge.three_way(before, source, after)
    if merged is None:
        raise PatchError("conflicts with the champion: both have changed the same lines")
    return merged


def _with_knobs_of(source: str, before: str, after: str) -> tuple[str, str]:
    """A patch's two sides, with `source`'s values of the knobs that the patch does not change.

    Knobs are on neighbouring lines, where git would see a conflict, and another profile has other
    values for most of them.
    """
    old, new = knobs.read(before), knobs.read(after)
    kept = {
        name: value
        for name, value in knobs.read(source).items()
        if name in old and new.get(name) == old[name]
    }
    try:
        common = knobs.writable(before, kept) & knobs.writable(after, kept)
    except knobs.KnobError:  # a side that does not parse is merged as it is
        return before, after
    kept = {name: kept[name] for name in common}
    return knobs.write(before, kept), knobs.write(after, kept)


def apply(patch: str, source: str) -> str:
    """`source` with a unified diff of trainer/train.py applied as a whole. Raises PatchError."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = folder / TRAIN
        target.parent.mkdir()
        target.write_bytes(source.encode("utf-8"))
        stat = _git_apply(folder, patch, "--numstat").splitlines()
        if others := {line.split("\t")[2] for line in stat} - {TRAIN}:
            raise PatchError(f"touches {', '.join(sorted(others))}; only {TRAIN} may change")
        # A deletion, a new mode, a link in place of the file.
        if special := _git_apply(folder, patch, "--summary").split():
            raise PatchError(f"does more than edit {TRAIN}: {' '.join(special)}")
        _git_apply(folder, patch, "--unidiff-zero")
        try:
            return target.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise PatchError(f"leaves {TRAIN} no longer UTF-8") from error


def _git_apply(folder: Path, patch: str, option: str) -> str:
    done = three_way_merge.run_git(
        folder, "apply", "--whitespace=nowarn", option, given=patch.encode("utf-8")
    )
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").replace("error: ", "").splitlines()
        raise PatchError(f"does not apply: {'; '.join(lines)}")
    return done.stdout.decode("utf-8", "replace")


def _summary(path: Path) -> str:
    first = path.read_bytes().partition(b"\n")[0].decode("utf-8", "replace").strip()
    named = first.startswith("#") and not first.startswith("#!")
    return (first.strip("# \t") if named else "") or path.stem
