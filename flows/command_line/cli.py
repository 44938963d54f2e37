"""The command line. Parses, sets the stage (state folder, Prefect API) and calls the flows; errors end in one plain line.

Exit codes: 0 ok, 1 our failure, 2 usage, 3 the candidate was stopped, 130 interrupted, 141 its reader left
(`| head`), 143 SIGTERM. Heavy imports happen inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from pathlib import Path
from typing import Any

import configs
from flows import state_home
from flows.command_line import api_outage, commands, services
from tasks.errors import NightlyError, UsageError


def main(argv: list[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # a candidate's words may have letters that this terminal has not
    arguments = _parsed(sys.argv[1:] if argv is None else argv)
    try:
        home = state_home.locate()
        state_home.configure(home)
        return int(arguments.command(arguments, home))
    except (NightlyError, configs.ProfileError) as error:
        print(f"nightly-research: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, NightlyError) else UsageError.exit_code
    except KeyboardInterrupt as interrupt:
        print("nightly-research: interrupted; nothing that was decided is lost", file=sys.stderr)
        return 143 if str(interrupt) == "SIGTERM" else 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: `| head`
        return 141


def _parsed(argv: list[str]) -> argparse.Namespace:
    if argv[:1] == ["prefect"]:  # all that follows is Prefect's own, --help and --version too
        return argparse.Namespace(command=services.prefect, arguments=argv[1:])
    return _parser().parse_args(argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./run", description="A research night: propose, train, judge, keep or discard."
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        return sub

    profile: dict[str, Any] = {
        "default": "laptop",
        "metavar": "P",
        "type": _profile,
        "help": f"a profile: {', '.join(configs.names())}, or a .toml file",
    }
    tag: dict[str, Any] = {"metavar": "TAG", "help": "the night's name, as in nov21"}
    unsandboxed: dict[str, Any] = {
        "action": "store_true",
        "help": "run candidates WITHOUT a box, with your rights; every trial says so",
    }
    sub = command(
        "night", commands.night, "Runs a whole night: data, tokenizer, baseline, trials, report."
    )
    sub.add_argument("--profile", **profile)
    sub.add_argument(
        "--tag",
        help="the night's name and its branch autoresearch/TAG (default: today, as in nov21)",
    )
    sub.add_argument(
        "--trials",
        type=_positive(int),
        metavar="N",
        help="end after N trials (default, without --hours: the profile's)",
    )
    sub.add_argument(
        "--hours",
        type=_positive(float),
        metavar="H",
        help="end in time before H hours of work are over",
    )
    sub.add_argument(
        "--proposer", choices=configs.PROPOSERS, help="who proposes (default: the profile's)"
    )
    sub.add_argument(
        "--model", metavar="M", help="llm, mixed: the model, as OPENAI_BASE_URL's endpoint names it"
    )
    sub.add_argument(
        "--patches", metavar="DIR|TAG", help="replay: the folder of patches, or the tag of a night"
    )
    sub.add_argument(
        "--seed",
        type=int,
        default=1,
        metavar="N",
        help="first seed of every candidate, and the proposer's (default 1)",
    )
    sub.add_argument(
        "--json", action="store_true", help="print one JSON object instead of the report"
    )
    sub.add_argument("--allow-unsandboxed", **unsandboxed)

    text = "Runs one train.py through box and judge, the file as it is: a profile's [train] is not written into it."
    sub = command("trial", commands.trial, f"{text} No ledger, no champion.")
    sub.add_argument("file", type=Path, metavar="FILE", help="the candidate: any path")
    sub.add_argument("--profile", **profile)
    sub.add_argument("--seed", type=int, default=1, metavar="N", help="the run's seed (default 1)")
    sub.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else on stdout"
    )
    sub.add_argument("--allow-unsandboxed", **unsandboxed)

    sub = command("resume", commands.resume, "Goes on with a night, at the trial where it stopped.")
    sub.add_argument("tag", **tag)
    sub.add_argument(
        "--trials",
        type=_positive(int),
        metavar="N",
        help="from now on end after N trials, done ones included",
    )
    sub.add_argument(
        "--hours",
        type=_positive(float),
        metavar="H",
        help="from now on end in time before H hours of work",
    )
    sub.add_argument(
        "--json", action="store_true", help="print one JSON object instead of the report"
    )
    sub = command("status", commands.status, "Says where a night is.")
    sub.add_argument("tag", **tag)
    sub.add_argument(
        "--json", action="store_true", help="print one JSON object instead of the text"
    )
    command("stop", commands.stop, "Ends a night after its current trial.").add_argument(
        "tag", **tag
    )
    command(
        "report", commands.report, "Writes a night's report again, from its ledger, and prints it."
    ).add_argument("tag", **tag)
    sub = command(
        "compare",
        commands.compare,
        "Puts nights side by side: what each won, how sure that is, and what it cost.",
    )
    sub.add_argument("tags", nargs="+", metavar="TAG", help="two nights or more")
    sub.add_argument(
        "--json", action="store_true", help="print one JSON object instead of the table"
    )
    sub = command(
        "show",
        commands.show,
        "Tells one trial's story: its idea, patch, training, verdict and cost.",
    )
    sub.add_argument("tag", **tag)
    sub.add_argument("number", type=int, metavar="K", help="the trial's number; 0 is the baseline")
    sub.add_argument(
        "--json", action="store_true", help="print one JSON object instead of the story"
    )
    text = "Makes MLflow, results.tsv, the report and Prefect's pages of a night once more, from its ledger and git."
    command("rebuild", commands.rebuild, text).add_argument("tag", **tag)
    sub = command(
        "replay",
        commands.replay,
        "Earns the score of a kept commit again, with the seeds that it recorded.",
    )
    sub.add_argument(
        "commit", metavar="COMMIT", help="a commit of autoresearch/TAG, or of refs/trials/TAG/K"
    )
    sub.add_argument(
        "--profile", **{**profile, "help": f"the night's own {profile['help'].removeprefix('a ')}"}
    )
    sub.add_argument("--allow-unsandboxed", **unsandboxed)
    command("prepare", commands.prepare, "Fetches and prepares a profile's data.").add_argument(
        "--profile", **profile
    )
    command(
        "doctor", commands.doctor, "Looks at this machine and says what would fail, and the remedy."
    ).add_argument("--profile", **profile)
    command(
        "server",
        services.serve,
        "Starts the Prefect and MLflow pages and keeps them up until Ctrl-C.",
    )
    command("deploy", services.deploy, "Makes the work pools and the deployments of prefect.yaml.")
    sub = command("worker", services.worker, "Runs a worker for a pool: one night at a time.")
    sub.add_argument("pool", metavar="POOL", help="a pool that ./run deploy made: local or gpu")
    command(
        "prefect", services.prefect, "Runs prefect's own command line with this project's settings."
    )
    return parser


def _profile(name: str) -> str:
    """A path is relative to where the user is, and the night may be resumed or run from elsewhere."""
    return str(Path(name).expanduser().resolve()) if name.endswith(".toml") else name


def _positive(kind: type) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < math.inf:  # NaN is neither
            raise ValueError
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


if __name__ == "__main__":
    sys.exit(api_outage.leave(main()))
