"""The commands around nights: the servers, the deployments, the workers, and Prefect's own command line."""

from __future__ import annotations

import argparse
import contextlib
import os
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
        raise UsageError(f"a server of {home} is running already: {url}")
    api_port, mlflow_port = server.free_port(4200), server.free_port(5000)
    api, mlflow = f"http://127.0.0.1:{api_port}/api", f"http://127.0.0.1:{mlflow_port}"
    mlflow_client.make_if_missing(state_home.mlflow_uri(home))
    children = [server.start_prefect(api_port, ui=True), server.start_mlflow(mlflow_port, home)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.await_prefect(api, children[0])
        server.tell_where(home, prefect=api, mlflow=mlflow)
        pages = server.mlflow_pages(mlflow, children[1]) or [mlflow]
        print(
            f"Prefect  {api.removesuffix('/api')}",
            *(f"MLflow   {page}" for page in pages),
            "",
            "For a plain shell:",
            sep="\n",
        )
        for name, value in (
            ("PREFECT_API_URL", api),
            ("PREFECT_HOME", os.environ["PREFECT_HOME"]),
            ("NIGHTLY_HOME", home),
        ):
            print(f"export {name}={value}")
        print(f"export PATH={Path(sys.executable).parent}:$PATH\n\nCtrl-C ends both.", flush=True)
        while all(child.poll() is None for child in children):
            with contextlib.suppress(subprocess.TimeoutExpired):
                children[0].wait(timeout=1)
        raise NightlyError("one of the two servers ended by itself; its message is above")
    except KeyboardInterrupt:
        return 0
    finally:
        (home / "server.json").unlink(missing_ok=True)
        for child in children:
            server.end(child)


def deploy(arguments: argparse.Namespace, home: Path) -> int:
    _need_server(home)
    for template in sorted((state_home.ROOT / "deployments").glob("pool-*.json")):
        pool = template.stem.removeprefix("pool-")
        made = [
            "work-pool",
            "create",
            pool,
            "--type",
            "process",
            "--base-job-template",
            str(template),
            "--overwrite",
        ]
        if code := _run_prefect(*made):
            return code
    from flows.command_line import automations  # now that Prefect's settings are there

    with automations.kept_on() as told:
        code = _run_prefect("deploy", "--all", "--no-prompt")
    for line in told:
        print(f"schedule of {line}")
    if not code:
        print("automations:", ", ".join(automations.register()))
    return code


def worker(arguments: argparse.Namespace, home: Path) -> int:
    _need_server(home)
    os.environ["NIGHTLY_CHECKOUT"] = str(state_home.ROOT)
    os.chdir(state_home.ROOT)
    # One night at a time is the deployments' concurrency limit. A worker with no place for a second flow run would not ask
    # for it: a second start would wait until the first night is over, instead of being refused.
    argv = [
        sys.executable,
        "-m",
        "prefect",
        "worker",
        "start",
        "--pool",
        arguments.pool,
        "--limit",
        "2",
    ]
    os.execv(sys.executable, argv)


def prefect(arguments: argparse.Namespace, home: Path) -> int:
    if url := server.running_server(home):
        os.environ.setdefault("PREFECT_API_URL", url)
    return _run_prefect(*arguments.arguments)


def _need_server(home: Path) -> None:
    url = os.environ.get("PREFECT_API_URL") or server.running_server(home)
    if url is None:
        raise UsageError(
            "no Prefect server: start `./run server` in another shell, or set PREFECT_API_URL"
        )
    os.environ["PREFECT_API_URL"] = url


def _run_prefect(*arguments: str) -> int:
    return subprocess.run(
        [sys.executable, "-m", "prefect", *arguments], cwd=state_home.ROOT
    ).returncode
