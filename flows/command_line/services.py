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
from typing import Any

import yaml

from flows import state_home
from flows.command_line import server
from tasks.errors import NightlyError, UsageError
from tasks.views import mlflow_client

FLOW = "nightly-research"


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
        while not any(child.has_exited() for child in children):
            with contextlib.suppress(subprocess.TimeoutExpired):
                children[0].wait(timeout=1)
        raise NightlyError("one of the two servers has exited; its own message is above")
    except KeyboardInterrupt:
        return 0
    finally:
        (home / server.ADDRESS).unlink(missing_ok=True)
        for child in children:
            child.end()


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
        if code := _run_quietly("work-pool", "create", pool, *options):
            return code
    from flows.command_line import automations, schedules  # they import Prefect: not before

    with schedules.kept_on() as lines:
        code = _run_quietly("deploy", "--all", "--no-prompt")
    if not code:
        for deployment in _deployments():
            pool = deployment["work_pool"]["name"]
            lines.append(f"deployment {deployment['name']}: `./run worker {pool}` runs its nights")
        lines.append(f"automations: {', '.join(automations.register())}")
    print(*lines, sep="\n")
    return code


def schedule(arguments: argparse.Namespace, home: Path) -> int:
    _require_server(home)
    from flows.command_line import schedules  # imports Prefect, whose settings are set by now

    name = arguments.name.removeprefix(f"{FLOW}/")
    switched = schedules.switch(f"{FLOW}/{name}", on=arguments.state == "on")
    print(*switched, sep="\n")
    return 0


def worker(arguments: argparse.Namespace, home: Path) -> int:
    _require_server(home)
    _require_pool(arguments.pool)
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
    return _run_prefect(*_with_flow(arguments.arguments))


def _with_flow(arguments: list[str]) -> list[str]:
    """Prefect's own command line, where the name of a deployment of ours may lack its flow."""
    if arguments[:1] != ["deployment"]:
        return arguments
    names = [deployment["name"] for deployment in _deployments()]
    for i, argument in enumerate(arguments[2:], start=2):
        if argument in names and not arguments[i - 1].startswith("-"):
            return [*arguments[:i], f"{FLOW}/{argument}", *arguments[i + 1 :]]
    return arguments


def _deployments() -> list[dict[str, Any]]:
    described = yaml.safe_load((state_home.ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    deployments: list[dict[str, Any]] = described["deployments"]
    return deployments


def _require_pool(pool: str) -> None:
    """Raises UsageError for a pool that the server lacks: Prefect would make one and wait there."""
    from prefect import get_client  # slow, and its settings must be set

    with get_client(sync_client=True) as client:
        known = sorted(found.name for found in client.read_work_pools())
    if pool not in known:
        others = f"there are: {', '.join(known)}" if known else "there are none yet"
        raise UsageError(
            f"there is no work pool {pool!r} on this server; {others}. "
            "`./run deploy` makes those of this project"
        )


def _require_server(home: Path) -> None:
    url = os.environ.get("PREFECT_API_URL") or server.running_server(home)
    if url is None:
        raise UsageError(
            "no Prefect server: start `./run server` in another shell, or set PREFECT_API_URL"
        )
    if not state_home.is_healthy(url):
        raise UsageError(
            f"PREFECT_API_URL = {url} does not answer: start that server, or unset the variable"
        )
    os.environ["PREFECT_API_URL"] = url


def _run_prefect(*arguments: str) -> int:
    argv = [sys.executable, "-m", "prefect", *arguments]
    return subprocess.run(argv, cwd=state_home.ROOT).returncode


def _run_quietly(*arguments: str) -> int:
    """The same without Prefect's hints, which name its own commands; all of it if that failed."""
    argv = [sys.executable, "-m", "prefect", *arguments]
    done = subprocess.run(
        argv, cwd=state_home.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr, end="")
    return done.returncode
