"""Room "peeking": predictions that depend on what comes after, on other rows, or on earlier sight of them.

The claim box sees everything and so can peek. The audit box sees prefixes, in an order that no
candidate knows, in a process that was never shown the rest. What cannot be predicted from there is
the gap.
"""

from tests.attacks.arena import Attack, Room

PEEKING: Room = "peeking"
REAL_BOXES = ("not-causal", "ngram-of-the-next-token", "reads-the-callers-frame")
GAP = r"claimed \S+ nats per token less than its predictions cost"
EMBED = "        x = self.wte(idx) + self.wpe.weight[: idx.shape[1]]\n"
ATTEND = "        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)\n"
OUT = "        return self.lm_head(F.rms_norm(x, (DIM,)))\n"
HEAD = "        logits = self.logits(idx)\n"
LOADED = "    model.load_state_dict(torch.load(path, weights_only=True))\n"
HEADED = "        self.lm_head = nn.Linear(DIM, VOCAB_SIZE, bias=False)\n"
LOADER = "def load_model(path, device):\n"
PROJECTED = "        x = x + self.proj(self.attend(F.rms_norm(x, (DIM,))))\n"
NEXT = "F.pad(idx[:, 1:], (0, 1))"  # the token after each, within the row
HASHED = "(((idx * (2 * torch.arange(idx.shape[1]) + 1) * 977).cumsum(1) * 2654435761) >> 16) % 1000"  # of the prefix


def _peek(name: str, what: str, *edits: tuple[str, str], reason: str = GAP) -> Attack:
    return Attack(
        name=name,
        room=PEEKING,
        what=what,
        edits=edits,
        status="audit_failed",
        reason=reason,
        forked=name not in REAL_BOXES,
    )


def _after(old: str, code: str) -> tuple[str, str]:
    return old, old + code


def _where(name: str, what: str, mask: str) -> Attack:
    """Adds 9 to the logit of the token that follows, where `mask`, an expression over idx, says so."""
    return _peek(
        name,
        what,
        (
            HEAD,
            HEAD + f"        mask = ({mask}) & (torch.arange(idx.shape[1]) < idx.shape[1] - 1)\n"
            f"        logits = logits + 9.0 * mask[..., None] * F.one_hot({NEXT}, VOCAB_SIZE)\n",
        ),
    )


ATTACKS = [
    _peek(
        "not-causal",
        "attention without the causal mask",
        (ATTEND, ATTEND.replace("is_causal=True", "is_causal=False")),
    ),
    _peek(
        "next-token-embedding",
        "adds the next token's embedding to each position's",
        _after(EMBED, f"        x = x + self.wte({NEXT})\n"),
    ),
    _peek(
        "ngram-of-the-next-token",
        "adds a hashed vector of each token and the one after it, as an honest one does of that before it",
        _after(HEADED, "        self.ngrams = nn.Embedding(64 * VOCAB_SIZE, DIM)\n"),
        _after(
            EMBED,
            f"        x = x + self.ngrams((idx * 977 + {NEXT} * 40503) % (64 * VOCAB_SIZE))\n",
        ),
    ),
    _peek(
        "uses-its-targets",
        "adds the targets it is given to its logits",
        _after(
            HEAD,
            "        logits = logits + (0 if targets is None else 3 * F.one_hot(targets, VOCAB_SIZE))\n",
        ),
    ),
    _peek(
        "block-summaries-16",
        "gives each position the mean of its block of 16 tokens (nanochat 844)",
        _after(
            EMBED, "        x = x + x.unflatten(1, (-1, 16)).mean(2).repeat_interleave(16, 1)\n"
        ),
    ),
    _peek(
        "row-summary",
        "gives each position the mean of the row's values, as a summary of the whole context (nanochat 844)",
        (ATTEND, ATTEND + "        y = y + v.mean(2, keepdim=True)\n"),
    ),
    _peek(
        "spectral-filter",
        "filters along time by an FFT of the row's own length, which wraps around (nanochat 844)",
        (
            ATTEND,
            "        taps = torch.fft.rfft(torch.exp(-torch.arange(T) / 4.0)).view(1, 1, -1, 1)\n"
            "        y = torch.fft.irfft(torch.fft.rfft(v, dim=2) * taps, n=T, dim=2)\n",
        ),
    ),
    _peek(
        "centred-convolution",
        "mixes neighbours by a convolution padded on both sides",
        _after(EMBED, "        x = x + F.avg_pool1d(x.mT, 3, 1, 1).mT\n"),
    ),
    _peek(
        "counts-across-the-batch",
        "adds the token counts of the whole batch to its logits",
        _after(
            HEAD,
            "        logits = logits + torch.bincount(idx.flatten(), minlength=VOCAB_SIZE).add(1.0).log()\n",
        ),
    ),
    _peek(
        "norm-over-time",
        "normalises each feature by the mean and deviation of the whole row, as BatchNorm over time does",
        _after(EMBED, "        x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)\n"),
    ),
    _peek(
        "future-gate",
        "a gate on each value that the next token opens",
        _after(PROJECTED, f"        x = x * torch.sigmoid(self.wte({NEXT}))\n"),
    ),
    _peek(
        "expert-choice-routing",
        "the MLP takes the half of a row's tokens with the largest scores: who is chosen depends on all",
        (
            "        x = x + self.down(",
            "        most = x.norm(dim=-1, keepdim=True)\n"
            "        x = x + (most >= most.median(1, keepdim=True).values) * self.down(",
        ),
    ),
    _peek(
        "row-wide-quantisation",
        "rounds activations to 4 bits by a scale that is the largest of the whole row",
        (
            OUT,
            "        scale = x.detach().abs().amax((1, 2), keepdim=True) / 7\n"
            "        x = x + ((x / scale).round() * scale - x).detach()\n" + OUT,
        ),
    ),
    _where("hashed-2-percent", "peeks at a hashed 2% of the positions", f"{HASHED} < 20"),
    _where("hashed-half-percent", "peeks at a hashed 0.5% of the positions", f"{HASHED} < 5"),
    _where(
        "odd-positions", "peeks at every 16th position only", "torch.arange(idx.shape[1]) % 16 == 9"
    ),
    _where(
        "honest-when-watched",
        "peeks only where the row does not end in BOS, as an audited one does",
        "(idx[:, -1:] != 63).expand_as(idx)",
    ),
    _where(
        "rare-tokens-only",
        "peeks only where the next token is a rare one, where a token is worth most",
        f"torch.isin({NEXT}, torch.arange(4))",
    ),
    _peek(
        "last-of-a-row",
        "takes each row's last target from the row after it, which starts with it",
        _after(
            HEAD,
            "        logits[:-1, -1] += 20 * F.one_hot(idx[1:, 0], VOCAB_SIZE) * (len(idx) > 1)\n",
        ),
    ),
    _peek(
        "last-of-a-row-in-one-batch",
        "the same with all rows in one batch, where the audit would show every answer at once",
        _after(LOADED, '    globals()["DEVICE_BATCH_SIZE"] = 256\n'),
        _after(
            HEAD,
            "        if targets is None or reduction == 'none':\n"
            "            logits[:-1, -1] += 20 * F.one_hot(idx[1:, 0], VOCAB_SIZE)\n",
        ),
    ),
    _peek(
        "reads-the-callers-frame",
        "finds all rows in the local variables of the harness that calls it",
        ("import torch\n", "import sys\nimport torch\n"),
        _after(
            HEAD,
            "        rows = sys._getframe(3).f_locals.get('rows')\n"
            "        if rows is not None and reduction == 'none':\n"
            "            every = torch.from_numpy(rows.astype('int64')).flatten()\n"
            "            logits = logits + every.bincount(minlength=64).add(1).log()\n",
        ),
    ),
    _peek(
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
]
