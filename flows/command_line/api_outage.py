"""A Prefect API that went away under a command: said once and plainly, and the command ends in seconds all the same.

Prefect itself would log two lines for each event that is not taken, raise httpx errors out of the flow's call, and try on for
minutes while the process ends. This module does not import Prefect: its settings must be there first.
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

DRAIN_SECONDS = 5.0
WORKERS = ("EventsWorkerThread", "APILogWorkerThread")  # Prefect's
LOGGERS = (
    *("prefect.flow_runs", "prefect.task_runs"),
    *(
        "prefect.events.clients",
        "prefect._internal.concurrency",
        "EventsWorker",
        "urllib3.connectionpool",
    ),
)
NOT_WORTH_TELLING = (
    *("Finished in state", "Beginning flow run", "View at"),
    *(
        "Unable to connect to",
        "Service 'EventsWorker' failed",
        "Still processing items",
        "Retrying (",
    ),  # the night says it once
)


def quiet() -> None:
    """Leaves out lines of Prefect's, and of MLflow's client, that say nothing of the night."""
    logging.raiseExceptions = False  # or each line that the API does not take is said to be lost
    for logger in LOGGERS:
        logging.getLogger(logger).addFilter(_is_worth_telling)


def _is_worth_telling(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, NightlyError | configs.ProfileError) or (
        isinstance(error, OSError) and error.errno in FULL
    ):
        return False  # the command line prints it, or the flow that catches it does
    return not record.getMessage().startswith(NOT_WORTH_TELLING)


@contextlib.contextmanager
def said_plainly(api_url: str) -> Iterator[None]:
    """Raises NightlyError out of the block where a call of Prefect's own was not answered."""
    import httpx

    try:
        yield
    except (
        httpx.HTTPError,
        RuntimeError,
    ) as error:  # Prefect's own call at a start wraps the one in the other
        if not isinstance(error, httpx.HTTPError) and not isinstance(
            error.__cause__, httpx.HTTPError
        ):
            raise
        raise NightlyError(
            f"Prefect's API at {api_url} did not answer ({str(error) or type(error).__name__}): see that it runs and start "
            f"this again. What a night has decided is on record: `./run status TAG`, `./run resume TAG`"
        ) from error


def hand_over() -> None:
    """Prefect's last log lines and events: while the API is still there, and for DRAIN_SECONDS at most."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler

    APILogHandler().flush()
    EventsWorker.drain_all(timeout=DRAIN_SECONDS)


def leave(code: int) -> int:
    """`code`, for the process to end with; ends it here and now where `hand_over` was not rid of all.

    Prefect would try for seconds with each event, and a night has hundreds; for minutes where the API takes a connection
    and never answers.
    """
    busy = [thread for thread in threading.enumerate() if thread.name in WORKERS]
    for thread in busy:
        thread.join(1.0)
    if any(thread.is_alive() for thread in busy):
        sys.stdout.flush()
        os._exit(code)
    return code
