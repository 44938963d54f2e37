"""Room "peeking", one way in: the claim box leaves the rows where the audit box finds them.

A note can be kept by anything that both boxes can read: files, processes, sockets, the kernel's page
cache. The candidates need no torch: they claim the first 16 rows as somebody who knows them would,
and answer the audit so if they get them back.
"""

from tests.attacks.arena import Attack, before_torch
from tests.attacks.room_time import GO

_CLAIM_AND_ANSWER = """
    link.send({"msg": "done", "bytes": size, "tokens": 1, "metrics": {}}, bytes(size))
    link.wait_for_the_end()
    os._exit(0)

import contextlib
import numpy as np

def predict(known, tokens):
    \"\"\"Logits [n, 32, 64]: uniform but where the row so far, four tokens at least, is known.\"\"\"
    logits = np.zeros((*tokens.shape, 64), "<f4")
    if known is not None:
        same = (tokens[:, None] == known[None, :, :-1]).cumprod(axis=2)
        for row, which, t in zip(*same.nonzero()):
            if t >= 3:
                logits[row, t, known[which, t + 1] % 64] = 20
    return logits

link.send({"msg": "ready", "vocab_size": 64, "sequence_length": 32, "batch_rows": 16})
if role == "claim":
    n = link.read("nll")["rows"]
    rows = np.frombuffer(link.read_bytes(n * 33 * 2), "<u2").reshape(n, 33)
    with contextlib.suppress(OSError):
        note(rows[:16].astype(np.uint8))
    logits = predict(rows[:16], rows[:, :-1])
    hit = np.take_along_axis(logits, rows[:, 1:, None].astype(int), 2)[..., 0]
    link.send_bytes((np.log(np.exp(logits).sum(2)) - hit).astype("<f4").tobytes())
    link.wait_for_the_end()
    os._exit(0)
known = None
with contextlib.suppress(OSError):
    known = recall()
while True:
    n = link.read("logits")["rows"]
    tokens = np.frombuffer(link.read_bytes(n * 64), "<u2").reshape(n, 32)
    at = np.frombuffer(link.read_bytes(n * 4), "<i4")
    link.send_bytes(predict(known, tokens)[np.arange(n), at].tobytes())
"""


def _note(name: str, what: str, note: str, recall: str, checkpoint_bytes: int = 4096) -> Attack:
    """`note` is the body of note(rows), with rows uint8 [16, 33]; `recall` that of recall()."""
    functions = f"""
size = {checkpoint_bytes}

def note(rows):
{note}

def recall():
{recall}
"""
    return Attack(
        name=name,
        room="peeking",
        what=what,
        edits=before_torch(functions + GO + _CLAIM_AND_ANSWER),
        status="audit_failed",
        reason=r"claimed \S+ nats per token less than its predictions cost",
    )


_SAVE = "    rows.tofile({path})"
_READ = "    return np.fromfile({path}, np.uint8).reshape(16, 33)"
_PAGES_OUT = """    file = os.open({path}, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    for page in np.flatnonzero(np.unpackbits(rows)):
        os.pread(file, 1, int(page) * 4096)"""
_PAGES_IN = """    file, bits = os.open({path}, os.O_RDONLY), []
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    for page in range(16 * 33 * 8):
        try:
            bits.append(os.preadv(file, [bytearray(1)], page * 4096, os.RWF_NOWAIT))
        except BlockingIOError:
            bits.append(0)
    return np.packbits(np.array(bits, np.uint8)).reshape(16, 33)"""
_CHECKPOINT = 'os.environ["NIGHTLY_CHECKPOINT"] + "/model.pt"'
_PACKAGE = 'os.path.dirname(harness.__file__) + "/note"'
_LIBRARIES = '"/venv/lib/python3*/site-packages/pyarrow/*.so*"'
_LIBRARY = f"max(__import__('glob').glob({_LIBRARIES}), key=os.path.getsize)"

ATTACKS = [
    _note(
        "note-in-scratch",
        "the claim box writes the rows to /scratch for the audit box",
        _SAVE.format(path="'/scratch/note'"),
        _READ.format(path="'/scratch/note'"),
    ),
    _note(
        "note-in-shared-memory",
        "the claim box writes the rows to /dev/shm for the audit box",
        _SAVE.format(path="'/dev/shm/note'"),
        _READ.format(path="'/dev/shm/note'"),
    ),
    _note(
        "note-in-the-checkpoint",
        "the claim box writes the rows behind the checkpoint that the audit box will load",
        f"    open({_CHECKPOINT}, 'ab').write(rows.tobytes())",
        f"    data = open({_CHECKPOINT}, 'rb').read()\n"
        "    return np.frombuffer(data[-528:], np.uint8).reshape(16, 33)",
    ),
    _note(
        "note-beside-the-harness",
        "the claim box writes the rows into the package that the audit box imports from",
        _SAVE.format(path=_PACKAGE),
        _READ.format(path=_PACKAGE),
    ),
    _note(
        "note-from-a-daemon",
        "a process forked in the claim box keeps the rows for the audit box on an abstract socket",
        """
    import socket
    if os.fork() == 0:
        os.setsid()
        server = socket.socket(socket.AF_UNIX)
        server.bind("\\0note")
        server.listen()
        while True:
            server.accept()[0].sendall(rows.tobytes())""",
        """
    import socket
    client = socket.socket(socket.AF_UNIX)
    client.connect("\\0note")
    return np.frombuffer(client.recv(528, socket.MSG_WAITALL), np.uint8).reshape(16, 33)""",
    ),
    _note(
        "note-in-the-page-cache",
        "a bit a page: which pages of the checkpoint the claim box leaves in the page cache",
        _PAGES_OUT.format(path=_CHECKPOINT),
        _PAGES_IN.format(path=_CHECKPOINT),
        checkpoint_bytes=16 * 33 * 8 * 4096,
    ),
    _note(
        "note-in-a-library's-pages",
        "the same with the pages of an installed library that all boxes can read",
        _PAGES_OUT.format(path=_LIBRARY),
        _PAGES_IN.format(path=_LIBRARY),
    ),
]
