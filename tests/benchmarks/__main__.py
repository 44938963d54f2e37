"""`./run bench NAME`: measurements, side by side in one call, as a busy machine's seconds mean little by themselves."""

import argparse
import importlib
import sys

from flows import server

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="./run bench", description="Measures what the project's parts cost.")
    parser.add_argument("name", choices=["judge"])
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="median of N (default 3)")
    arguments = parser.parse_args()
    server.configure(server.state_home())  # before prefect is imported
    bench = importlib.import_module(f"tests.benchmarks.{arguments.name}_bench")
    sys.exit(0 if bench.run(max(arguments.repeats, 1)) else 1)
