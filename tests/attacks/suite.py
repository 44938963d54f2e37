"""Runs the candidates of one test module, two at a time, and looks at what they leave on the host.

A module of attacks has a class that is an `AttackTests`, one of controls a `ControlTests`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import site
import socket
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest

from tasks.judge.box import Box, open_box
from tasks.judge.bwrap import BoxSpec
from tasks.records import RunResult
from tasks.trial import experiment
from tests.attacks import arena
from tests.attacks.arena import Arena, Attack, Control, Witness
from tests.attacks.forked_boxes import ForkedBoxes

HONEST = Control("the honest candidate", "nothing changed", ())
RUNS_AT_ONCE = 2
LONGEST_LOG = 66_000  # first and last 32 KiB and a line between them


@dataclasses.dataclass
class Suite:
    """The runs of the selected candidates, and what must be on the host after them as before."""

    arena: Arena
    runs: dict[str, Future[RunResult]]
    witness: Witness
    forks: ForkedBoxes | None
    hashes: dict[str, str]
    descriptors: int
    listeners: tuple[socket.socket, socket.socket]

    def results(self) -> dict[str, RunResult]:
        return {name: run.result() for name, run in self.runs.items()}


@contextlib.contextmanager
def open_suite(folder: Path, candidates: Sequence[Attack | Control]) -> Iterator[Suite]:
    """Starts the runs of `candidates`, first of the honest one if some are compared with it."""
    folder.chmod(0o755)
    home = folder / "user"
    key_file = home / ".config" / "openai.env"
    key_file.parent.mkdir(parents=True)
    key_file.write_text(f"OPENAI_API_KEY={arena.SECRET}\n")
    dataset = arena.make_dataset(folder / "data")
    gains_nothing = [getattr(candidate, "gains_nothing", False) for candidate in candidates]
    is_compared = any(gains_nothing) or any(candidate.limited for candidate in candidates)
    everybody = [*([HONEST] if is_compared else []), *candidates]
    with contextlib.ExitStack() as undo:
        patch = undo.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("HOME", str(home))
        patch.setenv("OPENAI_API_KEY", arena.SECRET)
        tcp, unix = undo.enter_context(arena.listening())
        folders = list(map(str, host_folders(folder)))
        bait: dict[str, str | int] = {
            "key_file": str(key_file),
            "validation": dataset.validation,
            "port": tcp.getsockname()[1],
            "socket": unix.getsockname()[1:].decode(),
            "folders": ":".join(folders),
            "mark": f"for folder in {' '.join(folders)}; do : > $folder/{arena.MARKER}; done",
        }
        field = Arena(dataset, folder, bait)
        forks = None
        if any(candidate.forked for candidate in everybody):
            forks = undo.enter_context(ForkedBoxes.below(folder))

        def open_one(spec: BoxSpec) -> contextlib.AbstractContextManager[Box]:
            if forks is not None and spec.home == field.home("forked"):
                return forks.open_box(spec)
            return open_box(spec)

        patch.setattr(experiment, "open_box", open_one)
        patch.setattr(experiment, "assemble", field.assemble)
        witness = undo.enter_context(Witness(field.home("real"), field.home("stub")))
        pool = undo.enter_context(ThreadPoolExecutor(RUNS_AT_ONCE))
        hashes, descriptors = hash_tree(folder / "data"), len(os.listdir("/proc/self/fd"))
        runs: dict[str, Future[RunResult]] = {}
        for candidate in everybody:
            runs[candidate.name] = pool.submit(field.run, candidate, runs.get(HONEST.name))
        yield Suite(field, runs, witness, forks, hashes, descriptors, (tcp, unix))
        pool.shutdown(cancel_futures=True)


def host_folders(folder: Path) -> list[Path]:
    """Where on a host a candidate could leave a file, each folder once."""
    root = Path(__file__).resolve().parents[2]
    places = (
        *("/", "/tmp", "/var/tmp", "/dev/shm", "/etc", "/usr", "/run"),
        *("/scratch", "/box", "/data", "/dataset"),
    )
    ours = [root, root / "trainer", Path(site.__file__).parent, Path(tempfile.gettempdir()), folder]
    return list(dict.fromkeys([*map(Path, places), *ours]))


def hash_tree(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class HostTests:
    """What holds for the host after the runs of any candidates."""

    def test_the_data_is_unchanged(self, suite: Suite) -> None:
        """But for rows that the judge packs: a control has a MAX_SEQ_LEN of 48."""
        suite.results()
        data = suite.arena.folder / "data"
        packed = str(data / "train" / "rows_64_48.npy")
        after = hash_tree(data)
        assert after == suite.hashes | {
            path: digest for path, digest in after.items() if path == packed
        }

    def test_no_file_is_left_on_the_host(self, suite: Suite) -> None:
        suite.results()
        folders = str(suite.arena.bait["folders"]).split(":")
        assert [folder for folder in folders if Path(folder, arena.MARKER).exists()] == []
        assert list(suite.arena.folder.rglob(arena.MARKER)) == []
        assert list(suite.arena.folder.glob("state/*/boxes/*")) == []

    def test_no_process_of_a_box_is_alive(self, suite: Suite) -> None:
        suite.results()
        assert suite.witness.survivors() == []
        assert suite.forks is None or suite.forks.alive() == []

    def test_no_listener_of_the_host_was_called(self, suite: Suite) -> None:
        suite.results()
        for listener in suite.listeners:
            with pytest.raises(BlockingIOError):
                listener.accept()

    def test_no_secret_was_seen(self, suite: Suite) -> None:
        for name, result in suite.results().items():
            assert arena.SECRET not in json.dumps(dataclasses.asdict(result)), name

    def test_no_validation_text_reaches_the_proposer(self, suite: Suite) -> None:
        for name, result in suite.results().items():
            shown = dataclasses.asdict(dataclasses.replace(result, judge_log=""))
            assert arena.LEAKED not in json.dumps(shown), name

    def test_logs_and_reasons_are_short_plain_text(self, suite: Suite) -> None:
        for name, result in suite.results().items():
            text = result.reason + result.log + result.judge_log
            controls = {c for c in text if unicodedata.category(c)[0] == "C"}
            assert controls <= {"\n", "\t"}, name
            assert len(result.reason) < 600, name
            assert len(result.log) < LONGEST_LOG, name

    def test_the_judge_holds_no_descriptor_of_a_box(self, suite: Suite) -> None:
        suite.results()
        assert len(os.listdir("/proc/self/fd")) <= suite.descriptors + 4  # the pool's own


class AttackTests(HostTests):
    CANDIDATES: ClassVar[Sequence[Attack]]

    def test_an_attack_is_stopped_for_what_it_is(self, suite: Suite, candidate: Attack) -> None:
        result = suite.runs[candidate.name].result()
        assert arena.THROUGH not in result.reason + result.log + result.judge_log
        assert (result.status, result.reason) == (candidate.status, result.reason)
        assert re.search(candidate.reason, result.reason)
        if candidate.gains_nothing:
            honest = suite.runs[HONEST.name].result().val_bpb
            assert honest is not None
            assert result.val_bpb is not None
            assert -1e-9 < result.val_bpb - honest < 1e-7
        else:
            assert result.val_bpb is None

    def test_a_process_of_a_box_was_seen(self, suite: Suite) -> None:
        """The witness can see boxes."""
        suite.results()
        assert suite.witness.count > 0


class ControlTests(HostTests):
    CANDIDATES: ClassVar[Sequence[Control]]

    def test_an_honest_candidate_is_not_stopped(self, suite: Suite, candidate: Control) -> None:
        result = suite.runs[candidate.name].result()
        assert (result.status, result.reason) == ("ok", "trained and scored")
        assert result.audit_gap is not None
        assert abs(result.audit_gap) < 1e-4
