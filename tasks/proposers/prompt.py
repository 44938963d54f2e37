"""The prompt of a language model: how to answer, facts, train.py, the record, its notes, the task.

The texts are files: configs/program.md, which the user may edit, and configs/prompts/. What stays
the same comes first, so that an endpoint can serve it from its cache: the instructions all night,
train.py until the next keep. The words of candidates and of earlier answers are between fences that
they cannot imitate. A fence does not stop a model that obeys its contents; but whatever the model
then proposes is a patch of train.py, which runs in the box.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import secrets
from collections.abc import Iterable, Mapping, Sequence
from string import Template

import configs
from tasks.history import notebook
from tasks.proposers.digest import by_kind, digest, patch_of, plain, reason_of, short
from tasks.proposers.folding import folded
from tasks.proposers.past_nights import EarlierTrial
from tasks.records import NightSoFar, Proposal, RunResult
from tasks.text import counted, one_line
from tasks.usage import KINDS

PROMPTS = configs.FOLDER / "prompts"
# Characters of a crashed run's log, at its end: shown, and read.
LOG_TAIL, LOG_READ = 3000, 64 * 1024
PATCH, PROBLEM, WORDS = 4000, 4000, 1000  # characters at most
NOTES = 3000  # characters of the notebook, at most
LEAST_TRIED = 3  # kinds offered for a bold change if all were tried recently

Message = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Briefing:
    """The parts of a researcher's prompt that stay the same all night."""

    program: str  # the human's instructions
    facts: Mapping[str, str]  # hardware, budget, limits, data, baseline
    earlier: tuple[EarlierTrial, ...]  # of other nights on the same data
    settings: configs.Llm
    device: str = "cuda"  # the profile's: parts of train.py that do not run there are not shown
    notes: str | None = None  # with which an earlier night ended; until this night has its own
    search: configs.Search = dataclasses.field(default_factory=configs.Search)

    def proposal(self, night: NightSoFar, digest_tokens: int) -> list[Message]:
        """Asks for the next change of the champion, or of the archive's file that is shown."""
        file = _file(f"train.py, {_shown(night)}", night.shown.source, self.device)
        situation = self._situation(night, file, digest_tokens)
        task = _task(night, self.settings)
        return self._messages(situation, task, form(self.search.ideas))

    def fix(
        self, night: NightSoFar, digest_tokens: int, proposal: Proposal, run: RunResult
    ) -> list[Message]:
        """Asks for a fix of a candidate that crashed. The file shown is the candidate's."""
        file = _file("train.py, your candidate", proposal.candidate.source, self.device)
        situation = self._situation(night, file, digest_tokens)
        patch = patch_of(night.folder, night.next_trial, PATCH) or "(not available)"
        crash = [
            f"summary: {short(proposal.idea.summary, WORDS)}",
            f"hypothesis: {short(proposal.idea.hypothesis or 'none', WORDS)}",
            f"status of its run: {run.status}. {reason_of(run.status, run.reason)}",
            f"its patch of the champion:\n{patch}",
            # The training box's log. That of a scoring box is for humans only.
            f"the end of its log:\n{_tail(run.log) or '(empty)'}",
        ]
        fenced = _fenced("crash", "\n".join(crash))
        task = _text("fix", crash=fenced, fixes=str(self.settings.fixes))
        return self._messages(situation, task, form())

    def brief(self, night: NightSoFar) -> str:
        """The same for a coding agent, which edits train.py in place."""
        file = f"trainer/train.py in this folder is that of {_shown(night)}."
        situation = self._situation(night, file, self.settings.digest_tokens)
        task = _task(night, self.settings)
        return "\n".join([self.program, _text("reading"), situation, task, _text("agent")])

    def _messages(self, *content: str) -> list[Message]:
        how = [_text("answer")]
        if self.search.ideas > 1:
            how.append(_text("several", ideas=str(self.search.ideas)))
        if self.search.asks:
            how.append(_text("ask", asks=str(self.search.asks)))
        system = "\n".join([self.program, *how, _text("reading")])
        user = "\n".join(content)
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]

    def _situation(self, night: NightSoFar, file: str, digest_tokens: int) -> str:
        noise = "unknown"
        if night.sd is not None:
            noise = f"the standard deviation of one run is {night.sd:.4f}"
        # No more digits than in the record; digest._line says why.
        numbers = {
            "baseline": f"val_bpb {night.baseline_bpb:.4f}",
            "champion": f"val_bpb {night.champion_bpb:.4f}, {_champion(night)}",
            "noise": noise,
        }
        if night.parent:
            numbers[f"trial {night.parent.trial}"] = (
                f"val_bpb {night.parent.val_bpb:.4f}, not the champion: it is the file that "
                "you are shown and change. The result is still compared with the champion"
            )
        return _text(
            "situation",
            facts=_listed(self.facts),
            file=file,
            numbers=_listed(numbers),
            record=_fenced("record", digest(night, self.earlier, digest_tokens)),
            notes=self._notes(night),
        )

    def _notes(self, night: NightSoFar) -> str:
        """What the researcher wrote down last, or an earlier night's."""
        trials = [(trial.number, trial.idea) for trial in night.trials]
        flying = [(night.next_trial - 1, night.in_flight.idea)] if night.in_flight else []
        waiting = [(0, proposed.idea) for proposed in night.waiting]
        found = notebook.latest([*trials, *flying, *waiting])
        written = found.text if found else self.notes
        if not written:
            return "You have written nothing down yet."
        whole = plain(written).strip("\n")
        return _fenced("notes", whole if len(whole) <= NOTES else f"{whole[:NOTES]}\n... (cut)")


def form(ideas: int = 1) -> str:
    """The form of an answer, short, for the end of a prompt: small models forget its beginning."""
    several = f"IDEA 2\n... (and so on, up to IDEA {ideas})\n" if ideas > 1 else ""
    return _text("form", first="IDEA 1\n" if ideas > 1 else "", more=several)


def repair(problem: str, *, whole_file: bool, ideas: int = 1) -> Message:
    """Follows an unusable answer. As a last resort, `whole_file` asks for the whole file."""
    task = _text("repair", problem=_fenced("problem", plain(problem)[:PROBLEM]))
    how = _text("whole_file") if whole_file else form(ideas)
    return {"role": "user", "content": f"{task}\n{how}"}


def answered(exchanges: Sequence[tuple[str, str]], left: int, ideas: int) -> Message:
    """Follows questions, with their answers: what of both is data is fenced."""
    told = (
        _fenced("answer", f"{short(asked, WORDS)}\n\n{plain(text)}") for asked, text in exchanges
    )
    more = f"You may ask {counted(left, 'more question')}, or propose."
    text = _text(
        "answered",
        answers="\n\n".join(told),
        left=more if left else "No questions are left: propose now.",
    )
    return {"role": "user", "content": f"{text}\n{form(ideas)}"}


def _task(night: NightSoFar, settings: configs.Llm) -> str:
    """Asks for the next change; after many discards in a row, for one of another kind."""
    since_keep = itertools.takewhile(lambda trial: trial.verdict != "keep", reversed(night.trials))
    discards = len(list(since_keep))
    if discards < settings.bold_after:
        return _text("propose")
    tried, latest = by_kind(night.trials), by_kind(night.trials[-settings.bold_after :])
    in_flight = night.in_flight.idea.kind if night.in_flight else None
    last = [kind for kind, trials in latest.items() if trials or kind == in_flight]
    ranked = sorted(KINDS, key=lambda kind: len(tried[kind]))
    asked = [kind for kind in ranked if kind not in last] or ranked[:LEAST_TRIED]
    words = ", ".join(f"{kind} ({len(tried[kind])} so far)" for kind in asked)
    return _text("bold", discards=str(discards), latest=", ".join(last), asked=words)


def _champion(night: NightSoFar) -> str:
    kept = [trial.number for trial in night.trials if trial.verdict == "keep"]
    return f"trial {kept[-1]}" if kept else "the baseline itself"


def _shown(night: NightSoFar) -> str:
    """Whose file the next patch is made of."""
    return f"trial {night.parent.trial}, not the champion" if night.parent else "the champion"


def _file(name: str, source: str, device: str) -> str:
    """A train.py, but for parts that do not run on this device, and otherwise byte for byte.

    It is fenced by its hash, which changes with the file and is not in it.
    """
    sendable = source.encode("utf-8", "replace").decode()  # a lone surrogate cannot be sent
    return _between(name, folded(sendable, device), _mark(source))


def shows(messages: Iterable[Message], source: str) -> bool:
    """Whether this file is the one that a change is asked for in these messages."""
    return any(_mark(source) in message["content"] for message in messages)


def _mark(source: str) -> str:
    return hashlib.sha256(source.encode("utf-8", "replace")).hexdigest()[:16]


def _fenced(name: str, text: str) -> str:
    """Untrusted words, fenced by a mark that nobody knew when they were written."""
    while (mark := secrets.token_hex(8)) in text:
        pass
    return _between(name, text, mark)


def _between(name: str, text: str, mark: str) -> str:
    end = f"----- end {name} {mark} -----"
    return f"----- begin {name} {mark} -----\n{text.removesuffix(chr(10))}\n{end}"


def _tail(log: str) -> str:
    text = plain(log[-LOG_READ:]).strip("\n")
    if len(text) <= LOG_TAIL:
        return text
    cut = text[-LOG_TAIL:]
    return f"(cut) ...\n{cut.partition(chr(10))[2] or cut}"


def _listed(items: Mapping[str, str]) -> str:
    return "\n".join(f"- {one_line(name)}: {one_line(value)}" for name, value in items.items())


def _text(name: str, **fields: str) -> str:
    """A text of configs/prompts. Dollars and braces in the fields are left as they are."""
    return Template((PROMPTS / f"{name}.md").read_text(encoding="utf-8")).substitute(fields)
