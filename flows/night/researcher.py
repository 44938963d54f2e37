"""The night's proposer: made from its header, and told about the machine and the data."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
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
from tasks.search.tournament import Tournament
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
    for part in header.parts:
        _check(part)


def _check(header: NightHeader) -> None:
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


def with_programs(header: NightHeader) -> NightHeader:
    """The header of a new night, with its program or those of its contenders.

    Raises UsageError if one cannot be read.
    """
    contenders = tuple(
        dataclasses.replace(contender, program=program_of(header.of(contender)))
        for contender in header.contenders
    )
    program = None if contenders else program_of(header)
    return dataclasses.replace(header, program=program, contenders=contenders)


def keep_program(folder: Path, header: NightHeader) -> None:
    """Copies programs into the night's folder: edits made during a night affect the next one."""
    for file, part in _program_files(header):
        if part.program:
            FileRef.write(folder / file, read_program(part.settings).encode())


def read_notes(header: NightHeader) -> str | None:
    """The last notes of the night that this one continues; None if it continues none.

    Raises UsageError if there is no such night, or it left none.
    """
    return notebook.of_night(state_home.locate(), header.notes_of) if header.notes_of else None


def keep_notes(folder: Path, notes: str | None) -> None:
    """Copies them into the night's folder: a resumed night needs the other one no more."""
    if notes is not None:
        FileRef.write(folder / night_folder.NOTES, notes.encode("utf-8", "replace"))


def _program_files(header: NightHeader) -> list[tuple[str, NightHeader]]:
    """Each contender's header, or the night's, with the name of the file that has its program."""
    numbers = range(1, len(header.contenders) + 1) if header.contenders else (None,)
    return list(zip(map(night_folder.program_file, numbers), header.parts, strict=True))


def ping(header: NightHeader, *, unattended: bool = False) -> tuple[Call, ...]:
    """Asks every model for one word before anything is measured: a wrong key is reported now.

    Empty if the night has no model. Raises UsageError for what only a person can fix, unless the
    night starts `unattended`. All other failures are logged, as the night can do without the model.
    """
    asking = [part for part in header.parts if configs.traits(part.proposer).asks_a_model]
    each = {part.settings.llm.model: part for part in asking}.values()
    return tuple(_ping(part, unattended=unattended) for part in each)


def _ping(header: NightHeader, *, unattended: bool) -> Call:
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


def keep_pings(folder: Path, pings: Iterable[Call]) -> None:
    """Appends the pings to the calls of the night in `folder`."""
    for call in pings:
        calls = CallLog(folder / night_folder.CALLS)
        calls.append(dataclasses.replace(call, id=calls.next_id(call.trial)))


def proposer_of(
    held: Session, bench: Bench, baseline: Baseline, calls: CallLog
) -> proposal.Proposer:
    """The night's proposer.

    Raises UsageError if it is not available with these settings and this environment.
    """
    header = held.state.header
    made = [
        _proposer(part, held.folder / file, bench, baseline, calls)
        for file, part in _program_files(header)
    ]
    if not header.contenders:
        return made[0]
    names = [contender.name for contender in header.contenders]
    return Tournament(dict(zip(names, made, strict=True)), header.settings.search.machine_price)


def _proposer(
    header: NightHeader, program: Path, bench: Bench, baseline: Baseline, calls: CallLog
) -> proposal.Proposer:
    """The one of this header; its program is in that file of the night's folder."""
    profile = header.settings
    if header.proposer == "replay":
        return _replay(header)
    tpe = TpeProposer(device=profile.device)
    if header.proposer == "tpe":
        return tpe
    earlier = past_nights.trials(
        program.parent.parent,
        but=header.tag,
        dataset=bench.dataset.fingerprint,
        hardware=baseline.hardware,
    )
    facts = facts_of(bench, baseline)
    notes = _kept(program.parent / night_folder.NOTES) if header.notes_of else None
    briefing = Briefing(
        _kept(program), facts, earlier, profile.llm, profile.device, notes, search=profile.search
    )
    if header.proposer == "command":
        home, root = state_home.locate(), state_home.ROOT
        return CommandProposer(profile.command, home, root, briefing.brief, tpe)
    desk: Desk = NoDesk()
    if profile.search.asks:
        studies.allow(program.parent)
        desk = NightDesk(program.parent, bench, baseline, facts)
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


def _kept(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise NightlyError(
            f"{path}: {error.strerror}. Restore it from a backup, or start a new night"
        ) from error


def _replay(header: NightHeader) -> ReplayProposer:
    if not header.patches:
        raise UsageError(
            "proposer replay needs --patches DIR, a folder of patches, or --patches TAG, a night "
            "([night] patches in a profile)"
        )
    return ReplayProposer.of(configs.FOLDER / Path(header.patches).expanduser(), state_home.ROOT)
