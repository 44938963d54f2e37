"""No candidate fools the judge or leaves the box: every attack meets real boxes, then the suite looks at what is left.

`NIGHTLY_WRITE_TABLE=1 pytest tests/attacks -k table` writes README.md anew.
"""

import dataclasses
import hashlib
import json
import os
import re
import site
import socket
import tempfile
import unicodedata
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.records import RunResult
from tests.attacks import (
    arena,
    controls,
    room_escape,
    room_lying,
    room_notes,
    room_peeking,
    room_recall,
    room_time,
)
from tests.attacks.arena import Arena, Attack, Control, Witness

ROOMS = (room_lying, room_peeking, room_notes, room_recall, room_time, room_escape)
ATTACKS: list[Attack] = [attack for room in ROOMS for attack in room.ATTACKS]
CONTROLS: list[Control] = list(controls.CONTROLS)
HONEST = Control("the honest candidate", "nothing changed", ())
LEAST = {"lying about the score": 13, "peeking": 14, "cheating time": 11, "breaking out": 16}
README = Path(__file__).parent / "README.md"
BOXES_AT_ONCE = 2
LONGEST_LOG = 66_000  # first and last 32 KiB and a line between them


@dataclasses.dataclass
class Suite:
    """The runs of the selected attacks, in the order of the tests, and what the suite must find unchanged."""

    arena: Arena
    runs: dict[str, Future[RunResult]]
    witness: Witness
    hashes: dict[str, str]
    descriptors: int
    listeners: tuple[socket.socket, socket.socket]

    def results(self) -> dict[str, RunResult]:
        return {name: run.result() for name, run in self.runs.items()}


@pytest.fixture(scope="module")
def suite(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Suite]:
    folder = tmp_path_factory.mktemp("arena")
    home = folder / "user"
    key_file = home / ".config" / "openai.env"
    key_file.parent.mkdir(parents=True)
    key_file.write_text(f"OPENAI_API_KEY={arena.SECRET}\n")
    dataset = arena.make_dataset(folder / "data")
    with pytest.MonkeyPatch.context() as patch, arena.listening() as (tcp, unix):
        patch.setenv("HOME", str(home))
        patch.setenv("OPENAI_API_KEY", arena.SECRET)
        folders = list(map(str, host_folders(folder)))
        bait: dict[str, str | int] = {
            "key_file": str(key_file),
            "validation": dataset.validation,
            "port": tcp.getsockname()[1],
            "socket": unix.getsockname()[1:].decode(),
            "folders": ":".join(folders),
            "mark": f"for folder in {' '.join(folders)}; do : > $folder/{arena.MARKER}; done",
        }
        field = Arena(dataset, folder / "state", bait)
        selected = [
            item.callspec.params["attack"]
            for item in request.session.items
            if hasattr(item, "callspec") and "attack" in item.callspec.params
        ]
        with Witness(field.home) as witness, ThreadPoolExecutor(BOXES_AT_ONCE) as pool:
            hashes, descriptors = hash_tree(folder / "data"), len(os.listdir("/proc/self/fd"))
            runs = {
                candidate.name: pool.submit(arena.run_attack, candidate, field)
                for candidate in [HONEST, *selected]
            }
            yield Suite(field, runs, witness, hashes, descriptors, (tcp, unix))
            pool.shutdown(cancel_futures=True)


def host_folders(folder: Path) -> list[Path]:
    """Where on a host a candidate could leave a file."""
    root = Path(__file__).resolve().parents[2]
    places = [
        "/",
        "/tmp",
        "/var/tmp",
        "/dev/shm",
        "/etc",
        "/usr",
        "/run",
        "/scratch",
        "/box",
        "/data",
        "/dataset",
    ]
    found = [
        *map(Path, places),
        root,
        root / "trainer",
        Path(site.__file__).parent,
        Path(tempfile.gettempdir()),
        folder,
    ]
    return list(
        dict.fromkeys(found)
    )  # each once: a second look would find the file that was written at the first


def hash_tree(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_stopped_for_what_it_is(suite: Suite, attack: Attack) -> None:
    result = suite.runs[attack.name].result()
    assert arena.THROUGH not in result.reason + result.log + result.judge_log
    assert (result.status, result.reason) == (attack.status, result.reason)
    assert re.search(attack.seen, result.reason)
    if attack.gains_nothing:
        honest = suite.runs[HONEST.name].result().val_bpb
        assert honest is not None
        assert result.val_bpb == pytest.approx(honest, abs=1e-9)
    else:
        assert result.val_bpb is None


@pytest.mark.slow
@pytest.mark.parametrize("attack", CONTROLS, ids=lambda control: control.name)
def test_an_honest_candidate_is_not_stopped(suite: Suite, attack: Control) -> None:
    result = suite.runs[attack.name].result()
    assert (result.status, result.reason) == ("ok", "trained and scored")
    assert result.audit_gap is not None
    assert abs(result.audit_gap) < 1e-4


@pytest.mark.slow
def test_the_data_is_as_it_was(suite: Suite) -> None:
    suite.results()
    data = suite.arena.home.parent / "data"
    packed = str(
        data / "train" / "rows_64_48.npy"
    )  # by the judge's side, for the control whose MAX_SEQ_LEN is 48
    assert hash_tree(data) == suite.hashes | {
        path: digest for path, digest in hash_tree(data).items() if path == packed
    }


@pytest.mark.slow
def test_no_file_was_left_on_the_host(suite: Suite) -> None:
    suite.results()
    assert [
        folder
        for folder in str(suite.arena.bait["folders"]).split(":")
        if Path(folder, arena.MARKER).exists()
    ] == []
    assert list(suite.arena.home.parent.rglob(arena.MARKER)) == []
    assert list((suite.arena.home / "boxes").iterdir()) == []


@pytest.mark.slow
def test_no_process_of_a_box_is_alive(suite: Suite) -> None:
    suite.results()
    assert suite.witness.count > 0
    assert suite.witness.survivors() == []


@pytest.mark.slow
def test_no_listener_of_the_host_was_called(suite: Suite) -> None:
    suite.results()
    for listener in suite.listeners:
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.slow
def test_no_secret_was_seen(suite: Suite) -> None:
    for name, result in suite.results().items():
        assert arena.SECRET not in json.dumps(dataclasses.asdict(result)), name


@pytest.mark.slow
def test_no_validation_text_reaches_the_proposer(suite: Suite) -> None:
    for name, result in suite.results().items():
        assert arena.LEAKED not in json.dumps(
            dataclasses.asdict(dataclasses.replace(result, judge_log=""))
        ), name


@pytest.mark.slow
def test_logs_and_reasons_are_short_plain_text(suite: Suite) -> None:
    for name, result in suite.results().items():
        text = result.reason + result.log + result.judge_log
        assert {character for character in text if unicodedata.category(character)[0] == "C"} <= {
            "\n",
            "\t",
        }, name
        assert len(result.reason) < 600, name
        assert len(result.log) < LONGEST_LOG, name


@pytest.mark.slow
def test_the_judge_holds_no_descriptor_of_a_box(suite: Suite) -> None:
    suite.results()
    assert len(os.listdir("/proc/self/fd")) <= suite.descriptors + 4  # the pool's own


def test_there_are_enough_attacks_of_each_kind_under_names_of_their_own() -> None:
    everybody: list[Attack | Control] = [*ATTACKS, *CONTROLS, HONEST]
    names = [candidate.name for candidate in everybody]
    assert len(names) == len(set(names))
    for room, least in LEAST.items():
        assert sum(attack.room == room for attack in ATTACKS) >= least
    assert len(CONTROLS) >= 8


@pytest.mark.parametrize("candidate", [*ATTACKS, *CONTROLS], ids=lambda candidate: candidate.name)
def test_a_candidate_is_an_edit_of_the_honest_one(candidate: Attack | Control) -> None:
    compile(arena.edited(candidate.edits), candidate.name, "exec")


def test_the_table_is_that_of_the_attacks() -> None:
    """Each row's status is the one that its attack's own test has seen."""
    text = table()
    if os.environ.get("NIGHTLY_WRITE_TABLE"):
        README.write_text(text)
    assert README.read_text() == text


def table() -> str:
    lines = [
        "# Attacks",
        "",
        "Cheating candidates, each a few lines of difference to `honest_candidate.py`, and what stops them. The suite runs",
        "each one through real boxes and compares the status; this table is made from the same list",
        "(`NIGHTLY_WRITE_TABLE=1 pytest tests/attacks -k table`). `ok` with nothing to gain: the score is the honest one.",
        "",
        "| room | attack | how it cheats | stopped by | status |",
        "|---|---|---|---|---|",
        *(f"| {a.room} | {a.name} | {a.what} | {a.stopped_by} | `{a.status}` |" for a in ATTACKS),
        "",
        "These are unusual and honest, and must pass:",
        "",
        "| candidate | what is unusual |",
        "|---|---|",
        *(f"| {control.name} | {control.what} |" for control in CONTROLS),
    ]
    return "\n".join(lines) + "\n"
