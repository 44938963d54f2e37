"""Proposals from a folder of patches, in the order of their names: a night whose verdicts are known beforehand.

    NN-name.diff, NN-name.patch   a unified diff of trainer/train.py against the champion
    NN-name.py                    a whole train.py

A first line that starts with "#" is the summary, else the file's name is.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import tempfile
from pathlib import Path

from tasks.records import TRAIN, NightSoFar, Proposal, UsageError

SUFFIXES = (".diff", ".patch", ".py")


@dataclasses.dataclass(frozen=True)
class ReplayProposer:
    """Trial k takes file k. Raises UsageError at once for a folder that is missing or has no patch."""

    folder: Path
    name: str = "replay"

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise UsageError(f"replay: no folder of patches at {self.folder}; give one with --patches")
        if not self._files():
            raise UsageError(f"replay: no patch in {self.folder}; it takes files that end in {', '.join(SUFFIXES)}")

    def propose(self, night: NightSoFar) -> Proposal | None:
        """The patch for this trial, or None after the last one. One that cannot be used comes with its `problem`."""
        files = self._files()
        if night.next_trial > len(files):
            return None
        path = files[night.next_trial - 1]
        summary, source, problem = path.stem, night.champion, None
        try:
            text = path.read_bytes().decode("utf-8")
            summary = _summary(text) or path.stem
            source = text if path.suffix == ".py" else apply(text, night.champion)
        except UnicodeDecodeError:
            problem = f"patch {path.name} is not UTF-8"
        except PatchError as error:
            problem = f"patch {path.name} {error}"
        return Proposal(source=source, summary=summary, proposer=self.name, problem=problem)

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.suffix in SUFFIXES and path.is_file())


class PatchError(ValueError):
    """A patch that cannot be used; the text goes on after the patch's name."""


def apply(patch: str, source: str) -> str:
    """`source` with a unified diff of trainer/train.py applied, all of it or none. Raises PatchError."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, TRAIN)
        target.parent.mkdir()
        target.write_bytes(source.encode("utf-8"))
        others = {line.split("\t")[2] for line in _git(folder, patch, "--numstat").splitlines()} - {TRAIN}
        if others:
            raise PatchError(f"touches {', '.join(sorted(others))}; only {TRAIN} may change")
        if special := _git(folder, patch, "--summary").split():  # a deletion, a new mode, a link in the file's place
            raise PatchError(f"does more than edit {TRAIN}: {' '.join(special)}")
        _git(folder, patch, "--unidiff-zero")
        try:
            return target.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise PatchError(f"leaves {TRAIN} no longer UTF-8") from error


def _git(folder: str, patch: str, option: str) -> str:
    """`git apply` in a folder that is no repository, deaf to the user's configuration."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CEILING_DIRECTORIES": str(Path(folder).resolve().parent),  # in a repository git apply skips other folders
    }
    command = ["git", "apply", "--whitespace=nowarn", option]
    done = subprocess.run(command, cwd=folder, env=environment, input=patch.encode("utf-8"), capture_output=True)
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").replace("error: ", "").splitlines()
        raise PatchError(f"does not apply: {'; '.join(lines)}")
    return done.stdout.decode("utf-8", "replace")


def _summary(text: str) -> str | None:
    first = text.partition("\n")[0].strip()
    return (first.strip("# \t") or None) if first.startswith("#") and not first.startswith("#!") else None
