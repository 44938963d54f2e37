"""The same runs as root and as an ordinary user: boxes are made in two ways, with equal scores.

Root stages its mounts and drops to a uid without an account; for an ordinary user bubblewrap does
everything. As root, this module creates a user and removes it at the end. Run by an ordinary user,
it tests that user's side alone.
"""

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.boxes import HONEST
from tests.other_user import as_user

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
MARK = f"nightly-mark-{os.getpid()}"  # the file that an escape would leave on the host
PLACES = (
    *("/", "/etc", "/usr", "/usr/bin", "/home", "/dev", "/proc/sys/kernel"),
    *("/box", "/dataset", "/data", "/data/d", "/venv"),
)

ESCAPE = f"""
    import os
    wrote = 0
    for place in {PLACES}:
        mark = os.path.join(place, "{MARK}")
        for attempt in (lambda: open(mark, "w").close(), lambda: os.chmod(place, 0o777)):
            try:
                attempt()
                wrote += 1
            except OSError:
                pass
    tokens = 0
"""
BOMB = """
    bomb = bytearray(2**30)
    for first in range(0, len(bomb), 4096):
        bomb[first] = 1
    import time
    time.sleep(600)
"""
PEEK = "        logits = logits + 9.0 * np.eye(256)[np.roll(idx.numpy(), -1, 1)]\n"
# The weights depend on the judge's seed, so that a score has all its digits. The context is as long
# as everything that is scored: with one row all questions are asked, in one order, so that two
# audits, which draw at random, find the same.
SEEDED = (
    HONEST.replace("np.zeros(256, np.float32)", "WEIGHTS")
    .replace("WEIGHTS", "np.random.default_rng(harness.seed()).normal(size=256).astype('f4')")
    .replace("prepare.train_rows(MAX_SEQ_LEN)", "prepare.train_rows(8)")
    .replace("MAX_SEQ_LEN = 8", "MAX_SEQ_LEN = 16")
)
BY_TORCH = (
    HONEST.replace("np.zeros(256, np.float32)", "torch.randn(256).numpy()")
    .replace("    budget = ", "    torch.manual_seed(harness.seed())\n    budget = ")
    .replace(
        "np.log(np.exp(logits).sum(axis=-1))", "torch.from_numpy(logits).logsumexp(-1).numpy()"
    )
    .replace("prepare.train_rows(MAX_SEQ_LEN)", "prepare.train_rows(8)")
    .replace("MAX_SEQ_LEN = 8", "MAX_SEQ_LEN = 16")
)


def changed(old: str, new: str) -> str:
    assert old in SEEDED
    return SEEDED.replace(old, new)


CANDIDATES = {  # the whole train.py, and the status it must end with
    "honest": (BY_TORCH, "ok"),
    "lie": (changed("loss.reshape(-1)", "0.97 * loss.reshape(-1)"), "audit_failed"),
    "peek": (
        changed("        if targets is None:", f"{PEEK}        if targets is None:"),
        "audit_failed",
    ),
    "crash": (
        changed("    tokens = 0\n", "    raise RuntimeError('in mid-run')\n"),
        "train_crashed",
    ),
    "escape": (changed("    tokens = 0\n", ESCAPE).replace("answer=42", "wrote=wrote"), "ok"),
    "memory": (changed("    tokens = 0\n", BOMB), "out_of_memory"),
}

# Runs every candidate in a folder and prints, by name, everything that both sides must agree on.
SIDE = """
import json, os, sys
from pathlib import Path
from configs import Audit
from tasks.trial import experiment
from tasks.records import Candidate
from tests.boxes import make_bench, make_dataset, make_profile
from tests.faults.stub_torch import assemble_with_stub

assemble_with_torch = experiment.assemble
folder, mark, places = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
seen = {"uid": os.geteuid()}
dataset = make_dataset(folder / "dataset")
profile = make_profile(memory_gib=0.75, tmp_mib=16)
profile = profile.model_copy(update={"audit": Audit(positions=1024)})  # all there are
for name, source in json.load(sys.stdin).items():
    experiment.assemble = assemble_with_torch if name == "honest" else assemble_with_stub
    run = experiment.run_experiment(
        Candidate.parse(source), make_bench(dataset, folder / "home", profile), seed=7,
        worth_audit=lambda claimed: True,
    )
    compared = ("status", "reason", "val_bpb", "claimed_bpb", "audit_gap", "tokens", "metrics")
    seen[name] = {field: getattr(run, field) for field in compared}
    seen[name]["metrics"].pop("tokens_per_second", None)
marks = [*folder.rglob(mark), *(Path(place, mark) for place in places)]
seen["marks"] = [str(path) for path in marks if path.exists()]
print(json.dumps(seen))
"""


def run_side(folder: Path, enter: list[str], environment: dict[str, str]):
    """What SIDE prints, run by the command `enter`, which may change the user."""
    sources = json.dumps({name: source for name, (source, _) in CANDIDATES.items()})
    side = subprocess.run(
        [*enter, sys.executable, "-c", SIDE, str(folder), MARK, *PLACES],
        input=sources,
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert side.returncode == 0, side.stderr[-2000:]
    return json.loads(side.stdout)


@pytest.fixture(scope="module")
def user():
    """A user for this module, with a home that is closed to others."""
    if os.geteuid() != 0:
        pytest.skip("run by an ordinary user: that side was tested, and there is none to compare")
    tools = ("useradd", "userdel", "setpriv", "unshare")
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        pytest.skip(f"no second user can be created here: {', '.join(missing)} is missing")
    name = f"nightly-{os.getpid()}"
    subprocess.run(
        ["useradd", "--create-home", "--user-group", "--shell", "/bin/false", name],
        check=True,
        capture_output=True,
    )
    try:
        made = pwd.getpwnam(name)
        Path(made.pw_dir).chmod(0o700)
        yield made
    finally:
        subprocess.run(["userdel", "--remove", name], check=True, capture_output=True)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """What the user who runs the tests gets."""
    return run_side(tmp_path_factory.mktemp("mine"), [], dict(os.environ))


@pytest.fixture(scope="module")
def theirs(user):
    """What the other user gets."""
    stash = Path(tempfile.mkdtemp(dir="/run"))
    home = {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
    clean = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
    clean["PYTHONDONTWRITEBYTECODE"] = "1"
    try:
        enter = as_user(user.pw_uid, stash, sys.base_prefix, sys.prefix, ROOT)
        return run_side(Path(user.pw_dir), enter, clean | home)
    finally:
        stash.rmdir()


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_candidate_ends_with_its_status_for_the_user_who_runs_the_tests(mine, name):
    assert (mine["uid"], mine[name]["status"]) == (os.geteuid(), CANDIDATES[name][1])


@pytest.mark.parametrize("name", CANDIDATES)
def test_root_and_an_ordinary_user_get_the_same_result_to_the_last_bit(mine, theirs, user, name):
    assert (mine["uid"], theirs["uid"]) == (0, user.pw_uid)
    assert comparable(theirs[name]) == comparable(mine[name])


def comparable(run):
    """The run, without the memory at the watchdog's last look, which depends on the moment."""
    if run["status"] != "out_of_memory":
        return run
    return {**run, "reason": run["reason"].partition(" used ")[0]}


@pytest.mark.parametrize("side", ["mine", "theirs"])
def test_an_escape_writes_nothing_on_the_host(request, side):
    seen = request.getfixturevalue(side)
    assert (seen["escape"]["metrics"], seen["marks"]) == ({"wrote": 0.0}, [])
