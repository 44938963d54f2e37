"""Proposals: what a proposer is, and the checks of every proposal before a run is spent on it."""

from __future__ import annotations

import ast
import dataclasses
import io
import tokenize
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from prefect import task
from prefect.cache_policies import NO_CACHE

from configs import knobs
from tasks.records import CONTRACT, Candidate, Idea, NightSoFar, Proposal, RunResult, Trial
from tasks.statuses import Outcome
from tasks.text import one_line

# The size of a candidate: its code by statements (train.py has about 500), and by bytes what it may
# have brought along instead of learned: literals, comments, docstrings and names, as a program can
# read its own file. Honest files of 300 KB exist, a third of which is that.
MOST_STATEMENTS = 10_000
MOST_DATA = 128 * 1024
MAX_BYTES = 512 * 1024  # of all; it bounds the time to parse and what is not counted as data
MAX_LINE = 2000  # characters; a longer line is data, not code
# Levels of the syntax tree; upstream's has 14. Recursion over a deeper tree overflows the stack.
MAX_DEPTH = 100
# Tokens that are no data. Left: numbers, strings, the text of f-strings, comments and errors.
STRUCTURE = (
    *(tokenize.OP, tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT),
    tokenize.ENDMARKER,
)
MOST_ASKED = 5  # answers of one proposer for one trial


class Proposer(Protocol):
    """Makes proposals from the night so far. It has no state, so a resumed night does the same."""

    @property
    def name(self) -> str: ...

    def propose(self, night: NightSoFar) -> Proposal | None:
        """The next proposal against the champion; None, which ends the night, if none is left."""


@runtime_checkable
class Researcher(Proposer, Protocol):
    """A slow proposer that can fix its own crashes. `propose` is the first of its `ideas`.

    Both may run in a thread of their own.
    """

    def ideas(self, night: NightSoFar) -> tuple[Proposal, ...]:
        """All candidates of one turn, in its order, each made of the file that it is shown.

        A single one with a `problem` if none can be run; () if it has nothing left to propose.
        """

    def thinks(self, night: NightSoFar) -> bool:
        """Whether its next proposal takes long: it is then made while the previous trial trains."""

    def fix(self, night: NightSoFar, proposal: Proposal, run: RunResult) -> Proposal | None:
        """The same idea without the mistake that crashed its run; None if it has none."""

    def cancel(self) -> None:
        """Ends what it is doing, from another thread: the result is no longer needed."""


def check(
    candidate: Candidate, seen: Mapping[str, int], trials: Sequence[Trial] = ()
) -> str | None:
    """Why this candidate cannot be run, in one line, or None. Runs none of its code.

    `seen` has the digest of every candidate so far and its trial number; the baseline's is 0. What
    came of it is said of those that are in `trials`.
    """
    source = candidate.source
    if (size := _bytes(source)) > MAX_BYTES:
        return f"train.py has {size:,} bytes, the limit is {MAX_BYTES:,}: make it shorter"
    for number, line in enumerate(source.splitlines(), start=1):
        if len(line) > MAX_LINE:
            return f"line {number} has {len(line)} characters, the limit is {MAX_LINE}"
    try:
        tree = knobs.parse(source)
    except SyntaxError as error:
        where = f" (line {error.lineno})" if error.lineno else ""
        return f"train.py does not parse: {error.msg}{where}"
    if problem := _check_size(candidate):
        return problem
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    if missing := [name for name in CONTRACT if name not in defined]:
        return f"train.py defines no {' and no '.join(missing)} at module level"
    if (depth := _depth(tree)) > MAX_DEPTH:
        return f"train.py is nested {depth} levels deep, the limit is {MAX_DEPTH}"
    if candidate.digest in seen:
        same = _as_tried(str(candidate.digest), seen, trials)
        return f"the same as {same} apart from names, seeds or comments: propose another idea"
    return _check_batch(candidate.knobs)


def _as_tried(digest: str, seen: Mapping[str, int], trials: Sequence[Trial]) -> str:
    """The trial that had this code, and what came of it if it is among `trials`."""
    number = seen[digest]
    if number == 0:
        return "the baseline"
    trial = next((trial for trial in trials if trial.number == number), None)
    if trial is None:
        return f"trial {number}"
    if digest in trial.crashed:
        return f"trial {number} before its fix (crashed)"
    if trial.val_bpb is None:
        return f"trial {number} ({trial.status})"
    z = "" if trial.z is None else f", z {trial.z:+.1f}"
    return f"trial {number} ({'kept' if trial.verdict == 'keep' else 'discarded'}{z})"


def _check_size(candidate: Candidate) -> str | None:
    if candidate.statements > MOST_STATEMENTS:
        return (
            f"train.py has {candidate.statements:,} statements, the limit is {MOST_STATEMENTS:,}: "
            "remove what is not needed"
        )
    if _bytes(candidate.source) > MOST_DATA and (data := _data(candidate.source)) > MOST_DATA:
        return (
            f"train.py has {data:,} bytes of literals, comments, docstrings and names, the limit "
            f"is {MOST_DATA:,}: compute what it needs instead of embedding it"
        )
    return None


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _data(source: str) -> int:
    """Bytes of a file's literals, comments and docstrings, and of its names, each counted once.

    The size of all for a text that has no tokens.
    """
    names: set[str] = set()
    data = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NAME:
                names.add(token.string)
            elif token.type not in STRUCTURE:
                data += _bytes(token.string)
    except (tokenize.TokenError, SyntaxError):
        return _bytes(source)
    return data + sum(map(_bytes, names))


def _depth(tree: ast.AST) -> int:
    """Levels of the syntax tree."""
    deepest, waiting = 0, [(tree, 0)]
    while waiting:  # no recursion: it would fail on the trees that matter
        node, level = waiting.pop()
        deepest = max(deepest, level)
        waiting.extend((child, level + 1) for child in ast.iter_child_nodes(node))
    return deepest


def refusal(
    candidate: Candidate, seen: Mapping[str, int], trials: Sequence[Trial] = ()
) -> tuple[Outcome, str] | None:
    """`check` as the outcome of an answer and its reason; None for a candidate that can be run."""
    problem = check(candidate, seen, trials)
    if problem is None:
        return None
    return ("already_tried" if candidate.digest in seen else "unfit"), problem


def _check_batch(found: Mapping[str, Any]) -> str | None:
    total, rows, length = (
        found.get(name) for name in ("TOTAL_BATCH_SIZE", "DEVICE_BATCH_SIZE", "MAX_SEQ_LEN")
    )
    if not (isinstance(total, int) and isinstance(rows, int) and isinstance(length, int)):
        return None  # a candidate may compute them, and then checks them itself when it starts
    if min(total, rows, length) < 1:
        return (
            f"TOTAL_BATCH_SIZE {total}, DEVICE_BATCH_SIZE {rows} and MAX_SEQ_LEN {length} "
            "must be at least 1"
        )
    if total % (rows * length):
        return (
            f"TOTAL_BATCH_SIZE {total} is not a multiple of "
            f"DEVICE_BATCH_SIZE * MAX_SEQ_LEN = {rows * length}"
        )
    return None


def ask(proposer: Proposer, night: NightSoFar) -> Proposal | None:
    """The proposer's next proposal, with a `problem` if it cannot be run; None if none is left.

    A refused proposal is added to the night as a rejected trial and the proposer is asked again, up
    to MOST_ASKED times or until it repeats itself: a generator finds another proposal, a folder of
    patches has only one for this trial. A researcher has repaired its answer already and is not
    asked again. A problem that a proposer reports itself is final.
    """
    refused: Proposal | None = None
    for _ in range(MOST_ASKED):
        proposed = proposer.propose(night)
        if proposed is None or (refused and proposed.candidate == refused.candidate):
            break
        candidate = proposed.candidate
        problem = None if proposed.problem else refusal(candidate, night.seen, night.trials)
        if problem is None:
            return proposed
        outcome, why = problem
        idea = dataclasses.replace(proposed.idea, outcome=proposed.idea.outcome and outcome)
        refused = dataclasses.replace(proposed, idea=idea, problem=why)
        if isinstance(proposer, Researcher) and idea.proposer == proposer.name:
            break
        trials = (*night.trials, _rejected(night, refused, why))
        night = dataclasses.replace(night, trials=trials)
    return refused


def _rejected(night: NightSoFar, refused: Proposal, problem: str) -> Trial:
    """The trial that a refused proposal would become."""
    keeps = [trial.commit for trial in night.trials if trial.verdict == "keep" and trial.commit]
    return Trial(
        number=night.next_trial,
        idea=refused.idea,
        status="rejected_patch",
        verdict="discard",
        reason=problem,
        z=None,
        val_bpb=None,
        scores=(),
        seeds=(),
        knobs=refused.candidate.knobs,
        digest=refused.candidate.digest,
        parent=keeps[-1] if keeps else "",
        commit=None,
    )


def no_patch(night: NightSoFar, proposer: str, outcome: Outcome | None, why: str) -> Proposal:
    """What a proposer returns if it has nothing that can be run: the champion, and the problem."""
    return Proposal(night.champion, Idea("no usable patch", proposer, outcome), why)


def stand_in(
    fallback: Proposer, night: NightSoFar, why: str, outcome: Outcome | None
) -> Proposal | None:
    """The fallback's proposal, with the reason why the researcher did not propose.

    `outcome` is that of the researcher's last request, if it made one.
    """
    proposed = ask(fallback, night)
    if proposed is None:
        return None
    idea = dataclasses.replace(proposed.idea, stands_in=one_line(why), outcome=outcome)
    return dataclasses.replace(proposed, idea=idea)


@task(name="propose-patch", task_run_name="propose trial {night.next_trial}", cache_policy=NO_CACHE)
def propose_patch(proposer: Proposer, night: NightSoFar) -> Proposal | None:
    """`ask` as a Prefect task."""
    return ask(proposer, night)


@task(name="fix-patch", task_run_name="fix trial {night.next_trial}", cache_policy=NO_CACHE)
def fix_patch(
    proposer: Researcher, night: NightSoFar, proposal: Proposal, run: RunResult
) -> Proposal | None:
    """The proposer's fix of an idea that crashed; None if none passes the checks."""
    fixed = proposer.fix(night, proposal, run)
    return fixed if fixed and check(fixed.candidate, night.seen) is None else None
