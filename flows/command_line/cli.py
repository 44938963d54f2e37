"""The command line: parses, sets up the state folder and Prefect's settings, runs one command.

Exit codes: 0 ok, 1 our failure, 2 usage, 3 the candidate was stopped or its score not reproduced,
4 a replay on other hardware, 130 interrupted, 141 its reader closed the pipe (`| head`), 143
SIGTERM. An error ends in one plain line. Heavy imports happen inside the commands, so that --help
answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import configs
from flows import state_home
from flows.command_line import api_outage, commands, process_state, services
from tasks.errors import NightlyError, UsageError

Function = Callable[[argparse.Namespace, Path], int]
Add = Callable[[str, Function, str], argparse.ArgumentParser]


def main(argv: list[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A candidate may print characters that this terminal cannot show.
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = parse(sys.argv[1:] if argv is None else argv)
    try:
        process_state.settle()
        home = state_home.locate()
        state_home.configure(home)
        return int(arguments.command(arguments, home))
    except (NightlyError, configs.ProfileError) as error:
        print(f"nightly-research: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, NightlyError) else UsageError.exit_code
    except KeyboardInterrupt as interrupt:
        print("nightly-research: interrupted; every decision so far is on record", file=sys.stderr)
        return 143 if str(interrupt) == "SIGTERM" else 130
    except BrokenPipeError:
        # Python would complain at exit that it cannot flush stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments; `command` is the function to call. Exits with code 2 on a usage error."""
    if argv[:1] == ["prefect"]:  # everything after it is Prefect's, --help and --version too
        return argparse.Namespace(command=services.prefect, arguments=argv[1:])
    return parser().parse_args(argv)


def parser() -> argparse.ArgumentParser:
    """The parser of every command but `prefect`, whose arguments are Prefect's own."""
    made = argparse.ArgumentParser(
        prog="./run", description="A research night: propose, train, judge, keep or discard."
    )
    subparsers = made.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Function, text: str) -> argparse.ArgumentParser:
        command = subparsers.add_parser(name, help=text, description=text)
        command.set_defaults(command=function)
        return command

    _add_night(add)
    _add_tournament(add)
    _add_resume_and_stop(add)
    _add_certify(add)
    _add_results(add)
    _add_single_runs(add)
    _add_preparation(add)
    _add_services(add)
    return made


def _add_night(add: Add) -> None:
    night = add(
        "night",
        commands.night,
        "Run a whole night: data, tokenizer, baseline, trials, certification, report.",
    )
    _add_start(night)
    night.add_argument(
        "--proposer",
        choices=configs.PROPOSERS,
        help="what proposes the patches (default: the profile's)",
    )
    night.add_argument(
        "--model", metavar="M", help="llm, mixed: the model, by the name its endpoint uses"
    )
    night.add_argument(
        "--patches", metavar="DIR|TAG", help="replay: a folder of patches, or the tag of a night"
    )
    night.add_argument(
        "--notes",
        metavar="TAG",
        help="llm, mixed, command: begin with the last notes of that night's researcher",
    )


def _add_tournament(add: Add) -> None:
    tournament = add(
        "tournament",
        commands.tournament,
        "Let programs, models or proposers compete in one night: all build on one champion and see "
        "one record, and those that gain more for their cost get more trials. The report says "
        "which one is better, and how sure that is. Give one of the three lists.",
    )
    _add_start(tournament)
    for what, metavar, text in (
        ("programs", "A.md,B.md", "files with instructions, in place of configs/program.md"),
        ("models", "M1,M2", "models, by the names that their endpoint uses"),
        ("proposers", "P1,P2", f"of {', '.join(configs.PROPOSERS)}"),
    ):
        tournament.add_argument(
            f"--{what}", type=_list, default=(), metavar=metavar, help=f"two or more {text}"
        )
    tournament.add_argument(
        "--model", metavar="M", help="with --programs, --proposers: the model that they all ask"
    )


def _add_start(night: argparse.ArgumentParser) -> None:
    """What a night and a tournament begin with."""
    _add_profile(night)
    night.add_argument(
        "--tag",
        help="name of the night and its branch autoresearch/TAG (default: today, as in nov21)",
    )
    night.add_argument(
        "--trials",
        type=_positive_number,
        metavar="N",
        help="end after N trials (default without --hours: the profile's)",
    )
    night.add_argument("--hours", type=_hours, metavar="H", help="end within H hours of work")
    night.add_argument(
        "--seed",
        type=int,
        default=1,
        metavar="N",
        help="first training seed of every candidate, and the proposer's seed (default 1)",
    )
    _add_json(night, "the report")
    _add_unsandboxed(night)


def _add_resume_and_stop(add: Add) -> None:
    resume = add("resume", commands.resume, "Continue a night where it stopped or died.")
    _add_tag(resume)
    resume.add_argument(
        "--trials",
        type=_positive_number,
        metavar="N",
        help="a new limit: end after N trials, counting those already done",
    )
    resume.add_argument(
        "--hours",
        type=_hours,
        metavar="H",
        help="a new limit: end within H hours of work, counting those already used",
    )
    _add_json(resume, "the report")
    _add_tag(add("stop", commands.stop, "End a night after its current trial or run."))


def _add_certify(add: Add) -> None:
    certify = add(
        "certify",
        commands.certify,
        "Test which kept changes of a night help: take each out of the champion alone and compare "
        "fresh runs without it with fresh runs of the whole champion. Those that are shown to help "
        "become branch autoresearch/TAG-certified. Runs of earlier calls count.",
    )
    _add_tag(certify)
    certify.add_argument(
        "--runs",
        type=_positive_number,
        metavar="N",
        help="make at most N runs (default: 3 for each kept change, plus 6)",
    )
    certify.add_argument("--hours", type=_hours, metavar="H", help="end within H hours")
    _add_json(certify, "the table")


def _add_results(add: Add) -> None:
    status = add(
        "status", commands.status, "Show what a night is doing and what is left of its budgets."
    )
    status.add_argument(
        "tag", nargs="?", metavar="TAG", help="name of the night (default: a list of all nights)"
    )
    _add_json(status, "the text")
    _add_tag(
        add("report", commands.report, "Write a night's report again from its ledger and print it.")
    )
    compare = add(
        "compare",
        commands.compare,
        "Put nights side by side: what each won, how sure that is, what it cost.",
    )
    compare.add_argument("tags", nargs="+", metavar="TAG", help="two nights or more")
    _add_json(compare, "the table")
    show = add(
        "show", commands.show, "Show one trial: its idea, patch, training, verdict and cost."
    )
    _add_tag(show)
    show.add_argument("number", type=int, metavar="K", help="number of the trial; 0: the baseline")
    _add_json(show, "the text")
    _add_tag(
        add(
            "rebuild",
            commands.rebuild,
            "Rebuild a night's MLflow runs, results.tsv, report and Prefect pages "
            "from its ledger and git.",
        )
    )


def _add_single_runs(add: Add) -> None:
    trial = add(
        "trial",
        commands.trial,
        "Run one train.py, unchanged, through box, judge and audit: the profile's [train] is not "
        "written into it, and no ledger or champion changes. It has the limits of a night, which "
        "come from the baseline; that is measured first unless it is in the cache. "
        "Exit code: 0 if it was scored, 3 if stopped.",
    )
    trial.add_argument("file", type=Path, metavar="FILE", help="the candidate, at any path")
    _add_profile(trial)
    trial.add_argument("--seed", type=int, default=1, metavar="N", help="training seed (default 1)")
    trial.add_argument(
        "--no-baseline",
        action="store_true",
        help="measure no baseline: the limits on CPU time and scoring that follow from it are off",
    )
    _add_json(trial, "the text")
    _add_unsandboxed(trial)
    replay = add(
        "replay",
        commands.replay,
        "Measure a commit of a night again, with its recorded seeds, and say whether its score is "
        "reproduced. Exit code: 0 reproduced; 3 not reproduced, or a run was stopped; 4 hardware "
        "other than the recorded one, where scores are not compared.",
    )
    replay.add_argument(
        "commit", metavar="COMMIT", help="a commit of autoresearch/TAG or of refs/trials/TAG/K"
    )
    replay.add_argument(
        "--seeds",
        type=_positive_number,
        metavar="N",
        help="run N fresh seeds instead and test whether their mean agrees with the recorded score",
    )
    replay.add_argument(
        "--profile",
        metavar="P",
        type=_profile,
        help="needed only if the commit's night is not in the state folder (default: the night's)",
    )
    _add_json(replay, "the text")
    _add_unsandboxed(replay)


def _add_preparation(add: Add) -> None:
    _add_profile(add("prepare", commands.prepare, "Fetch, tokenize and pack a profile's data."))
    brief = add(
        "brief",
        commands.brief,
        "Print what a researcher is told about data, limits and baseline: for people who write "
        "patches. "
        "The baseline is measured first unless it is in the cache.",
    )
    _add_profile(brief)
    _add_json(brief, "the text")
    _add_unsandboxed(brief)
    _add_profile(
        add("doctor", commands.doctor, "Check what would fail on this machine; print the remedy.")
    )


def _add_services(add: Add) -> None:
    add(
        "server", services.serve, "Serve the Prefect and MLflow pages on this machine until Ctrl-C."
    )
    add(
        "deploy",
        services.deploy,
        "Register the work pools, deployments and automations with the Prefect server.",
    )
    worker = add("worker", services.worker, "Run a worker for a pool, one night at a time.")
    worker.add_argument("pool", metavar="POOL", help="a pool that ./run deploy made: local or gpu")
    schedule = add(
        "schedule",
        services.schedule,
        "Switch a deployment's schedule on or off. ./run deploy will not switch it back.",
    )
    schedule.add_argument("state", choices=("on", "off"), metavar="ON|OFF", help="on or off")
    schedule.add_argument(
        "name",
        nargs="?",
        default="nightly-research",
        metavar="NAME",
        help="a deployment of prefect.yaml (default: nightly-research)",
    )
    add("prefect", services.prefect, "Run Prefect's own command line on the same server.")


def _add_profile(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--profile",
        default="laptop",
        metavar="P",
        type=_profile,
        help=f"{', '.join(configs.names())}, or the path of a .toml file (default: laptop)",
    )


def _add_tag(command: argparse.ArgumentParser) -> None:
    command.add_argument("tag", metavar="TAG", help="name of the night, such as nov21")


def _add_json(command: argparse.ArgumentParser, instead_of: str) -> None:
    command.add_argument(
        "--json", action="store_true", help=f"print one JSON object instead of {instead_of}"
    )


def _add_unsandboxed(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--allow-unsandboxed",
        action="store_true",
        help="if no box works here, run candidates WITHOUT one, with your permissions; every "
        "trial's record says so",
    )


def _profile(name: str) -> str:
    """An absolute path: relative means relative to the user's folder, which a resume may not be."""
    return str(Path(name).expanduser().resolve()) if name.endswith(".toml") else name


def _positive_number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: should be a whole number, 1 or more")
    return int(text)


def _list(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r}: should be names with commas between them")
    return names


def _hours(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:  # excludes NaN too
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r}: should be a number above 0, such as 8 or 0.5")


if __name__ == "__main__":
    sys.exit(api_outage.end_process(main()))
