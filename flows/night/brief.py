"""For a human who writes patches: the facts that a researcher is given, and where the files are."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path

from prefect import flow, get_run_logger

import configs
from configs import Profile
from flows import state_home
from flows.night import calibration, researcher
from flows.night.isolation import choose_isolation, end_orphans
from flows.preparation import prepare_dataset
from tasks.records import TRAIN, Bench
from tasks.trial import device_lock
from tasks.trial.baseline import caps_after, first_caps

WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Brief:
    """What is told of a profile."""

    profile: str
    files: dict[str, str]  # what it is: path
    facts: dict[str, str]

    def text(self) -> str:
        parts = [*self.facts.items(), *self.files.items()]
        return "\n\n".join(f"{name}\n{_indented(value)}" for name, value in parts)


@flow(name="brief", flow_run_name="brief {profile.name}")
def brief(profile: Profile, allow_unsandboxed: bool) -> Brief:
    """Prepares the data and measures the baseline unless they are in the cache."""
    home, root = state_home.locate(), state_home.ROOT
    isolation = choose_isolation(home, profile, allow_unsandboxed)
    end_orphans(home, isolation)
    dataset = prepare_dataset(profile, home)
    bench = Bench(profile, dataset, home, isolation, first_caps(profile))
    with device_lock.held(home, device_lock.device_of(profile), "a brief"):
        base = calibration.unpatched(root, profile)
        baseline = calibration.measured(base, bench, get_run_logger().info)
    bench = dataclasses.replace(bench, caps=caps_after(baseline, profile))
    program = configs.FOLDER / Path(profile.night.program).expanduser()
    files = {
        "the file that is edited": str(root / TRAIN),
        "what it may use": ", ".join(str(root / f"trainer/{n}.py") for n in ("harness", "prepare")),
        "the researcher's instructions": str(program),
        "the prepared data": str(Path(dataset.public).parent),
    }
    return Brief(profile.name, files, researcher.facts_of(bench, baseline))


def _indented(text: str) -> str:
    """Wrapped, each part of a list on a line of its own."""
    wrapper = textwrap.TextWrapper(WIDTH, initial_indent="    ", subsequent_indent="      ")
    return "\n".join(wrapper.fill(line) for line in text.split("; "))
