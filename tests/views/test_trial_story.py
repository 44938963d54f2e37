"""One trial's story, from a real ledger, files and repository, also if parts of them are lost."""

import dataclasses
import json
import shutil
import subprocess
import unicodedata

import pytest

from tasks.errors import UsageError
from tasks.history import champion, night_folder, trial_folder
from tasks.history.ledger import Ledger
from tasks.records import RunResult, Trial
from tasks.usage import Usage
from tasks.views import trial_story, trial_text
from tests import synthetic_night
from tests.trials import (
    COMMIT,
    baseline_event,
    crash,
    keep,
    make_call,
    make_proposal,
    make_trial,
    night_event,
    write_calls,
)

BASE = "DEPTH = 3\n\n\ndef main():\n    pass\n"
BETTER = BASE.replace("3", "2")
SPENT = Usage(calls=2, prompt_tokens=20_000, completion_tokens=1000, dollars=0.05)
IDEA = {
    "proposer": "llm",
    "kind": "optimizer",
    "hypothesis": "fewer layers see more tokens",
    "expected": "0.02 less, 20% faster",
    "stands_in": "timeout: no answer",
    "note": "carried over",
    "outcome": "ok",
}
CURVE = tuple((step, 100 * step, 6.0 - 0.005 * step) for step in range(1000))


def make_run(seed=1, **changes) -> RunResult:
    fields = {
        "audit_gap": 0.0,
        "seconds": 20.0,
        "tokens": 100_000,
        "startup_seconds": 2.5,
        "curve": CURVE,
        "log": "step 1\nstep 2\n",
        "judge_log": "VALIDATION TEXT",
    }
    return synthetic_night.make_run(**{**fields, "seed": seed, **changes})


class Night:
    """A night with a repository, to which trials are added one by one."""

    def __init__(self, root) -> None:
        self.root = root / "checkout"
        self.folder = root / "home" / "nights" / "nov21"
        (self.root / "trainer").mkdir(parents=True)
        (self.root / "trainer" / "train.py").write_text(BASE)
        self.git("init", "-q", "-b", "main")
        self.git("add", "-A")
        self.git("-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-qm", "start")
        self.start = champion.start_branch(
            self.root, "nov21", champion.open_checkout(self.root).head, BASE, "the baseline"
        )
        with Ledger.create(self.folder / night_folder.LEDGER) as book:
            book.append("night", **night_event(trials=9))
        self.append("baseline", **baseline_event(start_commit=self.start))

    def git(self, *arguments) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=self.root, capture_output=True, text=True, check=True
        ).stdout

    def append(self, event, **fields) -> None:
        with Ledger.open(self.folder / night_folder.LEDGER) as book:
            book.append(event, **fields)

    def place(self, number):
        return self.folder / "trials" / str(number)

    def begin(self, number, source=BETTER, **idea) -> None:
        proposed = make_proposal(source, **{"summary": "DEPTH 3 -> 2", **IDEA, **idea})
        trial_folder.write_proposal(self.place(number), BASE, proposed, self.start)
        self.append(
            "started",
            trial=number,
            proposer=proposed.idea.proposer,
            summary=proposed.idea.summary,
            parent=self.start,
        )

    def decide(self, trial: Trial, *runs: RunResult, source=BETTER) -> None:
        self.begin(trial.number, source)
        trial = dataclasses.replace(trial, parent=self.start)
        trial_folder.write_result(self.place(trial.number), runs, trial)
        self.append("decided", trial=dataclasses.asdict(trial))

    def apply(self, trial: Trial, *runs: RunResult, source=BETTER) -> str:
        self.decide(trial, *runs, source=source)
        trial = dataclasses.replace(trial, parent=self.start)
        commit = champion.commit_candidate(self.root, "nov21", trial, source)
        self.append("applied", trial=trial.number, commit=commit)
        return commit

    def story(self, number) -> dict:
        """The story as `--json` prints it."""
        story = trial_story.describe(self.folder, self.root, number)
        return json.loads(json.dumps(dataclasses.asdict(story)))

    def text(self, number) -> str:
        return trial_text.text(trial_story.describe(self.folder, self.root, number))


@pytest.fixture
def night(tmp_path):
    return Night(tmp_path)


KEPT = keep(
    1, 1.6, **IDEA, scores=(1.59, 1.61), seeds=(4, 5), usage=SPENT, unusual="start-up took 95 s"
)


def test_a_kept_trial_has_its_idea_verdict_runs_and_patch(night):
    commit = night.apply(KEPT, make_run(4, val_bpb=1.59), make_run(5, val_bpb=1.61))
    told = night.story(1)
    assert (told["tag"], told["k"], told["state"], told["commit"], told["parent"]) == (
        "nov21",
        1,
        "decided",
        commit,
        night.start,
    )
    assert {name: told[name] for name in IDEA} == IDEA
    assert (told["verdict"], told["z"], told["val_bpb"], told["baseline"]) == (
        "keep",
        4.0,
        1.6,
        1.65,
    )
    assert [(run["seed"], run["val_bpb"], run["tokens_per_second"]) for run in told["runs"]] == [
        (4, 1.59, 5000.0),
        (5, 1.61, 5000.0),
    ]
    assert "-DEPTH = 3\n+DEPTH = 2\n" in told["diff"]
    assert told["missing"][1:] == []
    text = night.text(1)
    for said in (
        "trial 1 of night nov21: DEPTH 3 -> 2\n",
        f"proposer    llm, against {night.start[:7]}, commit {commit[:7]}\n",
        "kind        optimizer\n",
        "hypothesis  fewer layers see more tokens\n",
        "expected    0.02 less, 20% faster\n",
        "stand-in    because of timeout: no answer\n",
        "note        carried over\n",
        "verdict     keep (ok): better (z 4.00)\n",
        "score       1.600000 bits per byte, -0.050000 against the baseline's 1.650000\n",
        "unusual     start-up took 95 s\n",
        "seed 4: 1.590000 bits per byte, trained 20.0 s after 2.5 s of start-up, "
        "host memory 1.5 GiB, 100,000 tokens (5,000 a second)\n",
        "\n-DEPTH = 3\n+DEPTH = 2\n",
        f"files: {night.place(1)}",
    ):
        assert said in text


def test_the_champions_runs_for_a_trial_are_shown_below_the_trials_own(night):
    night.apply(dataclasses.replace(KEPT, champion_scores=(1.66, 1.64), champion_seeds=(6, 7)))
    assert night.story(1)["champion_runs"] == [
        {"seed": 6, "val_bpb": 1.66},
        {"seed": 7, "val_bpb": 1.64},
    ]
    told = "2 fresh runs of the champion, to compare with:\nseed 6: 1.660000 bits per byte\nseed 7"
    assert told in night.text(1)


def test_what_a_trial_needs_more_than_its_champion_is_told(night):
    grown = "parameters 0.53 M -> 33 M"
    run = make_run(parameters=33_000_000, checkpoint_bytes=132 * 2**20)
    night.apply(keep(1, 1.6, grown=grown), run)
    told = night.story(1)
    assert (told["grown"], told["runs"][0]["parameters"]) == (grown, 33_000_000)
    text = night.text(1)
    assert f"larger      {grown}\n" in text
    assert "parameters 33 M, checkpoint 132 MiB, host memory 1.5 GiB" in text


def test_a_score_is_compared_with_the_champion_of_its_time_too(night):
    night.apply(KEPT, make_run())
    night.apply(make_trial(2, val_bpb=1.62, scores=(1.62,)), make_run())
    assert (
        "score       1.620000 bits per byte, -0.030000 against the baseline's 1.650000, "
        "+0.020000 against 1.600000, the champion's at the time\n"
    ) in night.text(2)
    assert (night.story(1)["to_beat"], night.story(2)["to_beat"]) == (1.65, 1.6)


def test_a_placebo_is_told_apart(night):
    night.begin(1)
    night.apply(make_trial(1, placebo="keep", reason="better: kept; a placebo"), make_run())
    assert (night.story(1)["verdict"], night.story(1)["placebo"]) == ("discard", "keep")
    assert "verdict     placebo (ok): better: kept; a placebo (z" in night.text(1)


def test_the_curve_has_ten_points_from_the_first_to_the_last(night):
    night.apply(KEPT, make_run())
    (run,) = night.story(1)["runs"]
    assert len(run["curve"]) == 10
    assert run["curve"] == [list(point) for point in make_run().curve_in_tenths]
    losses = " ".join(f"{loss:.3f}" for _, _, loss in make_run().curve_in_tenths)
    bars = "\u2588\u2587\u2586\u2586\u2585\u2584\u2583\u2583\u2582\u2581"
    assert f"{bars}  {losses}" in night.text(1)
    assert losses.startswith("5.75")  # the mean of the first tenth, which begins with 6


@pytest.mark.parametrize("points", [0, 1, 2, 9, 10, 11])
def test_a_short_curve_is_complete(night, points):
    night.apply(KEPT, make_run(curve=CURVE[:points]))
    (run,) = night.story(1)["runs"]
    assert len(run["curve"]) == min(points, 10)
    assert ("training loss" in night.text(1)) is (points > 0)


def test_a_flat_curve_is_a_flat_line(night):
    night.apply(KEPT, make_run(curve=((0, 0, 5.0), (1, 1, 5.0))))
    assert "\u2581\u2581  5.000 5.000" in night.text(1)


def fix(night, *runs):
    """The proposer has sent the same candidate again as a fix of trial 1."""
    waiting = trial_folder.read_proposal(night.place(1))
    assert waiting is not None
    trial_folder.write_fixed(night.place(1), BASE, waiting.proposal, waiting.parent, runs)


def test_a_crash_shows_the_end_of_its_log_and_the_attempts_before_it(night):
    night.begin(1)
    broken = make_run(
        status="train_crashed",
        reason="RuntimeError: boom",
        val_bpb=None,
        curve=(),
        log="x\n" * 50 + "first boom",
    )
    fix(night, broken)
    fix(night, dataclasses.replace(broken, log="second boom"))
    night.decide(
        crash(1, fixes=2), dataclasses.replace(broken, log="third boom\nRuntimeError: boom")
    )
    assert [attempt["n"] for attempt in night.story(1)["attempts"]] == [1, 2]
    assert all("+DEPTH = 2\n" in attempt["diff"] for attempt in night.story(1)["attempts"])
    text = night.text(1)
    assert "seed 1: train_crashed: RuntimeError: boom, trained" in text
    first, second, third = (
        text.index(f"  | {which} boom\n") for which in ("first", "second", "third")
    )
    assert first < second < third
    assert text.count("  | x\n") == trial_text.LOG_LINES - 1


def test_attempts_are_in_the_order_of_their_numbers(night):
    night.begin(1)
    for _ in range(11):
        fix(night, make_run())
    (night.place(1) / "attempts" / ".part").mkdir()
    assert [attempt["n"] for attempt in night.story(1)["attempts"]] == list(range(1, 12))


def test_no_scoring_boxs_log_is_shown(night):
    night.apply(crash(1, status="eval_crashed"), make_run(status="eval_crashed", val_bpb=None))
    assert "VALIDATION" not in json.dumps(night.story(1)) + night.text(1)


def test_a_patch_that_was_not_run_has_its_reason_and_no_runs(night):
    trial = make_trial(
        1,
        status="rejected_patch",
        reason="not run: no_edit",
        val_bpb=None,
        z=None,
        scores=(),
        seeds=(),
    )
    night.apply(trial, source=BASE)
    told, text = night.story(1), night.text(1)
    assert (told["runs"], told["log"], told["missing"]) == ([], None, [])
    assert "verdict     discard (rejected_patch): not run: no_edit\n" in text
    assert "(none could be applied)" in text


def test_a_rejected_trial_names_the_answered_requests(night):
    trial = make_trial(
        1,
        proposer="llm",
        status="rejected_patch",
        reason="no_edit",
        val_bpb=None,
        scores=(),
        usage=SPENT,
    )
    night.apply(trial, source=BASE)
    calls = night.folder / night_folder.CALLS
    refused = make_call(
        1,
        2,
        outcome="unreachable",
        answer=None,
        prompt_tokens=None,
        completion_tokens=None,
        dollars=None,
    )
    write_calls(calls, make_call(1, 1), refused, make_call(1, 3, purpose="repair"), make_call(2, 1))
    assert (
        f"patch:\n(none could be applied; {calls} has the answers to requests 1.1, 1.3)\n"
        in night.text(1)
    )


def test_a_patch_that_changes_nothing_and_was_run_says_so(night):
    night.apply(make_trial(1), make_run(), source=BASE)
    assert "patch:\n(it changes nothing)\n" in night.text(1)


def test_a_requests_error_is_cut_in_the_text_only(night):
    night.apply(KEPT, make_run())
    write_calls(
        night.folder / night_folder.CALLS,
        *(make_call(1, n, outcome="not_found", error="e" * n) for n in (160, 161)),
    )
    errors = [line.split()[-1] for line in night.text(1).splitlines() if "not_found" in line]
    assert errors == ["e" * 160, f"{'e' * 157}..."]
    assert [len(call["error"]) for call in night.story(1)["calls"]] == [160, 161]


def test_requests_have_their_outcomes(night):
    night.apply(KEPT, make_run())
    failed = make_call(
        1, 1, outcome="not_found", error="block 1 is\nnot in the file", completion_tokens=20
    )
    refused = make_call(
        1,
        3,
        purpose="fix",
        outcome="unreachable",
        prompt_tokens=None,
        completion_tokens=None,
        dollars=None,
    )
    calls = [failed, make_call(1, 2, purpose="repair"), refused, make_call(2, 1)]
    write_calls(night.folder / night_folder.CALLS, *calls)
    told = night.story(1)
    assert [call["id"] for call in told["calls"]] == ["1.1", "1.2", "1.3"]
    assert told["calls"][0]["error"] == "block 1 is\nnot in the file"
    assert not {"messages", "answer"} & told["calls"][0].keys()
    assert told["usage"] == dataclasses.asdict(SPENT)
    text = night.text(1)
    assert "requests to m1: 2, 20,000 + 1,000 tokens, cost $0.0500\n" in text
    rows = [line.split("  ") for line in text.splitlines() if line.startswith("  1.")]
    assert [[cell.strip() for cell in row if cell] for row in rows] == [
        [
            "1.1",
            "propose",
            "not_found",
            "10,000 + 20 tokens",
            "$0.0250",
            "12.2 s",
            "block 1 is not in the file",
        ],
        ["1.2", "repair", "ok", "10,000 + 500 tokens", "$0.0250", "12.2 s"],
        ["1.3", "fix", "unreachable", "no answer", "-", "12.2 s"],
    ]


def test_lost_requests_are_missing_but_not_their_cost(night):
    night.apply(KEPT, make_run())
    assert night.story(1)["missing"] == ["2 of the 2 requests are not in llm_calls.jsonl"]
    assert "requests to a language model: 2, 20,000 + 1,000 tokens, cost $0.0500\n" in night.text(1)


def test_a_pending_trial_says_that_it_is_not_in_git(night):
    night.decide(make_trial(1), make_run())
    told = night.story(1)
    assert (told["state"], told["verdict"], told["commit"]) == ("pending", "discard", None)
    assert "not in git yet" in night.text(1)


def test_a_trial_in_flight_has_its_idea_patch_and_cost_and_no_verdict(night):
    night.begin(1)
    write_calls(
        night.folder / night_folder.CALLS, make_call(1, 1), make_call(1, 2, purpose="repair")
    )
    told = night.story(1)
    assert (told["state"], told["verdict"], told["status"], told["runs"]) == (
        "in flight",
        None,
        None,
        [],
    )
    assert {name: told[name] for name in IDEA} == IDEA
    assert told["parent"] == night.start
    assert told["usage"] == {
        "calls": 2,
        "prompt_tokens": 20_000,
        "completion_tokens": 1000,
        "dollars": 0.05,
    }
    text = night.text(1)
    assert "in flight: no verdict yet" in text
    assert "./run status nov21" in text
    assert "+DEPTH = 2\n" in text
    assert "verdict  " not in text


def test_a_trial_in_flight_whose_folder_is_gone_has_what_the_ledger_says(night):
    night.begin(1)
    shutil.rmtree(night.place(1))
    told = night.story(1)
    assert (told["summary"], told["proposer"], told["hypothesis"], told["diff"]) == (
        "DEPTH 3 -> 2",
        "llm",
        None,
        None,
    )
    assert told["missing"] == ["patch.diff is gone"]
    assert "missing: patch.diff is gone\n" in night.text(1)


@pytest.mark.parametrize("lost", ["train.py", "proposal.json"])
def test_a_trial_in_flight_whose_proposal_is_damaged_has_what_the_ledger_says(night, lost):
    night.begin(1)
    (night.place(1) / lost).unlink() if lost == "train.py" else (night.place(1) / lost).write_text(
        "{"
    )
    told = night.story(1)
    assert (told["summary"], told["hypothesis"]) == ("DEPTH 3 -> 2", None)
    assert lost in told["missing"][0]


def test_damaged_requests_are_missing(night):
    night.apply(dataclasses.replace(KEPT, usage=Usage()), make_run())
    (night.folder / night_folder.CALLS).write_text("{}\n")
    (missing,) = night.story(1)["missing"]
    assert "llm_calls.jsonl, line 1 is damaged" in missing


def test_a_trial_whose_folder_is_gone_is_rebuilt_from_ledger_and_git(night):
    night.apply(dataclasses.replace(KEPT, usage=Usage()), make_run())
    patch = night.story(1)["diff"]
    shutil.rmtree(night.place(1))
    told = night.story(1)
    assert told["diff"].endswith(patch[patch.index("@@") :])
    assert [
        (run["seed"], run["val_bpb"], run["seconds"], run["curve"]) for run in told["runs"]
    ] == [
        (4, 1.59, None, []),
        (5, 1.61, None, []),
    ]
    assert told["missing"] == ["result.json is gone; it had the runs' curves and figures"]
    assert "seed 4: 1.590000 bits per byte\n" in night.text(1)


def test_a_patch_that_git_lost_too_is_missing(night):
    night.decide(make_trial(1), make_run())
    night.append("applied", trial=1, commit=COMMIT)
    (night.place(1) / "patch.diff").unlink()
    (missing,) = night.story(1)["missing"]
    assert missing.startswith(
        "patch.diff is gone, and git does not have it either: git diff-tree failed"
    )


def test_the_users_settings_do_not_change_a_patch_from_git(night):
    night.apply(make_trial(1), make_run())
    shutil.rmtree(night.place(1))
    before = night.story(1)["diff"]
    for key, value in {
        "diff.external": "false",
        "color.ui": "always",
        "diff.noprefix": "true",
        "diff.x.textconv": "false",
    }.items():
        night.git("config", key, value)
    (night.root / ".git" / "info" / "attributes").write_text("*.py diff=x\n")
    assert night.story(1)["diff"] == before


@pytest.mark.parametrize("content", ["", "[]", "{", '{"runs": [{}]}', '{"runs": 5}', "\udcff"])
def test_a_damaged_result_is_missing(night, content):
    night.apply(make_trial(1), make_run())
    (night.place(1) / "result.json").write_text(content, errors="surrogateescape")
    told = night.story(1)
    assert "result.json is damaged (" in told["missing"][0]
    assert told["runs"][0]["val_bpb"] == 1.66


def test_the_baseline_has_its_seeds_and_no_patch(night):
    told, text = night.story(0), night.text(0)
    assert [(run["seed"], run["val_bpb"]) for run in told["runs"]] == [
        (1, 1.64),
        (2, 1.65),
        (3, 1.66),
    ]
    assert told["commit"] == night.start
    assert "score       1.650000 bits per byte, sd of one run 0.010000\n" in text
    assert "seed 3: 1.660000 bits per byte" in text
    assert "patch:" not in text


def test_a_baseline_that_is_not_measured_says_so(tmp_path):
    with Ledger.create(tmp_path / night_folder.LEDGER) as book:
        book.append("night", **night_event())
    story = trial_story.describe(tmp_path, tmp_path, 0)
    assert (story.state, story.val_bpb, story.runs) == ("not measured", None, ())
    assert "not measured yet" in trial_text.text(story)


@pytest.mark.parametrize("number", [-1, 3, 10**9])
def test_an_unknown_trial_number_names_the_known_ones(night, number):
    night.apply(make_trial(1), make_run())
    night.begin(2)
    told = rf"night nov21 has no trial {number}; its trials are 0 \(the baseline\) to 2"
    with pytest.raises(UsageError, match=told):
        night.story(number)


def test_a_night_without_trials_has_its_baseline_only(night):
    with pytest.raises(UsageError, match=r"its trials are 0 \(the baseline\)$"):
        night.story(1)


EVIL = "a\x1b[2J\x1b]0;owned\x07\u202eb\x00\x9bc\r\n\ud800\u2028d\x7f"


def test_control_characters_of_candidates_and_models_do_not_reach_the_terminal(night):
    names = (
        "summary",
        "hypothesis",
        "expected",
        "stands_in",
        "note",
        "kind",
        "proposer",
        "reason",
        "unusual",
    )
    words = dict.fromkeys(names, EVIL)
    night.begin(1)
    run = make_run(status="train_crashed", reason=EVIL, val_bpb=None, log=EVIL)
    fix(night, run)
    night.decide(crash(1, usage=SPENT, **words), run, source=BASE + f"# {EVIL}\n")
    write_calls(
        night.folder / night_folder.CALLS,
        make_call(1, 1, error=EVIL, model=EVIL, outcome="not_found"),
    )
    text = night.text(1)
    assert text.count("owned") >= 12
    assert not [c for c in text if unicodedata.category(c)[0] == "C" and c not in "\n\t"]
    assert night.story(1)["reason"] == EVIL


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("\x1b[1m", "\ufffd[1m"),
        ("\u202e\u200d", "\ufffd" * 2),
        ("", ""),
    ],
)
def test_plain_text_keeps_its_lines_and_tabs(words, said):
    assert trial_text.plain(words) == said


def test_a_huge_log_is_cut_to_its_end(night):
    night.decide(
        crash(1),
        make_run(status="train_crashed", val_bpb=None, log="y" * 10**6 + "\n" + "z" * 10**6),
    )
    told = night.story(1)
    assert told["log"] == "z" * trial_story.LOG_TAIL
    assert len(night.text(1)) < 10_000
