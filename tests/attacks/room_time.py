"""Room "cheating time": candidates that want more training, more scoring or less waiting than the judge's clock allows.

Most of them speak to the socket themselves and never import torch, so their boxes last a fraction of a second.
"""

from __future__ import annotations

from dataclasses import replace

from configs import Budget
from tests.attacks.arena import CAPS, LIMITS, Attack, Room, before_torch

ROOM: Room = "cheating time"
QUICK = replace(CAPS, wall_seconds=2.0)
LINK = """
import time
from trainer import harness
link = harness._link()
role = os.environ["NIGHTLY_ROLE"]
"""
GO = (
    LINK
    + """
if role == "train":
    link.send({"msg": "ready", "flops_per_token": 1.0})
    link.read("go")
"""
)
JUNK = (
    GO
    + """
    link.send({"msg": "done", "bytes": 4, "tokens": 1, "metrics": {}}, b"junk")
    link.wait_for_the_end()
    os._exit(0)
"""
)

ATTACKS = [
    Attack(
        name="trains before go",
        room=ROOM,
        what="reads the training rows while it starts up, which costs no budget",
        edits=before_torch("from trainer import prepare\nprepare.train_rows(32)"),
        status="startup_crashed",
        reason="PermissionError",
        by="the data gate",
    ),
    Attack(
        name="opens the gate itself",
        room=ROOM,
        what="is the owner of the gate's folder, so it changes its mode",
        edits=before_torch(
            "os.chmod('/data', 0o755)\nraise SystemExit('GOT THROUGH ' + str(os.listdir('/data/d')))"
        ),
        status="startup_crashed",
        reason="Read-only file system",
        by="read-only mounts",
    ),
    Attack(
        name="goes round the gate",
        room=ROOM,
        what="looks for the training rows by descriptor, by /proc and by the names of the mounts",
        edits=before_torch("""
import glob
gate = os.open("/data", os.O_PATH)
ways = ["/data/d", f"/proc/self/fd/{gate}/d", "/proc/self/root/data/d", "/proc/1/root/data/d", "/proc/1/cwd/../data/d"]
ways += [line.split()[3] for line in open("/proc/self/mountinfo")] + [line.split()[4] for line in open("/proc/self/mountinfo")]
found = [way for way in ways if glob.glob(way + "/rows_*") or os.access(way + "/rows_64_32.npy", os.R_OK)]
try: found.append(os.listdir(os.open("d", os.O_RDONLY, dir_fd=gate)))
except OSError: pass
raise SystemExit(f"GOT THROUGH {found}" if found else f"held: {len(ways)} ways are closed")
"""),
        status="startup_crashed",
        reason="held: [0-9]+ ways",
        by="the data gate",
    ),
    Attack(
        name="never ready",
        room=ROOM,
        what="starts up without end",
        edits=before_torch("import time\ntime.sleep(600)"),
        status="startup_timeout",
        reason="starting up after 6 s",
        caps=replace(CAPS, startup_seconds=6.0),
    ),
    Attack(
        name="ready and silent",
        room=ROOM,
        what="takes the data and never answers",
        edits=before_torch(GO + "    time.sleep(600)"),
        status="train_timeout",
        reason="training after 2 s",
        caps=QUICK,
    ),
    Attack(
        name="a sign of life",
        room=ROOM,
        what="sends a log message now and then, hoping that each starts the clock anew",
        edits=before_torch(
            GO
            + """
    while True:
        link.send({"msg": "log", "step": 1, "tokens": 1, "loss": 1.0})
        time.sleep(0.1)
"""
        ),
        status="train_timeout",
        reason="training after 2 s",
        caps=QUICK,
    ),
    Attack(
        name="stops its own clock",
        room=ROOM,
        what="replaces time.monotonic, from which the harness reads a budget in seconds",
        edits=(
            (
                "    step, tokens = 0, 0\n",
                "    import time\n    time.monotonic = lambda: budget.started\n    step, tokens = 0, 0\n",
            ),
        ),
        status="train_timeout",
        reason="training after 2 s",
        budget=Budget(kind="seconds", amount=1.0, slack_seconds=0.5),
        forked=True,
    ),
    Attack(
        name="few FLOPs on paper",
        room=ROOM,
        what="reports a millionth of the FLOPs a token, so that its budget is never spent",
        edits=(
            (
                "ready(flops_per_token=flops_per_token)",
                "ready(flops_per_token=flops_per_token / 1e6)",
            ),
        ),
        status="train_timeout",
        reason="CPU-seconds",
        by="the watchdog on CPU-seconds",
        caps=replace(CAPS, cpu_seconds=1.5),
        forked=True,
    ),
    Attack(
        name="work by orphans",
        room=ROOM,
        what="trains in grandchildren whose parents are gone, which no parent of them accounts for",
        edits=before_torch(
            GO
            + """
    while True:
        if os.fork() == 0:
            if os.fork() == 0:
                while time.process_time() < 0.4: pass
            os._exit(0)
        os.wait()
        time.sleep(0.3)
"""
        ),
        status="train_timeout",
        reason="CPU-seconds",
        by="the watchdog on CPU-seconds",
        caps=replace(CAPS, cpu_seconds=1.5, wall_seconds=30.0),
    ),
    Attack(
        name="work by the unaccounted",
        room=ROOM,
        what="trains in children that nobody waits for (SIGCHLD ignored): the kernel adds their time to no account",
        edits=before_torch(
            GO
            + """
    import signal
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        if os.fork() == 0:
            while time.process_time() < 0.4: pass
            os._exit(0)
        try: os.wait()
        except ChildProcessError: pass
"""
        ),
        status="train_timeout",
        reason="CPU-seconds",
        by="the watchdog on CPU-seconds",
        caps=replace(CAPS, cpu_seconds=1.5, wall_seconds=12.0),
    ),
    Attack(
        name="work by the short-lived",
        room=ROOM,
        what="the same in children of 30 ms, few of which are alive whenever the watchdog looks, and then it is done",
        edits=before_torch(
            GO
            + """
    import signal
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(80):
        if os.fork() == 0:
            while time.process_time() < 0.03: pass
            os._exit(0)
        try: os.wait()
        except ChildProcessError: pass
    link.send({"msg": "done", "bytes": 4, "tokens": 1, "metrics": {}}, b"junk")
    link.wait_for_the_end()
"""
        ),
        status="train_timeout",
        reason="CPU-seconds",
        by="seccomp, the watchdog on CPU-seconds",
        caps=replace(CAPS, cpu_seconds=1.5),
    ),
    Attack(
        name="trains on after done",
        room=ROOM,
        what="hands over a first checkpoint in time and a better one after it",
        edits=(
            (
                "    harness.finish(model.state_dict(), steps=step)\n",
                """\
    def again(link):
        import io
        late = io.BytesIO()
        torch.save({name: 0 * tensor for name, tensor in model.state_dict().items()}, late)
        link.send({"msg": "done", "bytes": late.tell(), "tokens": 0, "metrics": {}}, late.getvalue())
    harness.Link.wait_for_the_end = again
    harness.finish(model.state_dict(), steps=step)
""",
            ),
        ),
        status="ok",
        reason="scored",
        gains_nothing=True,
        by="the box ends with its first checkpoint",
        forked=True,
    ),
    Attack(
        name="lives on in a child",
        room=ROOM,
        what="the process that is watched ends at once, a child of it trains on and owns the socket",
        edits=before_torch(
            GO
            + """
    if os.fork(): os._exit(0)
    time.sleep(30)
    link.send({"msg": "done", "bytes": 4, "tokens": 1, "metrics": {}}, b"GOT THROUGH")
"""
        ),
        status="train_crashed",
        reason="exit code 0",
        by="the process namespace",
    ),
    Attack(
        name="a dripping checkpoint",
        room=ROOM,
        what="announces its checkpoint in time and sends a byte of it now and then, while it trains on",
        edits=before_torch(
            GO
            + """
    link.send({"msg": "done", "bytes": 1000, "tokens": 1, "metrics": {}})
    while True:
        link.send_bytes(b"x")
        time.sleep(0.1)
"""
        ),
        status="train_timeout",
        reason="1000 bytes had not arrived",
        caps=QUICK,
    ),
    Attack(
        name="half a checkpoint",
        room=ROOM,
        what="hangs up in the middle of its checkpoint",
        edits=before_torch(
            GO + "    link.send({'msg': 'done', 'bytes': 1000}, b'x' * 500)\n    os._exit(0)"
        ),
        status="bad_checkpoint",
        reason="ended before its checkpoint",
    ),
    Attack(
        name="a giant checkpoint",
        room=ROOM,
        what="announces ten terabytes, to fill our disk or to keep us reading",
        edits=before_torch(
            GO + "    link.send({'msg': 'done', 'bytes': 10**13})\n    time.sleep(600)"
        ),
        status="bad_checkpoint",
        reason="announced a checkpoint of 10000000000000 bytes",
    ),
    Attack(
        name="an infinite checkpoint",
        room=ROOM,
        what="announces 1e400 bytes, which is infinity once it is parsed",
        edits=before_torch(
            GO + '    link.send_bytes(b\'{"msg": "done", "bytes": 1e400}\\n\')\n    time.sleep(600)'
        ),
        status="bad_checkpoint",
        reason="announced a checkpoint of inf bytes",
    ),
    Attack(
        name="a checkpoint of lists",
        room=ROOM,
        what="gives its size as 900 nested lists, to break the judge that puts them into a sentence",
        edits=before_torch(
            GO
            + """
    link.send_bytes(b'{"msg": "done", "bytes": ' + b"[" * 900 + b"]" * 900 + b"}\\n")
    time.sleep(600)
"""
        ),
        status="bad_checkpoint",
        reason=r"announced a checkpoint of \[\[",
    ),
    Attack(
        name="done before go",
        room=ROOM,
        what="hands a checkpoint over without any training",
        edits=before_torch(
            LINK + "link.send({'msg': 'done', 'bytes': 4}, b'junk')\ntime.sleep(600)"
        ),
        status="protocol_error",
        reason="'done' where 'ready' was due",
        by="the order of messages",
    ),
    Attack(
        name="ready twice",
        room=ROOM,
        what="says ready again after go, to have its clock set back",
        edits=before_torch(
            GO + "    link.send({'msg': 'ready', 'flops_per_token': 1.0})\n    time.sleep(600)"
        ),
        status="protocol_error",
        reason="'ready' where '(log|done)' was due",
        by="the order of messages",
    ),
    Attack(
        name="a million log messages",
        room=ROOM,
        what="keeps the judge busy with its curve",
        edits=before_torch(
            GO
            + """
    line = b'{"msg": "log", "step": 1, "tokens": 1, "loss": 1}\\n' * 1000
    for _ in range(1000): link.send_bytes(line)
    time.sleep(600)
"""
        ),
        status="protocol_error",
        reason="more than 100000 log messages",
    ),
    Attack(
        name="five megabytes of [",
        room=ROOM,
        what="sends a message that never ends, to fill the judge's memory",
        edits=before_torch(GO + "    link.send_bytes(b'[' * 5_000_000)\n    time.sleep(600)"),
        status="protocol_error",
        reason="more than 65536 bytes",
    ),
    Attack(
        name="a nest of 60000 lists",
        room=ROOM,
        what="sends JSON that is nested too deeply for a parser's stack",
        edits=before_torch(
            GO + "    link.send_bytes(b'[' * 30_000 + b']' * 30_000 + b'\\n')\n    time.sleep(600)"
        ),
        status="protocol_error",
        reason="not JSON",
    ),
    Attack(
        name="trains in the claim box",
        room=ROOM,
        what="goes on training where its checkpoint is scored, in time that is no budget's",
        edits=before_torch(
            JUNK
            + """
from trainer import prepare
try: raise SystemExit(f"GOT THROUGH {len(prepare.train_rows(32))} rows of training data in the claim box")
except OSError as error: raise SystemExit(f"held: {error}")
"""
        ),
        status="eval_startup_crashed",
        reason="held: .*No such file",
        by="no training data outside the train box",
    ),
    Attack(
        name="sleeps in load_model",
        room=ROOM,
        what="never finishes loading its own checkpoint",
        edits=before_torch(JUNK + "time.sleep(600)"),
        status="eval_startup_timeout",
        reason="loading its checkpoint after 15 s",
        caps=replace(CAPS, startup_seconds=15.0),
    ),
    Attack(
        name="thinks for ever",
        room=ROOM,
        what="takes the validation rows and computes without end",
        edits=before_torch(
            JUNK
            + """
link.send({"msg": "ready", "vocab_size": 64, "sequence_length": 32, "batch_rows": 16})
link.read("nll")
while True: link.send_bytes(b"")
"""
        ),
        status="eval_timeout",
        reason="scoring after 2 s",
        limits=LIMITS.model_copy(update={"eval_seconds": 2.0}),
    ),
    Attack(
        name="a slow audit",
        room=ROOM,
        what="claims at once and answers the audit a byte at a time",
        edits=before_torch(
            JUNK
            + """
link.send({"msg": "ready", "vocab_size": 64, "sequence_length": 32, "batch_rows": 16})
if role == "claim":
    rows = link.read("nll")["rows"]
    link.read_bytes(rows * 33 * 2)
    link.send_bytes(b"\\0\\0\\x80@" * rows * 32)
while True:
    link.send_bytes(b"x")
    time.sleep(0.1)
"""
        ),
        status="audit_timeout",
        reason="audited after 16 s",
        limits=LIMITS.model_copy(update={"eval_seconds": 1.0}),
    ),
    Attack(
        name="sets the machine's clock",
        room=ROOM,
        what="sets the clock (to what it is), takes real-time priority, and a clock of its own by a time namespace",
        edits=before_torch("""
import ctypes, time
libc = ctypes.CDLL(None)
tries = {
    "clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
    "real time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "priority": lambda: os.nice(-5),
}
for name, action in tries.items():
    try: action()
    except OSError: continue
    raise SystemExit("GOT THROUGH " + name)
if libc.unshare(0x80) == 0: raise SystemExit("GOT THROUGH time namespace")
raise SystemExit("held: clock, priority, time namespace")
"""),
        status="startup_crashed",
        reason="held: clock",
        by="no capabilities, seccomp",
    ),
]
