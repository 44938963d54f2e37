"""README.md, CONTRIBUTING.md and docs/: every fenced block is run, or parsed where it cannot run.

The first words after a fence say what is done with it: KINDS has them all. Blocks that run share
one checkout whose train.py and profile `laptop` are stubs, with two finished nights.
"""

import dataclasses
import functools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import configs
from configs import knobs
from flows.command_line import cli, commands
from tasks.proposers import answer, edit_blocks
from tasks.records import Candidate
from tasks.trial import verdict
from tasks.views import notification
from tests.faults.stub_checkout import PROFILE, StubCheckout
from tests.warm_python import WarmPython

ROOT = Path(__file__).resolve().parent.parent
PAGES = {  # and the most lines of each
    ROOT / "README.md": 200,
    ROOT / "CONTRIBUTING.md": 150,
    ROOT / "deployments" / "README.md": 150,
    **{page: 150 for page in sorted((ROOT / "docs").glob("*.md"))},
}
USAGE = (ROOT / "run").read_text()
TRAIN = (ROOT / "trainer" / "train.py").read_text()
NAMES = re.findall(r"^  ([a-z]+) ", USAGE.partition("TEXT\n}")[0], re.MULTILINE)
KINDS = (
    "bash",  # run
    "bash no-run",  # parsed: CANNOT_RUN says what may be the reason
    "toml",  # a profile
    "json trial",  # what `./run trial --json` prints
    "json webhook",  # the body of a notice
    "text",  # a diagram, or a tree of folders
    "text answer",  # a language model's, applied to train.py
)
OF_THE_SCRIPT = ("test", "bench", "check", "lock")  # run by `./run` itself, not by the command line
PLACEHOLDERS = {
    r"\bTAG\b": "nov21",
    r"\bTAG2\b": "nov22",
    r"\bK\b": "1",
    r"\bID\b": "01234567-89ab-cdef-0123-456789abcdef",
    r"^\.venv/bin/python$": sys.executable,
}
CANNOT_RUN = (  # here: a GPU, an endpoint, a set-up, a server that stays up, somebody else's night
    *("--profile h100", "OPENAI_", "TORCH_INDEX", "PYTHON="),
    *("./run server", "./run worker", "./run deploy", "./run schedule", "prefect "),
)


@dataclasses.dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of its first line in the page, from 1
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def command_lines(self) -> list[list[str]]:
        """The words of each line, comments left out and placeholders filled in."""
        lines = [shlex.split(line, comments=True) for line in self.text.splitlines()]
        return [[filled_in(word) for word in words] for words in lines if words]


def filled_in(word: str) -> str:
    for placeholder, value in PLACEHOLDERS.items():
        word = re.sub(placeholder, value, word)
    return word


def blocks_of(page: Path) -> Iterator[Block]:
    kind, start, text = None, 0, [""]
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if not line.startswith("```"):
            text.append(line)
        elif kind is None:
            kind, start, text = line.removeprefix("```").strip(), number + 1, []
        else:
            yield Block(page, start, kind, "\n".join(text) + "\n")
            kind = None
    assert kind is None, f"{page}: a fence is not closed"


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def all_of(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "block", [block for block in BLOCKS if block.kind in kinds], ids=str
    )


def test_every_block_is_of_a_known_kind():
    assert [f"{block}: {block.kind!r}" for block in BLOCKS if block.kind not in KINDS] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_short(page):
    assert len(page.read_text().splitlines()) <= PAGES[page]


@pytest.fixture(scope="module")
def checkout(
    tmp_path_factory: pytest.TempPathFactory, prefect_api: str, warm: WarmPython
) -> StubCheckout:
    """A checkout whose profile `laptop` trains in milliseconds, with the nights nov21 and nov22."""
    folder = tmp_path_factory.mktemp("docs") / "checkout"
    folder.mkdir()
    made = StubCheckout(folder, warm=warm, api=prefect_api)
    one_trial = (folder / PROFILE).read_text().replace("trials = 3", "trials = 1")
    (folder / "configs" / "laptop.toml").write_text(one_trial)
    for tag, trials in (("nov21", "2"), ("nov22", "1")):
        done = made.run("night", "--tag", tag, "--profile", PROFILE, "--trials", trials)
        assert done.returncode == 0, done.stderr
    return made


@pytest.mark.slow
@all_of("bash")
def test_commands_run(block: Block, checkout: StubCheckout):
    stub = f"{checkout.folder / 'tests' / 'faults' / 'torch_stub'}:{checkout.folder}"
    for program, *arguments in block.command_lines():
        if program != "./run":
            done = subprocess.run(
                [program, *arguments],
                cwd=checkout.folder,
                env=checkout.environment(PYTHONPATH=stub),
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{program} {arguments}: {done.stdout}{done.stderr}"
        elif arguments[0] not in OF_THE_SCRIPT:
            done = checkout.run(*arguments, OPENAI_API_KEY="")  # doctor would ask the endpoint
            assert done.returncode == 0, f"./run {' '.join(arguments)}: {done.stderr}"


@pytest.mark.slow
def test_replay_takes_the_profile_of_the_night(checkout: StubCheckout):
    done = checkout.run("replay", "refs/trials/nov21/1")
    code, log = done.returncode, done.stdout + done.stderr
    found = re.search(r"recorded ([\d.]+), replayed ([\d.]+): seeds 1.*, profile stub$", log, re.M)
    assert code == 0, log
    assert found, log
    assert found[1] == found[2]
    assert done.stdout.startswith("reproduced: the same seeds gave the same score")


@pytest.mark.slow
def test_a_forged_score_is_not_reproduced(checkout: StubCheckout):
    """The commit is copied with a better score. Its night's ledger says so, too."""
    forged = copied(checkout, r"^Val-Bpb: .*$", "Val-Bpb: 1.000000")
    done = checkout.run("replay", forged, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["outcome"]) == (3, "not reproduced"), done.stderr
    assert found["equality"]["exact"] is True
    assert "Val-Bpb: 1.000000, its night's ledger says" in found["contradictions"][0]


@pytest.mark.slow
def test_fresh_seeds_on_other_hardware_are_shown_and_not_compared(checkout: StubCheckout):
    elsewhere = copied(checkout, r"^Hardware: \S+", "Hardware: 0123456789abcdef")
    done = checkout.run("replay", elsewhere, "--seeds", "2")
    assert done.returncode == 4, done.stderr
    assert re.search("^recorded on: 0123456789abcdef ", done.stdout, re.M)
    assert re.search(r"replayed with seeds 1000001 1000002, profile stub$", done.stdout, re.M)


def copied(checkout: StubCheckout, trailer: str, other: str) -> str:
    """The first trial's commit with another trailer, as `git commit --amend` makes one."""
    whole = checkout.git("cat-file", "commit", "refs/trials/nov21/1")
    changed = re.sub(trailer, other, whole, count=1, flags=re.M)
    assert changed != whole
    (checkout.folder / ".git" / "changed").write_text(changed)
    return checkout.git("hash-object", "-t", "commit", "-w", ".git/changed").strip()


@all_of("bash", "bash no-run")
def test_bash_parses(block: Block):
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@all_of("bash no-run")
def test_a_block_is_not_run_for_a_reason(block: Block):
    assert [reason for reason in CANNOT_RUN if reason in block.text]


@all_of("bash", "bash no-run")
def test_the_arguments_of_commands_are_valid(block: Block):
    for words in block.command_lines():
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        check_command(words)


def check_command(words: list[str]) -> None:
    """Gives the arguments of ./run and prefect to their real parsers. Raises on a bad one."""
    program, *arguments = words
    if program == "./run" and arguments[0] == "prefect":
        check_prefect(arguments[1:])
    elif program == "./run" and arguments[0] in OF_THE_SCRIPT:
        check_script_command(*arguments)
    elif program == "./run":
        parsed = cli.parse(arguments)
        if profile := getattr(parsed, "profile", None):
            configs.load(profile)
    elif program == "prefect":
        check_prefect(arguments)
    else:
        assert program in ("export", "git", sys.executable), program


def check_prefect(arguments: list[str]) -> None:
    from prefect.cli._app import _app

    _app.parse_args(arguments, exit_on_error=False, print_error=False)
    deployments = re.findall(r"\bnightly-research/([\w-]+)", " ".join(arguments))
    known = re.findall(r"^  - name: (\S+)$", (ROOT / "prefect.yaml").read_text(), re.MULTILINE)
    assert set(deployments) <= set(known)


def check_script_command(name: str, *arguments: str) -> None:
    if name == "bench":
        for bench in arguments:
            assert (ROOT / "tests" / "benchmarks" / f"{bench}_bench.py").is_file(), bench
    else:
        assert set(arguments) <= {"--quick", "--upgrade"}, arguments


@all_of("toml")
def test_a_profile_loads(block: Block, tmp_path: Path):
    (tmp_path / "mine.toml").write_text(block.text)
    profile = configs.load(str(tmp_path / "mine.toml"))
    knobs.write(TRAIN, profile.train)  # raises for a constant that train.py does not have
    assert (configs.FOLDER / profile.night.program).is_file()


@all_of("json trial")
def test_the_object_of_a_trial_has_the_real_keys(block: Block):
    assert tuple(json.loads(block.text)) == commands.JSON_FIELDS


@all_of("json webhook")
def test_the_body_of_a_webhook_has_the_real_keys(block: Block):
    shown = json.loads(block.text)
    real = json.loads(notification._body(shown["kind"], shown["night"], "text", shown["facts"]))
    assert (set(shown), shown["facts"]) == (set(real), real["facts"])


@all_of("text answer")
def test_an_answer_applies_to_train_py(block: Block):
    changed = edit_blocks.apply(answer.parse(block.text), Candidate.parse(TRAIN))
    assert changed.source != TRAIN


@all_of("text")
def test_a_tree_names_folders_that_exist(block: Block):
    """Indented entries that end in a slash; other text passes."""
    above: list[str] = []
    for line in block.text.splitlines():
        if found := re.match(r"(?P<indent> *)(?P<name>[\w-]+/) ", line):
            above = [*above[: len(found["indent"]) // 2], found["name"]]
            assert ROOT.joinpath(*above).is_dir(), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_files_in_the_text_exist(page: Path):
    for span in re.findall(r"`([^`]+)`", prose(page)):
        words = span.replace("\\|", "|").replace("[", "").replace("]", "").split()
        if words[0] == "./run":
            check_synopsis(words[1:])
        elif re.fullmatch(r"(configs|deployments|docs|flows|tasks|tests|trainer)/\S+", span):
            assert list(ROOT.glob(span.replace("NAME", "*"))), span


@functools.cache
def options_of(command: str) -> set[str]:
    (subparsers,) = cli.parser()._subparsers._group_actions  # type: ignore[union-attr]
    return set(subparsers.choices[command]._option_string_actions)  # type: ignore[index]


def check_synopsis(words: list[str]) -> None:
    """The command of `./run WORDS` exists, and so does each option that is named."""
    assert words[0] in (*NAMES, "COMMAND"), words
    if words[0] in OF_THE_SCRIPT:
        check_script_command(*[word for word in words if word != "NAME"][:2])
    elif words[0] not in ("COMMAND", "prefect"):
        named = {word for word in words if word.startswith("--")}
        assert named <= options_of(words[0]), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors_of(file), target


def anchors_of(page: Path) -> list[str]:
    """GitHub's names for the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_every_page_is_linked_from_the_readme():
    linked = re.findall(r"\]\((docs/[^)#]+)", (ROOT / "README.md").read_text())
    assert {ROOT / name for name in linked} == set((ROOT / "docs").glob("*.md"))


def first_column(page: Path, heading: str) -> list[str]:
    """The code spans in the first column of the tables under a heading."""
    section = re.split(r"^#+ ", page.read_text().partition(f"# {heading}\n")[2], flags=re.M)[0]
    cells = re.findall(r"^\| (.+?) \|", section.replace("\\|", " "), re.MULTILINE)
    return [span for cell in cells for span in re.findall(r"`([^`]+)`", cell)]


def test_the_readme_lists_every_profile_command_and_proposer():
    readme = ROOT / "README.md"
    assert sorted(first_column(readme, "Profiles")) == configs.names()
    assert sorted(first_column(readme, "Proposers")) == sorted(configs.PROPOSERS)
    listed = [span.split()[1] for span in first_column(readme, "Commands")]
    assert sorted(listed) == sorted(NAMES)


def test_the_settings_page_lists_every_variable_of_the_example():
    example = re.findall(r"^#([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    listed = first_column(ROOT / "docs" / "settings.md", "Environment")
    assert sorted(listed) == sorted(example)


def test_the_rule_has_the_numbers_of_the_code():
    section = (ROOT / "README.md").read_text().partition("### When a patch is kept")[2]
    rows = [line for line in section.partition("###")[0].splitlines() if line.startswith("| ")]
    numbers = {float(number) for row in rows for number in re.findall(r"-?\d+(?:\.\d+)?", row)}
    runs = range(1, len(verdict.RULE.keep) + 1)
    assert numbers == {*verdict.RULE.keep, *verdict.RULE.drop, *runs}


def test_the_numbers_of_attacks_are_those_of_the_table():
    attacks, honest = (ROOT / "tests" / "attacks" / "README.md").read_text().split("must pass:")
    numbers = [len(re.findall(r"^\| ", part, re.MULTILINE)) - 1 for part in (attacks, honest)]
    for page in (ROOT / "README.md", ROOT / "docs" / "judge.md"):
        said = re.search(r"(\d+)\s+candidates\s+that\s+lie.*?(\d+)\s+unusual", prose(page), re.S)
        assert said, page
        assert [int(number) for number in said.groups()] == numbers, page
