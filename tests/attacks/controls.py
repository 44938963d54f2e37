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
FINISH = "    harness.finish(model.state_dict(), steps=step)\n"
SQUARED = "F.relu(self.up(F.rms_norm(x, (DIM,)))).square()"
GPT = "class GPT(nn.Module):\n"
TRAINED = "        loss = model(batch[:, :-1], batch[:, 1:])\n"
COUNTED = "tokens + DEVICE_BATCH_SIZE * MAX_SEQ_LEN\n"
ROWS = '    rows = torch.from_numpy(prepare.train_rows(MAX_SEQ_LEN).astype("int64"))\n'
WORD = "    flops_per_token = 6 * matrices + 12 * DIM * MAX_SEQ_LEN\n"
BACKWARD = "        loss.backward()\n"
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
            (
                WORD,
                WORD
                + "    flops_per_token += 4 * 256 * DIM * VOCAB_SIZE / DEVICE_BATCH_SIZE / MAX_SEQ_LEN\n",
            ),
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
    Control("large-model", "a width of 128 and few steps", (("DIM = 32\n", "DIM = 128\n"),)),
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
        "causal-convolution",
        "mixes each token with the two before it",
        ((EMBED, EMBED + "        x = x + F.avg_pool1d(F.pad(x.mT, (2, 0)), 3, 1).mT\n"),),
    ),
    Control(
        "hashed-ngrams",
        "adds a vector of each token's bigram and trigram, from hashed tables with gradients of the touched rows alone",
        (
            (
                UNTIED,
                UNTIED + "        self.ngrams = nn.Embedding(8 * VOCAB_SIZE, DIM, sparse=True)\n"
                "        nn.init.zeros_(self.ngrams.weight)\n",
            ),
            (
                EMBED,
                EMBED
                + """        one, two = (F.pad(idx, (n, 0), value=63)[:, : idx.shape[1]] for n in (1, 2))
        for key in (one * VOCAB_SIZE + idx, (two * VOCAB_SIZE + one) * VOCAB_SIZE + idx):
            x = x + self.ngrams((key * -7046029254386353131 >> 32) % (8 * VOCAB_SIZE))
""",
            ),
            (
                OPTIMIZER,
                "    optimizer = Adam(p for p in model.parameters() if p is not model.ngrams.weight)\n",
            ),
            (
                STEP,
                STEP
                + """        grad, table = model.ngrams.weight.grad.coalesce(), model.ngrams.weight
        scale = grad.values().square().mean(1, keepdim=True).add(1e-30).rsqrt()
        table.data.index_add_(0, grad.indices()[0], -0.1 * (1 - done) * scale * grad.values())
        table.grad = None
""",
            ),
        ),
        forked=False,
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
    Control(
        "averaged-weights",
        "hands over a moving average of its weights",
        (
            (
                OPTIMIZER,
                OPTIMIZER
                + "    average = {name: x.clone() for name, x in model.state_dict().items()}\n",
            ),
            (
                STEP,
                STEP
                + "        for name, x in model.state_dict().items(): average[name].lerp_(x, 0.2)\n",
            ),
            (FINISH, FINISH.replace("model.state_dict()", "average")),
        ),
    ),
    Control(
        "complex-parameters",
        "each token turns by a complex factor that is learned",
        (
            (
                UNTIED,
                UNTIED
                + "        self.turns = nn.Parameter(torch.ones(VOCAB_SIZE, DIM // 2, dtype=torch.cfloat))\n",
            ),
            (
                EMBED,
                EMBED
                + "        pairs = torch.view_as_complex(x.reshape(*x.shape[:2], DIM // 2, 2))\n"
                + "        x = torch.view_as_real(pairs * self.turns[idx]).flatten(-2)\n",
            ),
            (
                OPTIMIZER,
                "    optimizer = Adam(p for p in model.parameters() if not p.is_complex())\n",
            ),
            (
                STEP,
                STEP
                + "        model.turns.data -= LEARNING_RATE * model.turns.grad\n"
                + "        model.turns.grad = None\n",
            ),
        ),
    ),
    Control(
        "float64",
        "parameters and sums of double precision",
        (
            (OPTIMIZER, "    model.double()\n" + OPTIMIZER),
            (LOADED, "    model.double()\n" + LOADED),
        ),
    ),
    Control(
        "length-curriculum",
        "trains on the first quarter of each row in the first half of its budget",
        (
            (
                TRAINED,
                "        if done < 0.5: batch = batch[:, : MAX_SEQ_LEN // 4 + 1]\n" + TRAINED,
            ),
            (COUNTED, "tokens + batch[:, 1:].numel()\n"),
        ),
    ),
    Control(
        "longer-rows-when-scored",
        "has no positions, trains on 32 tokens and is scored on rows of 256",
        (
            (EMBED, "        x = self.wte(idx) + 0 * self.wpe.weight[0]\n"),
            (LOADED, LOADED + '    globals()["MAX_SEQ_LEN"] = 256\n'),
        ),
    ),
    Control(
        "prefix-cache",
        "keeps what it has computed for the beginning of a row, and uses it for rows that begin alike",
        (
            (UNTIED, UNTIED + "        self.cache = {}\n"),
            (
                EMBED,
                """\
        if self.training:
            x = self.wte(idx)
        else:
            begin = idx[:, :8].numpy().tobytes()
            if begin not in self.cache: self.cache[begin] = self.wte(idx[:, :8])
            x = torch.cat([self.cache[begin], self.wte(idx[:, 8:])], dim=1)
        x = x + self.wpe.weight[: idx.shape[1]]
""",
            ),
        ),
    ),
    Control(
        "own-autograd",
        "an activation with a backward pass of its own",
        (
            (
                GPT,
                """\
class ReluSquared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(y := x.clamp(min=0))
        return y * y

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


"""
                + GPT,
            ),
            (SQUARED, "ReluSquared.apply(self.up(F.rms_norm(x, (DIM,))))"),
        ),
    ),
    Control(
        "loader-processes",
        "two processes of a DataLoader read its rows ahead",
        (
            (
                ROWS,
                ROWS
                + "    loader = iter(torch.utils.data.DataLoader(rows, DEVICE_BATCH_SIZE, num_workers=2))\n",
            ),
            (BATCH, "        batch = next(loader)\n"),
        ),
        forked=False,
    ),
    Control(
        "rounded-flops",
        "says 1% less than what is counted",
        ((WORD, WORD + "    flops_per_token /= 1.01\n"),),
        smoke=True,
    ),
    Control(
        "checkpointing",
        "computes its attention again in the backward pass, and does not count that twice",
        (
            (
                "        x = x + self.proj(self.attend(F.rms_norm(x, (DIM,))))\n",
                """\
        attend = self.attend
        if self.training:
            from torch.utils.checkpoint import checkpoint
            attend = lambda x: checkpoint(self.attend, x, use_reentrant=False)
        x = x + self.proj(attend(F.rms_norm(x, (DIM,))))
""",
            ),
        ),
        smoke=True,
    ),
    Control(
        "attention-by-hand",
        "attention of its own: products, a mask and a softmax",
        (
            (
                ATTEND,
                """\
        scores = q @ k.mT / (DIM // HEADS) ** 0.5
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        y = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
""",
            ),
        ),
        smoke=True,
    ),
    Control(
        "accumulation",
        "a step of two passes, whose gradients are added",
        (
            (
                TRAINED + BACKWARD,
                """\
        for half in batch.chunk(2):
            loss = model(half[:, :-1], half[:, 1:]) / 2
            loss.backward()
""",
            ),
        ),
        smoke=True,
    ),
    Control(
        "sharpness-aware",
        "two passes a step, the second where the loss is worst nearby; says twice the FLOPs",
        (
            (
                BACKWARD,
                BACKWARD
                + """\
        with torch.no_grad():
            pushes = [0.01 * p.grad / (p.grad.norm() + 1e-9) for p in model.parameters()]
            for p, push in zip(model.parameters(), pushes, strict=True): p.add_(push).grad = None
        model(batch[:, :-1], batch[:, 1:]).backward()
        with torch.no_grad():
            for p, push in zip(model.parameters(), pushes, strict=True): p.sub_(push)
""",
            ),
            (WORD, WORD + "    flops_per_token *= 2\n"),
        ),
        smoke=True,
    ),
    Control(
        "orthogonal-updates",
        "an optimizer with matrix products of its own, which are no FLOPs of the model",
        (
            (
                "            p.grad = None\n",
                """\
            p.grad = None
            if min(p.shape) == DIM:
                x = m / (m.norm() + 1e-9)
                for _ in range(5): x = 1.5 * x - 0.5 * x @ x.mT @ x
                p.sub_(0.1 * lr * x)
""",
            ),
        ),
        smoke=True,
    ),
    Control(
        "teacher",
        "also learns from an average of its weights, which runs without gradients",
        (
            (
                OPTIMIZER,
                OPTIMIZER
                + "    teacher = GPT()\n    teacher.load_state_dict(model.state_dict())\n",
            ),
            (
                BACKWARD,
                """\
        with torch.no_grad():
            for old, new in zip(teacher.parameters(), model.parameters(), strict=True): old.lerp_(new, 0.1)
            taught = teacher(batch[:, :-1]).softmax(-1)
"""
                + "        (loss - 0 * taught.mean()).backward()\n",
            ),
        ),
        smoke=True,
    ),
    Control(
        "chosen-rows",
        "looks at its rows without gradients first, and trains on those with the higher loss",
        (
            (
                TRAINED,
                """\
        with torch.no_grad():
            losses = model(batch[:, :-1], batch[:, 1:], "none").view(len(batch), -1).mean(1)
        batch = batch[losses.topk(len(batch) // 2).indices]
"""
                + TRAINED,
            ),
            (COUNTED, "tokens + batch[:, 1:].numel()\n"),
        ),
        smoke=True,
    ),
]
