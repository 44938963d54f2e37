"""The kind of box that a night gets here, what its GPU does in one, and boxes left behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from prefect import get_run_logger

import configs
from tasks.errors import BoxError, UsageError
from tasks.judge import box, container, probe, processes
from tasks.judge.bwrap import BoxUnavailable, Isolation
from tasks.trial import device_readiness

LEVELS: dict[str, tuple[Isolation, ...]] = {
    "auto": ("bwrap", "docker"),
    "bwrap": ("bwrap",),
    "docker": ("docker",),
}


def choose_isolation(home: Path, profile: configs.Profile, allow_unsandboxed: bool) -> Isolation:
    """The first of the profile's isolation levels that holds on this machine.

    `none` if none does and a human allowed that by name, otherwise BoxError. Raises UsageError like
    `check_device`.
    """
    check_device(profile)
    failed = []
    for level in LEVELS[profile.limits.isolation]:
        checks = probe.probe(home, profile.device, level)
        problems = [
            detail or f"does not hold: {name}" for name, holds, detail in checks if not holds
        ]
        if not problems:
            return level
        failed.append(f"{level}: {'; '.join(problems)}")
    if allow_unsandboxed:
        get_run_logger().warning(
            "NOT SANDBOXED: candidates run with your permissions, because you allowed it"
        )
        return "none"
    raise BoxError(
        f"candidates cannot be sandboxed here: {'. '.join(failed)}. `./run doctor` has the "
        "details; --allow-unsandboxed would run them with your permissions"
    )


def check_device(profile: configs.Profile) -> None:
    """Raises UsageError for a device that this system cannot have."""
    if profile.device == "mps" and sys.platform != "darwin":
        raise UsageError(
            f"profile {profile.name} needs an Apple GPU (device mps), and this is {sys.platform}: "
            "choose another --profile"
        )


def try_gpu(
    home: Path, profile: configs.Profile, isolation: str, enter: Callable[[str], None]
) -> None:
    """Has a training's box try what a night needs of its GPU; nothing without device cuda.

    `enter` is told what the night does meanwhile. This takes seconds, where a baseline would take
    minutes to fail in the same way. Raises BoxError for the first thing that fails.
    """
    if profile.device != "cuda":
        return
    enter("trying the GPU")
    for found in device_readiness.in_a_box(home, profile, isolation):
        if found.holds is False:
            raise BoxError(
                f"the GPU cannot train here: {found.name}: {found.detail}. {found.remedy}. "
                "`./run doctor` shows every step"
            )
        get_run_logger().info(f"GPU: {found.name}: {found.detail}")


def end_orphans(home: Path, isolation: str) -> None:
    """Ends the boxes and servers that a killed process left behind.

    Raises BoxError if the container engine does not answer.
    """
    try:
        ended = [f"process {pid}" for pid in (*processes.end_orphans(home), *box.sweep(home))]
        if isolation == "docker":
            ended += [f"container {name}" for name in container.sweep(home)]
    except BoxUnavailable as error:
        raise BoxError(f"{error}. `./run doctor` looks closer") from error
    for orphan in ended:
        get_run_logger().warning(f"ended {orphan}, left behind by a command that was killed")
