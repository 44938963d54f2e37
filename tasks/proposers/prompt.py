"""What a language model is told: how to answer, the place, train.py, the night's record, and what is wanted of it now.

The texts are files, configs/program.md (the human's) and configs/prompts/. What stays the same comes first, so that an
endpoint may serve it from its cache: the instructions all night, train.py until the next keep. What candidates and
earlier answers wrote stands between lines that it cannot imitate. No fence holds a model that obeys what is in it; but
whatever it then proposes is a patch of train.py, and runs in the box.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import secrets
from collections.abc import Mapping
from string import Template

import configs
from tasks.proposers.digest import by_kind, digest, patch_of, plain, reason_of, short
from tasks.proposers.digest import estimate_tokens as estimate_tokens
from tasks.proposers.past_nights import EarlierTrial
from tasks.records import NightSoFar, Proposal, RunResult
from tasks.text import one_line
from tasks.usage import KINDS

PROMPTS = configs.FOLDER / "prompts"
LOG_TAIL, LOG_READ = (
    3000,
    64 * 1024,
)  # characters of a crashed run's log: that are shown, that are looked at
PATCH, PROBLEM, WORDS = 4000, 4000, 1000  # characters at most
LEAST_TRIED = 3  # kinds that a bold change is asked of when all were tried of late

Message = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Briefing:
    """What a researcher is told, and of that what stays the same all night."""

    program: str  # the human's instructions
    facts: Mapping[str, str]  # hardware, budget, limits, data, baseline
    earlier: tuple[EarlierTrial, ...]  # of other nights on the same data
    settings: configs.Llm

    def proposal(self, night: NightSoFar, digest_tokens: int) -> list[Message]:
        """Asks for the next change of the champion."""
        situation = self._situation(
            night, _file("train.py, the champion", night.champion.source), digest_tokens
        )
        return _messages(self.program, situation, _wanted(night, self.settings))

    def fix(
        self, night: NightSoFar, digest_tokens: int, proposal: Proposal, run: RunResult
    ) -> list[Message]:
        """Gives a candidate that crashed back, to be mended: the file shown is the candidate's, and SEARCH is against that."""
        situation = self._situation(
            night, _file("train.py, your candidate", proposal.candidate.source), digest_tokens
        )
        crash = [
            f"summary: {short(proposal.idea.summary, WORDS)}",
            f"hypothesis: {short(proposal.idea.hypothesis or 'none', WORDS)}",
            f"status of its run: {run.status}. {reason_of(run.status, run.reason)}",
            f"its patch of the champion:\n{patch_of(night.folder, night.next_trial, PATCH) or '(not at hand)'}",
            f"the end of its log:\n{_tail(run.log) or '(empty)'}",  # a training box's; a scoring box's is for humans alone
        ]
        told = _text(
            "fix", crash=_fenced("crash", "\n".join(crash)), fixes=str(self.settings.fixes)
        )
        return _messages(self.program, situation, told)

    def brief(self, night: NightSoFar) -> str:
        """The same for a coding agent, which has train.py before it and edits it in place."""
        file = "The champion is trainer/train.py in this folder."
        situation = self._situation(night, file, self.settings.digest_tokens)
        return "\n".join(
            [
                self.program,
                _text("reading"),
                situation,
                _wanted(night, self.settings),
                _text("agent"),
            ]
        )

    def _situation(self, night: NightSoFar, file: str, digest_tokens: int) -> str:
        kept = next(
            (trial.number for trial in reversed(night.trials) if trial.verdict == "keep"), None
        )
        # No more digits than the record has (digest._line says why).
        numbers = {
            "baseline": f"val_bpb {night.baseline_bpb:.4f}",
            "champion": f"val_bpb {night.champion_bpb:.4f}, "
            + ("the baseline itself" if kept is None else f"trial {kept}"),
            "noise": "unknown"
            if night.sd is None
            else f"the standard deviation of one run is {night.sd:.4f}",
        }
        record = _fenced("record", digest(night, self.earlier, digest_tokens))
        return _text(
            "situation",
            facts=_listed(self.facts),
            file=file,
            numbers=_listed(numbers),
            record=record,
        )


def repair(problem: str, *, whole_file: bool) -> Message:
    """Follows an answer that could not be used; `whole_file` asks for the whole file, as the last resort."""
    words = _text("repair", problem=_fenced("problem", plain(problem)[:PROBLEM]))
    return {"role": "user", "content": f"{words}\n{_text('whole_file')}" if whole_file else words}


def _messages(program: str, *content: str) -> list[Message]:
    system = "\n".join([program, _text("answer"), _text("reading")])
    return [{"role": "system", "content": system}, {"role": "user", "content": "\n".join(content)}]


def _wanted(night: NightSoFar, settings: configs.Llm) -> str:
    """The next change; one of another kind once a row of discards says that more of the same will not help."""
    discards = len(
        list(itertools.takewhile(lambda trial: trial.verdict != "keep", reversed(night.trials)))
    )
    if discards < settings.bold_after:
        return _text("propose")
    tried, latest = by_kind(night.trials), by_kind(night.trials[-settings.bold_after :])
    last = [
        kind
        for kind, trials in latest.items()
        if trials or (night.in_flight and night.in_flight.idea.kind == kind)
    ]
    ranked = sorted(KINDS, key=lambda kind: len(tried[kind]))
    asked = [kind for kind in ranked if kind not in last] or ranked[:LEAST_TRIED]
    words = ", ".join(f"{kind} ({len(tried[kind])} so far)" for kind in asked)
    return _text("bold", discards=str(discards), latest=", ".join(last), asked=words)


def _file(name: str, source: str) -> str:
    """A train.py byte for byte, between marks that stay the same while it does; no text holds its own hash."""
    encoded = source.encode("utf-8", "replace")  # half of a surrogate pair cannot be sent
    return _between(name, encoded.decode("utf-8"), hashlib.sha256(encoded).hexdigest()[:16])


def _fenced(name: str, text: str) -> str:
    """Somebody's words between marks that nobody could know when they were written."""
    while (mark := secrets.token_hex(8)) in text:
        pass
    return _between(name, text, mark)


def _between(name: str, text: str, mark: str) -> str:
    return f"----- begin {name} {mark} -----\n{text.removesuffix(chr(10))}\n----- end {name} {mark} -----"


def _tail(log: str) -> str:
    text = plain(log[-LOG_READ:]).strip("\n")
    if len(text) <= LOG_TAIL:
        return text
    cut = text[-LOG_TAIL:]
    return f"(cut) ...\n{cut.partition(chr(10))[2] or cut}"


def _listed(items: Mapping[str, str]) -> str:
    return "\n".join(f"- {one_line(name)}: {one_line(value)}" for name, value in items.items())


def _text(name: str, **fields: str) -> str:
    """A text of configs/prompts. What is put into it may hold dollars and braces: it is not looked at again."""
    return Template((PROMPTS / f"{name}.md").read_text(encoding="utf-8")).substitute(fields)
