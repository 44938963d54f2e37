"""Nights that are killed at random moments and resumed, kill after kill; then they must add up.

    python -m tests.faults.chaos --kills 100 --seed 7

One victim a kill: the process of the night, the worker, a box, the Prefect server. A dead night is
resumed in one of the ways there are: `./run resume`, a start with the same tag, a run of the
deployment, a retry of its flow run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.boxes import live_boxes
from tests.checkouts import Process, kill
from tests.faults import adds_up
from tests.faults.prefect_server import make_deployed
from tests.faults.standing import OVER, Standing, standing
from tests.faults.stub_checkout import PROFILE
from tests.waiting import wait_for
from tests.warm_python import warm_python

VICTIMS = {"flow": 4, "worker": 1, "box": 2, "server": 1}  # weights
WAYS = {"resume": 1, "again": 1, "deployment": 2, "retry": 2}
EARLY = 0.25  # share of the kills that come while a night starts up
STARTUP_SECONDS, WORK_SECONDS = 2.0, 3.0  # over which the moments are spread
AIMED = 0.6  # share of the other kills that wait for a phase: most phases last milliseconds
PHASES = (
    *("opened", "branched", "measured", "proposed", "written", "started", "ran", "recorded"),
    *("decided", "committed", "advanced", "applied", "shown", "finished", "reported"),
)
AIM_SECONDS = 10.0  # after which the kill comes without the phase
REPORTED_SECONDS = 10.0  # after which a dead night is marked crashed without its worker
PICKED_UP_SECONDS = 600.0  # after which a run counts as refused that no worker has begun


@dataclasses.dataclass
class Tally:
    """What was done, and what came of it."""

    victims: Counter[str] = dataclasses.field(default_factory=Counter)
    phases: Counter[str] = dataclasses.field(default_factory=Counter)  # last milestones before
    ways: Counter[str] = dataclasses.field(default_factory=Counter)
    refused: Counter[str] = dataclasses.field(default_factory=Counter)  # ways to no running night
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
        self.children: list[Process] = []
        self.log = (self.checkout.home / "chaos.log").open("a")

    @property
    def tag(self) -> str:
        return f"chaos{self.tally.nights + 1}"

    def run(self, kills: int) -> Tally:
        """Kills so often, in as many nights as that takes.

        A night that is not killed measures the baseline first.
        """
        with self.log:
            self.stands.up()
            if not list(self.checkout.home.glob("nights/*/ledger.jsonl")):
                done = self.checkout.run(*_night("prepared", 1))
                if done.returncode:
                    raise RuntimeError(f"exit code {done.returncode} without a kill: {done.stderr}")
            self.before, began = adds_up.UserTree.of(self.checkout), time.monotonic()
            try:
                while sum(self.tally.victims.values()) < kills:
                    self._one_kill()
                self.stands.up()
                self.let_it_end()
                self.check()
            finally:  # all have ended, unless something went wrong here
                for child in self.children:
                    child.kill()
                    child.wait()
        self.tally.seconds = round(time.monotonic() - began, 1)
        return self.tally

    def _one_kill(self) -> None:
        self.stands.up()
        if self.finished() and not self.stands.flows():
            self.check()
        if not self.stands.flows():
            self.start(self._deal(WAYS))
        victim = self._deal(VICTIMS)
        self.wait(victim)
        self.kill_one(victim)

    def finished(self) -> bool:
        """Whether the ledger has the night's end; its report may be missing."""
        return self._known() and '"event": "finished"' in self._ledger.read_text()

    def start(self, way: str) -> None:
        """Starts or resumes the night. If that fails, the next kill finds nothing that runs."""
        self.milestones.write_text("starting\n")
        if way in ("retry", "deployment"):
            self._mark_crashed()
        runs = self._deployed_runs(self.tag) if way == "retry" else []
        if (way == "resume" and not self._known()) or (way == "retry" and not runs):
            way = "again"
        self.tally.ways[way] += 1
        self._note(way)
        if way == "resume":
            self._command("resume", self.tag)
        elif way == "again":
            self._command(*_night(self.tag, self.trials))
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
        """Waits until the worker has begun the run, or is refused it.

        A retry that comes before the worker has put the dead run away ends the worker.
        """
        deadline = time.monotonic() + PICKED_UP_SECONDS
        while not self.stands.flows():
            state = self._deployed_runs(self.tag)[0]["state_type"]
            if time.monotonic() > deadline or state in OVER:
                self.tally.refused[way] += 1
                return
            self.stands.up()
            time.sleep(0.2)

    def wait(self, victim: str) -> None:
        """Until a random moment of the start, or a random phase or moment of the work.

        For a box it is always a moment of the work.
        """
        if victim != "box" and self.random.random() < EARLY:
            self._until(lambda: False, self.random.uniform(0, STARTUP_SECONDS))
            return
        self._until(lambda: len(self._reached()) > 1, 600)
        if victim != "box" and self.random.random() < AIMED:
            known = self._reached()
            # a night may end, or be refused, before its first milestone; and few certify
            passed = PHASES.index(known[-1]) + 1 if known[-1] in PHASES else 0
            ahead = PHASES[passed:] or PHASES
            aim = self.random.choice(ahead)
            self._until(lambda: aim in self._reached()[len(known) :], AIM_SECONDS)
        else:
            self._until(lambda: False, self.random.uniform(0, WORK_SECONDS))

    def _reached(self) -> list[str]:
        """The night's milestones since it was last started."""
        return self.milestones.read_text().split()

    def _until(self, what: Callable[[], bool], seconds: float) -> None:
        """Waits as long as a night runs. It looks often: some phases are that short."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.stands.flows():
            for _ in range(100):  # whether the night still runs takes longer to find out
                if what():
                    return
                time.sleep(0.003)

    def kill_one(self, victim: str) -> None:
        """Kills one. The night's process stands in for a victim that is not there.

        Without either there is no kill to count.
        """
        if victim == "box":
            self._until(lambda: bool(live_boxes(self.checkout.home)), 3)
        pids = {
            "flow": self.stands.flows,
            "box": lambda: sorted(process.pid for process in live_boxes(self.checkout.home)),
            "worker": lambda: sorted(self.stands.pids),
            "server": lambda: [pid for pid in [self.stands.server.pid] if pid is not None],
        }
        found = pids[victim]()
        if not found:
            victim, found = "flow", self.stands.flows()
        if not found:
            return
        # a launcher and what it has launched are one night
        for pid in found if victim == "flow" else [self.random.choice(found)]:
            kill(pid)
            self.stands.reap(pid)
        phase = self._reached()[-1]
        self.tally.victims[victim] += 1
        self.tally.phases[phase] += 1
        if victim == "flow":
            self._until(lambda: False, 10)
        self._note(f"killed {victim} after {phase}")

    def let_it_end(self) -> None:
        """Resumes the night until it is over, now without kills."""
        self._settle()
        for _ in range(3):
            again = ("resume", self.tag) if self._known() else _night(self.tag, self.trials)
            done = self.checkout.run(*again)
            if done.returncode == 0:
                return
            self._settle()
        self.tally.complaints.append(f"{self.tag}: could not be finished: {done.stderr[-1000:]}")

    def check(self) -> None:
        """A finished night, perhaps without its report, must add up after one more resume."""
        self._settle()
        done = self.checkout.run("resume", self.tag)
        alive = self.stands.pids
        found = adds_up.complaints(self.checkout, self.tag, self.trials, self.before, alive)
        if done.returncode:
            found.append(f"resume: exit code {done.returncode}: {done.stderr[-1000:]}")
        self.tally.complaints += [f"{self.tag}: {complaint}" for complaint in found]
        self._note(f"checked: {found}")
        self.tally.nights += 1
        self.tally.trials += self.trials
        self.stands.up()

    @property
    def _ledger(self) -> Path:
        return self.checkout.home / "nights" / self.tag / "ledger.jsonl"

    def _known(self) -> bool:
        return self._ledger.is_file()

    def _settle(self) -> None:
        """Returns when no process of a night is left, and none can begin."""
        self.stands.kill_worker()
        wait_for(lambda: not self.stands.flows(), f"the end of {self.tag}")
        self._mark_crashed()

    def _note(self, what: str) -> None:
        print(f"{time.monotonic():.1f} {self.tag}: {what}", file=self.log, flush=True)

    def _deal(self, weights: dict[str, int]) -> str:
        """One of the names, from a shuffled deck that holds each as often as it weighs.

        So a short sequence has every name.
        """
        deck = self.decks.setdefault(tuple(weights), [])
        if not deck:
            deck += [name for name, weight in weights.items() for _ in range(weight)]
            self.random.shuffle(deck)
        return deck.pop()

    def _command(self, *arguments: str) -> None:
        changes = {"NIGHTLY_TEST_MILESTONES": str(self.milestones)}
        self.children.append(self.checkout.start(*arguments, log=self.log, **changes))

    def _prefect(self, *arguments: str) -> None:
        """Gives the worker something to run. What runs afterwards shows whether it took it."""
        argv = ["-m", "prefect", *arguments]
        self.checkout.start_python(argv, self.log, self.stands.environment()).wait()

    def _mark_crashed(self) -> None:
        """Marks the runs of dead processes: Prefect refuses a second run until that is done.

        Their worker does it, if it lives; else this does what deployments/automations.yaml does
        six minutes after the last heartbeat.
        """
        deadline = time.monotonic() + (REPORTED_SECONDS if self.stands.pids else 0.0)
        while left := [run["id"] for run in self._deployed_runs() if run["state_type"] not in OVER]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        gone = "No heartbeat. The process or its machine is gone"
        state = {"type": "CRASHED", "name": "Crashed", "message": gone}
        for run in left:
            self._ask(f"flow_runs/{run}/set_state", {"state": state, "force": True})

    def _deployed_runs(self, tag: str | None = None) -> list[dict[str, Any]]:
        """The flow runs of the deployment, of the night of this tag or any, the last one first."""
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


def _night(tag: str, trials: int) -> tuple[str, ...]:
    return ("night", "--profile", PROFILE, "--tag", tag, "--trials", str(trials))


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
    with tempfile.TemporaryDirectory(prefix="chaos-") as name, warm_python() as warm:
        folder = Path(name)
        folder.chmod(0o755)  # the uid of boxes must reach the dataset
        make_deployed(folder / "deployed.db", folder / "deploying", warm)
        with standing(folder, warm, folder / "deployed.db") as stands:
            tally = Chaos(stands, arguments.seed, arguments.trials).run(arguments.kills)
            print(tally)
            if tally.complaints:
                print((stands.checkout.home / "chaos.log").read_text()[-20_000:])
    return 1 if tally.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
