"""What a command does when Prefect's API goes away: one plain message, and an end within seconds.

Prefect itself would log two lines for each event it cannot send, raise httpx errors out of the
flow's call, and retry for minutes while the process ends. This module does not import Prefect
when it is loaded: Prefect's settings must be in the environment first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator

import configs
from tasks.errors import NightlyError
from tasks.files import FULL

FLUSH_SECONDS = 5.0
JOIN_SECONDS = 1.0  # for each of Prefect's threads
THREADS = ("EventsWorkerThread", "APILogWorkerThread")  # Prefect's own names
LOGGERS = (
    "prefect.flow_runs",
    "prefect.task_runs",
    "prefect.events.clients",
    "prefect._internal.concurrency",
    "EventsWorker",
    "urllib3.connectionpool",
)
NOISE = (  # beginnings of messages
    "Finished in state",
    "Beginning flow run",
    "View at",
    # The night logs an outage once, in its own words.
    "Unable to connect to",
    "Service 'EventsWorker' failed",
    "Still processing items",
    "Retrying (",
)


def filter_logs() -> None:
    """Drops log lines of Prefect and of MLflow's client that say nothing about the night."""
    logging.raiseExceptions = False  # else each line the API does not take is reported as lost
    for logger in LOGGERS:
        logging.getLogger(logger).addFilter(_is_relevant)


def _is_relevant(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, NightlyError | configs.ProfileError):
        return False  # the command line prints it
    if isinstance(error, OSError) and error.errno in FULL:
        return False  # the flow that catches it logs it
    return not record.getMessage().startswith(NOISE)


@contextlib.contextmanager
def reported(api_url: str) -> Iterator[None]:
    """Turns an unanswered call of Prefect's own inside the block into a NightlyError."""
    import httpx

    try:
        yield
    except (httpx.HTTPError, RuntimeError) as error:
        # When a flow starts, Prefect wraps the httpx error in a RuntimeError.
        if not any(isinstance(each, httpx.HTTPError) for each in (error, error.__cause__)):
            raise
        raise NightlyError(
            f"Prefect's API at {api_url} did not answer ({str(error) or type(error).__name__}). "
            "Check that the server is up, then run this command again. Everything a night has "
            "decided is on record: see `./run status TAG`, continue with `./run resume TAG`"
        ) from error


def flush() -> None:
    """Sends Prefect's last log lines and events while its API is up, for FLUSH_SECONDS at most."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler

    APILogHandler().flush()
    EventsWorker.drain_all(timeout=FLUSH_SECONDS)


def end_process(code: int) -> int:
    """Returns `code`, or exits with it at once if Prefect is still sending what `flush` left over.

    Prefect would retry each event for seconds, and a night has hundreds of them; where the API
    accepts connections and never answers, it would take minutes.
    """
    threads = [thread for thread in threading.enumerate() if thread.name in THREADS]
    for thread in threads:
        thread.join(JOIN_SECONDS)
    if any(thread.is_alive() for thread in threads):
        sys.stdout.flush()
        os._exit(code)
    return code
