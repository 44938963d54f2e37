"""One function per command: takes the parsed arguments and the state folder, returns the exit code.

Results go to stdout, everything else to stderr. Prefect is imported inside `server.prefect_api`,
once its settings are in the environment.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from pathlib import Path

import configs
from flows import state_home
from flows.command_line import server
from tasks.errors import UsageError
from tasks.statuses import PHASES

LOG_CHARACTERS = 4000  # of a stopped candidate's log, from its end
JSON_FIELDS = (  # of a run, in the order in which they are printed
    "status",
    "reason",
    "val_bpb",
    "claimed_bpb",
    "audit_gap",
    "seconds",
    "cpu_seconds",
    "tokens",
    "startup_seconds",
    "isolation",
    "metric_version",
    "profile",
    "seed",
)


def night(arguments: argparse.Namespace, home: Path) -> int:
    _check_request(arguments, home)
    with server.prefect_api(home):
        from flows.night.night import Request
        from flows.night.night_views import PrefectUnreachable
        from flows.night.resume import choose_tag
        from flows.nightly_research import check, nightly_research

        request = Request(
            profile=arguments.profile,
            trials=arguments.trials,
            hours=arguments.hours,
            proposer=arguments.proposer,
            patches=arguments.patches and str(Path(arguments.patches).resolve()),
            seed=arguments.seed,
            allow_unsandboxed=arguments.allow_unsandboxed,
            model=arguments.model,
            notes=arguments.notes,
        )
        check(arguments.tag or choose_tag(request), request)
        asked = {name: value for name, value in vars(request).items() if name != "contenders"}
        try:
            tag = nightly_research(tag=arguments.tag, **asked)
        except PrefectUnreachable as over:
            tag = over.tag
    return _print_night(home, tag, as_json=arguments.json)


def tournament(arguments: argparse.Namespace, home: Path) -> int:
    from tasks.search import contenders

    lists = {name: getattr(arguments, name) for name in ("programs", "models", "proposers")}
    competing = contenders.of(configs.load(arguments.profile), lists, arguments.model)
    _check_request(arguments, home)
    with server.prefect_api(home):
        from flows.night.night import Request
        from flows.night.night_views import PrefectUnreachable
        from flows.night.resume import choose_tag
        from flows.nightly_research import check, tournament

        request = Request(
            profile=arguments.profile,
            trials=arguments.trials,
            hours=arguments.hours,
            proposer=None,
            patches=None,
            seed=arguments.seed,
            allow_unsandboxed=arguments.allow_unsandboxed,
            model=arguments.model,
            contenders=competing,
        )
        tag = arguments.tag or choose_tag(request)
        check(tag, request)
        with contextlib.suppress(PrefectUnreachable):
            tournament(tag, request)
    return _print_night(home, tag, as_json=arguments.json)


def _check_request(arguments: argparse.Namespace, home: Path) -> None:
    """Reports a bad profile, webhook, checkout or tag before a server starts."""
    from tasks.history import champion, ledger, night_folder
    from tasks.views import notification

    configs.load(arguments.profile)
    notification.check()
    root = champion.open_checkout(state_home.ROOT).root
    if arguments.tag and not ledger.exists(home / "nights" / arguments.tag / night_folder.LEDGER):
        champion.check_tag(root, arguments.tag)


def resume(arguments: argparse.Namespace, home: Path) -> int:
    from tasks.history import night_folder

    night_folder.find(home, arguments.tag)
    with server.prefect_api(home):
        from flows.night.night_views import PrefectUnreachable
        from flows.night.resume import request_of
        from flows.nightly_research import check, resume_night

        request = request_of(arguments.tag, arguments.trials, arguments.hours)
        check(arguments.tag, request, is_resume=True)
        with contextlib.suppress(PrefectUnreachable):
            resume_night(arguments.tag, arguments.trials, arguments.hours)
    return _print_night(home, arguments.tag, as_json=arguments.json)


def certify(arguments: argparse.Namespace, home: Path) -> int:
    from tasks.history import night_folder

    folder = night_folder.find(home, arguments.tag)
    state = night_folder.read_state(folder)
    is_keeping = state.pending is not None and state.pending.verdict == "keep"
    if state.keeps or is_keeping:
        with server.prefect_api(home):
            from flows.night.later_certification import certify_night, check
            from flows.night.night_views import PrefectUnreachable

            check(arguments.tag)
            with contextlib.suppress(PrefectUnreachable):
                certify_night(arguments.tag, arguments.runs, arguments.hours)
    return _print_certification(folder, as_json=arguments.json)


def _print_certification(folder: Path, *, as_json: bool) -> int:
    from tasks.history import night_folder
    from tasks.views import certificates

    state = night_folder.read_state(folder)
    print(json.dumps(certificates.as_json(state)) if as_json else certificates.text(state))
    return 0


def trial(arguments: argparse.Namespace, home: Path) -> int:
    source = _read_candidate(arguments.file)
    profile = configs.load(arguments.profile)
    if arguments.no_baseline:
        print(
            "--no-baseline: the limits that follow from the baseline are off, so nothing caps what "
            "this file spends on its training and scoring but the profile's [limits]",
            file=sys.stderr,
        )
    with server.prefect_api(home):
        from flows.single_run import check, single_run

        check(profile)
        run = single_run(
            source,
            profile,
            arguments.seed,
            arguments.allow_unsandboxed,
            baseline=not arguments.no_baseline,
        )
    if arguments.json:
        print(json.dumps({name: getattr(run, name) for name in JSON_FIELDS}))
    else:
        score = "no score" if run.val_bpb is None else f"val_bpb {run.val_bpb:.6f}"
        seconds = "" if run.seconds is None else f", trained {run.seconds:.1f} s"
        print(f"{run.status}: {run.reason}")
        print(f"{score}, seed {run.seed}{seconds}, isolation {run.isolation}")
    if run.status == "ok":
        return 0
    print(run.log[-LOG_CHARACTERS:], file=sys.stderr)
    if run.judge_log:
        print("--- log of the scoring boxes, which have seen validation text:", file=sys.stderr)
        print(run.judge_log[-LOG_CHARACTERS:], file=sys.stderr)
    return 3


def replay(arguments: argparse.Namespace, home: Path) -> int:
    from flows.command_line import recorded_score
    from flows.command_line.score_replay import EXIT_CODES, ScoreReplay

    recorded = recorded_score.find(state_home.ROOT, home, arguments.commit, arguments.profile)
    replayed = ScoreReplay.plan(recorded, arguments.seeds)
    with server.prefect_api(home):
        from flows.single_run import check, single_run

        check(recorded.profile)
        for seed in replayed.seeds:
            run = single_run(
                recorded.source,
                recorded.profile,
                seed,
                arguments.allow_unsandboxed,
                baseline=False,  # a night has limited it already
            )
            replayed = replayed.after(run)
            if run.val_bpb is None:
                break
            print(f"seed {seed}: {run.val_bpb:.6f}", file=sys.stderr)
    print(json.dumps(replayed.to_json()) if arguments.json else replayed.text())
    return EXIT_CODES[replayed.outcome]


def status(arguments: argparse.Namespace, home: Path) -> int:
    from tasks.history import night_folder
    from tasks.views import status

    if arguments.tag is None:
        return _list_nights(home, as_json=arguments.json)
    night = status.describe(night_folder.find(home, arguments.tag))
    print(json.dumps(dataclasses.asdict(night)) if arguments.json else status.text(night))
    return 0


def _list_nights(home: Path, *, as_json: bool) -> int:
    from tasks.history import night_folder
    from tasks.views import status

    nights, damaged = status.describe_all(night_folder.all_of(home))
    if as_json:
        found = [dataclasses.asdict(night) for night in nights]
        print(json.dumps({"nights": found, "damaged": damaged}))
    elif nights or damaged:
        print(status.listing(nights, damaged))
    else:
        print(f"no night yet in {home}: `./run night` starts one", file=sys.stderr)
    return 0


def stop(arguments: argparse.Namespace, home: Path) -> int:
    from flows.night import interruption
    from tasks.history import night_folder
    from tasks.views import status

    folder = night_folder.find(home, arguments.tag)
    night = status.describe(folder)
    if night.state != "running":
        more = " --trials N" if night.state == "finished" else ""
        raise UsageError(
            f"night {arguments.tag} is not running: it is {night.state}; "
            f"`./run resume {arguments.tag}{more}` resumes it"
        )
    interruption.request(folder, "./run stop")
    certifies = night.finished or (night.phase or "").startswith(tuple(PHASES.values()))
    print(f"night {arguments.tag} ends after its current {'run' if certifies else 'trial'}")
    return 0


def report(arguments: argparse.Namespace, home: Path) -> int:
    from tasks.history import night_folder
    from tasks.views import chart, report

    folder = night_folder.find(home, arguments.tag)
    state = night_folder.read_state(folder)
    report.write(state, folder)
    chart.draw(state, folder / report.PICTURE)
    return _print_night(home, arguments.tag, as_json=False)


def compare(arguments: argparse.Namespace, home: Path) -> int:
    from tasks.history import night_folder
    from tasks.views import comparison

    tags = list(dict.fromkeys(arguments.tags))
    if len(tags) < 2:
        raise UsageError(f"compare needs the tags of two nights or more, not only {tags[0]}")
    nights = [
        comparison.figures(night_folder.read_state(night_folder.find(home, tag))) for tag in tags
    ]
    if arguments.json:
        figures = [dataclasses.asdict(night) for night in nights]
        print(json.dumps({"nights": figures, "not_comparable": comparison.obstacles(nights)}))
    else:
        print(comparison.text(nights))
    return 0


def show(arguments: argparse.Namespace, home: Path) -> int:
    from tasks.history import night_folder
    from tasks.views import trial_story, trial_text

    folder = night_folder.find(home, arguments.tag)
    story = trial_story.describe(folder, state_home.ROOT, arguments.number)
    print(json.dumps(dataclasses.asdict(story)) if arguments.json else trial_text.text(story))
    return 0


def rebuild(arguments: argparse.Namespace, home: Path) -> int:
    from tasks.history import night_folder

    folder = night_folder.find(home, arguments.tag)
    with server.prefect_api(home):
        from flows.night import session
        from flows.nightly_research import rebuild_night

        session.check_free(folder)
        rebuild_night(arguments.tag)
    return _print_night(home, arguments.tag, as_json=False)


def prepare(arguments: argparse.Namespace, home: Path) -> int:
    profile = configs.load(arguments.profile)
    with server.prefect_api(home):
        from flows.preparation import prepare

        dataset = prepare(profile)
    print(f"prepared {profile.name}: {dataset.public.removesuffix('/public')}")
    return 0


def brief(arguments: argparse.Namespace, home: Path) -> int:
    profile = configs.load(arguments.profile)
    with server.prefect_api(home):
        from flows.night.brief import brief
        from flows.single_run import check

        check(profile)
        told = brief(profile, arguments.allow_unsandboxed)
    print(json.dumps(dataclasses.asdict(told)) if arguments.json else told.text())
    return 0


def doctor(arguments: argparse.Namespace, home: Path) -> int:
    from flows.command_line import doctor

    return doctor.run(home, configs.load(arguments.profile))


def _read_candidate(path: Path) -> str:
    """The file with its own line ends, which `read_text` would change, but no byte order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"candidate {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"candidate {path} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from error


def _print_night(home: Path, tag: str, *, as_json: bool) -> int:
    from tasks.history import night_folder
    from tasks.views import report, status

    folder = night_folder.find(home, tag)
    if as_json:
        results = status.results(night_folder.read_state(folder))
        print(json.dumps(dataclasses.asdict(results)))
    elif (path := folder / report.FILE).is_file():
        print(path.read_text(encoding="utf-8"))
    else:
        print(f"night {tag} has no report: `./run report {tag}` writes it", file=sys.stderr)
    return 0
