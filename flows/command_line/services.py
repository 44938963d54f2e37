"""The commands around nights: servers, deployments, workers, and Prefect's own command line."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from flows import state_home
from flows.command_line import server
from tasks.errors import NightlyError, UsageError
from tasks.views import mlflow_client


def serve(arguments: argparse.Namespace, home: Path) -> int:
    if url := server.running_server(home):
        raise UsageError(f"the server of {home} is running already: {url}")
    api_port = server.free_port(4200)
    mlflow_port = server.free_port(5000)
    api = f"http://{server.LOCALHOST}:{api_port}/api"
    mlflow = f"http://{server.LOCALHOST}:{mlflow_port}"
    mlflow_client.make_if_missing(state_home.mlflow_uri(home))
    children = [server.start_prefect(api_port, ui=True), server.start_mlflow(mlflow_port, home)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.wait_for_prefect(api, children[0])
        server.write_address(home, prefect=api, mlflow=mlflow)
        _print_addresses(home, api, server.mlflow_pages(mlflow, children[1]) or [mlflow])
        while all(child.poll() is None for child in children):
            with contextlib.suppress(subprocess.TimeoutExpired):
                children[0].wait(timeout=1)
        raise NightlyError("one of the two servers has exited; its own message is above")
    except KeyboardInterrupt:
        return 0
    finally:
        (home / server.ADDRESS).unlink(missing_ok=True)
        for child in children:
            server.end(child)


def _print_addresses(home: Path, api: str, mlflow_pages: list[str]) -> None:
    pages = [f"MLflow   {page}" for page in mlflow_pages]
    print(f"Prefect  {api.removesuffix('/api')}", *pages, sep="\n")
    print("\nTo use them from a plain shell:")
    print(f"export PREFECT_API_URL={api}")
    print(f"export PREFECT_HOME={shlex.quote(os.environ['PREFECT_HOME'])}")
    print(f"export NIGHTLY_HOME={shlex.quote(str(home))}")
    print(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
    print("\nCtrl-C stops both servers.", flush=True)


def deploy(arguments: argparse.Namespace, home: Path) -> int:
    _require_server(home)
    for template in sorted((state_home.ROOT / "deployments").glob("pool-*.json")):
        pool = template.stem.removeprefix("pool-")
        options = ["--type", "process", "--base-job-template", str(template), "--overwrite"]
        if code := _run_prefect("work-pool", "create", pool, *options):
            return code
    from flows.command_line import automations  # imports Prefect, whose settings are set by now

    with automations.schedules_kept_on() as lines:
        code = _run_prefect("deploy", "--all", "--no-prompt")
    for line in lines:
        print(f"schedule of {line}")
    if not code:
        print("automations:", ", ".join(automations.register()))
    return code


def worker(arguments: argparse.Namespace, home: Path) -> int:
    _require_server(home)
    os.environ["NIGHTLY_CHECKOUT"] = str(state_home.ROOT)
    os.chdir(state_home.ROOT)
    # The deployments' concurrency limit allows one night at a time. A worker limited to one flow
    # run would not fetch a second start, which would then wait for the first night to end instead
    # of being refused.
    argv = ["-m", "prefect", "worker", "start", "--pool", arguments.pool, "--limit", "2"]
    os.execv(sys.executable, [sys.executable, *argv])


def prefect(arguments: argparse.Namespace, home: Path) -> int:
    if url := server.running_server(home):
        os.environ.setdefault("PREFECT_API_URL", url)
    return _run_prefect(*arguments.arguments)


def _require_server(home: Path) -> None:
    url = os.environ.get("PREFECT_API_URL") or server.running_server(home)
    if url is None:
        raise UsageError(
            "no Prefect server: start `./run server` in another shell, or set PREFECT_API_URL"
        )
    os.environ["PREFECT_API_URL"] = url


def _run_prefect(*arguments: str) -> int:
    argv = [sys.executable, "-m", "prefect", *arguments]
    return subprocess.run(argv, cwd=state_home.ROOT).returncode
