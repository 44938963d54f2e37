"""Nights that are killed at random moments and taken up again, until so many kills are done; then they must add up.

    python -m tests.faults.chaos --kills 100 --seed 7

One victim a kill: the process of the night, the worker, a box, the Prefect server. A night that is dead is taken up in one
of the ways that there are: `./run resume`, a start with the same tag, a run of the deployment, a retry of its flow run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.boxes import live_boxes
from tests.faults import adds_up
from tests.faults.standing import OVER, Standing, kill, standing, wait_for
from tests.faults.stub_checkout import PROFILE

VICTIMS = {"flow": 5, "worker": 2, "box": 3, "server": 2}  # weights
WAYS = {"resume": 2, "again": 2, "deployment": 2, "retry": 3}
EARLY = 0.25  # share of the kills that come while a night starts up
STARTUP_SECONDS, WORK_SECONDS = 5.0, 3.0  # over which the moments are spread
AIMED = 0.6  # share of the kills of a night at work that wait for a phase: most phases last milliseconds
PHASES = (
    *("opened", "branched", "measured", "proposed", "written", "started", "ran", "recorded"),
    *("decided", "committed", "advanced", "applied", "shown", "finished", "reported"),
)
AIM_SECONDS = 10.0  # for which a phase is waited for
REPORTED_SECONDS = 10.0  # in which a worker tells Prefect that a night of its own is dead
PICKED_UP_SECONDS = 60.0  # after which a worker should have begun what it was given
END_SECONDS = 240.0  # for what is left of a night


@dataclasses.dataclass
class Tally:
    """What was done, and what came of it."""

    victims: Counter[str] = dataclasses.field(default_factory=Counter)
    phases: Counter[str] = dataclasses.field(
        default_factory=Counter
    )  # the last milestone before a kill of any victim
    ways: Counter[str] = dataclasses.field(default_factory=Counter)
    refused: Counter[str] = dataclasses.field(
        default_factory=Counter
    )  # ways that led to no running night
    nights: int = 0
    trials: int = 0
    seconds: float = 0.0
    complaints: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        return json.dumps(vars(self), indent=1)


class Chaos:
    """A seeded sequence of kills in one checkout."""

    def __init__(self, stands: Standing, seed: int, trials: int) -> None:
        self.stands = stands
        self.checkout = stands.checkout
        self.random = random.Random(seed)
        self.trials = trials  # of a night; then the next one begins
        self.milestones = stands.milestones
        self.decks: dict[tuple[str, ...], list[str]] = {}
        self.tally = Tally()
        self.children: list[subprocess.Popen[bytes]] = []
        self.log = (self.checkout.home / "chaos.log").open("a")

    @property
    def tag(self) -> str:
        return f"chaos{self.tally.nights + 1}"

    def run(self, kills: int) -> Tally:
        """Kills so often, in as many nights as that takes. The baseline is measured before, by a night that nobody kills."""
        self.stands.up()
        if not list(self.checkout.home.glob("nights/*/ledger.jsonl")):
            done = self.checkout.run(
                "night", "--profile", PROFILE, "--tag", "prepared", "--trials", "1"
            )
            if done.returncode:
                raise RuntimeError(
                    f"a night that nobody kills ends with {done.returncode}: {done.stderr}"
                )
        self.before, began = adds_up.UserTree.of(self.checkout), time.monotonic()
        while sum(self.tally.victims.values()) < kills:
            self.stands.up()
            if self.finished() and not self.stands.flows():
                self.check()
            if not self.stands.flows():
                self.start(self._deal(WAYS))
            victim = self._deal(VICTIMS)
            self.wait(victim)
            self.kill_one(victim)
        self.stands.up()
        self.let_it_end()
        self.check()
        for child in self.children:
            child.wait()
        self.log.close()
        self.tally.seconds = round(time.monotonic() - began, 1)
        return self.tally

    def finished(self) -> bool:
        """Whether the night's ledger says so, and nobody has yet to write its report."""
        folder = self.checkout.home / "nights" / self.tag
        return (folder / "ledger.jsonl").is_file() and '"event": "finished"' in (
            folder / "ledger.jsonl"
        ).read_text()

    def start(self, way: str) -> None:
        """Starts or takes up the night; if that way leads nowhere, the next kill comes to a place where nothing runs."""
        self.milestones.write_text("starting\n")
        known = (self.checkout.home / "nights" / self.tag / "ledger.jsonl").is_file()
        if way in ("retry", "deployment"):
            self._mark_crashed()
        runs = self._deployed_runs(self.tag) if way == "retry" else []
        if (way == "resume" and not known) or (way == "retry" and not runs):
            way = "again"
        self.tally.ways[way] += 1
        print(f"{time.monotonic():.1f} {self.tag}: {way}", file=self.log, flush=True)
        if way == "resume":
            self._command("-m", "flows.command_line.cli", "resume", self.tag)
        elif way == "again":
            self._command(
                "-m",
                "flows.command_line.cli",
                "night",
                "--profile",
                PROFILE,
                "--tag",
                self.tag,
                "--trials",
                str(self.trials),
            )
        elif way == "retry":
            self._prefect("flow-run", "retry", runs[0]["id"])
        else:
            parameters = {
                "tag": self.tag,
                "profile": str(self.checkout.folder / PROFILE),
                "trials": self.trials,
            }
            given = [
                part
                for name, value in parameters.items()
                for part in ("--param", f"{name}={value}")
            ]
            self._prefect("deployment", "run", "nightly-research/local", *given)
        if way in ("retry", "deployment"):
            self._until_picked_up(way)

    def _until_picked_up(self, way: str) -> None:
        """By the worker, which may be refused a run."""
        deadline = time.monotonic() + PICKED_UP_SECONDS
        while not self.stands.flows():
            if (
                time.monotonic() > deadline
                or self._deployed_runs(self.tag)[0]["state_type"] in OVER
            ):
                self.tally.refused[way] += 1
                return
            time.sleep(0.2)

    def wait(self, victim: str) -> None:
        """Until a random moment of the start, or, always for a box, of the work, or until a random phase."""
        if victim != "box" and self.random.random() < EARLY:
            self._until(lambda: False, self.random.uniform(0, STARTUP_SECONDS))
            return
        self._until(lambda: len(self._reached()) > 1, 60)
        if victim != "box" and self.random.random() < AIMED:
            known, aim = len(self._reached()), self.random.choice(PHASES)
            self._until(lambda: aim in self._reached()[known:], AIM_SECONDS)
        else:
            self._until(lambda: False, self.random.uniform(0, WORK_SECONDS))

    def _reached(self) -> list[str]:
        """The night's milestones since it was last started."""
        return self.milestones.read_text().split()

    def _until(self, what: Callable[[], bool], seconds: float) -> None:
        """Waits, for as long as a night runs. It looks often: some phases are that short."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.stands.flows():
            for _ in range(100):  # then again whether it still runs, which takes longer to find out
                if what():
                    return
                time.sleep(0.003)

    def kill_one(self, victim: str) -> None:
        """Kills one; a victim that is not there now is replaced by the night's process, and no kill counts without one."""
        if victim == "box":
            self._until(lambda: bool(live_boxes(self.checkout.home)), 3)
        pids = {
            "flow": self.stands.flows,
            "box": lambda: sorted(process.pid for process in live_boxes(self.checkout.home)),
            "worker": lambda: [self.stands.worker.pid] if self.stands.worker else [],
            "server": lambda: [self.stands.server.pid] if self.stands.server else [],
        }
        found = pids[victim]()
        if not found:
            victim, found = "flow", self.stands.flows()
        if not found:
            return
        killed = (
            found if victim == "flow" else [self.random.choice(found)]
        )  # a launcher and what it launched are one night
        for pid in killed:
            kill(pid)
            self.stands.reap(pid)
        phase = self._reached()[-1]
        self.tally.victims[victim] += 1
        self.tally.phases[phase] += 1
        if victim == "flow":
            self._until(lambda: False, 10)
        print(
            f"{time.monotonic():.1f} {self.tag}: killed {victim} after {phase}",
            file=self.log,
            flush=True,
        )

    def let_it_end(self) -> None:
        """Takes the night up until it is over, now without kills."""
        self._wait_for_flows()
        for _ in range(3):
            done = self.checkout.run("resume", self.tag) if self._known() else self._whole_night()
            if done.returncode == 0:
                return
            self._wait_for_flows()
        self.tally.complaints.append(f"{self.tag}: could not be finished: {done.stderr[-1000:]}")

    def check(self) -> None:
        """A finished night, whose report may still be missing, must add up after one more resume."""
        self._wait_for_flows()
        done = self.checkout.run("resume", self.tag)
        found = adds_up.complaints(
            self.checkout, self.tag, self.trials, self.before, self.stands.pids
        )
        if done.returncode:
            found.append(
                f"./run resume of the finished night ends with {done.returncode}: {done.stderr[-1000:]}"
            )
        self.tally.complaints += [f"{self.tag}: {complaint}" for complaint in found]
        print(f"{time.monotonic():.1f} {self.tag}: checked: {found}", file=self.log, flush=True)
        self.tally.nights += 1
        self.tally.trials += self.trials

    def _known(self) -> bool:
        return (self.checkout.home / "nights" / self.tag / "ledger.jsonl").is_file()

    def _whole_night(self) -> subprocess.CompletedProcess[str]:
        return self.checkout.run(
            "night", "--profile", PROFILE, "--tag", self.tag, "--trials", str(self.trials)
        )

    def _wait_for_flows(self) -> None:
        wait_for(lambda: not self.stands.flows(), f"the end of {self.tag}", END_SECONDS)

    def _deal(self, weights: dict[str, int]) -> str:
        """One of the names, from a shuffled deck that holds each as often as it weighs: so a short sequence has all."""
        deck = self.decks.setdefault(tuple(weights), [])
        if not deck:
            deck += [name for name, weight in weights.items() for _ in range(weight)]
            self.random.shuffle(deck)
        return deck.pop()

    def _command(self, *argv: str) -> None:
        environment = self.checkout.environment(NIGHTLY_TEST_MILESTONES=str(self.milestones))
        child = subprocess.Popen(
            [sys.executable, *argv],
            cwd=self.checkout.folder,
            env=environment,
            stdout=self.log,
            stderr=self.log,
        )
        self.children.append(child)

    def _prefect(self, *argv: str) -> None:
        """Hands something to the worker. Whether it is taken is seen by what runs afterwards."""
        command = [sys.executable, "-m", "prefect", *argv]
        subprocess.run(
            command,
            cwd=self.checkout.folder,
            env=self.stands.environment(),
            stdout=self.log,
            stderr=self.log,
            timeout=120,
        )

    def _mark_crashed(self) -> None:
        """Runs of dead processes, first by their worker, if it lives: Prefect refuses a second run meanwhile.

        Then as deployments/automations.yaml does it six minutes after the last heartbeat.
        """
        deadline = time.monotonic() + REPORTED_SECONDS
        while left := [run["id"] for run in self._deployed_runs() if run["state_type"] not in OVER]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        for run in left:
            state = {
                "type": "CRASHED",
                "name": "Crashed",
                "message": "No heartbeat. The process or its machine is gone",
            }
            self._ask(f"flow_runs/{run}/set_state", {"state": state, "force": True})

    def _deployed_runs(self, tag: str | None = None) -> list[dict[str, Any]]:
        """The flow runs of the deployment, for the night of this tag or any, the last one first."""
        wanted = {
            "flows": {"name": {"any_": ["nightly-research"]}},
            "sort": "EXPECTED_START_TIME_DESC",
            "limit": 50,
        }
        runs = [run for run in self._ask("flow_runs/filter", wanted) if run["deployment_id"]]
        return [run for run in runs if tag in (None, run["parameters"].get("tag"))]

    def _ask(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(
            f"{self.checkout.api}/{path}", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Kills nights at random and checks that they add up."
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--trials", type=int, default=6, help="of a night; then the next one begins"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        Path(folder).chmod(0o755)  # a box's uid must reach the dataset
        with standing(Path(folder)) as stands:
            chaos = Chaos(stands, arguments.seed, arguments.trials)
            tally = chaos.run(arguments.kills)
            print(tally)
            if tally.complaints:
                print((stands.checkout.home / "chaos.log").read_text()[-20_000:])
    return 1 if tally.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
