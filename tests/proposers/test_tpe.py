import dataclasses
import itertools
import statistics
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest

import configs
from configs import knobs
from flows.night import researcher
from tasks.errors import UsageError
from tasks.proposers import proposal
from tasks.proposers.search_space import SPACE, SearchSpace, moved
from tasks.proposers.tpe import TpeProposer
from tasks.records import Candidate, NightSoFar, Proposal
from tests.trials import make_proposal, make_state, make_trial

TRAIN = (Path(__file__).parents[2] / "trainer" / "train.py").read_text(encoding="utf-8")
TABLES = tomllib.loads(SPACE.read_text(encoding="utf-8"))
# Where the steps of a laptop lead first.
TABLED = {"BIGRAM_TABLE": 16, "WINDOW_PATTERN": "TTTL", "TRIGRAM_TABLE": 16}
CPU_STEPS = TABLES.pop("steps")["cpu"]
STEPS = [step for step in CPU_STEPS if step not in [list(t) for t in TABLED.items()]]
GPU = {
    "DEPTH": 8,
    "ASPECT_RATIO": 64,
    "HEAD_DIM": 128,
    "WINDOW_PATTERN": "SSSL",
    "MAX_SEQ_LEN": 2048,
    "VOCAB_SIZE": 8192,
    "TOTAL_BATCH_SIZE": 2**19,
    "DEVICE_BATCH_SIZE": 128,
}


def read(source: str) -> dict[str, Any]:
    return dict(knobs.read(source))


def knobs_only(**values) -> str:
    """A train.py of its knobs and little else, which parses faster; with n-grams."""
    found = {**read(TRAIN), **TABLED, **values}
    lines = [f"{name} = {value!r}  # {name}" for name, value in found.items()]
    return "\n".join(
        [*lines, "def load_model(path, device): ...", f"def main(): return {', '.join(found)}", ""]
    )


SMALL = knobs_only()


def start(source: str = SMALL, seed: int = 1) -> NightSoFar:
    # The ledger is JSON: there a tuple comes back as a list.
    base = {name: list(v) if isinstance(v, tuple) else v for name, v in read(source).items()}
    return NightSoFar("t", seed, 1, Candidate.parse(source), 1.6, 1.6, base, ())


def after(
    night: NightSoFar, proposed: Proposal, score: float | None, *, keep: bool = False, **changes
) -> NightSoFar:
    """The night once this proposal was taken to its end."""
    parent = next((t.commit for t in reversed(night.trials) if t.verdict == "keep"), "base")
    trial = make_trial(
        night.next_trial,
        idea=proposed.idea,
        status="ok" if score else "out_of_memory",
        verdict="keep" if keep else "discard",
        reason="",
        z=None,
        val_bpb=score,
        scores=(score,) if score else (),
        seeds=(1,),
        knobs=proposed.candidate.knobs,
        digest=proposed.candidate.digest,
        parent=parent or "",
        commit=f"c{night.next_trial}",
    )
    return dataclasses.replace(
        night,
        next_trial=night.next_trial + 1,
        champion=proposed.candidate if keep else night.champion,
        trials=(*night.trials, dataclasses.replace(trial, **changes)),
    )


def propose(night: NightSoFar) -> Proposal:
    proposed = TpeProposer().propose(night)
    assert proposed is not None
    return proposed


def play(night: NightSoFar, count: int) -> tuple[NightSoFar, list[Proposal]]:
    """`count` trials, none of them kept."""
    made = []
    for _ in range(count):
        made.append(propose(night))
        night = after(night, made[-1], 1.7)
    return night, made


@pytest.fixture(scope="module")
def stepped() -> NightSoFar:
    """A night that has tried every single-knob step."""
    return play(start(), len(STEPS))[0]


def test_single_steps_come_first_in_the_order_of_the_file():
    _, made = play(start(), len(STEPS))
    assert [p.idea.summary.split(" ")[0].rstrip(",") for p in made] == [name for name, _ in STEPS]
    assert made[0].idea.summary == "DEPTH 3 -> 2"
    assert made[1].idea.summary == "UNEMBEDDING_LR 0.004 -> 0.008"
    assert made[2].idea.summary == "MATRIX_LR 0.04 -> 0.16"


BY_DEVICE = """
[steps]
cpu = [["DEPTH", "-1"]]
cuda = [["TOTAL_BATCH_SIZE", "x0.5"]]

[DEPTH]
type = "int"
low = "-2"
high = "+2"

[TOTAL_BATCH_SIZE]
type = "categorical"
choices = ["x0.5", "x1"]
"""


@pytest.mark.parametrize(
    ("device", "first"),
    [
        ("cpu", "DEPTH 3 -> 2"),
        ("cuda", "TOTAL_BATCH_SIZE 1024 -> 512"),
        ("mps", "TOTAL_BATCH_SIZE 1024 -> 512"),
    ],
)
def test_the_first_steps_are_those_of_the_profiles_device(tmp_path, device, first):
    (tmp_path / "space.toml").write_text(BY_DEVICE)
    proposed = TpeProposer(tmp_path / "space.toml", device).propose(start())
    assert proposed is not None
    assert proposed.idea.summary == first


@pytest.mark.parametrize("name", ["laptop", "h100", "mps"])
def test_a_nights_tpe_is_told_the_profiles_device(tmp_path, name):
    state = make_state(header={"proposer": "tpe", "settings": configs.load(name)})
    held: Any = types.SimpleNamespace(state=state, folder=tmp_path)
    unread: Any = None
    made = researcher.proposer_of(held, unread, unread, unread)
    assert isinstance(made, TpeProposer)
    assert made.device == configs.load(name).device


@pytest.mark.parametrize("loser", [("DEPTH", "-1"), ("MATRIX_LR", "x4")])
def test_what_wins_on_a_cpu_alone_is_no_first_step_of_a_gpu(loser):
    steps = SearchSpace.load(SPACE).steps
    assert loser in steps.of("cpu")
    assert loser not in steps.of("cuda")
    assert loser not in steps.of("mps")


def test_a_first_night_begins_with_ngrams():
    _, made = play(start(TRAIN), 4)
    assert [p.idea.summary for p in made] == [
        "BIGRAM_TABLE 0 -> 16",
        'WINDOW_PATTERN "L" -> "TTTL"',
        "DEPTH 3 -> 2",
        "TRIGRAM_TABLE 0 -> 16",
    ]


def test_a_step_changes_its_value_and_nothing_else():
    written = propose(start(TRAIN)).candidate.source
    assert written == TRAIN.replace("\nBIGRAM_TABLE = 0 ", "\nBIGRAM_TABLE = 16 ")
    assert written != TRAIN


def test_a_smaller_batch_takes_the_device_batch_with_it():
    halved = TpeProposer(device="cuda").propose(start())
    assert halved is not None
    found = read(halved.candidate.source)
    assert (found["TOTAL_BATCH_SIZE"], found["DEVICE_BATCH_SIZE"]) == (512, 4)
    assert proposal.check(halved.candidate, {}) is None


def test_after_a_keep_the_next_step_starts_from_the_new_champion():
    night = start()
    night = after(night, propose(night), 1.58, keep=True)
    following = propose(night)
    assert following.idea.summary == "UNEMBEDDING_LR 0.004 -> 0.008"
    assert read(following.candidate.source)["DEPTH"] == 2


def test_a_step_is_not_taken_twice_whoever_took_it():
    night = start()
    theirs = make_proposal(knobs.write(SMALL, {"DEPTH": 2}), "Fewer layers", "replay")
    assert propose(after(night, theirs, 1.6)).idea.summary.startswith("UNEMBEDDING_LR")


def test_a_step_that_the_range_clamps_to_nothing_is_skipped():
    night = start(knobs.write(SMALL, {"DEPTH": 1}))
    assert propose(night).idea.summary.startswith("UNEMBEDDING_LR")


@pytest.mark.parametrize(
    "change",
    ["DEPTH = 'three' ", "DEPTH = 3; DEPTH = 3 ", "DEPTH = int('3') "],
)
def test_a_knob_that_the_champion_has_made_something_else_is_left_alone(change):
    champion = Candidate.parse(SMALL.replace("DEPTH = 3 ", change))
    night = dataclasses.replace(start(), champion=champion)
    assert night.champion.source != SMALL
    assert propose(night).idea.summary.startswith("UNEMBEDDING_LR")


def test_the_same_state_gives_the_same_proposal(stepped):
    assert propose(stepped) == propose(stepped)


def test_another_seed_trial_or_refusal_gives_another(stepped):
    others = [
        stepped,
        dataclasses.replace(stepped, seed=2),
        dataclasses.replace(stepped, next_trial=99),
        after(stepped, propose(stepped), None, status="rejected_patch"),
    ]
    assert len({propose(night).candidate.source for night in others}) == len(others)


def test_a_duplicate_is_answered_with_another_proposal(stepped):
    first = propose(stepped)
    known = dataclasses.replace(stepped, seen={first.candidate.digest or "": 3})
    second = proposal.ask(TpeProposer(), known)
    assert second is not None
    assert second.problem is None
    assert second.candidate.source != first.candidate.source


@pytest.mark.parametrize("values", [*(configs.load(name).train for name in configs.names()), GPU])
def test_every_proposal_passes_the_checks_and_stays_in_range(values):
    source = knobs.write(SMALL, values)
    night, made = play(start(source), len(STEPS) + 8)
    space = SearchSpace.load(SPACE).space
    for proposed in made:
        found = read(proposed.candidate.source)
        assert proposal.check(proposed.candidate, {Candidate.parse(source).digest or "": 0}) is None
        for name, knob in space.items():
            base = night.baseline_knobs[name]
            if knob.type == "categorical":
                assert found[name] in [
                    tuple(v) if isinstance(v, list) else v for v in knob.values(base).values()
                ]
            else:
                low, high = knob.ends(base)
                assert low <= found[name] <= high
        others = set(found) - set(space) - {"DEVICE_BATCH_SIZE"}
        assert all(found[name] == read(source)[name] for name in others)


def rates_tried(night: NightSoFar, status: str, score) -> NightSoFar:
    """The night after trials of other matrix rates that ended with this status and score(rate)."""
    for rate in (0.012, 0.015, 0.02, 0.025, 0.03, 0.05, 0.06, 0.08, 0.1, 0.14):
        theirs = make_proposal(knobs.write(SMALL, {"MATRIX_LR": rate}), "Another rate", "replay")
        night = after(night, theirs, score(rate), status=status)
    return night


def test_samples_go_where_the_scores_are_good(stepped):
    def mean_rate(sign: int) -> float:
        night = rates_tried(stepped, "ok", lambda rate: 1.5 + sign * rate)
        asked = [dataclasses.replace(night, next_trial=number) for number in range(100, 140)]
        rates = [read(propose(n).candidate.source)["MATRIX_LR"] for n in asked]
        return statistics.fmean(rate for rate in rates if rate != 0.04)

    assert mean_rate(-1) > 1.5 * mean_rate(+1)


def samples_after(night: NightSoFar, status: str, score: float | None) -> list[str]:
    night = rates_tried(night, status, lambda rate: score)
    return [propose(dataclasses.replace(night, next_trial=k)).idea.summary for k in range(100, 110)]


def test_a_stopped_trial_counts_as_worse_than_any_score(stepped):
    stopped = samples_after(stepped, "out_of_memory", None)
    assert stopped == samples_after(stepped, "ok", 9.9)
    assert stopped != samples_after(stepped, "ok", 1.0)


def test_a_patch_that_never_ran_says_nothing_about_its_knobs(stepped):
    rejected = samples_after(stepped, "rejected_patch", None)
    assert rejected == samples_after(stepped, "sandbox_error", None)
    assert rejected != samples_after(stepped, "out_of_memory", None)


def test_trials_that_the_space_cannot_express_do_no_harm(stepped):
    strange = SMALL.replace("WARMUP_RATIO", "WARM").replace(
        "WINDOW_PATTERN = 'L'", "WINDOW_PATTERN = 'LLS'"
    )
    night = after(stepped, make_proposal(strange, "Another pattern", "llm"), 1.5)
    night = after(
        night, make_proposal(knobs.write(SMALL, {"MATRIX_LR": 1e30}), "Too fast", "llm"), None
    )
    assert proposal.check(propose(night).candidate, {}) is None


def test_a_sample_moves_three_knobs_and_the_summary_names_them(stepped):
    proposed = propose(stepped)
    before, found = read(stepped.champion.source), read(proposed.candidate.source)
    moved_knobs = [
        name for name in found if found[name] != before[name] and name != "DEVICE_BATCH_SIZE"
    ]
    assert [
        part.split(" ")[0] for part in proposed.idea.summary.split(", ") if " -> " in part
    ] == moved_knobs
    assert len(moved_knobs) == 3


def kept(night: NightSoFar, source: str, score: float = 1.5) -> NightSoFar:
    """The night after a patch of the code by somebody else was kept."""
    assert proposal.check(Candidate.parse(source), {}) is None
    return after(night, make_proposal(source, "A change of code", "llm"), score, keep=True)


def test_a_new_knob_is_stepped_both_ways_after_the_steps_of_the_file(stepped):
    night, made = play(kept(stepped, knobs_only(Z_LOSS=1e-4)), 3)
    assert [p.idea.summary for p in made[:2]] == [
        "Z_LOSS 0.0001 -> 0.0002",
        "Z_LOSS 0.0001 -> 5e-05",
    ]
    assert ", " in made[2].idea.summary
    assert read(made[0].candidate.source) == {**read(night.champion.source), "Z_LOSS": 2e-4}


def test_a_kept_step_is_not_undone(stepped):
    night = kept(stepped, knobs_only(Z_LOSS=1e-4))
    night = after(night, propose(night), 1.4, keep=True)
    assert read(night.champion.source)["Z_LOSS"] == 2e-4
    assert ", " in propose(night).idea.summary


@pytest.fixture
def only_new(tmp_path) -> TpeProposer:
    """A proposer without any table."""
    (tmp_path / "none.toml").write_text("")
    return TpeProposer(tmp_path / "none.toml")


def values_tried(proposer: TpeProposer, night: NightSoFar) -> set[Any]:
    tried = set()
    for _ in range(10):
        if (proposed := proposer.propose(night)) is None:
            break
        tried.add(read(proposed.candidate.source)["NEW"])
        night = after(night, proposed, 1.7)
    return tried


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        (1e-4, 2.5e-5, 4e-4),
        (3.0, 0.75, 12.0),
        (0.95, 0.2375, 0.975),
        (0.999, 0.24975, 0.9995),
        (5, 2, 10),
        (50, 25, 100),
    ],
)
def test_a_new_number_moves_in_a_range_around_its_value(only_new, value, low, high):
    tried = values_tried(only_new, kept(start(), knobs_only(NEW=value)))
    assert {type(new) for new in tried} == {type(value)}
    assert low <= min(tried) < value < max(tried) <= high
    assert len(tried) > 3


@pytest.mark.parametrize(("value", "others"), [(32, {16, 64}), (True, {False}), (False, {True})])
def test_a_new_knob_of_few_values_takes_each_of_them(only_new, value, others):
    tried = values_tried(only_new, kept(start(), knobs_only(NEW=value)))
    assert tried - {value} == others
    assert {type(new) for new in tried} == {type(value)}


def test_a_patch_that_removes_every_knob_leaves_nothing_to_propose(stepped):
    bare = "def load_model(path, device): ...\ndef main(): return 1\n"
    night = kept(stepped, bare)
    assert TpeProposer().propose(night) is None
    assert proposal.ask(TpeProposer(), night) is None


def test_each_place_of_a_small_space_is_proposed_once_and_then_nothing(only_new):
    night, found = kept(start(), knobs_only(NEW=32, OTHER=True, COUNT=2)), []
    places = set(itertools.product((16, 32, 64), (False, True), (1, 2, 3, 4))) - {(32, True, 2)}
    for _ in places:
        proposed = only_new.propose(night)
        found.append(tuple(proposed.candidate.knobs[name] for name in ("NEW", "OTHER", "COUNT")))
        night = after(night, proposed, 1.7)
    assert sorted(found) == sorted(places)
    assert only_new.propose(night) is None


@pytest.mark.parametrize(
    "value", [0.0, -0.5, 1e-30, 1e30, 0, 1, -8, 2**60, 10**16, "relu", (1, 2), (0.5,)]
)
def test_a_new_knob_whose_range_would_be_a_guess_is_left_alone(only_new, value):
    assert only_new.propose(kept(start(), knobs_only(NEW=value))) is None


@pytest.mark.parametrize("change", ["NEW = 0.1; NEW = 0.1 ", "NEW = float('0.1') "])
def test_a_new_constant_that_cannot_be_written_is_left_alone(only_new, change):
    source = knobs_only(NEW=0.1)
    assert only_new.propose(kept(start(), source)) is not None
    assert only_new.propose(kept(start(), source.replace("NEW = 0.1 ", change))) is None


def test_the_range_is_around_the_value_that_the_knob_came_in_with(only_new):
    night = kept(kept(start(), knobs_only(NEW=1e-4)), knobs_only(NEW=3e-4))
    assert 3e-4 < max(values_tried(only_new, night)) <= 4e-4
    gone_and_back = kept(kept(night, SMALL), knobs_only(NEW=3e-4))
    assert 4e-4 < max(values_tried(only_new, gone_and_back)) <= 12e-4


def test_a_renamed_knob_continues_under_its_new_name(stepped):
    champion = SMALL.replace("MATRIX_LR", "MUON_LR")
    _, made = play(kept(stepped, champion), 12)
    assert made[0].idea.summary == "MUON_LR 0.04 -> 0.08"
    assert all("MATRIX_LR" not in p.candidate.source for p in made)
    assert {
        proposal.check(p.candidate, {Candidate.parse(champion).digest or "": 0}) for p in made
    } == {None}
    assert len({read(p.candidate.source)["MUON_LR"] for p in made[2:]}) > 2


def test_a_knob_that_takes_a_listed_name_takes_its_table():
    night = start(SMALL.replace("UNEMBEDDING_LR", "HEAD_LR"))
    assert "UNEMBEDDING_LR" in SMALL
    night = after(night, propose(night), 1.7)
    assert propose(night).idea.summary.startswith("MATRIX_LR")
    following = propose(kept(night, SMALL))
    assert following.idea.summary == "UNEMBEDDING_LR 0.004 -> 0.008"


def test_a_removed_knob_drops_out_and_the_others_stay(stepped):
    champion = "".join(
        line for line in SMALL.splitlines(True) if not line.startswith("WARMDOWN_RATIO")
    )
    night = kept(stepped, champion.replace("WARMDOWN_RATIO, ", ""))
    _, made = play(night, 8)
    assert all(set(read(p.candidate.source)) == set(read(SMALL)) - {"WARMDOWN_RATIO"} for p in made)
    assert len({p.candidate.source for p in made}) == 8


def test_trials_from_before_a_knob_came_in_count_at_the_value_that_it_came_in_with(stepped):
    early = rates_tried(stepped, "ok", lambda rate: 1.5 + rate)
    told = dataclasses.replace(
        early,
        trials=tuple(dataclasses.replace(t, knobs={**t.knobs, "NEW": 0.2}) for t in early.trials),
    )
    untold = dataclasses.replace(early, trials=stepped.trials)

    def samples(night: NightSoFar) -> list[str]:
        night, _ = play(kept(night, knobs_only(NEW=0.2)), 2)  # its two steps
        return [
            propose(dataclasses.replace(night, next_trial=k)).idea.summary for k in range(100, 106)
        ]

    assert samples(early) == samples(told)
    assert samples(early) != samples(untold)


@pytest.mark.parametrize(
    "values",
    [
        {"DEPTH": 2.5},
        {"DEPTH": True},
        {"HEAD_DIM": "auto"},
        {"ADAM_BETAS": 0.9},
        {"WARMUP_RATIO": 0},
        {"MATRIX_LR": (1, 2)},
    ],
)
def test_a_patch_that_changes_the_type_of_a_knob_does_no_harm(stepped, values):
    strange = knobs_only(**values)
    night = after(stepped, make_proposal(strange, "Another type", "llm"), 1.5)
    assert proposal.check(propose(night).candidate, {}) is None
    _, made = play(kept(night, strange), 2)
    assert {
        proposal.check(p.candidate, {Candidate.parse(strange).digest or "": 0}) for p in made
    } == {None}


def test_a_new_knob_with_a_table_is_stepped_within_it(stepped):
    without = "".join(
        line for line in SMALL.splitlines(True) if not line.startswith("WARMUP_RATIO")
    )
    without = without.replace("WARMUP_RATIO, ", "")
    night = dataclasses.replace(
        stepped, baseline_knobs=read(without), champion=Candidate.parse(without)
    )
    _, made = play(kept(night, knobs_only(WARMUP_RATIO=0.05)), 2)
    assert [p.idea.summary for p in made] == [
        "WARMUP_RATIO 0.05 -> 0.1",
        "WARMUP_RATIO 0.05 -> 0.02",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DEPTH", True),
        ("WARMUP_RATIO", 0),
        ("MATRIX_LR", "fast"),
        ("MATRIX_LR", 1e300),
        ("HEAD_DIM", "auto"),
        ("HEAD_DIM", "x2"),
    ],
)
def test_a_new_knob_that_does_not_fit_the_table_of_its_name_is_left_alone(name, value):
    without = "".join(line for line in SMALL.splitlines(True) if not line.startswith(name))
    night = kept(start(without.replace(f"{name}, ", "")), knobs_only(**{name: value}))
    assert name not in night.baseline_knobs
    _, made = play(night, len(STEPS) + 3)
    assert {read(p.candidate.source)[name] for p in made} == {value}
    assert len({p.candidate.source for p in made}) > len(STEPS)


def test_a_device_batch_that_a_patch_has_taken_over_is_not_written():
    champion = SMALL.replace(
        "DEVICE_BATCH_SIZE = 8 ", "DEVICE_BATCH_SIZE = 8; DEVICE_BATCH_SIZE = 4 "
    )
    assert champion != SMALL
    halved = TpeProposer(device="cuda").propose(kept(start(), champion))
    assert halved is not None
    assert halved.idea.summary == "TOTAL_BATCH_SIZE 1024 -> 512"
    assert "DEVICE_BATCH_SIZE = 8; DEVICE_BATCH_SIZE = 4 " in halved.candidate.source


@pytest.mark.parametrize(
    ("base", "change", "value"),
    [
        (3, "-1", 2),
        (3, "+2", 5),
        (1024, "x0.5", 512),
        (0.04, "x4", 0.16),
        (0.0, "+0.05", 0.05),
        ("L", "SL", "SL"),
    ],
)
def test_relative_values(base, change, value):
    assert moved(base, change) == value
    assert type(moved(base, change)) is type(value)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_table_names_a_knob_of_train_py_and_holds_its_default(name):
    knob, base = SearchSpace.load(SPACE).space[name], read(TRAIN)[name]
    if knob.type == "categorical":
        assert base in [tuple(v) if isinstance(v, list) else v for v in knob.values(base).values()]
    else:
        low, high = knob.ends(base)
        assert low <= base <= high
        assert low < high


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[DEPTH]\ntype = 'int'\nlow = 'y2'\nhigh = 4", "DEPTH.*low"),
        ("[DEPTH]\ntype = 'int'\nlow = 1", "DEPTH.*high"),
        ("[DEPTH]\ntype = 'number'\nlow = 1\nhigh = 2", "DEPTH.*type|DEPTH.*tag"),
        ("[DEPTH]\ntype = 'int'\nlow = 1\nhigh = 2\nsteps = 3", "DEPTH.*steps"),
        ("[RATE]\ntype = 'float'\nlow = 0\nhigh = 2\nlog = true", "RATE.*no logarithm"),
        ("[A]\ntype = 'categorical'\nchoices = [1]", "A.*choices"),
        ("steps = [['DEPTH', '-1']]", r"steps: lists by device: write \[steps\].*cpu and cuda"),
        ("[steps]\ncdua = [['DEPTH', '-1']]", "steps: cdua is no device .* takes cpu and cuda"),
        ("[steps]\ncuda = [['DEPTH']]", "steps: cuda"),
        ("[steps]\ncuda = [['DEPHT', '-1']]", "step DEPHT -1: there is no table DEPHT"),
        (
            "[steps]\ncpu = [['A', 'less']]\n[A]\ntype = 'int'\nlow = 1\nhigh = 2",
            "step A less: it takes a number",
        ),
        ("[A", "search space"),
    ],
)
def test_a_bad_search_space_is_a_usage_error_that_names_the_knob(tmp_path, text, named):
    (tmp_path / "space.toml").write_text(text)
    with pytest.raises(UsageError, match=named):
        TpeProposer(tmp_path / "space.toml").propose(start())


def test_a_missing_search_space_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"space\.toml"):
        TpeProposer(tmp_path / "space.toml").propose(start())
