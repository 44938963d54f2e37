"""Two programs compete in a night that is killed and resumed.

Real command line, servers, boxes, judge and git; the model is a script on loopback, train.py the
stub.
"""

import itertools
import json

import pytest

from tests.faults import adds_up
from tests.faults.llm_server import FAKE_KEY, LlmServer, ok
from tests.faults.scripted_model import CONTINUATIONS, EMBEDDING, harmless, several
from tests.faults.stub_checkout import PROFILE, StubCheckout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
PROGRAMS = {"bold.md": "Be bold tonight.", "careful.md": "Be careful tonight."}
EDITED = "Be neither."
KILLS = ("started:2", "decided:2")  # one after the other, then the night may end
TRIALS = 5


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, warm, prefect_api, empty_store):
    folder = tmp_path_factory.mktemp("tournament") / "checkout"
    folder.mkdir()
    made = StubCheckout(folder, warm=warm, api=prefect_api, store=empty_store)
    for name, text in PROGRAMS.items():
        (folder / name).write_text(text)
    return made


def asked(body) -> str:
    """Whose program a request has."""
    told = json.dumps(body["messages"])
    (name,) = [name for name, text in PROGRAMS.items() if text in told]
    return name


@pytest.fixture(scope="module")
def model():
    bold, numbers = iter([several(CONTINUATIONS, harmless(1))]), itertools.count(2)

    def step(body):
        if "ready" in str(body["messages"])[:200]:
            return ok("ready")
        if asked(body) == "bold.md":
            return ok(next(bold, None) or several(harmless(next(numbers)), harmless(next(numbers))))
        return ok(harmless(next(numbers)))

    with LlmServer(step) as server:
        yield server


@pytest.fixture(scope="module")
def before(checkout):
    return adds_up.UserTree.of(checkout)


@pytest.fixture(scope="module")
def night(checkout, before, model):
    """The night, through: what its last command printed."""
    flags = ("--programs", ",".join(PROGRAMS), "--profile", PROFILE, "--trials", str(TRIALS))
    keys = {"OPENAI_BASE_URL": model.url, "OPENAI_API_KEY": FAKE_KEY}
    first, second = KILLS
    done = checkout.run("tournament", *flags, "--tag", "duel", **keys, NIGHTLY_TEST_KILL_AT=first)
    assert done.returncode == -9, done.stderr
    (checkout.folder / "bold.md").write_text(EDITED)
    done = checkout.run("resume", "duel", **keys, NIGHTLY_TEST_KILL_AT=second)
    assert done.returncode == -9, done.stderr
    done = checkout.run("resume", "duel", "--json", **keys)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def trials(checkout, night):
    events = checkout.ledger("duel")
    return [event["trial"] for event in events if event["event"] == "decided"]


def test_each_trial_is_an_idea_of_its_contender_before_and_after_the_kills(checkout, trials):
    path = checkout.home / "nights" / "duel" / "llm_calls.jsonl"
    calls = [call for call in map(json.loads, path.read_text().splitlines()) if call["trial"]]
    whose = {trial["number"]: trial["idea"]["contender"] for trial in trials}
    assert sorted(whose) == list(range(1, TRIALS + 1))
    of = {(call["trial"], asked(call)) for call in calls}
    made = {(int(t["idea"]["queued"].split(".")[0]), t["idea"]["contender"]) for t in trials}
    assert made <= of
    assert len(dict(of)) == len(of)  # one contender is asked for a trial
    assert max(len(t["idea"]["choice"]) for t in trials) > 1
    assert {name: list(whose.values())[:4].count(name) for name in PROGRAMS} == {
        "bold.md": 2,
        "careful.md": 2,
    }


def test_the_tournament_adds_up(checkout, night, before):
    assert adds_up.complaints(checkout, "duel", TRIALS, before) == []


def test_an_edit_of_a_program_is_for_the_next_night(checkout, model, night):
    assert EDITED not in json.dumps(model.requests)
    copies = sorted((checkout.home / "nights" / "duel").glob("program*.md"))
    assert [copy.read_text() for copy in copies] == list(PROGRAMS.values())


def test_the_results_say_what_each_has_brought_and_how_sure_that_is(checkout, night, trials):
    found = night["tournament"]
    bold, careful = found["contenders"]
    kept = [t["number"] for t in trials if t["verdict"] == "keep"]
    assert (bold["name"], careful["name"]) == tuple(PROGRAMS)
    assert bold["trials"] + careful["trials"] == TRIALS
    assert bold["kept"] + careful["kept"] == len(kept) > 0
    assert bold["gain"] > careful["gain"]
    assert found["best"] == "bold.md"
    assert not found["decided"]
    assert bold["chance"] + careful["chance"] == pytest.approx(1.0)
    assert bold["dollars"] + careful["dollars"] == pytest.approx(
        sum(trial["usage"]["dollars"] for trial in trials)
    )
    report = (checkout.home / "nights" / "duel" / "report.md").read_text()
    assert found["verdict"] in report
    assert "| bold.md |" in report
    status = checkout.run("status", "duel")
    assert found["verdict"] in status.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no list: a tournament needs one list"),
        (["--models", "a,b", "--proposers", "llm,tpe"], "--models and --proposers: a tournament"),
        (["--models", "a"], "1 given, and a tournament needs 2 to 8"),
        (["--models", "a,b,a"], "a is given twice"),
        (["--models", "a,,b"], "names with commas between them"),
        (["--models", "a,b", "--model", "c"], "--model c beside --models"),
        (["--proposers", "llm,oracle"], "unknown proposer 'oracle'"),
        (["--proposers", "tpe,replay", "--model", "c"], "--model c is for the proposers"),
        (["--proposers", "tpe,replay", "--trials", "3"], "3 trials are too few for 2 contenders"),
        (["--programs", "bold.md,none.md"], "there is no file"),
        (["--programs", "bold.md,./bold.md"], "./bold.md is given twice"),
        (["--programs", "bold.md,empty.md"], "empty.md is empty"),
        (
            ["--programs", "careful.md,configs/program.md", "--tag", "duel"],
            "was started with contenders",
        ),
    ],
)
def test_bad_input_is_one_line(checkout, night, model, arguments, said):
    (checkout.folder / "empty.md").write_text("\n")
    given = ["--trials", "8", *arguments, "--profile", PROFILE]
    done = checkout.run("tournament", *given, OPENAI_BASE_URL=model.url)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_proposers_compete_without_a_model(checkout, night):
    patches, profile = checkout.folder / "patches", checkout.folder / "replaying.toml"
    patches.mkdir()
    source = (checkout.folder / "trainer" / "train.py").read_text()
    for number in (1, 2):
        changed = source.replace(EMBEDDING, EMBEDDING.replace("0.6", f"0.70{number}"))
        (patches / f"0{number}-added.py").write_text(f"# patch {number}\n{changed}")
    text = (checkout.folder / PROFILE).read_text()
    profile.write_text(text.replace("[night]\n", f'[night]\npatches = "{patches}"\n'))
    done = checkout.run(
        *("tournament", "--proposers", "tpe,replay", "--profile", str(profile)),
        *("--trials", "4", "--tag", "plain", "--json"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["tournament"]
    assert [(one["name"], one["trials"], one["dollars"]) for one in found["contenders"]] == [
        ("tpe", 2, 0.0),
        ("replay", 2, 0.0),
    ]
    ideas = [e["trial"]["idea"] for e in checkout.ledger("plain") if e["event"] == "decided"]
    assert all(idea["contender"] == idea["proposer"] for idea in ideas)
    replayed = [idea["summary"] for idea in ideas if idea["proposer"] == "replay"]
    assert replayed == ["patch 1", "patch 2"]
