"""What the Prefect server does about nights by itself: deployments/automations.yaml, brought to the server.

A night that lost its machine can tell nobody, so it is the server that marks it Crashed and says so. Automations are found
by their names: those of the file are ours to change, all others are left alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import yaml
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import PrefectHTTPStatusError

from flows import state_home
from tasks.errors import NightlyError

FILE = state_home.ROOT / "deployments" / "automations.yaml"
BLOCK = "nightly"  # the name of the notification block, of any type, that notices are sent by
PAGE = 200  # blocks a request


def register(file: Path = FILE) -> list[str]:
    """Makes the server's automations those of the file, and returns the names of those that are there now.

    A notice is sent by every notification block named `nightly`, and is removed while there is none. One that someone has
    switched off stays off. A second call changes nothing.

    Raises:
        NightlyError: the server refused an automation.
    """
    there = []
    with get_client(sync_client=True) as client:
        blocks = list(_blocks(client))
        for described in read(file):
            wanted = _addressed(described, blocks)
            try:
                _put(client, described.name, wanted)
            except PrefectHTTPStatusError as error:
                raise NightlyError(
                    f"the Prefect server refused the automation {described.name!r} (HTTP {error.response.status_code}): "
                    "bring the server to Prefect 3.8 or later, then ./run deploy again"
                ) from error
            there += [described.name] if wanted else []
    return there


def read(file: Path) -> list[AutomationCore]:
    """The automations of a file, in the form that `prefect automation create --from-file` takes."""
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    return [AutomationCore.model_validate(described) for described in found["automations"]]


def _blocks(client: SyncPrefectClient) -> Iterator[UUID]:
    """The blocks named `nightly` that can notify."""
    offset = 0
    while page := client.read_block_documents(offset=offset, limit=PAGE, include_secrets=False):
        for block in page:
            if (
                block.name == BLOCK
                and block.block_schema
                and "notify" in block.block_schema.capabilities
            ):
                yield block.id
        offset += len(page)


def _addressed(described: AutomationCore, blocks: list[UUID]) -> AutomationCore | None:
    """The automation with its notices switched on and sent by `blocks`; None for a notice without one."""
    notices = [action for action in described.actions if isinstance(action, SendNotification)]
    if not notices:
        return described
    actions = [
        notice.model_copy(update={"block_document_id": block})
        for notice in notices
        for block in blocks
    ]
    return described.model_copy(update={"actions": actions, "enabled": True}) if actions else None


def _put(client: SyncPrefectClient, name: str, wanted: AutomationCore | None) -> None:
    """Only what differs is written: an update makes the server forget the heartbeats that it is waiting for."""
    there = client.read_automations_by_name(name)
    kept = there[0] if there and wanted else None
    for surplus in there[1:] if kept else there:
        client.delete_automation(surplus.id)
    if wanted and not kept:
        client.create_automation(wanted)
    elif wanted and kept:
        wanted = wanted.model_copy(update={"enabled": kept.enabled})
        if _content(kept) != _content(wanted):
            client.update_automation(kept.id, wanted)


def _content(automation: Automation | AutomationCore) -> dict[str, object]:
    return automation.model_dump(include=set(AutomationCore.model_fields) - {"owner_resource"})


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
