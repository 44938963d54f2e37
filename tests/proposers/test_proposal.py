import dataclasses
import re
from pathlib import Path

import pytest

from tasks.proposers import proposal
from tasks.records import Candidate, NightSoFar, Proposal
from tests.trials import crash, keep, make_proposal, make_trial

TRIED = "apart from names, seeds or comments: propose another idea"
GOOD = """TOTAL_BATCH_SIZE = 1024
DEVICE_BATCH_SIZE = 8
MAX_SEQ_LEN = 128


def load_model(path, device):
    return TOTAL_BATCH_SIZE, DEVICE_BATCH_SIZE, MAX_SEQ_LEN


def main():
    pass
"""


def night(**changes) -> NightSoFar:
    start = NightSoFar("t", 1, 1, Candidate.parse(GOOD), 1.6, 1.6, Candidate.parse(GOOD).knobs, ())
    return dataclasses.replace(start, **changes)


def seen(source: str, number: int = 0) -> dict[str, int]:
    return {Candidate.parse(source).digest or "": number}


class Listed:
    """Proposes the sources of a list, the next one for every trial that it is shown."""

    name = "listed"

    def __init__(self, *sources: str) -> None:
        self.sources = sources
        self.asked: list[NightSoFar] = []

    def propose(self, night: NightSoFar) -> Proposal | None:
        self.asked.append(night)
        number = len(night.trials)
        return (
            make_proposal(self.sources[number], f"number {number}", self.name)
            if number < len(self.sources)
            else None
        )


def variant(number: int) -> str:
    return GOOD + f"\n\nEXTRA = {number}\n"


def test_a_good_candidate_passes():
    assert proposal.check(Candidate.parse(GOOD), {}) is None


TRAIN = (Path(__file__).parents[2] / "trainer" / "train.py").read_text(encoding="utf-8")


def test_a_long_file_of_honest_code_passes():
    body = TRAIN[TRAIN.index("\n@dataclass") : TRAIN.index("\ndef main")]
    long = TRAIN + body * 8
    assert 220_000 < len(long) < 320_000
    assert proposal.check(Candidate.parse(long), {}) is None


LONG = "x" * 1500
ROWS = f"{LONG}\n" * 90


@pytest.mark.parametrize(
    "data",
    [
        "TABLE = (\n" + f"    b'{LONG}'\n" * 90 + ")\n",
        "TABLE = [\n" + "    0.123456, -1.5, 7, 255,\n" * 9000 + "]\n",
        f'def f():\n    """\n{ROWS}    """\n',
        f"# {LONG}\n" * 90,
        f'TEXT = f"""\n{ROWS}"""\n',
        "".join(f"{LONG}{number} = main\n" for number in range(90)),
    ],
    ids=["bytes", "numbers", "docstring", "comments", "f-string", "names"],
)
def test_embedded_data_is_refused_however_it_is_written(data):
    problem = proposal.check(Candidate.parse(GOOD + data), {})
    assert problem is not None
    assert re.fullmatch(
        r"train.py has 1\d\d,\d+ bytes of literals, comments, docstrings and names, "
        r"the limit is 131,072: compute what it needs instead of embedding it",
        problem,
    )
    assert len(GOOD + data) < proposal.MAX_BYTES
    assert Candidate.parse(GOOD + data).statements < 200


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (GOOD + "def f(:\n", r"does not parse: .* \(line 12\)"),
        (GOOD + "\0", "does not parse"),
        (GOOD + "(" * 1999, "does not parse"),
        (
            GOOD + "x = y\n" * 10_000,
            r"train.py has 10,00\d statements, the limit is 10,000: remove",
        ),
        (GOOD + " " * 1000 + "\n" + "\n" * 524_288, r"525,\d+ bytes, the limit is 524,288: make"),
        (GOOD + "# " + "x" * 2000, "line 12 has 2002 characters, the limit is 2000"),
        (GOOD.replace("load_model", "load"), "defines no load_model at module level"),
        (GOOD.replace("def main", "def run"), "defines no main"),
        ("x = 1", "defines no load_model and no main"),
        (
            f"if x:\n    {GOOD.replace(chr(10), chr(10) + '    ')}",
            "defines no load_model and no main",
        ),
        (
            GOOD.replace("1024", "1025"),
            r"1025 is not a multiple of DEVICE_BATCH_SIZE \* MAX_SEQ_LEN = 1024",
        ),
        (GOOD.replace("1024", "512"), "512 is not a multiple"),
        (GOOD.replace("= 8", "= 0"), "must be at least 1"),
        (GOOD + "A = " + "+".join("1" * 300), r"nested 30\d levels deep, the limit is 100"),
        (GOOD + "A = " + "-" * 400 + "1", "levels deep"),
        (GOOD + "A = x" + "(1)" * 180, "levels deep"),
    ],
)
def test_a_bad_candidate_is_refused_with_one_line(source, reason):
    problem = proposal.check(Candidate.parse(source), {})
    assert problem is not None
    assert re.search(reason, problem)
    assert "\n" not in problem


def test_batch_sizes_that_are_computed_are_left_to_the_candidate():
    assert proposal.check(Candidate.parse(GOOD.replace("= 1024", "= 3 * MAX_SEQ_LEN")), {}) is None


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0, "the baseline"),
        (1, "trial 1 (kept, z +4.0)"),
        (2, "trial 2 (discarded, z -0.4)"),
        (3, "trial 3 (train_crashed)"),
        (4, "trial 4 before its fix (crashed)"),
        (5, "trial 5"),  # it still trains
    ],
)
def test_a_duplicate_is_refused_with_what_came_of_the_first(number, name):
    digest = str(Candidate.parse(GOOD).digest)
    trials = keep(1), make_trial(2, z=-0.4), crash(3), make_trial(4, crashed=(digest,))
    again = Candidate.parse("# a comment more\n" + GOOD)
    assert proposal.refusal(again, seen(GOOD, number), trials) == (
        "already_tried",
        f"the same as {name} {TRIED}",
    )


def test_a_proposal_that_passes_is_returned_as_it_is():
    asked = Listed(GOOD)
    assert proposal.ask(asked, night()) == make_proposal(GOOD, "number 0", "listed")
    assert len(asked.asked) == 1


def test_nothing_left_to_propose_is_none():
    assert proposal.ask(Listed(), night()) is None


def test_a_generator_is_asked_again_after_a_duplicate():
    proposed = proposal.ask(Listed(GOOD, GOOD + "# again", variant(1)), night(seen=seen(GOOD)))
    assert proposed == make_proposal(variant(1), "number 2", "listed")


def test_a_generator_is_shown_why_it_was_refused():
    asked = Listed(GOOD, variant(1))
    proposal.ask(asked, night(seen=seen(GOOD, 3)))
    (refused,) = asked.asked[1].trials
    assert (refused.status, refused.reason, refused.number) == (
        "rejected_patch",
        f"the same as trial 3 {TRIED}",
        1,
    )
    assert refused.digest == Candidate.parse(GOOD).digest


def test_a_generator_that_only_repeats_the_past_is_given_up():
    sources = [variant(number) for number in range(20)]
    past = {
        Candidate.parse(source).digest or "": number
        for number, source in enumerate(sources, start=1)
    }
    asked = Listed(*sources)
    proposed = proposal.ask(asked, night(seen=past))
    assert proposed is not None
    assert proposed.problem == f"the same as trial {proposal.MOST_ASKED} {TRIED}"
    assert len(asked.asked) == proposal.MOST_ASKED


def test_a_proposer_with_one_answer_is_not_asked_a_third_time():
    asked = Listed(*[GOOD] * 9)
    proposed = proposal.ask(asked, night(seen=seen(GOOD)))
    assert proposed is not None
    assert proposed.problem == f"the same as the baseline {TRIED}"
    assert len(asked.asked) == 2


def test_a_proposers_own_problem_is_final():
    class Broken:
        name = "broken"

        def propose(self, night: NightSoFar) -> Proposal:
            return make_proposal(
                night.champion.source, "x", self.name, problem="patch x does not apply"
            )

    proposed = proposal.ask(Broken(), night())
    assert proposed is not None
    assert proposed.problem == "patch x does not apply"


def test_a_researcher_is_not_asked_again_after_a_refused_patch():
    class Slow(Listed):
        def ideas(self, night):
            return tuple(filter(None, (self.propose(night),)))

        def thinks(self, night):
            return True

        def fix(self, night, proposal, run):
            return None

        def cancel(self):
            pass

        def propose(self, night):
            proposed = super().propose(night)
            if proposed is None:
                return None
            idea = dataclasses.replace(proposed.idea, outcome="ok")
            return dataclasses.replace(proposed, idea=idea)

    asked = Slow(GOOD, variant(1))
    proposed = proposal.ask(asked, night(seen=seen(GOOD)))
    assert proposed is not None
    assert (proposed.problem, proposed.idea.outcome) == (
        f"the same as the baseline {TRIED}",
        "already_tried",
    )
    assert len(asked.asked) == 1


def test_the_task_does_what_the_function_does():
    assert proposal.propose_patch.fn(Listed(GOOD), night()) == proposal.ask(Listed(GOOD), night())
