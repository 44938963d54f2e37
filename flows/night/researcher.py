"""The night's proposer: made from its header, and told about the machine and the data."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from prefect import get_run_logger

import configs
from flows import state_home
from flows.night import measured_facts, studies
from flows.night.desk import NightDesk
from flows.night.session import Session
from tasks.errors import NightlyError, UsageError
from tasks.files import FileRef
from tasks.history import night_folder, notebook
from tasks.history.growth import Size
from tasks.history.llm_calls import CallLog
from tasks.proposers import digest, llm, past_nights, proposal
from tasks.proposers.chat import Endpoint
from tasks.proposers.command import CommandProposer
from tasks.proposers.llm import LlmProposer
from tasks.proposers.mixed import MixedProposer
from tasks.proposers.prompt import PROMPTS, Briefing
from tasks.proposers.questions import Desk, NoDesk
from tasks.proposers.replay import ReplayProposer
from tasks.proposers.tpe import TpeProposer
from tasks.records import Baseline, Bench, NightHeader, Program
from tasks.statuses import Outcome
from tasks.trial import hardware
from tasks.usage import Call

# What a person can do about a ping's outcome; other failures may pass.
REMEDIES: dict[Outcome, str] = {
    "unauthorized": "Check OPENAI_API_KEY",
    "bad_request": "Check OPENAI_BASE_URL (most end in /v1), --model and [llm] in the profile",
    "no_completion": "Check OPENAI_BASE_URL: most end in /v1",
    "context_overflow": "Lower [llm] max_tokens, or give the model a longer context",
}


def check(header: NightHeader) -> None:
    """Raises UsageError if this night cannot have its proposer here, before any work is done."""
    name, settings = header.proposer, header.settings
    if name not in configs.PROPOSERS:
        raise UsageError(f"unknown proposer {name!r}: choose one of {', '.join(configs.PROPOSERS)}")
    if header.notes_of and not header.is_researched:
        takers = [taker for taker, traits in configs.PROPOSERS.items() if traits.writes_code]
        raise UsageError(
            f"--notes {header.notes_of} is for the proposers {', '.join(takers)}; this night's is "
            f"{name}"
        )
    if configs.traits(name).asks_a_model:
        Endpoint.from_environment(settings.llm)
    elif name == "command":
        CommandProposer.check(settings.command)
    elif name == "replay":
        _replay(header)


def read_program(profile: configs.Profile) -> str:
    """The human's instructions. Raises UsageError if they cannot be read."""
    path = configs.FOLDER / Path(profile.night.program).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"program {path}: {reason}. [night] program in the profile names it, "
            "relative to configs/"
        ) from error
    if not text.strip():
        raise UsageError(f"program {path} is empty: it tells the researcher what to look for")
    return text


def program_of(header: NightHeader) -> Program | None:
    """Which program a night is given; None for proposers that read none.

    Raises UsageError if it cannot be read.
    """
    if not header.is_researched:
        return None
    prompts = b"".join(path.read_bytes() for path in sorted(PROMPTS.glob("*.md")))
    program = read_program(header.settings).encode()
    return Program(
        name=Path(header.settings.night.program).name,
        sha256=hashlib.sha256(program).hexdigest(),
        prompts_sha256=hashlib.sha256(prompts).hexdigest(),
    )


def keep_program(folder: Path, header: NightHeader) -> None:
    """Copies the program into the night's folder: edits made during a night affect the next one."""
    if header.program:
        FileRef.write(folder / night_folder.PROGRAM, read_program(header.settings).encode())


def read_notes(header: NightHeader) -> str | None:
    """The last notes of the night that this one continues; None if it continues none.

    Raises UsageError if there is no such night, or it left none.
    """
    return notebook.of_night(state_home.locate(), header.notes_of) if header.notes_of else None


def keep_notes(folder: Path, notes: str | None) -> None:
    """Copies them into the night's folder: a resumed night needs the other one no more."""
    if notes is not None:
        FileRef.write(folder / night_folder.NOTES, notes.encode("utf-8", "replace"))


def ping(header: NightHeader, *, unattended: bool = False) -> Call | None:
    """Asks the model for one word before anything is measured, so that a wrong key is reported now.

    None if the night has no model. Raises UsageError for what only a person can fix, unless the
    night starts `unattended`. All other failures are logged, as the night can do without the model.
    """
    if not configs.traits(header.proposer).asks_a_model:
        return None
    get_run_logger().info(f"night {header.tag}: asking the model for a word")
    call = llm.ping(Endpoint.from_environment(header.settings.llm))
    if call.outcome in REMEDIES and not unattended:
        raise UsageError(
            f"model {call.model!r} at {call.endpoint} refuses: {call.outcome}: {call.error}. "
            f"{REMEDIES[call.outcome]}"
        )
    if call.outcome in llm.NO_PATCH:
        get_run_logger().warning(
            f"the model answers, but without text ({call.outcome}: {call.error}); it is asked for "
            "proposals all the same"
        )
    elif call.outcome != "ok":
        get_run_logger().warning(
            f"the model does not answer ({call.outcome}: {call.error}); until it does, tpe proposes"
        )
    return call


def keep_ping(folder: Path, call: Call | None) -> None:
    """Appends the ping to the calls of the night in `folder`."""
    if call is not None:
        calls = CallLog(folder / night_folder.CALLS)
        calls.append(dataclasses.replace(call, id=calls.next_id(call.trial)))


def proposer_of(
    held: Session, bench: Bench, baseline: Baseline, calls: CallLog
) -> proposal.Proposer:
    """The night's proposer.

    Raises UsageError if it is not available with these settings and this environment.
    """
    header, profile = held.state.header, bench.profile
    if header.proposer == "replay":
        return _replay(header)
    tpe = TpeProposer(device=profile.device)
    if header.proposer == "tpe":
        return tpe
    earlier = past_nights.trials(
        held.folder.parent,
        but=header.tag,
        dataset=bench.dataset.fingerprint,
        hardware=baseline.hardware,
    )
    facts = facts_of(bench, baseline)
    notes = _kept(held, night_folder.NOTES) if header.notes_of else None
    program = _kept(held, night_folder.PROGRAM)
    briefing = Briefing(
        program, facts, earlier, profile.llm, profile.device, notes, search=profile.search
    )
    if header.proposer == "command":
        home, root = state_home.locate(), state_home.ROOT
        return CommandProposer(profile.command, home, root, briefing.brief, tpe)
    desk: Desk = NoDesk()
    if profile.search.asks:
        studies.allow(held.folder)
        desk = NightDesk(held.folder, bench, baseline, facts)
    endpoint = Endpoint.from_environment(profile.llm)
    researcher = LlmProposer(endpoint, briefing, calls, tpe, desk=desk)
    if header.proposer == "mixed":
        return MixedProposer(researcher, tpe, profile.llm.share)
    return researcher


def facts_of(bench: Bench, baseline: Baseline) -> dict[str, str]:
    """What a researcher is told about where its patches run."""
    profile, runs = bench.profile, baseline.runs
    seconds = sum(run.seconds or 0.0 for run in runs) / len(runs)
    tokens = sum(run.tokens or 0 for run in runs) / len(runs)
    vocab_sizes = ", ".join(map(str, profile.data.vocab_sizes))
    return {
        "hardware": hardware.describe(profile.device, profile.threads),
        "budget": _budget(profile.budget),
        "limits": _limits(bench),
        "data": f"tokenizers prepared: VOCAB_SIZE {vocab_sizes}",
        "training rows": _rows(bench),
        "baseline": f"val_bpb {baseline.val_bpb:.4f}, {len(runs)} seeds",
        "baseline's tokens": _length(profile.budget, tokens, seconds),
        f"baseline's training, seed {runs[0].seed}": digest.training(runs[0]),
        "memory": _memory(baseline, profile),
        "baseline's size": str(Size.of_runs(runs)),
        **measured_facts.measured_facts(bench, baseline),
    }


def _length(budget: configs.Budget, tokens: float, seconds: float) -> str:
    """How fast it was only where speed counts: elsewhere what else the machine does decides it."""
    if budget.kind == "flops":
        return f"{tokens:,.0f} tokens"
    return f"{tokens:,.0f} tokens in {seconds:.0f} s ({tokens / max(seconds, 1e-9):,.0f} tokens/s)"


def _rows(bench: Bench) -> str:
    packed = "; ".join(rows.describe() for rows in bench.dataset.rows)
    return f"{packed}. At any MAX_SEQ_LEN, only the end that does not fill a row is left out"


def _budget(budget: configs.Budget) -> str:
    if budget.kind == "seconds":
        return (
            f"{budget.amount:g} s of training by the judge's clock, to the checkpoint's last byte; "
            "start-up is free"
        )
    return f"{budget.amount:.4g} FLOPs of training, counted as tokens x flops_per_token"


def _limits(bench: Bench) -> str:
    caps, limits = bench.caps, bench.profile.limits
    training = ""
    if bench.profile.budget.kind == "flops":
        training = f"training {caps.cpu_seconds:.0f} CPU-seconds and {caps.wall_seconds:.0f} s, "
    return (
        f"start-up {caps.startup_seconds:.0f} s, {training}scoring {limits.eval_seconds:g} s, "
        f"checkpoint {limits.checkpoint_mib} MiB, {limits.tasks} processes and threads"
    )


def _memory(baseline: Baseline, profile: configs.Profile) -> str:
    peak = max(run.peak_memory_bytes or 0 for run in baseline.runs) / 2**30
    on_gpu = max(run.metrics.get("peak_vram_mb", 0.0) for run in baseline.runs) / 1024
    box = f"of the {profile.limits.memory_gib:g} GiB of host memory that a box has"
    gpu = f", and {on_gpu:.1f} GiB on the GPU" if on_gpu else ""
    return f"the baseline's peak is {peak:.1f} {box}{gpu}"


def _kept(held: Session, name: str) -> str:
    path = held.folder / name
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise NightlyError(
            f"{path}: {error.strerror}. Restore it from a backup, or start a new night"
        ) from error


def _replay(header: NightHeader) -> ReplayProposer:
    if not header.patches:
        raise UsageError(
            "proposer replay needs --patches DIR, a folder of patches, or --patches TAG, a night"
        )
    return ReplayProposer.of(configs.FOLDER / Path(header.patches).expanduser(), state_home.ROOT)
