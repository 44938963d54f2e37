"""Which kind of box a night gets on this machine, and what is left of the boxes of a night that was killed."""

from __future__ import annotations

from pathlib import Path

from prefect import get_run_logger

import configs
from tasks.errors import BoxError
from tasks.judge import box, container, probe, processes
from tasks.judge.bwrap import BoxUnavailable, Isolation

LEVELS: dict[str, tuple[Isolation, ...]] = {
    "auto": ("bwrap", "docker"),
    "bwrap": ("bwrap",),
    "docker": ("docker",),
}


def choose_isolation(home: Path, profile: configs.Profile, allow_unsandboxed: bool) -> Isolation:
    """The first level of the profile's that holds here; `none` where none does and a human allowed that by name.

    Raises BoxError.
    """
    failed = []
    for level in LEVELS[profile.limits.isolation]:
        tried = probe.probe(home, profile.device, level)
        found = [detail or f"does not hold: {name}" for name, holds, detail in tried if not holds]
        if not found:
            return level
        failed.append(f"{level}: {'; '.join(found)}")
    if allow_unsandboxed:
        get_run_logger().warning(
            "NOT SANDBOXED: candidates run with your rights, because you allowed it"
        )
        return "none"
    raise BoxError(
        f"candidates cannot be boxed here: {'. '.join(failed)}. `./run doctor` has the details; "
        "--allow-unsandboxed would run them with your rights"
    )


def end_orphans(home: Path, isolation: Isolation) -> None:
    """Ends what an earlier process left when it was killed: boxes, servers. Raises BoxError when the engine does not answer."""
    try:
        ended = [f"process {pid}" for pid in (*processes.end_orphans(home), *box.sweep(home))]
        if isolation == "docker":
            ended += [f"container {name}" for name in container.sweep(home)]
    except BoxUnavailable as error:
        raise BoxError(f"{error}. `./run doctor` looks closer") from error
    for orphan in ended:
        get_run_logger().warning(
            f"ended {orphan}, which an earlier command left behind when it was killed"
        )
