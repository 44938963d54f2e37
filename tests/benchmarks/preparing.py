"""One preparation in a process of its own, for data_bench: `python -m tests.benchmarks.preparing
WAY SHARD FOLDER`.

The last line of stdout is {"seconds", "peak_mib"}.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path


def main(way: str, shard: Path, folder: Path) -> None:
    if way in ("ours", "laptop"):
        os.environ["NIGHTLY_HOME"] = str(folder)
        from flows import state_home
        from flows.command_line import server

        state_home.configure(folder)
        from prefect import flow

        import configs
        from flows.preparation import prepare
        from tests.benchmarks import data_bench

        profile = data_bench.profile(shard.parent) if way == "ours" else configs.load("laptop")
        with server.prefect_api(folder):
            flow(state_home.locate)()  # waits for the server
            began = time.perf_counter()
            prepare(profile)
            seconds = time.perf_counter() - began
    else:
        from tests.benchmarks import data_bench, plain_data

        began = time.perf_counter()
        getattr(plain_data, way)(shard, data_bench.VOCAB_SIZE, data_bench.T, folder)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
