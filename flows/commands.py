"""What each command does: one function each, given the parsed arguments and the state folder, returning the exit code.

Results go to stdout, everything else to stderr. Prefect is imported inside `server.prefect_api`, after its settings.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import configs
from flows import server
from tasks.records import NightlyError, UsageError


def night(arguments: argparse.Namespace, home: Path) -> int:
    with server.prefect_api(home):
        from flows.nightly_research import nightly_research

        tag = nightly_research(
            tag=arguments.tag,
            profile=arguments.profile,
            trials=arguments.trials,
            hours=arguments.hours,
            proposer=arguments.proposer,
            patches=arguments.patches,
            seed=arguments.seed,
            allow_unsandboxed=arguments.allow_unsandboxed,
        )
    return _print_night(home, tag, as_json=arguments.json)


def resume(arguments: argparse.Namespace, home: Path) -> int:
    with server.prefect_api(home):
        from flows.nightly_research import resume_night

        tag = resume_night(arguments.tag)
    return _print_night(home, tag, as_json=False)


def _print_night(home: Path, tag: str, *, as_json: bool) -> int:
    folder = _night_folder(home, tag)
    if as_json:
        print(json.dumps(_night_object(folder)))
    else:
        print((folder / "report.md").read_text(encoding="utf-8"))
    return 0


def _night_folder(home: Path, tag: str) -> Path:
    folder = home / "nights" / tag
    if not (folder / "ledger.jsonl").is_file():
        known = sorted(path.parent.name for path in (home / "nights").glob("*/ledger.jsonl"))
        raise UsageError(f"no night {tag!r} in {home}; there are: {', '.join(known) or 'none yet'}")
    return folder


def _night_object(folder: Path) -> dict[str, Any]:
    from tasks import ledger

    state = ledger.fold(ledger.read(folder / "ledger.jsonl"))
    trials = [
        {"k": t.number, "status": t.status, "verdict": t.verdict, "reason": t.reason, "val_bpb": t.val_bpb, "commit": t.commit}
        for t in state.trials
    ]
    baseline = state.baseline["val_bpb"] if state.baseline else None
    champion = {"commit": state.champion, "val_bpb": state.champion_bpb}
    return {"tag": state.header["tag"], "baseline": baseline, "champion": champion, "trials": trials, "finished": state.finished}


def trial(arguments: argparse.Namespace, home: Path) -> int:
    profile = configs.load(arguments.profile)
    with server.prefect_api(home):
        from flows.preparation import prepare
        from flows.single_run import run_file

        dataset = prepare(profile.name if not arguments.profile.endswith(".toml") else arguments.profile)
        run = run_file(arguments.file, profile, dataset, home, seed=arguments.seed, allow_unsandboxed=arguments.allow_unsandboxed)
    if arguments.json:
        print(json.dumps({key: value for key, value in run.summary().items() if key != "peak_memory_bytes"}))
    else:
        score = "no score" if run.val_bpb is None else f"val_bpb {run.val_bpb:.6f}"
        print(f"{run.status}: {run.reason}\n{score}, seed {run.seed}, {run.seconds or 0:.1f} s, isolation {run.isolation}")
    if run.status != "ok":
        print(run.log[-4000:], file=sys.stderr)
    return 0 if run.status == "ok" else 3


def status(arguments: argparse.Namespace, home: Path) -> int:
    found = _night_object(_night_folder(home, arguments.tag))
    if arguments.json:
        print(json.dumps(found))
        return 0
    done = f"finished: {found['finished']}" if found["finished"] else "not finished"
    print(f"night {found['tag']}: {len(found['trials'])} trials, {done}\nbaseline {found['baseline']}, champion {found['champion']}")
    return 0


def stop(arguments: argparse.Namespace, home: Path) -> int:
    (_night_folder(home, arguments.tag) / "stop").touch()
    print(f"night {arguments.tag} ends after its current trial")
    return 0


def report(arguments: argparse.Namespace, home: Path) -> int:
    from tasks import ledger, report

    folder = _night_folder(home, arguments.tag)
    report.write(ledger.fold(ledger.read(folder / "ledger.jsonl")), folder)
    return _print_night(home, arguments.tag, as_json=False)


def replay(arguments: argparse.Namespace, home: Path) -> int:
    raise NotImplementedError


def prepare(arguments: argparse.Namespace, home: Path) -> int:
    configs.load(arguments.profile)
    with server.prefect_api(home):
        from flows.preparation import prepare

        dataset = prepare(arguments.profile)
    print(json.dumps(dataclasses.asdict(dataset), indent=1))
    return 0


def doctor(arguments: argparse.Namespace, home: Path) -> int:
    from flows import doctor

    return doctor.run(home, configs.load(arguments.profile))


def server(arguments: argparse.Namespace, home: Path) -> int:
    if url := server.running_server(home):
        raise UsageError(f"a server of {home} is running already: {url}")
    api_port, mlflow_port = server.free_port(4200), server.free_port(5000)
    api, mlflow = f"http://127.0.0.1:{api_port}/api", f"http://127.0.0.1:{mlflow_port}"
    children = [server.start_prefect(api_port, ui=True), server.start_mlflow(mlflow_port, home)]
    try:
        server.await_prefect(api, children[0])
        (home / "server.json").write_text(json.dumps({"prefect": api, "mlflow": mlflow}))
        print(f"Prefect  {api.removesuffix('/api')}\nMLflow   {mlflow}\n\nIn a plain shell:\nexport PREFECT_API_URL={api}", flush=True)
        print(f"export PREFECT_HOME={os.environ['PREFECT_HOME']}\nexport NIGHTLY_HOME={home}", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
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


def _needs_server(home: Path) -> None:
    if "PREFECT_API_URL" in os.environ:
        return
    url = server.running_server(home)
    if url is None:
        raise UsageError("no Prefect server: start `./run server` in another shell, or set PREFECT_API_URL")
    os.environ["PREFECT_API_URL"] = url


def _run_prefect(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "prefect", *arguments], cwd=server.ROOT).returncode


def deploy(arguments: argparse.Namespace, home: Path) -> int:
    _needs_server(home)
    for template in sorted((server.ROOT / "deployments").glob("pool-*.json")):
        pool = template.stem.removeprefix("pool-")
        code = _run_prefect("work-pool", "create", pool, "--type", "process", "--base-job-template", str(template), "--overwrite")
        if code:
            return code
    return _run_prefect("deploy", "--all", "--no-prompt")


def worker(arguments: argparse.Namespace, home: Path) -> int:
    _needs_server(home)
    os.chdir(server.ROOT)
    os.execv(sys.executable, [sys.executable, "-m", "prefect", "worker", "start", "--pool", arguments.pool, "--limit", "1"])


def prefect(arguments: argparse.Namespace, home: Path) -> int:
    if url := server.running_server(home):
        os.environ.setdefault("PREFECT_API_URL", url)
    return _run_prefect(*arguments.arguments)
