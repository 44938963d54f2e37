"""The judge's side of the conversation with real processes that send what they should not."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tasks.judge import protocol, scoring, watchdog
from tasks.judge.box import open_box
from tasks.judge.bwrap import BoxUnavailable
from tasks.judge.protocol import Begun, Budget, Stopped, Trained
from tasks.judge.scoring import Shape, Validation
from tests.boxes import STREAM, VOCAB, make_dataset, make_spec

SAY = """
import json, os, socket, sys
wire = socket.socket(fileno=int(os.environ["NIGHTLY_FD"]))
def say(msg, **fields):
    wire.sendall(json.dumps({"msg": msg, **fields}).encode() + b"\\n")
def wait():
    if not wire.recv(65536):
        sys.exit("the judge has gone")
"""
UP = 'say("up", python=sys.version)\n'
READY = UP + 'say("ready")\nwait()\n'
WARM = UP + 'say("warm")\nwait()\n'
PATIENCE = 60.0  # seconds that no test here needs
ONE_FLOP = Budget("flops", 1.0, PATIENCE, cpu_seconds=None)


@pytest.fixture
def spec(folder):
    return make_spec(folder, isolation="none", memory_bytes=2**31)


@pytest.fixture
def trained(spec, folder):
    """Runs a script as a train box; returns what it handed over, its checkpoint and its kernels."""

    def trained(
        script: str, seconds: float = PATIENCE, max_bytes: int = 100
    ) -> tuple[Trained, bytes, bytes | None]:
        budget = dataclasses.replace(ONE_FLOP, deadline_seconds=seconds)
        with open_box(spec, ["-u", "-c", SAY + READY + script]) as box:
            begun: Begun = protocol.begin(box, spec.gate, budget, startup_seconds=PATIENCE)
            found = protocol.finish(box, begun, folder / "model", max_bytes=max_bytes)
            kernels = folder / "kernels"
            took = protocol.take_kernels(begun, kernels, seconds=PATIENCE, max_bytes=max_bytes)
        assert took == kernels.exists()
        return found, (folder / "model").read_bytes(), kernels.read_bytes() if took else None

    return trained


@pytest.fixture
def loaded(spec):
    """Runs a script as a warm box that loads a checkpoint; returns the shape it reports."""

    def loaded(script: str, phase: str = "eval_startup") -> Shape:
        with open_box(spec, ["-u", "-c", SAY + script]) as box:
            wire = scoring.await_warm(box, PATIENCE)
            shape = scoring.load(box, wire, spec.gate, phase, PATIENCE)
        return shape

    return loaded


DONE = 'say("done", bytes=4, tokens=7, metrics={"a": 1}); wire.sendall(b"abcd")\n'


def test_cpu_time_is_looked_at_once_more_at_the_end_of_a_run(spec, folder, monkeypatch):
    """Between two polls of the watchdog a run could spend what it likes."""
    monkeypatch.setattr(watchdog, "INTERVAL_SECONDS", 3600.0)
    work = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
    budget = Budget("flops", 1.0, PATIENCE, cpu_seconds=0.1)
    with open_box(spec, ["-u", "-c", SAY + READY + work + DONE + "wait()"]) as box:
        begun = protocol.begin(box, spec.gate, budget, startup_seconds=PATIENCE)
        with pytest.raises(Stopped, match=r"while training, the limit is 0\.1") as stopped:
            protocol.finish(box, begun, folder / "model", max_bytes=100)
    assert stopped.value.status == "train_timeout"


COUNTED = """
figures = {"counted_flops": 1000, "counted_tokens": 10, "counted_traffic": 50, "late_flops": 0}
say("done", bytes=4, tokens=10, **figures); wire.sendall(b"abcd"); wait()
"""


def finished(spec, folder, word: float, budget: Budget) -> Trained:
    """What a box hands over that gives this word and has counted 100 FLOPs a token."""
    ready = f'{UP}say("ready", flops_per_token={word})\nwait()\n'
    with open_box(spec, ["-u", "-c", SAY + ready + COUNTED]) as box:
        begun = protocol.begin(box, spec.gate, budget, startup_seconds=PATIENCE)
        return protocol.finish(box, begun, folder / "model", max_bytes=4)


def test_a_word_below_what_was_counted_is_dishonest(spec, folder):
    with pytest.raises(Stopped, match="said 50 FLOPs a token, the counted") as stopped:
        finished(spec, folder, 50.0, ONE_FLOP)
    assert stopped.value.status == "dishonest_flops"


def test_word_and_count_are_figures_of_a_run(spec, folder):
    run = finished(spec, folder, 99.0, dataclasses.replace(ONE_FLOP, amount=1e3))
    assert (run.flops_per_token, run.counted_flops_per_token) == (99.0, 100.0)
    assert run.traffic_per_token == 5.0


def test_a_budget_of_seconds_has_no_count(spec, folder):
    run = finished(spec, folder, 50.0, dataclasses.replace(ONE_FLOP, kind="seconds"))
    assert run.counted_flops_per_token is None


def test_what_a_box_does_before_go_is_not_in_its_budget_however_long_it_waits(spec, folder):
    """Neither its CPU time, nor an earlier limit of that."""
    work = "import time\nwhile time.process_time() < 0.5: pass\n"
    budget = Budget("flops", 1.0, PATIENCE, cpu_seconds=0.2)
    with open_box(spec, ["-u", "-c", SAY + work + READY + DONE + "wait()"]) as box:
        started = protocol.start_up(box, startup_seconds=PATIENCE)
        box.watchdog.limit_cpu(PATIENCE)
        begun = protocol.go(box, spec.gate, budget, started)
        run = protocol.finish(box, begun, folder / "model", max_bytes=100)
    assert started.cpu_seconds > 0.4
    assert run.cpu_seconds <= 0.2


@pytest.mark.parametrize("sent", ["", 'say("done", bytes=100)\n'], ids=["nothing", "half of done"])
def test_a_box_that_the_watchdog_ends_has_its_verdict_whatever_was_due(spec, folder, sent):
    """Also while its processes still die and keep the socket open: that looks like silence."""
    budget = Budget("flops", 1.0, 0.5, cpu_seconds=None)
    with open_box(spec, ["-u", "-c", SAY + READY + sent + "wait()"]) as box:
        box.watchdog.stop()
        begun = protocol.begin(box, spec.gate, budget, startup_seconds=PATIENCE)
        box.watchdog.verdict = "out_of_memory", "the box used too much"
        with pytest.raises(Stopped, match="used too much"):
            protocol.finish(box, begun, folder / "model", max_bytes=100)


def test_a_run_hands_over_curve_checkpoint_and_figures(trained, folder):
    logs = 'say("log", step=1, tokens=2, loss=3)\nsay("log", step=2, tokens=4, loss=2.5)\n'
    run, checkpoint, kernels = trained(logs + DONE, max_bytes=4)
    assert (run.tokens, run.metrics, checkpoint, kernels) == (7, {"a": 1.0}, b"abcd", None)
    assert 0 < run.handover_seconds < run.seconds
    assert (folder / "model").stat().st_mode & 0o777 == 0o444
    assert 0 <= run.seconds < PATIENCE
    assert 0 < run.startup_seconds < PATIENCE


def test_a_run_with_too_many_log_messages_is_stopped(trained, monkeypatch):
    monkeypatch.setattr(protocol, "LOG_MESSAGES", 3)
    log = 'for step in range({}): say("log", step=step, tokens=0, loss=0)\n'
    trained(log.format(2) + DONE)
    with pytest.raises(Stopped, match="more than 3 log messages"):
        trained(log.format(3) + DONE)


def test_a_training_far_behind_the_champion_is_stopped_by_the_judges_clock(spec, folder):
    forever = """
import time
step = 0
while True:
    say("log", step=(step := step + 1), tokens=step, loss=3.5)
    time.sleep(0.02)
"""
    budget = Budget("seconds", 1.5, PATIENCE, None, champion=((10**6, 3.0),) * 9)
    with open_box(spec, ["-u", "-c", SAY + READY + forever]) as box:
        begun = protocol.begin(box, spec.gate, budget, startup_seconds=PATIENCE)
        with pytest.raises(Stopped, match="too slow to catch up") as stopped:
            protocol.finish(box, begun, folder / "model", max_bytes=100)
    assert stopped.value.status == "train_timeout"
    assert [loss for _, loss in begun.curve.tenths] == [3.5] * len(begun.curve.tenths)


@pytest.mark.parametrize("tokens", ["-1", "2**53", "True", "1.0", "None"])
def test_an_impossible_number_of_tokens_is_dropped(trained, tokens):
    done = f'say("done", bytes=1, tokens={tokens}, parameters={tokens}); wire.sendall(b"x")'
    run, *_ = trained(done)
    assert run.tokens is run.parameters is None


def test_only_well_named_finite_numbers_are_metrics(trained):
    good = {"a": 1, "B_c.d_-9": -0.5, "n" * 40: 1e17, "_": 0, "9..": 2}
    bad = {"": 1, "a b": 1, "n" * 41: 1, "t": True, "s": "1", "h": 1e18, "i": 10**400, "l": -1e18}
    run, *_ = trained(f'say("done", bytes=1, metrics={ {**bad, **good} }); wire.sendall(b"x")')
    assert run.metrics == good
    refused = [
        ".",
        "..",
        "../..",
        "a/../b",
        "a/b",
        "/x",
        "a/",
        "a//b",
        "./a",
        "-a",
        "a\n",
        "ä",
        "A",
    ]
    shown = {"a": 1, **dict.fromkeys(refused, 2)}
    run, *_ = trained(f'say("done", bytes=1, metrics={shown!r}); wire.sendall(b"x")')
    assert run.metrics == {"a": 1}  # MLflow takes none of those but "A", some databases not both
    many = {f"m{i}": i for i in range(31)}
    run, *_ = trained(f'say("done", bytes=1, metrics={many}); wire.sendall(b"x")')
    assert list(run.metrics) == list(many)[:30]
    run, *_ = trained('say("done", bytes=1, metrics=[1]); wire.sendall(b"x")')
    assert run.metrics == {}


@pytest.mark.parametrize("size", ["0", "-1", "101", "True", "1.0", "None", "'1'"])
def test_a_checkpoint_without_a_size_or_over_the_limit_is_refused(trained, size):
    with pytest.raises(Stopped, match="must have 1 to 100") as stopped:
        trained(f'say("done", bytes={size}); wire.sendall(b"x" * 200)')
    assert stopped.value.status == "bad_checkpoint"


def test_a_checkpoint_must_arrive_whole_and_in_time(trained):
    with pytest.raises(Stopped, match="before its checkpoint of 9 bytes") as stopped:
        trained('say("done", bytes=9); wire.sendall(b"x")')
    assert stopped.value.status == "bad_checkpoint"
    with pytest.raises(Stopped) as stopped:
        trained('say("done", bytes=9); wire.sendall(b"x"); wait()', seconds=0.3)
    assert stopped.value.status == "train_timeout"


@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [
        ("wait()", "train_timeout", "still training after 0 s"),
        ('say("ready")', "protocol_error", "'ready' where 'log' was due"),
        ("wire.sendall(b'[]\\n')", "protocol_error", "without `msg`"),
        ("print('first'); raise ValueError('last')", "train_crashed", "ValueError: last"),
        ("sys.exit(3)", "train_crashed", "exit code 3 and no output"),
        ("os.kill(os.getpid(), 9)", "out_of_memory", "killed while training"),
    ],
)
def test_each_failure_in_training_has_its_status(trained, script, status, reason):
    with pytest.raises(Stopped, match=reason) as stopped:
        trained(script, seconds=0.3 if status == "train_timeout" else PATIENCE)
    assert stopped.value.status == status


def test_kernels_are_taken_up_to_the_limit(trained, folder):
    export = 'say("cache", bytes={0}); wire.sendall(b"k" * {0})'
    assert trained(DONE + export.format(100))[2] == b"k" * 100
    assert (folder / "kernels").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("size", ["0", "101", "1.0", "None", "9"])
def test_kernels_of_a_wrong_size_are_refused(trained, size):
    assert trained(DONE + f'say("cache", bytes={size}); wire.sendall(b"kkkkk")')[2] is None


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("print('no such file'); sys.exit(1)", r"closed\): no such file"),
        ("wire.sendall(b'[]\\n')", "malformed"),
        ('say("up", python="2.7"); wait()', "wrong interpreter: Python '2.7'"),
    ],
)
def test_a_box_that_does_not_start_is_not_the_candidates_fault(spec, script, reason):
    with (
        pytest.raises(BoxUnavailable, match=reason),
        open_box(spec, ["-u", "-c", SAY + script]) as box,
    ):
        protocol.smoke(box, spec.gate, ONE_FLOP, startup_seconds=PATIENCE, max_bytes=1)


def test_a_box_that_is_ready_before_it_is_warm_is_not_the_candidates_fault(loaded):
    with pytest.raises(BoxUnavailable, match="malformed"):
        loaded(UP + 'say("ready", vocab_size=1, sequence_length=1, batch_rows=1)\nwait()')


def test_loading_opens_the_gate_and_returns_the_shape(loaded, spec):
    ready = WARM + 'say("ready", vocab_size={}, sequence_length={}, batch_rows={})\nwait()'
    assert loaded(ready.format(2**16, 2**17, 2**16)) == Shape(2**16, 2**17, 2**16)
    assert spec.gate.folder.stat().st_mode & 0o777 == 0o755
    assert loaded(ready.format(1, 1, 1)) == Shape(1, 1, 1)


@pytest.mark.parametrize(
    ("phase", "status"), [("eval_startup", "bad_claims"), ("audit_startup", "audit_failed")]
)
@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ("vocab_size=0, sequence_length=1, batch_rows=1", "VOCAB_SIZE = 0;"),
        ("vocab_size=2**16 + 1, sequence_length=1, batch_rows=1", "VOCAB_SIZE = 65537;"),
        ("vocab_size=1, sequence_length=2**17 + 1, batch_rows=1", "MAX_SEQ_LEN = 131073;"),
        ("vocab_size=1, sequence_length=1, batch_rows=2**16 + 1", "DEVICE_BATCH_SIZE = 65537;"),
        ("vocab_size=True, sequence_length=1, batch_rows=1", "VOCAB_SIZE = True;"),
        ("vocab_size=1, batch_rows=1", "MAX_SEQ_LEN = None;"),
    ],
)
def test_an_impossible_shape_is_refused(loaded, phase, status, shape, reason):
    with pytest.raises(Stopped, match=reason) as stopped:
        loaded(WARM + f'say("ready", {shape})\nwait()', phase)
    assert stopped.value.status == status


def test_the_log_of_a_box_that_saw_validation_rows_is_withheld(loaded):
    with pytest.raises(Stopped, match="ended while loading its checkpoint: secret") as stopped:
        loaded(WARM + "sys.exit('secret')")
    assert stopped.value.status == "eval_startup_crashed"
    with pytest.raises(Stopped, match="for the audit: its log is withheld"):
        loaded(WARM + "sys.exit('secret')", "audit_startup")


def test_claims_come_back_row_by_row(spec):
    answer = "import array\nsay('ready', vocab_size=9, sequence_length=2, batch_rows=1)\n"
    answer += "while not wire.recv(65536).endswith(b'end!'): pass\n"
    answer += "wire.sendall(array.array('f', [1, 2, 3, 4, 5, 6]).tobytes())\nwait()"
    rows = np.frombuffer(b"x" * 14 + b"end!", "<u2").reshape(3, 3)
    with open_box(spec, ["-u", "-c", SAY + WARM + answer]) as box:
        wire = scoring.await_warm(box, PATIENCE)
        shape = scoring.load(box, wire, spec.gate, "eval_startup", PATIENCE)
        claims = scoring.claim(box, wire, shape, rows, PATIENCE)
    assert claims.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_only_possible_losses_are_scored(tmp_path):
    dataset = make_dataset(tmp_path / "dataset")
    validation = Validation(Path(dataset.public), Path(dataset.validation))
    shape = Shape(VOCAB, len(STREAM) - 1, 1)
    rows = validation.rows(shape)
    assert rows.tolist() == [STREAM.tolist()]
    assert validation.scored(shape, rows).tolist() == [(STREAM[1:] != 255).tolist()]
    claims = np.full((1, len(STREAM) - 1), np.log(2), np.float32)
    assert validation.score(shape, rows, claims) == pytest.approx(1.0)
    for worst, reason in ((np.nan, "not finite"), (np.inf, "not finite"), (-0.1, "below 0")):
        claims[0, 0] = worst
        with pytest.raises(Stopped, match=reason) as stopped:
            validation.score(shape, rows, claims)
        assert stopped.value.status == "bad_claims"
    claims[0, 0] = scoring.LOWEST_CLAIM
    assert validation.score(shape, rows, claims) < 1.0
    honest = validation.score(shape, rows, claims)
    for unscored in (np.nan, np.inf, -1.0):
        claims[~validation.scored(shape, rows)] = unscored
        assert validation.score(shape, rows, claims) == honest
    with pytest.raises(Stopped, match="VOCAB_SIZE = 9 is not prepared"):
        validation.rows(Shape(9, 8, 1))
