"""The schedules of the deployments: switched on and off, and kept on by the next `./run deploy`.

A deploy makes each schedule anew, with another ID. So they are found by their deployment and by
what they say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from uuid import UUID

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.exceptions import ObjectNotFound

from tasks.errors import UsageError

Schedule = tuple[UUID, UUID, bool]  # ids of deployment and schedule, and whether it is on


def switch(name: str, *, on: bool) -> list[str]:
    """Switches every schedule of the deployment `name`, FLOW/NAME, on or off; a line for each.

    Raises UsageError if the server has no such deployment, or it has no schedule.
    """
    short = name.partition("/")[2]
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(name)
        except ObjectNotFound:
            known = sorted(each.name for each in client.read_deployments())
            others = f"there are: {', '.join(known)}" if known else "there are none yet"
            raise UsageError(
                f"there is no deployment {short!r} on this server; {others}. "
                "`./run deploy` registers those of this project"
            ) from None
        if not deployment.schedules:
            raise UsageError(
                f"deployment {short} has no schedule: add one to prefect.yaml, then ./run deploy"
            )
        for schedule in deployment.schedules:
            client.update_deployment_schedule(deployment.id, schedule.id, active=on)
    word = "on" if on else "off"
    return [f"schedule of {short} ({_when(each)}) is {word}" for each in deployment.schedules]


@contextlib.contextmanager
def kept_on() -> Iterator[list[str]]:
    """Switches the schedules that were on before the block on again after it.

    Yields a list that gets one line per such schedule when the block is over.
    """
    lines: list[str] = []
    with get_client(sync_client=True) as client:
        before = sorted(name for name, (*_, is_on) in _schedules(client).items() if is_on)
        try:
            yield lines
        finally:
            after = _schedules(client)
            for name in before:
                if name not in after:
                    lines.append(f"schedule of {name} was on and is no longer in prefect.yaml")
                    continue
                deployment, schedule, is_on = after[name]
                if not is_on:
                    client.update_deployment_schedule(deployment, schedule, active=True)
                lines.append(f"schedule of {name} stays on")


def _schedules(client: SyncPrefectClient) -> dict[str, Schedule]:
    return {
        f"{deployment.name} ({_when(each)})": (deployment.id, each.id, each.active)
        for deployment in client.read_deployments()
        for each in deployment.schedules
    }


def _when(schedule: DeploymentSchedule) -> str:
    """Such as `0 22 * * *`: what prefect.yaml says, without what it leaves out."""
    said = schedule.schedule.model_dump(exclude_none=True, exclude_defaults=True)
    if set(said) == {"cron"}:
        return str(said["cron"])
    return ", ".join(f"{name} {value}" for name, value in said.items())
