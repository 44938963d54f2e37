"""Unusual but honest candidates: no rule against cheating may stop them, and their audits find rounding alone."""

from tests.attacks.arena import Control

EMBED = "        x = self.wte(idx) + self.wpe.weight[: idx.shape[1]]\n"
ATTEND = "        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)\n"
HEAD = "        logits = self.logits(idx)\n"
UNTIED = "        self.lm_head = nn.Linear(DIM, VOCAB_SIZE, bias=False)\n"
LOSS = "        return loss\n"
STEP = "        optimizer.step(LEARNING_RATE * (1 - done))\n"
OPTIMIZER = "    optimizer = Adam(model.parameters())\n"
LOADED = "    model.load_state_dict(torch.load(path, weights_only=True))\n"
ROWS = '    rows = torch.from_numpy(prepare.train_rows(MAX_SEQ_LEN).astype("int64"))\n'
BATCH = """\
        batch = rows[
            torch.arange(step * DEVICE_BATCH_SIZE, (step + 1) * DEVICE_BATCH_SIZE) % len(rows)
        ]
"""

CONTROLS = [
    Control(
        "bytes-of-tokens",
        "adds the embeddings of a token's raw bytes to its own, from the public tokenizer",
        (
            (
                UNTIED,
                UNTIED
                + """        raw = torch.zeros(VOCAB_SIZE, 256)
        for token, rank in prepare.Tokenizer.load(VOCAB_SIZE).ranks.items():
            raw[rank] = torch.bincount(torch.tensor(list(token)), minlength=256).float()
        self.register_buffer("raw", raw)
        self.bytes = nn.Parameter(0.1 * torch.randn(256, DIM))
""",
            ),
            (EMBED, EMBED + "        x = x + (self.raw @ self.bytes)[idx]\n"),
        ),
        forked=False,
    ),
    Control(
        "tied-weights",
        "the head is the embedding",
        (
            (
                UNTIED,
                UNTIED
                + "        self.lm_head.weight = nn.Parameter(0.2 * self.wte.weight.detach())\n"
                "        self.wte.weight = self.lm_head.weight\n",
            ),
        ),
    ),
    Control(
        "another-optimizer",
        "AdamW of torch.optim with weight decay",
        (
            (
                OPTIMIZER,
                "    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)\n",
            ),
            (
                STEP,
                "        optimizer.param_groups[0]['lr'] = LEARNING_RATE * (1 - done)\n"
                "        optimizer.step()\n        optimizer.zero_grad()\n",
            ),
        ),
    ),
    Control("tiny-model", "a width of 8 and many more steps", (("DIM = 32\n", "DIM = 8\n"),)),
    Control("large-model", "a width of 256 and few steps", (("DIM = 32\n", "DIM = 256\n"),)),
    Control(
        "bfloat16",
        "matrix products in bfloat16 by autocast, in training and scoring",
        (
            (
                HEAD,
                '        with torch.autocast("cpu", torch.bfloat16):\n            logits = self.logits(idx).float()\n',
            ),
        ),
    ),
    Control(
        "torch-compile",
        "the model is compiled in every role, by a backend that needs no C++ compiler",
        (
            (
                UNTIED,
                UNTIED + '        self.logits = torch.compile(self.logits, backend="aot_eager")\n',
            ),
        ),
    ),
    Control(
        "dropout",
        "drops activations at train time",
        ((EMBED, EMBED + "        x = F.dropout(x, 0.1, self.training)\n"),),
    ),
    Control(
        "z-loss",
        "a penalty on the softmax's normaliser at train time",
        (
            (
                LOSS,
                "        return loss + 1e-3 * logits.logsumexp(-1).square().mean() if self.training else loss\n",
            ),
        ),
    ),
    Control(
        "multi-token-prediction",
        "also learns to predict the token after the next, by a loss at train time",
        (
            (
                LOSS,
                """        if self.training:
            loss = loss + 0.3 * F.cross_entropy(logits[:, :-1].roll(1, -1).flatten(0, 1), targets[:, 1:].flatten())
        return loss
""",
            ),
        ),
    ),
    Control(
        "other-shape",
        "rows of 48 tokens, packed before the run, in batches of an odd number",
        (
            ("MAX_SEQ_LEN = 32\n", "MAX_SEQ_LEN = 48\n"),
            ("DEVICE_BATCH_SIZE = 16\n", "DEVICE_BATCH_SIZE = 7\n"),
        ),
    ),
    Control(
        "one-batch",
        "all validation rows in one batch",
        ((LOADED, LOADED + '    globals()["DEVICE_BATCH_SIZE"] = 256\n'),),
    ),
    Control(
        "bos-ruled-out",
        "gives BOS, which is never scored, a probability of 0",
        (
            (
                HEAD,
                HEAD
                + "        logits = logits.index_fill(-1, torch.tensor([63]), float('-inf'))\n",
            ),
            (
                "targets.reshape(-1), reduction=reduction\n",
                "targets.reshape(-1), reduction=reduction, ignore_index=63 if self.training else -1\n",
            ),
        ),
    ),
    Control(
        "loader-processes",
        "two processes of torch's DataLoader gather the batches",
        (
            (
                ROWS,
                ROWS
                + """    chosen = (torch.arange(i, i + DEVICE_BATCH_SIZE) % len(rows) for i in range(0, 10**9, DEVICE_BATCH_SIZE))
    batches = iter(torch.utils.data.DataLoader(rows, batch_sampler=chosen, num_workers=2))
""",
            ),
            (BATCH, "        batch = next(batches)\n"),
        ),
    ),
    Control(
        "causal-convolution",
        "mixes each token with the two before it",
        ((EMBED, EMBED + "        x = x + F.avg_pool1d(F.pad(x.mT, (2, 0)), 3, 1).mT\n"),),
    ),
    Control(
        "recurrence",
        "a decaying sum over the past in the place of attention",
        (
            (
                ATTEND,
                "        ages = torch.arange(T)[:, None] - torch.arange(T)\n"
                "        y = torch.where(ages < 0, 0.0, 0.7 ** ages.clamp(min=0)) @ v\n",
            ),
        ),
    ),
    Control(
        "bigram-table",
        "counts pairs of tokens in the training rows and adds their log-probability to its logits",
        (
            (
                UNTIED,
                UNTIED
                + '        self.register_buffer("table", torch.zeros(VOCAB_SIZE, VOCAB_SIZE))\n',
            ),
            (HEAD, HEAD + "        logits = logits + self.table[idx]\n"),
            (
                ROWS,
                ROWS
                + """    pairs = rows[:, :-1].flatten() * VOCAB_SIZE + rows[:, 1:].flatten()
    model.table += torch.bincount(pairs, minlength=VOCAB_SIZE**2).view(VOCAB_SIZE, VOCAB_SIZE).add(1.0).log().log_softmax(-1)
""",
            ),
        ),
    ),
]
