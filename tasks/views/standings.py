"""How the contenders of a tournament stand: what each brought and cost, and which one is better."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

from configs import traits
from tasks.records import Certification, Contender, NightState, Trial
from tasks.search import bandit
from tasks.text import counted, money, one_line
from tasks.text import in_markdown as _text
from tasks.usage import total
from tasks.views import margin

# The fields of these records are keys of `--json`.


@dataclasses.dataclass(frozen=True)
class Standing:
    """One contender. Gains in bits per byte; None is what is unknown."""

    name: str
    proposer: str
    model: str | None
    program: str | None  # name of its program
    program_sha256: str | None
    trials: int
    stood_in: int  # of them, those in which another proposed: they do not count
    runs: int
    kept: int
    gain: float  # of the kept trials, by the search's scores
    certified_gain: float | None  # None: the night is not certified
    counted_gain: float  # what the comparison takes, see bandit.gain
    hours: float  # of its own trials
    dollars: float | None
    gain_per_hour: float | None  # the counted gain; None without a trial that ran
    chance: float  # that it is the best


@dataclasses.dataclass(frozen=True)
class Standings:
    contenders: tuple[Standing, ...]
    best: str
    chance: float  # that the best is the best
    decided: bool
    more_trials: int | None  # that would decide between the best two; None: can hardly be told
    verdict: str


def of_night(state: NightState) -> Standings | None:
    """None unless the night is a tournament."""
    header = state.header
    if not header.contenders:
        return None
    names = [contender.name for contender in header.contenders]
    beaten, shown = margin.to_beat(state), _shown(state.certification)
    price = header.settings.search.machine_price
    record = bandit.record_of(names, state.candidates, beaten, price, shown)
    chances = bandit.chances(record)
    standings = tuple(
        _standing(state, contender, record[contender.name], chances[contender.name], beaten)
        for contender in header.contenders
    )
    # Of one that has had no trial of its own nothing is known: it is the best of nothing.
    best, second, *_ = sorted(names, key=lambda name: (not record[name], -chances[name]))
    between = bandit.chances({name: record[name] for name in (best, second)})[best]
    return Standings(
        contenders=standings,
        best=best,
        chance=chances[best],
        decided=chances[best] >= bandit.DECIDED,
        more_trials=bandit.more_trials(between, sum(map(len, record.values()))),
        verdict=_verdict(record, best, second, chances[best], between),
    )


def section(state: NightState) -> Iterator[str]:
    """Paragraphs of the report; none unless the night is a tournament."""
    found = of_night(state)
    if found is None:
        return
    yield f"**{_text(found.verdict)}**"
    rows = (f"| {' | '.join(_cells(standing))} |" for standing in found.contenders)
    yield "\n".join(
        [
            "| contender | trials | runs | kept | gain | certified | counted | hours | dollars "
            "| counted, per hour | P(best) |",
            f"|---|{'--:|' * 10}",
            *rows,
        ]
    )
    price = state.header.settings.search.machine_price
    dollars = f" and of dollars at {money(price)} an hour" if price else ""
    yield (
        "Gains in bits per byte. *gain*: by the search's scores. *certified*: of changes that "
        "fresh runs have shown to help. *counted*: what fresh runs say, where they have decided; "
        "elsewhere the search's gain less the luck expected in it. *P(best)*: the "
        f"probability that it gains most for an hour of its trials{dollars}. From "
        f"{bandit.DECIDED:g} on it is called decided. That holds for a night whose length was set "
        "before: if you stop as soon as it is decided, you will be wrong more often."
    )


def _standing(
    state: NightState,
    contender: Contender,
    pulls: list[bandit.Pull],
    chance: float,
    beaten: Mapping[int, float],
) -> Standing:
    trials = [trial for trial in state.candidates if trial.idea.contender == contender.name]
    own = [trial for trial in trials if not trial.idea.stands_in]
    kept = [trial for trial in own if trial.verdict == "keep"]
    gain, cost = (math.fsum(getattr(p, what) for p in pulls) for what in ("gain", "cost"))
    has_account = traits(contender.proposer).has_own_account
    header, program = state.header.of(contender), contender.program
    found = state.certification
    certified = set(found.certified) if found else set()
    shown = _shown(found)
    return Standing(
        name=contender.name,
        proposer=contender.proposer,
        model=header.model,
        program=program.name if program else None,
        program_sha256=program.sha256 if program else None,
        trials=len(trials),
        stood_in=len(trials) - len(own),
        runs=sum(len(trial.seeds) for trial in own),
        kept=len(kept),
        gain=math.fsum(_searched(trial, beaten) for trial in kept),
        certified_gain=math.fsum(shown[t.number] for t in kept if t.number in certified)
        if found
        else None,
        counted_gain=gain,
        hours=math.fsum(trial.wall_seconds or 0.0 for trial in own) / 3600,
        dollars=None if has_account else total(trial.usage for trial in own).dollars,
        gain_per_hour=gain / cost if cost else None,
        chance=chance,
    )


def _searched(trial: Trial, beaten: Mapping[int, float]) -> float:
    before = beaten.get(trial.number)
    return 0.0 if before is None or trial.val_bpb is None else before - trial.val_bpb


def _shown(found: Certification | None) -> dict[int, float]:
    """What fresh runs say that each kept trial gains: nothing if they do not show it to help.

    Changes that cannot be taken out alone share their gain. Those that more runs may still show are
    not in it.
    """
    return {
        number: (claim.gain or 0.0) / len(claim.trials) if claim.certificate == "certified" else 0.0
        for claim in (found.claims if found else ())
        if claim.certificate != "open"
        for number in claim.trials
    }


def _verdict(
    record: Mapping[str, list[bandit.Pull]], best: str, second: str, chance: float, between: float
) -> str:
    """Which one is better, how sure that is, and what would decide it: a sentence or two."""
    untried = [one_line(name) for name, own in record.items() if not own]
    if 0 < len(untried) < len(record) and chance < bandit.DECIDED:
        return f"Undecided: without a trial of its own: {', '.join(untried)}."
    if not any(pull.gain > 0 for own in record.values() for pull in own):
        return "Undecided: no contender has a gain that counts."
    first, other = one_line(best), one_line(second)
    than = f"better than {other}" if len(record) == 2 else f"the best of {len(record)}"
    said = f"{first} is {than} with probability {chance:.2f}"
    if chance >= bandit.DECIDED:
        return f"{said}: decided."
    trials = sum(map(len, record.values()))
    more = bandit.more_trials(between, trials)
    if more is None:
        told = f"{counted(trials, 'trial')} can hardly tell {first} and {other} apart"
    else:
        how_many = f"About {more}" if more else "A few"
        told = f"{how_many} more trials would decide it, if the difference stays as it is"
    return f"{said}: not decided. {told}."


def _cells(standing: Standing) -> Iterator[str]:
    """A contender's row."""
    yield _text(standing.name)
    stood_in = f" ({standing.stood_in} by a stand-in)" if standing.stood_in else ""
    yield f"{standing.trials}{stood_in}"
    yield str(standing.runs)
    yield str(standing.kept)
    yield f"{standing.gain:.6f}"
    yield "-" if standing.certified_gain is None else f"{standing.certified_gain:.6f}"
    yield f"{standing.counted_gain:.6f}"
    yield f"{standing.hours:.2f}"
    yield money(standing.dollars)
    yield "-" if standing.gain_per_hour is None else f"{standing.gain_per_hour:.6f}"
    yield f"{standing.chance:.2f}"
