"""Who proposes in a night, made from its header: with what it is told of the place, and what it has spent so far."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import get_run_logger

import configs
from flows import state_home
from flows.night.session import Session
from tasks.errors import NightlyError, UsageError
from tasks.files import FileRef
from tasks.history import night_folder
from tasks.history.llm_calls import CallLog
from tasks.proposers import digest, llm, past_nights, proposal
from tasks.proposers.chat import Endpoint
from tasks.proposers.command import CommandProposer
from tasks.proposers.llm import LlmProposer
from tasks.proposers.mixed import MixedProposer
from tasks.proposers.prompt import PROMPTS, Briefing
from tasks.proposers.replay import ReplayProposer
from tasks.proposers.tpe import TpeProposer
from tasks.records import Baseline, Dataset
from tasks.trial import hardware, verdict
from tasks.trial.baseline import caps_after


def check(header: dict[str, Any]) -> None:
    """Raises UsageError for a proposer that this night cannot have here, before any work is done."""
    name = header["proposer"]
    if name not in configs.PROPOSERS:
        raise UsageError(f"unknown proposer {name!r}: choose one of {', '.join(configs.PROPOSERS)}")
    if name in configs.ASK_A_MODEL:
        Endpoint.from_environment(configs.Llm(**header["settings"]["llm"]))
    elif name == "command":
        CommandProposer.check(configs.Command(**header["settings"]["command"]))
    elif name == "replay":
        _replay(header)


def read_program(profile: configs.Profile) -> str:
    """The human's instructions. Raises UsageError where they cannot be read."""
    path = configs.FOLDER / Path(profile.night.program).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"program {path}: {reason}; [night] program in the profile names it, relative to configs/"
        ) from error
    if not text.strip():
        raise UsageError(f"program {path} is empty: it tells the researcher what to look for")
    return text


def program_facts(header: dict[str, Any]) -> dict[str, str] | None:
    """What a night records of its program, so that two programs can be compared; None for proposers that read none.

    Raises UsageError where it cannot be read.
    """
    if header["proposer"] not in configs.READ_CODE:
        return None
    settings = configs.Profile(**header["settings"])
    prompts = b"".join(path.read_bytes() for path in sorted(PROMPTS.glob("*.md")))
    return {
        "name": Path(settings.night.program).name,
        "sha256": hashlib.sha256(read_program(settings).encode()).hexdigest(),
        "prompts_sha256": hashlib.sha256(prompts).hexdigest(),
    }


def keep_program(folder: Path, header: dict[str, Any]) -> None:
    """The program as it is now into the night's folder: who edits the file meanwhile changes the next night."""
    if header["program"]:
        FileRef.write(
            folder / night_folder.PROGRAM,
            read_program(configs.Profile(**header["settings"])).encode(),
        )


def ping(held: Session, *, may_go_on: bool = False) -> None:
    """Asks the model for one word before anything is measured: a wrong key is said now and not found in the morning.

    Raises UsageError for what only a person can mend, unless the night `may_go_on` with nobody there; what may pass, and
    that, is logged, as the night can do without the model.
    """
    header = held.state.header
    if header["proposer"] not in configs.ASK_A_MODEL:
        return
    held.pulse.enter("asking the model for a word")
    settings = configs.Profile(**header["settings"]).llm
    endpoint, calls = Endpoint.from_environment(settings), CallLog(held.folder / night_folder.CALLS)
    call = llm.ping(endpoint, settings, calls)
    if call.outcome in ("unauthorized", "bad_request") and not may_go_on:
        raise UsageError(
            f"model {call.model!r} at {call.endpoint} refuses: {call.outcome}: {call.error}. "
            "Look at OPENAI_API_KEY, OPENAI_BASE_URL (most end in /v1) and --model"
        )
    if call.outcome != "ok":
        get_run_logger().warning(
            f"the model does not answer ({call.outcome}: {call.error}); while it does not, tpe proposes"
        )


def proposer_of(
    held: Session, profile: configs.Profile, dataset: Dataset, baseline: Baseline, calls: CallLog
) -> proposal.Proposer:
    """The night's proposer. Raises UsageError when it cannot be had with these settings and this environment."""
    header, name = held.state.header, held.state.header["proposer"]
    if name == "replay":
        return _replay(header)
    tpe = TpeProposer()
    if name == "tpe":
        return tpe
    nights = held.folder.parent
    ideas = past_nights.ideas(
        nights, but=header["tag"], dataset=dataset.fingerprint, hardware=baseline.hardware
    )
    briefing = Briefing(_program(held), facts_of(profile, dataset, baseline), ideas, profile.llm)
    if name == "command":
        return CommandProposer(
            profile.command, state_home.locate(), state_home.ROOT, briefing.brief, tpe
        )
    researcher = LlmProposer(Endpoint.from_environment(profile.llm), briefing, calls, tpe)
    return MixedProposer(researcher, tpe, profile.llm.share) if name == "mixed" else researcher


def facts_of(profile: configs.Profile, dataset: Dataset, baseline: Baseline) -> dict[str, str]:
    """What a researcher is told of the place: it writes better patches when it knows what they run on."""
    runs, budget = baseline.runs, profile.budget
    seconds = sum(run.seconds or 0.0 for run in runs) / len(runs)
    tokens = sum(run.tokens or 0 for run in runs) / len(runs)
    peak, sd = max(run.peak_memory_bytes or 0 for run in runs), verdict.pooled_sd([baseline.scores])
    on_gpu = max(run.metrics.get("peak_vram_mb", 0.0) for run in runs)
    caps, limits = caps_after(baseline), profile.limits
    amounts = {
        "seconds": f"{budget.amount:g} s of training by the judge's clock, to the checkpoint's last byte; start-up is free",
        "flops": f"{budget.amount:.4g} FLOPs of training, counted as tokens x flops_per_token",
    }
    training = (
        f"training {caps.cpu_seconds:.0f} CPU-seconds and {caps.wall_seconds:.0f} s, "
        if budget.kind == "flops"
        else ""
    )
    return {
        "hardware": hardware.describe(profile.device, profile.threads),
        "budget": amounts[budget.kind],
        "limits": f"start-up {caps.startup_seconds:.0f} s, {training}scoring {limits.eval_seconds:g} s, "
        f"checkpoint {limits.checkpoint_mib} MiB, {limits.tasks} processes and threads",
        "data": f"tokenizers prepared: VOCAB_SIZE {', '.join(map(str, profile.data.vocab_sizes))}",
        "baseline": f"val_bpb {baseline.val_bpb:.4f}, sd of one run {sd:.4f}, {len(runs)} seeds",
        "baseline's speed": f"{tokens:,.0f} tokens in {seconds:.0f} s ({tokens / max(seconds, 1e-9):,.0f} tokens/s)",
        f"baseline's training, seed {runs[0].seed}": digest.training(runs[0]),
        "memory": f"the baseline's peak is {peak / 2**30:.1f} of the {limits.memory_gib:g} GiB of host memory that a box has"
        + (f", and {on_gpu / 1024:.1f} GiB on the GPU" if on_gpu else ""),
    }


def _program(held: Session) -> str:
    try:
        return (held.folder / night_folder.PROGRAM).read_text(encoding="utf-8")
    except OSError as error:
        raise NightlyError(
            f"{held.folder / night_folder.PROGRAM}: {error.strerror}. Restore it from a backup, or start a new night"
        ) from error


def _replay(header: Mapping[str, Any]) -> ReplayProposer:
    if not header["patches"]:
        raise UsageError(
            "proposer replay needs --patches DIR, a folder of patches, or --patches TAG, a night"
        )
    return ReplayProposer.of(configs.FOLDER / Path(header["patches"]).expanduser(), state_home.ROOT)
