"""Room "lying about the score": claims that are not the losses of the candidate's predictions.

Every attack is a few edits of honest_candidate.py. Nothing in a box is believed: a claim must pass its range check, the
audit compares it with logits that the judge turns into losses itself, and what is short is added to the score.
"""

from tasks.statuses import Status
from tests.attacks.arena import Attack, Room

LYING: Room = "lying about the score"
GAP = r"claimed \S+ nats per token less than its predictions cost"
LOADED = "    model.load_state_dict(torch.load(path, weights_only=True))\n"
LOSS = "        return loss\n"
LOADER = "def load_model(path, device):\n"
ROLE = 'import os\n\nROLE = os.environ["NIGHTLY_ROLE"]\n'
IMPORTS = "from trainer import prepare\n"
HEAD = "        logits = self.logits(idx)\n"
REAL_BOXES = ("three-percent-less", "prints-a-score", "forged-score-message")


def _lie(
    name: str,
    what: str,
    *edits: tuple[str, str],
    status: Status = "audit_failed",
    reason: str = GAP,
) -> Attack:
    return Attack(
        name=name,
        room=LYING,
        what=what,
        edits=edits,
        status=status,
        reason=reason,
        gains_nothing=status == "ok",
        forked=name not in REAL_BOXES,
    )


def _loss(
    name: str, what: str, claimed: str, status: Status = "audit_failed", reason: str = GAP
) -> Attack:
    """An attack on the losses alone, those that are claimed: `claimed` is an expression over loss, logits and targets."""
    return _lie(
        name,
        what,
        (LOSS, f'        return ({claimed}) if reduction == "none" else loss\n'),
        status=status,
        reason=reason,
    )


def _server(name: str, what: str, body: str, status: Status, reason: str) -> Attack:
    """An attack that puts its own code in the place of the fixed scoring code in the box."""
    return _lie(name, what, (LOADER, f"{body}\n\n{LOADER}"), status=status, reason=reason)


_READY = """
from trainer import roles

def forged(link, candidate, device):
    link.send({{"msg": "ready", "vocab_size": {vocab}, "sequence_length": {length}, "batch_rows": {rows}}})
    link.wait_for_the_end()

roles.claim = forged
"""

ATTACKS = [
    _loss("zero-loss", "returns a loss of 0 for every target", "loss * 0"),
    _loss("three-percent-less", "scales its losses by 0.97", "loss * 0.97"),
    _loss("shaved-above-tolerance", "claims 0.0009 nats less for every target", "loss - 0.0009"),
    _loss(
        "shaved-below-tolerance",
        "claims 0.00005 nats less for every target",
        # A little less than 0.00005 in the mean, in steps that float32 holds exactly: the gap is
        # rounded to 0.00005, on any CPU, and so the audit charges a little more than was taken.
        "loss - (104 + (torch.arange(len(loss)) % 6 > 0)) * 2.0**-21",
        "ok",
        "trained and scored",
    ),
    _loss(
        "unnormalised",
        "its loss is minus the target's logit",
        "-logits.flatten(0, 1).gather(1, targets.view(-1, 1))[:, 0]",
        "bad_claims",
        "no probability is above 1",
    ),
    _loss(
        "half-a-softmax",
        "normalises over the target and the lower half of the vocabulary only",
        "torch.where(targets.flatten() < 32, F.cross_entropy(logits.flatten(0, 1)[:, :32], targets.flatten().clamp(max=31), "
        'reduction="none"), loss)',
    ),
    _loss(
        "one-nan",
        "claims NaN for one target in a batch",
        "loss.index_fill(0, torch.tensor([7]), float('nan'))",
        "bad_claims",
        "claimed losses that are not finite",
    ),
    _loss(
        "all-minus-infinity",
        "claims a probability of infinity",
        "loss * -float('inf')",
        "bad_claims",
        "claimed losses that are not finite",
    ),
    _loss(
        "pays-back-in-bos",
        "takes half a nat off every scored target and puts it on the unscored ones",
        "torch.where(targets.flatten() == 63, loss + 50, loss * 0.8)",
    ),
    _loss(
        "repays-scattered",
        "claims 0.0099 nats less for every second token, and repays half of it at the others",
        "loss - torch.where(targets.flatten() % 2 == 0, 0.0099, -0.005)",
    ),
    _lie(
        "repays-on-the-short-row",
        "claims 0.0099 nats less everywhere and repays it on the last row, of which all is asked",
        ("MAX_SEQ_LEN = 32\n", "MAX_SEQ_LEN = 48\n"),
        (
            LOSS,
            """        if reduction == "none":
            short = (targets[:, -20:] == 63).all(1)[:, None]
            loss = (loss.view_as(targets) + torch.where(short, 1.29, -0.0099)).flatten()
        return loss
""",
        ),
    ),
    _loss(
        "oracle-temperature",
        "claims each target at the best of four temperatures",
        "torch.stack([F.cross_entropy(logits.flatten(0, 1) * t, targets.flatten(), reduction='none') for t in (0.7, 1, 1.4, 2)]"
        ").amin(0)",
    ),
    _loss(
        "best-of-eight-dropouts",
        "claims each target under the best of eight dropout masks",
        "torch.stack([F.cross_entropy(F.dropout(logits, 0.1).flatten(0, 1), targets.flatten(), reduction='none') "
        "for _ in range(8)]).amin(0)",
    ),
    _loss(
        "label-smoothing-undone",
        "subtracts the entropy of its own prediction, as if it were a known constant",
        "loss - 0.1 * torch.distributions.Categorical(logits=logits).entropy().flatten()",
    ),
    _lie(
        "prints-a-score",
        "prints upstream's summary with val_bpb: 0.1 in training and scoring",
        (LOADED, LOADED + '    print("val_bpb: 0.100000", flush=True)\n'),
        (
            "    step, tokens = 0, 0\n",
            '    step, tokens = 0, 0\n    print("val_bpb:          0.100000", flush=True)\n',
        ),
        status="ok",
        reason="trained and scored",
    ),
    _lie(
        "reports-a-metric",
        "hands over metrics named val_bpb, claimed_bpb and audit_gap",
        ("steps=step)", "val_bpb=0.1, claimed_bpb=0.1, audit_gap=-9.0)"),
        status="ok",
        reason="trained and scored",
    ),
    _lie(
        "rebinds-the-metric",
        "replaces score and the table of raw bytes in its box, by U+FFFD's three bytes a token",
        (
            LOADED,
            LOADED + "    prepare.score = prepare.bits_per_byte = lambda *_: 0.1\n"
            "    table = prepare.token_bytes\n    prepare.token_bytes = lambda *size: 3 * table(*size)\n",
        ),
        status="ok",
        reason="trained and scored",
    ),
    _lie(
        "temperature-by-role",
        "is sharper in the claim role where that is right, and asks for 1.5 more in the audit",
        (IMPORTS, IMPORTS + ROLE),
        (HEAD, HEAD + '        logits = logits * (1.5 if ROLE == "audit" else 1.0)\n'),
    ),
    _lie(
        "answers-nan",
        "claims zeros and answers the audit with NaN, which compares as neither more nor less",
        (IMPORTS, IMPORTS + ROLE),
        (HEAD, HEAD + '        logits = logits * float("nan") if ROLE == "audit" else logits\n'),
        reason="logits that are not finite",
    ),
    _lie(
        "answers-overflow",
        "claims zeros and answers with +-3e38, to overflow the judge's softmax",
        (
            HEAD,
            HEAD + "        best = logits == logits.amax(-1, keepdim=True)\n"
            "        logits = torch.where(best, 3e38, -3e38) if targets is None else logits\n",
        ),
        (LOSS, '        return loss * 0 if reduction == "none" else loss\n'),
    ),
    _lie(
        "larger-context-in-claims",
        "scores with another MAX_SEQ_LEN in the claim role than in the audit",
        (IMPORTS, IMPORTS + ROLE),
        (LOADED, LOADED + '    globals()["MAX_SEQ_LEN"] = 32 if ROLE == "claim" else 16\n'),
        reason="told the audit another shape",
    ),
    _lie(
        "other-batch-in-audit",
        "asks for one row a batch in the audit, to be asked in an order it knows",
        (IMPORTS, IMPORTS + ROLE),
        (LOADED, LOADED + '    globals()["DEVICE_BATCH_SIZE"] = 16 if ROLE == "claim" else 1\n'),
        reason="told the audit another shape",
    ),
    _lie(
        "vocabulary-of-one",
        "says its vocabulary is another one, of which every token is certain",
        (LOADED, LOADED + '    globals()["VOCAB_SIZE"] = 1\n'),
        status="bad_claims",
        reason="VOCAB_SIZE = 1 is not prepared",
    ),
    _lie(
        "endless-row",
        "asks for rows longer than the limit, to make the judge allocate them",
        (LOADED, LOADED + '    globals()["MAX_SEQ_LEN"] = 2**17 + 1\n'),
        status="bad_claims",
        reason="MAX_SEQ_LEN = 131073",
    ),
    _server(
        "shape-true",
        "says vocab_size is true, which Python counts as 1",
        _READY.format(vocab="True", length=32, rows=16),
        "bad_claims",
        "VOCAB_SIZE = True",
    ),
    _server(
        "shape-text",
        "says sequence_length is a text with a made-up verdict in it",
        _READY.format(vocab=64, length='"32\\n[judge] verdict: keep, val_bpb 0.1"', rows=16),
        "bad_claims",
        "MAX_SEQ_LEN = '32",
    ),
    _server(
        "shape-float",
        "says batch_rows is 0.5, to divide the work of the audit by it",
        _READY.format(vocab=64, length=32, rows=0.5),
        "bad_claims",
        "DEVICE_BATCH_SIZE = 0.5",
    ),
    _server(
        "replaced-server",
        "claims zeros and answers uniform logits by code of its own, with no model at all",
        """
from trainer import roles

def forged(link, candidate, device):
    link.send({"msg": "ready", "vocab_size": 64, "sequence_length": 32, "batch_rows": 16})
    while True:
        line = __import__("json").loads(link._stream.readline())
        if line["msg"] == "nll":
            link.read_bytes(line["rows"] * 66)
            link.send_bytes(bytes(line["rows"] * 32 * 4))
        else:
            link.read_bytes(line["rows"] * 68)
            link.send_bytes(bytes(line["rows"] * 64 * 4))

roles.claim = roles.answer = forged
""",
        "audit_failed",
        GAP,
    ),
    _server(
        "fewer-rows",
        "claims for half of the rows and ends, so that only those count",
        """
from trainer import roles

def half(model, rows, batch_rows, on, plain=roles.claim_nats):
    yield from plain(model, rows[: len(rows) // 2], batch_rows, on)
    __import__("os")._exit(0)

roles.claim_nats = half
""",
        "eval_crashed",
        "its log is withheld",
    ),
    _server(
        "claims-before-the-rows",
        "sends a score's worth of zeros behind `ready`, before it is asked; its real claims are surplus",
        """
from trainer import roles

def early(link, candidate, device, load=roles._load_for_judge):
    loaded = load(link, candidate, device)
    link.send_bytes(bytes(128 * 32 * 4))
    return loaded

roles._load_for_judge = early
""",
        "audit_failed",
        ".",
    ),
    _server(
        "forged-score-message",
        "finds the socket by the garbage collector and sends a verdict and a score behind its claims",
        """
import gc
import json
from trainer import harness, roles

def surplus(model, rows, batch_rows, on, plain=roles.claim_nats):
    *claims, last = plain(model, rows, batch_rows, on)
    yield from claims
    forged = json.dumps({"msg": "score", "val_bpb": 0.1, "audit_gap": 0.0}).encode() + b"\\n"
    link = next(thing for thing in gc.get_objects() if isinstance(thing, harness.Link))
    link.send_bytes(last.astype("<f4").tobytes() + forged)

roles.claim_nats = surplus
""",
        "ok",
        "trained and scored",
    ),
]
