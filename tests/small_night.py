"""A short night with its real files, as a way of searching finds them: trials by what they changed
in the champion of their time."""

import dataclasses
import json
from pathlib import Path

from tasks.history import trial_folder
from tasks.records import Candidate, NightSoFar, Proposal, Trial
from tests.trials import make_proposal, make_trial

SD = 0.01
BODY = "".join(f"    step_{n} = {n}\n" for n in range(8))
# Long enough that changes of different functions do not meet.
BASE = (
    f"DEPTH = 3\nLR = 0.1\nDECAY = 0.2\n\ndef load_model(path, device):\n{BODY}\n"
    f"def loss(x):\n{BODY}    return x * DECAY\n\n"
    f"def attend(q):\n{BODY}    return q * DEPTH\n\ndef main():\n{BODY}    return LR\n"
)


def changed(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def start(folder: Path, source: str = BASE) -> NightSoFar:
    (folder / "base.py").write_text(source, encoding="utf-8")
    champion = Candidate.parse(source)
    return NightSoFar(
        "t", 1, 1, champion, 1.6, 1.6, champion.knobs, (), sd=SD, folder=folder,
        seen={str(champion.digest): 0},
    )  # fmt: skip


def after(night: NightSoFar, source: str, gain: float | None, **changes) -> NightSoFar:
    """The night once this file was tried; `gain` in sd, None for a crash; `runs` and `keep`, and
    the fields of its idea."""
    runs, is_kept = changes.pop("runs", 1), changes.pop("keep", False)
    return taken(night, make_proposal(source, "a change", "llm", **changes), gain, runs, is_kept)


def taken(
    night: NightSoFar, proposed: Proposal, gain: float | None, runs: int = 1, keep: bool = False
) -> NightSoFar:
    """The night once this proposal was taken to its end."""
    assert night.folder is not None
    number = night.next_trial
    parent = next((t.commit for t in reversed(night.trials) if t.verdict == "keep"), "base")
    score = None if gain is None else night.champion_bpb - gain * SD
    trial = make_trial(
        number,
        status="train_crashed" if score is None else "ok",
        verdict="keep" if keep else "discard",
        z=None if gain is None else gain / (1 / runs + 1 / 3) ** 0.5,
        val_bpb=score,
        scores=() if score is None else (score,) * runs,
        seeds=tuple(range(runs)),
        knobs=proposed.candidate.knobs,
        digest=proposed.candidate.digest,
        parent=parent or "",
        commit=f"c{number}",
    )
    trial = dataclasses.replace(trial, idea=proposed.idea)
    folder = night.folder / "trials" / str(number)
    trial_folder.write_proposal(folder, night.champion.source, proposed, parent or "")
    return dataclasses.replace(
        night,
        next_trial=number + 1,
        trials=(*night.trials, trial),
        champion=proposed.candidate if keep else night.champion,
        champion_bpb=score if keep and score is not None else night.champion_bpb,
        seen={**night.seen, str(proposed.candidate.digest): number},
        to_beat={**night.to_beat, number: night.champion_bpb},
    )


def resumed(night: NightSoFar) -> NightSoFar:
    """The same night in another process: its trials from the ledger's JSON."""
    saved = json.loads(json.dumps([dataclasses.asdict(trial) for trial in night.trials]))
    return dataclasses.replace(night, trials=tuple(map(Trial.from_json, saved)))
