"""`./run bench NAME`: measurements, side by side in one call, as a busy machine's seconds mean
little by themselves."""

import argparse
import importlib
import sys
from pathlib import Path

from flows import state_home
from tests.benchmarks import mutants

NAMES = (
    *("ahead", "audit", "data", "gpu", "judge", "mutants", "night", "nights", "placebo", "planted"),
    *("train", "verdict"),
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="./run bench", description="Measures what the project's parts cost."
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="median of N (default 3)"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="the same figures as one JSON object, units in its keys",
    )
    parser.add_argument(
        "--tree", type=Path, default=state_home.ROOT, help="mutants: the tree to test (this one)"
    )
    parser.add_argument(
        "--like",
        type=Path,
        metavar="FILE",
        help="mutants: try those of an earlier --json as well, and compare",
    )
    ahead = parser.add_argument_group("ahead")
    ahead.add_argument("--part", action="append", help="with, without, speed, proposals; all")
    ahead.add_argument("--startup", type=float, metavar="SECONDS", help="of the stub (2)")
    ahead.add_argument("--training", type=float, metavar="SECONDS", help="of the stub (6)")
    ahead.add_argument("--trials", type=int, metavar="N", help="of each night (6; nights: 25)")
    audit = parser.add_argument_group("audit")
    audit.add_argument("--quick", action="store_true", help="a third of the table, fewer audits")
    nights = parser.add_argument_group("nights, as many as --repeats")
    nights.add_argument("--profile", metavar="P", help="a name or a .toml file (laptop)")
    arguments = parser.parse_args()
    if arguments.name == "mutants":
        unharmed = mutants.run(arguments.tree.resolve(), arguments.like, arguments.json)
        sys.exit(0 if unharmed else 1)
    if arguments.json and arguments.name == "judge":
        parser.error("judge has no --json")
    state_home.configure(state_home.locate())  # before prefect is imported
    bench = importlib.import_module(f"tests.benchmarks.{arguments.name}_bench")
    options = {"json_file": arguments.json} if arguments.json else {}
    own = {
        "ahead": ("startup", "training", "trials"),
        "audit": ("quick",),
        "nights": ("profile", "trials"),
    }
    asked = {name: getattr(arguments, name) for name in own.get(arguments.name, ())}
    options |= {name: value for name, value in asked.items() if value is not None}
    if arguments.name == "ahead":
        options |= {"parts": arguments.part} if arguments.part else {}
    sys.exit(0 if bench.run(max(arguments.repeats, 1), **options) else 1)
