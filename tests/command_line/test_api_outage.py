"""What a command prints and does when Prefect's API goes away."""

import errno
import logging
import subprocess
import sys

import httpx
import pytest

from flows.command_line import api_outage
from tasks.errors import NightlyError

URL = "http://127.0.0.1:1/api"
BUSY = """
import sys, threading, time
from flows.command_line import api_outage
threading.Thread(target=time.sleep, args=(600,), name=sys.argv[1], daemon=False).start()
print("report")
api_outage.end_process(3)
"""


def record(message, error=None):
    info = (type(error), error, None) if error else None
    return logging.LogRecord("prefect.flow_runs", logging.ERROR, "", 0, message, (), info)


def test_an_unanswered_call_becomes_one_plain_message_with_the_remedy():
    plain = r"API at http://127.0.0.1:1/api did not answer \(refused\).*resume TAG"
    with pytest.raises(NightlyError, match=plain), api_outage.reported(URL):
        raise httpx.ConnectError("refused")


def test_our_own_error_passes_unchanged():
    with pytest.raises(NightlyError, match=r"^no room$"), api_outage.reported(URL):
        raise NightlyError("no room")


@pytest.mark.parametrize(
    "noise",
    [
        record("Unable to connect to 'ws://127.0.0.1:1/api/events/in'."),
        record("Service 'EventsWorker' failed to process item Event()"),
        record("Encountered exception during execution", NightlyError("no night")),
        record("Task run failed with exception", OSError(errno.ENOSPC, "No space left on device")),
    ],
)
def test_what_the_night_logs_itself_is_dropped(noise):
    assert not api_outage._is_relevant(noise)


@pytest.mark.parametrize(
    "relevant",
    [
        record("trial 1: keep"),
        record("Task run failed", OSError(errno.EIO, "broken")),
        record("failed", ValueError("bug")),
    ],
)
def test_the_night_and_real_errors_are_logged(relevant):
    assert api_outage._is_relevant(relevant)


def test_a_process_with_empty_queues_exits_as_usual():
    """In its own process: this one's queues may hold log lines of other tests."""
    script = """
import atexit, sys
from flows.command_line import api_outage
atexit.register(print, "usual")
sys.exit(api_outage.end_process(3))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (3, "usual\n")


@pytest.mark.parametrize("thread", api_outage.THREADS)
def test_a_process_does_not_wait_for_an_api_that_never_answers(thread):
    done = subprocess.run(
        [sys.executable, "-c", BUSY, thread], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (3, "report\n")
