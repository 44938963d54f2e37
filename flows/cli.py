"""The command line. Parses, sets the stage (state folder, Prefect API) and calls the flows; errors end in one plain line.

Exit codes: 0 ok, 1 our failure, 2 usage, 3 the candidate was stopped, 130 interrupted. Heavy imports happen inside the
commands, so that --help answers at once.
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

PROPOSERS = ("tpe", "llm", "mixed", "command", "replay")


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        home = server.state_home()
        server.configure(home)
        return int(arguments.command(arguments, home))
    except (NightlyError, configs.ProfileError) as error:
        print(f"nightly-research: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, NightlyError) else UsageError.exit_code
    except KeyboardInterrupt:
        print("nightly-research: interrupted; nothing that was decided is lost", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: `| head`
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./run", description="A research night: propose, train, judge, keep or discard.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        return sub

    profile: dict[str, Any] = {"default": "laptop", "metavar": "P", "help": f"a profile: {', '.join(configs.names())}, or a .toml file"}
    unsandboxed: dict[str, Any] = {"action": "store_true", "help": "run candidates WITHOUT a box, with your rights; every trial says so"}
    sub = command("night", _night, "Runs a whole night: data, tokenizer, baseline, trials, report.")
    sub.add_argument("--profile", **profile)
    sub.add_argument("--tag", help="the night's name and its branch autoresearch/TAG (default: today, as in nov21)")
    sub.add_argument("--trials", type=_positive(int), metavar="N", help="end after N trials (default: the profile's)")
    sub.add_argument("--hours", type=_positive(float), metavar="H", help="start no trial after H hours")
    sub.add_argument("--proposer", choices=PROPOSERS, help="who proposes (default: the profile's)")
    sub.add_argument("--patches", metavar="DIR", help="replay: the folder of patches")
    sub.add_argument("--seed", type=int, default=1, metavar="N", help="first seed of every candidate, and the proposer's (default 1)")
    sub.add_argument("--json", action="store_true", help="print one JSON object instead of the report")
    sub.add_argument("--allow-unsandboxed", **unsandboxed)

    sub = command("trial", _trial, "Runs one train.py through box and judge: no ledger, no champion.")
    sub.add_argument("file", type=Path, help="the candidate: any path")
    sub.add_argument("--profile", **profile)
    sub.add_argument("--seed", type=int, default=1, metavar="N", help="the run's seed (default 1)")
    sub.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    sub.add_argument("--allow-unsandboxed", **unsandboxed)

    sub = command("resume", _resume, "Goes on with a night that was interrupted, at the trial where it stopped.")
    sub.add_argument("tag")
    sub = command("status", _status, "Says where a night is.")
    sub.add_argument("tag")
    sub.add_argument("--json", action="store_true")
    command("stop", _stop, "Ends a night after its current trial.").add_argument("tag")
    command("report", _report, "Writes a night's report again, from its ledger, and prints it.").add_argument("tag")
    sub = command("replay", _replay, "Earns the score of a kept commit again, with the seeds that it recorded.")
    sub.add_argument("commit")
    sub.add_argument("--profile", **profile)
    sub.add_argument("--allow-unsandboxed", **unsandboxed)
    command("prepare", _prepare, "Fetches and prepares a profile's data.").add_argument("--profile", **profile)
    command("doctor", _doctor, "Looks at this machine and says what would fail, and the remedy.").add_argument("--profile", **profile)
    command("server", _server, "Starts the Prefect and MLflow pages and keeps them up until Ctrl-C.")
    command("deploy", _deploy, "Makes the work pools and the deployments of prefect.yaml.")
    command("worker", _worker, "Runs a worker for a pool: one night, or one GPU, at a time.").add_argument("pool")
    sub = command("prefect", _prefect, "Runs prefect's own command line with this project's settings.")
    sub.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser


def _positive(kind: type) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if value <= 0:
            raise ValueError
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def _night(arguments: argparse.Namespace, home: Path) -> int:
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


def _resume(arguments: argparse.Namespace, home: Path) -> int:
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


def _trial(arguments: argparse.Namespace, home: Path) -> int:
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


def _status(arguments: argparse.Namespace, home: Path) -> int:
    found = _night_object(_night_folder(home, arguments.tag))
    if arguments.json:
        print(json.dumps(found))
        return 0
    done = f"finished: {found['finished']}" if found["finished"] else "not finished"
    print(f"night {found['tag']}: {len(found['trials'])} trials, {done}\nbaseline {found['baseline']}, champion {found['champion']}")
    return 0


def _stop(arguments: argparse.Namespace, home: Path) -> int:
    (_night_folder(home, arguments.tag) / "stop").touch()
    print(f"night {arguments.tag} ends after its current trial")
    return 0


def _report(arguments: argparse.Namespace, home: Path) -> int:
    from tasks import ledger, report

    folder = _night_folder(home, arguments.tag)
    report.write(ledger.fold(ledger.read(folder / "ledger.jsonl")), folder)
    return _print_night(home, arguments.tag, as_json=False)


def _replay(arguments: argparse.Namespace, home: Path) -> int:
    raise NotImplementedError


def _prepare(arguments: argparse.Namespace, home: Path) -> int:
    configs.load(arguments.profile)
    with server.prefect_api(home):
        from flows.preparation import prepare

        dataset = prepare(arguments.profile)
    print(json.dumps(dataclasses.asdict(dataset), indent=1))
    return 0


def _doctor(arguments: argparse.Namespace, home: Path) -> int:
    from flows import doctor

    return doctor.run(home, configs.load(arguments.profile))


def _server(arguments: argparse.Namespace, home: Path) -> int:
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


def _deploy(arguments: argparse.Namespace, home: Path) -> int:
    _needs_server(home)
    for template in sorted((server.ROOT / "deployments").glob("pool-*.json")):
        pool = template.stem.removeprefix("pool-")
        code = _run_prefect("work-pool", "create", pool, "--type", "process", "--base-job-template", str(template), "--overwrite")
        if code:
            return code
    return _run_prefect("deploy", "--all", "--no-prompt")


def _worker(arguments: argparse.Namespace, home: Path) -> int:
    _needs_server(home)
    os.chdir(server.ROOT)
    os.execv(sys.executable, [sys.executable, "-m", "prefect", "worker", "start", "--pool", arguments.pool, "--limit", "1"])


def _prefect(arguments: argparse.Namespace, home: Path) -> int:
    if url := server.running_server(home):
        os.environ.setdefault("PREFECT_API_URL", url)
    return _run_prefect(*arguments.arguments)


if __name__ == "__main__":
    sys.exit(main())
