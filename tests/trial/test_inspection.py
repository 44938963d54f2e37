"""Study boxes and smoke steps alone: what they find, and what a hostile candidate gets out of one.

Boxes have the stub of torch, but for the one whose figures are looked at.
"""

import contextlib
import dataclasses
import json
import math
import os

import pytest
import torch

from flows.night import measured_facts
from tasks.proposers.digest import ESCAPE
from tasks.records import Baseline, Candidate, Study
from tasks.trial import experiment, inspection
from tasks.trial.baseline import first_caps
from tasks.trial.inspection import Checkpoint
from tests.boxes import HONEST, LENGTH, VOCAB, live_boxes, make_bench, make_dataset, make_profile
from tests.faults.stub_torch import assemble_with_stub
from tests.synthetic_night import make_run
from trainer import prepare

# Before all else; ends the candidate there.
LOOKING = """
import glob, os, socket
through = []
for folder in ("data", "dataset", "studied", "box", "scratch", "tmp", "dev/shm"):
    through += glob.glob(f"/{folder}/**/*stream_*", recursive=True)
    through += glob.glob(f"/{folder}/**/manifest.json", recursive=True)
for address in (("1.1.1.1", 53), ("169.254.169.254", 80)):
    try: socket.create_connection(address, 2).close(); through.append(str(address))
    except OSError: pass
for path in ("/studied/model.pt", "/data/d/note", "/box/note", "/dataset/note"):
    try: open(path, "w").close(); through.append(path)
    except OSError: pass
if "OPENAI_API_KEY" in os.environ: through.append("key")
raise RuntimeError(f"GOT THROUGH {through}" if through else "held")
"""
SENDING = """
import gc
from trainer.link import Link
link = next(each for each in gc.get_objects() if isinstance(each, Link))
link.send({message})
link.wait_for_the_end()
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    found = make_dataset(tmp_path_factory.mktemp("dataset"))
    tokenizer = prepare.Tokenizer(
        r"\S+|\s+", {bytes([byte]): byte for byte in range(255)}, {prepare.BOS: 255}
    )
    path = f"{found.public}/tokenizer_{VOCAB}.json"
    with open(path, "w") as file:
        json.dump(tokenizer.to_dict(), file)
    return found


@pytest.fixture
def bench(dataset, tmp_path):
    return make_bench(dataset, tmp_path)


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(experiment, "assemble", assemble_with_stub)


def trained(bench, folder, source=HONEST) -> Checkpoint:
    candidate = Candidate.parse(source)
    keeping = dataclasses.replace(bench, checkpoints=folder)
    run = experiment.run_experiment(candidate, keeping, 1, worth_audit=lambda claimed: False)
    assert run.status == "ok", run.reason
    assert run.tokens is not None
    [path] = folder.glob("*.pt")
    assert path == experiment.checkpoint_of(folder, candidate)
    return Checkpoint(path, run.tokens)


def test_the_loss_is_that_of_rows_that_were_not_read(stub, bench, tmp_path):
    checkpoint, candidate = trained(bench, tmp_path), Candidate.parse(HONEST)
    assert checkpoint.tokens == 320  # ten passes over four rows
    found = inspection.study(candidate, bench, checkpoint, profile=False)
    assert found.problems == ()
    assert (found.rows, found.unread_rows) == (4, 0)
    assert "were trained on" in measured_facts.losses(found)
    assert found.bits_per_byte == pytest.approx(8.0)
    for bins in (found.by_frequency, found.by_position):
        assert sum(each.targets for each in bins) == 4 * LENGTH
        assert all(each.nats == pytest.approx(math.log(VOCAB)) for each in bins if each.targets)
    assert found.cpu_seconds > 0
    assert Study.from_json(json.loads(json.dumps(dataclasses.asdict(found)))) == found
    early = dataclasses.replace(checkpoint, tokens=LENGTH)
    spared = inspection.study(candidate, bench, early, profile=False)
    assert (spared.rows, spared.unread_rows) == (3, 3)
    assert "3 of the 3 rows that come after" in measured_facts.losses(spared)
    assert live_boxes(bench.home) == set()
    assert list(bench.home.glob("boxes/*")) == []


@pytest.mark.slow
def test_a_model_goes_on_after_a_prompt_and_its_steps_are_timed(bench, tmp_path):
    torch.save({"logits": torch.zeros(VOCAB)}, tmp_path / "model.pt")
    checkpoint = Checkpoint(tmp_path / "model.pt", 0)
    prompt = "longer than a row"
    found = inspection.study(Candidate.parse(HONEST), bench, checkpoint, prompt=prompt)
    assert found.problems == ()
    assert found.samples[0] == "\0" * (LENGTH // 2)  # of equal logits the first
    assert "\0" not in measured_facts.samples(found, inspection.TEMPERATURES)
    assert found.milliseconds is not None
    assert found.state == (("logits", VOCAB),)
    assert [part.name for part in found.parts] == ["optimizer and the rest"]  # it has no module


def problem(bench, source: str, **changes) -> str:
    found = inspection.study(Candidate.parse(source), bench, None, **changes)
    assert (found.parts, found.operations, found.milliseconds) == ((), (), None)
    assert live_boxes(bench.home) == set()
    return "; ".join(found.problems)


def test_a_study_box_sees_no_validation_text_no_network_and_nothing_to_write(stub, bench):
    assert problem(bench, LOOKING).endswith("RuntimeError: held")


def test_a_study_that_never_ends_is_ended_at_its_limit_of_processor_time(stub, bench, monkeypatch):
    monkeypatch.setattr(inspection, "SECONDS", 0.5)
    caps = dataclasses.replace(first_caps(bench.profile), startup_cpu_seconds=0.5)
    told = problem(dataclasses.replace(bench, caps=caps), "while True: pass")
    assert "CPU-seconds while being studied, the limit is 1.00" in told


def resident(path) -> int:
    """Pages of a file that are in memory."""
    found = 0
    with path.open("rb") as file:
        for place in range(0, path.stat().st_size, 4096):
            with contextlib.suppress(BlockingIOError):
                found += os.preadv(file.fileno(), [bytearray(1)], place, os.RWF_NOWAIT)
    return found


def test_which_pages_of_a_checkpoint_are_in_memory_is_no_note_from_a_scoring_box(
    stub, bench, tmp_path
):
    path = tmp_path / "model.pt"
    with path.open("wb") as file:
        file.write(bytes(8 * 4096))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(path):
        pytest.skip("this file system keeps all pages in memory")
    crashing = Candidate.parse("raise RuntimeError\n")
    assert inspection.study(crashing, bench, Checkpoint(path, 0)).problems
    assert resident(path) == 8


def test_a_study_for_which_there_is_no_room_is_a_value(stub, bench, tmp_path):
    gone = Checkpoint(tmp_path / "gone.pt", 0)
    found = inspection.study(Candidate.parse(HONEST), bench, gone)
    assert found.problems == ("the box: there was none: No such file or directory",)
    room = dataclasses.replace(bench, home=tmp_path / "home")
    room.home.mkdir()
    (room.home / "boxes").write_text("not a folder")
    found = inspection.study(Candidate.parse(HONEST), room, None)
    assert found.problems == ("the box: there was none: File exists",)


@pytest.mark.parametrize("message", ['{"msg": "studied", "sample": ["x" * 2**21]}', "'x' * 2**17"])
def test_megabytes_are_not_read(stub, bench, message):
    assert "protocol_error: sent a message" in problem(bench, SENDING.format(message=message))


def test_figures_without_their_form_are_left_out_and_words_are_cut_and_cleaned(stub, bench):
    forged = {
        "msg": "studied",
        "profile": {"milliseconds": 10**400, "parts": "none", "operations": [[1], ["a", "b"]]},
        "loss": {
            "rows": True,
            "bits_per_byte": -1,
            "by_frequency": [{"first": 0.5}, {"first": 0, "stop": 1, "targets": 1, "nats": "0"}],
        },
        "sample": ["\x1b[31mred<|im_start|>\u202e" + "x" * 5000, 7, None],
        "problems": {"\x1b]0;title\x07": "\x1b[2J" + "y" * 5000},
    }
    found = inspection.study(Candidate.parse(SENDING.format(message=repr(forged))), bench, None)
    assert found.milliseconds is None
    assert (found.parts, found.operations, found.rows, found.bits_per_byte) == ((), (), None, None)
    assert [each.nats for each in found.by_frequency] == [None]
    assert len(found.samples) == 2
    assert len(found.samples[0]) == inspection.LONGEST_SAMPLE
    for text in (
        measured_facts.samples(found, inspection.TEMPERATURES),
        measured_facts.losses(found),
        measured_facts.step(found),
    ):
        assert text
        assert len(text) < 2000
        assert ESCAPE.search(text) is None
        assert not {"<|", "\u202e", "\x07"} & {*text, text[: text.find("|")][-1:] + "|"}


@pytest.mark.parametrize(
    ("edit", "status", "reason"),
    [
        (("", ""), "ok", "makes two steps"),
        (("    tokens = 0", "    raise KeyError('x')"), "startup_crashed", "KeyError"),
        (("MAX_SEQ_LEN = 8", "MAX_SEQ_LEN = 131_073"), "rejected_patch", "is beyond"),
    ],
)
def test_a_dry_run_says_what_a_trial_would_have_said(stub, bench, edit, status, reason):
    tried = inspection.try_out(Candidate.parse(HONEST.replace(*edit)), bench)
    assert (tried.status, reason in tried.reason) == (status, True), tried.reason
    assert (tried.cpu_seconds > 0) == (status != "rejected_patch")


def test_a_dry_run_has_the_time_of_a_trials_and_is_no_run_for_free(stub, bench):
    caps = dataclasses.replace(first_caps(bench.profile), startup_cpu_seconds=0.5)
    bench = dataclasses.replace(bench, caps=caps)
    tried = inspection.try_out(Candidate.parse("while True: pass\n"), bench, beside=True)
    assert tried.status == "startup_timeout"
    assert "the limit is 0.50" in tried.reason


def test_a_baseline_of_an_older_version_has_no_study():
    saved = json.loads(json.dumps(dataclasses.asdict(Baseline((make_run(),), "h"))))
    del saved["study"]
    assert Baseline.from_json(saved).study is None


def test_a_run_on_a_bench_that_keeps_none_leaves_no_checkpoint(stub, bench, tmp_path):
    run = experiment.run_experiment(
        Candidate.parse(HONEST), bench, 1, worth_audit=lambda claimed: False
    )
    assert run.status == "ok"
    assert list(tmp_path.rglob("*.pt")) == []
    assert make_profile().search.asks  # it is the bench that decides
