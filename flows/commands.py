"""What each command does: one function each, given the parsed arguments and the state folder, returning the exit code.

Results go to stdout, everything else to stderr. Prefect is imported inside `server.prefect_api`, after its settings.
"""

from __future__ import annotations

import argparse
import contextlib
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

JSON_FIELDS = (  # of a run, in the order that they are printed
    *("status", "reason", "val_bpb", "claimed_bpb", "audit_gap", "seconds", "cpu_seconds", "tokens", "startup_seconds"),
    *("isolation", "metric_version", "profile", "seed"),
)


def night(arguments: argparse.Namespace, home: Path) -> int:
    configs.load(arguments.profile)  # what is wrong with it is said before a server starts
    with server.prefect_api(home):
        from flows.nightly_research import nightly_research

        tag = nightly_research(
            tag=arguments.tag,
            profile=arguments.profile,
            trials=arguments.trials,
            hours=arguments.hours,
            proposer=arguments.proposer,
            patches=arguments.patches and str(Path(arguments.patches).resolve()),
            seed=arguments.seed,
            allow_unsandboxed=arguments.allow_unsandboxed,
        )
    return _print_night(home, tag, as_json=arguments.json)


def resume(arguments: argparse.Namespace, home: Path) -> int:
    _night_folder(home, arguments.tag)
    with server.prefect_api(home):
        from flows.nightly_research import resume_night

        resume_night(arguments.tag)
    return _print_night(home, arguments.tag, as_json=False)


def trial(arguments: argparse.Namespace, home: Path) -> int:
    source, profile = _read_candidate(arguments.file), configs.load(arguments.profile)
    with server.prefect_api(home):
        from flows.single_run import single_run

        run = single_run(source, profile, arguments.seed, arguments.allow_unsandboxed)
    if arguments.json:
        print(json.dumps({name: getattr(run, name) for name in JSON_FIELDS}))
    else:
        score = "no score" if run.val_bpb is None else f"val_bpb {run.val_bpb:.6f}"
        seconds = "" if run.seconds is None else f", trained {run.seconds:.1f} s"
        print(f"{run.status}: {run.reason}\n{score}, seed {run.seed}{seconds}, isolation {run.isolation}")
    if run.status != "ok":
        print(run.log[-4000:], file=sys.stderr)
        if run.judge_log:
            print(f"--- the scoring boxes, which have seen validation text:\n{run.judge_log[-4000:]}", file=sys.stderr)
    return 0 if run.status == "ok" else 3


def replay(arguments: argparse.Namespace, home: Path) -> int:
    from tasks import champion

    source, profile = champion.source_at(server.ROOT, arguments.commit), configs.load(arguments.profile)
    trailers = champion.trailers(server.ROOT, arguments.commit)
    seeds = [int(seed) for seed in trailers.get("Seeds", "").split() if seed.isdigit()]
    if not seeds:
        raise UsageError(f"{arguments.commit} is no candidate of a night: its message has no trailer Seeds with a run")
    scores = []
    with server.prefect_api(home):
        from flows.single_run import single_run

        for seed in seeds:
            run = single_run(source, profile, seed, arguments.allow_unsandboxed)
            if run.val_bpb is None:
                print(f"seed {seed}: {run.status}: {run.reason}")
                return 3
            scores.append(run.val_bpb)
            print(f"seed {seed}: {run.val_bpb:.6f}", file=sys.stderr)
    print(f"recorded {trailers['Val-Bpb']}, replayed {sum(scores) / len(scores):.6f} over seeds {' '.join(map(str, seeds))}")
    return 0


def status(arguments: argparse.Namespace, home: Path) -> int:
    from tasks import ledger

    folder = _night_folder(home, arguments.tag)
    state, found = ledger.fold(ledger.read(folder / "ledger.jsonl")), _night_object(folder)
    if arguments.json:
        print(json.dumps({**found, "in_flight": state.in_flight, "finished": state.finished, "updated": state.updated}))
        return 0
    end = state.finished or "not finished: running, or interrupted and waiting for ./run resume"
    print(f"night {found['tag']}: {len(found['trials'])} trials done; {end}")
    print(f"baseline {found['baseline']}, champion {found['champion']} ({state.champion})")
    return 0


def stop(arguments: argparse.Namespace, home: Path) -> int:
    (_night_folder(home, arguments.tag) / "stop").touch()
    print(f"night {arguments.tag} ends after its current trial")
    return 0


def report(arguments: argparse.Namespace, home: Path) -> int:
    from tasks import chart, ledger, report

    folder = _night_folder(home, arguments.tag)
    state = ledger.fold(ledger.read(folder / "ledger.jsonl"))
    report.write(state, folder)
    chart.draw(state, folder / "progress.png")
    return _print_night(home, arguments.tag, as_json=False)


def prepare(arguments: argparse.Namespace, home: Path) -> int:
    profile = configs.load(arguments.profile)
    with server.prefect_api(home):
        from flows.preparation import prepare

        dataset = prepare(profile)
    print(f"prepared {profile.name}: {dataset.public.removesuffix('/public')}")
    return 0


def doctor(arguments: argparse.Namespace, home: Path) -> int:
    from flows import doctor

    return doctor.run(home, configs.load(arguments.profile))


def serve(arguments: argparse.Namespace, home: Path) -> int:
    if url := server.running_server(home):
        raise UsageError(f"a server of {home} is running already: {url}")
    api_port, mlflow_port = server.free_port(4200), server.free_port(5000)
    api, mlflow = f"http://127.0.0.1:{api_port}/api", f"http://127.0.0.1:{mlflow_port}"
    children = [server.start_prefect(api_port, ui=True), server.start_mlflow(mlflow_port, home)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.await_prefect(api, children[0])
        (home / "server.json").write_text(json.dumps({"prefect": api, "mlflow": mlflow}))
        pages = server.mlflow_pages(mlflow, children[1]) or [mlflow]
        print(
            f"Prefect  {api.removesuffix('/api')}", *(f"MLflow   {page}" for page in pages), "", "For a plain shell:", sep="\n"
        )
        for name, value in (("PREFECT_API_URL", api), ("PREFECT_HOME", os.environ["PREFECT_HOME"]), ("NIGHTLY_HOME", home)):
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
    for template in sorted((server.ROOT / "deployments").glob("pool-*.json")):
        pool = template.stem.removeprefix("pool-")
        made = ["work-pool", "create", pool, "--type", "process", "--base-job-template", str(template), "--overwrite"]
        if code := _run_prefect(*made):
            return code
    return _run_prefect("deploy", "--all", "--no-prompt")


def worker(arguments: argparse.Namespace, home: Path) -> int:
    _need_server(home)
    os.environ["NIGHTLY_CHECKOUT"] = str(server.ROOT)
    os.chdir(server.ROOT)
    argv = [sys.executable, "-m", "prefect", "worker", "start", "--pool", arguments.pool, "--limit", "1"]
    os.execv(sys.executable, argv)


def prefect(arguments: argparse.Namespace, home: Path) -> int:
    if url := server.running_server(home):
        os.environ.setdefault("PREFECT_API_URL", url)
    return _run_prefect(*arguments.arguments)


def _read_candidate(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"candidate {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"candidate {path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _night_folder(home: Path, tag: str) -> Path:
    folder = home / "nights" / tag
    if not (folder / "ledger.jsonl").is_file():
        known = sorted(path.parent.name for path in (home / "nights").glob("*/ledger.jsonl"))
        raise UsageError(f"no night {tag!r} in {home}; there are: {', '.join(known) or 'none yet'}")
    return folder


def _print_night(home: Path, tag: str, *, as_json: bool) -> int:
    folder = _night_folder(home, tag)
    print(json.dumps(_night_object(folder)) if as_json else (folder / "report.md").read_text(encoding="utf-8"))
    return 0


def _night_object(folder: Path) -> dict[str, Any]:
    """A night for programs; baseline and champion in bits per byte."""
    from tasks import ledger

    state = ledger.fold(ledger.read(folder / "ledger.jsonl"))
    fields = ("status", "verdict", "reason", "val_bpb", "commit")
    return {
        "tag": state.header["tag"],
        "baseline": state.baseline["val_bpb"] if state.baseline else None,
        "champion": state.champion_bpb,
        "trials": [{"k": done.number, **{name: getattr(done, name) for name in fields}} for done in state.trials],
    }


def _need_server(home: Path) -> None:
    url = os.environ.get("PREFECT_API_URL") or server.running_server(home)
    if url is None:
        raise UsageError("no Prefect server: start `./run server` in another shell, or set PREFECT_API_URL")
    os.environ["PREFECT_API_URL"] = url


def _run_prefect(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "prefect", *arguments], cwd=server.ROOT).returncode
