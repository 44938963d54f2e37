"""What the Prefect server does about nights on its own: registers deployments/automations.yaml.

A night that lost its machine cannot report anything, so the server marks it Crashed and sends the
notice. Automations are matched by name: those in the file are ours to change, all others are left
alone.
"""

from __future__ import annotations

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
BLOCK = "nightly"  # name of the notification block, of any type, that sends the notices
PAGE = 200  # blocks a request


def register(file: Path = FILE) -> list[str]:
    """Makes the server's automations match the file; returns the names of those it has now.

    A notice is sent through every notification block named `nightly`, and removed while there is
    no such block. An automation that was switched off stays off. A second call changes nothing.

    Raises:
        NightlyError: the server refused an automation.
    """
    registered = []
    with get_client(sync_client=True) as client:
        blocks = list(_blocks(client))
        for described in read(file):
            wanted = _with_blocks(described, blocks)
            try:
                _update(client, described.name, wanted)
            except PrefectHTTPStatusError as error:
                raise NightlyError(
                    f"the Prefect server refused the automation {described.name!r} "
                    f"(HTTP {error.response.status_code}): upgrade the server to Prefect 3.8 or "
                    "later, then run ./run deploy again"
                ) from error
            registered += [described.name] if wanted else []
    return registered


def read(file: Path) -> list[AutomationCore]:
    """The automations of a file in the format of `prefect automation create --from-file`."""
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    return [AutomationCore.model_validate(described) for described in found["automations"]]


def _blocks(client: SyncPrefectClient) -> Iterator[UUID]:
    """The blocks named `nightly` that can send a notification."""
    offset = 0
    while page := client.read_block_documents(offset=offset, limit=PAGE, include_secrets=False):
        for block in page:
            schema = block.block_schema
            if block.name == BLOCK and schema and "notify" in schema.capabilities:
                yield block.id
        offset += len(page)


def _with_blocks(described: AutomationCore, blocks: list[UUID]) -> AutomationCore | None:
    """The automation, a notice enabled and sent through `blocks`; None for a notice without one."""
    notices = [action for action in described.actions if isinstance(action, SendNotification)]
    if not notices:
        return described
    actions = [
        notice.model_copy(update={"block_document_id": block})
        for notice in notices
        for block in blocks
    ]
    return described.model_copy(update={"actions": actions, "enabled": True}) if actions else None


def _update(client: SyncPrefectClient, name: str, wanted: AutomationCore | None) -> None:
    """Writes only what differs: an update makes the server forget the heartbeats it waits for."""
    found = client.read_automations_by_name(name)
    kept = found[0] if found and wanted else None
    for surplus in found[1:] if kept else found:
        client.delete_automation(surplus.id)
    if wanted and not kept:
        client.create_automation(wanted)
    elif wanted and kept:
        wanted = wanted.model_copy(update={"enabled": kept.enabled})
        if _content(kept) != _content(wanted):
            client.update_automation(kept.id, wanted)


def _content(automation: Automation | AutomationCore) -> dict[str, object]:
    return automation.model_dump(include=set(AutomationCore.model_fields) - {"owner_resource"})
