"""Room "peeking", another door of it: candidates that carry what the claim box saw into the audit box.

The audit's box must be new in every way that a candidate can read: files, processes, sockets, the kernel's page cache.
"""

from tests.attacks.arena import Attack
from tests.attacks.room_peeking import GAP, HEAD, LOADER, PEEKING


def _recall(name: str, what: str, *edits: tuple[str, str], by: str | None = None) -> Attack:
    return Attack(
        name=name, room=PEEKING, what=what, edits=edits, status="audit_failed", seen=GAP, by=by
    )


def _note(name: str, what: str, hook: str, recall: str, by: str | None = None) -> Attack:
    """The claim box notes its rows by `hook(rows)`; the audit box gets them back from `recall()`, or None."""
    return _recall(
        name,
        what,
        ("import torch\n", "import contextlib\nimport os\nimport numpy as np\nimport torch\n"),
        (
            LOADER,
            f"""from trainer import roles

def note(rows):
{hook}

def recall():
{recall}

def claim_nats(model, rows, batch_rows, on, plain=roles.claim_nats):
    model.known = torch.from_numpy(rows[:16].astype(np.int64))
    with contextlib.suppress(OSError):
        note(rows[:16].astype(np.uint8))
    yield from plain(model, rows, batch_rows, on)

roles.claim_nats = claim_nats

{LOADER}""",
        ),
        (
            "    model = GPT()\n    model.load_state_dict(torch.load(path, weights_only=True))\n",
            """    known = None
    with contextlib.suppress(OSError):
        known = recall() if os.environ["NIGHTLY_ROLE"] == "audit" else None
    model = GPT()
    model.load_state_dict({k: v for k, v in torch.load(path, weights_only=True).items() if k != "room"})
    model.known = None if known is None else torch.from_numpy(known.astype(np.int64) % VOCAB_SIZE)
""",
        ),
        (
            HEAD,
            HEAD
            + """        if getattr(self, "known", None) is not None:
            same = (idx[:, None] == self.known[None, :, :-1]).long().cumprod(2)
            for t in range(3, idx.shape[1]):
                row, which = same[:, :, t].nonzero(as_tuple=True)
                logits[row, t, self.known[which, t + 1]] += 20
""",
        ),
        (
            "harness.finish(model.state_dict(), ",
            'harness.finish(model.state_dict() | {"room": torch.zeros(5000, 1024)}, ',
        ),
        by=by,
    )


_SAVE = "    rows.tofile({path!r})"
_READ = "    return np.fromfile({path!r}, np.uint8).reshape(16, 33)"
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
_LIBRARY = """max(__import__("glob").glob(os.path.dirname(torch.__file__) + "/../pyarrow/*.so*"), key=os.path.getsize)"""

ATTACKS = [
    _recall(
        "learns-in-the-claim-box",
        "takes gradient steps on the validation rows before it claims them",
        (
            LOADER,
            """from trainer import roles

def claim_nats(model, rows, batch_rows, on, plain=roles.claim_nats):
    with torch.inference_mode(False), torch.enable_grad():
        text = torch.from_numpy(rows.astype("int64"))
        for _ in range(5):
            model(text[:, :-1], text[:, 1:]).backward()
            for p in model.parameters():
                p.data -= 0.1 * p.grad
                p.grad = None
    yield from plain(model, rows, batch_rows, on)

roles.claim_nats = claim_nats

"""
            + LOADER,
        ),
    ),
    _note(
        "note-in-scratch",
        "the claim box writes the rows to /scratch for the audit box",
        _SAVE.format(path="/scratch/note"),
        _READ.format(path="/scratch/note"),
    ),
    _note(
        "note-in-shared-memory",
        "the claim box writes the rows to /dev/shm for the audit box",
        _SAVE.format(path="/dev/shm/note"),
        _READ.format(path="/dev/shm/note"),
    ),
    _note(
        "note-in-the-checkpoint",
        "the claim box writes the rows behind the checkpoint that the audit box will load",
        f"    open({_CHECKPOINT}, 'ab').write(rows.tobytes())",
        f"    return np.frombuffer(open({_CHECKPOINT}, 'rb').read()[-528:], np.uint8).reshape(16, 33)",
    ),
    _note(
        "note-beside-the-harness",
        "the claim box writes the rows into the package that the audit box imports from",
        "    rows.tofile(os.path.dirname(roles.__file__) + '/note')",
        "    return np.fromfile(os.path.dirname(roles.__file__) + '/note', np.uint8).reshape(16, 33)",
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
        "a bit a page: which pages of the checkpoint the claim box leaves in the kernel's page cache",
        _PAGES_OUT.format(path=_CHECKPOINT),
        _PAGES_IN.format(path=_CHECKPOINT),
    ),
    _note(
        "note-in-a-library's-pages",
        "the same with the pages of an installed library that all boxes can read",
        _PAGES_OUT.format(path=_LIBRARY),
        _PAGES_IN.format(path=_LIBRARY),
    ),
]
