"""What a person reads in the morning: reports and charts of states of every kind."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from tasks.history.false_keeps import FalseKeeps
from tasks.records import NightState, Program, Quarantined, Remeasurement
from tasks.usage import Usage
from tasks.views import chart, refusals, report
from tests.links import EVIL, links
from tests.trials import crash, keep, make_baseline, make_state, make_trial

ASKING = {
    "proposer": "llm",
    "settings": {"llm": {"model": "m|1"}},
    "program": Program("program.md", "5a" * 32, ""),
}
SPENT = Usage(calls=2, prompt_tokens=12_000, completion_tokens=800, dollars=0.75)
STATES = {
    "nothing yet": make_state(baseline=None, champion=None, champion_scores=(), finished=None),
    "baseline only": make_state(finished=None, in_flight=1),
    "all crashed": make_state(crash(1), crash(2)),
    "one kept": make_state(keep()),
    "of all kinds": make_state(
        make_trial(1),
        keep(2, summary="a $x^2 \x1b[31m"),
        crash(3),
        keep(4, 1.5),
        make_trial(5, val_bpb=9.0),
    ),
    "of a model": make_state(
        keep(1, proposer="llm", kind="optimizer", outcome="ok", usage=SPENT),
        crash(2, proposer="llm", kind="data order", outcome="ok", fixes=2, usage=SPENT),
        make_trial(3, stands_in="timeout", outcome="timeout", usage=Usage(1, 0, 0, 0.0)),
        keep(4, 1.5, stands_in="the night has used 9 of 8 tokens"),
        make_trial(5, stands_in="the night has used 9 of 8 tokens"),
        header=ASKING,
    ),
    "with placebos": make_state(
        keep(1), make_trial(2, placebo="discard"), make_trial(3, placebo="keep", val_bpb=9.0)
    ),
    "no sd": make_state(keep(), baseline=make_baseline(scores=(1.65,), seeds=(1,), sd=0.0)),
    "many": make_state(
        *(keep(k, 1.65 - 0.001 * k) if k % 3 == 0 else make_trial(k) for k in range(1, 120))
    ),
}
each_state = pytest.mark.parametrize("state", STATES.values(), ids=STATES)


def row(state: NightState, number: int) -> list[str]:
    """The cells of a trial in the report's table."""
    (line,) = [
        line for line in report.markdown(state).splitlines() if line.startswith(f"| {number} |")
    ]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def read_png(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)[..., :3]


def pixels(image: np.ndarray, colour: str) -> int:
    """How many pixels have just this colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return int((np.abs(image - wanted).max(axis=-1) < 0.01).sum())


def test_results_are_upstreams_columns_with_the_baseline_first():
    table = [
        line.split("\t")
        for line in report.results_tsv(make_state(keep(), make_trial(2), crash(3))).splitlines()
    ]
    assert table == [
        ["commit", "val_bpb", "memory_gb", "status", "description"],
        ["abcdefa", "1.650000", "", "keep", "baseline"],
        ["0123456", "1.600000", "1.5", "keep", "DEPTH 3 -> 2"],
        ["0123456", "1.660000", "1.5", "discard", "DEPTH 3 -> 2"],
        ["0123456", "", "", "crash", "DEPTH 3 -> 2"],
    ]


def test_a_description_breaks_no_row():
    text = report.results_tsv(make_state(make_trial(summary="a\tb\nc\r\x0b\x1b[2Jd\u2028e")))
    assert text.splitlines()[2].split("\t")[4] == "a b c [2Jd e"


@each_state
def test_results_have_five_cells_a_row(state):
    assert {line.count("\t") for line in report.results_tsv(state).split("\n")[:-1]} == {4}


def test_the_headline_is_the_gain_over_the_baseline():
    text = report.markdown(make_state(keep(), make_trial(2), crash(3), used_seconds=29_100.0))
    assert (
        "**1.600000 bits per byte, 0.050000 (3.03%, 5.0 sd of one run) better than the baseline's "
        "1.650000.**" in text
    )
    assert "3 trials: 1 kept, 1 discarded, 1 stopped. Wall time 8 h 05 min." in text


def test_a_keep_that_is_simpler_but_worse_is_not_called_better():
    assert "0.010000 (0.61%, 1.0 sd of one run) worse than the baseline's" in report.markdown(
        make_state(keep(1, 1.66))
    )


def test_a_night_without_a_keep_says_so():
    assert "Nothing was kept: the baseline has 1.650000" in report.markdown(
        make_state(make_trial())
    )
    assert "git merge" not in report.markdown(make_state(make_trial()))


def test_a_night_that_is_not_over_says_how_to_resume_it():
    text = report.markdown(make_state(make_trial(), finished=None, in_flight=2))
    assert "not over: trial 2 has started" in text
    assert "./run resume nov21" in text


def test_a_trial_is_a_row_with_its_difference_and_reason():
    state = make_state(keep(), crash(2))
    assert row(state, 1) == [
        "1",
        "DEPTH 3 -> 2",
        "**keep**",
        "1.600000",
        "-0.050000",
        "-0.050000",
        "4.00",
        "1",
        "better",
    ]
    assert row(state, 2) == [
        "2",
        "DEPTH 3 -> 2",
        "stopped: train_crashed",
        "-",
        "-",
        "-",
        "-",
        "0",
        "RuntimeError: boom",
    ]


def test_a_trial_is_compared_with_the_champion_of_its_time():
    state = make_state(
        make_trial(1, val_bpb=1.64),
        keep(2, 1.6, scores=(1.59, 1.61)),
        make_trial(3, val_bpb=1.61),
        keep(4, 1.5),
        make_trial(5, val_bpb=1.5),
    )
    differences = [(row(state, k)[4], row(state, k)[5]) for k in range(1, 6)]
    assert differences == [
        ("-0.010000", "-0.010000"),
        ("-0.050000", "-0.050000"),
        ("-0.040000", "+0.010000"),
        ("-0.150000", "-0.100000"),
        ("-0.150000", "0.000000"),
    ]
    assert "| vs baseline | vs champion |" in report.markdown(state)


@pytest.mark.parametrize(
    ("trial", "verdict"),
    [
        (make_trial(z=0.99), "discard, within noise"),
        (make_trial(z=-0.99), "discard, within noise"),
        (make_trial(z=-1.0), "discard"),
        (keep(z=0.2), "**keep, within noise**"),
        (keep(z=2.5), "**keep**"),
        (crash(), "stopped: train_crashed"),
        (crash(status="rejected_patch"), "rejected"),
    ],
)
def test_the_verdict_names_what_is_within_noise_and_what_was_never_run(trial, verdict):
    assert row(make_state(trial), 1)[2] == verdict


def test_a_patch_that_was_never_run_is_rejected_and_not_stopped():
    trials = (keep(), make_trial(2), crash(3, status="rejected_patch"), crash(4))
    assert "4 trials: 1 kept, 1 discarded, 1 rejected, 1 stopped." in report.headline(
        make_state(*trials)
    )


def test_what_is_unknown_is_a_dash_and_never_none_or_zero():
    text = report.markdown(STATES["nothing yet"])
    assert "None\n" not in text
    assert "None " not in text.replace("None yet", "")
    assert "- hardware: -" in text
    assert "The baseline is not measured yet" in text


def test_trust_covers_noise_runs_selection_audit_and_isolation():
    text = report.markdown(make_state(keep(score=1.6)))
    for said in (
        "sd 0.01 of one run, 2 degrees of freedom.",
        "mean of 1 run: 1.600000",
        "Selection:",
        "bwrap",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("trials", "said"),
    [
        ((make_trial(),), "no trial came near a keep"),
        (
            (keep(audit_gap=0.0), make_trial(2)),
            "in 1 of 2 trials. None failed; no claim was measurably too low.",
        ),
        (
            (keep(audit_gap=4e-7), make_trial(2, audit_gap=-1e-3)),
            "None failed; no claim was measurably too low.",
        ),
        ((keep(audit_gap=2e-5),), "None failed; the claims were at most 0.000020 nats per token"),
        (
            (keep(audit_gap=0.0), crash(2, status="audit_failed", audit_gap=3.0)),
            "1 failed; no other claim was measurably too low.",
        ),
        (
            (keep(audit_gap=2e-5), crash(2, status="audit_failed", audit_gap=3.0)),
            "1 failed; the other claims were at most 0.000020",
        ),
        ((crash(status="audit_failed", audit_gap=3.0),), "1 failed."),
        ((keep(), keep(2, audit_gap=0.0)), "NOT DONE for kept trial 1."),
    ],
)
def test_trust_says_what_was_audited(trials, said):
    assert said in report.markdown(make_state(*trials))


def test_a_night_that_asked_a_model_says_what_it_cost():
    text = report.markdown(STATES["of a model"])
    for said in (
        "## What it cost",
        "- Language model: 5 requests for these trials, 25,600 tokens (24,000 in prompts, 1,600 in "
        "answers).",
        "- Cost: $1.50, $1.50 for each keep by the model.",
        "- Proposals by outcome of their last request: ok 2, timeout 1.",
        "- Keeps by kind: optimizer 1, knobs 1.",
        "- tpe stood in for the model in 3 of its 5 trials (60%):\n"
        "  - 2 trials (4, 5): the night has used 9 of 8 tokens\n  - 1 trial (3): timeout\n",
        "- model: m\\|1\n- program: program.md, sha256 5a5a5a5a5a5a\n",
    ):
        assert said in text


def test_a_night_without_prices_says_that_its_cost_is_unknown():
    text = report.markdown(
        make_state(keep(1, proposer="llm", usage=Usage(1, 10, 10, None)), header=ASKING)
    )
    assert "- Cost: unknown, because the profile has no prices.\n" in text
    assert "$" not in text


def test_a_night_whose_model_never_failed_names_no_fallback():
    state = make_state(make_trial(1, proposer="llm", outcome="ok", usage=SPENT), header=ASKING)
    assert "stood in" not in report.markdown(state)


def test_a_model_without_a_keep_of_its_own_has_no_price_of_one():
    stand_in = keep(2, stands_in="timeout: no answer")
    text = report.markdown(
        make_state(
            make_trial(1, proposer="llm", outcome="ok", usage=SPENT), stand_in, header=ASKING
        )
    )
    assert "- Cost: $0.75.\n" in text


def test_tpes_own_trials_in_a_mixed_night_are_no_stand_ins():
    trials = [
        make_trial(1),
        make_trial(2),
        keep(3, proposer="llm", usage=SPENT),
        keep(4, stands_in="timeout: x"),
    ]
    text = report.markdown(make_state(*trials, header={**ASKING, "proposer": "mixed"}))
    assert (
        "- tpe stood in for the model in 1 of its 2 trials (50%):\n  - 1 trial (4): timeout: x\n"
        in text
    )
    assert "$0.75 for each keep by the model" in text


def test_an_endpoints_text_is_escaped_and_cut():
    trials = [
        make_trial(k, stands_in=f"bad_request: <b> `x` | {'y' * 999}\n# z") for k in range(1, 12)
    ]
    (line,) = [
        line
        for line in report.markdown(make_state(*trials, header=ASKING)).splitlines()
        if "bad_request" in line
    ]
    assert line.startswith(
        "  - 11 trials (1, 2, 3, 4, 5, 6, 7, 8, ...): bad_request: \\<b> \\`x\\` \\| yyy"
    )
    assert len(line) < 300


def test_an_agents_cost_is_unknown_and_its_proposals_are_counted():
    usage = Usage(dollars=None)
    trials = [
        keep(1, proposer="command", outcome="ok", kind="schedule", usage=usage),
        make_trial(2, proposer="command", outcome="unfit", status="rejected_patch", usage=usage),
        make_trial(3, outcome="timeout", stands_in="the command was not done after 600 s"),
    ]
    text = report.markdown(make_state(*trials, header={"proposer": "command"}))
    for said in (
        "## What it cost",
        "- Cost and tokens: unknown, because the command uses an account of its own.",
        "- Proposals by outcome: ok 1, unfit 1, timeout 1.",
        "- Keeps by kind: schedule 1.",
        "- tpe stood in for the command in 1 of its 3 trials (33%):\n"
        "  - 1 trial (3): the command was not done after 600 s\n",
    ):
        assert said in text
    assert "$" not in text
    assert "Language model" not in text


def test_the_table_names_the_proposer_if_there_were_several():
    state = make_state(keep(1, proposer="llm"), make_trial(2))
    assert row(state, 1)[:4] == ["1", "DEPTH 3 -> 2", "llm", "**keep**"]
    assert row(state, 2)[:4] == ["2", "DEPTH 3 -> 2", "tpe", "discard, within noise"]
    table = [line for line in report.markdown(state).splitlines() if line.startswith("|")]
    assert table[0].startswith("| # | what | by | verdict |")
    assert {line.count("|") for line in table} == {11}


@pytest.mark.parametrize("name", [name for name in STATES if name != "of a model"])
def test_a_night_that_asked_no_model_says_nothing_of_cost(name):
    text = report.markdown(STATES[name])
    assert "What it cost" not in text
    assert "- model:" not in text
    assert "- program:" not in text


def test_an_unusual_start_up_is_named():
    text = report.markdown(
        make_state(make_trial(unusual="start-up took 95 s, the baseline's 40 s"))
    )
    assert "- Unusual: trial 1: start-up took 95 s, the baseline's 40 s." in text


def test_a_keep_beyond_what_the_nights_spread_makes_plausible_is_to_be_read_first():
    others = [make_trial(k, z=z) for k, z in enumerate((-9.0, -3.0, 0.5, 1.0, -1.0), start=1)]
    text = report.markdown(make_state(*others, keep(6, z=25.0), keep(7, z=4.0)))
    assert text.count("Read first") == 1
    assert "- Read first: trial 6 is 25.0 standard errors better than its champion" in text
    assert "`./run show nov21 6`" in text


def test_a_night_without_a_sandbox_says_so_loudly():
    text = report.markdown(make_state(keep(), header={"isolation": "none"}))
    assert "Isolation: NONE" in text


def test_the_next_steps_name_the_branch_and_the_first_commit():
    text = report.markdown(make_state(keep()))
    assert "git diff abcdefa autoresearch/nov21 -- trainer/train.py" in text
    assert "git show refs/trials/nov21/1" in text
    assert "./run show nov21 1" in text
    assert "./run compare nov21 TAG" in text


def test_provenance_says_what_it_started_from():
    detached = make_state(keep(), header={"branch": None, "dirty": True})
    assert "- started from: main at fffffff\n" in report.markdown(make_state(keep()))
    assert (
        "- started from: a detached HEAD at fffffff with uncommitted changes\n"
        in report.markdown(detached)
    )


def test_provenance_says_how_much_of_the_text_the_rows_hold():
    told = "19,281 rows of 128 + 1 tokens hold 99.99 % of the training text"
    text = report.markdown(make_state(baseline=make_baseline(rows=told)))
    assert f"- training rows: {told}\n" in text


def test_a_candidates_words_are_text():
    evil = "![x](http://evil) | <img src=y> `rm` **b**\n# head\x1b]0;title\x07"
    cells = row(make_state(crash(summary=evil, reason=evil)), 1)
    assert (
        cells[1]
        == cells[8]
        == r"!\[x](http\[://]evil) \| \<img src=y> \`rm\` \*\*b\*\* # head ]0;title"
    )


def test_a_report_has_no_link_of_a_candidate_a_model_or_an_error():
    words = " ".join(EVIL)
    trials = [
        crash(1, summary=words, reason=words, stands_in=f"timeout: {words}"),
        keep(2, summary=words, reason=words, unusual=words, proposer="llm", kind=words),
    ]
    for end in ({"finished": words}, {"finished": None, "stopped": words, "failed": True}):
        text = report.markdown(make_state(*trials, header=ASKING, **end))
        assert links(text) == []
        assert text.count("evil") > 20


@each_state
def test_every_state_has_a_report_and_a_chart(state, tmp_path):
    report.write(state, tmp_path)
    chart.draw(state, tmp_path / "progress.png")
    assert sorted(os.listdir(tmp_path)) == ["progress.png", "report.md", "results.tsv"]
    assert (tmp_path / "report.md").read_text() == report.markdown(state)
    assert read_png(tmp_path / "progress.png").shape == (600, 1200, 3)


def test_what_mlflow_does_not_take_is_named(tmp_path):
    refusals.write(tmp_path, {"nov21:1": "named ![x](http://evil)"})
    report.write(make_state(keep()), tmp_path)
    named = r"named !\[x](http\[://]evil)"
    said = f"- MLflow lacks trial 1 ({named}): `./run rebuild nov21` tries again"
    assert said in (tmp_path / "report.md").read_text().splitlines()


def test_writing_again_replaces_whole_files(tmp_path):
    path = tmp_path / "progress.png"
    chart.draw(make_state(keep()), path)
    first = path.read_bytes()
    chart.draw(make_state(keep(), crash(2)), path)
    assert path.read_bytes() != first
    chart.draw(make_state(keep()), path)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("trial", "colour"),
    [
        (keep(), chart.GREEN),
        (make_trial(), chart.GREY),
        (make_trial(val_bpb=9.0), chart.GREY),
        (make_trial(z=-3.0), chart.GREY),
        (keep(z=0.2), chart.GREEN),
        (crash(), chart.RED),
        (crash(status="rejected_patch"), chart.RED),
    ],
    ids=["keep", "noise", "above", "lost", "kept noise", "crash", "rejected"],
)
def test_each_outcome_has_its_colour_in_the_chart(tmp_path, trial, colour):
    chart.draw(make_state(), tmp_path / "before.png")
    chart.draw(make_state(trial), tmp_path / "after.png")
    before, after = (
        pixels(read_png(tmp_path / name), colour) for name in ("before.png", "after.png")
    )
    assert after > before + 20


@pytest.mark.parametrize(
    ("trial", "label"),
    [
        (make_trial(z=0.3), "discarded, within noise"),
        (make_trial(z=-3.0), "discarded"),
        (make_trial(val_bpb=9.0, z=-9.0), "discarded, above the chart"),
        (keep(z=0.2), "kept, within noise"),
        (keep(), "kept"),
        (crash(), "stopped, no score"),
        (crash(status="rejected_patch"), "rejected, not run"),
        (make_trial(placebo="discard"), "placebo"),
        (make_trial(placebo="keep", val_bpb=9.0), "placebo"),
        (crash(placebo="discard"), "stopped, no score"),
    ],
)
def test_the_charts_legend_names_each_outcome(trial, label):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    chart._draw(axes, make_state(trial))
    labels = axes.get_legend_handles_labels()[1]
    assert [name for name in labels if name in chart.MARKS] == [label]


def test_a_hopeless_score_does_not_flatten_the_chart():
    low, top = chart._limits(STATES["of all kinds"])
    assert low < 1.5 < 1.66 < top < 2.5


def test_no_more_labels_than_can_be_read():
    kept = [
        (trial.number, trial.val_bpb or 0.0, trial)
        for trial in STATES["many"].trials
        if trial.verdict == "keep"
    ]
    labelled = chart._labelled(kept, 120, 0.2)
    assert 1 < len(labelled) <= chart.LABELLED < len(kept)


GROWN = "parameters 0.53 M -> 33 M, checkpoint 2.1 MiB -> 132 MiB"
SMALL = {"parameters": 530_000, "checkpoint_bytes": 2_200_000, "peak_memory_bytes": 700 * 2**20}
LARGE = {"parameters": 33_000_000, "checkpoint_bytes": 138_000_000, "peak_memory_bytes": 2**30}


def test_a_win_bought_with_a_giant_table_says_so():
    won, lost = keep(1, **LARGE, grown=GROWN), make_trial(2, **LARGE, grown=GROWN)
    text = report.markdown(make_state(won, lost, baseline=make_baseline(**SMALL)))
    rows = [line for line in text.splitlines() if line.startswith(("| 1 ", "| 2 "))]
    assert f"better. Much larger than its champion: {GROWN} |" in rows[0]
    assert GROWN not in rows[1]  # nothing was bought
    assert (
        "- Size of the champion: parameters 33 M, checkpoint 132 MiB, host memory 1 GiB. "
        f"Much larger than the baseline: {GROWN}.\n"
    ) in text


def test_growth_by_small_steps_shows_against_the_baseline():
    grown = (1, 700_000), (2, 1_000_000)
    steps = [keep(k, parameters=p, peak_memory_bytes=None) for k, p in grown]
    text = report.markdown(make_state(*steps, baseline=make_baseline(**SMALL)))
    assert "parameters 1 M. Much larger than the baseline: parameters 0.53 M -> 1 M.\n" in text


def test_the_size_of_a_night_without_a_keep_is_the_baselines():
    text = report.markdown(make_state(make_trial(), baseline=make_baseline(**SMALL)))
    assert (
        "- Size of the baseline: parameters 0.53 M, checkpoint 2.1 MiB, host memory 700 MiB.\n"
        in text
    )


def test_an_older_ledger_says_nothing_of_sizes():
    assert "Size of" not in report.markdown(make_state(keep(1, peak_memory_bytes=None)))


def test_placebos_are_no_candidates_and_tell_how_often_the_rule_is_wrong():
    state = make_state(
        keep(1, 1.6, scores=(1.6, 1.6)),
        make_trial(
            2, placebo="keep", champion_scores=(1.61, 1.62, 1.63), val_bpb=1.6, proposer="placebo"
        ),
        make_trial(3, placebo="discard", val_bpb=1.61, proposer="placebo"),
    )
    text = report.markdown(state)
    assert "3 trials: 1 kept, 0 discarded, 0 stopped, 2 placebos" in text
    assert "the best of 1 trial was" in text
    assert "- False keeps. Of 2 placebo trials (the champion unchanged) 1 would have been" in text
    cells = row(state, 2)
    assert cells[2] == "placebo, a false keep"  # no column of proposers before it
    assert cells[5] == "-0.020000"  # against the fresh runs alone
    assert row(state, 3)[2] == "placebo"
    assert [line.split("\t")[3] for line in report.results_tsv(state).splitlines()[2:]] == [
        *("keep", "placebo", "placebo")
    ]


def test_the_rate_is_also_that_of_all_comparable_nights():
    text = report.markdown(make_state(keep(1)), {}, FalseKeeps.of(40, 2))
    assert "- False keeps. Of 40 placebo trials of all comparable nights 2 would have" in text
    assert "False keeps" not in report.markdown(make_state(keep(1)))


def test_a_report_names_repeated_runs_and_why():
    aside = Quarantined("candidate", 1, "its threads waited 0.50 s a second", "ok", 1.9)
    state = make_state(make_trial(1, quarantined=(aside, aside)), make_trial(2))
    assert (
        "- Conditions: 2 runs were repeated, because the machine was not as usual (trial 1). The "
        "first: its threads waited 0.50 s a second."
    ) in report.markdown(state).splitlines()


def test_a_report_compares_each_trial_with_the_baseline_of_its_hardware():
    base = make_baseline(hardware="a GPU", val_bpb=1.75)
    again = Remeasurement(
        "the hardware changed from a CPU to a GPU",
        1,
        "a CPU",
        (1.64, 1.65, 1.66),
        (1.60,),
        base,
        (1.70, 1.71, 1.72),
        (4, 5, 6),
        (),
    )
    state = make_state(
        keep(1, 1.60), make_trial(2, val_bpb=1.73), baseline=base, remeasurements=(again,)
    )
    assert (
        "- Measured again after 1 trial: the hardware changed from a CPU to a GPU. In bits per "
        "byte, the baseline had 1.650000 on a CPU and has 1.750000, the champion had 1.600000 on "
        "a CPU and has 1.710000. Later trials are compared with the new scores alone."
    ) in report.markdown(state).splitlines()
    rows = [line for line in report.markdown(state).splitlines() if re.match(r"\| [12] \|", line)]
    differences = [re.findall(r"[+-]0\.\d+", row) for row in rows]
    assert differences == [["-0.050000", "-0.050000"], ["-0.020000", "+0.020000"]]


def test_the_researchers_last_notes_are_in_the_report_as_text():
    hostile = f"# Heading\n```\n{EVIL}\n\x1b[31m| a | b |"
    state = make_state(make_trial(1, notes="an old plan"), crash(2, notes=hostile))
    text = report.markdown(state)
    section = text.partition("## The researcher's notes\n\n")[2].partition("\n## Next")[0]
    shown = [line for line in section.splitlines() if line.startswith("    ")]
    assert shown[:2] == ["    # Heading", "    ```"]
    assert not links(text)
    assert "an old plan" not in text
    assert "`./run show nov21 K`, the latest for trials 1, 2." in section
    assert "The researcher's notes" not in report.markdown(make_state(make_trial(1)))


def test_long_notes_are_cut_in_the_report():
    many = "\n".join("n" * 5000 for _ in range(500))
    assert len(report.markdown(make_state(make_trial(1, notes=many)))) < 30_000
