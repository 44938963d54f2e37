"""The log of requests to models: after a kill, as a sum of costs, and the pauses it asks for."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import Llm
from tasks.errors import NightlyError
from tasks.history.llm_calls import FAILURES, CallLog, read
from tasks.statuses import Outcome
from tasks.usage import Call, Usage, dollars

ROOT = Path(__file__).resolve().parents[2]
START = datetime(2026, 11, 21, 22, tzinfo=UTC)
DRY = (
    "no_edit",
    "malformed",
    "not_found",
    "refusal",
    "truncated",
    "empty",
    "content_filter",
    "unfit",
)


def call(trial=1, outcome="ok", minutes=0.0, **fields):
    """A call that began so many minutes after START and took 10 s; its outcome decides the cost."""
    answered = outcome not in (*FAILURES, "cancelled")
    made = {
        "id": f"{trial}.1",
        "trial": trial,
        "purpose": "propose",
        "time": (START + timedelta(minutes=minutes)).isoformat(),
        "seconds": 10.0,
        "endpoint": "http://127.0.0.1:8080/v1",
        "model": "scripted",
        "messages": ({"role": "user", "content": "a\ud800\u00e4\r\n"},),
        "answer": "hello" if answered else None,
        "outcome": outcome,
        "error": None if outcome == "ok" else "what was wrong",
        "prompt_tokens": 1000 if answered else None,
        "cached_tokens": None,
        "completion_tokens": 100 if answered else None,
        "estimated": False,
        "dollars": 0.25 if answered else None,
    }
    return Call(**{**made, **fields})


def at(minutes, seconds=10.0):
    """The time, when a call of that minute ended; `seconds` after it began."""
    return START + timedelta(minutes=minutes, seconds=seconds)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "nov21").mkdir()
    return tmp_path / "nov21" / "llm_calls.jsonl"


@pytest.fixture
def log(path):
    return CallLog(path)


def filled(log, *calls):
    for each in calls:
        log.append(each)
    return log


# The file


def test_a_night_without_a_call_has_no_file(log, path):
    assert (log.usage(), read(path), path.exists()) == (Usage(), (), False)


def test_calls_come_back_as_they_were(log, path):
    calls = (call(), call(2, "rate_limited", retry_after=7.5, request_id="r"), call(3, messages=()))
    filled(log, *calls)
    assert read(path) == calls


def test_a_line_is_ascii_and_one_line(log, path):
    filled(log, call(answer="a\nb\u2028c\x85"))
    assert path.read_bytes().isascii()
    assert path.read_bytes().count(b"\n") == 1


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_comes_back(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("night") / "llm_calls.jsonl"
    made = call(answer=text, error=text, messages=({"role": "user", "content": text},))
    CallLog(path).append(made)
    assert read(path) == (made,)


def test_a_torn_line_is_skipped_and_cut_off(log, path):
    filled(log, call(1), call(2))
    whole = path.read_bytes()
    path.write_bytes(torn := whole + whole[: len(whole) // 3])
    assert [each.trial for each in read(path)] == [1, 2]
    assert path.read_bytes() == torn  # a reader changes nothing
    filled(CallLog(path), call(3))
    assert [each.trial for each in read(path)] == [1, 2, 3]


def test_a_file_of_one_torn_line(path):
    path.write_bytes(b'{"id": "1.1", "tri')
    log = CallLog(path)
    assert (log.usage(), path.read_bytes()) == (Usage(), b"")


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b"\xff\n",
        b'{"id": "1.1"}\n',
        json.dumps({**dataclasses.asdict(call()), "more": 1}).encode() + b"\n",
        json.dumps({**dataclasses.asdict(call()), "time": "yesterday"}).encode() + b"\n",
        json.dumps({**dataclasses.asdict(call()), "seconds": None}).encode() + b"\n",
        json.dumps({**dataclasses.asdict(call()), "seconds": 1e300}).encode() + b"\n",
        json.dumps({**dataclasses.asdict(call()), "messages": None}).encode() + b"\n",
    ],
)
def test_a_damaged_line_is_reported_with_its_number(log, path, line):
    filled(log, call())
    with path.open("ab") as file:
        file.write(line)
    for reading in (read, CallLog):
        with pytest.raises(
            NightlyError,
            match=r"llm_calls\.jsonl, line 2 is damaged: .* Restore the file from a backup",
        ):
            reading(path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_call_that_cannot_be_written_leaves_the_log_as_it_was(log, path, monkeypatch, code):
    filled(log, call(1))
    before = path.read_bytes(), log.usage()

    def fails(_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(
            NightlyError,
            match=r"request 2\.1 could not be written .*\. Make room .* `\./run resume nov21`",
        ):
            log.append(call(2))
    assert (path.read_bytes(), log.usage()) == before
    filled(log, call(2))
    assert [each.trial for each in read(path)] == [1, 2]


def test_a_ctrl_c_leaves_no_half_line(log, path, monkeypatch):
    filled(log, call(1))

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            log.append(call(2))
    assert [each.trial for each in read(path)] == [1]
    assert log.usage().calls == 1


def test_threads_append_whole_lines(log, path):
    def several(trial):
        filled(log, *[call(trial, answer="x" * 20_000) for _ in range(10)])

    threads = [threading.Thread(target=several, args=(trial,)) for trial in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.trial for each in read(path)) == [1] * 10 + [2] * 10 + [3] * 10 + [4] * 10
    assert log.usage() == CallLog(path).usage() == Usage(40, 40_000, 4000, 10.0)


KILLED = """
import sys
from pathlib import Path
from tests.history.test_llm_calls import call
from tasks.history.llm_calls import CallLog
log = CallLog(Path(sys.argv[1]))
for number in range(1, 100_000):
    log.append(call(number, answer="x" * 100_000))
    print(number, flush=True)
"""


def test_an_appended_line_survives_a_kill(path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], cwd=ROOT, env=environment, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout as said:
        for _ in range(5):
            said.readline()
        process.send_signal(signal.SIGKILL)
        last = 5 + len(said.read().split())
    process.wait()
    assert CallLog(path).usage().calls >= last
    assert [each.trial for each in read(path)][:last] == list(range(1, last + 1))


# What was spent


def test_ids_count_up_by_trial(log, path):
    assert log.next_id(7) == "7.1"
    filled(log, call(7), call(8))
    assert (log.next_id(7), log.next_id(8), log.next_id(9)) == ("7.2", "8.2", "9.1")
    assert CallLog(path).next_id(7) == "7.2"


def test_usage_of_a_trial_and_of_the_night(log, path):
    filled(log, call(1), call(2), call(2, "no_edit", purpose="repair"), call(2, "timeout"))
    for each in (log, CallLog(path)):
        assert each.usage(1) == Usage(1, 1000, 100, 0.25)
        assert each.usage(2) == Usage(3, 2000, 200, 0.5)
        assert each.usage(3) == Usage()
        assert each.usage() == Usage(4, 3000, 300, 0.75)


def test_one_unknown_price_makes_the_sum_unknown(log):
    filled(log, call(1), call(2, dollars=None))
    assert (log.usage(1).dollars, log.usage(2).dollars, log.usage().dollars) == (0.25, None, None)


@pytest.mark.parametrize("outcome", [*FAILURES, "cancelled"])
def test_a_request_without_an_answer_costs_nothing(log, outcome):
    filled(log, call(1), call(1, outcome))
    assert log.usage() == Usage(2, 1000, 100, 0.25)


def test_dollars_are_for_a_million_tokens():
    prices = Llm(prompt_price=2.0, cached_price=0.5, completion_price=8.0)
    assert dollars(prices, 1_000_000, 400_000, 100_000) == pytest.approx(
        0.6 * 2 + 0.4 * 0.5 + 0.1 * 8
    )
    assert dollars(prices, 1000, None, None) == pytest.approx(0.002)
    assert dollars(prices, None, None, None) == 0.0


def test_cached_tokens_cost_what_others_do_unless_they_have_a_price():
    assert dollars(
        Llm(prompt_price=2.0, completion_price=8.0), 1_000_000, 400_000, 0
    ) == pytest.approx(2.0)
    assert dollars(
        Llm(prompt_price=2.0, cached_price=0.0, completion_price=8.0), 1_000_000, 400_000, 0
    ) == pytest.approx(1.2)


@pytest.mark.parametrize(
    "known", [{}, {"prompt_price": 2.0}, {"completion_price": 2.0}, {"cached_price": 2.0}]
)
def test_dollars_without_a_price_are_unknown(known):
    assert dollars(Llm(**known), 1000, None, 100) is None


def test_dollars_of_a_model_that_is_free_are_known():
    assert dollars(Llm(prompt_price=0.0, completion_price=0.0), 1000, 0, 100) == 0.0


def test_the_log_keeps_no_messages_in_memory(log):
    filled(log, call(1, "timeout", messages=({"role": "user", "content": "x" * 1_000_000},)))
    assert len(repr(vars(log))) < 10_000


# When the model is left alone


def test_a_model_that_answers_may_be_asked(log):
    assert log.closed_for(at(0)) == 0.0
    filled(log, call(1), call(1, "no_edit"))
    assert log.closed_for(at(0)) == 0.0


@pytest.mark.parametrize("outcome", FAILURES)
def test_a_failure_of_the_endpoint_starts_a_pause_at_its_end(log, path, outcome):
    filled(log, call(1, outcome))
    for each in (log, CallLog(path)):
        assert each.closed_for(at(0)) == 30.0
        assert each.closed_for(at(0, 25)) == 15.0
        assert each.closed_for(at(0, 40)) == 0.0
        assert each.last_failure() == f"{outcome}: what was wrong"


def test_failures_in_a_row_double_the_pause_up_to_ten_minutes(log):
    pauses = []
    for minutes in range(20):
        filled(log, call(1, "unreachable", minutes))
        pauses.append(log.closed_for(at(minutes)))
    assert pauses[:7] == [30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    assert set(pauses[7:]) == {600.0}


def test_the_first_pause_is_a_setting(log):
    filled(log, call(1, "timeout"), call(1, "timeout", 1))
    assert log.closed_for(at(1), pause=0.5) == 1.0
    assert log.closed_for(at(1), pause=1e6) == 600.0


def test_an_answer_ends_the_pauses(log):
    filled(log, *[call(1, "unreachable")] * 5, call(1, "no_edit"))
    assert log.closed_for(at(0)) == 0.0
    filled(log, call(1, "unreachable"))
    assert log.closed_for(at(0)) == 30.0


def test_a_model_that_fails_does_not_keep_another_from_being_asked(log, path):
    filled(log, *[call(1, "unreachable", model="m1")] * 2, call(2, model="m2"))
    for each in (log, CallLog(path)):
        assert each.closed_for(at(0), model="m1") == 60.0
        assert each.closed_for(at(0), model="m2") == 0.0
        assert each.closed_for(at(0)) == 0.0  # the last one's
        assert each.last_failure(model="m1") == "unreachable: what was wrong"


def test_a_cancelled_request_says_nothing_about_the_endpoint(log):
    filled(log, call(1, "unreachable"), call(1, "cancelled", 5))
    assert log.closed_for(at(0)) == 30.0
    filled(log, call(1, "unreachable", 1))
    assert log.closed_for(at(1)) == 60.0


def test_an_endpoint_says_for_how_long(log):
    filled(log, call(1, "rate_limited", retry_after=3600.0))
    assert log.closed_for(at(0)) == 3600.0
    assert log.closed_for(at(30)) == 1800.0


def test_an_endpoint_may_not_ask_for_more_than_a_night(log):
    filled(log, call(1, "rate_limited", retry_after=1e9))
    assert log.closed_for(at(0)) == 12 * 3600.0


def test_a_short_retry_after_does_not_shorten_the_pause(log):
    filled(log, call(1, "rate_limited", retry_after=1.0), call(1, "rate_limited", retry_after=1.0))
    assert log.closed_for(at(0)) == 60.0


def test_a_clock_that_was_set_back_does_not_shut_the_model_out(log):
    filled(log, call(1, "rate_limited", 24 * 60, retry_after=3600.0))
    assert log.closed_for(at(0)) == 0.0
    filled(log, call(1, "rate_limited"))
    assert log.closed_for(at(0)) == 60.0


def test_a_call_that_ended_just_now_counts_despite_rounding(log):
    filled(log, call(1, "timeout"))
    assert log.closed_for(at(0, 9.5)) == 30.0


@pytest.mark.parametrize("outcome", DRY)
def test_three_trials_in_a_row_without_a_patch_are_a_pause(log, path, outcome):
    filled(log, call(1, outcome), call(2, outcome, 1), call(2, outcome, 2))
    assert log.closed_for(at(2)) == 0.0
    filled(log, call(4, outcome, 3))  # the third trial was another proposer's
    for each in (log, CallLog(path)):
        assert each.closed_for(at(3)) == 600.0
        assert each.closed_for(at(8)) == 300.0
        assert each.closed_for(at(13)) == 0.0
        assert each.last_failure() == "3 trials in a row without a patch that can be run"


def test_each_further_trial_without_a_patch_is_one_more_pause(log):
    filled(log, *[call(trial, "no_edit", trial) for trial in (1, 2, 3)], call(4, "no_edit", 20))
    assert log.closed_for(at(20)) == 600.0
    filled(log, call(4, "ok", 21, purpose="repair"))
    assert log.closed_for(at(21)) == 0.0
    filled(log, call(5, "no_edit", 22))
    assert log.closed_for(at(22)) == 0.0


def test_a_trial_that_is_not_over_does_not_count(log):
    filled(log, *[call(trial, "no_edit", trial) for trial in (1, 2, 3)])
    assert log.closed_for(at(3), trial=3) == 0.0
    assert log.closed_for(at(3), trial=4) == 600.0


def test_a_repaired_patch_counts_however_its_crash_was_fixed(log):
    filled(
        log,
        call(1, "no_edit"),
        call(2, "no_edit"),
        call(3, "no_edit"),
        call(3, "ok", purpose="repair"),
    )
    filled(log, call(3, "no_edit", purpose="fix"))
    assert log.closed_for(at(0)) == 0.0


def test_failures_and_pings_are_not_trials_without_a_patch(log):
    filled(log, call(1, "no_edit"), call(2, "timeout"), call(2, "cancelled"), call(3, "no_edit"))
    filled(log, call(0, purpose="ping"), call(0, "empty", purpose="ping"))
    assert log.closed_for(at(0)) == 0.0
    filled(log, call(4, "no_edit"), call(0, purpose="ping"))
    assert log.closed_for(at(0)) == 600.0


def test_every_outcome_has_one_class():
    """A failure of the endpoint, an answer without a patch, or neither."""
    known = {*FAILURES, *DRY, "ok", "cancelled", "ambiguous", "no_change", "already_tried"}
    assert known == set(get_args(Outcome))
