"""Which schedules somebody has switched on: `prefect deploy` makes them all anew, switched off as prefect.yaml has them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from uuid import UUID

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient

Found = tuple[UUID, UUID, bool]  # the ids of deployment and schedule, and whether it is on


@contextlib.contextmanager
def kept_on() -> Iterator[list[str]]:
    """Switches those on again that were on before the block. What it gives has a line for each, once the block is over."""
    told: list[str] = []
    with get_client(sync_client=True) as client:
        before = sorted(name for name, (*_, is_on) in _schedules(client).items() if is_on)
        try:
            yield told
        finally:
            after = _schedules(client)
            for name in before:
                if name not in after:
                    told.append(f"{name} was on and is gone: prefect.yaml does not have it")
                    continue
                deployment, schedule, is_on = after[name]
                if not is_on:
                    client.update_deployment_schedule(deployment, schedule, active=True)
                told.append(f"{name} stays on")


def _schedules(client: SyncPrefectClient) -> dict[str, Found]:
    return {
        f"{deployment.name}: {each.schedule}": (deployment.id, each.id, each.active)
        for deployment in client.read_deployments()
        for each in deployment.schedules
    }
