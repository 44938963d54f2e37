"""A night's views made once more from ledger and git: MLflow, results.tsv, report and chart, Prefect's pages, trial folders."""

from __future__ import annotations

from prefect import flow

from flows import night_folder, resuming, server, session
from flows.opening import open_night
from flows.views import Views


@flow(name="rebuild-night", flow_run_name="rebuild {tag}")
def rebuild_night(tag: str) -> None:
    """Raises UsageError while another process holds the night, NightlyError where a view cannot be written."""
    with session.hold(night_folder.find(server.state_home(), tag), measures=False) as held:
        night = open_night(held)
        resuming.put_in_order(night, held.state)
        Views(night, held.pulse).rebuild(held.state)
